"""Photographs in colour and at full depth, with what their files tell, against other writers and readers."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from genprior.files import InputError
from genprior.photographs import LUMA, read_colours, read_photograph, write_photograph

ROWS, COLUMNS = np.mgrid[:20, :31] / 31
LEVELS = np.stack([COLUMNS, ROWS**2, 1 - ROWS * COLUMNS], 2)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def numbers_of(levels: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(levels * (2**bits - 1)).astype(f"u{bits // 8}", order="C").squeeze()


def write(file, numbers) -> None:
    if file.suffix == ".tif":
        tifffile.imwrite(file, numbers, photometric="rgb" if numbers.ndim == 3 else "minisblack")
    else:
        file.write_bytes(imagecodecs.png_encode(numbers))


def read(file) -> np.ndarray:
    return tifffile.imread(file) if file.suffix == ".tif" else imagecodecs.png_decode(file.read_bytes())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_depth_and_colour_are_kept(tmp_path, suffix, bits, channels):
    source, target = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    numbers = numbers_of(LEVELS[..., :channels], bits)
    write(source, numbers)
    photograph = read_colours(source)
    assert (photograph.bits, photograph.levels.dtype, photograph.levels.shape) == (bits, np.float32, (20, 31, channels))
    np.testing.assert_allclose(photograph.levels.squeeze(), numbers / (2**bits - 1), atol=1e-7)
    for other in (target, tmp_path / "out.png", tmp_path / "out.tif"):
        write_photograph(other, photograph.levels, photograph)
        found = read(other)
        assert found.dtype == numbers.dtype
        np.testing.assert_array_equal(found, numbers)
    write_photograph(tmp_path / "out.jpg", photograph.levels, photograph)
    with Image.open(tmp_path / "out.jpg") as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
        assert np.abs(np.asarray(picture) / 255 - LEVELS[..., :channels].squeeze()).mean() < 3 / 255
    grey = read_photograph(source) / 255
    expected = photograph.levels @ LUMA if channels == 3 else photograph.levels[..., 0]
    np.testing.assert_allclose(grey, expected, atol=1.01 / 255)


def test_equal_channels_palettes_and_cmyk(tmp_path):
    grey = numbers_of(LEVELS[..., 0], 8)
    for name, mode in (("equal.png", "RGB"), ("palette.gif", "P")):
        Image.fromarray(grey).convert(mode).save(tmp_path / name)
        assert read_colours(tmp_path / name).levels.shape == (20, 31, 1)
    picture = Image.fromarray(numbers_of(LEVELS, 8))
    picture.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    picture.quantize(200).save(tmp_path / "palette.png")
    for name in ("cmyk.jpg", "palette.png"):
        found = read_colours(tmp_path / name)
        assert found.bits == 8
        assert np.abs(found.levels - LEVELS).mean() < 3 / 255


def test_transparency_is_laid_on_white_and_a_white_level_scales(tmp_path):
    alpha = np.where(ROWS > 0.3, 1.0, 0.25)[..., None]
    write(tmp_path / "clear.png", numbers_of(np.dstack([LEVELS, alpha]), 16))
    np.testing.assert_allclose(read_colours(tmp_path / "clear.png").levels, LEVELS * alpha + 1 - alpha, atol=2e-4)
    write(tmp_path / "detector.tif", numbers_of(LEVELS, 16) // 16)
    np.testing.assert_allclose(read_colours(tmp_path / "detector.tif", 4095).levels, LEVELS, atol=1 / 4095)
    tifffile.imwrite(tmp_path / "floats.tif", LEVELS.astype(np.float32), photometric="rgb")
    assert read_colours(tmp_path / "floats.tif").bits == 16
    with pytest.raises(InputError, match=r"none\.png: No such file"):
        read_colours(tmp_path / "none.png")


@pytest.mark.parametrize("into", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("source", ["photo.jpg", "photo.png", "photo.tif"])
def test_exif_and_profile_are_kept_upright(tmp_path, source, into):
    """Of a camera held on its side: the picture is turned, and its tag says so no longer."""
    exif = Image.Exif()
    exif[271], exif[306], exif[274] = "Camera Works", "2024:05:06 07:08:09", 6
    exif[34665] = {33434: 0.008, 37386: 50.0, 36867: "2024:05:06 07:08:09", 40962: 31, 40963: 20}
    exif[34853] = {1: "N", 2: (47.0, 22.0, 30.0)}
    whole = Image.Exif()
    whole.load(exif.tobytes())  # which Pillow wants for TIFF
    Image.fromarray(numbers_of(LEVELS, 8)).save(tmp_path / source, exif=whole, icc_profile=PROFILE)
    photograph = read_colours(tmp_path / source)
    assert np.abs(photograph.levels - np.rot90(LEVELS, -1)).mean() < 5 / 255
    write_photograph(tmp_path / f"out{into}", photograph.levels[:9], photograph)
    with Image.open(tmp_path / f"out{into}") as written:
        found = written.getexif()
        assert written.size == (20, 9)
        assert written.info["icc_profile"] == PROFILE
        assert (found[271], found[306], found.get(274, 1)) == ("Camera Works", "2024:05:06 07:08:09", 1)
        taken = found.get_ifd(34665)
        assert (float(taken[33434]), float(taken[37386])) == (0.008, 50.0)
        assert not {40962, 40963} & {*taken}  # the size, which --crop and --scale change
        assert found.get_ifd(34853)[1] == "N"
    grey = photograph.levels[..., :1]
    Image.fromarray(numbers_of(grey, 8)).save(tmp_path / "grey.png", icc_profile=PROFILE)
    assert read_colours(tmp_path / "grey.png").profile == b""  # of colours, which does not fit a grey picture
