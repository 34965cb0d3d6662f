"""Forward operators K, and the measured problems that every method solves.

An operator has `A(x)`: patches (N, 1, h, w) -> y (N, ...), and, where it is linear, `A_adjoint(y)`: y -> (N, 1, h, w),
with the same K for the whole batch. deepinv's physics have this interface. Noise levels are standard deviations in
the units of y.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from scipy.ndimage import convolve, gaussian_filter1d
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from genprior.params import Problem
from genprior.quality import reconstruction_measures
from genprior.stage import stream


class LinearOperator(Protocol):
    """What a linear forward operator offers: ⟨A(x), y⟩ = ⟨x, A_adjoint(y)⟩."""

    def A(self, x: Tensor) -> Tensor: ...

    def A_adjoint(self, y: Tensor) -> Tensor: ...


class Identity(nn.Module):
    """K = I: denoising."""

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


class Inpainting(nn.Module):
    """Some pixels are seen: K picks them; y is (N, m). mask: bool, (h, w), True where seen."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("seen", mask.flatten().nonzero().squeeze(1))

    def A(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.seen)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), self.mask.numel()).index_copy(1, self.seen, y).reshape(-1, 1, *self.mask.shape)


class GaussianBlur(nn.Module):
    """Convolution with a Gaussian of standard deviation `width` pixels, mirrored at the borders: y is (N, 1, h, w)."""

    def __init__(self, shape: tuple[int, int], width: float):
        super().__init__()
        # The blur of each axis as a matrix: its transpose is the adjoint, borders included.
        for name, side in zip(("rows", "columns"), shape, strict=True):
            matrix = gaussian_filter1d(torch.eye(side, dtype=torch.float64).numpy(), width, axis=0, mode="reflect")
            self.register_buffer(name, torch.from_numpy(matrix).to(torch.get_default_dtype()))

    def A(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.rows.T @ y @ self.columns


class Downsampling(nn.Module):
    """Means of factor × factor pixels: y is (N, 1, h / factor, w / factor)."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def A(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1) / self.factor**2


class Dense(nn.Module):
    """A matrix (m, n) on patches of `shape`: y is (N, m)."""

    def __init__(self, matrix: np.ndarray | Tensor, shape: tuple[int, int]):
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("matrix", torch.as_tensor(matrix).to(torch.get_default_dtype()).contiguous())

    def A(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).reshape(-1, 1, *self.shape)


def gaussian_sensing(shape: tuple[int, int], measurements: int, generator: torch.Generator) -> Dense:
    """Compressed sensing with a dense random matrix, entries N(0, 1/m)."""
    # float64 whatever the default, so that the same seed gives the same matrix in every precision
    matrix = torch.randn(measurements, shape[0] * shape[1], generator=generator, dtype=torch.float64)
    return Dense(matrix / measurements**0.5, shape)


def motion_blur(shape: tuple[int, int], length: float, angle: float) -> Dense:
    """Convolution with a straight streak of `length` pixels at `angle` degrees, mirrored at the borders; m = n."""
    reach = int(length / 2) + 1
    offsets = np.linspace(-length / 2, length / 2, 20 * reach + 1)
    kernel = np.zeros((2 * reach + 2, 2 * reach + 2))
    angle = np.deg2rad(angle)
    for row, column in zip(reach + offsets * np.sin(angle), reach + offsets * np.cos(angle), strict=True):
        i, j = int(row), int(column)
        kernel[i : i + 2, j : j + 2] += np.outer([1 - row + i, row - i], [1 - column + j, column - j])  # bilinear
    kernel = kernel[:-1, :-1] / kernel.sum()
    return Dense(_columns(lambda pixel: convolve(pixel, kernel, mode="reflect"), shape), shape)


def fourier_samples(mask: Tensor) -> Dense:
    """Some coefficients of the orthonormal 2-D Fourier transform (MRI): their real parts, then the imaginary ones.

    mask: bool, (h, w), True at the measured frequencies, in the order of numpy.fft.fft2; m is twice their number.
    """

    def measure(pixel: np.ndarray) -> np.ndarray:
        spectrum = np.fft.fft2(pixel, norm="ortho")[mask.numpy()]
        return np.concatenate([spectrum.real, spectrum.imag])

    return Dense(_columns(measure, mask.shape), mask.shape)


def tomography(shape: tuple[int, int], angles: np.ndarray) -> Dense:
    """Parallel-beam line sums in pixels by scikit-image's Radon transform; square shape, angles in degrees."""
    from skimage.transform import radon  # a second to import, for this operator alone

    return Dense(_columns(lambda pixel: radon(pixel, angles, circle=False), shape), shape)


def _columns(measure: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The matrix of a linear function of pictures, one unit pixel at a time."""
    pixels = np.eye(shape[0] * shape[1]).reshape(-1, *shape)
    return np.stack([measure(pixel).ravel() for pixel in pixels], 1)


class PhaselessFourier(nn.Module):
    """Magnitudes of the orthonormal 2-D Fourier transform of the picture padded to twice its size: phase retrieval.

    Not linear: there is no adjoint. y is (N, 1, 2 h, 2 w), in units of x.
    """

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        # As matrices and not by FFT: they also run under nested batches of derivatives, where torch's FFT fails.
        for name, side in zip(("rows", "columns"), shape, strict=True):
            transform = np.fft.fft(np.eye(side), 2 * side, axis=0, norm="ortho")
            for part, values in (("real", transform.real), ("imaginary", transform.imag)):
                buffer = torch.from_numpy(np.ascontiguousarray(values)).to(torch.get_default_dtype())
                self.register_buffer(f"{name}_{part}", buffer)

    def A(self, x: Tensor) -> Tensor:
        real, imaginary = self.rows_real @ x, self.rows_imaginary @ x
        spectrum_real = real @ self.columns_real.T - imaginary @ self.columns_imaginary.T
        spectrum_imaginary = real @ self.columns_imaginary.T + imaginary @ self.columns_real.T
        # smooth where the magnitude vanishes
        return (spectrum_real.square() + spectrum_imaginary.square() + 1e-12).sqrt()


class Saturation(nn.Module):
    """A sensor that clips: y = min(max(x, low), high), in units of x. Not linear: there is no adjoint."""

    def __init__(self, low: float, high: float):
        super().__init__()
        self.low, self.high = low, high

    def A(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)


def as_matrix(operator: LinearOperator, shape: tuple[int, int], like: Tensor | None = None) -> Tensor:
    """The matrix of a linear operator on patches of `shape`, of the dtype and on the device of `like`: (m, n)."""
    n = shape[0] * shape[1]
    identity = torch.eye(n) if like is None else torch.eye(n, dtype=like.dtype, device=like.device)
    return operator.A(identity.reshape(n, 1, *shape)).flatten(1).T.contiguous()


def factors_by_axis(matrix: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """A_h (h, h) and A_w (w, w) with A = A_h ⊗ A_w for a matrix A (h w, h w), None where there are none.

    Van Loan & Pitsianis 1993: as a matrix of A's blocks, one a row, A has rank one.
    """
    h, w = shape
    if matrix.shape != (h * w, h * w):
        return None
    blocks = matrix.reshape(h, w, h, w).transpose(1, 2).reshape(h * h, w * w)
    largest = int(blocks.abs().argmax())
    first, second = blocks[:, largest % (w * w)], blocks[largest // (w * w)]
    first = first / first[largest // (w * w)]
    found = first.reshape(h, h).contiguous(), second.reshape(w, w).contiguous()
    return found if torch.allclose(torch.kron(*found), matrix, rtol=0, atol=1e-5 * float(matrix.abs().max())) else None


def build_operator(problem: Problem, shape: tuple[int, int], generator: torch.Generator) -> nn.Module:
    """The operator of one block of `problems` in params.yaml, for patches of `shape`."""
    match problem.operator:
        case "identity":
            return Identity()
        case "inpaint":
            seen = max(1, round((1 - problem.missing) * shape[0] * shape[1]))
            mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
            mask[torch.randperm(len(mask), generator=generator)[:seen]] = True
            return Inpainting(mask.reshape(shape))
        case "blur":
            return GaussianBlur(shape, problem.width)
        case "downsample":
            return Downsampling(problem.factor)
        case "gaussian":
            return gaussian_sensing(shape, problem.measurements, generator)


@dataclass(frozen=True)
class Measured:
    """One inverse problem posed: y = K x + e, e ~ N(0, sigma² I)."""

    name: str
    operator: nn.Module
    sigma: float
    y: Tensor

    def of(self, count: int) -> "Measured":
        """The same problem for the first `count` patches."""
        return replace(self, y=self.y[:count])

    def residual_over_sigma(self, estimate: Tensor) -> float:
        """Root mean square of K x̂ - y in units of sigma, x̂ (N, 1, h, w): about 1 where x̂ explains y, not its noise."""
        return (self.operator.A(estimate) - self.y).square().mean().sqrt().item() / self.sigma

    def measures(self, x: Tensor, estimate: Tensor) -> dict[str, float]:
        """Errors of estimates against the truths x, both (N, 1, h, w), and their misfit to the measurements."""
        return {**reconstruction_measures(x, estimate), "residual_over_sigma": self.residual_over_sigma(estimate)}


def pose(problems: dict[str, Problem], x: Tensor, seed: int, patches: str = "test") -> list[Measured]:
    """Measure patches x (N, 1, h, w) by every problem.

    The operator depends on the seed and the problem's name alone, so that validation and test see the same K; the
    noise on what `patches` says they are, too. Whoever poses the same problems on the same patches gets the same
    measurements.
    """
    measured = []
    for name, problem in problems.items():
        operator = build_operator(problem, tuple(x.shape[2:]), stream(seed, name)).to(x.device)
        clean = operator.A(x)
        noise = torch.randn(clean.shape, generator=stream(seed, f"{name}/noise/{patches}")).to(x.device)
        measured.append(Measured(name, operator, problem.sigma, clean + problem.sigma * noise))
    return measured
