"""params.yaml: what is taken, and what is refused in one line that names the key, its value and what would be right."""

import os
import random
import re
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
from conftest import PARAMS, ROOT, at, by_key
from dvc.utils.hydra import apply_overrides  # what `dvc exp run -S` calls
from dvc.utils.serialize import modify_yaml

from genprior.files import InputError
from pipeline.params import check, load_params
from pipeline.tables import read_table

NOISY = {"operator": "identity", "sigma": 0.1}


def refused(values: object) -> str:
    """The line with which values are refused, in words that a terminal can show."""
    with pytest.raises(InputError) as caught:
        check(values, "params.yaml")
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith("params.yaml: ")
    assert len(line) < 700
    return line


EXTREMES = [
    *(("seed", 2**31 - 1), ("threads", 1024), ("network.hidden", [1]), ("network.latent_size", 256)),
    *(("extract_patches.crop", [60, 60, 16, 16]), ("extract_patches.max_patches", 2), ("train_ae.batch_size", None)),
    *(("train_ae.lr", 1), ("problems.denoise.sigma", 1e-3), ("problems.cs_50.measurements", 256)),
    *(("problems.tête", NOISY), ("evaluate.latent_weight", 0), ("baselines.mixture_components", [])),
]


@pytest.mark.parametrize(("key", "value"), EXTREMES)
def test_extremes_are_taken(values, key, value):
    assert check(by_key(values, key, value), "").model_dump().keys() == values.keys()


BAD = [
    ("train_gan.lr", "fast", "train_gan.lr = 'fast': input should be a valid number"),
    ("train_vae.beta", float("nan"), "train_vae.beta = nan"),
    ("train_ae.learning_rate", 0.1, "train_ae.learning_rate is not a parameter"),
    ("sample.a\nb", 1, "sample.a\\nb is not a parameter"),
    ("train_vae.objective", "chapter", "train_vae.noise = 'learned'"),
    ("device", "tpu", "device = 'tpu': input should be 'cpu', 'cuda' or 'auto'"),
    ("network.latent_size", 257, "a patch has 256 pixels"),
    ("extract_patches.patch_size", [64, 128], "extract_patches.patch_size = [64, 128] has 8192 pixels, not 4096"),
    ("extract_patches.validation", ["imgs//standard/./motorcycle_left.png"], "one scene in two splits"),
    ("problems.super_resolution.factor", 5, "problems.super_resolution.factor = 5"),
    ("problems.cs_50.measurements", 257, "problems.cs_50.measurements = 257: a patch has 256 pixels"),
    ("problems.m_10", NOISY, "problems.m_10: the pipeline has another use"),
    ("crossover.measurements", [10, 5], "crossover.measurements = [10, 5]: they must grow"),
    ("report.posterior", "nothing", "report.posterior = 'nothing' is none of problems: denoise, inpaint"),
]


@pytest.mark.parametrize(("key", "value", "said"), BAD)
def test_bad_value_is_refused_in_one_line_that_names_the_key(values, key, value, said):
    assert said in refused(by_key(values, key, value))


def test_a_scene_in_two_splits_is_seen_in_either_form_of_unicode(values):
    values["extract_patches"] |= {"test": ["imgs/f\u00fcr.png"], "scenes": [["imgs/fu\u0308r.png", "imgs//x.png"]]}
    assert "r.png in test, imgs//x.png in train)" in refused(by_key(values, "extract_patches.train", ["imgs/x.png"]))


NUMBERS = [0, 1, -1, 20, 10**18, 2**70, 0.0, 0.5, -1e-9, 1e-300, 1e308, float("nan"), -float("inf")]
TEXTS = ["", "x", "1", "a\nb", "\x1b[31m", "é/ü", "../../etc/passwd", "\ud800", "a" * 5000, b"\x00\xff", "cuda"]
LISTS = [[], [0], [[1]], [1] * 1000, [None], [16, 16], ["imgs/a.png"]]
ODD = [None, True, *NUMBERS, *TEXTS, *LISTS, {}, {"a": 1}, {1: 2}]  # for any leaf


def leaves(values: object, path: tuple = ()) -> list[tuple]:
    """Where the leaves are, list entries and lists themselves among them."""
    entries = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = []
    for key, inner in entries:
        found += [] if isinstance(inner, dict) else [(*path, key)]
        found += leaves(inner, (*path, key))
    return found


def same(found: object, written: object) -> bool:
    """Whether a parameter is what the file says, of its type: no text for a number, no bool for an int."""
    if isinstance(written, dict):
        return all(same(found[key], value) for key, value in written.items())
    if isinstance(written, list):
        return len(found) == len(written) and all(map(same, found, written))
    if isinstance(written, bool) or isinstance(found, bool):
        return found is written
    return found == written and isinstance(found, type(written) if not isinstance(written, int) else int | float)


def test_every_leaf_by_odd_values_is_taken_as_it_is_or_refused_by_name(values):
    draw, taken = random.Random(5), 0
    for path in leaves(values):
        for value in draw.sample(ODD, 6):
            mutant = deepcopy(values)
            at(mutant, path[:-1])[path[-1]] = value
            try:
                params = check(mutant, "params.yaml")
            except InputError:
                assert [key for key in path if isinstance(key, str)][-1] in refused(mutant)
            else:
                assert same(params.model_dump(), mutant), (path, value)
                taken += 1
    assert taken > 50


