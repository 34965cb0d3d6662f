"""A run of one's own, with other parameters, photographs and results, turns no test red."""

import json
import shutil
import sys

import pytest
import yaml
from conftest import copy_checkout, runner, tiny
from PIL import Image
from test_report import write_run

from pipeline.params import Params

# The files whose tests read the checkout beside its code; the others start from tests/params.yaml.
READERS = [f"tests/test_{name}.py" for name in ("docs", "params", "pipeline")]
READERS += ["tests/test_report.py::test_metrics_of_the_last_run_are_in_the_registry"]


@pytest.mark.process
def test_tests_pass_beside_a_run_of_ones_own(tmp_path, values, monkeypatch):
    monkeypatch.delenv("CI", raising=False)  # there a run is no one's own
    copy_checkout(tmp_path)
    for name in ("metrics", "data", "imgs/mine"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    (tmp_path / "dvc.lock").unlink()
    with (tmp_path / ".dvc/config").open("a") as config:
        config.write("[cache]\n    type = symlink\n['remote \"storage\"']\n    url = /nowhere\n")

    values = json.loads(json.dumps(tiny(values))) | {"seed": 7, "device": "auto"}
    values["problems"] = {"grain": values["problems"]["denoise"], "few": values["problems"]["cs_50"]}
    values["report"]["posterior"] = values["latent_weights"]["problem"] = "few"
    values["extract_patches"] |= {"patch_size": [8, 16], "train": ["imgs/mine/è.png"], "image_size": [40, 50]}
    values["train_ae"] |= {"batch_size": None, "lr": 1e-05}
    (tmp_path / "imgs/mine").mkdir(parents=True)
    Image.new("L", (60, 50)).save(tmp_path / "imgs/mine/è.png")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values).replace("1.0e-05", "1e-05"))
    write_run(tmp_path, Params.model_validate(values))

    run = runner(tmp_path)
    run("git", "init", "-q")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "My run")
    run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not (dvc or process or slow)", *READERS)
