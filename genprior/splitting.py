"""Photographs of any size, restored with a prior of their patches, and what is uncertain about them.

Minimised is EPLL's energy, in which no weight is tuned,

    E(x) = ‖A x - y‖² / 2σ² - Σ_i w_i log p(P_i x),

P_i x the patches of a grid, continued by mirrors beyond the borders; w_i the share of a patch within them, over how
many patches hold a pixel, on average, so that mirror images do not count twice. Half-quadratic splitting gives each
patch a copy z_i, as far from P_i x as noise of a level τ. Patches are then denoised at the level τ, and A is inverted,

    z_i = denoised(P_i x, τ),   (AᵀA / σ² + I / τ²) x = Aᵀy / σ² + (mean of the z_i over each pixel) / τ²,

while τ falls. The mean is the plain one, which differs from one with the w_i at the borders alone. Of a mixture where
A = I, the last x is the mean of the z_i alone. Zoran & Weiss 2011, section 4.

At one code for each patch, log p is a Gaussian's, N(μ_i, Σ_i), and so is the posterior of the whole photograph:

    x | y ~ N(x̂, Λ⁻¹),   Λ = AᵀA / σ² + Σ_i w_i P_iᵀ Σ_i⁻¹ P_i,   Λ x̂ = Aᵀy / σ² + Σ_i w_i P_iᵀ Σ_i⁻¹ μ_i.

Of priors with codes, x̂ is the result where A leaves out pixels or frequencies, and half of it where A = I: there, codes
of a second pass see cleaner patches, x̂ is right about what is smooth, and their errors differ. After a blur x̂, where E
is lowest, overdoes what the blur has weakened: there, and of a mixture, the result is what the splitting ends at. One
patch that is given to too smooth a component outweighs all others in Λ, and not in a mean.
Papandreou & Yuille 2010 draw from such posteriors by perturbed equations.

Codes are in doubt too, above all of what y does not show. Gibbs sampling draws them and the photograph in turn,

    z_i ~ q(z | P_i x),   x ~ N(x̂, Λ⁻¹) at these codes,

q the variational encoder, all w_i = 1 / c, c patches to a pixel. Where A = I, codes stay at those of y, since q knows
no patches with the noise of samples.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from genprior import denoising
from genprior.batches import noise_like
from genprior.files import InputError, nonnegative, whole_number
from genprior.grids import Strip, strips
from genprior.images import estimate_sigma
from genprior.operators import FourierSampling, Identity, Inpainting
from genprior.problem import refused
from genprior.streams import generator_of, stream
from genprior.views import View

DENOISING = (1, 4, 8, 16, 32)  # σ² / τ² of the passes where A = I. Zoran & Weiss 2011, section 5
AGAIN = 3  # the same, of the second and last pass of priors with codes, whose passes cost more
PASSES, MORE_PASSES = 12, 25  # of other A; of those that leave much to the prior, where it is not in equations
FIRST = 0.2  # their first level, what a smooth guess leaves of edges; the last is σ: log-spaced, as Zhang et al. 2021
LEAST_LEVEL = 0.5 / 255  # of those: a grey value's rounding
SLOPE = 0.05  # how much neighbouring pixels of a photograph differ, for the first guess
SOLVES, NEARLY = 300, 5e-3  # steps of conjugate gradients for the posterior, at most; their error, in its deviations
CELLS, PROBES = 16, 4  # of frequencies along each axis, and draws of noise, for their preconditioner
STEPS = 3  # of Fisher scoring for each code, once a level is near σ; before, the encoder's codes do
NEAR = 3  # times σ
SWEEPS = 16  # of codes and photograph, drawn in turn, before the first sample
SAMPLES = 32  # of which the standard deviation is taken: right to an eighth, were they independent
DRAWN_TOGETHER = 8  # samples, which bounds memory

Sought = list[tuple[Strip, Tensor | None]]  # a grid's strips, each with the codes of its patches, if the prior has any


@dataclass(frozen=True)
class PhotographPosterior:
    """N(x̂, Λ⁻¹) of a photograph, at one code for each of its patches, which were noisy ones of a level.

    pull: Σ_i w_i P_iᵀ Σ_i⁻¹ μ_i, (1, 1, H, W); patches: each strip of the grid, and what whitens its Σ_i.
    """

    operator: object
    y: Tensor
    sigma: float
    pull: Tensor
    patches: list[tuple[Strip, object]]

    def precision(self, x: Tensor) -> Tensor:
        """Λ x: (S, 1, H, W) -> (S, 1, H, W)."""
        found = self.operator.A_adjoint(self.operator.A(x)) / self.sigma**2
        for strip, whitening in self.patches:
            strip.add(strip.weights * whitening.spread(whitening.whitened(strip.cut(x))), found)
        return found

    @cached_property
    def _scales(self) -> Tensor:
        """s, 1 / s² about the diagonal of Λ: (1, 1, H, W)."""
        ones = torch.ones_like(self.pull)  # which tell the diagonal of an AᵀA that has no other entries
        diagonal = self.operator.A_adjoint(self.operator.A(ones)).clamp_min(0) / self.sigma**2
        for strip, whitening in self.patches:
            strip.add((strip.weights * whitening.diagonal())[None], diagonal)
        return diagonal.rsqrt()

    @cached_property
    def _gains(self) -> Tensor:
        """What diag(s) Λ diag(s) makes of each frequency of white noise, means over cells of them: (H, W // 2 + 1)."""
        height, width = self.pull.shape[2:]
        frequencies = torch.fft.fftfreq(height).abs()[:, None], torch.fft.rfftfreq(width)
        rows, columns = ((2 * CELLS * f).long().clamp_max(CELLS - 1) for f in frequencies)
        cell, draw = (CELLS * rows + columns).to(self.pull.device), torch.Generator().manual_seed(0)
        sums = self.pull.new_zeros(2, CELLS**2)
        for _ in range(PROBES):
            e = noise_like(self.pull, draw)
            into, out = (torch.fft.rfft2(part)[0, 0] for part in (e, self._scales * self.precision(self._scales * e)))
            for found, energy in zip(sums, ((into.conj() * out).real, into.abs().square()), strict=True):
                found.index_add_(0, cell.flatten(), energy.flatten())
        gains = (sums[0] / sums[1])[cell]
        return gains.clamp_min(gains.max() / 1000)  # by chance a mean may be below 0

    def about_inverse(self, x: Tensor) -> Tensor:
        """About Λ⁻¹ x: (S, 1, H, W) -> (S, 1, H, W).

        Λ is near to diagonal in frequencies once each pixel has its scale: high frequencies have the larger precision.
        """
        waves = torch.fft.rfft2(self._scales * x) / self._gains
        return self._scales * torch.fft.irfft2(waves, s=x.shape[2:])

    def mean(self, start: Tensor, noise: Tensor | float = 0.0) -> Tensor:
        """x̂, by conjugate gradients from a start, or with `noise` a draw of N(x̂, Λ⁻¹): (1, 1, H, W)."""
        return self._solved(self.operator.A_adjoint(self.y) / self.sigma**2 + self.pull + noise, start)

    def noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Aᵀe / σ + Σ_i w_i^½ P_iᵀ W_i e_i, all e ~ N(0, I), whose covariance is Λ, of x's shape (S, 1, H, W)."""
        b = self.operator.A_adjoint(noise_like(self.operator.A(x), generator)) / self.sigma
        for strip, whitening in self.patches:
            strip.add(strip.weights.sqrt() * whitening.spread(noise_like(strip.cut(x), generator)), b)
        return b

    def deviations(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws of N(0, Λ⁻¹): (count, 1, H, W)."""
        x = self.pull.new_zeros(count, *self.pull.shape[1:])
        return self._solved(self.noise(x, generator), x)

    def _solved(self, b: Tensor, start: Tensor) -> Tensor:
        """Λ⁻¹ b; of the residual r and n pixels, rᵀC r / n is about the mean square error in standard deviations."""
        return conjugate_gradients(self.precision, b, start, SOLVES, NEARLY, self.about_inverse, b.numel())


@dataclass(frozen=True)
class RestoredImage:
    """A photograph restored: x (1, 1, H, W), the noise levels τ of the passes, and σ.

    mean: x̂, around which samples lie, where that is another photograph than x.
    """

    x: Tensor
    levels: list[float]
    sigma: float
    law: Callable[[], PhotographPosterior] | None
    redraw: Callable[[Tensor, torch.Generator], PhotographPosterior] | None = None
    mean: Tensor | None = None

    @cached_property
    def posterior(self) -> PhotographPosterior:
        """What is uncertain about x; InputError where no prior of patches restored it."""
        if self.law is None:
            raise InputError("a denoiser without a prior: what is uncertain needs a prior of patches")
        return self.law()

    @torch.no_grad()
    def samples(self, count: int, seed: int | torch.Generator = 0) -> Tensor:
        """Draws of the posterior: (count, 1, H, W).

        Where A = I, N(x̂, Λ⁻¹) at the codes of y. Else codes are drawn too, by Gibbs sampling from x. Of a mixture, and
        with other A of a prior without a variational encoder, x + N(0, Λ⁻¹).
        """
        generator, count = generator_of(seed, "photographs"), whole_number("count", count)
        if self.redraw is not None:
            x, found = self.x, []
            for _ in range(SWEEPS + count):
                law = self.redraw(x, generator)
                x = law.mean(x, law.noise(x, generator))
                found.append(x)
            return torch.cat(found[SWEEPS:])
        parts = [min(DRAWN_TOGETHER, count - first) for first in range(0, count, DRAWN_TOGETHER)]
        centre = self.x if self.mean is None else self.mean
        return centre + torch.cat([self.posterior.deviations(part, generator) for part in parts])

    @torch.no_grad()
    def std(self, samples: int = SAMPLES, seed: int | torch.Generator = 0) -> Tensor:
        """How far so many samples are from x in each pixel, the root of the mean square: (1, 1, H, W)."""
        return (self.samples(samples, seed) - self.x).square().mean(0, keepdim=True).sqrt()


@torch.no_grad()
def restore_image(
    prior: object,
    operator: object,
    y: Tensor,
    sigma: float | None = None,
    stride: int | None = None,
    seed: int = 0,
    progress: Callable[[int, list[float], Tensor], None] = lambda done, levels, x: None,
) -> RestoredImage:
    """Restore a grey photograph x (1, 1, H, W) in [0, 1] from y = A x + e, e ~ N(0, σ² I), A linear.

    sigma: None where y is a photograph, whole or with pixels missing, whose noise is to be estimated.
    prior: one with a residual covariance; a mixture, or what else has `shape`, `denoise(patches, level)` and
    `gaussians(patches, level)`; or a function of photographs (1, 1, H, W) and a level, any denoiser. stride: pixels
    from patch to patch, by default half of the patch's shorter side, of a mixture's a quarter. The grid begins
    elsewhere in each pass, as the seed has it. Beyond its borders the photograph is taken as mirrored. progress: told
    after each pass how many are done, the levels and x.
    InputError for a sigma that is none or 0, or cannot be estimated, a stride that is none, an operator without
    adjoint, or a range.
    """
    sigma = estimated(y, operator) if sigma is None else sigma
    if nonnegative("sigma", sigma) == 0:
        raise InputError("sigma = 0: above 0 would be right; 1/1000 for a measurement without noise")
    if isinstance(prior, View) and prior.covariance == "none":
        raise InputError("prior.range leaves no residual covariance to patches: prior would be right")
    step = prior if callable(prior) else ByPatches(prior, stride, seed, operator, sigma)
    with refused(operator, "A_adjoint", y):
        adjoint = operator.A_adjoint(y)
    alone, coded = isinstance(operator, Identity), isinstance(prior, View)
    if alone and coded:
        return denoised_twice(step, y, sigma, progress)
    selects = isinstance(operator, Inpainting | FourierSampling)
    solved = selects and coded  # by its equations, in the last pass
    if alone:
        x, levels = y, [sigma / beta**0.5 for beta in DENOISING]
    else:
        last, passes = min(FIRST, max(sigma, LEAST_LEVEL)), MORE_PASSES if selects and not solved else PASSES
        x, levels = smooth_guess(operator, adjoint, sigma), np.geomspace(FIRST, last, passes).tolist()
    for done, level in enumerate(levels[: len(levels) - solved], 1):
        z = step(x, level)
        ratio = 0.0 if alone and done == len(levels) else (level / sigma) ** 2
        normal = lambda v, ratio=ratio: ratio * operator.A_adjoint(operator.A(v)) + v  # noqa: E731
        x = conjugate_gradients(normal, ratio * adjoint + z, z)
        progress(done, levels, x)
    if callable(prior):
        return RestoredImage(x, levels, sigma, None)
    law = cache(partial(step.posterior, y, *((y, sigma) if alone else (x, levels[-1]))))
    if solved:
        x = law().mean(x)
        progress(len(levels), levels, x)
    redraw = partial(step.redrawn, y) if coded and prior.network.is_variational else None
    return RestoredImage(x, levels, sigma, law, redraw)


def denoised_twice(step: "ByPatches", y: Tensor, sigma: float, progress: Callable) -> RestoredImage:
    """A photograph of a prior with codes where A = I: half x̂ at the codes of y, half the mean of a second pass's z_i.

    progress: as of `restore_image`.
    """
    levels = [sigma, sigma / AGAIN**0.5]
    sought = step.sought(y, sigma, STEPS, total_variation(y, sigma))
    law, z = step.posterior(y, y, sigma, sought), step(y, sigma, sought)
    x = (y + z) / 2  # as τ = σ
    progress(1, levels, x)
    mean, sought = law.mean(z), step.sought(x, levels[1], STEPS, total_variation(x, levels[1]))
    x = (mean + step(x, levels[1], sought)) / 2
    progress(2, levels, x)
    return RestoredImage(x, levels, sigma, lambda: law, mean=mean)


def estimated(y: Tensor, operator: object) -> float:
    """σ of white noise on a photograph, or on those pixels of it that a mask shows."""
    seen = operator.mask if isinstance(operator, Inpainting) else torch.ones(y.shape[2:], dtype=torch.bool)
    picture = operator.A_adjoint(y) if isinstance(operator, Inpainting | Identity) else None
    sigma = None if picture is None else estimate_sigma(picture[0, 0].cpu().numpy(), seen.cpu().numpy())
    if sigma is None:
        raise InputError("sigma = None: y does not tell its noise; its standard deviation would be right")
    return max(sigma, LEAST_LEVEL)


class ByPatches:
    """A denoiser of photographs by their patches, on a grid that begins elsewhere each time."""

    def __init__(self, prior: object, stride: int | None, seed: int, operator: object, sigma: float):
        self.prior, self.operator, self.sigma = prior, operator, sigma
        side = min(prior.shape)
        self.shape, self.generator = tuple(prior.shape), stream(seed, "grid")
        self.coded = isinstance(prior, View)
        usual = max(1, side // (2 if self.coded else 4))  # a code costs more than a component, and is wrong less often
        self.stride = usual if stride is None else whole_number("stride", stride, 1, side)

    def grid(self, x: Tensor, generator: torch.Generator) -> Iterator[Strip]:
        """The strips of a grid that begins where a draw says."""
        return strips(x, self.shape, self.stride, torch.randint(self.stride, (2,), generator=generator).tolist())

    def cut(self, strip: Strip, x: Tensor) -> Tensor:
        """A strip's patches of a photograph: (P, 1, h, w)."""
        return strip.cut(x).reshape(-1, 1, *self.shape)

    def sought(self, x: Tensor, level: float, steps: int, guide: Tensor) -> Sought:
        """A grid's strips with the codes of their patches, if the prior has any; see `denoising.codes_of`."""
        codes_of = partial(denoising.codes_of, self.prior) if self.coded else lambda *asked: None
        grid = self.grid(x, self.generator)
        return [(strip, codes_of(self.cut(strip, x), level, self.cut(strip, guide), steps)) for strip in grid]

    def usual(self, x: Tensor, level: float) -> Sought:
        """`sought` in a photograph with no more noise than the encoder bears."""
        return self.sought(x, level, STEPS if level <= max(NEAR * self.sigma, LEAST_LEVEL) else 0, x)

    def __call__(self, x: Tensor, level: float, sought: Sought | None = None) -> Tensor:
        """The mean, over each pixel, of the denoised patches of a photograph: (1, 1, H, W)."""
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for strip, z in sought or self.usual(x, level):
            patches = self.cut(strip, x)
            of = self.prior
            found = of.denoise(patches, level) if z is None else denoising.denoise(of, patches, level, z)
            strip.add(found.flatten(1)[None], total)
            strip.add(torch.ones_like(found).flatten(1)[None], count)
        return total / count

    @torch.no_grad()
    def posterior(self, y: Tensor, x: Tensor, level: float, sought: Sought | None = None) -> PhotographPosterior:
        """What is known of a photograph at codes of x, which is noisy of a level."""
        of = self.prior
        laws = (
            (strip, of.gaussians(self.cut(strip, x), level) if z is None else denoising.gaussians(of, z))
            for strip, z in sought or self.usual(x, level)
        )
        return self._given(y, x, laws)

    @torch.no_grad()
    def redrawn(self, y: Tensor, x: Tensor, generator: torch.Generator) -> PhotographPosterior:
        """The same at codes drawn of q(z | P_i x), on a grid drawn anew."""
        code = partial(denoising.drawn_codes, self.prior, generator=generator)
        # With less weight at the borders, codes and photograph would drive each other apart there.
        even = x.new_tensor(self.stride**2 / math.prod(self.shape))
        grid = (replace(strip, weights=even) for strip in self.grid(x, generator))
        return self._given(y, x, ((strip, denoising.gaussians(self.prior, code(self.cut(strip, x)))) for strip in grid))

    def _given(self, y: Tensor, x: Tensor, laws: Iterator[tuple[Strip, tuple]]) -> PhotographPosterior:
        pull, patches = torch.zeros_like(x), []
        for strip, (mean, whitening) in laws:
            strip.add(strip.weights * whitening.spread(whitening.whitened(mean[None])), pull)
            patches.append((strip, whitening))
        return PhotographPosterior(self.operator, y, self.sigma, pull, patches)


def total_variation(x: Tensor, level: float, iterations: int = 50) -> Tensor:
    """argmin_u ‖u - x‖² / 2 τ + Σ |∇u| of a photograph (1, 1, H, W) with noise of level τ: x - τ ∇ᵀp, |p| ≤ 1.

    The encoder knows patches without noise. Codes of these lie near the likeliest of noisy ones. Chambolle 2004,
    equation 9, with steps of a quarter.
    """
    p = x.new_zeros(2, *x.shape[2:])
    for _ in range(iterations):
        u = x[0, 0] - level * gradient_adjoint(p[0, :-1], p[1, :, :-1])
        slope = torch.stack([pad(u.diff(dim=0), (0, 0, 0, 1)), pad(u.diff(dim=1), (0, 1))])
        p = (p + slope * (0.25 / level)) / (1 + slope.norm(dim=0) * (0.25 / level))
    return x - level * gradient_adjoint(p[0, :-1], p[1, :, :-1])


def gradient_adjoint(rows: Tensor, columns: Tensor) -> Tensor:
    """∇ᵀ, the adjoint of differences along both axes: (.., H - 1, W) and (.., H, W - 1) -> (.., H, W)."""
    return pad(rows, (0, 0, 1, 0)) - pad(rows, (0, 0, 0, 1)) + pad(columns, (1, 0)) - pad(columns, (0, 1))


def smooth_guess(operator: object, adjoint: Tensor, sigma: float) -> Tensor:
    """The likeliest photograph where neighbouring pixels differ by N(0, 0.05²): argmin ‖A x - y‖² / σ² + ‖∇x‖² / 0.05².

    adjoint: Aᵀy, (1, 1, H, W). All that y leaves open it fills in smoothly.
    """
    weight = (SLOPE / max(sigma, 0.01)) ** 2  # with less, holes would not fill in, and it is but a first guess

    def normal(x: Tensor) -> Tensor:
        return weight * operator.A_adjoint(operator.A(x)) + gradient_adjoint(x.diff(dim=2), x.diff(dim=3))

    return conjugate_gradients(normal, weight * adjoint, adjoint, 500, 1e-5)  # holes fill in slowly


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    b: Tensor,
    x: Tensor,
    iterations: int = 100,
    tolerance: float = 1e-4,
    inverse: Callable[[Tensor], Tensor] = lambda residual: residual,
    size: float | None = None,
) -> Tensor:
    """x with normal(x) = b, a symmetric positive definite function, from a start.

    inverse: about that of normal, the preconditioner C. Ends at rᵀC r ≤ tolerance² size, r the residual, where size is
    bᵀC b by default.
    Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithm 5.3.
    """
    residual = b - normal(x)
    direction = inverse(residual)
    left = (residual * direction).sum()
    enough = tolerance**2 * ((b * inverse(b)).sum() if size is None else size)
    for _ in range(iterations):
        if left <= enough:
            break
        along = normal(direction)
        step = left / (direction * along).sum()
        x, residual = x + step * direction, residual - step * along
        next_direction, last = inverse(residual), left
        left = (residual * next_direction).sum()
        direction = next_direction + left / last * direction
    return x
