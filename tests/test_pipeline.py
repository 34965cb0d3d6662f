"""dvc.yaml against the code, and the whole pipeline through DVC at tiny size."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def reached(script: Path) -> set[str]:
    """The files of this project that a script imports, directly or not, itself included."""
    found, to_read = set(), [script]
    while to_read:
        file = to_read.pop()
        if file in found:
            continue
        found.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            candidates = [ROOT / (name.replace(".", "/") + ".py") for name in names]
            to_read += [candidate for candidate in candidates if candidate.is_file()]
    return {file.relative_to(ROOT).as_posix() for file in found}


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_what_the_script_reaches(name):
    script = STAGES[name]["cmd"].split()[2]
    listed = {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")}
    assert listed == reached(ROOT / (script.replace(".", "/") + ".py"))


def test_packages_run_no_code_that_deps_would_have_to_list():
    for package in ("genprior", "stages"):
        body = ast.parse((ROOT / package / "__init__.py").read_text()).body
        assert all(isinstance(node, ast.Expr) for node in body)


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_blocks_that_the_script_reads(name):
    """`params.x` in a stage's source, and the seed, device and threads that set_up takes."""
    script = ROOT / (STAGES[name]["cmd"].split()[2].replace(".", "/") + ".py")
    source = ast.parse(script.read_text())
    read = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params":
            read.add(node.attr)
    read -= {"model_copy", "crossover_problems"}
    listed = {param.split(".")[0] for param in STAGES[name]["params"]}
    assert read <= listed
    assert listed - read <= {"seed", "device", "threads"}


def test_stages_import_no_stage():
    for script in (ROOT / "stages").glob("*.py"):
        assert not {file for file in reached(script) if file.startswith("stages/")} - {f"stages/{script.name}"}


def leaves(values: dict, path: str = "") -> list[str]:
    """Dotted keys of nested metrics."""
    if not isinstance(values, dict):
        return [path]
    return [leaf for key, inner in values.items() for leaf in leaves(inner, f"{path}.{key}")]


def test_committed_metrics_have_unique_keys():
    keys = [key for file in (ROOT / "metrics").glob("*.json") for key in leaves(json.loads(file.read_text()))]
    assert keys
    assert len(keys) == len(set(keys))


def tiny(values: dict) -> dict:
    """The committed parameters with everything as small as it goes."""
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
    for name in ("train_ae", "train_vae", "train_gan"):
        values[name] |= {"steps": 3, "batch_size": 16}
    values["train_gan"]["chapter_steps"] = values["train_vae"]["chapter_steps"] = 2
    values["sample"]["count"] = 20
    quick = {"starts": 2, "iterations": 2}
    values["evaluate"] |= {"patches": 8, "range": quick, "relaxed": quick, "solver_patches": 1}
    values["evaluate"] |= {"posterior_patches": 2, "posterior_samples": 20, "likelihood_patches": 2}
    values["residual"] |= {"steps": 3, "batch_size": 16}
    values["evaluate"]["mean_samples"] = 20
    values["crossover"] |= {"measurements": [3, 6], "patches": 4}
    values["baselines"] |= {"validation_patches": 8, "tikhonov_weights": [0.1], "lasso_weights": [0.01]}
    values["baselines"] |= {"tv_weights": [0.01], "mixture_components": [2], "mixture_patches": 200}
    values["train_discriminative"] |= {"steps": 3, "batch_size": 16}
    values["report"]["pictures"] = 4
    return values


@pytest.fixture
def workspace(tmp_path, values):
    """A repository of its own with this code and tiny parameters; `run` runs a command in it."""
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    ).stdout.split()
    for file in files:
        if not file.startswith(("data/", "metrics/")) and file != "dvc.lock" and (ROOT / file).is_file():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny(values)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC", "GIT"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    identity = {
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@t",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@t",
    }

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment | identity, text=True, capture_output=True, timeout=300, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("git", "init", "-q")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "Begin")
    return tmp_path, run


def ran(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    return {line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")}


@pytest.mark.dvc
def test_whole_pipeline_through_dvc(workspace):
    folder, run = workspace
    every = (set(STAGES) - {"evaluate"}) | {f"evaluate@{prior}" for prior in ("ae", "vae", "gan")}
    assert ran(run("dvc", "repro")) == every
    assert ran(run("dvc", "repro")) == set()

    keys = [key for file in (folder / "metrics").glob("*.json") for key in leaves(json.loads(file.read_text()))]
    assert len(keys) == len(set(keys))
    page = (folder / "data/report/README.md").read_text()
    for picture in (line.split("](")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")):
        assert (folder / "data/report" / picture).stat().st_size > 1000

    run("git", "add", "-A")
    run("git", "commit", "-qm", "Run")
    # DVC writes this number as 1e-05; a changed weight of the latent prior retrains nothing.
    output = run("dvc", "exp", "run", "-S", "evaluate.latent_weight=0.00001")
    assert ran(output) == {"evaluate@ae", "evaluate@vae", "evaluate@gan", "baselines", "report"}
    assert "latent_weight: 1e-05" in (folder / "params.yaml").read_text()

    # Bad input ends the stage with one line and leaves no output of it behind.
    (folder / "imgs/broken.png").write_bytes(b"\x89PNG")
    parameters = yaml.safe_load((folder / "params.yaml").read_text())
    parameters["extract_patches"]["test"] = ["imgs/broken.png"]
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
    output = run("dvc", "repro", "extract_patches", code=255)
    assert "error: imgs/broken.png" in output
    assert "Traceback" not in output
    assert not (folder / "data/patches").exists()
