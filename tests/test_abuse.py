"""Pictures, arrays, models and tables as nobody should make them, and stages at the edge of what parameters may be.

Each input is taken, or refused in one line that names it: no traceback, no warning, no half of an output. Stages run
in this process, between what DVC does: it deletes their outputs before.
"""

import importlib
import io
import json
import os
import random
import shutil
import struct
import sys
import warnings
import zlib
from collections import Counter
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
from genprior.images import read_photograph
from genprior.networks import PriorNetwork, load_network, save_network
from pipeline import tables
from pipeline.files import read_array, write_array
from pipeline.params import ExtractPatches
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


def damaged_pictures(folder: Path) -> list[Path]:
    """Pictures in each format, cut short and with bits flipped."""
    colour = np.random.default_rng(SEED).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    tifffile.imwrite(folder / "deep.tif", colour.astype(np.uint16) * 257, photometric="rgb")
    found = []
    for name in ("png", "jpg", "tif", "lzw.tif", "gif", "bmp", "webp", "ppm", "deep.tif"):
        whole = folder / name
        if name != "deep.tif":
            options = {"compression": "tiff_lzw"} if name == "lzw.tif" else {}
            Image.fromarray(colour).save(whole := folder / f"whole.{name}", **options)
        cuts, flips = damages(whole.read_bytes(), 100)
        for i, content in enumerate(cuts + flips):
            found.append(folder / f"{i}_{whole.name}")
            found[-1].write_bytes(content)
    return found


