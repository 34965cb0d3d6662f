"""Photographs read from files, upright and whole: what their tags say is honoured, or refused in one line.

Pillow reads them. It has no colours deeper than 8 bits: a TIFF of more bits is tifffile's, such a PNG imagecodecs'.
"""

import logging
import struct
import warnings
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from genprior.files import InputError, existing, whole_file

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "GIF", "BMP", "PPM")  # Pillow would run Ghostscript for others
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST_PIXELS = 2**27  # 134 megapixels: a file of a few bytes can claim any number
FEW, MANY = 128, 8  # greys of a picture, and as many times more in its file, from which on a line says so
PAINTED = 0.9  # below it a pixel of a mask is partly painted over, as at the soft edge of a stroke
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's mode L
DESCRIBING = (270, 271, 272, 282, 283, 296, 305, 306, 315, 33432, 34665, 34853)  # EXIF on who took what, when, how
MISLEADING = (40962, 40963, 40965)  # width and height, which may have changed, and a place in the file
SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")  # of what is written


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
    """Read a picture, upright, as grey on a white ground: uint8, (height, width).

    JPEG, PNG of any kind, TIFF of 8 bits, and deeper ones in grey, 0 black, or RGB, perhaps with straight alpha.

    Colour becomes grey by ITU-R 601-2 luma. White is 1 in floats and the largest number of the bits that the file
    states, or `white`, in the file's numbers: a detector's 4095, say. Of several pictures in a file the largest counts
    that is no preview, of equally large ones the first. The logger "genprior" gets a line where few greys are left of
    many, where `white` does not fit, where much is transparent, and where there are several pictures.
    Raises InputError that names a file which is missing, damaged, too large or no such picture.
    """
    path = existing(path)
    levels, alpha, top = _read(path, white)
    return np.rint(_on_white(levels, alpha, top, path, white)[..., 0] * 255).astype(np.uint8)


def read_colours(path: str | Path, white: float | None = None) -> Photograph:
    """Read a picture as `read_photograph` does, in colour and at full depth; equal channels are grey."""
    path = existing(path)
    levels, alpha, top = _read(path, white, colour=True)
    levels = _on_white(levels, alpha, top, path, white)
    if (levels == levels[..., :1]).all():
        levels = levels[..., :1]
    return Photograph(levels, 8 if top == 255 else 16, *_told(path, {1: b"GRAY", 3: b"RGB "}[levels.shape[2]]))


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
    return seen[..., 0]


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


