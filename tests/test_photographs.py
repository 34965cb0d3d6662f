"""Files of every kind, by two writers, read as the one picture that they hold; damaged ones: test_abuse.py."""

import struct
import zlib
from collections import Counter
from itertools import product

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from genprior.files import InputError
from genprior.photographs import LUMA, read_mask, read_photograph

GREY = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10) * 2
HEIGHT, WIDTH = 40, 56
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH] / WIDTH
DISC = (ROWS - 0.2) ** 2 + (COLUMNS - 0.3) ** 2 < 0.02
TRUTH = np.where(DISC, 0.05, 0.1 + 0.85 * COLUMNS * (1 - 0.5 * ROWS))  # no symmetry
ALPHA = 0.2 + 0.8 * ROWS / ROWS.max()
DEPTHS = {"8": ("u1", 8), "10": ("u2", 10), "12": ("u2", 12), "16": ("u2", 16), "32": ("u4", 32)}
DEPTHS |= {"signed": ("i2", 15), "float": ("f4", 0)}  # bits that a value may have; 0: of [0, 1]
COLOURS, PACKINGS = ("grey", "rgb", "palette", "alpha"), (None, "lzw", "zlib")
AXES = {
    "depth": tuple(DEPTHS),
    "colour": COLOURS,
    "packing": PACKINGS,
    "separate": (False, True),
    "orientation": (1, 2, 7),  # the others too in test_exif_orientation_is_honoured
    "white_is_zero": (False, True),
    "tiled": (False, True),
    "writer": ("tifffile", "pillow"),
}


def stored(samples: np.ndarray, orientation: int) -> np.ndarray:
    """What a file of an upright picture holds: the inverse of what TIFF 6.0, page 36, says of row 0 and column 0."""
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 1, 6: 1, 7: -1, 8: -1}[orientation]
    mirrored = orientation in (2, 4, 5, 7)
    turned = np.rot90(samples, turns)
    return np.ascontiguousarray(
        np.fliplr(turned) if mirrored and turns % 2 == 0 else turned[::-1] if mirrored else turned
    )


def quantised(levels: np.ndarray, depth: str) -> tuple[np.ndarray, np.ndarray]:
    """Levels in [0, 1] as a file's numbers, and the levels that these are."""
    dtype, bits = DEPTHS[depth]
    numbers = (np.rint(levels * (2.0**bits - 1)) if bits else levels).astype(dtype)
    return numbers, numbers / (2.0**bits - 1 if bits else 1)


