"""Photographs of any size, restored with a prior of their patches by half-quadratic splitting.

Minimised is EPLL's energy, in which no weight is tuned,

    E(x) = ‖A x - y‖² / 2σ² - (1/c) Σ_i log p(P_i x),

P_i x the patches of a grid and c how many of them hold a pixel. With a copy z_i of each patch, as far from P_i x as
noise of a level τ, it falls into two steps that are easy: patches are denoised at the level τ, and A is inverted,

    z_i = denoised(P_i x, τ),   (AᵀA / σ² + I / τ²) x = Aᵀy / σ² + (mean of the z_i over each pixel) / τ²,

while τ falls. Zoran & Weiss 2011, section 4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

from genprior.batches import standard_normal
from genprior.files import InputError, nonnegative, whole_number
from genprior.operators import Identity
from genprior.problem import refused
from genprior.streams import stream

DENOISING = (1, 4, 8, 16, 32)  # σ² / τ² of the passes where A = I. Zoran & Weiss 2011, section 5
PASSES = 12  # of every other A
FIRST = 0.2  # the first level of those: what the first guess leaves
LAST = 1.0  # the last level of those, in σ
LEAST_LEVEL = 0.5 / 255  # of them: a grey value's rounding
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

    prior: has `shape` and `denoise(patches, level)`, as priors with a residual covariance and mixtures have; stride:
    pixels from patch to patch, a divisor of the patch's sides, a quarter of them by default; the grid begins elsewhere
    in each pass, as the seed has it. Beyond its borders the photograph is taken as mirrored. progress: told after each
    pass how many are done, the levels and x. InputError for a sigma that is none or 0, or an operator without adjoint.
    """
    if nonnegative("sigma", sigma) == 0:
        raise InputError("sigma = 0: above 0 would be right; 1/1000 for a measurement without noise")
    sides = math.gcd(*prior.shape)
    stride = whole_number("stride", max(1, sides // 4) if stride is None else stride, 1, sides)
    if sides % stride:
        raise InputError(f"stride = {stride}: a divisor of the patches' sides, {tuple(prior.shape)}, would be right")
    with refused(operator, "A_adjoint", y):
        adjoint = operator.A_adjoint(y)
    if isinstance(operator, Identity):
        x, levels = y, [sigma / beta**0.5 for beta in DENOISING]
    else:
        x, first = smooth_guess(operator, adjoint, sigma, seed)
        first = max(first, FIRST)
        last = min(first, max(LAST * sigma, LEAST_LEVEL))
        levels = [first * (last / first) ** (i / (PASSES - 1)) for i in range(PASSES)]
    draw = stream(seed, "grid")
    for done, level in enumerate(levels, 1):
        z = denoised(prior, x, level, stride, torch.randint(stride, (2,), generator=draw).tolist())
        ratio = (level / sigma) ** 2
        normal = lambda v, ratio=ratio: ratio * operator.A_adjoint(operator.A(v)) + v  # noqa: E731
        x = conjugate_gradients(normal, ratio * adjoint + z, z)
        progress(done, levels, x)
    return RestoredImage(x, levels)


def denoised(prior: object, x: Tensor, level: float, stride: int, offset: list[int]) -> Tensor:
    """The mean, over each pixel, of the denoised patches of a photograph (1, 1, H, W), which is continued by mirrors.

    Each pixel is in h w / stride² patches. Strips of the grid are denoised one after another: memory is bounded.
    """
    (h, w), counts, placed = prior.shape, [], []
    for side, patch, begin in zip(x.shape[2:], prior.shape, offset, strict=True):
        before = patch - stride + begin
        count = math.ceil((before + side) / stride)  # patches along the side; the last begins on the photograph
        counts.append(count)
        placed.append(mirrored(torch.arange(-before, (count - 1) * stride + patch - before), side).to(x.device))
    inside = [slice(patch - stride + begin, None) for patch, begin in zip(prior.shape, offset, strict=True)]
    total = x.new_zeros(1, 1, len(placed[0]), len(placed[1]))
    rows = max(1, TOGETHER // counts[1])
    for first in range(0, counts[0], rows):
        strip = slice(first * stride, (min(first + rows, counts[0]) - 1) * stride + h)
        cut = x[:, :, placed[0][strip]][:, :, :, placed[1]]
        patches = unfold(cut, (h, w), stride=stride)[0].T.contiguous()
        patches = prior.denoise(patches.reshape(-1, 1, h, w), level).flatten(1)
        total[:, :, strip] += fold(patches.T[None], cut.shape[2:], (h, w), stride=stride)
    return total[:, :, inside[0], inside[1]][:, :, : x.shape[2], : x.shape[3]] * (stride**2 / (h * w))


def mirrored(index: Tensor, side: int) -> Tensor:
    """Indices of a line of `side` pixels continued by its mirror images, the border pixel twice."""
    index = index.remainder(2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def smooth_guess(operator: object, adjoint: Tensor, sigma: float, seed: int) -> tuple[Tensor, float]:
    """The photograph where neighbouring pixels differ by N(0, 0.05²), given y, and its standard deviation then.

    x = H⁻¹ Aᵀy / σ², H = AᵀA / σ² + ∇ᵀ∇ / 0.05²; trace(H⁻¹) from one random vector (Hutchinson 1990).
    """

    def normal(v: Tensor) -> Tensor:
        rough = torch.zeros_like(v)
        for axis in (2, 3):
            step = v.diff(dim=axis)
            side = [0, 0] * (3 - axis)
            rough -= torch.nn.functional.pad(step, (*side, 0, 1)) - torch.nn.functional.pad(step, (*side, 1, 0))
        return (SLOPE / sigma) ** 2 * operator.A_adjoint(operator.A(v)) + rough + 1e-6 * v

    probe = standard_normal(adjoint, stream(seed, "probe")).sign()
    x = conjugate_gradients(normal, (SLOPE / sigma) ** 2 * adjoint, adjoint)
    variance = (probe * conjugate_gradients(normal, probe, probe)).mean().clamp_min(1e-8)
    return x, SLOPE * variance.sqrt().item()


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
