"""Densities of codes as functions of a standard normal code: a Gaussian mixture, and a learned flow."""

import torch
from torch import Tensor, nn
from torch.special import ndtri

from genprior.losses import LOG_2_PI
from genprior.networks import mlp, with_columns


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
        return log_determinant - 0.5 * (z.square() + LOG_2_PI).sum(1)


class MixtureTransport(nn.Module):
    """t(z): z ~ N(0, I) -> t ~ Σ_j w_j N(μ_j, L_j L_jᵀ), code by code: t_i = F_i⁻¹(Φ(z_i) | t_1, ..., t_{i-1}).

    F_i is the mixture's conditional distribution, Φ the normal one. The map is exact, increasing in each code, and its
    Jacobian lower triangular; one component gives t = μ + L z. The Knothe-Rosenblatt map: Rosenblatt 1952; Villani
    2009, chapter 1.

    log_weight: (J,); mean: (J, k); factor: L, lower with a positive diagonal, (J, k, k).
    """

    def __init__(self, components: int, k: int):
        super().__init__()
        self.register_buffer("log_weight", torch.zeros(components))
        self.register_buffer("mean", torch.zeros(components, k))
        self.register_buffer("factor", torch.eye(k).repeat(components, 1, 1))

    def forward(self, z: Tensor) -> Tensor:
        """t(z): (N, k) -> (N, k)."""
        return _Transported.apply(z, self)

    def solve(self, z: Tensor) -> Tensor:
        """t(z) without derivatives, which `jacobian` gives."""
        log_share = self.log_weight.expand(len(z), -1)
        white, codes = [], []  # L_j⁻¹(t - μ_j) and t so far
        for i in range(z.shape[1]):
            centre = self.mean[:, i].expand(len(z), -1)
            if i:
                centre = centre + torch.einsum("jl,njl->nj", self.factor[:, i, :i], torch.stack(white, 2))
            width = self.factor[:, i, i]
            codes.append(_quantile(log_share.softmax(1), centre, width, z[:, i]))
            white.append((codes[-1][:, None] - centre) / width)
            log_share = log_share - 0.5 * white[-1].square() - width.log()
        return torch.stack(codes, 1)

    def _conditionals(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_j⁻¹(t - μ_j), the share π_ij of each component in each F_i, both (N, J, k), and L_j⁻¹ (J, k, k)."""
        identity = torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
        inverse = torch.linalg.solve_triangular(self.factor, identity.expand_as(self.factor), upper=False)
        u = torch.einsum("jil,njl->nji", inverse, t[:, None] - self.mean)
        log_density = -0.5 * u.square() - self.factor.diagonal(dim1=1, dim2=2).log()
        before = log_density.cumsum(2) - log_density  # of the codes before the i-th
        return u, (self.log_weight[:, None] + before).softmax(1), inverse

    def inverse(self, t: Tensor) -> Tensor:
        """z of t, in closed form: z_i = Φ⁻¹(F_i(t_i | t_1, ..., t_{i-1})), (N, k) -> (N, k)."""
        u, share, _ = self._conditionals(t)
        return _normal_score(share, u)

    def jacobian(self, t: Tensor) -> Tensor:
        """∂t/∂z at t = t(z), the inverse of ∂z/∂t, which is in closed form: (N, k) -> (N, k, k), lower triangular."""
        at_once = max(1, 2**22 // self.factor.numel())  # 16 MB of temporaries: they stay in the cache
        return torch.cat([self._jacobian(part) for part in t.split(at_once)])

    def _jacobian(self, t: Tensor) -> Tensor:
        u, share, inverse = self._conditionals(t)
        z = _normal_score(share, u)[:, None]
        density = share * (0.5 * (z.square() - u.square())).exp()  # π_ij φ(u_ij) / φ(z_i)
        # F_i changes with the shares too; Σ_j ∂π_ij = 0 lets the smaller tail stand for both
        side = torch.where(z < 0, 1.0, -1.0)
        tail = side * share * _normal_tail(-side * u) * (0.5 * (z.square() + LOG_2_PI)).exp()
        pull = (tail - share * tail.sum(1, keepdim=True)).mT  # of each log π_ij, (N, k, J)
        place = torch.eye(t.shape[1], dtype=t.dtype, device=t.device)
        earlier = torch.ones_like(place).tril(-1)
        rows = -pull[..., None] * u[:, None] * earlier[:, None] + density.mT[..., None] * place[:, None]  # (N, k, J, k)
        change = rows.flatten(2) @ inverse.flatten(0, 1)
        return torch.linalg.solve_triangular(change, place.expand_as(change), upper=False)


class _Transported(torch.autograd.Function):
    """t(z), differentiated by its Jacobian and not through the steps of its solver."""

    @staticmethod
    def forward(z: Tensor, transport: MixtureTransport) -> Tensor:
        return transport.solve(z)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
        ctx.transport = inputs[1]
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        jacobian = ctx.transport.jacobian(*ctx.saved_tensors)
        return torch.einsum("nij,ni->nj", jacobian, gradient), None

    @staticmethod
    def jvp(ctx: torch.autograd.function.FunctionCtx, tangent: Tensor, _: None) -> Tensor:
        return torch.einsum("nij,nj->ni", ctx.transport.jacobian(*ctx.saved_tensors), tangent)

    @staticmethod
    def vmap(info: object, in_dims: tuple, z: Tensor, transport: MixtureTransport) -> tuple[Tensor, int | None]:
        if in_dims[0] is None:  # many directions at the same codes
            return _Transported.apply(z, transport), None
        z = z.movedim(in_dims[0], 0)
        return _Transported.apply(z.flatten(0, 1), transport).unflatten(0, z.shape[:2]), 0


def _normal_score(share: Tensor, u: Tensor) -> Tensor:
    """Φ⁻¹(Σ_j π_j Φ(u_j)) over axis 1, from the smaller tail, so that it does not round to 1."""
    below, above = (share * _normal_tail(-u)).sum(1), (share * _normal_tail(u)).sum(1)
    score = ndtri(torch.minimum(below, above))
    return torch.where(below < above, score, -score)


def _quantile(share: Tensor, centre: Tensor, width: Tensor, z: Tensor, most: int = 60) -> Tensor:
    """t with Σ_j π_j Φ((t - c_j) / s_j) = Φ(z): shares and centres (N, J), widths (J,), z (N,) -> (N,).

    Newton's method on Φ⁻¹ of both sides, which is nearly linear; a step out of the bracket is replaced by its middle.
    """
    ends = centre + width * z[:, None]  # each component's own answer: the mixture's lies between
    low, high = ends.min(1).values, ends.max(1).values
    found, todo = (share * ends).sum(1), torch.arange(len(z), device=z.device)
    fine = 4 * torch.finfo(z.dtype).eps
    for _ in range(most):
        t = found[todo]
        u = (t[:, None] - centre[todo]) / width
        error = _normal_score(share[todo], u) - z[todo]
        slope = (share[todo] * (0.5 * ((error + z[todo]).square()[:, None] - u.square())).exp()) @ (1 / width)
        low[todo], high[todo] = torch.where(error < 0, t, low[todo]), torch.where(error > 0, t, high[todo])
        step = t - error / slope
        inside = (step >= low[todo]) & (step <= high[todo])  # false for NaN, of a slope of 0
        step = torch.where(inside, step, (low[todo] + high[todo]) / 2)
        going = (error.abs() > fine) & ((step - t).abs() > fine * (1 + t.abs()))
        todo = todo[going]
        if len(todo) == 0:
            break
        found[todo] = step[going]
    return found


def _normal_tail(u: Tensor) -> Tensor:
    """1 - Φ(u), small without rounding, as torch.special.ndtr's is not."""
    return 0.5 * torch.erfc(u / 2**0.5)