def write(file, kind: dict) -> np.ndarray:
    """A TIFF of a kind, and the grey picture in [0, 1] that it holds; ValueError where no writer makes such a file."""
    colour, bits = kind["colour"], DEPTHS[kind["depth"]][1]
    channels = {"grey": [TRUTH], "palette": [TRUTH], "alpha": [TRUTH, TRUTH**2, 1 - TRUTH, ALPHA]}
    numbers, levels = quantised(np.stack(channels.get(colour, [TRUTH, TRUTH**2, 1 - TRUTH]), -1), kind["depth"])
    shown, palette = levels[..., 0], None
    if len(levels[0, 0]) > 1:
        shown = levels[..., :3] @ np.array(LUMA)
    if colour == "alpha":
        shown = shown * levels[..., 3] + 1 - levels[..., 3]
    if colour == "palette":
        if kind["depth"] != "8" or kind["white_is_zero"]:
            raise ValueError("palettes are of 8 bits")
        palette = (np.arange(256)[::-1] ** 2 // 255).astype(np.uint16)
        shown = palette[numbers[..., 0]] / 255
    if kind["white_is_zero"]:
        if colour != "grey" or bits == 0:
            raise ValueError("grey alone has this")
        shown = 1 - shown
    numbers = stored(numbers, kind["orientation"])
    (by_tifffile if kind["writer"] == "tifffile" else by_pillow)(file, numbers.squeeze(), kind, palette)
    return shown


def by_tifffile(file, numbers, kind, palette) -> None:
    options, bits = {}, DEPTHS[kind["depth"]][1]
    if bits in (10, 12):
        options["bitspersample"] = bits
    if kind["colour"] == "alpha":
        options["extrasamples"] = ["unassalpha"]
    if numbers.ndim == 3 and kind["separate"]:
        numbers, options["planarconfig"] = np.ascontiguousarray(np.moveaxis(numbers, -1, 0)), "separate"
    if palette is not None:
        options["colormap"] = np.tile(257 * palette, (3, 1))
    if kind["tiled"]:
        options["tile"] = (16, 16)
    else:
        options["rowsperstrip"] = 7
    photometric = {"grey": "miniswhite" if kind["white_is_zero"] else "minisblack", "palette": "palette"}
    tifffile.imwrite(
        file,
        numbers,
        photometric=photometric.get(kind["colour"], "rgb"),
        compression=kind["packing"],
        predictor=kind["packing"] is not None and bits not in (10, 12) and palette is None,
        extratags=[(274, "H", 1, kind["orientation"], True)],
        **options,
    )


def by_pillow(file, numbers, kind, palette) -> None:
    if kind["separate"] or kind["tiled"] or DEPTHS[kind["depth"]][1] in (10, 12, 15):
        raise ValueError("Pillow writes no such file")
    deep = numbers.dtype != np.uint8
    if numbers.dtype == np.uint32 or (deep and (numbers.ndim == 3 or kind["white_is_zero"])):
        raise ValueError("Pillow has no such mode")
    picture, tags = Image.fromarray(numbers), {274: kind["orientation"]}
    if palette is not None:
        picture.putpalette(np.repeat(palette, 3).astype(np.uint8).tobytes())
    if kind["white_is_zero"]:
        picture, tags[262] = Image.fromarray(255 - numbers), 0  # Pillow inverts what it writes so
    packing = {None: None, "lzw": "tiff_lzw", "zlib": "tiff_adobe_deflate"}[kind["packing"]]
    picture.save(file, tiffinfo=tags, compression=packing)


def outcome(file, kind: dict) -> str:
    """ "right", "wrong" or "refused" of one file, "not made" where the writer has no such kind."""
    try:
        shown = write(file, kind)
    except (ValueError, NotImplementedError):
        return "not made"
    try:
        found = read_photograph(file)
    except InputError:
        return "refused"
    return "right" if found.shape == shown.shape and np.abs(found / 255 - shown).max() < 0.51 / 255 else "wrong"


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_the_tags_of_a_tiff_say_what_its_numbers_mean(tmp_path, caplog, depth, colour):
    others = [name for name in AXES if name not in ("depth", "colour")]
    found = {}
    for values in product(*(AXES[name] for name in others)):
        kind = {"depth": depth, "colour": colour, **dict(zip(others, values, strict=True))}
        found[values] = outcome(tmp_path / "picture.tif", kind)
    counts = Counter(found.values())
    assert "wrong" not in counts, [values for values in found if found[values] == "wrong"]
    deep_and_white_is_zero = [values for values in found if values[others.index("white_is_zero")] and depth != "8"]
    assert {values for values in found if found[values] == "refused"} <= {*deep_and_white_is_zero}
    assert counts["right"] >= 9 or (colour == "palette" and depth != "8"), counts
    assert not caplog.text


@pytest.mark.parametrize("name", ["1.png", "1.tif", "LA.png", "LA.tif", "CMYK.tif"])
def test_other_modes_give_the_same_grey(tmp_path, name):
    mode, expected = name.partition(".")[0], GREY if name > "2" else np.where(GREY > 99, 255, 0)
    Image.fromarray(expected.astype(np.uint8)).convert("RGB" if mode == "CMYK" else "L").convert(mode).save(
        tmp_path / name
    )
    np.testing.assert_allclose(read_photograph(tmp_path / name).astype(int), expected, atol=1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_sixteen_bits(tmp_path, channels):
    numbers, levels = quantised(np.stack([TRUTH, TRUTH**2, 1 - TRUTH, ALPHA], -1), "16")
    chosen = {1: [0], 2: [0, 3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    deep = np.ascontiguousarray(numbers[..., chosen].squeeze())
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    shown = levels[..., 0] if channels < 3 else levels[..., :3] @ np.array(LUMA)
    shown = shown * levels[..., 3] + 1 - levels[..., 3] if channels % 2 == 0 else shown
    np.testing.assert_allclose(read_photograph(tmp_path / "deep.png") / 255, shown, atol=0.51 / 255)
    deep = np.ascontiguousarray(numbers[..., chosen[:1] * (1 + 2 * (channels > 2))]) // 16
    (tmp_path / "detector.png").write_bytes(imagecodecs.png_encode(deep))
    np.testing.assert_allclose(read_photograph(tmp_path / "detector.png", 4095) / 255, levels[..., 0], atol=0.6 / 255)


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 3), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (read_photograph(tmp_path / "clear.png") == 255).all()
    options = {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", np.stack([TRUTH, ALPHA], -1).astype(np.float32), **options)
    np.testing.assert_allclose(read_photograph(tmp_path / "a.tif") / 255, TRUTH * ALPHA + 1 - ALPHA, atol=0.51 / 255)
    Image.fromarray(quantised(TRUTH, "16")[0]).save(
        tmp_path / "key.png", transparency=int(quantised(TRUTH, "16")[0][5, 5])
    )
    keyed = np.where(TRUTH[5, 5] == TRUTH, 1, TRUTH)
    np.testing.assert_allclose(read_photograph(tmp_path / "key.png") / 255, keyed, atol=0.51 / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".deep.png"])
def test_exif_orientation_is_honoured(tmp_path, orientation, suffix):
    numbers = stored(quantised(TRUTH, "16" if "deep" in suffix else "8")[0], orientation)
    picture, file = Image.fromarray(numbers), tmp_path / f"turned{suffix}"
    exif = picture.getexif()
    exif[274] = orientation
    picture.save(file, exif=exif, **({"lossless": True} if suffix == ".webp" else {"quality": 100}))
    np.testing.assert_allclose(read_photograph(file) / 255, TRUTH, atol=6 / 255 if suffix == ".jpg" else 0.51 / 255)


@pytest.mark.parametrize("suffix", [".avif", ".webp", ".bmp", ".pgm", ".gif"])
def test_other_formats(tmp_path, suffix):
    Image.fromarray(quantised(TRUTH, "8")[0]).save(tmp_path / f"picture{suffix}")
    assert np.abs(read_photograph(tmp_path / f"picture{suffix}") / 255 - TRUTH).mean() < 3 / 255


@pytest.mark.parametrize("place", ["first", "unmarked", "old tag"])
def test_a_preview_is_not_the_picture(tmp_path, place):
    full, file = quantised(TRUTH, "8")[0], tmp_path / "previewed.tif"
    with tifffile.TiffWriter(file) as writer:
        if place == "old tag":
            writer.write(full[::4, ::4], photometric="minisblack", extratags=[(255, "H", 1, 2, True)])
        else:
            writer.write(full[::4, ::4], photometric="minisblack", subfiletype=1 if place == "first" else 0)
        writer.write(full, photometric="minisblack")
    np.testing.assert_array_equal(read_photograph(file), full)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"data": np.zeros((9, 9, 2), "u2"), "photometric": "minisblack", "planarconfig": "contig"}, "MINISBLACK, 2 ×"),
        ({"data": np.zeros((9, 9), "u2"), "photometric": "miniswhite"}, "MINISWHITE, 1 × 16 bits; grey, 0 black"),
        ({"data": np.zeros((9, 9), "c8"), "photometric": "minisblack"}, "64 bits"),
        ({"data": np.zeros((9, 9), "u2"), "photometric": "cfa"}, "CFA"),
        ({"data": np.zeros((9, 9, 3), "u1"), "photometric": "cielab"}, "LAB"),
        (
            {"data": np.full((9, 9), 200.0), "photometric": "minisblack"},
            "from 200 to 200; 0 to 1 would be right",
        ),
        ({"data": np.full((9, 9), -3, "i2"), "photometric": "minisblack"}, "from -3 to -3; 0 to 32767"),
    ],
)
def test_a_tiff_of_another_kind_is_refused(tmp_path, options, said):
    tifffile.imwrite(tmp_path / "other.tif", **options)
    with pytest.raises(InputError, match=said):
        read_photograph(tmp_path / "other.tif")


