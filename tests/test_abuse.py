"""Bad input in numbers: parameter files, pictures, models, arrays and metrics as nobody should make them.

Each is taken or refused in one line that names the file or the key: no traceback, no warning, no hang, no half of an
output. Every test prints how many of its inputs were taken and how many refused. What is taken has to run: at all
extremes at once in-process, and, slowly, each by itself as the processes that DVC starts.
"""

import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
import yaml
from conftest import ROOT, needs_gpu, tiny
from PIL import Image
from safetensors.torch import save_file
from test_pipeline import STAGES

from genprior.files import InputError
from genprior.images import read_photograph
from genprior.networks import Prior, load_network, save_network
from pipeline import tables
from pipeline.files import read_array, write_array
from pipeline.params import ExtractPatches, Params, load_params
from pipeline.patches import load_patches, load_splits
from stages import extract_patches

SEED = 5
SECONDS = 20  # for one input; none needs more than one or two of them where nothing else runs


class Hang(BaseException):
    """No Exception, so that no handler of damaged files takes it for one of theirs."""


@contextmanager
def bounded(seconds: int) -> Iterator[None]:
    def end(*_):
        raise Hang(f"no end after {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(read: Callable[[], object], named: str) -> tuple[str, object]:
    """ "accepted" and what was read, or "refused" and the line that says why, which names `named`."""
    with bounded(SECONDS), warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return "accepted", read()
        except InputError as error:
            line = str(error)
            assert line.isprintable(), line
            assert len(line) < 700, line
            assert named in line, line
            return "refused", line


@pytest.fixture
def tell(request):
    """Print a line of the test's numbers, whatever pytest captures."""

    def say(what: str, counts: Counter, more: str = "") -> None:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            told = ", ".join(f"{counts[name]} {name}" for name in ("accepted", "refused"))
            print(f"\n{sum(counts.values())} {what}: {told}{more}")

    return say


# --- params.yaml ------------------------------------------------------------------------------------------------------

VALUES = [  # for any leaf
    *(None, True, False, 0, 1, -1, 2, 7, 20, 10**6, 10**7, 10**18, 2**70, -(2**31), 0.0, -0.0, 0.5, 1.5, -1e-9, 1e-300),
    *(1e-6, 1e6, 1e308, float("nan"), float("inf"), -float("inf"), "", " ", "x", "1", "nan", "yes", "null"),
    *("a\nb", "\x1b[31m", "é/ü", "../../etc/passwd", "\ud800", "a" * 5000, b"\x00\xff", [], [0], [[1]], [1, 2, 3], {}),
    *([None], {"a": 1}, {1: 2}, [16, 16], [1] * 1000, "cuda", ["imgs/a.png"]),
]


def paths(values: object, path: tuple = ()) -> Iterator[tuple]:
    """Where the leaves are, list entries and lists themselves among them."""
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, inner in entries:
        if not isinstance(inner, dict):
            yield (*path, key)
        yield from paths(inner, (*path, key))


def at(values: object, path: tuple) -> object:
    for key in path:
        values = values[key]
    return values


def changed(values: dict, path: tuple, value: object) -> dict:
    copy = deepcopy(values)
    at(copy, path[:-1])[path[-1]] = value
    return copy


def dumped(values: dict) -> str:
    return yaml.safe_dump(values, allow_unicode=False, sort_keys=False)


def leaf_mutants(values: dict, count: int) -> list[tuple[str, tuple, object]]:
    """Files with one leaf replaced: each leaf in turn, by values in random order."""
    draw = random.Random(SEED)
    leaves, mutants = list(paths(values)), []
    for i in range(count):
        path, value = leaves[i % len(leaves)], draw.choice(VALUES)
        mutants.append((dumped(changed(values, path, value)), path, value))
    return mutants


def block_mutants(values: dict) -> list[str]:
    """Every block missing, emptied, replaced, under a wrong name or inside another; every key twice, one leaf less."""
    draw, texts = random.Random(SEED + 1), []
    for name, block in values.items():
        texts.append(dumped({key: inner for key, inner in values.items() if key != name}))
        texts.append(dumped({(f"{key}s" if key == name else key): inner for key, inner in values.items()}))
        texts.append(dumped(changed(values, (name,), draw.choice(VALUES))))
        texts.append(dumped(values) + dumped({name: block}))
        other = draw.choice([key for key, inner in values.items() if isinstance(inner, dict) and key != name])
        texts.append(dumped(changed(values, (other, name), block)))
    leaves = [path for path in paths(values) if len(path) > 1 and isinstance(path[-1], str)]
    for path in draw.sample(leaves, 25):
        copy = deepcopy(values)
        del at(copy, path[:-1])[path[-1]]
        texts.append(dumped(copy))
        texts.append(dumped(changed(values, (*path[:-1], draw.choice(["lr2", "é", "a b", "", "x" * 300])), 1)))
    return texts


def text_mutants(text: str, count: int) -> list[bytes]:
    """A file with bytes flipped, lines lost, doubled, swapped or moved in."""
    draw, found = random.Random(SEED + 2), []
    for i in range(count):
        lines, kind = text.splitlines(), i % 5
        number = draw.randrange(len(lines))
        if kind == 0:
            del lines[number]
        elif kind == 1:
            lines.insert(number, lines[number])
        elif kind == 2:
            lines[number] = draw.choice([" ", "\t", "  - ", "    ", "? ", "#", "%", "@", "!!int "]) + lines[number]
        elif kind == 3:
            other = draw.randrange(len(lines))
            lines[number], lines[other] = lines[other], lines[number]
        data = bytearray("\n".join(lines).encode())
        if kind == 4:
            for _ in range(draw.choice([1, 3, 20])):
                data[draw.randrange(len(data))] = draw.randrange(256)
        found.append(bytes(data))
    return found


def yaml_tricks(text: str) -> dict[str, bytes]:
    """What YAML makes possible; those named `fine ...` are to be taken, all others refused."""

    def lr(value: str) -> str:
        changed, found = re.subn(r"lr: [\d.]+", lambda _: f"lr: {value}", text, count=1)
        assert found, "params.yaml has no lr left to trick with"
        return changed

    laughs = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n"
    merges = "a0: &a0 {a: 1, b: 2, c: 3, d: 4, e: 5, f: 6, g: 7, h: 8, i: 9, j: 0}\n"
    for i in range(1, 20):
        laughs += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
        merges += f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n"
    symmetries = "symmetries: true"
    tricks = {
        "fine as it is": text,
        "fine anchor": re.sub(r"lr: 0[\d.]+", "lr: *rate", lr("&rate 0.003"), count=1),
        "fine comment at the end": text + "# é\n",
        "fine byte order mark": "\ufeff" + text,
        "fine line ends of Windows": text.replace("\n", "\r\n"),
        "fine explicit start and end": f"---\n{text}...\n",
        "fine number as DVC writes it": lr("1e-05"),
        "fine octal-looking as in YAML 1.2": text.replace("seed: 0", "seed: 010"),
        "fine flow style": json.dumps(yaml.safe_load(text)),
        "fine YAML 1.1": "%YAML 1.1\n---\n" + lr("1e-3").replace(symmetries, "symmetries: yes"),
        "yes": text.replace(symmetries, "symmetries: yes"),
        "on": text.replace(symmetries, "symmetries: on"),
        "sexagesimal": text.replace("seed: 0", "seed: 1:30"),
        "date": lr("2001-01-01"),
        "no date": lr("2001-99-99"),
        "null": lr("null"),
        "nothing": lr(""),
        "nan": lr(".nan"),
        "infinity": lr("-.inf"),
        "overflow": lr("1e400"),
        "many digits": lr("9" * 5000),
        "many digits quoted": lr("'" + "9" * 500_000 + "x'"),
        "many hexadecimal digits": lr("0x" + "f" * 5000),
        "quoted number": lr("'0.003'"),
        "python object": lr("!!python/object/apply:os.system ['true']"),
        "python name": lr("!!python/name:os.system"),
        "unknown tag": lr("!rate 0.003"),
        "wrong bool": lr("!!bool x"),
        "wrong int": lr("!!int x"),
        "wrong float": lr("!!float x"),
        "wrong timestamp": lr("!!timestamp x"),
        "binary": lr("!!binary aGE="),
        "wrong binary": lr("!!binary a"),
        "set": lr("!!set {a, b}"),
        "ordered map": lr("!!omap [a: 1]"),
        "unknown alias": lr("*nowhere"),
        "recursive alias": lr("&self [*self]"),
        "billion laughs": laughs + text,
        "billion laughs in place": laughs + lr("*a19"),
        "billion laughs in the place of a name": laughs + text.replace("operator: identity", "operator: *a19"),
        "merge": lr("0.003").replace("sample:\n", "sample:\n  <<: {count: 30}\n"),
        "billion merges": merges + text,
        "merge of nothing": "<<: 1\n" + text,
        "merge as a value": lr("<<"),
        "two documents": f"{text}---\n{text}",
        "tabs": text.replace("  ", "\t"),
        "tab before a value": lr("\t0.003\n\t"),
        "key twice": text.replace("seed: 0", "seed: 0\nseed: 1"),
        "list as a key": text + "? [1]\n: 2\n",
        "number as a key": text + "1: 2\n",
        "null as a key": text + "~: 2\n",
        "line feed in a key": text + '"a\\nb": 2\n',
        "half a surrogate pair in a key": text + '"\\ud800": 2\n',
        "half a surrogate pair": text.replace("posterior: cs_50", 'posterior: "\\ud800"'),
        "long key": text + f"{'k' * 100_000}: 2\n",
        "wrong YAML version": "%YAML 9.9\n---\n" + text,
        "directive": "%" * 1000,
        "deep lists": "[" * 700,
        "deep blocks": "{a: " * 5000,
        "deep dashes": "- " * 5000,
        "deep keys": "\n".join(" " * i + "k:" for i in range(900)),
        "deep in place": lr("[" * 60 + "]" * 60),
        "many unknown keys": text + "".join(f"k{i}: 1\n" for i in range(300)),
        "10 MB": text + "#" * 10_000_000,
        "10 MB of photographs": "a: [" + "imgs/a.png, " * 900_000 + "]",
        "empty": "",
        "blank": " \n\n",
        "comment alone": "# nothing\n",
        "text alone": "hello",
        "list alone": "- a\n- b\n",
        "number alone": "1",
        "NUL": text[:100] + "\x00" + text[100:],
        "control character": text + "a: \x07\n",
        "HTML": "<!doctype html><p>404",
    }
    found = {name: trick.encode("utf-8", "surrogatepass") for name, trick in tricks.items()}
    found["UTF-16"] = text.encode("utf-16")
    found["UTF-32"] = text.encode("utf-32")
    found["Latin-1"] = (text + "# é\n").encode("latin-1")
    found["half of a character"] = text.encode() + b"\xc3"
    found["random bytes"] = random.Random(SEED).randbytes(3000)
    found["gzip"] = zlib.compress(text.encode())
    return found


# Extremes that a stage would stumble over, or that it can do: key, value, whether it is to be taken.
EXTREMES = [
    ("seed", 2**31 - 1, True),
    ("seed", 2**31, False),
    ("threads", 1024, True),
    ("threads", 10**6, False),
    ("network.hidden", [0], False),
    ("network.hidden", [1], True),
    ("network.hidden", [16_384, 16_384], False),  # 12 GB
    ("network.latent_size", 256, True),
    ("network.latent_size", 257, False),  # a patch has 256 pixels
    ("extract_patches.patch_size", [1, 1], False),
    ("extract_patches.patch_size", [64, 128], False),
    ("extract_patches.stride", 0, False),
    ("extract_patches.stride", 16_384, True),
    ("extract_patches.image_size", 15, False),
    ("extract_patches.crop", [60, 60, 16, 16], True),  # of a picture whose longer side nobody knows yet
    ("extract_patches.crop", [0, 0, 8, 8], False),
    ("extract_patches.max_patches", 1, False),
    ("extract_patches.max_patches", 2, True),
    ("extract_patches.train", ["imgs/a.png", "imgs/a.png"], False),
    ("train_ae.steps", 0, False),
    ("train_ae.steps", 10**18, False),
    ("train_ae.batch_size", 1, True),
    ("train_ae.batch_size", None, True),
    ("train_ae.batch_size", 10**7, False),  # 40 GB
    ("train_ae.lr", 1e6, True),
    ("train_vae.sigma", 1e-300, False),
    ("train_vae.sigma", 1e-4, True),
    ("train_gan.average", 1.0, False),
    ("sample.count", 20_000, False),
    ("problems.denoise.sigma", 1e-300, False),
    ("problems.denoise.sigma", 1e-3, True),
    ("crossover.sigma", 9e-4, False),
    ("problems.blur.width", 1e-300, False),
    ("problems.blur.width", 1e6, False),
    ("problems.cs_50.measurements", 256, True),
    ("problems.cs_50.measurements", 257, False),
    ("problems.likelihood", {"operator": "identity", "sigma": 0.1}, False),  # the report's own names
    ("problems.representation", {"operator": "identity", "sigma": 0.1}, False),
    ("problems.a/b", {"operator": "identity", "sigma": 0.1}, False),
    ("problems.a b", {"operator": "identity", "sigma": 0.1}, False),
    ("problems.été", {"operator": "identity", "sigma": 0.1}, False),
    ("problems.tête", {"operator": "identity", "sigma": 0.1}, True),
    (f"problems.{'a' * 300}", {"operator": "identity", "sigma": 0.1}, False),  # too long for a file's name
    ("evaluate.latent_weight", 0, True),
    ("evaluate.patches", 10**7, True),  # as many as there are
    ("evaluate.posterior_samples", 100_001, False),
    ("evaluate.likelihood_patches", 1, False),  # has no standard error
    ("crossover.measurements", [3, 3], False),
    ("crossover.measurements", [256, 257], False),
    ("baselines.tikhonov_weights", [1e-300], False),
    ("baselines.mixture_components", [2, 2], True),
    ("baselines.mixture_components", [], True),
    ("baselines.mixture_components", [1000], False),  # more than there are patches for
    ("train_discriminative.hidden", [1] * 17, False),
    ("report.posterior", "nothing", False),
    ("report.pictures", 65, False),
]


def small_values() -> dict:
    return tiny(yaml.safe_load((ROOT / "params.yaml").read_text())) | {"threads": 1}


@pytest.fixture
def small() -> dict:
    return small_values()


def by_key(values: dict, key: str, value: object) -> dict:
    return changed(values, tuple(key.split(".")), value)


def same(found: object, written: object) -> bool:
    """Whether a parameter is what the file says, of its type: no text for a number, no bool for an int."""
    if isinstance(written, dict):
        return all(same(found[key], value) for key, value in written.items())
    if isinstance(written, list):
        return len(found) == len(written) and all(map(same, found, written))
    if isinstance(written, bool) or isinstance(found, bool):
        return found is written
    return found == written and isinstance(found, type(written) if not isinstance(written, int) else int | float)


def test_parameter_files(small, tmp_path, tell):
    file, counts = tmp_path / "params.yaml", Counter()

    def load(data: str | bytes, named: str = "params.yaml") -> Params | None:
        file.write_bytes(data if isinstance(data, bytes) else data.encode())
        result, found = outcome(lambda: load_params(file), named)
        counts[result] += 1
        return found if result == "accepted" else None

    for text, path, value in leaf_mutants(small, 260):
        name = [part for part in path if isinstance(part, str)][-1]
        if (params := load(text, name)) is not None:
            assert same(params.model_dump(), changed(small, path, value)), (path, value)
    for text in block_mutants(small):
        assert load(text) is None
    for data in text_mutants(dumped(small), 100):
        load(data)
    tricks = yaml_tricks(dumped(small))
    for name, data in tricks.items():
        assert (load(data) is not None) == name.startswith("fine"), name
    for key, value, fine in EXTREMES:
        assert (load(dumped(by_key(small, key, value))) is not None) == fine, (key, value)

    places = {
        "directory": tmp_path / "d",
        "broken link": tmp_path / "l",
        "pipe": tmp_path / "p",
        "none": tmp_path / "n",
    }
    places["directory"].mkdir()
    places["broken link"].symlink_to(tmp_path / "nowhere")
    os.mkfifo(places["pipe"])
    places["link to itself"] = tmp_path / "self"
    places["link to itself"].symlink_to(tmp_path / "self")
    places["long name"] = tmp_path / ("x" * 300)
    if os.geteuid():  # root may read anything
        places["no permission"] = tmp_path / "closed.yaml"
        places["no permission"].write_text(dumped(small))
        places["no permission"].chmod(0)
    for place in places.values():
        result, _ = outcome(lambda place=place: load_params(place), place.name)
        assert result == "refused"
        counts[result] += 1
    tell("parameter files", counts, "" if os.geteuid() else " (root: one without permission left out)")
    assert sum(counts.values()) >= 500
    assert min(counts.values()) >= 40


# Everything at once as small, as narrow or as few as the schema lets it be.
LOWEST = {
    "threads": 1,
    "extract_patches.patch_size": [2, 2],
    "extract_patches.image_size": 3,
    "extract_patches.stride": 1,
    "extract_patches.symmetries": False,
    "network.latent_size": 1,
    "network.hidden": [1],
    **{f"{name}.steps": 1 for name in ("residual", "train_ae", "train_vae", "train_gan", "train_discriminative")},
    **{f"{name}.batch_size": 1 for name in ("residual", "train_ae", "train_vae", "train_gan", "train_discriminative")},
    "train_vae.chapter_steps": 1,
    "train_gan.chapter_steps": 1,
    "train_gan.discriminator_hidden": [1],
    "train_gan.average": 0,
    "train_discriminative.hidden": [1],
    "sample.neighbours": 1,
    "problems.denoise.sigma": 1e-3,
    "problems.blur": {"operator": "blur", "width": 0.01, "sigma": 1e-3},
    "problems.inpaint": {"operator": "inpaint", "missing": 0.999999, "sigma": 1e-3},
    "problems.super_resolution": {"operator": "downsample", "factor": 2, "sigma": 1e-3},
    "problems.cs_50": {"operator": "gaussian", "measurements": 1, "sigma": 1e-3},
    "evaluate.patches": 1,
    "evaluate.range": {"starts": 1, "iterations": 1},
    "evaluate.relaxed": {"starts": 1, "iterations": 1},
    "evaluate.latent_weight": 0,
    "evaluate.posterior_patches": 1,
    "crossover.measurements": [1, 2],
    "crossover.patches": 1,
    "crossover.sigma": 1e-3,
    "baselines.validation_patches": 1,
    "baselines.tikhonov_weights": [1e-12],
    "baselines.lasso_weights": [1e-12],
    "baselines.tv_weights": [1e-12],
    "baselines.mixture_components": [],
    "baselines.mixture_patches": 2,
    "baselines.mixture_iterations": 1,
    "baselines.mixture_shrinkages": [1],
    "report.pictures": 1,
}
RUNS = (
    ("extract_patches", ()),
    *((f"train_{name}", ()) for name in ("ae", "vae", "gan", "discriminative")),
    ("sample", ()),
    *(("evaluate", (name,)) for name in ("ae", "vae", "gan")),
    ("baselines", ()),
    ("report", ()),
)


def prepare(folder: Path, values: dict) -> None:
    """Three small photographs and the parameters, in the place of a workspace."""
    (folder / "imgs").mkdir(exist_ok=True)
    values = deepcopy(values)
    for i, split in enumerate(extract_patches.SPLITS):
        file = folder / f"imgs/{split}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 40), dtype=np.uint8)).save(file)
        if values["extract_patches"][split] == tiny_file(split):
            values["extract_patches"][split] = [f"imgs/{split}.png"]
    (folder / "params.yaml").write_text(dumped(values))


def tiny_file(split: str) -> list[str]:
    return [f"imgs/standard/{ {'train': 'camera', 'validation': 'coins', 'test': 'rocket'}[split] }.png"]


@pytest.fixture
def lowest(small) -> dict:
    values = deepcopy(small)
    for m in (10, 25, 100):
        del values["problems"][f"cs_{m}"]
    for key, value in LOWEST.items():
        values = by_key(values, key, value)
    return values


@pytest.mark.parametrize("device", ["cpu", pytest.param("auto", marks=needs_gpu)])
def test_stages_run_at_the_lowest_of_everything(lowest, tmp_path, monkeypatch, device):
    prepare(tmp_path, by_key(lowest, "device", device))
    monkeypatch.chdir(tmp_path)
    for name, arguments in RUNS[:-1]:  # pictures take their time
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        importlib.import_module(f"stages.{name}").main()
        assert all(out.exists() for out in outputs(name, arguments))


def test_training_that_diverges_ends_in_a_line_or_whole(lowest, tmp_path, monkeypatch, tell):
    prepare(tmp_path, lowest)
    monkeypatch.chdir(tmp_path)
    extract_patches.main()
    counts = Counter()
    for name in ("train_ae", "train_vae", "train_gan", "train_discriminative"):
        for lr in (10.0, 1e6):
            prepare(tmp_path, by_key(by_key(lowest, f"{name}.lr", lr), f"{name}.steps", 20))
            result, _ = outcome(importlib.import_module(f"stages.{name}").main, "came out as")
            counts[result] += 1
            assert [out.exists() for out in outputs(name, ())] == [result == "accepted"] * len(outputs(name, ()))
            for out in outputs(name, ()):
                out.unlink(missing_ok=True)
    tell("trainings with far too large steps", counts)
    assert min(counts.values()) >= 1


def affected(path: tuple) -> list[tuple[str, tuple[str, ...]]]:
    """The runs that dvc.yaml starts when a parameter changes: those that name it, and those that take from them."""
    key, found, changing = ".".join(map(str, path)) + ".", [], set()
    for name, arguments in RUNS:
        deps = {Path(dep.replace("${item.prior}", "".join(arguments))) for dep in STAGES[name]["deps"]}
        named = any(key.startswith(f"{param}.") or param.startswith(key) for param in STAGES[name]["params"])
        if named or deps & changing:
            found.append((name, arguments))
            changing |= set(outputs(name, arguments))
    return found


def taken(values: dict, folder: Path) -> list[tuple[tuple, object, dict]]:
    """The mutants and extremes that the schema takes and that differ, less those that ask for hours of work."""
    found, file = {}, folder / "candidate.yaml"
    mutants = [(path, value) for _, path, value in leaf_mutants(values, 330)]
    mutants += [(tuple(key.split(".")), value) for key, value, fine in EXTREMES if fine]
    for path, value in mutants:
        candidate = changed(values, path, value)
        file.write_text(dumped(candidate))
        if candidate != values and outcome(lambda: load_params(file), file.name)[0] == "accepted":
            hours = path[-1] in ("steps", "chapter_steps", "iterations", "mixture_iterations") and value > 1000
            if not hours:
                found[path, repr(value)] = path, value, candidate
    return list(found.values())


# --- pictures ---------------------------------------------------------------------------------------------------------


def png_header(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    """A PNG of this size whose rows are `data`, compressed, however few they are."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def whole_pictures(folder: Path) -> list[Path]:
    """One small picture in every format that is read."""
    draw = np.random.default_rng(SEED)
    grey = draw.integers(0, 256, (40, 60), dtype=np.uint8)
    colour = draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    files = {name: folder / f"whole.{name}" for name in ("png", "jpg", "tif", "lzw.tif", "gif", "bmp", "webp", "ppm")}
    Image.fromarray(grey).save(files["png"])
    Image.fromarray(colour).save(files["jpg"])
    Image.fromarray(grey).save(files["tif"])
    Image.fromarray(colour).save(files["lzw.tif"], compression="tiff_lzw")
    for name in ("gif", "bmp", "webp", "ppm"):
        Image.fromarray(grey if name == "gif" else colour).save(files[name])
    files["deep.tif"] = folder / "whole.deep.tif"
    tifffile.imwrite(files["deep.tif"], colour.astype(np.uint16) * 257, photometric="rgb")
    return list(files.values())


def damaged_pictures(folder: Path) -> list[Path]:
    """Each format cut short at six places, and with bytes flipped nine times, most in its first hundred bytes."""
    draw, found = random.Random(SEED), []

    def write(name: str, data: bytes) -> None:
        found.append(folder / name)
        found[-1].write_bytes(data)

    for whole in whole_pictures(folder):
        data = whole.read_bytes()
        for share in (0.0, 0.02, 0.2, 0.5, 0.9, 0.999):
            write(f"cut_{share}_{whole.name}", data[: int(share * len(data))])
        for i in range(9):
            flipped = bytearray(data)
            for _ in range(1 + i % 3):
                flipped[draw.randrange(min(len(data), 100) if i < 6 else len(data))] ^= 1 << draw.randrange(8)
            write(f"flipped_{i}_{whole.name}", bytes(flipped))
    return found


def odd_pictures(folder: Path) -> dict[str, Path]:  # noqa: PLR0915 (a list, in effect)
    """What pictures can be; those named `fine ...` are to be taken, all others refused."""
    draw = np.random.default_rng(SEED)
    grey, colour = draw.integers(0, 256, (12, 10), dtype=np.uint8), draw.integers(0, 256, (12, 10, 3), dtype=np.uint8)
    found = {}

    def place(name: str, suffix: str = "png") -> Path:
        found[name] = folder / f"{name.replace(' ', '_')}.{suffix}"
        return found[name]

    for mode in ("L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "1", "LAB"):
        suffix = "tif" if mode in ("CMYK", "YCbCr", "PA", "LAB") else "png"
        picture = Image.fromarray(colour) if mode in ("CMYK", "YCbCr") else Image.fromarray(grey)
        if mode == "PA":
            picture = picture.convert("P").convert("PA")
        elif mode == "LAB":
            picture = Image.merge("LAB", [picture] * 3)
        else:
            picture = picture.convert("RGB").convert(mode) if mode in ("RGBA", "P") else picture.convert(mode)
        if mode == "YCbCr":
            picture.save(place("fine YCbCr", "jpg"))
        elif mode == "PA":
            picture.convert("RGBA").save(place("fine PA", "webp"))
        else:
            # Pillow turns LAB into nothing else
            picture.save(place(mode if mode == "LAB" else f"fine {mode}", suffix))
    Image.fromarray(colour).convert("CMYK").save(place("fine CMYK JPEG", "jpg"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(place("fine 16 bits"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(place("fine 16 bits TIFF", "tif"))
    Image.fromarray(grey.astype(np.int32) * 65537).save(place("fine 32 bits", "tif"))
    Image.fromarray(-grey.astype(np.int32)).save(place("below zero", "tif"))
    for name, value in {"nan": np.nan, "infinite": np.inf, "above one": 1.5, "below zero float": -0.1}.items():
        Image.fromarray(np.where(grey == grey.max(), value, 0.5).astype(np.float32)).save(place(name, "tif"))
    Image.fromarray((grey / 255).astype(np.float32)).save(place("fine float", "tif"))
    palette = Image.fromarray(grey).convert("P")
    palette.save(place("fine transparent palette"), transparency=bytes(range(256)))
    palette.save(place("fine transparent colour"), transparency=3)
    frames = [Image.fromarray(np.roll(grey, i)) for i in range(4)]
    for name, suffix in {"fine GIF": "gif", "fine APNG": "png", "fine pages": "tif", "fine WebP": "webp"}.items():
        frames[0].save(place(name, suffix), save_all=True, append_images=frames[1:])
    for height, width in ((1, 1), (1, 300), (300, 1), (1, 9000)):
        Image.fromarray(draw.integers(0, 256, (height, width), dtype=np.uint8)).save(place(f"fine {height} x {width}"))

    for orientation in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535):
        picture = Image.fromarray(colour)
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(place(f"fine orientation {orientation}", "jpg"), exif=exif)
    body = Image.fromarray(colour)
    for i, exif in enumerate(
        (b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0II*\0\xff\xff\xff\xff", b"x")
    ):
        body.save(place(f"fine damaged EXIF {i}", "jpg"), exif=exif)

    for name, (width, height) in {
        "huge": (20_000, 20_000),
        "larger": (2**31 - 1, 2**31 - 1),
        "wide": (2**30, 1),
    }.items():
        place(f"{name} header").write_bytes(png_header(width, height, 8, 2, b"\0" * 100))
    place("no width").write_bytes(png_header(0, 10, 8, 0, b"\0" * 10))
    place("no height").write_bytes(png_header(10, 0, 8, 0, b"\0" * 10))
    place("really huge").write_bytes(png_header(20_000, 20_000, 1, 0, bytes(20_000 * 2501)))
    place("huge deep TIFF", "tif").write_bytes(huge_tiff(20_000, 20_000, 16))
    place("large deep TIFF without pixels", "tif").write_bytes(huge_tiff(9_000, 9_000, 16))
    place("huge BMP", "bmp").write_bytes(
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 20_000, 20_000, 1, 24, *[0] * 6)
    )
    place("huge GIF", "gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";")
    place("huge PPM", "ppm").write_bytes(b"P6 20000 20000 255\n" + bytes(100))

    Image.fromarray(grey).save(place("fine JPEG named PNG"), format="JPEG")
    Image.fromarray(grey).save(folder / "fine.jpg", format="PNG")
    found["fine PNG named JPEG"] = folder / "fine.jpg"
    Image.fromarray(grey).save(folder / "no_extension", format="PNG")
    found["fine without extension"] = folder / "no_extension"
    for i, name in enumerate(("with spaces .png", "ünïcödé 图.png", "line\nfeed.png", "\x1b[31mred.png", "-rf.png")):
        Image.fromarray(grey).save(folder / name)
        found[f"fine name {i}"] = folder / name
        (folder / f"bad {name}").write_bytes(b"no picture")
        found[f"name {i}"] = folder / f"bad {name}"
    place("text").write_text("this is no picture")
    place("HTML", "jpg").write_text("<!doctype html><title>404</title>")
    place("SVG", "svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    place("PostScript").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    place("PDF").write_bytes(b"%PDF-1.7\n%%EOF")
    place("pickle").write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.")
    place("zeros").write_bytes(bytes(1000))
    place("random").write_bytes(random.Random(SEED).randbytes(1000))
    place("empty").write_bytes(b"")
    np.save(place("array", "npy"), grey)
    (folder / "npz.png").write_bytes(b"PK\x03\x04" + bytes(50))
    found["zip"] = folder / "npz.png"

    place("directory").mkdir()
    place("broken link").symlink_to(folder / "nowhere")
    place("link to itself").symlink_to(found["link to itself"])
    place("fine link").symlink_to(found["fine L"])
    os.mkfifo(place("pipe"))
    found["device"] = Path("/dev/zero")
    place("missing")
    found["long name"] = folder / ("x" * 300)
    found["below a file"] = found["fine L"] / "x.png"
    if os.geteuid():  # root may read anything
        Image.fromarray(grey).save(place("no permission"))
        found["no permission"].chmod(0)
    return found


def huge_tiff(width: int, height: int, depth: int) -> bytes:
    """The header of an uncompressed RGB TIFF, deeper than Pillow reads, without its pixels."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, depth), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 200), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, width * height * 6 % 2**32)]
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)


def test_pictures(tmp_path, tell, capfd):
    counts, damaged, odd = Counter(), damaged_pictures(tmp_path), odd_pictures(tmp_path)
    capfd.readouterr()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, file in [*((None, file) for file in damaged), *odd.items()]:
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in file.name)
        result, found = outcome(lambda file=file: read_photograph(file), shown)
        counts[result] += 1
        if name is not None:
            assert (result == "accepted") == name.startswith("fine"), (name, found)
        if result == "accepted":
            assert found.dtype == np.uint8
            assert found.ndim == 2
            assert found.size > 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    assert capfd.readouterr() == ("", "")  # libraries in C and loggers warn there
    tell("pictures", counts, "" if os.geteuid() else " (root: one without permission left out)")
    assert sum(counts.values()) >= 200
    assert min(counts.values()) >= 40


