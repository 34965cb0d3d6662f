"""Pictures, arrays, models and tables as nobody should make them, and stages at the edge of what parameters may be.

Each input is taken, or refused in one line that names it: no traceback, no warning, no half of an output. Stages run
in this process, between what DVC does: it deletes their outputs before.
"""

import importlib
import json
import os
import random
import shutil
import struct
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from conftest import by_key, needs_gpu, tiny
from PIL import Image
from safetensors.torch import save_file
from test_pipeline import STAGES

from genprior.files import InputError
from genprior.networks import PriorNetwork, load_network, save_network
from genprior.photographs import read_photograph
from pipeline.files import read_array, write_array
from pipeline.params import PRIORS
from pipeline.patches import load_patches, load_splits
from pipeline.run import run
from stages import extract_patches

SEED = 5


def outcome(read: Callable[[], object], named: str) -> object:
    """What was read, or None where it was refused with a line that names `named`."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return read()
        except InputError as error:
            line = str(error)
            assert line.isprintable(), line
            assert len(line) < 700, line
            assert named in line, line
            return None


def damages(data: bytes, head: int) -> tuple[list[bytes], list[bytes]]:
    """Data cut short at seven places, and with bits flipped ten times, six of them in the head."""
    draw, flips = random.Random(SEED), []
    for i in range(10):
        flipped = bytearray(data)
        for _ in range(1 + i % 3):
            flipped[draw.randrange(min(len(data), head) if i < 6 else len(data))] ^= 1 << draw.randrange(8)
        flips.append(bytes(flipped))
    return [data[: int(share * len(data))] for share in (0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 0.999)], flips


# --- pictures ---------------------------------------------------------------------------------------------------------

GREY = np.arange(120, dtype=np.uint8).reshape(12, 10)


def damaged_pictures(folder: Path) -> list[Path]:
    """Pictures in each format, cut short and with bits flipped."""
    colour = np.random.default_rng(SEED).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "whole.deep.tif", colour.astype(np.uint16) * 257, photometric="rgb")
    for suffix in ("png", "jpg", "tif", "gif", "webp"):
        Image.fromarray(colour).save(folder / f"whole.{suffix}")
    found = []
    for whole in sorted(folder.glob("whole.*")):
        cuts, flips = damages(whole.read_bytes(), 100)
        for i, content in enumerate(cuts + flips):
            found.append(folder / f"{i}_{whole.name}")
            found[-1].write_bytes(content)
    return found


def fine_pictures(folder: Path) -> list[Path]:
    """What pictures can be beside what tests/test_images.py reads."""
    small, frames = Image.fromarray(GREY), {"save_all": True, "append_images": [Image.fromarray(GREY.T)] * 3}
    kinds = {
        "YCbCr.jpg": (small.convert("RGB").convert("YCbCr"), {}),
        "palette.png": (small.convert("P"), {"transparency": bytes(range(256))}),
        "jpeg_named.png": (small, {"format": "JPEG"}),
        "frames.gif": (small, frames),
        "frames.tif": (small, frames),
        "1x9000.png": (small.resize((9000, 1)), {}),
        "exif.jpg": (small, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"}),
        "none": (small, {"format": "PNG"}),
        "-ü \n \x1b[31m.png": (small, {}),
    }
    for name, (picture, options) in kinds.items():
        picture.save(folder / name, **options)
    (folder / "link.png").symlink_to(folder / "none")
    return [folder / name for name in (*kinds, "link.png")]


def bad_pictures(folder: Path) -> list[Path]:
    """What is no picture, or none to be read."""
    contents = {
        "empty.png": b"",
        "huge.ppm": b"P6 20000 20000 255\n" + bytes(100),
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
        "HTML.jpg": b"<!doctype html><title>404</title>",
        "PostScript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "random.png": random.Random(SEED).randbytes(1000),
        "bad \n \x1b[31mred.png": b"no picture",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.merge("LAB", [Image.fromarray(GREY)] * 3).save(folder / "LAB.tif")  # Pillow turns it into nothing else
    Image.fromarray(-GREY.astype(np.int32)).save(folder / "below_zero.tif")
    for name, value in {"nan": np.nan, "infinite": np.inf, "above": 1.5, "below": -0.1}.items():
        Image.fromarray(np.where(GREY == 7, value, 0.5).astype(np.float32)).save(folder / f"{name}.tif")
    (folder / "self.png").symlink_to(folder / "self.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    names = ["LAB.tif", "below_zero.tif", "nan.tif", "infinite.tif", "above.tif", "below.tif", "self.png"]
    names += ["folder.png", "pipe.png", "missing.png", "x" * 300, "none/below a file.png"]
    return [*(folder / name for name in (*contents, *names)), Path("/dev/zero")]


def test_pictures(tmp_path, capfd, monkeypatch):
    taken = [outcome(lambda file=file: read_photograph(file), file.name) for file in damaged_pictures(tmp_path)]
    assert sum(found is not None for found in taken) > 10
    assert sum(found is None for found in taken) > 40
    for pictures, fine in ((fine_pictures, True), (bad_pictures, False)):
        for file in pictures(tmp_path):
            shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(file))
            assert (outcome(lambda file=file: read_photograph(file), shown) is not None) == fine, file
    monkeypatch.setattr("genprior.photographs.MOST_PIXELS", 100)  # by Pillow and by tifffile
    for name in ("none", "whole.deep.tif"):
        assert outcome(lambda name=name: read_photograph(tmp_path / name), "at most 100 in all") is None
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 10)
    assert outcome(lambda: read_photograph(tmp_path / "none"), "too many pixels; at most 100 in all") is None
    assert capfd.readouterr() == ("", "")  # libraries in C and loggers warn there


# --- models, arrays, tables -------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path) -> Path:
    torch.manual_seed(0)
    save_network(PriorNetwork((4, 4), 2, [3], "silu", "dct", "variational"), tmp_path / "whole.safetensors")
    return tmp_path / "whole.safetensors"


def test_model_files_cut_flipped_or_of_something_else(model, tmp_path):
    data, file = model.read_bytes(), tmp_path / "model.safetensors"
    length = struct.unpack("<Q", data[:8])[0]
    cuts, flips = damages(data, 8 + length)
    others = [data + b"\0", struct.pack("<Q", 2**60) + data[8:], data[:8] + b"x" * length + data[8 + length :]]
    for content in (*cuts, *others, b"hello", random.Random(SEED).randbytes(2000)):
        file.write_bytes(content)
        assert outcome(lambda: load_network(file), file.name) is None
    for content in flips:
        file.write_bytes(content)
        found = outcome(lambda: load_network(file), file.name)
        assert found is None or all(tensor.isfinite().all() for tensor in found.state_dict().values())
    assert outcome(lambda: load_network(tmp_path), tmp_path.name) is None
    assert outcome(lambda: load_network(tmp_path / "missing.safetensors"), "missing.safetensors") is None


def test_model_files_whose_settings_or_weights_do_not_fit(model, tmp_path):
    file, network = tmp_path / "model.safetensors", load_network(model)
    weights = {name: value for name, value in network.state_dict().items() if ".coefficients." not in name}

    def taken(tensors: dict[str, torch.Tensor], config: object = network.config) -> bool:
        text = config if isinstance(config, str) else json.dumps(config)
        save_file(tensors, file, metadata=None if config is None else {"prior": text})
        return outcome(lambda: load_network(file), file.name) is not None

    assert taken(weights)
    assert not taken(weights, None)
    assert not taken(weights | {"other": torch.zeros(3)})
    for text in ("", "{", "[]", "null", "[" * 100_000, '{"shape": NaN}', "{}"):
        assert not taken(weights, text), text
    for key, values in {
        "latent_size": [0, 3, 1.5, True, "2", None, 10**9],
        "shape": [[4], [8, 8], [0, 0], [16_000, 16_000], "44", [4.0, 4.0]],
        "hidden": [[], [4], 3, [16_000] * 16, ["3"]],
        "activation": ["nothing", None],
        "noise": ["pink", None, "constant"],
        "encoder": ["", "none", "plain"],
        "extra": [1],
    }.items():
        for value in values:
            assert not taken(weights, network.config | {key: value}), (key, value)
    for name in ("coefficients.mean", "decoder.mean.weight"):
        tensor = weights[name]
        others = {key: value for key, value in weights.items() if key != name}
        assert not taken(others), name
        for value in (torch.cat([tensor, tensor]), tensor[:0], tensor.double(), torch.full_like(tensor, torch.nan)):
            assert not taken(others | {name: value}), (name, value)


def claimed(kind: str, shape: str) -> bytes:
    """A .npy file of 80 bytes that claims this kind and shape."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(80)


