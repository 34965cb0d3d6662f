"""Errors over photographs: the bootstrap of paired differences, and which photograph a patch is from."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import t

from genprior.files import InputError
from genprior.images import psnr_db
from pipeline import photographs
from pipeline.files import write_csv
from pipeline.params import Params
from pipeline.patches import draw_patches
from stages import restore


def test_psnr_is_of_the_patches_of_each_photograph():
    draw = np.random.default_rng(0)
    x, owner = draw.random((30, 4, 4)), draw.integers(0, 3, 30)
    scale = np.array([0.01, 0.1, 0.3])[owner]
    estimate = x + scale[:, None, None]
    found = photographs.psnr_by_photograph(x, {"one": estimate}, owner)
    np.testing.assert_allclose(found.loc["one"], [psnr_db(s**2) for s in (0.01, 0.1, 0.3)])


def test_interval_is_that_of_the_mean_over_photographs():
    """Against Student's, for many photographs; what all photographs share moves the mean and not the interval."""
    draw = np.random.default_rng(0)
    difficulty, gain = draw.normal(25, 5, 400), draw.normal(0.5, 0.3, 400)
    psnr = pd.DataFrame({"reference": difficulty, "better": difficulty + gain, "same": difficulty + 1}).T
    found = photographs.paired(psnr, "reference")
    low, high = t.interval(0.95, 399, gain.mean(), gain.std(ddof=1) / 20)
    assert found.loc["better"].tolist() == pytest.approx([gain.mean(), low, high], abs=0.004)
    assert found.loc["same"].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_comparison_finds_the_photograph_of_each_patch(tmp_path, monkeypatch):
    """Patches whose grey is that of their photograph, in the order in which the evaluations draw them."""
    monkeypatch.chdir(tmp_path)
    owner = np.repeat([0, 1, 2], [20, 10, 15])
    patches = torch.from_numpy(np.tile(owner[:, None, None], (1, 4, 4)).astype(np.uint8))
    rows = {"split": ["train", "test", "test", "test"], "photograph": [*"abcd"], "patches": [9, 20, 10, 15]}
    write_csv("data/patches/photographs.csv", pd.DataFrame(rows))
    x = draw_patches(patches[:, None], 30, 7).squeeze(1).numpy()
    which = np.rint(x[:, 0, 0] * 255).astype(int)
    error = np.array([0.1, 0.2, 0.3])[which][:, None, None]
    estimates = {"50 Gaussians": (x + 0.4)[None], "mine": (x + error)[None]}
    found = photographs.comparison(x, estimates, ["denoise"], 7)
    expected = np.mean([psnr_db(e**2) - psnr_db(0.4**2) for e in (0.1, 0.2, 0.3)])
    ((text, above),) = found["rows"]["mine"]
    assert text.startswith(f"{expected:+.2f} [+2.50, +12.04]")
    assert above
    assert found["reference"] == "50 Gaussians"


def test_photographs_too_small_for_the_structural_similarity_are_refused(tmp_path, values, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imgs").mkdir()
    Image.fromarray(np.zeros((40, 6), np.uint8)).save("imgs/small.png")
    values["extract_patches"] |= {"image_size": None, "patch_size": [4, 4]}
    values["restore"]["stride"] = 4
    params = Params.model_validate(values)
    with pytest.raises(InputError, match=r"small.png: \[\d+, \d\] pixels are too few for ssim; at least 7 × 7"):
        restore.read("imgs/small.png", params)
