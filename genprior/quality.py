"""How good: PSNR of reconstructions, two-sample measures of generated patches."""

import math

import torch
from torch import Tensor


def psnr_db(mean_squared_error: float | Tensor) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]: -10 log10(mean squared error), in dB."""
    return -10 * math.log10(float(mean_squared_error))


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


def squared_mmd(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of two sets (N, ...), Gaussian kernel; may fall below 0 by chance.

    exp(-d² / (2 s²)), s the median distance among real samples. Gretton et al. 2012, equation 3.
    """
    real, fake = real.flatten(1).double(), fake.flatten(1).double()
    within = torch.cdist(real, real)
    upper = torch.triu_indices(len(real), len(real), 1)
    width = within[upper[0], upper[1]].median()

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-distance.square() / (2 * width**2))

    def mean_without_diagonal(matrix: Tensor) -> Tensor:
        count = len(matrix)
        return (matrix.sum() - matrix.diagonal().sum()) / (count * (count - 1))

    return float(
        mean_without_diagonal(kernel(within))
        + mean_without_diagonal(kernel(torch.cdist(fake, fake)))
        - 2 * kernel(torch.cdist(real, fake)).mean()
    )


def reconstruction_measures(x: Tensor, estimate: Tensor) -> dict[str, float]:
    """Errors of estimates against true patches, both (N, 1, h, w), pooled over all patches.

    mse: the mean squared error; psnr_db: from it; relative_error: (Σ‖x̂ - x‖² / Σ‖x‖²)^½.
    """
    error = (estimate - x).square()
    return {
        "mse": error.mean().item(),
        "psnr_db": psnr_db(error.mean()),
        "relative_error": math.sqrt(float(error.sum() / x.square().sum())),
    }


def interval_coverage(samples: Tensor, truth: Tensor, level: float) -> float:
    """Share of pixels whose truth lies in the central credible interval of the samples: in [0, 1], `level` is right.

    samples: (N, S, ...), truth: (N, ...), level: 0.9 for the interval between the 5 % and 95 % quantiles.
    """
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=samples.dtype, device=samples.device)
    low, high = samples.quantile(tails, dim=1)
    return ((truth >= low) & (truth <= high)).double().mean().item()
