"""dvc.yaml against the code, and the whole pipeline through DVC at tiny size."""

import ast
import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, ran

from pipeline.params import Params

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def reached(script: Path) -> set[str]:
    """The files of this project that a script imports, directly or not, itself and its packages' first included."""
    found, to_read = set(), [script, script.parent / "__init__.py", ROOT / "pipeline/__init__.py"]
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


def test_package_runs_no_code_that_deps_would_have_to_list():
    tree = ast.parse((ROOT / "genprior/__init__.py").read_text())
    assert {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)} == {"importlib"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_blocks_that_the_script_reads(name):
    """`params.x` in a stage's source and in evaluation.py, and the seed, device and threads that set_up takes."""
    script, read = STAGES[name]["cmd"].split()[2].replace(".", "/") + ".py", set()
    sources = [(ROOT / file).read_text() for file in reached(ROOT / script) & {script, "pipeline/evaluation.py"}]
    for node in ast.walk(ast.parse("\n".join(sources))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params":
            read.add(node.attr)
    read -= {"model_copy", "crossover_problems"}
    if "report" in name:  # its page prints them all
        read = set(Params.model_fields)
    listed = {param.split(".")[0] for param in STAGES[name]["params"]}
    assert read <= listed
    assert listed - read <= {"seed", "device", "threads"}


def test_stages_import_no_stage():
    for script in (ROOT / "stages").glob("*.py"):
        found = {file for file in reached(script) if file.startswith("stages/")}
        assert found == {"stages/__init__.py", f"stages/{script.name}"}


def leaves(values: dict, path: str = "") -> list[str]:
    """Dotted keys of nested metrics."""
    if not isinstance(values, dict):
        return [path]
    return [leaf for key, inner in values.items() for leaf in leaves(inner, f"{path}.{key}")]


def test_committed_metrics_have_unique_keys():
    keys = [key for file in (ROOT / "metrics").glob("*.json") for key in leaves(json.loads(file.read_text()))]
    assert keys
    assert len(keys) == len(set(keys))


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
