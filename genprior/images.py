"""Photographs to patches: reading any picture as grey, resizing, cutting, and the patches' DCT basis."""

from pathlib import Path

import numpy as np
import scipy.fft
from PIL import Image, ImageOps

from genprior.params import InputError


def read_photograph(path: str | Path) -> np.ndarray:
    """Read a picture of any mode and bit depth, upright, as grey: uint8, (height, width).

    Colour becomes grey by ITU-R 601-2 luma, as Pillow's mode L; transparency is laid on white; of an animation the
    first frame counts. 16- and 32-bit integers are scaled from their full range, floats must lie in [0, 1].
    Raises InputError that names a file which is missing, empty, truncated, too large or no picture.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    try:
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _grey(upright, path)
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        return _deep_tiff(path)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise InputError(f"{path}: cannot be read as a picture: {' '.join(str(error).split())}") from None


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

    try:
        values = tifffile.imread(path, key=0)
    except Exception:  # also whatever its decoders raise on damaged data
        raise InputError(f"{path}: not a picture (JPEG, PNG or TIFF), or damaged") from None
    values = _eight_bit(values, path)
    if values.ndim == 3 and values.shape[2] in (3, 4):
        return _grey(Image.fromarray(values), path)
    if values.ndim != 2:
        raise InputError(f"{path}: a TIFF of shape {values.shape}; (height, width[, 3 or 4]) would be right")
    return values


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


def cut_patches(image: np.ndarray, patch_size: list[int], stride: int) -> np.ndarray:
    """All patches of an image (H, W) whose corners lie on multiples of `stride`, row by row: (N, h, w)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, patch_size)
    return windows[::stride, ::stride].reshape(-1, *patch_size).copy()


def symmetries(patches: np.ndarray) -> np.ndarray:
    """Patches (N, h, w) with their mirror images and, where square, their transposes: (4 N or 8 N, h, w)."""
    mirrored = np.concatenate([patches, patches[:, ::-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, :, ::-1]])
    if patches.shape[1] == patches.shape[2]:
        mirrored = np.concatenate([mirrored, mirrored.transpose(0, 2, 1)])
    return mirrored


def dct_basis(height: int, width: int) -> np.ndarray:
    """The orthonormal two-dimensional DCT-II as a matrix U: x = U c for coefficients c; float64, (n, n)."""
    n = height * width
    coefficients = scipy.fft.dctn(np.eye(n).reshape(n, height, width), axes=(1, 2), norm="ortho")
    return coefficients.reshape(n, n)
