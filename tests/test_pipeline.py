"""dvc.yaml against the code, and the whole pipeline through DVC at tiny size."""

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, ran
from test_borders import reached

from pipeline.files import flat
from pipeline.params import PRIORS, Params

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in STAGES.items()}  # one for each prior


def script_of(name: str) -> Path:
    return ROOT / (STAGES[name]["cmd"].split()[2].replace(".", "/") + ".py")


def runs() -> dict[str, tuple[list[str], list[str]]]:
    """What each run of the pipeline depends on, and what it writes."""
    found = {}
    for name, stage in STAGES.items():
        outs = [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"]]
        for key in PRIORS if "${key}" in stage["cmd"] else [""]:
            paths = [[path.replace("${key}", key) for path in paths] for paths in (stage["deps"], outs)]
            found[f"{name}@{key}".rstrip("@")] = paths
    return found


def rerun(file: str) -> set[str]:
    """The runs that an edit of a file makes DVC repeat, those behind them included."""
    found, changed = set(), [file]
    while changed:
        path = changed.pop()
        for run, (deps, outs) in runs().items():
            inside = [f"{path}/".startswith(f"{dep}/") or f"{dep}/".startswith(f"{path}/") for dep in deps]
            if run not in found and any(inside):
                found.add(run)
                changed += outs
    return found


EVALUATIONS = {f"evaluate@{prior}" for prior in PRIORS}
TRAININGS = {f"train_{prior}" for prior in PRIORS}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("pipeline/pictures.py", {"report"}),
        ("pipeline/classical.py", {"baselines", "restore", "report"}),
        ("pipeline/measures.py", {"sample", "report"}),
        ("genprior/sampling.py", EVALUATIONS | {"live", "report"}),
        ("genprior/splitting.py", {"restore", "report"}),
        (
            "pipeline/training.py",
            TRAININGS | EVALUATIONS | {"train_discriminative", "sample", "restore", "live", "report"},
        ),
        (
            "pipeline/losses.py",
            TRAININGS | EVALUATIONS | {"train_discriminative", "sample", "restore", "live", "report", "chapter"},
        ),
        ("stages/train_gan.py", {"train_gan", "evaluate@gan", "sample", "restore", "live", "report"}),
        ("imgs/mine/a.png", set(runs()) - {"collect_images"}),
    ],
)
def test_an_edit_reruns_what_depends_on_it_and_no_more(file, stages):
    assert rerun(file) == stages


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_what_the_script_reaches(name):
    listed, modules = {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")}, reached(script_of(name))
    files = {f"{module.replace('.', '/')}.py" for module in modules}
    assert listed == files | {"stages/__init__.py", script_of(name).relative_to(ROOT).as_posix()}
    assert ast.parse((ROOT / "pipeline/__init__.py").read_text()).body[1:] == []  # its docstring alone
    # What the package itself hands on, genprior.restore and the like, is seen by no search of imports.
    handed_on = re.compile(
        r"\bgenprior\.(InputError|Plan|Prior|denoise|load|measure|posterior|restore|restore_image)\b"
    )
    for file in listed:
        text = (ROOT / file).read_text()
        assert file == "genprior/views.py" or not handed_on.search(text), file
        if "genprior.views" in modules and "genprior.restoration" not in modules:
            assert ".log_prob(" not in text, file


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_blocks_that_the_script_reads(name):
    """`params.x` in a stage's source and pipeline/evaluation.py, and what set_up takes."""
    read = set()
    for file in {script_of(name).relative_to(ROOT).as_posix(), "pipeline/evaluation.py"} & {*STAGES[name]["deps"]}:
        for node in ast.walk(ast.parse((ROOT / file).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params":
                read.add({"crossover_problems": "crossover"}.get(node.attr, node.attr))
    if name == "report":  # its page prints them all
        read = set(Params.model_fields)
    read &= set(Params.model_fields)
    listed = {param.split(".")[0] for param in STAGES[name]["params"]}
    assert read <= listed
    assert listed - read <= {"seed", "device", "threads", "shards"}


@pytest.mark.dvc
def test_whole_pipeline_through_dvc(workspace):
    folder, run = workspace
    every = (set(STAGES) - {"evaluate"}) | EVALUATIONS
    assert ran(run("dvc", "repro")) == every
    assert ran(run("dvc", "repro")) == set()

    keys = [key for file in (folder / "metrics").glob("*.json") for key in flat(json.loads(file.read_text()))]
    assert len(keys) == len(set(keys))
    page = (folder / "data/report/README.md").read_text()
    for picture in (line.split("](")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")):
        assert (folder / "data/report" / picture).stat().st_size > 1000

    run("git", "add", "-A")
    run("git", "commit", "-qm", "Run")
    # DVC writes this number as 1e-05; a changed weight of a classical method trains and evaluates nothing.
    assert ran(run("dvc", "exp", "run", "-S", "baselines.tv_weights=[0.00001]")) == {"baselines", "report"}
    assert "1e-05" in (folder / "params.yaml").read_text()

    # Bad input ends the stage with one line and leaves no output of it behind.
    (folder / "imgs/broken.png").write_bytes(b"\x89PNG")
    parameters = yaml.safe_load((folder / "params.yaml").read_text())
    parameters["extract_patches"]["test"] = ["imgs/broken.png"]
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
    output = run("dvc", "repro", "extract_patches", code=255)
    assert "error: imgs/broken.png" in output
    assert "Traceback" not in output
    assert not (folder / "data/patches").exists()