def test_a_raw_file_s_preview_is_not_its_picture(tmp_path):
    with tifffile.TiffWriter(tmp_path / "camera.nef") as writer:
        writer.write(quantised(TRUTH, "8")[0][::4, ::4], photometric="minisblack", subifds=1)
        writer.write(quantised(TRUTH, "8")[0], photometric="cfa")
    with pytest.raises(InputError, match=r"camera\.nef: only a preview, as of a camera's raw data; JPEG"):
        read_photograph(tmp_path / "camera.nef")


@pytest.mark.parametrize("kind", ["P5", "P6", "Pf"])
def test_other_depths_are_refused(tmp_path, kind):
    header = f"{kind} {WIDTH} {HEIGHT} {'4095' if kind != 'Pf' else '-1.0'}\n"
    (tmp_path / "deep.pnm").write_bytes(header.encode() + bytes(6 * TRUTH.size))
    with pytest.raises(InputError, match=r"deep\.pnm: PPM deeper than 8 bits; PNG or TIFF would be right"):
        read_photograph(tmp_path / "deep.pnm")


@pytest.mark.parametrize("data", [np.zeros((9, 9, 2), "u1"), np.full((9, 9), -3, "i1")])
def test_what_pillow_takes_for_something_else_is_refused(tmp_path, data):
    tifffile.imwrite(tmp_path / "other.tif", data, photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match=r"does not tell what its channels are|from -3 to -3; 0 to 127 would be right"):
        read_photograph(tmp_path / "other.tif")


