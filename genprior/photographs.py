"""Photographs read from files, upright and whole: what their tags say is honoured, or refused in one line.

TIFF is tifffile's, other formats are Pillow's, and PNG of 16-bit colour, for which Pillow has no mode, imagecodecs'.
"""

import logging
import math
import struct
import warnings
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from genprior.files import InputError, existing, whole_file

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "JPEG2000", "GIF", "BMP", "PPM")  # Pillow would run Ghostscript for others
MOST_PIXELS = 2**27  # 134 megapixels: a file of a few bytes can claim any number
FEW, MANY = 128, 8  # greys of a picture, and as many times more in its file, from which on a line says so
PAINTED = 0.9  # below it a pixel of a mask is partly painted over, as at the soft edge of a stroke
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's mode L
DESCRIBING = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853)  # EXIF on who took what, when, how
MISLEADING = (40962, 40963, 40965)  # width and height, which may have changed, and a place in the file
SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")  # of what is written

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


@dataclass
class Photograph:
    """A picture, upright: levels float32 (h, w, 3), or (h, w, 1) where it is grey, in [0, 1], and what its file tells.

    bits: 8 or 16, to be written with; exif: its tags but those of the file itself; profile: the ICC profile, or b"".
    """

    levels: np.ndarray
    bits: int
    exif: Image.Exif
    profile: bytes


def read_photograph(path: str | Path, white: float | None = None) -> np.ndarray:
    """Read a picture of any mode and depth, upright, as grey on a white ground: uint8, (height, width).

    Colour becomes grey by ITU-R 601-2 luma. White is 1 in floats and the largest number of the bits that the file
    states, or `white`, in the file's numbers: a detector's 4095, say. Of several pictures in a file the largest counts
    that is no preview, of equally large ones the first. The logger "genprior" gets a line where few greys are left of
    many, where `white` does not fit, where much is transparent, and where there are several pictures.
    Raises InputError that names a file which is missing, damaged, too large or no such picture.
    """
    path = existing(path)
    levels, alpha, stored = _read(path, white)
    return np.rint(_on_white(levels, alpha, stored.top, path, white) * 255).astype(np.uint8)


def read_colours(path: str | Path, white: float | None = None) -> Photograph:
    """Read a picture as `read_photograph` does, in colour and at full depth; equal channels are grey."""
    path = existing(path)
    levels, alpha, stored = _read(path, white, colour=True)
    levels = _on_white(levels, None if alpha is None else alpha[..., None], stored.top, path, white)
    if (levels == levels[..., :1]).all():
        levels = levels[..., :1]
    deep = stored.top > 255 or stored.numbers.dtype.kind == "f"
    return Photograph(levels, 16 if deep else 8, *_told(path, {1: b"GRAY", 3: b"RGB "}[levels.shape[2]]))


def write_photograph(path: str | Path, levels: np.ndarray, like: Photograph) -> None:
    """Write levels (h, w, 3 or 1), as PNG, TIFF or JPEG by the suffix, with the bits and what else `like` tells.

    JPEG has 8 bits. Levels beyond [0, 1] are clipped.
    """
    suffix, exif = Path(path).suffix.lower(), like.exif.tobytes() if like.exif else b""
    deep = like.bits == 16 and suffix not in (".jpg", ".jpeg")
    numbers = np.rint(levels.clip(0, 1) * (65535 if deep else 255)).astype(np.uint16 if deep else np.uint8, order="C")
    with whole_file(path) as part:
        if suffix == ".png":
            part.write_bytes(_png(numbers, exif[6:], like.profile))
        elif suffix in (".tif", ".tiff"):
            part.write_bytes(_tiff(numbers, like.exif, like.profile))
        else:
            picture = Image.fromarray(numbers.squeeze(2) if numbers.shape[2] == 1 else numbers)
            picture.save(part, "JPEG", quality=95, subsampling=0, exif=exif, icc_profile=like.profile)


def read_mask(path: str | Path) -> np.ndarray:
    """Read which pixels are measured: those that are white, and not transparent: bool, (height, width).

    Of a photograph with transparent holes, these count. Raises InputError as `read_photograph`, and for a picture that
    has other greys, nothing white, or no hole.
    """
    path = existing(path)
    levels, alpha, stored = _read(path, None)
    top = stored.top
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


def _on_white(levels: np.ndarray, alpha: np.ndarray | None, top: float, path: Path, white: float | None) -> np.ndarray:
    """Levels laid on white by their alpha; the logger gets a line on what `read_photograph` names."""
    distinct = np.unique(levels) if top != 255 else levels[:0]
    if alpha is not None:
        if (clear := np.mean(alpha < 0.1)) > 0.001:
            _say(f"{path}: {clear:.1%} is transparent, and laid on white")
        levels = levels * alpha + (1 - alpha)
    left = np.count_nonzero(np.bincount(np.rint(levels * 255).astype(np.uint8).ravel()))
    if left <= FEW and len(distinct) > MANY * left:
        _say(f"{path}: {left} greys are left of {len(distinct)}, with {white or top:g} as white; is it another level?")
    return levels


