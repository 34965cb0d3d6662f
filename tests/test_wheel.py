"""The library as others install it: the wheel with its priors, in a folder of its own; the checkout with pip's -e."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import small_pipeline
import torch
from conftest import ROOT, runner
from PIL import Image

from genprior.networks import PriorNetwork, save_network

README = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
NOT_IN_THE_LIBRARY = set("dvc jinja2 matplotlib pandas pydantic ruamel skimage sklearn tqdm yaml".split())  # noqa: SIM905


def call(*words: object, cwd: Path, code: int = 0, **environment: str) -> str:
    return runner(cwd)(*map(str, words), code=code, **environment)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that `make wheel` and pip filled from a copy of the checkout with an untrained prior."""
    checkout, target = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("installed")
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE", "genprior"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, checkout / name)
    make = ("make", "--silent", "--old-file=.venv/ready", "wheel")
    assert "make repro" in call(*make, cwd=checkout, code=2)
    torch.manual_seed(0)
    for name in {"svae", *re.findall(r'genprior\.load\("(\w+)"', "".join(README))}:
        save_network(PriorNetwork((8, 8), 3, [8], "silu", "modulated"), checkout / f"data/models/{name}.safetensors")
    before = sorted((checkout / "genprior").rglob("*"))
    call(*make, cwd=checkout)
    assert sorted((checkout / "genprior").rglob("*")) == before
    assert not (checkout / "build").exists()
    (wheel,) = (checkout / "dist").iterdir()
    call(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel, cwd=checkout)
    return target


@pytest.mark.process
def test_wheel_is_complete_and_light(installed, tmp_path):
    """README's example, the command and its models, away from any checkout; nothing of the pipeline's is loaded."""
    beside = {"PYTHONPATH": str(installed)}
    assert {entry.name.split("-")[0] for entry in installed.iterdir()} == {"genprior", "bin"}
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))

    (tmp_path / "example.py").write_text("\n".join(README))
    check = "import json, runpy, sys, torch; before = {*sys.modules}; runpy.run_path('example.py'); "
    check += "print(json.dumps([*({*sys.modules} - before)]))"  # torch itself loads tqdm
    loaded = {name.split(".")[0] for name in json.loads(call(sys.executable, "-c", check, cwd=tmp_path, **beside))}
    assert "genprior" in loaded
    assert not NOT_IN_THE_LIBRARY & loaded

    command = installed / "bin/genprior"
    assert re.fullmatch(r"genprior \d+\.\d+\.\d+\n", call(command, "--version", cwd=tmp_path, **beside))
    call(command, "sample", "--count", 12, "--out", "a/samples.png", cwd=tmp_path, **beside)
    with Image.open(tmp_path / "a/samples.png") as picture:
        assert picture.size == (3 * (10 * 9 - 1), 3 * (2 * 9 - 1))
    assert "there is " in call(command, "sample", "--prior", "nobody", cwd=tmp_path, code=1, **beside)


@pytest.mark.dvc
def test_copy_of_an_experiment_runs_its_own_code_though_another_is_installed(tmp_path):
    """As `pip install -e` leaves it, whose finder maps the package to a checkout where the code is another by now."""
    folder, elsewhere, site = tmp_path / "folder", tmp_path / "elsewhere", tmp_path / "site"
    folder.mkdir()
    run = small_pipeline.begin(folder, repro=False)
    shutil.copytree(folder / "lib", elsewhere / "lib")
    (elsewhere / "lib/code.py").write_text((folder / "lib/code.py").read_text().replace("VERSION = 1", "VERSION = 2"))
    (elsewhere / "pyproject.toml").write_text(
        '[project]\nname = "lib"\nversion = "0"\n[tool.setuptools]\npackages = ["lib"]\n'
    )
    install = ("install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site, "--editable", elsewhere)
    call(sys.executable, "-m", "pip", *install, cwd=tmp_path)
    (site / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(site)!r})")
    beside = {"PYTHONPATH": str(site)}
    where = (sys.executable, "-c", "import lib; print(lib.__file__)")
    assert call(*where, cwd=tmp_path, **beside).strip() == str(elsewhere / "lib/__init__.py")

    run("dvc", "exp", "run", "--temp", "-n", "copy", **beside)
    (found,) = (one["revs"][0]["data"] for one in json.loads(run("dvc", "exp", "show", "--json"))[1]["experiments"])
    assert found["metrics"]["metrics/join.json"]["data"]["join"]["version"] == 1
