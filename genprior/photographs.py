"""Photographs read from files as grey, upright and whole: what their tags say is honoured, or refused in one line.

TIFF is tifffile's, other formats are Pillow's, and PNG of 16-bit colour, for which Pillow has no mode, imagecodecs'.
"""

import logging
import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from genprior.files import InputError, existing

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "PPM")  # Pillow would run Ghostscript for others
MOST_PIXELS = 2**27  # 134 megapixels: a file of a few bytes can claim any number
FEW, MANY = 128, 8  # greys of a picture, and as many times more in its file, from which on a line says so
PAINTED = 0.9  # below it a pixel of a mask is partly painted over, as at the soft edge of a stroke
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


@dataclass
class Stored:
    """What a file holds: numbers (h, w, 1, 3 or 4) of grey, RGB or CMYK, of which `top` is white; alpha (h, w)."""

    numbers: np.ndarray
    top: float
    alpha: np.ndarray | None = None
    orientation: int = 1
    white_is_zero: bool = False
    associated: bool = False  # whether the numbers are multiplied by alpha


def read_photograph(path: str | Path, white: float | None = None) -> np.ndarray:
    """Read a picture of any mode and depth, upright, as grey on a white ground: uint8, (height, width).

    Colour becomes grey by ITU-R 601-2 luma. White is 1 in floats and the largest number of the bits that the file
    states, or `white`, in the file's numbers: a detector's 4095, say. Of several pictures in a file the largest counts
    that is no preview, of equally large ones the first. The logger "genprior" gets a line where few greys are left of
    many, where `white` does not fit, where much is transparent, and where there are several pictures.
    Raises InputError that names a file which is missing, damaged, too large or no such picture.
    """
    path = existing(path)
    levels, alpha, top = _read(path, white)
    distinct = np.unique(levels) if top != 255 else levels[:0]
    if alpha is not None:
        if (clear := np.mean(alpha < 0.1)) > 0.001:
            _say(f"{path}: {clear:.1%} is transparent, and laid on white")
        levels = levels * alpha + (1 - alpha)
    grey = np.rint(levels * 255).astype(np.uint8)
    left = np.count_nonzero(np.bincount(grey.ravel()))
    if left <= FEW and len(distinct) > MANY * left:
        _say(f"{path}: {left} greys are left of {len(distinct)}, with {white or top:g} as white; is it another level?")
    return grey


def read_mask(path: str | Path) -> np.ndarray:
    """Read which pixels are measured: those that are white, and not transparent: bool, (height, width).

    Of a photograph with transparent holes, these count. Raises InputError as `read_photograph`, and for a picture that
    has other greys, nothing white, or no hole.
    """
    path = existing(path)
    levels, alpha, top = _read(path, None)
    shown, right = levels, f"0 for what is missing and {top:g} for what is measured would be right"
    if alpha is not None:
        shown = levels * alpha if np.mean(np.abs(levels - 0.5) < 0.4) <= 0.05 else alpha
    seen = shown >= PAINTED
    if not seen.any():
        clear = (
            "all is black or transparent" if alpha is not None else f"no pixel is white, {levels.max() * top:g} at most"
        )
        raise InputError(f"{path}: {clear}; {right}")
    if seen.all():
        raise InputError(f"{path}: no pixel is black or transparent, so that nothing is missing; {right}")
    if np.mean(np.abs(shown - 0.5) < 0.4) > 0.05:
        raise InputError(f"{path}: many pixels are grey, as in a photograph; {right}")
    return seen


def _say(line: str) -> None:
    logging.getLogger("genprior").warning(line)


def _read(path: Path, white: float | None) -> tuple[np.ndarray, np.ndarray | None, float]:
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
            stored = (_stored_in_tiff if head.startswith(TIFF) else _stored)(path)
        return _upright(_grey(stored, path, white), stored), _upright(stored.alpha, stored), stored.top
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        damaged = f"not a picture (JPEG, PNG or TIFF), or damaged: {' '.join(str(error).split())}"
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or damaged[:400]}") from None


