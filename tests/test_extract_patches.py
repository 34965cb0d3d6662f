import re
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import skimage.data
from conftest import ROOT
from PIL import Image

from genprior.files import InputError, existing
from pipeline.params import SPLITS, ExtractPatches
from pipeline.prepare import split_photographs
from stages import collect_images, extract_patches


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    names = {}
    (tmp_path / "imgs").mkdir()
    for split in SPLITS:
        names[split] = f"imgs/{split}.png"
        Image.fromarray(draw.integers(0, 256, (48, 60), dtype=np.uint8)).save(names[split])

    def build(**changed):
        values = {split: [file] for split, file in names.items()}
        values |= {
            "scenes": [],
            "white_level": None,
            "image_size": None,
            "crop": None,
            "patch_size": [16, 16],
            "stride": 8,
        }
        return ExtractPatches(**(values | {"symmetries": False, "max_patches": 1000} | changed))

    return build


def extracted(settings: ExtractPatches, seed: int) -> dict[str, np.ndarray]:
    """The arrays that the stage writes, and which photograph each test patch is of."""
    folder = Path("data/patches")
    extract_patches.extract(settings, seed, folder)
    rows = pd.read_csv(folder / "photographs.csv")
    owners = np.repeat(np.arange(sum(rows["split"] == "test")), rows.patches[rows["split"] == "test"])
    return {split: np.load(folder / f"{split}.npy") for split in SPLITS} | {"test_photographs": owners}


def test_the_chapters_patches_are_expressible(settings):
    chosen = settings(image_size=[48, 48], crop=[0, 0, 40, 40])
    found = extracted(chosen, 0)["test"]
    picture = np.asarray(Image.open(chosen.test[0]).convert("L").resize((48, 48)))
    expected = [picture[i : i + 16, j : j + 16] for i in range(0, 32, 8) for j in range(0, 32, 8)]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


def test_the_white_level_is_that_of_the_photographs(settings):
    half, whole = (extracted(settings(white_level=level), 0)["test"] for level in (127.5, None))
    np.testing.assert_array_equal(half, np.minimum(2 * whole.astype(int), 255))


def test_cap_is_drawn_with_the_seed(settings):
    chosen = settings(max_patches=5)
    first, again, other = (extracted(chosen, seed)["train"] for seed in (0, 0, 1))
    assert len(first) == 5
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    found = extracted(settings(symmetries=True), 0)  # of training patches alone
    assert len(found["train"]) == 8 * len(found["test"])


def test_the_same_picture_under_two_names_is_refused(settings, tmp_path):
    chosen = settings()
    shutil.copy("imgs/train.png", "imgs/copy.png")
    with pytest.raises(InputError, match="same picture"):
        extracted(chosen.model_copy(update={"test": ["imgs/copy.png"]}), 0)


def test_what_is_not_really_under_imgs_is_refused(settings, tmp_path):
    """DVC sees no change behind a linked folder; a linked file it follows, and its own cache may have one."""
    elsewhere = tmp_path / "Pictures"
    elsewhere.mkdir()
    shutil.move("imgs/test.png", elsewhere / "test.png")
    Path("imgs/mine").symlink_to(elsewhere)
    Path("imgs/loop").symlink_to("loop")
    bad = ["imgs/mine/test.png", str(elsewhere / "test.png"), "Pictures/test.png", "imgs/../Pictures/test.png"]
    for file in [*bad, "imgs/mine/none.png", "/dev/zero", "imgs/.a/b.png", "imgs/.a.png", "imgs/loop/test.png"]:
        with pytest.raises(InputError, match=re.escape(f"{file}: ")) as caught:
            extracted(settings(test=[file]), 0)
        assert ("copy it there" in str(caught.value)) != ("loop" in file)
    Path("imgs/test.png").symlink_to(elsewhere / "test.png")
    expected = extracted(settings(), 0)["test"]
    for file in (str(tmp_path / "imgs/test.png"), "imgs/../imgs/test.png"):
        np.testing.assert_array_equal(extracted(settings(test=[file]), 0)["test"], expected)


@pytest.mark.parametrize(("named", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_the_other_form_of_unicode_are_found(settings, named, written):
    named, written = (unicodedata.normalize(form, "imgs/Fête à Öland/tür.png") for form in (named, written))
    Path(written).parent.mkdir()
    shutil.move("imgs/test.png", written)
    assert not Path(named).exists() or sys.platform == "darwin"
    assert len(extracted(settings(test=[named]), 0)["test"])
    assert existing(Path(named).absolute()).samefile(written)
    for absent in (f"{named}/below", f"{named}.png", "imgs/test.png", "imgs/é\0"):
        assert existing(absent) == Path(absent)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"patch_size": [50, 16]}, "patch_size = [50, 16]"),
        ({"crop": [40, 0, 16, 16]}, "crop = [40, 0, 16, 16]"),
        ({"crop": [0, 0, 8, 8]}, "[8, 8] (height, width) is smaller"),
        ({"image_size": 15}, "patch_size = [16, 16]"),
        ({"stride": 16_384}, "gives one patch"),
    ],
)
def test_what_the_photograph_does_not_hold_is_refused_by_name(settings, changed, said):
    with pytest.raises(InputError, match=rf"train.*{re.escape(said)}"):
        extracted(settings(**changed), 0)


