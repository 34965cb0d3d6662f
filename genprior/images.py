"""Photographs and their patches: resizing, noise, colour, cutting, the DCT basis, grids of patches."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from genprior.files import whole_file

SMOOTHEST = 0.91  # what the smoothest tenth of blocks shows of white noise
OPPONENT = np.array([[1, 1, 1], [1.5**0.5, 0, -(1.5**0.5)], [0.5**0.5, -(2**0.5), 0.5**0.5]]) / 3
MIDDLE = np.array([[0], [0.5], [0.5]])  # without colour, the chroma are a middle grey


def resize(image: np.ndarray, size: int | list[int] | None) -> np.ndarray:
    """Resize a grey uint8 picture: to [height, width], to a shorter side with its aspect kept, or not (None).

    Bicubic with antialiasing, Pillow's default.
    """
    height, width = image.shape
    if size is None:
        return image
    if isinstance(size, int):
        scale = size / min(height, width)
        size = [max(size, round(height * scale)), max(size, round(width * scale))]
    return np.asarray(Image.fromarray(image).resize((size[1], size[0])))


def estimate_sigma(picture: np.ndarray, seen: np.ndarray) -> float | None:
    """The standard deviation of white noise in a picture, from pixels `seen` (H, W); None where too little tells it.

    Second differences along both axes hold little but noise, above all in the smoothest tenth of the blocks of 16 × 16
    pixels. Blocks that are clipped to black or white do not count. Texture below σ = 0.01 counts as noise; JPEG and
    resizing take noise away. Immerkær 1996, "Fast noise variance estimation".

    picture: (H, W), or (H, W, C), of which the mean channel counts: its noise is σ / √C where that of the channels is
    independent. Of colour, JPEG blurs the rest away, and with it the noise.
    """
    from scipy.ndimage import convolve, minimum_filter

    clipped = (picture <= 0) | (picture >= 1)
    if picture.ndim == 3:
        picture, clipped = picture.mean(2) * picture.shape[2] ** 0.5, clipped.any(2)
    mask = np.outer([1, -2, 1], [1, -2, 1]) / 6
    squares = convolve(picture.astype(np.float64), mask) ** 2
    parts = (squares, minimum_filter(seen, 3), clipped)
    side = [min(16, side - 2) for side in picture.shape]
    squares, whole, clipped = (cut_patches(part[1:-1, 1:-1], side, 16) for part in parts)
    count = whole.sum((1, 2))
    usable = (count >= whole[0].size / 4) & ((whole & clipped).sum((1, 2)) <= 0.1 * count)
    if not usable.any():
        return None
    of_blocks = np.sqrt(np.where(whole, squares, 0).sum((1, 2))[usable] / count[usable])
    return float(np.quantile(of_blocks, 0.1)) / SMOOTHEST


def cut_patches(
    image: np.ndarray, patch_size: Sequence[int], stride: int, which: np.ndarray | None = None
) -> np.ndarray:
    """Patches of an image (H, W) whose corners lie on multiples of `stride`, row by row: (N, h, w).

    which: the numbers of those that are wanted (N,), all by default.
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, patch_size)[::stride, ::stride]
    if which is None:
        return windows.reshape(-1, *patch_size).copy()
    return windows[np.divmod(which, windows.shape[1])]


def count_patches(image: np.ndarray, patch_size: Sequence[int], stride: int) -> int:
    """How many patches `cut_patches` has of an image (H, W)."""
    return math.prod((side - patch) // stride + 1 for side, patch in zip(image.shape, patch_size, strict=True))


def symmetries_of(patch_size: Sequence[int]) -> int:
    """How many `symmetry` knows: those of a rectangle, or of a square."""
    return 8 if patch_size[0] == patch_size[1] else 4


def symmetry(patches: np.ndarray, number: int) -> np.ndarray:
    """Patches (N, h, w) mirrored by bits 1 and 2 of a number, transposed by bit 4; 0 leaves them: (N, h, w)."""
    patches = patches[:, :: -1 if number & 1 else 1, :: -1 if number & 2 else 1]
    return patches.transpose(0, 2, 1) if number & 4 else patches


def dct_basis(height: int, width: int) -> np.ndarray:
    """The orthonormal two-dimensional DCT-II as a matrix U: x = U c for coefficients c; float64, (n, n)."""
    import scipy.fft  # a quarter of a second, for this alone

    n = height * width
    coefficients = scipy.fft.dctn(np.eye(n).reshape(n, height, width), axes=(1, 2), norm="ortho")
    return coefficients.reshape(n, n)


def to_opponent(rgb: np.ndarray) -> np.ndarray:
    """Luminance and two chroma of colours: (3, ...) -> (3, ...), all in [0, 1] for colours in [0, 1].

    c = M (R, G, B)ᵀ + (0, 1/2, 1/2)ᵀ: (R + G + B) / 3, (R - B) / √6 and (R - 2 G + B) / √18. The rows of M are
    orthogonal, of length 1/√3: white noise stays white and independent, its standard deviation σ becomes σ / √3.
    """
    return (OPPONENT @ rgb.reshape(3, -1) + MIDDLE).reshape(rgb.shape).astype(rgb.dtype)


def from_opponent(channels: np.ndarray) -> np.ndarray:
    """The colours of `to_opponent`'s channels: (3, ...) -> (3, ...)."""
    return (3 * OPPONENT.T @ (channels.reshape(3, -1) - MIDDLE)).reshape(channels.shape).astype(channels.dtype)


def psnr_db(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]: -10 log10(mean squared error), in dB, inf without an error."""
    error = float(mean_squared_error)
    return -10 * math.log10(error) if error else math.inf


def tile(patches: np.ndarray, columns: int) -> np.ndarray:
    """Patches (N, h, w) or (N, 1, h, w) in [0, 1] as one picture, row by row, a white pixel apart: (H, W) in [0, 1]."""
    patches = np.asarray(patches, dtype=np.float64).reshape(len(patches), *patches.shape[-2:]).clip(0, 1)
    cells = np.pad(patches, ((0, -len(patches) % columns), (0, 1), (0, 1)), constant_values=1)
    height, width = cells.shape[1:]
    return cells.reshape(-1, columns, height, width).swapaxes(1, 2).reshape(-1, columns * width)[:-1, :-1]


def save_grid(path: str | Path, patches: np.ndarray, columns: int = 10, zoom: int = 3) -> None:
    """Write patches in [0, 1] as a PNG grid, each pixel `zoom` × `zoom`."""
    picture = np.rint(tile(patches, columns) * 255).astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    with whole_file(path) as part:
        Image.fromarray(picture).save(part)