def test_pictures_through_the_stage(tmp_path, tell):
    """One odd picture beside two whole ones: patches of all three, or a line and no patches."""
    counts, odd = Counter(), odd_pictures(tmp_path)
    names = [tmp_path / f"{split}.png" for split in extract_patches.SPLITS]
    for i, file in enumerate(names):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 40), dtype=np.uint8)).save(file)
    for name, file in odd.items():
        if not all(c.isprintable() for c in str(file)):
            continue  # params.yaml names no such file
        settings = ExtractPatches(
            train=[str(file)],
            validation=[str(names[1])],
            test=[str(names[2])],
            scenes=[],
            image_size=20,
            crop=None,
            patch_size=[4, 4],
            stride=4,
            symmetries=True,
            max_patches=50,
        )
        result, found = outcome(lambda settings=settings: extract_patches.extract(settings, 0), str(file))
        counts[result] += 1
        assert (result == "accepted") == name.startswith("fine"), (name, found)
        if result == "accepted":
            assert {split: array.shape[1:] for split, array in found.items()} == dict.fromkeys(found, (4, 4))
    tell("pictures through extract_patches", counts)


# --- models, arrays, metrics ------------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path) -> Path:
    torch.manual_seed(0)
    file = tmp_path / "whole.safetensors"
    save_network(Prior((4, 4), 2, [3], "silu", "dct", "variational"), file)
    return file


