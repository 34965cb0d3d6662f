"""The log-density of a Gaussian."""

import math

from torch import Tensor

LOG_2_PI = math.log(2 * math.pi)


def gaussian_log_likelihood(residual: Tensor, variance: Tensor) -> Tensor:
    """log N(residual; 0, diag variance) in nats over the last axis: (..., n) -> (...).

    An orthonormal change of basis leaves it as it is, so DCT coefficients give the pixels' density.
    """
    return -0.5 * (residual**2 / variance + variance.log() + LOG_2_PI).sum(-1)
