"""`make quick`: its sizes against the schema, and its copy, through a pipeline of one stage."""

import sys

import pytest
import yaml
from conftest import PARAMS, ROOT, runner

from genprior.files import InputError
from pipeline.files import flat
from tools import quick

PIPELINE = """\
stages:
  report:
    cmd: python -c "from lib import f; f()"
    deps: [lib.py]
    params: [seed, train_ae, train_vae]
    outs:
      - data/report.html
"""
STAGE = """\
import pathlib, shutil
def f():
    pathlib.Path("data").mkdir(exist_ok=True)
    assert pathlib.Path("imgs/ignored.png").exists()
    shutil.copy("params.yaml", "data/report.html")
"""


def test_sizes_are_of_parameters_that_there_are(tmp_path, values, monkeypatch):
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    monkeypatch.chdir(tmp_path)
    small, sizes = flat(quick.small_params().model_dump()), flat(yaml.safe_load(quick.SIZES.read_text()))
    values = flat(values)
    assert sizes.keys() <= values.keys()
    assert {key for key in values if small[key] != values[key]} <= sizes.keys()
    assert {key: small[key] for key in sizes} == sizes


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ("train_ae: {epochs: 3}", "params.yaml with tools/quick.yaml: train_ae.epochs is not a parameter"),
        ("train_ae: {steps: none}", "params.yaml with tools/quick.yaml: train_ae.steps = 'none': "),
        ("train_ae: 3", "params.yaml with tools/quick.yaml: train_ae = 3: "),
        ("crossover: {measurements: [10, 257]}", "up to the 256 pixels of a patch"),
    ],
)
def test_bad_sizes_are_refused_in_one_line(tmp_path, monkeypatch, sizes, said):
    (tmp_path / "params.yaml").write_text(PARAMS.read_text())
    (tmp_path / "quick.yaml").write_text(sizes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quick, "SIZES", tmp_path / "quick.yaml")
    with pytest.raises(InputError) as caught:
        quick.small_params()
    assert said in str(caught.value)


@pytest.mark.process
def test_it_runs_the_working_tree_and_leaves_a_page_alone(tmp_path):
    folder, temporary = tmp_path / "larger/my project", tmp_path / "temporary"
    temporary.mkdir()
    files = {"dvc.yaml": PIPELINE, "lib.py": "committed", "gone.py": "", "params.yaml": PARAMS.read_text()}
    files |= {".gitignore": (ROOT / ".gitignore").read_text(), "imgs/.gitignore": "ignored.png"}
    files |= {".dvc/config": "[core]\n    remote = storage\n['remote \"storage\"']\n    url = /nowhere\n"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    run = runner(folder)
    run("git", "init", "-q", "..")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "Begin")
    (folder / "lib.py").write_text(STAGE)
    (folder / "gone.py").unlink()
    (folder / "imgs/ignored.png").write_text("")

    before = run("git", "status", "--porcelain")
    environment = {"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    found = run(sys.executable, "-m", "tools.quick", **environment)
    assert found.endswith(f"the page: {folder / 'data/quick.html'}\n")
    settings = yaml.safe_load((folder / "data/quick.html").read_text())
    assert settings["train_ae"]["steps"] < yaml.safe_load(PARAMS.read_text())["train_ae"]["steps"]

    (folder / "lib.py").write_text("def f():\n    raise SystemExit('error: on purpose')\n")
    found = run(sys.executable, "-m", "tools.quick", code=1, **environment)
    assert "error: on purpose" in found
    assert found.endswith("error: the small run failed; the reason stands above\n")
    assert before == run("git", "status", "--porcelain")
    assert not any(temporary.iterdir())
    assert sorted(file.name for file in (folder / ".dvc").iterdir()) == ["config"]