def damaged_models(model: Path) -> dict[str, Path]:
    """Files in the place of a prior's; those named `fine ...` are to be taken, `perhaps ...` either, others refused."""
    data, found = model.read_bytes(), {}
    prior = load_network(model)
    weights = {name: value for name, value in prior.state_dict().items() if ".coefficients." not in name}
    length, hidden = struct.unpack("<Q", data[:8])[0], prior.config["hidden"][0]

    def write(name: str, content: bytes) -> None:
        found[name] = model.parent / f"{name.replace(' ', '_').replace('/', '-')}.safetensors"
        found[name].write_bytes(content)

    def save(name: str, tensors: dict[str, torch.Tensor], config: object = prior.config) -> None:
        write(name, b"")
        text = config if isinstance(config, str) else json.dumps(config)
        save_file(tensors, found[name], metadata=None if config is None else {"prior": text})

    for share in (0.0, 0.001, 0.1, 0.3, 0.5, 0.9, 0.99):
        write(f"cut at {share}", data[: int(share * len(data))])
    write("one byte short", data[:-1])
    write("one byte more", data + b"\0")
    draw = random.Random(SEED)
    for i in range(24):
        flipped = bytearray(data)
        flipped[draw.randrange(8 + length) if i < 16 else 8 + length + draw.randrange(len(data) - 8 - length)] ^= (
            1 << draw.randrange(8)
        )
        write(f"perhaps flipped {i}", bytes(flipped))
    write("header of 2^60 bytes", struct.pack("<Q", 2**60) + data[8:])
    write("header that is no JSON", data[:8] + b"x" * length + data[8 + length :])
    write("random", draw.randbytes(2000))
    write("text", b"hello")
    write("pickled", b"")
    torch.save(prior.state_dict(), found["pickled"])

    save("fine again", weights)
    save("without settings", weights, None)
    save("another file", {"weight": torch.zeros(3)}, None)
    save("settings alone", {"weight": torch.zeros(3)})
    bad = ["", "{", "[]", "1", "null", "[" * 100_000, '{"shape": NaN}', "{}", '{"shape": 1e400}']
    for i, text in enumerate(bad):
        save(f"settings {i}", weights, text)
    for key, values in {
        "latent_size": [0, -1, prior.latent_size + 1, 1.5, True, "2", None, 10**4, 10**9, 2**70],
        "shape": [[4], [8, 8], [2, 8, 1], [0, 0], [16_000, 16_000], "44", [4.0, 4.0]],
        "hidden": [[], [0], [hidden + 1], [hidden, hidden], hidden, [16_000] * 16, ["3"]],
        "activation": ["nothing", None, 1],
        "noise": ["pink", 0, None, "constant"],
        "encoder": ["", "none", "plain", None],
        "extra": [1],
    }.items():
        for i, value in enumerate(values):
            save(f"{key} {i}", weights, prior.config | {key: value})
    save("fine other basis", weights, prior.config | {"noise": "pixel"})  # the same weights, read otherwise
    for name in ("coefficients.mean", "code_mean", "decoder.mean.weight", "decoder.log_variance.0.bias"):
        tensor = weights[name]
        others = {key: value for key, value in weights.items() if key != name}
        save(f"without {name}", others)
        for kind, wrong in {
            "longer": torch.cat([tensor, tensor]),
            "a number": tensor.new_zeros(()),
            "no numbers": tensor[:0],
            "half": tensor.half(),
            "double": tensor.double(),
            "integers": tensor.int(),
            "nan": torch.full_like(tensor, torch.nan),
            "infinite": torch.where(torch.arange(tensor.numel()).reshape(tensor.shape) == 1, torch.inf, tensor),
        }.items():
            save(f"{kind} {name}", others | {name: wrong.contiguous()})
    save("one more", weights | {"other": torch.zeros(3)})
    found["directory"] = model.parent / "directory.safetensors"
    found["directory"].mkdir()
    found["broken link"] = model.parent / "link.safetensors"
    found["broken link"].symlink_to(model.parent / "nowhere")
    found["missing"] = model.parent / "missing.safetensors"
    return found