def test_a_transparent_grey_of_two_bits(tmp_path):
    bits = DISC.astype(np.uint8)
    raw = b"".join(b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, 6:]).tobytes() for row in 2 * bits)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", WIDTH, HEIGHT, 2, 0, 0, 0, 0), b"tRNS": b"\0\2"}
    chunks |= {b"IDAT": zlib.compress(raw), b"IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, part in chunks.items():
        content += struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
    (tmp_path / "key.png").write_bytes(content)
    np.testing.assert_array_equal(read_photograph(tmp_path / "key.png"), np.where(DISC, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("depth", ["10", "12"])
def test_few_greys_of_many_are_told_and_a_white_level_keeps_them(tmp_path, caplog, suffix, depth):
    numbers, file, white = quantised(TRUTH, depth)[0], tmp_path / f"detector{suffix}", 2 ** DEPTHS[depth][1] - 1
    if suffix == ".png":
        Image.fromarray(numbers).save(file)
    else:
        tifffile.imwrite(file, numbers, photometric="minisblack")
    read_photograph(file)
    assert caplog.messages == [
        next(line for line in caplog.messages if f"{file}: " in line and "greys are left" in line)
    ]
    caplog.clear()
    np.testing.assert_allclose(read_photograph(file, white) / 255, TRUTH, atol=0.7 / 255)
    assert not caplog.messages


SEEN = np.ones((12, 20), dtype=bool)
SEEN[:, 5:8] = False


@pytest.mark.parametrize("kind", ["black", "transparent", "both", "bilevel", "sixteen bits"])
def test_masks(tmp_path, kind):
    clear = np.full((*SEEN.shape, 4), 255, np.uint8)
    clear[~SEEN] = (0, 0, 0, 0) if kind == "both" else (255, 255, 255, 0)
    numbers = {"black": 255 * SEEN.astype(np.uint8), "bilevel": SEEN, "sixteen bits": 65535 * SEEN.astype(np.uint16)}
    Image.fromarray(numbers.get(kind, clear)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), SEEN)


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (SEEN.astype(np.uint8), "no pixel is white, 1 at most; 0 for what is missing and 255 for"),
        (SEEN.astype(np.uint16), "1 at most; 0 for what is missing and 65535 for"),
        (np.full(SEEN.shape, 255, np.uint8), "nothing is missing"),
        (np.linspace(0, 255, SEEN.size).reshape(SEEN.shape).astype(np.uint8), "many pixels are grey"),
        (np.dstack([0 * SEEN, 255 * ~SEEN]).astype(np.uint8), "all is black or transparent"),
    ],
)
def test_a_mask_that_says_nothing_is_refused(tmp_path, picture, said):
    Image.fromarray(picture).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=said):
        read_mask(tmp_path / "mask.png")


def test_the_soft_edge_of_a_stroke_is_not_measured(tmp_path):
    soft = np.where(SEEN, 255, 0)
    soft[:, 4], soft[:, 8] = 200, 120
    Image.fromarray(soft.astype(np.uint8)).save(tmp_path / "mask.png")
    expected = SEEN.copy()
    expected[:, [4, 8]] = False
    with pytest.raises(InputError, match="many pixels are grey"):
        read_mask(tmp_path / "mask.png")
    Image.fromarray(np.pad(soft, ((0, 0), (0, 60)), constant_values=255).astype(np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png")[:, :20], expected)


def test_transparent_holes_of_a_photograph_are_told_and_are_its_mask(tmp_path, caplog):
    alpha = np.where(DISC, 0, 255)
    Image.fromarray(np.dstack([quantised(TRUTH, "8")[0], alpha]).astype(np.uint8)).save(tmp_path / "holes.png")
    read_photograph(tmp_path / "holes.png")
    assert f"holes.png: {DISC.mean():.1%} is transparent, and laid on white" in caplog.text
    np.testing.assert_array_equal(read_mask(tmp_path / "holes.png"), ~DISC)


@pytest.mark.parametrize(
    ("depth", "white", "doubted"), [("8", 4095, 1), ("16", 255, 1), ("16", 70000, 0), ("8", 240, 0)]
)
def test_a_white_level_that_does_not_fit_is_doubted(tmp_path, caplog, depth, white, doubted):
    Image.fromarray(quantised(TRUTH, depth)[0]).save(tmp_path / "picture.png")
    read_photograph(tmp_path / "picture.png", white)
    assert caplog.text.count(f"with {white:g} as white; is it another level?") == doubted


def test_the_number_of_pictures_is_told(tmp_path, caplog):
    full = quantised(TRUTH, "8")[0]
    tifffile.imwrite(tmp_path / "a.tif", np.stack([full, 255 - full]), photometric="minisblack")
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.tif"), full)
    assert f"a.tif: holds 2 pictures; the first of the largest is taken, {HEIGHT} × {WIDTH} pixels" in caplog.text
    Image.fromarray(full).save(tmp_path / "a.png", save_all=True, append_images=[Image.fromarray(255 - full)])
    np.testing.assert_array_equal(read_photograph(tmp_path / "a.png"), full)
    assert "a.png: holds several pictures; the first is taken" in caplog.text
