import numpy as np
import prdc as reference
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import kstest

from genprior.files import InputError
from pipeline import measures
from pipeline.measures import detail_db, mmd_p_value, nearest_distance, prdc, sliced_wasserstein, squared_mmd
from pipeline.params import Sample


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_prdc_is_the_published_packages(shift, capsys):
    draw = np.random.default_rng(0)
    real, fake = draw.normal(size=(300, 6)), draw.normal(size=(200, 6)) * 0.8 + shift
    found = prdc(torch.from_numpy(real), torch.from_numpy(fake), 5)
    assert found == pytest.approx(reference.compute_prdc(real, fake, nearest_k=5))


def test_permutation_p_value_is_uniform_without_a_difference_and_small_with_one():
    draw = torch.Generator().manual_seed(0)
    found = [mmd_p_value(*torch.randn(2, 40, 3, generator=draw), 99, draw) for _ in range(150)]
    assert kstest(found, "uniform").pvalue > 1e-3
    real, fake = torch.randn(2, 40, 3, generator=draw)
    assert mmd_p_value(real, fake + 1.5, 99, draw) == pytest.approx(0.01)


def test_sliced_wasserstein_of_a_shift():
    draw = torch.Generator().manual_seed(0)
    real, shift = torch.randn(50, 6, generator=draw), torch.randn(6, generator=draw)
    found = sliced_wasserstein(real, real + shift, 20_000, draw)
    assert found == pytest.approx(shift.norm().item() / 6**0.5, rel=0.03)
    one = sliced_wasserstein(real[:, :1], real[:, :1] * 2 + 1, 1, draw)
    sorted_difference = np.sort(real[:, 0].numpy()) - np.sort(2 * real[:, 0].numpy() + 1)
    assert one == pytest.approx(np.sqrt(np.square(sorted_difference).mean()), rel=1e-5)


def test_detail_is_the_power_of_the_upper_half_of_the_frequencies():
    draw = np.random.default_rng(0)
    real = torch.from_numpy(draw.random((200, 1, 8, 8)))
    assert detail_db(real, 2 * real) == pytest.approx(20 * np.log10(2))
    assert detail_db(real, real + 3) == pytest.approx(0, abs=1e-9)  # the mean is no detail
    blurred = torch.from_numpy(gaussian_filter(real.numpy(), (0, 0, 1.5, 1.5), mode="reflect"))
    assert detail_db(real, blurred) < -10


def test_nearest_distance_knows_neither_mean_nor_contrast():
    references = torch.randn(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    samples = 0.3 * references[[4, 7]] + 0.5
    torch.testing.assert_close(nearest_distance(samples, references), torch.zeros(2), rtol=0, atol=2e-3)
    assert nearest_distance(samples, references[10:]).min() > 0.1


def test_collapse_shows_in_coverage_recall_and_spread():
    real = torch.randn(300, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert measures.collapse(real, real, 5) == pytest.approx({"coverage": 1, "recall": 1, "spread": 1})
    found = measures.collapse(real, real[:1] + 0.01 * real, 5)  # every sample alike
    assert found["coverage"] < 0.1
    assert found["recall"] < 0.1
    assert found["spread"] == pytest.approx(0.01)


def test_two_sets_of_real_patches_are_disjoint_and_measured_whole(patches):
    distinct = torch.arange(200).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).to(torch.uint8)
    real, other = measures.two_real_sets(distinct, Sample(count=60, neighbours=5), 0)
    assert len({*real[:, 0, 0, 0].tolist(), *other[:, 0, 0, 0].tolist()}) == 120
    with pytest.raises(InputError, match="too few"):
        measures.two_real_sets(distinct[:10], Sample(count=60, neighbours=5), 0)
    x = patches[:40].float() / 255
    found = measures.sample_measures(x, x, Sample(count=40, neighbours=5), 0)
    assert found["coverage"] == found["recall"] == found["spread"] == found["mmd_p_value"] == 1
    assert found["sliced_wasserstein"] == found["detail_db"] == found["coverage_error"] == 0


def test_permutation_test_counts_splits_of_larger_squared_mmd():
    """Against its definition on the same splits, drawn by the same generator; and on sets of 15 and 10."""
    real, fake = torch.randn(2, 15, 3, generator=torch.Generator().manual_seed(3))
    found = mmd_p_value(real, fake, 19, torch.Generator().manual_seed(1))
    both, draw = torch.cat([real, fake]).double(), torch.Generator().manual_seed(1)
    distance = torch.cdist(both, both)
    width = torch.cdist(real.double(), real.double())[tuple(torch.triu_indices(15, 15, 1))].median()
    kernel = torch.exp(-distance.square() / (2 * width**2))

    def statistic(first, count=30):
        second = [i for i in range(count) if i not in first]
        pairs = lambda a, b: sum(kernel[i, j].item() for i in a for j in b if i != j)  # noqa: E731
        own = sum(pairs(part, part) / (len(part) * (len(part) - 1)) for part in (first, second))
        return own - 2 * pairs(first, second) / (len(first) * len(second))

    own = statistic(list(range(15)))
    assert own == pytest.approx(squared_mmd(real, fake))
    assert statistic(list(range(15)), 25) == pytest.approx(squared_mmd(real, fake[:10]))
    others = [statistic(torch.randperm(30, generator=draw)[:15].tolist()) for _ in range(19)]
    assert found == pytest.approx((1 + sum(other >= own - 1e-12 for other in others)) / 20)