def test_arrays_of_patches(tmp_path):
    file, fine = tmp_path / "patches.npy", claimed("|u1", "(5, 4, 4)")

    def taken(content: bytes) -> bool:
        file.write_bytes(content)
        return outcome(lambda: load_patches(str(file), "cpu"), file.name) is not None

    assert taken(fine)
    cuts, flips = damages(fine, 100)
    for content in flips:
        taken(content)
    wrong = [claimed("|u1", shape) for shape in (f"({10**30}, 16, 16)", "(-1, 4, 4)", "__import__('os')", "(" * 50)]
    arrays = [np.zeros((5, 4, 4), kind) for kind in (float, np.int8, bool, "U1")]
    arrays += [np.zeros(shape, np.uint8) for shape in ((80,), (), (5, 4, 4, 3), (0, 4, 4), (5, 0, 4), (1, 100, 100))]
    for array in (*arrays, np.array([{}])):  # the last one needs pickle
        np.save(file, array)
        wrong.append(file.read_bytes())
    for content in (*cuts, *wrong):
        assert not taken(content), content[:200]
    assert outcome(lambda: read_array(tmp_path), tmp_path.name) is None
    for split, side in (("train", 4), ("test", 5)):
        write_array(tmp_path / f"{split}.npy", np.zeros((5, side, side), np.uint8))
    assert outcome(lambda: load_splits(str(tmp_path), "cpu", ("train", "test")), "test.npy") is None