def test_model_files(model, tell):
    counts, files = Counter(), damaged_models(model)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, file in files.items():
        result, found = outcome(lambda file=file: load_network(file), file.name)
        counts[result] += 1
        if not name.startswith("perhaps"):
            assert (result == "accepted") == name.startswith("fine"), (name, found)
        if result == "accepted":
            assert all(tensor.isfinite().all() for tensor in found.state_dict().values()), name
            assert found.sample(2, torch.Generator(), residual=False).shape == (2, 1, 4, 4)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    tell("model files", counts)
    assert sum(counts.values()) >= 40


def test_a_model_of_other_patches_is_refused_in_a_line_that_names_both(model):
    with pytest.raises(InputError, match=r"whole\.safetensors: a prior of 4 × 4 patches, and these are 16 × 16"):
        load_network(model, "cpu", (16, 16))
    assert load_network(model, "cpu", (4, 4)).shape == (4, 4)


def test_arrays_of_patches(tmp_path, tell):
    whole, counts = tmp_path / "whole.npy", Counter()
    write_array(whole, np.zeros((5, 4, 4), np.uint8))
    data, contents = whole.read_bytes(), {}
    for size in (0, 5, 9, 20, 100, 128, len(data) - 1):
        contents[f"cut at {size}"] = data[:size]
    header = "{{'descr': '{}', 'fortran_order': False, 'shape': {}, }}"

    def claimed(kind: str, shape: str) -> bytes:
        text = header.format(kind, shape).ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + bytes(80)

    contents |= {
        "fine": claimed("|u1", "(5, 4, 4)"),
        "huge": claimed("|u1", "(1000000000000, 16, 16)"),
        "larger": claimed("|u1", f"({10**30}, 16, 16)"),
        "negative": claimed("|u1", "(-1, 4, 4)"),
        "no shape": claimed("|u1", "nothing"),
        "deep": claimed("|u1", "(" * 50 + ")" * 50),
        "no kind": claimed("|z9", "(5, 4, 4)"),
        "objects": claimed("|O", "(5, 4, 4)"),
        "code": claimed("|u1", "__import__('os')"),
        "text": b"hello",
    }
    for seed in range(12):
        draw, flipped = random.Random(seed), bytearray(data)
        flipped[draw.randrange(100)] ^= 1 << draw.randrange(8)
        contents[f"perhaps flipped {seed}"] = bytes(flipped)
    arrays = {
        "floats": np.zeros((5, 4, 4)),
        "signed": np.zeros((5, 4, 4), np.int8),
        "bool": np.zeros((5, 4, 4), bool),
        "strings": np.zeros((5, 4, 4), "U1"),
        "flat": np.zeros(80, np.uint8),
        "number": np.uint8(1),
        "colour": np.zeros((5, 4, 4, 3), np.uint8),
        "none": np.zeros((0, 4, 4), np.uint8),
        "no pixels": np.zeros((5, 0, 4), np.uint8),
        "large pixels": np.zeros((1, 100, 100), np.uint8),
    }
    for name, array in arrays.items():
        write_array(tmp_path / "array.npy", array)
        contents[name] = (tmp_path / "array.npy").read_bytes()
    with open(tmp_path / "several.npy", "wb") as file:
        np.savez(file, a=np.zeros((5, 4, 4), np.uint8))
    contents["several"] = (tmp_path / "several.npy").read_bytes()
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    contents["pickled"] = (tmp_path / "pickled.npy").read_bytes()
    for name, content in contents.items():
        (tmp_path / "patches.npy").write_bytes(content)
        result, found = outcome(lambda: load_patches(str(tmp_path / "patches.npy"), "cpu"), "patches.npy")
        counts[result] += 1
        if not name.startswith("perhaps"):
            assert (result == "accepted") == (name == "fine"), (name, found)
    assert outcome(lambda: read_array(tmp_path), tmp_path.name)[0] == "refused"
    for split, side in (("train", 4), ("test", 5)):
        write_array(tmp_path / f"{split}.npy", np.zeros((5, side, side), np.uint8))
    assert outcome(lambda: load_splits(str(tmp_path), "cpu", ("train", "test")), "test.npy")[0] == "refused"
    tell("arrays of patches", counts)


