"""More forward operators, each a few lines on what the library asks of one."""

from collections.abc import Callable

import numpy as np
import torch
from scipy.ndimage import convolve
from torch import Tensor, nn

from genprior.operators import Dense, motion_kernel


def motion_blur(shape: tuple[int, int], length: float, angle: float) -> Dense:
    """Convolution with a straight streak of `length` pixels at `angle` degrees, mirrored at the borders; m = n."""
    kernel = motion_kernel(length, angle).numpy()
    return Dense(_columns(lambda pixel: convolve(pixel, kernel, mode="reflect"), shape), shape)


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
