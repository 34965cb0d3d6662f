import numpy as np
import pytest
import skimage.metrics
import torch

from genprior.images import psnr_db
from pipeline.evaluation import interval_coverage
from pipeline.problems import reconstruction_measures


def test_psnr_is_scikit_images():
    draw = np.random.default_rng(0)
    x = draw.random((4, 1, 8, 8))
    estimate = x + 0.1 * draw.normal(size=x.shape)
    expected = skimage.metrics.peak_signal_noise_ratio(x, estimate, data_range=1)
    found = reconstruction_measures(torch.from_numpy(x), torch.from_numpy(estimate))
    assert found["psnr_db"] == pytest.approx(expected)
    assert psnr_db(0.01) == pytest.approx(20)
    assert found["relative_error"] == pytest.approx(np.linalg.norm(estimate - x) / np.linalg.norm(x))


@pytest.mark.parametrize("level", [0.5, 0.9])
@pytest.mark.parametrize("count", [19, 300])  # with few samples too
def test_interval_coverage_of_the_right_posterior_is_its_level(level, count):
    draw = torch.Generator().manual_seed(0)
    samples, truth = torch.randn(4000, count, 5, generator=draw), torch.randn(4000, 5, generator=draw)
    error = (level * (1 - level) / 20_000) ** 0.5
    assert interval_coverage(samples, truth, level) == pytest.approx(level, abs=5 * error)
    assert interval_coverage(0.5 * samples, truth, level) < level - 0.1
    assert interval_coverage(2 * samples, truth, level) > level + 0.05