# --- stages -----------------------------------------------------------------------------------------------------------

# Everything at once as small, as narrow or as few as the schema lets it be, beside what is tiny.
LOWEST = {
    "extract_patches": {"patch_size": [2, 2], "image_size": 8, "stride": 1, "symmetries": False},
    "network": {"latent_size": 1, "hidden": [1]},
    **{key: {"steps": 1, "batch_size": 1} for key in ("residual", "train_ae", "train_vae", "train_svae")},
    "train_gan": {"steps": 1, "batch_size": 1, "discriminator_hidden": [1], "average": 0},
    "train_discriminative": {"steps": 1, "patience": 1, "batch_size": 1, "hidden": [1]},
    "sample": {"neighbours": 1},
    "evaluate": {"patches": 1, "latent_weight": 0, "posterior_patches": 1}
    | {key: {"starts": 1, "iterations": 1} for key in ("range", "relaxed")},
    "crossover": {"measurements": [1, 2], "patches": 1, "sigma": 1e-3},
    "baselines": {"validation_patches": 1, "mixture_components": [], "mixture_patches": 2, "tv_weights": [1e-12]},
    "restore": {"stride": 1, "tv_weights": [1e-12]},
}
PROBLEMS = {
    "denoise": {"operator": "identity", "sigma": 1e-3},
    "blur": {"operator": "blur", "width": 0.01, "sigma": 1e-3},
    "inpaint": {"operator": "inpaint", "missing": 0.999999, "sigma": 1e-3},
    "super_resolution": {"operator": "downsample", "factor": 2, "sigma": 1e-3},
    "cs_50": {"operator": "gaussian", "measurements": 1, "sigma": 1e-3},
}


