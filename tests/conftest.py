"""What several test modules share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several test processes: one thread each, before torch and NumPy load
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import stages  # noqa: F401, I001  (what it sets has to stand before NumPy loads, as in every stage)
import numpy as np
import pytest
import torch
import yaml

from pipeline.params import PRIORS, Params

ROOT = Path(__file__).parent.parent
PARAMS = Path(__file__).parent / "params.yaml"  # not the checkout's, which may be those of somebody's own run
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


def surroundings(*left_out: str) -> dict[str, str]:
    """This process's environment for commands in a repository of a test: without what speaks of this one's DVC and Git,
    or of their user's settings, such as signed commits, and without what begins with one of `left_out`; the tests' own
    interpreter first on PATH, a name for commits."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DVC", "GIT", *left_out))}
    kept["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    kept |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    kept |= {f"DVC_{kind}_CONFIG_DIR": str(ROOT / "none") for kind in ("GLOBAL", "SYSTEM")}
    return kept | {f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def runner(folder: Path) -> Callable[..., str]:
    """`run(*command, code=0, **environment)` runs a command in a folder and returns all that it prints."""
    base = surroundings("PYTHON", "GENPRIOR")

    def run(*command: str, code: int = 0, **environment: str) -> str:
        done = subprocess.run(
            command, cwd=folder, env=base | environment, text=True, capture_output=True, timeout=600, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture(autouse=True)
def _torch_as_the_stages_set_it():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def draw() -> torch.Generator:
    """What draws random numbers of float64."""
    torch.set_default_dtype(torch.float64)
    return torch.Generator().manual_seed(0)


@pytest.fixture
def values() -> dict:
    """Parameters as plain values, to be changed at will."""
    return yaml.safe_load(PARAMS.read_text())


@pytest.fixture
def params(values) -> Params:
    """The same, checked."""
    return Params.model_validate(values)


@pytest.fixture(scope="session")
def patches() -> torch.Tensor:
    """Smooth random patches, uint8 (600, 1, 8, 8): enough structure to learn in seconds."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:8, 0:8] / 8
    phase, angle, level, contrast = draw.random((4, 600, 1, 1))
    waves = np.sin(2 * np.pi * (rows * np.cos(6 * angle) + columns * np.sin(6 * angle) + phase))
    return torch.from_numpy((255 * (0.2 + 0.6 * level + 0.2 * contrast * waves)).clip(0, 255).astype(np.uint8))[:, None]


def tiny(values: dict) -> dict:
    """Parameters with everything as small as it goes."""
    values["collect_images"]["names"] = ["camera", "coins", "rocket"]
    values["extract_patches"] |= {
        "train": ["imgs/standard/camera.png"],
        "validation": ["imgs/standard/coins.png"],
        "test": ["imgs/standard/rocket.png"],
        "scenes": [],
        "image_size": 64,
        "max_patches": 300,
    }
    values["network"] |= {"latent_size": 3, "hidden": [8]}
    for name in PRIORS:
        values[f"train_{name}"] |= {"steps": 3, "batch_size": 16}
    values["train_gan"]["chapter_steps"] = values["train_vae"]["collapse"]["steps"] = 2
    values["sample"]["count"] = 20
    quick = {"starts": 2, "iterations": 2}
    values["evaluate"] |= {"patches": 8, "range": quick, "relaxed": quick, "solver_patches": 1}
    values["evaluate"] |= {"posterior_patches": 2, "posterior_samples": 20, "likelihood_patches": 2}
    values["residual"] |= {"steps": 3, "batch_size": 16}
    values["evaluate"]["mean_samples"] = 20
    values["crossover"] |= {"measurements": [3, 6], "patches": 4}
    values["latent_weights"]["problem"] = "cs_50"
    values["baselines"] |= {"validation_patches": 8, "tikhonov_weights": [0.1], "lasso_weights": [0.01]}
    values["baselines"] |= {"tv_weights": [0.01], "mixture_components": [2], "mixture_patches": 200}
    values["train_discriminative"] |= {"steps": 3, "batch_size": 16}
    few = {name: values["restore"]["problems"][name] for name in ("denoise_20", "double")}
    values["restore"] |= {"priors": ["vae", "mixture"], "stride": 6, "tv_weights": [8.0], "problems": few}
    values["report"]["pictures"], values["threads"] = 4, 1
    values["problems"] = {name: values["problems"][name] for name in ("denoise", "super_resolution", "cs_50")}
    return values


def at(values: object, path: Iterable) -> object:
    """What nested values hold at a path."""
    for key in path:
        values = values[key]
    return values


def by_key(values: dict, key: str, value: object) -> dict:
    """A copy of nested values with another one under a dotted key."""
    copy, (*blocks, name) = deepcopy(values), key.split(".")
    at(copy, blocks)[name] = value
    return copy


# Not imgs/ nor .dvc/config: photographs, remotes and cache are its user's.
PARTS = ("genprior", "pipeline", "stages", "tools", "docs/metrics.md", "dvc.yaml")
PARTS += (".dvc/.gitignore", ".dvcignore", ".gitignore")
DVC_CONFIG = "[core]\n    analytics = false\n"


def copy_checkout(folder: Path, *parts: str) -> None:
    """Copy what Git has, or would take, of some parts of the checkout."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *parts]
    files = subprocess.run(listed, cwd=ROOT, text=True, capture_output=True, check=True).stdout.split("\0")
    for file in filter(lambda file: (ROOT / file).is_file(), files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, folder / file)


@pytest.fixture
def workspace(tmp_path, values):
    """A repository of its own with the pipeline and tiny parameters; `run` runs a command in it."""
    copy_checkout(tmp_path, ".gitattributes", *PARTS)
    (tmp_path / ".dvc/config").write_text(DVC_CONFIG)
    tiny(values)["extract_patches"]["patch_size"] = [12, 12]  # with scales, an energy costs the cube of its pixels
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    run = runner(tmp_path)
    run("git", "init", "-q")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "Begin")
    return tmp_path, run


def ran(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}