def _stored(path: Path) -> Stored:
    """Of all formats but TIFF."""
    with Image.open(path, formats=FORMATS) as image:
        _check_size(image.size[::-1], path)
        told, bits = image.tile[0][3] if image.tile else None, 16
        raw = told[0] if isinstance(told, tuple) else told  # how Pillow's decoder calls the file's numbers
        if image.format == "PPM":
            bits = math.log2(told[1] + 1) if isinstance(told, tuple) and isinstance(told[1], int) else 8
        elif image.format == "JPEG2000":
            code = path.read_bytes()
            bits = (code[code.index(b"\xff\x4f\xff\x51") + 42] & 127) + 1  # Ssiz of the codestream's header
        if image.format in ("PPM", "JPEG2000") and bits > 8 and len(image.getbands()) > 1:
            raise InputError(f"{path}: {image.format} of colours deeper than 8 bits; PNG or TIFF would be right")
        image.load()
        key, orientation = image.info.get("transparency"), image.getexif().get(274, 1)
        if image.format == "PNG" and raw in ("RGB;16B", "RGBA;16B", "LA;16B"):
            import imagecodecs

            numbers = imagecodecs.png_decode(path.read_bytes())
        elif image.mode.startswith("I") or image.mode == "F":
            numbers = np.asarray(image)[..., None]
        else:
            if raw in ("L;2", "L;4") and isinstance(key, int):  # which Pillow does not scale as it does pixels
                image.info["transparency"] = key * (85 if raw == "L;2" else 17)
            shown = ImageOps.exif_transpose(image)
            alpha = np.asarray(shown.convert("RGBA"))[..., 3] / np.float32(255) if shown.has_transparency_data else None
            grey = shown.convert("RGB" if shown.mode in ("P", "PA") else shown.mode).convert("L")
            return Stored(np.asarray(grey)[..., None], 255, alpha)
    colours = numbers.shape[2] - (numbers.shape[2] % 2 == 0)
    top = 1.0 if numbers.dtype.kind == "f" else 2.0**16 - 1
    alpha = None if colours == numbers.shape[2] else numbers[..., -1] / np.float32(top)
    if key is not None and alpha is None:
        alpha = (numbers != key).any(2).astype(np.float32)
    numbers = numbers[..., :colours]
    if bits != 16 and top != 1:  # Pillow scales them to 16
        numbers, top = np.rint(numbers * ((2**bits - 1) / top)), 2**bits - 1
    return Stored(numbers, top, alpha, orientation)


def _stored_in_tiff(path: Path) -> Stored:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would log is in our one line
    with tifffile.TiffFile(path) as file:
        page, kinds = _picture_of(file, path), tifffile.PHOTOMETRIC
        kind, samples, bits = page.photometric, page.samplesperpixel, page.bitspersample
        if 262 not in page.tags:
            kind = kinds.MINISBLACK if samples < 3 else kinds.RGB
        if kind in (kinds.CFA, kinds.LINEAR_RAW):
            raise InputError(f"{path}: {RAW}")
        colours = {kinds.MINISWHITE: 1, kinds.MINISBLACK: 1, kinds.PALETTE: 1, kinds.RGB: 3, kinds.SEPARATED: 4}
        if kind == kinds.YCBCR and page.compression in (6, 7, 34712):  # JPEG and JPEG 2000 decode to RGB
            colours[kind] = 3
        count = colours.get(kind, 99)
        extra = [*page.extrasamples, *[0] * samples][: max(0, samples - count)]  # 1: associated alpha, 2: alpha
        unknown = samples < count or page.imagedepth > 1 or (count == 1 and 0 in extra)  # two wavelengths, say
        without = kind == kinds.PALETTE and page.colormap is None
        if unknown or without or not isinstance(bits, int) or page.dtype is None or page.dtype.kind not in "uifb":
            named = f"{getattr(kind, 'name', kind)}, {samples} × {bits} bits"
            raise InputError(f"{path}: a TIFF of {named}; grey, RGB, CMYK or a palette, with alpha or not, is right")
        shape = (page.imagelength, page.imagewidth)
        _check_size(shape, path)
        if min(page.dataoffsets, default=0) == 0 or min(page.databytecounts) == 0:
            raise InputError(f"{path}: parts of the picture are missing; a file that is whole would be right")
        numbers = page.asarray().reshape(page.shape)
        numbers = (np.moveaxis(numbers, 0, -1) if page.axes.startswith("S") else numbers).reshape(*shape, -1)
        orientation, palette, letter = page.tags.valueof(274, 1), page.colormap, page.dtype.kind
    top = {"f": 1.0, "b": 1.0, "u": 2.0**bits - 1, "i": 2.0 ** (bits - 1) - 1}[letter]
    clear = [i for i, meaning in enumerate(extra) if meaning in (1, 2)][:1]
    alpha = numbers[..., count + clear[0]] / np.float32(top) if clear else None
    numbers = numbers[..., :count]
    if kind == kinds.PALETTE:
        numbers = palette.T[numbers[..., 0].astype(np.intp)]
        # Full scale is 65535; some write 255 or, as Pillow does, 255 × 256.
        top = 255 if palette.max() < 256 else 65535 if (palette % 256).any() else 65280
    associated = bool(clear) and extra[clear[0]] == 1
    return Stored(numbers, top, alpha, orientation, kind == kinds.MINISWHITE, associated)


