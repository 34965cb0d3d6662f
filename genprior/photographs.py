"""Photographs read from files as grey, upright and whole: what their tags say is honoured, or refused in one line.

TIFF is tifffile's, other formats are Pillow's, and PNG of 16-bit colour, for which Pillow has no mode, imagecodecs'.
"""

import logging
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from genprior.files import InputError, existing

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "PPM")  # Pillow would run Ghostscript for others
MOST_PIXELS = 2**27  # 134 megapixels: a file of a few bytes can claim any number
FEW, MANY = 100, 8  # greys of a picture, and as many times more in its file, from which on a line says so
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's mode L

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
RAW = "a camera's raw data; JPEG, PNG or TIFF, as a raw developer writes them, would be right"
HEIC = "HEIC; JPEG or PNG, as `heif-convert` or the phone's export writes them, would be right"
DICOM = "DICOM; PNG or TIFF, as `dcm2img` or a viewer's export writes them, would be right"
OTHERS = {  # (offset, signature) of what is not read
    **{(4, b"ftyp" + brand): HEIC for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")},
    **{(0, signature): RAW for signature in (b"FUJIFILMCCD", b"IIU\0", b"IIRO", b"IIRS", b"MMOR", b"\0MRM", b"FOVb")},
    (4, b"ftypcrx "): RAW,
    (8, b"CR\2\0"): RAW,
    (128, b"DICM"): DICOM,
}


def read_photograph(path: str | Path, white: float | None = None) -> np.ndarray:
    """Read a picture of any mode and depth, upright, as grey on a white ground: uint8, (height, width).

    Colour becomes grey by ITU-R 601-2 luma. White is 1 in floats and the largest number of the bits that the file
    states, or `white`, in the file's numbers: a detector's 4095, say. Of several pictures in a file the largest counts
    that is no preview, of equally large ones the first. Where few greys are left of many, one line on the logger
    "genprior" says so. Raises InputError that names a file which is missing, damaged, too large or no such picture.
    """
    path = existing(path)
    levels, alpha, top = _levels(path, white)
    distinct = np.unique(levels) if top != 255 else levels[:0]
    if alpha is not None:
        levels = levels * alpha + (1 - alpha)
    grey = np.rint(levels * 255).astype(np.uint8)
    left = np.count_nonzero(np.bincount(grey.ravel()))
    if left <= FEW and len(distinct) > MANY * left:
        logging.getLogger("genprior").warning(
            f"{path}: {left} greys are left of {len(distinct)}, with {white or top:g} as white; is white another level?"
        )
    return grey


def read_mask(path: str | Path) -> np.ndarray:
    """Read which pixels are measured: those that are neither black nor transparent: bool, (height, width).

    Raises InputError as `read_photograph`, and for a picture that has other greys, nothing white, or no hole.
    """
    path = existing(path)
    levels, alpha, top = _levels(path, None)
    opaque = 1.0 if alpha is None else alpha
    seen, right = levels * opaque >= 0.5, f"0 for what is missing and {top:g} for what is measured would be right"
    if not seen.any():
        raise InputError(f"{path}: no pixel is white, values go up to {levels.max() * top:g}; {right}")
    if seen.all():
        raise InputError(f"{path}: no pixel is black or transparent, so that nothing is missing; {right}")
    if np.mean(np.abs(levels * opaque - 0.5) < 0.4) > 0.05:
        raise InputError(f"{path}: many pixels are grey, as in a photograph; {right}")
    return seen


def _levels(path: Path, white: float | None) -> tuple[np.ndarray, np.ndarray | None, float]:
    """A picture's greys and its alpha, or None, both in [0, 1], float32 (h, w); and the number that stands for 1."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file")
        with open(path, "rb") as file:
            head = file.read(132)
        for (offset, signature), what in OTHERS.items():
            if head.startswith(signature, offset):
                raise InputError(f"{path}: {what}")
        with warnings.catch_warnings(action="ignore"):  # of Pillow, on what it can read all the same
            return (_read_tiff if head.startswith(TIFF) else _read_other)(path, white)
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        damaged = f"not a picture (JPEG, PNG or TIFF), or damaged: {' '.join(str(error).split())}"
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or damaged[:400]}") from None


def _read_other(path: Path, white: float | None) -> tuple[np.ndarray, np.ndarray | None, float]:
    with Image.open(path, formats=FORMATS) as image:
        _check_size(image.size[::-1], path)
        deep_colour = image.format == "PNG" and str(image.tile[0][3]) in ("RGB;16B", "RGBA;16B", "LA;16B")
        image.load()
        key = image.info.get("transparency") if deep_colour or image.mode == "I;16" else None
        orientation = image.getexif().get(274, 1)
        if deep_colour:
            import imagecodecs

            samples = imagecodecs.png_decode(path.read_bytes())
        elif image.mode.startswith("I;16") or image.mode in ("I", "F"):
            samples = np.asarray(image)[..., None]
            samples = samples.astype(np.uint16) if image.mode == "I" else samples  # PGM, which Pillow scales to 16 bits
        else:
            shown = ImageOps.exif_transpose(image)
            alpha = np.asarray(shown.convert("RGBA"))[..., 3] / np.float32(255) if shown.has_transparency_data else None
            grey = shown.convert("RGB" if shown.mode in ("P", "PA") else shown.mode).convert("L")
            return _scaled(np.asarray(grey), 255, path, white), alpha, 255
    top = _top(samples.dtype, 16)
    colours = samples.shape[2] - (samples.shape[2] % 2 == 0)
    alpha = None if colours == samples.shape[2] else samples[..., -1] / np.float32(top)
    if key is not None:
        alpha = (samples[..., :colours] != key).any(2).astype(np.float32)
    levels = _luma(_scaled(samples[..., :colours], top, path, white))
    return _upright(levels, orientation), _upright(alpha, orientation), top


def _read_tiff(path: Path, white: float | None) -> tuple[np.ndarray, np.ndarray | None, float]:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would log is in our one line
    with tifffile.TiffFile(path) as file:
        page, kinds = _picture_of(file), tifffile.PHOTOMETRIC
        kind = page.photometric
        if kind in (kinds.CFA, kinds.LINEAR_RAW):
            raise InputError(f"{path}: {RAW}")
        colours = {kinds.MINISWHITE: 1, kinds.MINISBLACK: 1, kinds.PALETTE: 1, kinds.RGB: 3, kinds.SEPARATED: 4}
        if kind == kinds.YCBCR and page.compression in (6, 7, 34712):  # JPEG and JPEG 2000 decode to RGB
            colours[kind] = 3
        named = ", ".join([getattr(kind, "name", str(kind)), f"{page.samplesperpixel} × {page.bitspersample} bits"])
        extra = [*page.extrasamples, *[0] * page.samplesperpixel][: page.samplesperpixel - colours.get(kind, 0)]
        unknown = colours.get(kind) == 1 and 0 in extra  # two wavelengths, say
        shape = (page.imagelength, page.imagewidth)
        whole = page.samplesperpixel >= colours.get(kind, 99) and page.imagedepth == 1
        if unknown or not whole or not isinstance(page.bitspersample, int) or page.dtype.kind not in "uifb":
            raise InputError(f"{path}: a TIFF of {named}; grey, RGB, CMYK or a palette, with alpha or not, is right")
        _check_size(shape, path)
        samples = page.asarray().reshape(page.shape)
        if page.axes.startswith("S"):
            samples = np.moveaxis(samples, 0, -1)
        samples, orientation, palette = samples.reshape(*shape, -1), page.tags.valueof(274, 1), page.colormap
    top = _top(samples.dtype, page.bitspersample)
    alphas = [colours[kind] + i for i, meaning in enumerate(extra) if meaning in (1, 2)]
    alpha = samples[..., alphas[0]] / np.float32(top) if alphas else None
    if kind == kinds.PALETTE:
        # Full scale is 65535; some write 255 or, as Pillow does, 255 × 256.
        full = 255 if palette.max() < 256 else 65535 if (palette % 256).any() else 65280
        palette = palette / np.float32(full)
        levels = _luma(palette.T[samples[..., 0]])
    else:
        levels = _scaled(samples[..., : colours[kind]], top, path, white)
        if alphas and extra[alphas[0] - colours[kind]] == 1:  # associated: colours come multiplied by it
            levels = np.divide(levels, alpha[..., None], out=levels, where=alpha[..., None] > 0).clip(0, 1)
        if kind == kinds.SEPARATED:
            levels = (1 - levels[..., :3]) * (1 - levels[..., 3:])
        levels = 1 - levels[..., 0] if kind == kinds.MINISWHITE else _luma(levels)
    return _upright(levels, orientation), _upright(alpha, orientation), top


def _picture_of(file: object) -> object:
    """The directory of a TIFF that is the picture: no preview and no mask, the largest, of equals the first."""
    pages = [page for outer in file.pages for page in (outer, *(outer.pages or ()))]
    whole = [page for page in pages if not (page.is_reduced or page.is_mask)]
    return max(whole or pages, key=lambda page: page.imagelength * page.imagewidth)


def _check_size(shape: tuple[int, ...], path: Path) -> None:
    if shape[0] * shape[1] > MOST_PIXELS:
        raise InputError(f"{path}: {shape[0]} × {shape[1]} pixels; at most {MOST_PIXELS} in all would be right")


def _top(dtype: np.dtype, bits: int) -> float:
    """The number that stands for white: 1 for floats."""
    return {"f": 1.0, "b": 1.0, "u": 2.0**bits - 1, "i": 2.0 ** (bits - 1) - 1}[dtype.kind]


def _scaled(samples: np.ndarray, top: float, path: Path, white: float | None) -> np.ndarray:
    """Samples as shares of `top`, or of `white`, beyond which there is only white: float32 in [0, 1]."""
    low, high = samples.min(), samples.max()
    if not low >= 0:  # false for NaN
        raise InputError(f"{path}: pixel values down to {low:g}; none below 0 would be right")
    if white is None and not high <= top:
        raise InputError(f"{path}: pixel values up to {high:g}; in floats 1 is white, unless a white level is given")
    return np.minimum(samples.astype(np.float32) / np.float32(white or top), 1)


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Grey of (h, w, 3), or of (h, w, 1) that is grey."""
    return rgb[..., 0] if rgb.shape[2] == 1 else sum(np.float32(w) * rgb[..., i] for i, w in enumerate(LUMA)).clip(0, 1)


def _upright(picture: np.ndarray | None, orientation: int) -> np.ndarray | None:
    """A stored picture as its orientation tag, 1 to 8, shows it."""
    if picture is None:
        return None
    picture = picture.T if orientation in (5, 6, 7, 8) else picture
    picture = picture[::-1] if orientation in (3, 4, 7, 8) else picture
    return picture[:, ::-1] if orientation in (2, 3, 6, 7) else picture
