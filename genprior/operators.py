"""Forward operators K, and the measured problems that every method solves.

An operator has `A(x)`: patches (N, 1, h, w) -> y (N, ...), and, where it is linear, `A_adjoint(y)`: y -> (N, 1, h, w),
with the same K for the whole batch. deepinv's linear physics have this interface.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from genprior.params import Problem


class LinearOperator(Protocol):
    """What a linear forward operator offers: ⟨A(x), y⟩ = ⟨x, A_adjoint(y)⟩."""

    def A(self, x: Tensor) -> Tensor: ...

    def A_adjoint(self, y: Tensor) -> Tensor: ...


class Identity(nn.Module):
    """K = I: denoising."""

    def A(self, x: Tensor) -> Tensor:
        return x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y


class Inpainting(nn.Module):
    """Some pixels are seen: K picks them; y is (N, m). mask: bool, (h, w), True where seen."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("seen", mask.flatten().nonzero().squeeze(1))

    def A(self, x: Tensor) -> Tensor:
        return x.flatten(1).index_select(1, self.seen)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y), self.mask.numel()).index_copy(1, self.seen, y).reshape(-1, 1, *self.mask.shape)


class GaussianBlur(nn.Module):
    """Convolution with a Gaussian of standard deviation `width` pixels, mirrored at the borders: y is (N, 1, h, w)."""

    def __init__(self, shape: tuple[int, int], width: float):
        super().__init__()
        # The blur of each axis as a matrix: its transpose is the adjoint, borders included.
        for name, side in zip(("rows", "columns"), shape, strict=True):
            matrix = gaussian_filter1d(torch.eye(side, dtype=torch.float64).numpy(), width, axis=0, mode="reflect")
            self.register_buffer(name, torch.from_numpy(matrix).to(torch.get_default_dtype()))

    def A(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.rows.T @ y @ self.columns


class Downsampling(nn.Module):
    """Means of factor × factor pixels: y is (N, 1, h / factor, w / factor)."""

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor

    def A(self, x: Tensor) -> Tensor:
        return avg_pool2d(x, self.factor)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1) / self.factor**2


class GaussianSensing(nn.Module):
    """Compressed sensing with a dense random matrix, entries N(0, 1/m): y is (N, m)."""

    def __init__(self, shape: tuple[int, int], measurements: int, generator: torch.Generator):
        super().__init__()
        self.shape = tuple(shape)
        # float64 whatever the default, so that the same seed gives the same matrix in every precision
        matrix = torch.randn(measurements, shape[0] * shape[1], generator=generator, dtype=torch.float64)
        self.register_buffer("matrix", (matrix / measurements**0.5).to(torch.get_default_dtype()))

    def A(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.T

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix).reshape(-1, 1, *self.shape)


def as_matrix(operator: LinearOperator, shape: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """The matrix of a linear operator on patches of `shape`: (m, n)."""
    n = shape[0] * shape[1]
    return operator.A(torch.eye(n, device=device).reshape(n, 1, *shape)).flatten(1).T.contiguous()


def build_operator(problem: Problem, shape: tuple[int, int], generator: torch.Generator) -> nn.Module:
    """The operator of one block of `problems` in params.yaml, for patches of `shape`."""
    match problem.operator:
        case "identity":
            return Identity()
        case "inpaint":
            seen = max(1, round((1 - problem.missing) * shape[0] * shape[1]))
            mask = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
            mask[torch.randperm(len(mask), generator=generator)[:seen]] = True
            return Inpainting(mask.reshape(shape))
        case "blur":
            return GaussianBlur(shape, problem.width)
        case "downsample":
            return Downsampling(problem.factor)
        case "gaussian":
            return GaussianSensing(shape, problem.measurements, generator)


@dataclass(frozen=True)
class Measured:
    """One inverse problem posed: y = K x + e, e ~ N(0, sigma² I)."""

    name: str
    operator: nn.Module
    sigma: float
    y: Tensor


def pose(problems: dict[str, Problem], x: Tensor, seed: int) -> list[Measured]:
    """Measure patches x (N, 1, h, w) by every problem.

    The operator depends on the seed and the problem's name alone, so that validation and test see the same K; the
    noise on the patches too. Whoever poses the same problems on the same patches gets the same measurements.
    """
    measured = []
    for name, problem in problems.items():
        operator = build_operator(problem, tuple(x.shape[2:]), _generator(seed, name)).to(x.device)
        clean = operator.A(x)
        noise = torch.randn(clean.shape, generator=_generator(seed, f"{name}/noise/{len(x)}")).to(x.device)
        measured.append(Measured(name, operator, problem.sigma, clean + problem.sigma * noise))
    return measured


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