def _picture_of(file: object, path: Path) -> object:
    """The directory of a TIFF that is the picture: no preview and no mask, the largest, of equals the first."""
    pages = [page for outer in file.pages for page in (outer, *(outer.pages or ()))]
    whole = [page for page in pages if not (page.is_reduced or page.is_mask)] or pages
    chosen = max(whole, key=lambda page: page.imagelength * page.imagewidth)
    if len(whole) > 1:
        shape = f"{chosen.imagelength} × {chosen.imagewidth} pixels"
        _say(f"{path}: holds {len(whole)} pictures; the first of the largest is taken, {shape}")
    return chosen


def _check_size(shape: tuple[int, ...], path: Path) -> None:
    if shape[0] * shape[1] > MOST_PIXELS:
        raise InputError(f"{path}: {shape[0]} × {shape[1]} pixels; at most {MOST_PIXELS} in all would be right")


def _grey(stored: Stored, path: Path, white: float | None) -> np.ndarray:
    """Greys in [0, 1], as the file has them: float32 (h, w). Beyond `white`, where it is given, there is only white."""
    numbers, alpha = stored.numbers, stored.alpha
    low, high = numbers.min(), numbers.max()
    if white is None and not (low >= 0 and high <= stored.top):  # false for NaN
        floats = "; for floats, 1 is white, unless a white level is given" if numbers.dtype.kind == "f" else ""
        raise InputError(f"{path}: pixel values from {low:g} to {high:g}; 0 to {stored.top:g} would be right{floats}")
    levels = numbers.astype(np.float32) / np.float32(white or stored.top)
    if white is not None:
        if not np.isfinite(levels).all():
            raise InputError(f"{path}: pixel values that are not finite")
        if high < white / 8 or np.mean(levels > 1) > 0.05:
            _say(f"{path}: pixel values from {low:g} to {high:g}, with {white:g} as white; is it another level?")
        levels = levels.clip(0, 1)
    if stored.associated:
        levels = np.divide(levels, alpha[..., None], out=levels, where=alpha[..., None] > 0).clip(0, 1)
    if levels.shape[2] == 4:
        levels = (1 - levels[..., :3]) * (1 - levels[..., 3:])
    if levels.shape[2] == 3:
        return sum(np.float32(weight) * levels[..., i] for i, weight in enumerate(LUMA)).clip(0, 1)
    return 1 - levels[..., 0] if stored.white_is_zero else levels[..., 0]


def _upright(picture: np.ndarray | None, stored: Stored) -> np.ndarray | None:
    """A stored picture as its orientation tag, 1 to 8, shows it."""
    if picture is None:
        return None
    picture = picture.T if stored.orientation in (5, 6, 7, 8) else picture
    picture = picture[::-1] if stored.orientation in (3, 4, 7, 8) else picture
    return picture[:, ::-1] if stored.orientation in (2, 3, 6, 7) else picture
