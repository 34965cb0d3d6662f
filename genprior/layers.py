"""Encoder and decoder for patches, on standardised DCT coefficients."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from genprior.images import dct_basis

ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def mlp(widths: list[int], activation: str = "relu") -> nn.Sequential:
    """Linear layers of the given widths with the activation between them and none after the last."""
    layers = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def tamed(c: Tensor) -> tuple[Tensor, Tensor]:
    """asinh c, linear near 0 and logarithmic in heavy tails, and |asinh c|; for |c| < 1e18, not to differentiate at 0.

    By log1p, in a fifth of the time that torch.asinh takes on a CPU: as long as three matrix products of a layer.
    """
    size = c.abs()
    size = torch.log1p(size + size.square() / (1 + (1 + size.square()).sqrt()))
    return size.copysign(c), size


def with_slope(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """An elementwise function and its derivative, both like z; neither is to be differentiated again."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        out = function(z)
        (slope,) = torch.autograd.grad(out.sum(), z)
    return out.detach(), slope


def with_columns(network: nn.Sequential, z: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """A sequence of linear layers and elementwise functions, with what it makes of tangents.

    z: (N, k); columns: (N, k, j) or (k, j) where all have the same. Returns outputs (N, n) and tangents (N, n, j). By
    hand two to three times as fast as forward-mode differentiation, which adds and fills zeros for every column.
    """
    rows = columns.mT  # tangents as rows: each layer is then one matrix product for all
    for layer in network:
        if isinstance(layer, nn.Linear):
            z, rows = layer(z), rows @ layer.weight.T
        else:
            z, slope = with_slope(layer, z)
            rows = slope.unsqueeze(1) * rows
    return z, rows.mT


def scale_fields(shape: tuple[int, int], grid: int = 4) -> Tensor:
    """Bumps that add up to 1 in every pixel: bilinear interpolation from a coarse grid, (at most grid², h w)."""
    sides = [min(grid, size) for size in shape]
    bumps = torch.eye(math.prod(sides), dtype=torch.float64, device="cpu").reshape(-1, 1, *sides)
    return interpolate(bumps, shape, mode="bilinear").flatten(1)


class Coefficients(nn.Module):
    """Patches to standardised DCT coefficients and back: c = (U^T x - mean) / scale.

    A patch's high frequencies are a hundred times weaker than its mean; standardised, networks see both.
    """

    def __init__(self, shape: tuple[int, int]):
        super().__init__()
        self.shape = tuple(shape)
        n = shape[0] * shape[1]
        basis = torch.from_numpy(dct_basis(*shape)).float()
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("scale", torch.ones(n))

    @torch.no_grad()
    def fit(self, x: Tensor, least: float = 1e-3) -> "Coefficients":
        """Take mean and standard deviation (at least `least`) of the coefficients of patches (N, 1, h, w)."""
        coefficients = x.flatten(1) @ self.basis
        self.mean.copy_(coefficients.mean(0))
        self.scale.copy_(coefficients.std(0).clamp_min(least))  # flat patches have nothing to standardise by
        return self

    def analyse(self, x: Tensor) -> Tensor:
        """Patches (N, 1, h, w) -> standardised coefficients (N, n)."""
        return (x.flatten(1) @ self.basis - self.mean) / self.scale

    def restore(self, c: Tensor) -> Tensor:
        """Standardised coefficients (N, n) -> coefficients U^T x, (N, n)."""
        return self.mean + self.scale * c

    def synthesise(self, c: Tensor) -> Tensor:
        """Standardised coefficients (N, n) -> patches (N, 1, h, w)."""
        return (self.restore(c) @ self.basis.T).reshape(-1, 1, *self.shape)


def frequency_bands(shape: tuple[int, int]) -> Tensor:
    """Which DCT coefficients are in a band, four ranges of frequency by two directions of waves: (8, n), 0 or 1."""
    rows, columns = (np.arange(size) / size for size in shape)
    frequency, bands = np.maximum.outer(rows, columns), []
    for low, high in pairwise([0, 3 / 16, 6 / 16, 10 / 16, 1]):
        within = (frequency >= low) & (frequency < high) & (frequency > 0)
        bands += [within & (rows[:, None] >= columns), within & (rows[:, None] <= columns)]
    return torch.from_numpy(np.reshape(bands, (len(bands), -1)).astype(np.float32))


class Encoder(nn.Module):
    """E: patches (N, 1, h, w) -> code (N, k), or its mean and log-variance where `variational`.

    asinh tames the heavy tails of standardised coefficients, and their magnitudes stand beside them: what a code tells
    of contrast and texture is even in every coefficient. A linear path beside the network holds PCA.

    A variational one also sees how much of each frequency band is in each part of the patch, as logarithms of energies:
    what v(z) and scales speak of, and sums of squares that are hard to learn. They have a linear path too.
    """

    MOST_LOG_VARIANCE = 4.0  # far above the prior's 0; a patch unlike all others would overflow e^v, and end training
    LEAST_ENERGY = 1e-6  # that of grey levels' rounding

    def __init__(
        self, coefficients: Coefficients, latent_size: int, hidden: list[int], activation: str, variational: bool
    ):
        super().__init__()
        n = len(coefficients.mean)
        self.coefficients, self.log_variance = coefficients, None
        seen = 2 * n
        if variational:
            self.register_buffer("bands", frequency_bands(coefficients.shape), persistent=False)
            self.register_buffer("parts", scale_fields(coefficients.shape).float(), persistent=False)
            energies = len(self.bands) * len(self.parts)
            seen += energies
            self.log_variance = nn.Linear(hidden[-1], latent_size)
            self.contrast = nn.Linear(energies, 2 * latent_size, bias=False)
        self.body = nn.Sequential(*mlp([seen, *hidden], activation), ACTIVATIONS[activation]())
        self.mean = nn.Linear(hidden[-1], latent_size)
        self.linear = nn.Linear(n, latent_size, bias=False)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        c = self.coefficients.analyse(x)
        if self.log_variance is None:
            return self.mean(self.body(torch.cat(tamed(c), 1))) + self.linear(c)
        energies = self.log_energies(x)
        features = self.body(torch.cat([*tamed(c), energies], 1))
        mean, log_variance = self.contrast(energies).chunk(2, 1)
        mean = mean + self.mean(features) + self.linear(c)
        return mean, (log_variance + self.log_variance(features)).clamp_max(self.MOST_LOG_VARIANCE)

    def log_energies(self, x: Tensor) -> Tensor:
        """Logarithms, about standardised, of each band's energy in each part of the patch: (N, bands · parts)."""
        basis, energies = self.coefficients.basis, []
        c = x.flatten(1) @ basis
        for band in self.bands:
            own = band.nonzero().squeeze(1)
            energies.append((c[:, own] @ basis.T[own]).square() @ self.parts.T)
        energies = torch.stack(energies, 1)
        return ((energies.flatten(1) + self.LEAST_ENERGY).log() + 7) / 2


class Decoder(nn.Module):
    """G: code (N, k) -> standardised DCT coefficients (N, n), beside it the variance v of what G leaves out.

    `noise` is None (no residual model), "constant" (one sigma for all pixels), or "dct", a network's v(z), one variance
    for each DCT coefficient. "modulated" is "dct" with another network's scales d(z), by which what v(z) draws is
    multiplied in the pixels: texture on one side of an edge, none on the other, which no v can say alone.
    A linear path beside the network makes PCA the model's starting point.
    """

    LOG_SCALE = 3.0  # most and least of a scale's logarithm
    LOG_VARIANCE = (-7.0, 2.0)  # of standardised coefficients: keeps e^v and its gradient in range

    def __init__(
        self, coefficients: Coefficients, latent_size: int, hidden: list[int], activation: str, noise: str | None
    ):
        super().__init__()
        n = len(coefficients.mean)
        self.coefficients = coefficients
        self.body = nn.Sequential(*mlp([latent_size, *hidden], activation), ACTIVATIONS[activation]())
        self.mean = nn.Linear(hidden[-1], n)
        self.linear = nn.Linear(latent_size, n, bias=False)
        self.set_noise(noise, latent_size, hidden, activation)

    def set_noise(self, noise: str | None, latent_size: int, hidden: list[int], activation: str) -> None:
        """Make v(z), and d(z), all 1 until they are trained, as `noise` asks for them."""
        self.log_variance = self.log_scale = None
        self.log_sigma = nn.Parameter(torch.zeros(())) if noise == "constant" else None
        if noise in ("dct", "modulated"):
            self.log_variance = mlp([latent_size, *hidden, len(self.coefficients.scale)], activation)
        if noise == "modulated":
            fields = scale_fields(self.coefficients.shape).float()
            self.register_buffer("fields", fields, persistent=False)
            self.log_scale = mlp([latent_size, *hidden, len(fields)], activation)
            nn.init.zeros_(self.log_scale[-1].weight)
            nn.init.zeros_(self.log_scale[-1].bias)

    def forward(self, code: Tensor) -> Tensor:
        """Mean of the standardised coefficients: (N, k) -> (N, n)."""
        return self.mean(self.body(code)) + self.linear(code)

    def forward_with_columns(self, code: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """`forward`, and its tangents for code tangents (k, j): (N, n) and (N, n, j)."""
        mean, tangents = with_columns(nn.Sequential(*self.body, self.mean), code, columns)
        return mean + self.linear(code), tangents + self.linear.weight @ columns

    def variance_with_columns(self, code: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """`variance`, and its tangents for code tangents (k, j): (N, n) and (N, n, j)."""
        if self.log_variance is None:
            variance = self.variance(code)
            return variance, variance.new_zeros(*variance.shape, columns.shape[-1])
        raw, tangents = with_columns(self.log_variance, code, columns)
        variance, slope = with_slope(self._variance_of, raw)
        return variance, slope.unsqueeze(2) * tangents

    def scales(self, code: Tensor) -> Tensor:
        """How much of each of `fields` the scale d is made of, d = scales @ fields: (N, k) -> (N, fields)."""
        return self._scales_of(self.log_scale(code))

    def scales_with_columns(self, code: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """`scales`, and their tangents for code tangents (k, j): (N, fields) and (N, fields, j)."""
        raw, tangents = with_columns(self.log_scale, code, columns)
        scales, slope = with_slope(self._scales_of, raw)
        return scales, slope.unsqueeze(2) * tangents

    def _scales_of(self, raw: Tensor) -> Tensor:
        return (self.LOG_SCALE * torch.tanh(raw / self.LOG_SCALE)).exp()

    def _variance_of(self, raw: Tensor) -> Tensor:
        # A smooth clamp: the gradient never dies, and second-order methods see no kink.
        low, high = self.LOG_VARIANCE
        return self.coefficients.scale**2 * (low + (high - low) * torch.sigmoid(raw)).exp()

    def variance(self, code: Tensor) -> Tensor | None:
        """Variance v of the coefficients Uᵀx: (N, k) -> (N, n), None without a residual model."""
        if self.log_sigma is not None:
            return (2 * self.log_sigma).exp().expand(len(code), len(self.coefficients.scale))
        return None if self.log_variance is None else self._variance_of(self.log_variance(code))