def _told(path: Path, space: bytes) -> tuple[Image.Exif, bytes]:
    """What a file's EXIF tells of the photograph, of a picture that is upright, and its ICC profile, if of `space`.

    Empty where Pillow makes no sense of them: the picture is worth more.
    """
    kept, profile = Image.Exif(), b""
    with suppress(Exception), warnings.catch_warnings(action="ignore"), Image.open(path) as image:
        profile = image.info.get("icc_profile") or b""
        profile = profile if profile[16:20] == space else b""
        exif, found = image.getexif(), Image.Exif()
        for tag in DESCRIBING:
            if tag in exif and tag in (34665, 34853):
                found[tag] = {name: value for name, value in exif.get_ifd(tag).items() if name not in MISLEADING}
            elif tag in exif:
                found[tag] = exif[tag]
        if found:
            found[274] = 1
        if len(found.tobytes()) < 2**16 - 8:  # more does not fit into JPEG
            kept = found
    return kept, profile


def _png(numbers: np.ndarray, exif: bytes, profile: bytes) -> bytes:
    """A PNG of numbers (h, w, 1 or 3): imagecodecs writes 16-bit colour, and the chunks are put behind its header."""
    import imagecodecs

    content, chunks = imagecodecs.png_encode(numbers.squeeze(2) if numbers.shape[2] == 1 else numbers), b""
    for name, data in ((b"iCCP", profile and b"ICC\0\0" + zlib.compress(profile)), (b"eXIf", exif)):
        if data:
            chunks += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content[:33] + chunks + content[33:]


def _tiff(numbers: np.ndarray, exif: Image.Exif, profile: bytes) -> bytes:
    """A TIFF of numbers (h, w, 1 or 3), in one strip, whose directory is that of the EXIF with the picture's tags."""
    height, width, channels = numbers.shape
    bits = 8 * numbers.itemsize
    tags = {256: width, 257: height, 258: (bits,) * channels, 259: 1, 262: 1 + (channels == 3)}
    tags |= {273: 0, 277: channels, 278: height, 279: numbers.nbytes}  # Pillow counts 273 from the directory's end
    tags |= {34675: profile} if profile else {}
    directory = Image.Exif()
    directory.endian = "<"
    for tag, value in {**exif, **tags}.items():
        directory[tag] = value
    return directory.tobytes()[6:] + numbers.astype(numbers.dtype.newbyteorder("<")).tobytes()


def _read(path: Path, white: float | None, colour: bool = False) -> tuple[np.ndarray, np.ndarray | None, Stored]:
    """A picture's greys (h, w), or colours (h, w, 1 or 3), and alpha (h, w) or None, in [0, 1]; and what was stored."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file")
        with open(path, "rb") as file:
            head = file.read(132)
        for (offset, signature), what in OTHERS.items():
            if head.startswith(signature, offset):
                raise InputError(f"{path}: {what}")
        with warnings.catch_warnings(action="ignore"):  # of Pillow, on what it can read all the same
            stored = _stored_in_tiff(path) if head.startswith(TIFF) else _stored(path, colour)
        levels = _levels(stored, path, white)
        return _upright(levels if colour else _grey(levels), stored), _upright(stored.alpha, stored), stored
    except InputError:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged data
        damaged = f"not a picture (JPEG, PNG or TIFF), or damaged: {' '.join(str(error).split())}"
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or damaged[:400]}") from None


def _stored(path: Path, colour: bool) -> Stored:
    """Of all formats but TIFF; colours of 8 bits are grey already unless `colour`."""
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
            shown = shown.convert("RGB" if shown.mode in ("P", "PA") else shown.mode)
            shown = shown.convert("RGB" if colour and shown.mode not in ("1", "L", "LA") else "L")
            return Stored(np.asarray(shown).reshape(*shown.size[::-1], -1), 255, alpha)
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


def _levels(stored: Stored, path: Path, white: float | None) -> np.ndarray:
    """Greys or RGB in [0, 1], as the file has them: float32 (h, w, 1 or 3). Beyond `white`, if given, all is white."""
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
    return 1 - levels if stored.white_is_zero else levels


def _grey(levels: np.ndarray) -> np.ndarray:
    """Levels (h, w, 1 or 3) as greys: (h, w)."""
    if levels.shape[2] == 1:
        return levels[..., 0]
    return sum(np.float32(weight) * levels[..., i] for i, weight in enumerate(LUMA)).clip(0, 1)


def _upright(picture: np.ndarray | None, stored: Stored) -> np.ndarray | None:
    """A stored picture as its orientation tag, 1 to 8, shows it."""
    if picture is None:
        return None
    picture = picture.swapaxes(0, 1) if stored.orientation in (5, 6, 7, 8) else picture
    picture = picture[::-1] if stored.orientation in (3, 4, 7, 8) else picture
    return picture[:, ::-1] if stored.orientation in (2, 3, 6, 7) else picture
