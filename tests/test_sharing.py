"""Photographs of one's own and a DVC remote, as docs/ has them."""

import re
import shutil
import sys

import numpy as np
import pytest
import yaml
from conftest import ROOT, ran, tiny
from PIL import Image

from stages import evaluate, extract_patches, train_vae


def test_own_photographs_to_results(tmp_path, values, monkeypatch):
    """The three steps of docs/own-photographs.md, with its own lines of params.yaml, up to one prior's restorations."""
    page = (ROOT / "docs/own-photographs.md").read_text()
    (block,) = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    (tmp_path / "imgs/mine").mkdir(parents=True)
    for name in set(re.findall(r"imgs/mine/\w+\.jpg", block)):
        coarse = Image.fromarray(draw.integers(0, 255, (5, 8, 3), dtype=np.uint8))
        coarse.resize((120, 80)).save(tmp_path / name)

    values = tiny(values) | {"threads": 1}  # in this process, which has gone to another folder
    settings = yaml.safe_load(block)["extract_patches"]
    assert settings.keys() <= values["extract_patches"].keys()
    values["extract_patches"] |= settings | {"image_size": 48, "patch_size": [12, 12]}
    values["problems"] = {name: values["problems"][name] for name in ("denoise", "cs_50")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    extract_patches.main()
    train_vae.main()
    monkeypatch.setattr(sys, "argv", ["evaluate", "vae"])
    evaluate.main()
    written = yaml.safe_load((tmp_path / "metrics/evaluate_vae.json").read_text())["vae"]
    assert written["relaxed"].keys() >= values["problems"].keys()
    assert len(np.load(tmp_path / "data/reconstructions/vae_relaxed.npy")) == len(values["problems"])


@pytest.mark.dvc
def test_what_one_side_pushed_the_other_need_not_run(workspace):
    """docs/sharing.md with a folder for a remote, on the stages that take seconds."""
    folder, run = workspace
    stages = ["extract_patches", "chapter"]  # collect_images before them
    assert ran(run("dvc", "repro", *stages)) == {"collect_images", *stages}
    run("dvc", "remote", "add", "--default", "storage", str(folder / ".git/remote"))
    run("git", "add", "-A")
    run("git", "commit", "-qm", "Run")
    run("dvc", "push")

    run("git", "clone", "-q", ".", ".git/clone")
    there = ["--cd", ".git/clone"]
    clone = folder / ".git/clone"
    assert not (clone / "data/patches").exists()
    run("dvc", *there, "pull", "extract_patches")
    assert (clone / "data/patches/train.npy").read_bytes() == (folder / "data/patches/train.npy").read_bytes()
    # Its photographs are not there, on which all rests.
    assert ran(run("dvc", *there, "repro", "--dry", *stages)) == {"collect_images", *stages}
    run("dvc", *there, "pull", "collect_images")
    assert ran(run("dvc", *there, "repro", *stages)) == set()
    assert run("git", "-C", ".git/clone", "status", "--porcelain") == ""

    # What would be noticed: a changed parameter, and a file that the remote lost.
    values = yaml.safe_load((clone / "params.yaml").read_text())
    values["extract_patches"]["stride"] += 1
    (clone / "params.yaml").write_text(yaml.safe_dump(values))
    assert ran(run("dvc", *there, "repro", "--dry", *stages)) == {"extract_patches"}
    run("git", "-C", ".git/clone", "checkout", "-q", "params.yaml")
    shutil.rmtree(clone / "data/patches")
    shutil.rmtree(clone / ".dvc/cache")
    shutil.rmtree(folder / ".git/remote")
    run("dvc", *there, "pull", code=1)