def test_metrics_and_curves_of_the_report(tmp_path, monkeypatch, tell):
    monkeypatch.chdir(tmp_path)
    counts = Counter()
    Path("metrics").mkdir()
    Path("data/curves").mkdir(parents=True)
    texts = ["", "{", "[]", "1", "null", "NaN", "[" * 100_000, '{"a": null}', '{"a": "x"}', '{"a": [1]}', "\ufeff{}"]
    texts += ['{"vae": 1}', '{"vae": {"range": 1}}', '{"vae": {"elsewhere": {"blur": {"mse": 1}}}}', '{"a": {"b": {}}']
    texts += ['{"vae": {"range": {"blur": {"mse": {"deeper": 1}}}}}', '{"vae": {"range": {"blur": 2}}}', "\xff\xfe"]
    for text in texts:
        Path("metrics/evaluate_vae.json").write_bytes(text.encode("latin-1" if text == "\xff\xfe" else "utf-8"))
        result, _ = outcome(lambda: tables.read_table("metrics"), "evaluate_vae.json")
        assert result == "refused", text
        counts[result] += 1
    for text in ("", "\0", "a,b\n1,2\n", "step,kl\n1,x\n", 'step,kl\n"', "step,kl\n1,2,3\n1\n4,5,6,7\n"):
        Path("data/curves/vae.csv").write_text(text)
        result, _ = outcome(lambda: tables.read_curve("vae", ["kl"]), "vae.csv")
        assert result == "refused", text
        counts[result] += 1
    tell("metrics and curves", counts)


