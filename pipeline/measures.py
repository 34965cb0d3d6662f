"""How close samples come to real patches: two-sample measures, sharpness, memorisation."""

import math

import torch
from torch import Tensor

from genprior.files import InputError
from genprior.images import dct_basis
from pipeline.params import Sample
from pipeline.patches import to_unit


def two_real_sets(patches: Tensor, settings: Sample, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint random sets of real patches in [0, 1]: `count` each, or half of all where there are fewer."""
    count = min(settings.count, len(patches) // 2)
    if count <= settings.neighbours:
        raise InputError(
            f"data/patches/train.npy: {len(patches)} patches are too few for sample.neighbours = {settings.neighbours}"
        )
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))[: 2 * count].to(patches.device)
    return tuple(to_unit(patches[order]).split(count))


def sample_measures(real: Tensor, samples: Tensor, settings: Sample, seed: int) -> dict[str, float]:
    """Every measure of samples against as many real patches, both (N, 1, h, w)."""
    samples, draw = samples[: len(real)], torch.Generator().manual_seed(seed)
    found = prdc(real, samples, settings.neighbours)
    share = found["coverage"]
    return {
        **found,
        "coverage_error": (share * (1 - share) / len(real)) ** 0.5,  # binomial
        "spread": spread(real, samples),
        "squared_mmd": squared_mmd(real, samples),
        "mmd_p_value": mmd_p_value(real[:1000], samples[:1000], 199, draw),
        "sliced_wasserstein": sliced_wasserstein(real, samples, 500, draw),
        "detail_db": detail_db(real, samples),
    }


def prdc(real: Tensor, fake: Tensor, neighbours: int) -> dict[str, float]:
    """Precision, recall, density and coverage of `fake` against `real`, each patches (N, ...): four numbers >= 0.

    A ball around each sample reaches its k-th nearest neighbour of the same set. precision: share of fake samples in
    any real ball; recall: share of real samples in any fake ball; density: real balls that a fake sample lies in,
    over k; coverage: share of real balls that hold a fake sample.
    Kynkäänniemi et al. 2019; Naeem et al. 2020, equations 1 to 7.
    """
    real, fake = real.flatten(1).double(), fake.flatten(1).double()
    # The nearest is the sample itself, at distance 0.
    real_radius = torch.cdist(real, real).kthvalue(neighbours + 1).values
    fake_radius = torch.cdist(fake, fake).kthvalue(neighbours + 1).values
    distance = torch.cdist(real, fake)
    in_real = distance < real_radius[:, None]
    return {
        "precision": in_real.any(0).double().mean().item(),
        "recall": (distance < fake_radius).any(1).double().mean().item(),
        "density": in_real.double().sum(0).mean().item() / neighbours,
        "coverage": (distance.min(1).values < real_radius).double().mean().item(),
    }


def spread(real: Tensor, fake: Tensor) -> float:
    """Standard deviation of `fake` over that of `real`, patches (N, ...): roots of the variances summed over pixels."""
    return (fake.flatten(1).var(0).sum() / real.flatten(1).var(0).sum()).sqrt().item()


def collapse(real: Tensor, fake: Tensor, neighbours: int) -> dict[str, float]:
    """What falls towards 0 where a GAN's modes collapse, of patches (N, ...): coverage, recall and spread."""
    found = prdc(real, fake, min(neighbours, len(real) - 1))
    return {"coverage": found["coverage"], "recall": found["recall"], "spread": spread(real, fake)}


def mmd_kernel(real: Tensor, fake: Tensor) -> Tensor:
    """exp(-d² / (2 s²)) between all of two sets (N, ...) and (M, ...), 0 of one with itself: float64, (N + M, N + M).

    d: distances; s: their median among real samples.
    """
    both = torch.cat([real.flatten(1), fake.flatten(1)]).double()
    distance = torch.cdist(both, both)
    upper = torch.triu_indices(len(real), len(real), 1)
    return torch.exp(-distance.square() / (2 * distance[upper[0], upper[1]].median() ** 2)).fill_diagonal_(0)


def squared_mmd(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of two sets, kernel `mmd_kernel`; may fall below 0 by chance.

    Gretton et al. 2012, equation 3.
    """
    kernel, n, m = mmd_kernel(real, fake), len(real), len(fake)
    within = kernel[:n, :n].sum() / (n * (n - 1)) + kernel[n:, n:].sum() / (m * (m - 1))
    return float(within - 2 * kernel[:n, n:].mean())


def mmd_p_value(real: Tensor, fake: Tensor, permutations: int, generator: torch.Generator) -> float:
    """How often two sets of as many samples (N, ...) get a squared MMD as large when their union is split at random.

    Small where the two differ; at least 1 / (permutations + 1). Gretton et al. 2012, section 5; kernel: `mmd_kernel`.
    """
    count, kernel = len(real), mmd_kernel(real, fake)
    # signs of the two groups, the true split first: within minus between is s^T kernel s
    signs = torch.ones(2 * count, permutations + 1, dtype=kernel.dtype)
    signs[count:, 0] = -1
    for column in range(1, permutations + 1):
        signs[torch.randperm(2 * count, generator=generator)[:count], column] = -1
    signs = signs.to(kernel.device)
    within = (kernel.sum() + (signs * (kernel @ signs)).sum(0)) / 2
    between = kernel.sum() - within
    statistic = within / (count * (count - 1)) - between / count**2
    return (statistic >= statistic[0] - 1e-12).double().mean().item()


def sliced_wasserstein(real: Tensor, fake: Tensor, directions: int, generator: torch.Generator) -> float:
    """(E W2²)^½ of two sets of as many samples (N, ...), projected on random unit vectors; in the samples' units.

    In one dimension W2² is the mean squared difference of the sorted samples. Bonneel et al. 2015, section 4.
    """
    real, fake = real.flatten(1).double(), fake.flatten(1).double()
    direction = torch.randn(real.shape[1], directions, generator=generator, dtype=torch.float64).to(real.device)
    direction = direction / direction.norm(dim=0)
    return (real @ direction).sort(0).values.sub((fake @ direction).sort(0).values).square().mean().sqrt().item()


def detail_db(real: Tensor, fake: Tensor) -> float:
    """Power of `fake` patches (N, 1, h, w) over that of `real` ones in the upper half of all spatial frequencies, dB.

    0: as sharp as real ones; below: smooth; above: noisy. Mean over patches, mean value and low frequencies aside.
    """
    height, width = real.shape[-2:]
    basis = torch.from_numpy(dct_basis(height, width)).to(real)
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    upper = (rows[:, None].square() + columns.square()).sqrt().flatten() >= 0.5

    def power(x: Tensor) -> float:
        return (x.flatten(1) @ basis[:, upper.to(x.device)]).square().mean().clamp_min(1e-30).item()

    return 10 * math.log10(power(fake) / power(real))


def nearest_distance(samples: Tensor, references: Tensor) -> Tensor:
    """Distance in shape of each sample (N, ...) to the nearest of the references (M, ...): (N,) in [0, 2].

    Mean and contrast, which would dominate, are taken out: every patch minus its mean, over its norm.
    """

    def shape(x: Tensor) -> Tensor:
        x = x.flatten(1) - x.flatten(1).mean(1, keepdim=True)
        return x / x.norm(dim=1, keepdim=True).clamp_min(1e-6)

    samples, references = shape(samples), shape(references)
    return torch.cat([torch.cdist(part, references).min(1).values for part in samples.split(500)])