def test_collected_photographs_are_scikit_images(tmp_path):
    with pytest.raises(InputError, match=r"unicorn.*astronaut"):
        collect_images.collect(["camera", "unicorn"], tmp_path / "standard")
    assert not list(tmp_path.iterdir())
    collect_images.collect(["camera", "coffee"], tmp_path / "standard")
    assert sorted(p.name for p in (tmp_path / "standard").iterdir()) == ["camera.png", "coffee.png"]
    for name in ("camera", "coffee"):
        picture = np.asarray(Image.open(tmp_path / "standard" / f"{name}.png"))
        np.testing.assert_array_equal(picture, getattr(skimage.data, name)())


def test_every_photograph_has_its_source_and_licence():
    table = (ROOT / "imgs/README.md").read_text()
    named = {name for line in table.splitlines() if line.startswith("| ") for name in line.split("|")[1].split(", ")}
    assert set(collect_images.PHOTOGRAPHS) <= {name.strip() for name in named}


def test_each_test_patch_knows_its_photograph(settings):
    """Photographs of one grey each, so that a patch's grey says where it is from."""
    files = []
    for number, grey in enumerate((10, 20, 30)):
        files.append(f"imgs/grey_{number}.png")
        picture = np.full((48, 48 + 8 * number), grey, dtype=np.uint8)
        picture[0, 0] = 0
        Image.fromarray(picture).save(files[-1])
    found = extracted(settings(test=files, max_patches=20), 0)
    np.testing.assert_array_equal(found["test"].max((1, 2)), 10 * (found["test_photographs"] + 1))
    assert len(found["test"]) == 20


@pytest.mark.parametrize("most", [1, 7, 100, 1000, 5000])
def test_photographs_give_patches_in_proportion_to_how_many_they_have(most):
    counts = np.random.default_rng(0).integers(1, 100, 40)
    kept = extract_patches.kept_of(counts.tolist(), most)
    assert kept.sum() == min(most, counts.sum())
    assert (kept <= counts).all()
    assert (np.abs(kept - counts * kept.sum() / counts.sum()) < 1).all()


@pytest.fixture
def many(settings):
    """Thirty photographs in ten folders, and settings that name them by a pattern."""
    draw = np.random.default_rng(1)
    for number in range(30):
        file = Path(f"imgs/mine/{number // 3}/{number % 3}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (24, 24), dtype=np.uint8)).save(file)
    return lambda **changed: settings(**({"train": ["imgs/mine/**/*.png"], "validation": 0.2, "test": 0.1} | changed))


def test_shares_of_a_pattern_are_drawn_with_the_seed_whole_folders_at_a_time(many):
    chosen = many(scenes="folders")
    first, again, other = (split_photographs(chosen, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert {split: len(files) for split, files in first.items()} == {"train": 21, "validation": 6, "test": 3}
    every = [f"imgs/mine/{number // 3}/{number % 3}.png" for number in range(30)]
    assert sorted(file for files in first.values() for file in files) == every
    folders = [{Path(file).parent for file in files} for files in first.values()]
    assert sum(map(len, folders)) == len(set.union(*folders)) == 10
    pairs = split_photographs(many(scenes=[[f"imgs/mine/{n}/*.png", f"imgs/mine/{n + 1}/*.png"] for n in (0, 2, 4)]), 1)
    split_of = {Path(file).parent.name: split for split, files in pairs.items() for file in files if "mine" in file}
    assert all(split_of[f"{n}"] == split_of[f"{n + 1}"] for n in (0, 2, 4))
    alone = split_photographs(many(), 0)
    assert {split: len(files) for split, files in alone.items()} == {"train": 21, "validation": 6, "test": 3}
    found = extracted(chosen, 0)
    assert [len(found[split]) for split in SPLITS] == [4 * 21, 4 * 6, 4 * 3]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"train": ["imgs/none/*.png"]}, "train: imgs/none/*.png finds no file"),
        ({"train": ["imgs/mine/0/*.png"], "scenes": "folders"}, "1 scenes in train are too few"),
        ({"test": ["imgs/mine/0/0.png"]}, "imgs/mine/0/0.png: named twice"),
        (
            {"train": ["imgs/mine/0/[1].png"], "validation": ["imgs/mine/1/0.png"], "test": ["imgs/mine/0/0.png"]},
            "imgs/mine/0/1.png in train, imgs/mine/0/0.png in test",
        ),
        (
            {"scenes": [["imgs/mine/0/*.png", "imgs/mine/1/0.png"], ["imgs/mine/1/*.png", "imgs/mine/2/0.png"]]},
            "imgs/mine/1/0.png is in two",
        ),
    ],
)
def test_patterns_that_cannot_be_are_refused(many, changed, said):
    with pytest.raises(InputError, match=re.escape(said)):
        extracted(many(**({"scenes": "folders"} | changed)), 0)