# --- as the processes that DVC starts ---------------------------------------------------------------------------------


def outputs(name: str, arguments: tuple[str, ...]) -> list[Path]:
    """The outputs of a run by dvc.yaml."""
    outs = (next(iter(out)) if isinstance(out, dict) else out for out in STAGES[name]["outs"])
    return [Path(out.replace("${item.prior}", "".join(arguments))) for out in outs]


def process(folder: Path, name: str, arguments: tuple[str, ...] = ()) -> str | None:
    """Run a stage as DVC does, its outputs deleted: None where it ends well, else the one line that it ends with."""
    for out in (folder / out for out in outputs(name, arguments)):
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    there = [str(out) for out in outputs(name, arguments) if (folder / out).exists()]
    assert not [file for file in folder.rglob(".*") if file.is_file()]  # a file that is not whole yet
    if done.returncode == 0:
        assert len(there) == len(outputs(name, arguments)), there
        return None
    assert done.returncode == 1, done.stderr
    assert not there, (there, done.stderr)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.stderr.endswith(line + "\n")
    return line


@pytest.mark.process
def test_extract_patches_as_a_process(small, tmp_path):
    prepare(tmp_path, small)
    assert process(tmp_path, "extract_patches") is None
    (tmp_path / "imgs/train.png").write_bytes((tmp_path / "imgs/train.png").read_bytes()[:200])
    assert process(tmp_path, "extract_patches").startswith("error: imgs/train.png: ")
    prepare(tmp_path, by_key(small, "extract_patches.stride", 0))
    assert process(tmp_path, "extract_patches").startswith("error: params.yaml: extract_patches.stride = 0: ")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A workspace in which every stage ran once."""
    folder = tmp_path_factory.mktemp("base")
    prepare(folder, small_values())
    for name, arguments in RUNS:
        assert process(folder, name, arguments) is None
    return folder


def follow(base: Path, work: Path, values: dict, runs: Iterable, spoil: Callable[[], object] = lambda: None) -> str:
    """Runs in a copy of a workspace that was spoilt: the line that one of them ends with, "" where all end well."""
    if work.exists():
        shutil.rmtree(work)
    shutil.copytree(base, work)
    prepare(work, values)
    spoil()
    return next((line for name, arguments in runs if (line := process(work, name, arguments)) is not None), "")


@pytest.mark.slow
def test_parameters_through_stages_as_processes(base, small, lowest, tmp_path, tell):
    draw, work, counts = random.Random(SEED), tmp_path / "work", Counter()
    assert follow(base, work, lowest, RUNS) == ""
    for path, _, values in draw.sample(taken(small, tmp_path), 8):
        counts["refused" if follow(base, work, values, affected(path)) else "accepted"] += 1
    for text, *_ in draw.sample(leaf_mutants(small, 330), 8):
        (tmp_path / "mutant.yaml").write_text(text)
        if outcome(lambda: load_params(tmp_path / "mutant.yaml"), "mutant.yaml")[0] == "refused":
            spoil = lambda text=text: (work / "params.yaml").write_text(text)  # noqa: E731
            line = follow(base, work, small, [("extract_patches", ())], spoil)
            assert line.startswith("error: params.yaml: ")
            counts["refused"] += 1
    tell("parameter files through stages as processes", counts)
    assert min(counts.values()) >= 3


@pytest.mark.slow
def test_files_through_stages_as_processes(base, small, tmp_path, tell):
    draw, work, counts = random.Random(SEED), tmp_path / "work", Counter()

    def check(line: str, fine: bool, said: str) -> None:
        assert (line == "") if fine else line.startswith("error: ") and said in line, (said, line)
        counts["accepted" if fine else "refused"] += 1

    (tmp_path / "odd").mkdir()
    for name, file in draw.sample(sorted(odd_pictures(tmp_path / "odd").items()), 12):
        if str(file).isprintable():
            values = by_key(by_key(small, "extract_patches.train", [str(file)]), "extract_patches.image_size", 32)
            check(follow(base, work, values, [("extract_patches", ())]), name.startswith("fine"), str(file))

    def overwrite(target: str, data: bytes, run: tuple[str, tuple[str, ...]]) -> str:
        return follow(base, work, small, [run], lambda: (work / target).write_bytes(data))

    target = "data/models/vae.safetensors"
    models = damaged_models(Path(shutil.copy(base / target, tmp_path / "whole.safetensors")))
    models = {
        name: file for name, file in models.items() if file.is_file() and not name.startswith(("fine", "perhaps"))
    }
    for name in draw.sample(sorted(models), 6):
        check(overwrite(target, models[name].read_bytes(), ("evaluate", ("vae",))), False, target)
    other = by_key(small, "extract_patches.patch_size", [8, 8])
    other["problems"] = {"denoise": other["problems"]["denoise"]}
    other["report"]["posterior"] = "denoise"
    check(follow(base, work, other, [("extract_patches", ()), ("evaluate", ("vae",))]), False, "16 × 16")
    for target, run in {
        "data/patches/train.npy": ("train_ae", ()),
        "data/patches/test.npy": ("baselines", ()),
        "data/reconstructions/vae_mean.npy": ("report", ()),
        "data/samples/real.npy": ("report", ()),
        "data/curves/vae.csv": ("report", ()),
        "metrics/sample.json": ("report", ()),
        "metrics/train_vae.json": ("report", ()),
    }.items():
        # of the curve, a header's middle is the end
        check(overwrite(target, (base / target).read_bytes()[:20], run), False, target)
    tell("files through stages as processes", counts)
    assert counts["refused"] >= 15
