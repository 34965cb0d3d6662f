"""The inverse problems of params.yaml: posed on patches, and how well estimates solve them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genprior import operators
from genprior.batches import noise_like
from genprior.images import psnr_db
from genprior.streams import stream
from pipeline.params import OfPhotograph, Problem


def build_operator(problem: Problem | OfPhotograph, shape: tuple[int, int], generator: torch.Generator) -> nn.Module:
    """The operator of one block of `problems` in params.yaml, for images of `shape`."""
    match problem.operator:
        case "identity":
            return operators.Identity()
        case "inpaint":
            seen = max(1, round((1 - problem.missing) * shape[0] * shape[1]))
            mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
            mask[torch.randperm(len(mask), generator=generator)[:seen]] = True
            return operators.Inpainting(mask.reshape(shape))
        case "blur":
            return operators.GaussianBlur(shape, problem.width)
        case "downsample":
            return operators.Downsampling(problem.factor)
        case "gaussian":
            return operators.gaussian_sensing(shape, problem.measurements, generator)
        case "motion":
            return operators.Convolution(shape, operators.motion_kernel(problem.length, problem.angle))
        case "fourier":  # the lowest frequencies, which hold most of a photograph, and others by chance
            distance = torch.hypot(torch.fft.fftfreq(shape[0])[:, None], torch.fft.fftfreq(shape[1]))
            lowest = distance <= distance.flatten().sort().values[int(problem.share * distance.numel() / 3)]
            return operators.FourierSampling(lowest | (torch.rand(shape, generator=generator) < 2 / 3 * problem.share))


@dataclass(frozen=True)
class Measured:
    """One inverse problem posed: y = K x + e, e ~ N(0, sigma² I)."""

    name: str
    operator: nn.Module
    sigma: float
    y: Tensor

    def measures(self, x: Tensor, estimate: Tensor) -> dict[str, float]:
        """`reconstruction_measures` of estimates x̂ against x, both (N, 1, h, w), and the root mean square of K x̂ - y.

        In units of sigma: about 1 where x̂ explains y, not its noise.
        """
        misfit = (self.operator.A(estimate) - self.y).square().mean().sqrt().item()
        return {**reconstruction_measures(x, estimate), "residual_over_sigma": misfit / self.sigma}


def pose(problems: dict[str, Problem | OfPhotograph], x: Tensor, seed: int, patches: str = "test") -> list[Measured]:
    """Measure patches x (N, 1, h, w) by every problem.

    The operator depends on the seed and the problem's name alone: validation and test have the same K. The noise
    depends on what `patches` says they are, too. The same problems on the same patches give the same measurements.
    """
    measured = []
    for name, problem in problems.items():
        operator = build_operator(problem, tuple(x.shape[2:]), stream(seed, name)).to(x.device)
        clean = operator.A(x)
        noise = noise_like(clean, stream(seed, f"{name}/noise/{patches}"))
        measured.append(Measured(name, operator, problem.sigma, clean + problem.sigma * noise))
    return measured


def reconstruction_measures(x: Tensor, estimate: Tensor) -> dict[str, float]:
    """Errors of estimates against true patches, both (N, 1, h, w), pooled over all patches.

    mse: mean squared error; psnr_db: from it; relative_error: (Σ‖x̂ - x‖² / Σ‖x‖²)^½.
    """
    error = (estimate - x).square()
    return {
        "mse": error.mean().item(),
        "psnr_db": psnr_db(error.mean()),
        "relative_error": math.sqrt(float(error.sum() / x.square().sum())),
    }
