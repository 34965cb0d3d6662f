"""Photographs of one's own and a DVC remote, as docs/ has them."""

import re
import shutil
import sys
from itertools import product

import numpy as np
import pytest
import yaml
from conftest import ROOT, tiny
from dvc.repo import Repo
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


LEFT = (".DS_Store", "._a.png", ".directory", ".nfs01", "Thumbs.db", "ehthumbs.db", "desktop.ini", "~$a.doc")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within DVC
def test_dvc_sees_photographs_and_not_what_desktops_leave(tmp_path, monkeypatch):
    """Links too: one to a file, as DVC's cache may have them, is looked behind, one to a folder is not."""
    shutil.copy(ROOT / ".dvcignore", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages: {cut: {cmd: mkdir cut, deps: [imgs], outs: [cut]}}")
    pictures = [tmp_path / name for name in ("imgs/standard/a.png", "imgs/b.png", "target.png", "linked/d.png")]
    for picture in pictures:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(b"1")
    (tmp_path / "imgs/c.png").symlink_to(tmp_path / "target.png")
    (tmp_path / "imgs/linked").symlink_to(tmp_path / "linked")
    monkeypatch.chdir(tmp_path)
    repo = Repo.init(no_scm=True)
    repo.reproduce()
    for name, folder in product(LEFT, ("imgs", "imgs/standard", "cut")):
        (tmp_path / folder / name).write_bytes(b"left")
    seen = {}
    for picture in pictures:
        assert repo.status() == {}
        picture.write_bytes(b"2")
        seen[picture.name] = bool(repo.status())
        picture.write_bytes(b"1")
    assert seen == {"a.png": True, "b.png": True, "target.png": True, "d.png": False}