def _read(path: Path, white: float | None, colour: bool = False) -> tuple[np.ndarray, np.ndarray | None, float]:
    """A picture's levels (h, w, 1 or 3), 1 unless `colour`, and alpha (h, w, 1) or None, in [0, 1]; which number is 1.

    Beyond `white`, if given, all is white.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file")
        with warnings.catch_warnings(action="ignore"):  # of Pillow, on what it can read all the same
            numbers, top = _numbers(path, colour)
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a picture that can be read; JPEG, PNG or TIFF would be right") from None
    except Image.DecompressionBombError:  # where `_check_size` would have come too late
        raise InputError(f"{path}: too many pixels; at most {MOST_PIXELS} in all would be right") from None
    except Exception as error:  # decoders raise nearly anything on damaged data
        damaged = f"a damaged picture: {' '.join(str(error).split())}"
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or damaged[:400]}") from None
    channels = (numbers.shape[2] - 1) // 2 * 2 + 1
    alpha = numbers[..., channels:] / np.float32(top) if channels < numbers.shape[2] else None
    numbers = numbers[..., :channels]
    low, high = numbers.min(), numbers.max()
    if white is None and not (low >= 0 and high <= top):  # false for NaN
        floats = "; for floats, 1 is white, unless a white level is given" if numbers.dtype.kind == "f" else ""
        raise InputError(f"{path}: pixel values from {low:g} to {high:g}; 0 to {top:g} would be right{floats}")
    levels = numbers.astype(np.float32) / np.float32(white or top)
    if white is not None:
        if not np.isfinite(levels).all():
            raise InputError(f"{path}: pixel values that are not finite")
        if high < white / 8 or np.mean(levels > 1) > 0.05:
            _say(f"{path}: pixel values from {low:g} to {high:g}, with {white:g} as white; is it another level?")
        levels = levels.clip(0, 1)
    if channels == 3 and not colour:
        levels = sum(np.float32(weight) * levels[..., i : i + 1] for i, weight in enumerate(LUMA)).clip(0, 1)
    return levels, alpha, top


def _numbers(path: Path, colour: bool) -> tuple[np.ndarray, float]:
    """The file's numbers (h, w, c), upright, grey or RGB and perhaps alpha, and which of them is white.

    Colours of 8 bits without alpha are grey already unless `colour`.
    """
    with open(path, "rb") as file:  # given a name, Pillow maps uncompressed TIFF, and turns those on their side wrongly
        head, number = file.read(25), 0
        file.seek(0)
        if head.startswith(TIFF):
            import tifffile

            logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it would log is in our one line
            tiff = tifffile.TiffFile(file)
            number, page = _picture_of(tiff.pages, path)
            if np.max(page.bitspersample) > 8 or page.sampleformat == 2:
                return _deep(page, path)
            if 262 not in page.tags or (page.samplesperpixel == 2 and page.extrasamples[:1] not in ((1,), (2,))):
                raise InputError(f"{path}: a TIFF that does not tell what its channels are; grey or RGB would be right")
        with Image.open(file, formats=FORMATS) as image:
            _check_size(image.size[::-1], path)
            if image.format in ("PNG", "GIF", "WEBP", "AVIF") and getattr(image, "is_animated", False):
                _say(f"{path}: holds several pictures; the first is taken")
            if image.format == "PNG" and head[24] == 16:
                import imagecodecs

                numbers = imagecodecs.png_decode(path.read_bytes()).reshape(*image.size[::-1], -1)
                return _upright(numbers, image.getexif().get(274, 1)), 65535
            image.seek(number)
            told = image.tile[0].args if image.tile else ""  # how Pillow's decoder calls the numbers, and of PPM white
            kind, *white = told if isinstance(told, tuple) else (told,)
            if image.mode.startswith(("I", "F")) or (image.format == "PPM" and max(white, default=255) > 255):
                raise InputError(f"{path}: {image.format} deeper than 8 bits; PNG or TIFF would be right")
            if kind in ("L;2", "L;4") and "transparency" in image.info:  # Pillow scales pixels alone
                image.info["transparency"] *= 85 if kind == "L;2" else 17
            shown = ImageOps.exif_transpose(image)
            shown = shown.convert("LA") if shown.mode == "La" else shown
            grey = not colour or shown.mode in ("1", "L")
            shown = shown.convert("RGBA" if shown.has_transparency_data else "L" if grey else "RGB")
            return np.asarray(shown).reshape(*shown.size[::-1], -1), 255


def _picture_of(pages: Iterable, path: Path) -> tuple[int, object]:
    """The number and directory of a TIFF's picture: the largest, as others are previews, and of equals the first."""
    sizes = [page.imagelength * page.imagewidth for page in pages]
    number = sizes.index(max(sizes))
    below = [inner.imagelength * inner.imagewidth for page in pages for inner in page.pages or ()]
    if max(below, default=0) > sizes[number]:
        raise InputError(f"{path}: only a preview, as of a camera's raw data; JPEG, PNG or TIFF would be right")
    if len(sizes) > 1:
        shape = f"{pages[number].imagelength} × {pages[number].imagewidth} pixels"
        _say(f"{path}: holds {len(sizes)} pictures; the first of the largest is taken, {shape}")
    return number, pages[number]


def _deep(page: object, path: Path) -> tuple[np.ndarray, float]:
    """What `_numbers` returns, of a TIFF's directory that has more than 8 bits."""
    channels, bits, extra = page.samplesperpixel, page.bitspersample, page.extrasamples
    usual = (page.photometric, channels, extra) in ((1, 1, ()), (1, 2, (2,)), (2, 3, ()), (2, 4, (2,)))  # 2: alpha
    if not usual or page.imagedepth > 1 or page.dtype is None or page.dtype.kind not in "uif":
        named = f"{getattr(page.photometric, 'name', page.photometric)}, {channels} × {bits} bits"
        raise InputError(f"{path}: a TIFF of {named}; grey, 0 black, or RGB, perhaps with straight alpha, is right")
    shape = (page.imagelength, page.imagewidth)
    _check_size(shape, path)
    if min(page.dataoffsets, default=0) == 0 or min(page.databytecounts) == 0:
        raise InputError(f"{path}: parts of the picture are missing; a file that is whole would be right")
    numbers = page.asarray().reshape(page.shape)
    numbers = (np.moveaxis(numbers, 0, -1) if page.axes.startswith("S") else numbers).reshape(*shape, -1)
    top = {"f": 1.0, "u": 2.0**bits - 1, "i": 2.0 ** (bits - 1) - 1}[page.dtype.kind]
    return _upright(numbers, page.tags.valueof(274, 1)), top


def _check_size(shape: tuple[int, ...], path: Path) -> None:
    if shape[0] * shape[1] > MOST_PIXELS:
        raise InputError(f"{path}: {shape[0]} × {shape[1]} pixels; at most {MOST_PIXELS} in all would be right")


def _upright(picture: np.ndarray, orientation: int) -> np.ndarray:
    """A stored picture as its orientation tag, 1 to 8, shows it."""
    picture = picture.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else picture
    picture = picture[::-1] if orientation in (3, 4, 7, 8) else picture
    return picture[:, ::-1] if orientation in (2, 3, 6, 7) else picture
