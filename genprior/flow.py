"""A learned flow: where the codes of G lie, as a function of a standard normal code."""

import math

import torch
from torch import Tensor, nn

from genprior.layers import mlp, with_columns


class CouplingFlow(nn.Module):
    """T: z ~ N(0, I) -> codes t, in layers that move the codes of one half by a network of the other: (N, k) -> (N, k).

    t_b = z_b ⊙ exp(s(z_a)) + m(z_a), t_a = z_a, with s bounded by ±2: inverse and Jacobian determinant in closed form,
    and the identity before training. The halves are those of the binary digits of a code's place, two layers for each
    of the three lowest, so k >= 2. Dinh et al. 2017, section 3.
    """

    LAYERS, WIDTH, BOUND = 6, 64, 2.0

    def __init__(self, k: int):
        super().__init__()
        self.networks = nn.ModuleList(mlp([k, self.WIDTH, self.WIDTH, 2 * k], "silu") for _ in range(self.LAYERS))
        for network in self.networks:
            nn.init.zeros_(network[-1].weight)
            nn.init.zeros_(network[-1].bias)

    def _seen(self, layer: int, z: Tensor) -> Tensor:
        """1 for the codes that a layer's network sees and leaves, 0 for those that it moves: (k,)."""
        digits = max(1, min(3, (z.shape[1] - 1).bit_length()))  # of few codes, fewer halves
        digit = torch.arange(z.shape[1], device=z.device) >> (layer // 2 % digits) & 1
        return (digit == layer % 2).to(z)

    def _scale_and_shift(self, layer: int, z: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen(layer, z)
        shift, scale = self.networks[layer](z * seen).chunk(2, 1)
        return (1 - seen) * self.BOUND * torch.tanh(scale / self.BOUND), (1 - seen) * shift

    def forward(self, z: Tensor) -> Tensor:
        """T(z): (N, k) -> (N, k)."""
        for layer in range(self.LAYERS):
            scale, shift = self._scale_and_shift(layer, z)
            z = z * scale.exp() + shift
        return z

    def with_columns(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """T(z) and its Jacobian: (N, k) and (N, k, k)."""
        columns = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(len(z), -1, -1)
        for layer, network in enumerate(self.networks):
            seen = self._seen(layer, z)
            out, changes = with_columns(network, z * seen, seen[:, None] * columns)
            (shift, scale), (shifts, scales) = out.chunk(2, 1), changes.chunk(2, 1)
            bounded = torch.tanh(scale / self.BOUND)
            factor = ((1 - seen) * self.BOUND * bounded).exp()
            moved = (z * factor * (1 - bounded.square()))[..., None] * scales + shifts
            columns = factor[..., None] * columns + (1 - seen)[:, None] * moved
            z = z * factor + (1 - seen) * shift
        return z, columns

    def inverse(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """z = T⁻¹(t) and log |det ∂z/∂t|: (N, k) -> (N, k) and (N,)."""
        log_determinant = torch.zeros_like(t[:, 0])
        for layer in reversed(range(self.LAYERS)):
            scale, shift = self._scale_and_shift(layer, t)
            t = (t - shift) * (-scale).exp()
            log_determinant = log_determinant - scale.sum(1)
        return t, log_determinant

    def log_density(self, t: Tensor) -> Tensor:
        """log density of codes in nats: (N, k) -> (N,)."""
        z, log_determinant = self.inverse(t)
        return log_determinant - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)
