"""Photographs to patches and back to pictures: reading as grey, resizing, cutting, the DCT basis, grids of patches."""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from genprior.files import InputError, whole_file

FORMATS = ("PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM")  # Pillow would run Ghostscript for others
MOST_PIXELS = 2**27  # 134 megapixels: a file of a few bytes can claim any number


def read_photograph(path: str | Path) -> np.ndarray:
    """Read a picture of any mode and bit depth, upright, as grey: uint8, (height, width).

    Colour becomes grey by ITU-R 601-2 luma, as Pillow's mode L; transparency is laid on white; of an animation the
    first frame counts. 16- and 32-bit integers are scaled from their full range, floats must lie in [0, 1].
    Raises InputError that names a file which is missing, empty, truncated, too large or no picture.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file")
        with warnings.catch_warnings(action="ignore"):  # of Pillow, on what it can read all the same
            return _read(path)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        damaged = f"not a picture (JPEG, PNG or TIFF), or damaged: {' '.join(str(error).split())}"
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or damaged}") from None


def _read(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=FORMATS) as image, _silenced():
            _check_size(image.size[::-1], path)
            image.load()
            return _grey(ImageOps.exif_transpose(image), path)
    except Image.UnidentifiedImageError:
        return _deep_tiff(path)


@contextmanager
def _silenced() -> Iterator[None]:
    # libtiff writes to the process's stderr by itself what Pillow then raises.
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _check_size(shape: tuple[int, ...], path: Path) -> None:
    if shape[0] * shape[1] > MOST_PIXELS:
        raise InputError(f"{path}: {shape[0]} × {shape[1]} pixels; at most {MOST_PIXELS} in all would be right")


def _grey(image: Image.Image, path: Path) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        # Pillow opens some 16-bit files in its 32-bit mode I: what fits into 16 bits is taken for 16 bits.
        if image.mode == "I" and values.min() >= 0 and values.max() < 2**16:
            values = values.astype(np.uint16)
        return _eight_bit(values, path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"))


def _deep_tiff(path: Path) -> np.ndarray:
    # Pillow has no mode for colour deeper than 8 bits; tifffile, which scikit-image brings along, reads it.
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would log is in our one line
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        if page.ndim not in (2, 3) or page.shape[2:] not in ((), (3,), (4,)):
            raise InputError(f"{path}: a TIFF of shape {page.shape}; (height, width[, 3 or 4]) would be right")
        _check_size(page.shape, path)
        return _grey(Image.fromarray(_eight_bit(page.asarray(), path)), path)


def _eight_bit(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype.kind in "ui":
        if values.min() < 0:
            raise InputError(f"{path}: pixel values down to {values.min()}; none below 0 would be right")
        return np.rint(values / np.iinfo(values.dtype).max * 255).astype(np.uint8)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise InputError(f"{path}: floating-point pixels outside [0, 1]")
    return np.rint(values * 255).astype(np.uint8)


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


def corners(side: int, patch: int, stride: int) -> list[int]:
    """Where overlapping patches begin along a side, the last one at its end."""
    return [*range(0, side - patch, stride), side - patch]


def cut_patches(image: np.ndarray, patch_size: Sequence[int], stride: int, to_end: bool = False) -> np.ndarray:
    """All patches of an image (H, W) whose corners lie on multiples of `stride`, row by row: (N, h, w).

    With `to_end` also those at the ends of its sides, so that every pixel is in one.
    """
    windows = np.lib.stride_tricks.sliding_window_view(image, patch_size)
    if to_end:
        windows = windows[np.ix_(*(corners(*sides, stride) for sides in zip(image.shape, patch_size, strict=True)))]
    else:
        windows = windows[::stride, ::stride]
    return windows.reshape(-1, *patch_size).copy()


def join_patches(patches: np.ndarray, size: tuple[int, int], stride: int) -> np.ndarray:
    """The image of `size` (H, W) that was cut `to_end`, each pixel the mean of the patches (N, h, w) that hold it."""
    height, width = patches.shape[1:]
    total, count = np.zeros((2, *size))
    places = [corners(*sides, stride) for sides in zip(size, (height, width), strict=True)]
    for patch, (i, j) in zip(patches, product(*places), strict=True):
        total[i : i + height, j : j + width] += patch
        count[i : i + height, j : j + width] += 1
    return total / count


def symmetries(patches: np.ndarray) -> np.ndarray:
    """Patches (N, h, w) with their mirror images and, where square, their transposes: (4 N or 8 N, h, w)."""
    mirrored = np.concatenate([patches, patches[:, ::-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, :, ::-1]])
    if patches.shape[1] == patches.shape[2]:
        mirrored = np.concatenate([mirrored, mirrored.transpose(0, 2, 1)])
    return mirrored


def dct_basis(height: int, width: int) -> np.ndarray:
    """The orthonormal two-dimensional DCT-II as a matrix U: x = U c for coefficients c; float64, (n, n)."""
    import scipy.fft  # a quarter of a second, for this alone

    n = height * width
    coefficients = scipy.fft.dctn(np.eye(n).reshape(n, height, width), axes=(1, 2), norm="ortho")
    return coefficients.reshape(n, n)


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
