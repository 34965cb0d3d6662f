"""Photographs of any size, restored with a prior of their patches by half-quadratic splitting.

Minimised is EPLL's energy, in which no weight is tuned,

    E(x) = ‖A x - y‖² / 2σ² - (1/c) Σ_i log p(P_i x),

P_i x the patches of a grid and c how many of them hold a pixel, on average. With a copy z_i of each patch, as far
from P_i x as noise of a level τ, it falls into two steps that are easy: patches are denoised at the level τ, and A is
inverted,

    z_i = denoised(P_i x, τ),   (AᵀA / σ² + I / τ²) x = Aᵀy / σ² + (mean of the z_i over each pixel) / τ²,

while τ falls. Zoran & Weiss 2011, section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import fold, pad, unfold

from genprior.denoising import denoise
from genprior.files import InputError, nonnegative, whole_number
from genprior.operators import Identity
from genprior.problem import refused
from genprior.streams import stream

DENOISING = (1, 4, 8, 16, 32)  # σ² / τ² of the passes where A = I. Zoran & Weiss 2011, section 5
PASSES = 12  # of every other A
FIRST = 0.2  # their first level, what a smooth guess leaves of edges; the last is σ: log-spaced, as Zhang et al. 2021
LEAST_LEVEL = 0.5 / 255  # of those: a grey value's rounding
SLOPE = 0.05  # how much neighbouring pixels of a photograph differ, for the first guess
TOGETHER = 2**15  # patches denoised at a time, which bounds memory


@dataclass(frozen=True)
class RestoredImage:
    """A photograph restored: x (1, 1, H, W), and the noise levels τ of the passes."""

    x: Tensor
    levels: list[float]


@torch.no_grad()
def restore_image(
    prior: object,
    operator: object,
    y: Tensor,
    sigma: float,
    stride: int | None = None,
    seed: int = 0,
    progress: Callable[[int, list[float], Tensor], None] = lambda done, levels, x: None,
) -> RestoredImage:
    """Restore a grey photograph x (1, 1, H, W) in [0, 1] from y = A x + e, e ~ N(0, σ² I), A linear.

    prior: one with a residual covariance; a mixture, or what else has `shape` and `denoise(patches, level)`; or a
    function of photographs (1, 1, H, W) and a level, any denoiser. stride: pixels from patch to patch, a quarter of the
    patch's shorter side by default; the grid begins elsewhere in each pass, as the seed has it. Beyond its borders the
    photograph is taken as mirrored. progress: told after each pass how many are done, the levels and x.
    InputError for a sigma that is none or 0, a stride that is none, or an operator without adjoint.
    """
    if nonnegative("sigma", sigma) == 0:
        raise InputError("sigma = 0: above 0 would be right; 1/1000 for a measurement without noise")
    step = prior if callable(prior) else ByPatches(prior, stride, seed)
    with refused(operator, "A_adjoint", y):
        adjoint = operator.A_adjoint(y)
    if isinstance(operator, Identity):
        x, levels = y, [sigma / beta**0.5 for beta in DENOISING]
    else:
        last = min(FIRST, max(sigma, LEAST_LEVEL))
        x, levels = smooth_guess(operator, adjoint, sigma), np.geomspace(FIRST, last, PASSES).tolist()
    for done, level in enumerate(levels, 1):
        z = step(x, level)
        ratio = (level / sigma) ** 2
        normal = lambda v, ratio=ratio: ratio * operator.A_adjoint(operator.A(v)) + v  # noqa: E731
        x = conjugate_gradients(normal, ratio * adjoint + z, z)
        progress(done, levels, x)
    return RestoredImage(x, levels)


class ByPatches:
    """A denoiser of photographs by their patches, on a grid that begins elsewhere each time."""

    def __init__(self, prior: object, stride: int | None, seed: int):
        side = min(prior.shape)
        self.shape, self.draw = tuple(prior.shape), stream(seed, "grid")
        self.denoise = prior.denoise if hasattr(prior, "denoise") else partial(denoise, prior)
        self.stride = max(1, side // 4) if stride is None else whole_number("stride", stride, 1, side)

    def __call__(self, x: Tensor, level: float) -> Tensor:
        offset = torch.randint(self.stride, (2,), generator=self.draw).tolist()
        return denoised(self.denoise, self.shape, x, level, self.stride, offset)


def denoised(
    denoise: Callable, shape: tuple[int, int], x: Tensor, level: float, stride: int, offset: list[int]
) -> Tensor:
    """The mean, over each pixel, of the denoised patches of a photograph (1, 1, H, W), which is continued by mirrors.

    Strips of the grid are denoised one after another: memory is bounded.
    """
    (h, w), starts, placed = shape, [], []
    for side, patch, begin in zip(x.shape[2:], shape, offset, strict=True):
        starts.append(torch.arange(begin + stride - patch, side, stride))  # each patch holds a pixel of the photograph
        placed.append(torch.arange(int(starts[-1][0]), int(starts[-1][-1]) + patch))
    rows, columns = (mirrored(place, side).to(x.device) for place, side in zip(placed, x.shape[2:], strict=True))
    total, together = x.new_zeros(1, 1, len(rows), len(columns)), max(1, TOGETHER // len(starts[1]))
    for first in range(0, len(starts[0]), together):
        strip = slice(first * stride, (min(first + together, len(starts[0])) - 1) * stride + h)
        cut = x[:, :, rows[strip]][:, :, :, columns]
        patches = unfold(cut, (h, w), stride=stride)[0].T.reshape(-1, 1, h, w)
        patches = denoise(patches, level).flatten(1)
        total[:, :, strip] += fold(patches.T[None], cut.shape[2:], (h, w), stride=stride)
    inside = [(place >= 0) & (place < side) for place, side in zip(placed, x.shape[2:], strict=True)]
    counts = [
        ((start <= place[own, None]) & (place[own, None] < start + patch)).sum(1).to(x)
        for place, own, start, patch in zip(placed, inside, starts, shape, strict=True)
    ]
    return total[:, :, inside[0]][:, :, :, inside[1]] / torch.outer(*counts)


def mirrored(index: Tensor, side: int) -> Tensor:
    """Indices of a line of `side` pixels continued by its mirror images, the border pixel twice."""
    index = index.remainder(2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def smooth_guess(operator: object, adjoint: Tensor, sigma: float) -> Tensor:
    """The likeliest photograph where neighbouring pixels differ by N(0, 0.05²): argmin ‖A x - y‖² / σ² + ‖∇x‖² / 0.05².

    adjoint: Aᵀy, (1, 1, H, W). All that y leaves open it fills in smoothly.
    """
    weight = (SLOPE / sigma) ** 2

    def normal(x: Tensor) -> Tensor:
        rows, columns = x.diff(dim=2), x.diff(dim=3)
        rough = pad(rows, (0, 0, 1, 0)) - pad(rows, (0, 0, 0, 1)) + pad(columns, (1, 0)) - pad(columns, (0, 1))
        return weight * operator.A_adjoint(operator.A(x)) + rough

    return conjugate_gradients(normal, weight * adjoint, adjoint, 500, 1e-5)  # holes fill in slowly


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], b: Tensor, x: Tensor, iterations: int = 100, tolerance: float = 1e-4
) -> Tensor:
    """x with normal(x) = b, a symmetric positive definite function, from a start; until ‖residual‖ ≤ 1e-4 ‖b‖."""
    residual = b - normal(x)
    direction, square = residual, residual.square().sum()
    enough = tolerance**2 * b.square().sum()
    for _ in range(iterations):
        if square <= enough:
            break
        along = normal(direction)
        step = square / (direction * along).sum()
        x, residual = x + step * direction, residual - step * along
        last, square = square, residual.square().sum()
        direction = residual + square / last * direction
    return x