def fine_pictures(folder: Path) -> list[Path]:
    """What pictures can be beside what tests/test_images.py reads."""
    draw = np.random.default_rng(SEED)
    small, rgb = (Image.fromarray(draw.integers(0, 256, (12, 10, *more), dtype=np.uint8)) for more in ((), (3,)))
    palette, frames = small.convert("P"), {"save_all": True, "append_images": [small.rotate(180)] * 3}
    exifs = [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x"]
    for orientation in (0, 9, 65535):
        exifs.append(rgb.getexif())
        exifs[-1][0x0112] = orientation
    kinds = {
        "CMYK.jpg": (rgb.convert("CMYK"), {}),
        "YCbCr.jpg": (rgb.convert("YCbCr"), {}),
        "PA.webp": (palette.convert("PA").convert("RGBA"), {}),
        "transparent palette.png": (palette, {"transparency": bytes(range(256))}),
        "transparent colour.png": (palette, {"transparency": 3}),
        "jpeg_named.png": (small, {"format": "JPEG"}),
        **{f"frames.{suffix}": (small, frames) for suffix in ("gif", "png", "tif", "webp")},
        **{f"{h}x{w}.png": (small.resize((w, h)), {}) for h, w in ((1, 1), (1, 300), (300, 1), (1, 9000))},
        **{f"exif_{i}.jpg": (rgb, {"exif": exif}) for i, exif in enumerate(exifs)},
        **{
            name: (small, {"format": "PNG"})
            for name in ("none", "a .png", "ü图.png", "a\nb.png", "\x1b[31m.png", "-rf.jpg")
        },
    }
    for name, (picture, options) in kinds.items():
        picture.save(folder / name, **options)
    (folder / "link.png").symlink_to(folder / "none")
    return [folder / name for name in (*kinds, "link.png")]


def header(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of this size whose rows are `rows`, however few they are."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(width: int, height: int) -> bytes:
    """The header of an uncompressed RGB TIFF of 16 bits, deeper than Pillow reads, without its pixels."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 200), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, width * height * 6 % 2**32)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)


NO_PICTURES = {
    "huge.png": header(20_000, 20_000, 8, 2, bytes(100)),
    "wide.png": header(2**30, 1, 8, 2, bytes(100)),
    "no_width.png": header(0, 10, 8, 0, bytes(10)),
    "huge_deep.tif": deep_tiff(20_000, 20_000),
    "deep_without_pixels.tif": deep_tiff(9_000, 9_000),
    "huge.bmp": b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 20_000, 20_000, 1, 24, *[0] * 6),
    "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
    "huge.ppm": b"P6 20000 20000 255\n" + bytes(100),
    "HTML.jpg": b"<!doctype html><title>404</title>",
    "PostScript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "zip.png": b"PK\x03\x04" + bytes(50),
    "zeros.png": bytes(1000),
    "random.png": random.Random(SEED).randbytes(1000),
    "bad line\nfeed.png": b"no picture",
    "bad \x1b[31mred.png": b"no picture",
}


def bad_pictures(folder: Path) -> list[Path]:
    """What is no picture, or none to be read."""
    found = [folder / name for name in NO_PICTURES]
    for file, content in zip(found, NO_PICTURES.values(), strict=True):
        file.write_bytes(content)
    grey = np.arange(120, dtype=np.uint8).reshape(12, 10)
    Image.merge("LAB", [Image.fromarray(grey)] * 3).save(folder / "LAB.tif")  # Pillow turns it into nothing else
    Image.fromarray(-grey.astype(np.int32)).save(folder / "below_zero.tif")
    for name, value in {"nan": np.nan, "infinite": np.inf, "above": 1.5, "below": -0.1}.items():
        Image.fromarray(np.where(grey == 7, value, 0.5).astype(np.float32)).save(folder / f"{name}.tif")
    (folder / "broken_link.png").symlink_to(folder / "nowhere")
    (folder / "self.png").symlink_to(folder / "self.png")
    os.mkfifo(folder / "pipe.png")
    names = ["LAB.tif", "below_zero.tif", "nan.tif", "infinite.tif", "above.tif", "below.tif", "broken_link.png"]
    names += ["self.png", "pipe.png", "missing.png", "x" * 300, "none/below a file.png"]
    return [*found, *(folder / name for name in names), Path("/dev/zero")]


def test_pictures(tmp_path, capfd):
    """Odd ones beside two whole ones through the stage: patches of all three, or a line that names the odd one."""
    damaged = damaged_pictures(tmp_path)
    counts = Counter(outcome(lambda file=file: read_photograph(file), file.name) is not None for file in damaged)
    others = [tmp_path / f"{split}.png" for split in ("validation", "test")]
    for i, file in enumerate(others):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 40), dtype=np.uint8)).save(file)
    settings = {"scenes": [], "image_size": 20, "crop": None, "patch_size": [4, 4], "stride": 4, "symmetries": True}
    settings |= {"validation": [str(others[0])], "test": [str(others[1])], "max_patches": 50}
    for pictures, fine in ((fine_pictures, True), (bad_pictures, False)):
        for file in pictures(tmp_path):
            shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(file))
            names = {"train": ["named below"]} | settings
            odd = ExtractPatches(**names).model_copy(update={"train": [str(file)]})  # params.yaml names no line feeds
            found = outcome(lambda odd=odd: extract_patches.extract(odd, 0), shown)
            assert (found is not None) == fine, file
            counts[fine] += 1
            assert not fine or {split: array.shape[1:] for split, array in found.items()} == dict.fromkeys(
                found, (4, 4)
            )
    assert capfd.readouterr() == ("", "")  # libraries in C and loggers warn there
    assert min(counts.values()) >= 40


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
    others = [
        data + b"\0",
        struct.pack("<Q", 2**60) + data[8:],
        data[:8] + b"x" * length + data[8 + length :],
        b"hello",
    ]
    for content in (*cuts, *others, random.Random(SEED).randbytes(2000)):
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
    assert taken(weights, network.config | {"noise": "pixel"})  # the same weights, read otherwise
    assert not taken(weights, None)
    assert not taken(weights | {"other": torch.zeros(3)})
    for text in ("", "{", "[]", "1", "null", "[" * 100_000, '{"shape": NaN}', "{}", '{"shape": 1e400}'):
        assert not taken(weights, text), text
    for key, values in {
        "latent_size": [0, -1, 3, 1.5, True, "2", None, 10**9, 2**70],
        "shape": [[4], [8, 8], [2, 8, 1], [0, 0], [16_000, 16_000], "44", [4.0, 4.0]],
        "hidden": [[], [0], [4], [3, 3], 3, [16_000] * 16, ["3"]],
        "activation": ["nothing", None, 1],
        "noise": ["pink", 0, None, "constant"],
        "encoder": ["", "none", "plain", None],
        "extra": [1],
    }.items():
        for value in values:
            assert not taken(weights, network.config | {key: value}), (key, value)
    for name in ("coefficients.mean", "code_mean", "decoder.mean.weight", "decoder.log_variance.0.bias"):
        tensor = weights[name]
        others = {key: value for key, value in weights.items() if key != name}
        wrong = [torch.cat([tensor, tensor]), tensor.new_zeros(()), tensor[:0], tensor.double(), tensor.int()]
        wrong += [torch.full_like(tensor, torch.nan), torch.full_like(tensor, torch.inf)]
        assert not taken(others), name
        for value in wrong:
            assert not taken(others | {name: value}), (name, value)


def test_a_model_of_other_patches_is_refused_in_a_line_that_names_both(model):
    with pytest.raises(InputError, match=r"whole\.safetensors: a prior of 4 × 4 patches, and these are 16 × 16"):
        load_network(model, "cpu", (16, 16))


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
    wrong = [claimed("|u1", f"({10**12}, 16, 16)"), claimed("|u1", f"({10**30}, 16, 16)"), claimed("|u1", "(-1, 4, 4)")]
    wrong += [claimed("|u1", "__import__('os')"), claimed("|u1", "(" * 50), claimed("|z9", "(5, 4, 4)")]
    arrays = [np.zeros((5, 4, 4), kind) for kind in (float, np.int8, bool, "U1")]
    arrays += [np.zeros(shape, np.uint8) for shape in ((80,), (), (5, 4, 4, 3), (0, 4, 4), (5, 0, 4), (1, 100, 100))]
    for array in (*arrays, np.array([{}])):
        content = io.BytesIO()
        np.save(content, array)
        wrong.append(content.getvalue())
    for content in (*cuts, *wrong):
        assert not taken(content), content[:200]
    assert outcome(lambda: read_array(tmp_path), tmp_path.name) is None
    for split, side in (("train", 4), ("test", 5)):
        write_array(tmp_path / f"{split}.npy", np.zeros((5, side, side), np.uint8))
    assert outcome(lambda: load_splits(str(tmp_path), "cpu", ("train", "test")), "test.npy") is None


def test_metrics_and_curves_of_the_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("metrics", "data/curves"):
        Path(folder).mkdir(parents=True)
    texts = ["", "{", "[]", "1", "null", "NaN", "[" * 100_000, '{"a": null}', '{"a": "x"}', '{"a": [1]}', "\ufeff{}"]
    texts += ['{"vae": 1}', '{"vae": {"range": 1}}', '{"vae": {"elsewhere": {"blur": {"mse": 1}}}}', '{"a": {"b": {}}']
    texts += ['{"vae": {"range": {"blur": {"mse": {"deeper": 1}}}}}', '{"vae": {"range": {"blur": 2}}}', "\xff\xfe"]
    for text in texts:
        Path("metrics/evaluate_vae.json").write_bytes(text.encode("latin-1" if text == "\xff\xfe" else "utf-8"))
        assert outcome(lambda: tables.read_table("metrics"), "evaluate_vae.json") is None, text
    for text in ("", "\0", "a,b\n1,2\n", "step,kl\n1,x\n", 'step,kl\n"', "step,kl\n1,2,3\n1\n4,5,6,7\n"):
        Path("data/curves/vae.csv").write_text(text)
        assert outcome(lambda: tables.read_curve("vae", ["kl"]), "vae.csv") is None, text


# --- stages -----------------------------------------------------------------------------------------------------------

# Everything at once as small, as narrow or as few as the schema lets it be.
ONE_STEP = {"steps": 1, "batch_size": 1}
LOWEST = {
    "threads": 1,
    "extract_patches": {"patch_size": [2, 2], "image_size": 3, "stride": 1, "symmetries": False},
    "network": {"latent_size": 1, "hidden": [1]},
    "residual": ONE_STEP,
    "train_ae": ONE_STEP,
    "train_vae": ONE_STEP | {"chapter_steps": 1},
    "train_gan": ONE_STEP | {"chapter_steps": 1, "discriminator_hidden": [1], "average": 0},
    "train_discriminative": ONE_STEP | {"hidden": [1]},
    "sample": {"neighbours": 1},
    "problems": {
        "denoise": {"operator": "identity", "sigma": 1e-3},
        "blur": {"operator": "blur", "width": 0.01, "sigma": 1e-3},
        "inpaint": {"operator": "inpaint", "missing": 0.999999, "sigma": 1e-3},
        "super_resolution": {"operator": "downsample", "factor": 2, "sigma": 1e-3},
        "cs_50": {"operator": "gaussian", "measurements": 1, "sigma": 1e-3},
    },
    "evaluate": {"patches": 1, "latent_weight": 0, "posterior_patches": 1}
    | {key: {"starts": 1, "iterations": 1} for key in ("range", "relaxed")},
    "crossover": {"measurements": [1, 2], "patches": 1, "sigma": 1e-3},
    "baselines": {"validation_patches": 1, "mixture_components": [], "mixture_patches": 2, "mixture_iterations": 1}
    | {"mixture_shrinkages": [1]}
    | {f"{name}_weights": [1e-12] for name in ("tikhonov", "lasso", "tv")},
}


def items(name: str) -> list[str]:
    """The priors for which dvc.yaml runs a stage, one after the other; [""] for a stage without."""
    return STAGES[name].get("matrix", {}).get("prior", [""])


RUNS = [  # but for pictures, which take their time
    (name, item) for name in STAGES if name not in ("collect_images", "chapter", "report") for item in items(name)
]


def lowest(values: dict) -> dict:
    """The parameters of `LOWEST`, on three pictures of no size."""
    values = tiny(values)
    for name, block in LOWEST.items():
        values[name] = block if name in ("threads", "problems") else values[name] | block
    for split in extract_patches.SPLITS:
        values["extract_patches"][split] = [f"imgs/{split}.png"]
    return values


def outputs(name: str, item: str = "") -> list[Path]:
    """The outputs of a run by dvc.yaml."""
    outs = (next(iter(out)) if isinstance(out, dict) else out for out in STAGES[name]["outs"])
    return [Path(out.replace("${item.prior}", item)) for out in outs]


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


def test_models_of_other_patches_than_those_that_are_there(values, tmp_path, monkeypatch, end):
    values = lowest(values)
    prepare(tmp_path, values)
    monkeypatch.chdir(tmp_path)
    assert end("extract_patches") == end("train_ae") == ""
    prepare(
        tmp_path,
        by_key(values, "extract_patches.patch_size", [2, 3])
        | {
            "problems": {"denoise": LOWEST["problems"]["denoise"]},
            "report": values["report"] | {"posterior": "denoise"},
        },
    )
    assert end("extract_patches") == ""
    assert "2 × 2 patches" in end("evaluate", "ae")


def test_training_that_diverges_ends_in_a_line_or_whole(values, tmp_path, monkeypatch, end):
    values, lines = lowest(values), []
    prepare(tmp_path, values)
    monkeypatch.chdir(tmp_path)
    assert end("extract_patches") == ""
    for name in ("train_ae", "train_vae", "train_gan", "train_discriminative"):
        for lr in (10.0, 1e6):
            prepare(tmp_path, by_key(by_key(values, f"{name}.lr", lr), f"{name}.steps", 20))
            lines.append(end(name))
    assert all(line == "" or "came out as" in line for line in lines)
    assert "" in lines
    assert any(lines)
