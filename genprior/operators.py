"""Forward operators K: what one offers, and seven kinds.

An operator has `A(x)`: patches (N, 1, h, w) -> y (N, ...), and, where it is linear, `A_adjoint(y)`: y -> (N, 1, h, w),
with the same K for the whole batch, as `genprior.problem` checks. deepinv's physics have this interface. An operator
may state what makes S cheaper: `orthogonal_in`, the bases U, here the "dct", in which the columns of K U are
orthogonal, and `axes`, K_h (h, h) and K_w (w, w) with K = K_h ⊗ K_w, () for K = I.
"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from genprior.files import InputError


class Identity(nn.Module):
    """K = I: denoising."""

    orthogonal_in, axes = ("dct",), ()

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


class Inpainting(nn.Module):
    """Some pixels are measured: K picks them; y is (N, m). mask: bool, (h, w), True where measured."""

    def __init__(self, mask: Tensor):
        super().__init__()
        if mask.ndim != 2 or not mask.any():
            raise InputError(f"mask: {tuple(mask.shape)}, {int(mask.sum())} measured; (h, w) with a pixel is right")
        self.register_buffer("mask", mask)
        self.register_buffer("measured", mask.flatten().nonzero().squeeze(1))

    def A(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.mask.shape:
            raise InputError(f"mask: {tuple(self.mask.shape)}; {tuple(x.shape[-2:])}, as the image, would be right")
        return x.flatten(1).index_select(1, self.measured)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), self.mask.numel()).index_copy(1, self.measured, y).reshape(-1, 1, *self.mask.shape)


class GaussianBlur(nn.Module):
    """Convolution with a Gaussian of standard deviation `width` pixels, mirrored at the borders: y is (N, 1, h, w)."""

    orthogonal_in = ("dct",)

    def __init__(self, shape: tuple[int, int], width: float):
        super().__init__()
        # The blur of each axis as a matrix: its transpose is the adjoint, borders included.
        for name, side in zip(("rows", "columns"), shape, strict=True):
            matrix = gaussian_filter1d(torch.eye(side, dtype=torch.float64).numpy(), width, axis=0, mode="reflect")
            self.register_buffer(name, torch.from_numpy(matrix))  # float64: small σ asks for what float32 rounds off

    @property
    def axes(self) -> tuple[Tensor, Tensor]:
        """K_h (h, h) and K_w (w, w) with K = K_h ⊗ K_w."""
        return self.rows, self.columns

    def A(self, x: Tensor) -> Tensor:
        return self.rows.to(x) @ x @ self.columns.to(x).T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.rows.to(y).T @ y @ self.columns.to(y)


class Downsampling(nn.Module):
    """Means of factor × factor pixels: y is (N, 1, h / factor, w / factor)."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def A(self, x: Tensor) -> Tensor:
        if any(side % self.factor for side in x.shape[-2:]):
            raise InputError(f"factor = {self.factor}: does not divide the image's {tuple(x.shape[-2:])}")
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


def as_matrix(operator: object, shape: tuple[int, int], like: Tensor) -> Tensor:
    """The matrix of a linear operator on patches of `shape`, of the dtype and on the device of `like`: (m, n)."""
    identity = torch.eye(shape[0] * shape[1]).to(like)
    return operator.A(identity.reshape(-1, 1, *shape)).flatten(1).T.contiguous()


class Convolution(nn.Module):
    """Blur by a kernel (a, b), then every `factor`-th pixel of both axes: y is (N, 1, ⌈h / factor⌉, ⌈w / factor⌉).

    shape: (h, w) of the image. border: "circular", the image repeats; or "cut", y has the pixels alone that the whole
    kernel sees, (h - a + 1, w - b + 1) before `factor`. The kernel's middle is its origin; even sides have it below.
    """

    def __init__(self, shape: tuple[int, int], kernel: Tensor, factor: int = 1, border: str = "circular"):
        super().__init__()
        if kernel.ndim != 2 or any(size > side for size, side in zip(kernel.shape, shape, strict=True)):
            raise InputError(f"kernel: {tuple(kernel.shape)}; (a, b) no larger than the image, {shape}, would be right")
        if border not in ("circular", "cut"):
            raise InputError(f"border = {border}: circular or cut would be right")
        self.shape, self.factor, (a, b) = tuple(shape), factor, kernel.shape
        padded = torch.zeros(*shape, dtype=torch.float64)
        padded[:a, :b] = kernel
        padded = padded.roll((-((a - 1) // 2), -((b - 1) // 2)), (0, 1))
        self.register_buffer("spectrum", torch.fft.rfft2(padded))
        sizes = kernel.shape if border == "cut" else (1, 1)
        self.kept = tuple(slice(a // 2, side - (a - 1) // 2, factor) for a, side in zip(sizes, shape, strict=True))

    def _filtered(self, x: Tensor, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * spectrum.to(x.dtype.to_complex()), self.shape)

    def A(self, x: Tensor) -> Tensor:
        return self._filtered(x, self.spectrum)[:, :, self.kept[0], self.kept[1]]

    def A_adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), 1, *self.shape)
        x[:, :, self.kept[0], self.kept[1]] = y
        return self._filtered(x, self.spectrum.conj())


def motion_kernel(length: float, angle: float) -> Tensor:
    """A straight streak of `length` pixels at `angle` degrees, bilinear between pixels, of sum 1: (a, a), a odd."""
    reach = int(length / 2) + 1
    offsets = np.linspace(-length / 2, length / 2, 20 * reach + 1)
    kernel, angle = np.zeros((2 * reach + 2, 2 * reach + 2)), np.deg2rad(angle)
    for row, column in zip(reach + offsets * np.sin(angle), reach + offsets * np.cos(angle), strict=True):
        i, j = int(row), int(column)
        kernel[i : i + 2, j : j + 2] += np.outer([1 - row + i, row - i], [1 - column + j, column - j])
    return torch.from_numpy(kernel[:-1, :-1] / kernel.sum())


class FourierSampling(nn.Module):
    """Some coefficients of the orthonormal 2-D Fourier transform, as MRI measures them: y is complex, (N, m).

    mask: bool, (h, w), True at the measured frequencies, in the order of numpy.fft.fft2.
    """

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def A(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x, norm="ortho")[:, 0, self.mask]

    def A_adjoint(self, y: Tensor) -> Tensor:
        spectrum = y.new_zeros(len(y), 1, *self.mask.shape)
        spectrum[:, 0, self.mask] = y
        return torch.fft.ifft2(spectrum, norm="ortho").real