def test_a_block_that_is_missing_or_misplaced_is_named(values):
    assert "sample.seed is not" in refused(by_key(values, "sample.seed", 0))
    del values["train_vae"]
    assert "train_vae is missing" in refused(values)


def replaced(text: str, old: str, new: str) -> str:
    changed, found = re.subn(old, lambda _: new, text, count=1)
    assert found
    return changed


FINE = {
    "anchor": lambda text: replaced(replaced(text, r"lr: 0\.\d+", "lr: &rate 0.003"), r"lr: 0\.00[^3]\d*", "lr: *rate"),
    "line ends of Windows": lambda text: text.replace("\n", "\r\n"),
    "octal-looking, in YAML 1.2": lambda text: text.replace("seed: 0", "seed: 010"),
    "number as DVC writes it": lambda text: replaced(text, r"lr: 0\.\d+", "lr: 1e-05"),
}


@pytest.mark.parametrize("trick", FINE)
def test_fine_yaml_is_taken(tmp_path, trick):
    (tmp_path / "params.yaml").write_text(FINE[trick](PARAMS.read_text()), newline="")
    params, lr = load_params(tmp_path / "params.yaml"), {"anchor": 0.003, "number as DVC writes it": 1e-5}
    assert params.seed == (10 if "octal" in trick else 0)
    assert params.residual.lr == lr.get(trick, 0.007)


WRONG = {  # in the place of seed's 0, or of the whole file
    "yes": "symmetries = 'yes'",
    "1:30": "seed = '1:30'",
    "": "seed = None",
    "!!python/object/apply:os.system ['true']": "not valid YAML",
    "&self [*self]": "seed = [",
    "0\nseed: 1": "duplicate key",
    "0\n? [1]\n: 2": "(1,) is not a parameter",
}


@pytest.mark.parametrize("value", WRONG)
def test_wrong_yaml_is_refused(tmp_path, value):
    old, new = ("symmetries: true", "symmetries: yes") if value == "yes" else ("seed: 0", f"seed: {value}")
    (tmp_path / "params.yaml").write_text(replaced(PARAMS.read_text(), old, new))
    with pytest.raises(InputError, match=r"params\.yaml: ") as caught:
        load_params(tmp_path / "params.yaml")
    assert WRONG[value] in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b"", b"# nothing\n", b"hello", b"- a\n", b"\x00", b"\xff\xfea\x00", b"a: \xc3", None])
def test_what_is_no_parameter_file_is_refused(tmp_path, data):
    if data is not None:
        (tmp_path / "params.yaml").write_bytes(data)
    with pytest.raises((InputError, OSError), match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


# The form of params.yaml: as DVC writes it, so that an experiment changes the line of its parameter alone


@pytest.fixture
def as_dvc_writes_it(tmp_path) -> Path:
    """A copy of the checkout's params.yaml that went through DVC's own writer."""
    file = Path(shutil.copy(ROOT / "params.yaml", tmp_path))
    with modify_yaml(file):
        pass
    return file


def test_params_file_is_in_dvcs_form(as_dvc_writes_it):
    same = as_dvc_writes_it.read_bytes() == (ROOT / "params.yaml").read_bytes()
    if not same and "CI" not in os.environ:  # whose own run it may be
        pytest.skip("params.yaml is in a form of its own; the first `dvc exp run -S` brings it into DVC's")
    assert same


@pytest.mark.skipif("CI" not in os.environ, reason="the run may be one's own")
def test_no_choice_of_the_committed_run_is_at_the_edge_of_its_grid():
    """But for shrinkage 0, which is none."""
    params, table = load_params(ROOT / "params.yaml"), read_table(ROOT / "metrics")
    settings = params.baselines
    grids = {"tikhonov": settings.tikhonov_weights, "lasso_dct": settings.lasso_weights, "tv": settings.tv_weights}
    at_edge = []
    for chosen in table[table.measure.isin(["weight", "shrinkage"])].itertuples():
        grid = grids.get(chosen.method, settings.mixture_shrinkages)
        grid = params.restore.tv_weights if chosen.constraint == "whole" else grid
        if chosen.value in {min(grid), max(grid)} - {0.0}:
            at_edge.append((chosen.method, chosen.problem, chosen.value))
    assert at_edge == []


def test_an_experiment_changes_the_line_of_its_parameter_alone(as_dvc_writes_it):
    """Whole numbers, others, words, a list's entry, to null and back, and what stands within braces."""
    apply_overrides(as_dvc_writes_it, ["seed=0", "device=cpu", "train_ae.batch_size=9"])  # whatever the run had
    changes = {"seed=7919": "seed: 7919", "train_vae.beta=1e-05": "beta: 1e-05", "device=auto": "device: auto"}
    changes |= {"network.hidden.0=77": "- 77", "evaluate.range.starts=11": "starts: 11"}
    changes |= {"train_ae.batch_size=null": "batch_size:", "train_ae.batch_size=7919": "batch_size: 7919"}
    for change, written in changes.items():
        before = as_dvc_writes_it.read_text().splitlines()
        apply_overrides(as_dvc_writes_it, [change])
        after = as_dvc_writes_it.read_text().splitlines()
        ((old, new),) = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert written in new
        assert old.partition("#")[2] == new.partition("#")[2]
    load_params(as_dvc_writes_it)
