import numpy as np
import prdc as reference
import pytest
import skimage.metrics
import torch

from genprior.quality import interval_coverage, prdc, psnr_db, reconstruction_measures, squared_mmd


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_prdc_is_the_published_packages(shift, capsys):
    draw = np.random.default_rng(0)
    real, fake = draw.normal(size=(300, 6)), draw.normal(size=(200, 6)) * 0.8 + shift
    found = prdc(torch.from_numpy(real), torch.from_numpy(fake), 5)
    assert found == pytest.approx(reference.compute_prdc(real, fake, nearest_k=5))


def test_squared_mmd_by_its_definition():
    draw = np.random.default_rng(0)
    real, fake = draw.normal(size=(20, 3)), draw.normal(size=(15, 3)) + 1
    distances = [np.linalg.norm(a - b) for i, a in enumerate(real) for b in real[:i]]
    width = np.sort(distances)[(len(distances) - 1) // 2]  # torch's median is the lower one

    def kernel(a, b):
        return np.exp(-np.sum((a - b) ** 2) / (2 * width**2))

    expected = (
        sum(kernel(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j) / (20 * 19)
        + sum(kernel(a, b) for i, a in enumerate(fake) for j, b in enumerate(fake) if i != j) / (15 * 14)
        - 2 * sum(kernel(a, b) for a in real for b in fake) / (20 * 15)
    )
    assert squared_mmd(torch.from_numpy(real), torch.from_numpy(fake)) == pytest.approx(expected)


def test_squared_mmd_of_one_distribution_is_zero_on_average():
    draw = torch.Generator().manual_seed(0)
    values = [squared_mmd(*torch.randn(2, 100, 4, generator=draw)) for _ in range(30)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 30**0.5


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
def test_interval_coverage_of_the_right_posterior_is_its_level(level):
    draw = torch.Generator().manual_seed(0)
    samples, truth = torch.randn(400, 300, 5, generator=draw), torch.randn(400, 5, generator=draw)
    assert interval_coverage(samples, truth, level) == pytest.approx(level, abs=5 * (level * (1 - level) / 2000) ** 0.5)
    assert interval_coverage(0.5 * samples, truth, level) < level - 0.1
    assert interval_coverage(2 * samples, truth, level) > level + 0.05