def items(name: str) -> list[str]:
    """The priors for which dvc.yaml runs a stage, one after the other; [""] for a stage without."""
    return [*PRIORS] if "${key}" in STAGES[name]["cmd"] else [""]


RUNS = [  # but for pictures, which take their time
    (name, item) for name in STAGES if name not in ("collect_images", "chapter", "report") for item in items(name)
]


def lowest(values: dict) -> dict:
    """The parameters of `LOWEST`, on three pictures of no size."""
    values = tiny(values) | {"problems": PROBLEMS}
    for name, block in LOWEST.items():
        values[name] |= block
    for split in extract_patches.SPLITS:
        values["extract_patches"][split] = [f"imgs/{split}.png"]
    return values


def outputs(name: str, item: str = "") -> list[Path]:
    """The outputs of a run by dvc.yaml."""
    outs = (next(iter(out)) if isinstance(out, dict) else out for out in STAGES[name]["outs"])
    return [Path(out.replace("${key}", item)) for out in outs]


@pytest.fixture
def end(monkeypatch):
    """`end(name, item)` runs a stage here: the line that it ends with, "" where it ends well and wrote everything."""

    def run_stage(name: str, item: str = "") -> str:
        for out in outputs(name, item):
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
        monkeypatch.setattr(sys, "argv", [name, *filter(None, [item])])
        line = ""
        try:
            run(importlib.import_module(f"stages.{name}").main)
        except SystemExit as stop:
            line = stop.code
            assert line.startswith("error: ")
            assert line.isprintable()
        assert [out.exists() for out in outputs(name, item)] == [not line] * len(outputs(name, item))
        assert not list(Path().rglob(".part-*"))
        return line

    return run_stage


def prepare(folder: Path, values: dict) -> None:
    (folder / "imgs").mkdir(exist_ok=True)
    for i, split in enumerate(extract_patches.SPLITS):
        picture = np.random.default_rng(i).integers(0, 256, (32, 40), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"imgs/{split}.png")
    (folder / "params.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize("device", ["cpu", pytest.param("auto", marks=needs_gpu)])
def test_stages_at_the_lowest_of_everything_and_on_files_cut_short(values, tmp_path, monkeypatch, end, device):
    prepare(tmp_path, lowest(values) | {"device": device})
    monkeypatch.chdir(tmp_path)
    for name, item in RUNS:
        assert end(name, item) == ""
    prior = items("evaluate")[0]
    spoilt = {  # those first whose stages' outputs others read no more
        "data/patches/test.npy": [("train_discriminative", ""), ("evaluate", prior)],
        f"data/models/{prior}.safetensors": [("evaluate", prior), ("sample", "")],
        "data/patches/train.npy": [("baselines", ""), ("train_ae", "")],
        "imgs/train.png": [("extract_patches", "")],
        "params.yaml": [("extract_patches", ""), ("train_ae", "")],
    }
    for file, runs in spoilt.items():
        whole = Path(file).read_bytes()
        Path(file).write_bytes(whole[:20])
        for name, item in runs:
            assert end(name, item).startswith(f"error: {file}: ")
        Path(file).write_bytes(whole)
    for split in extract_patches.SPLITS:
        write_array(Path(f"data/patches/{split}.npy"), np.zeros((5, 2, 3), np.uint8))
    assert "a prior of 2 × 2 patches, and these are 2 × 3" in end("evaluate", items("evaluate")[1])


def test_training_that_diverges_ends_in_a_line_or_whole(values, tmp_path, monkeypatch, end):
    values, lines = lowest(values), []
    prepare(tmp_path, values)
    monkeypatch.chdir(tmp_path)
    assert end("extract_patches") == ""
    for name in ("train_ae", "train_vae", "train_svae", "train_gan", "train_discriminative"):
        for lr in (10.0, 1e6):
            prepare(tmp_path, by_key(by_key(values, f"{name}.lr", lr), f"{name}.steps", 20))
            lines.append(end(name))
    assert all(line == "" or "came out as" in line for line in lines)
    assert "" in lines
    assert any(lines)
