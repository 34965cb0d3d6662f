"""Latent inversion: the most probable code of a measurement, for a batch of measurements and starts at once.

An energy is -log p(y | z) + ½ τ ‖z‖² in nats. `RangeEnergy` confines images to the range of G, as the chapter does;
`RelaxedEnergy` lets the prior's residual model speak: y | z ~ N(K G(z), S(z)), S(z) = σ² I + K Σ(z) Kᵀ.
`search` minimises either by damped Fisher scoring; `adam` and `lbfgs` are the references behind the same signature.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from genprior.operators import as_matrix

CONVERGED, OUT_OF_ITERATIONS, NOT_FINITE = "converged", "out of iterations", "not finite"
STATUS = (OUT_OF_ITERATIONS, CONVERGED, NOT_FINITE)
LOG_2_PI = math.log(2 * math.pi)


class Energy(Protocol):
    """What a solver asks of a batch of N problems; `rows` (P,) says which problem each code of z (P, k) belongs to."""

    def value(self, z: Tensor, rows: Tensor) -> Tensor:
        """The energy of each code: (P,)."""

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (P, k) and Fisher matrix (P, k, k), positive semi-definite, of the energy at each code."""

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        """The image that goes with each code: (P, 1, h, w)."""


def with_columns(function: Callable, z: Tensor) -> tuple:
    """A function of codes (P, k) with its Jacobian by forward mode: its outputs (P, ...), then theirs (P, ..., k).

    A function that has `with_columns`, or a method NAME with a twin NAME_with_columns, does it by itself.
    """

    own = getattr(function, "with_columns", None)  # a network's, or a method's twin
    own = own or getattr(getattr(function, "__self__", None), f"{getattr(function, '__name__', '')}_with_columns", None)
    if own is not None:
        return own(z)

    def column(direction: Tensor) -> tuple:
        return torch.func.jvp(function, (z,), (direction.expand_as(z),))

    directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    # Moved by hand: with out_dims=-1, torch 2.13 gives an output that does not depend on z a first axis of 2^35.
    outputs, tangents = torch.func.vmap(column, out_dims=(None, 0))(directions)
    if isinstance(tangents, tuple):
        return outputs, tuple(tangent.movedim(0, -1).contiguous() for tangent in tangents)
    return outputs, tangents.movedim(0, -1).contiguous()


class RangeEnergy:
    """‖K G(z) - y‖² / (2 σ²) + λ / (2 σ²) ‖z‖² + m/2 log(2π σ²): the chapter's objective, divided by 2 σ².

    decode: G, codes (P, k) -> (P, 1, h, w), any differentiable callable; operator: K, linear or not; y: (N, ...);
    latent_weight: λ, None for Bayes' σ². A method of a `Prior` brings its own derivatives, which are faster.
    """

    def __init__(
        self, decode: Callable[[Tensor], Tensor], operator: object, y: Tensor, sigma: float, latent_weight: float | None
    ):
        self.decode, self.operator, self.y, self.sigma = decode, operator, y.flatten(1), sigma
        self.latent_precision = 1.0 if latent_weight is None else latent_weight / sigma**2
        self.constant = self.y.shape[1] / 2 * (LOG_2_PI + 2 * math.log(sigma))
        prior = getattr(decode, "__self__", None)
        if hasattr(prior, "through") and hasattr(operator, "A_adjoint"):
            self.forward = prior.through(as_matrix(operator, prior.shape, prior.coefficients.basis))
        else:
            self.forward = lambda z: operator.A(decode(z)).flatten(1)  # K G(z): (P, k) -> (P, m)

    def value(self, z: Tensor, rows: Tensor) -> Tensor:
        misfit = (self.forward(z) - self.y[rows]).square().sum(1) / self.sigma**2
        return 0.5 * (misfit + self.latent_precision * z.square().sum(1)) + self.constant

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        predicted, jacobian = with_columns(self.forward, z)
        residual = (predicted - self.y[rows]) / self.sigma**2
        gradient = torch.einsum("pmk,pm->pk", jacobian, residual) + self.latent_precision * z
        fisher = jacobian.mT @ jacobian / self.sigma**2
        fisher.diagonal(dim1=1, dim2=2).add_(self.latent_precision)
        return gradient, fisher

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.decode(z)

    def chapter_objective(self, z: Tensor, rows: Tensor) -> Tensor:
        """‖K G(z) - y‖² + λ‖z‖² as the chapter writes it: (P,)."""
        return 2 * self.sigma**2 * (self.value(z, rows) - self.constant)


class RelaxedEnergy:
    """½ rᵀS⁻¹r + ½ log det S + ½‖z‖² + m/2 log 2π, r = y - K G(z), S = σ² I + K U diag(v(z)) Uᵀ Kᵀ.

    moments: codes (P, k) -> mean and variance v > 0 of the coefficients Uᵀx, each (P, n); basis: U (n, n);
    shape: (h, w); operator: K; y: (N, ...); sigma >= 0, and above 0 unless K has full row rank.
    A non-linear K enters S through its Jacobian at G(z); where it has kinks, as clipping has, the energy jumps, and a
    search may end at a jump.
    """

    def __init__(
        self, moments: Callable, basis: Tensor, shape: tuple[int, int], operator: object, y: Tensor, sigma: float
    ):
        self.moments, self.basis, self.shape, self.operator, self.sigma = moments, basis, shape, operator, sigma
        self.y = y.flatten(1)
        self.constant = self.y.shape[1] / 2 * LOG_2_PI
        self.matrix = self.diagonal = None  # K U, and its columns' norms where they are orthogonal
        if hasattr(operator, "A_adjoint"):
            self.matrix = as_matrix(operator, shape, basis) @ basis
            self._use_orthogonal_columns()
        # B diag(v) Bᵀ for all codes as one matrix product: products of K U's rows, (n, m²), where they are few
        self.products = None
        if self.matrix is not None and self.diagonal is None and len(self.matrix) <= 128:
            self.products = torch.einsum("in,jn->nij", self.matrix, self.matrix).flatten(1)

    def _use_orthogonal_columns(self) -> None:
        # K = I and a blur mirrored at the borders are diagonal in the DCT: S is too, once y is rotated into it.
        gram = self.matrix.T @ self.matrix
        norms = gram.diagonal().sqrt()
        if (gram - gram.diagonal().diag()).abs().max() > 1e-5 * norms.max() ** 2:
            return
        seen = norms > 1e-5 * norms.max()  # what the operator blots out says nothing
        self.diagonal = torch.where(seen, norms, 0.0)
        rotated = self.y @ (self.matrix / torch.where(seen, norms, 1.0)) * seen
        unseen = self.y.shape[1] - int(seen.sum())
        if unseen:  # what of y lies outside the operator's range is noise alone
            lost = (self.y.square().sum(1) - rotated.square().sum(1)).clamp_min(0)
            self.constant = self.constant + lost / (2 * self.sigma**2) + unseen * math.log(self.sigma)
        self.y, self.seen = rotated, seen

    def _linearise(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """K x and the Jacobian of K U at coefficients c (P, n): (P, m), and (m, n) or (P, m, n)."""
        if self.matrix is not None:
            return c @ self.matrix.T, self.matrix

        def forward(c: Tensor) -> Tensor:
            return self.operator.A((c @ self.basis.T).reshape(-1, 1, *self.shape)).flatten(1)

        return with_columns(forward, c)

    def _factors(self, z: Tensor, rows: Tensor, c: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Residual r (P, m), Jacobian B of K U, and the Cholesky factor L of S (P, m, m)."""
        predicted, matrix = self._linearise(c)
        if self.products is not None:
            covariance = (v @ self.products).unflatten(1, (len(matrix), -1))
        else:
            covariance = (matrix * v[:, None, :]) @ matrix.mT
        covariance.diagonal(dim1=1, dim2=2).add_(self.sigma**2)
        factor, failed = torch.linalg.cholesky_ex(covariance)
        # A failed factor is not to be trusted: its problem's energy becomes NaN, which no solver accepts.
        factor = torch.where((failed > 0)[:, None, None], torch.nan, factor)
        return self.y[rows] - predicted, matrix, factor

    def value(self, z: Tensor, rows: Tensor) -> Tensor:
        c, v = self.moments(z)
        constant = self.constant if isinstance(self.constant, float) else self.constant[rows]
        if self.diagonal is not None:
            variance = torch.where(self.seen, self.diagonal**2 * v + self.sigma**2, 1.0)
            residual = self.y[rows] - self.diagonal * c
            energy = (residual.square() / variance + variance.log()).sum(1)
        else:
            residual, _, factor = self._factors(z, rows, c, v)
            white = torch.linalg.solve_triangular(factor, residual.unsqueeze(2), upper=False)
            energy = white.square().sum((1, 2)) + 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return 0.5 * (energy + z.square().sum(1)) + constant

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient -Jᵀa + ½ Vᵀ(diag P - a²) + z and Fisher (WJ)ᵀ(WJ) + ½ Vᵀ(P∘P)V + I, W = L⁻¹B, P = WᵀW."""
        (c, v), (mean_jacobian, variance_jacobian) = with_columns(self.moments, z)
        if self.diagonal is not None:
            variance = torch.where(self.seen, self.diagonal**2 * v + self.sigma**2, 1.0)
            p = self.diagonal**2 / variance
            a = self.diagonal * (self.y[rows] - self.diagonal * c) / variance
            fisher = mean_jacobian.mT @ (p.unsqueeze(2) * mean_jacobian)
            fisher += 0.5 * variance_jacobian.mT @ (p.square().unsqueeze(2) * variance_jacobian)
        else:
            residual, matrix, factor = self._factors(z, rows, c, v)
            w = torch.linalg.solve_triangular(factor, matrix.expand(len(z), -1, -1), upper=False)
            white = torch.linalg.solve_triangular(factor, residual.unsqueeze(2), upper=False)
            a = (w.mT @ white).squeeze(2)
            projected = w @ mean_jacobian
            precision = w.mT @ w
            p = precision.diagonal(dim1=1, dim2=2)
            fisher = projected.mT @ projected
            fisher += 0.5 * variance_jacobian.mT @ (precision.square() @ variance_jacobian)
        if self.matrix is None:  # S changes with K's Jacobian too, which the formula does not know
            gradient = self._gradient(z, rows)
        else:
            gradient = -torch.einsum("pnk,pn->pk", mean_jacobian, a) + z
            gradient += 0.5 * torch.einsum("pnk,pn->pk", variance_jacobian, p - a.square())
        fisher.diagonal(dim1=1, dim2=2).add_(1.0)
        return gradient, fisher

    def _gradient(self, z: Tensor, rows: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(self.value(z, rows).sum(), z)[0]

    def _gain(self, z: Tensor, rows: Tensor, c: Tensor, v: Tensor, noise: Tensor | None, start: Tensor) -> Tensor:
        """start + Σ Kᵀ S⁻¹ (y - K start - noise) in coefficients; start and noise are (P, n) and (P, m)."""
        if self.diagonal is not None:
            variance = torch.where(self.seen, self.diagonal**2 * v + self.sigma**2, 1.0)
            residual = self.y[rows] - self.diagonal * start - (0 if noise is None else noise)
            return start + v * self.diagonal * residual / variance
        residual, matrix, factor = self._factors(z, rows, c, v)
        # K is linear, or taken as linear around G(z): K start = K G(z) + B (start - c).
        residual = residual - ((start - c).unsqueeze(1) @ matrix.mT).squeeze(1) - (0 if noise is None else noise)
        solved = torch.cholesky_solve(residual.unsqueeze(2), factor)
        return start + v * (matrix.mT @ solved).squeeze(2)

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        """E[x | y, z] = G(z) + Σ(z) Kᵀ S(z)⁻¹ (y - K G(z)): (P, 1, h, w)."""
        c, v = self.moments(z)
        return (self._gain(z, rows, c, v, None, c) @ self.basis.T).reshape(-1, 1, *self.shape)

    def draw(self, z: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One x ~ p(x | y, z) for each code: a draw from the prior, moved by the gain of what it leaves unexplained.

        Exact for linear K (Matheron's rule, see Doucet 2010): (P, 1, h, w).
        """
        c, v = self.moments(z)
        start = c + v.sqrt() * torch.randn(c.shape, generator=generator, dtype=c.dtype).to(c.device)
        noise = self.sigma * torch.randn(self.y[rows].shape, generator=generator, dtype=c.dtype).to(c.device)
        return (self._gain(z, rows, c, v, noise, start) @ self.basis.T).reshape(-1, 1, *self.shape)


@dataclass(frozen=True)
class Inversion:
    """The best code of each problem: z (N, k), its image x (N, 1, h, w), its energy (N,), how its search ended."""

    z: Tensor
    x: Tensor
    energy: Tensor
    status: list[str]


@dataclass(frozen=True)
class Modes:
    """Where the searches of each problem ended: z (S, N, k), energies (S, N), indices into STATUS (S, N)."""

    z: Tensor
    energy: Tensor
    state: Tensor

    def best(self, energy: Energy) -> Inversion:
        """The best search of each problem."""
        rows = torch.arange(self.z.shape[1], device=self.z.device)
        winner = self.energy.argmin(0)
        z = self.z[winner, rows]
        x = torch.cat([energy.estimate(z[part], part) for part in rows.split(256)])
        return Inversion(z, x, self.energy[winner, rows], [STATUS[i] for i in self.state[winner, rows].tolist()])


def search(energy: Energy, starts: Tensor, iterations: int, audition: int = 8) -> Modes:
    """Damped Fisher scoring from starts (S, N, k), the worse half of each problem's dropped after each `audition`.

    Successive halving: `iterations` for the two starts that are left in the end, fewer for those dropped on the way.
    """
    z, problems = starts, torch.arange(starts.shape[1], device=starts.device)
    while True:
        count = len(z)
        last = count <= 2 or iterations <= audition
        budget = iterations if last else audition
        codes, value, state = fisher_scoring(energy, z.flatten(0, 1), problems.repeat(count), budget)
        z, value, state = codes.reshape(z.shape), value.reshape(count, -1), state.reshape(count, -1)
        if last:
            return Modes(z, value, state)
        order = value.argsort(dim=0, stable=True)[: (count + 1) // 2]
        z = z[order, problems]
        iterations -= audition


def fisher_scoring(
    energy: Energy, z: Tensor, rows: Tensor, iterations: int, tolerance: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise an energy from the codes z (P, k), each with its own damping and its own end; for v = 0 this is LM.

    Step d: (F + μ diag F) d = -g with the Fisher matrix F; μ follows the gain ratio (Nielsen 1999, report
    IMM-REP-1999-05, equation 2.4; Marquardt 1963 for diag F). A code has converged once a step promises less than
    `tolerance` (1 + |energy|). Returns the best codes, their energies (inf where even the start has none), and the
    index of each one's STATUS.
    """
    z = z.clone()
    value = _finite_or_inf(_by_parts(energy.value, z, rows))
    damping, growth = torch.full_like(value, 1e-2), torch.full_like(value, 2.0)
    state = torch.where(value.isfinite(), 0, 2)
    active = (state == 0).nonzero().squeeze(1)
    gradient, fisher = torch.empty_like(z), z.new_empty(*z.shape, z.shape[1])
    stale = torch.ones_like(state, dtype=torch.bool)  # the code has moved since its gradient was taken
    for _ in range(iterations):
        if len(active) == 0:
            break
        fresh = active[stale[active]]
        for part in fresh.split(64):  # n × n matrices for each: small enough for the allocator to keep
            gradient[part], fisher[part] = energy.model(z[part], rows[part])
        stale[fresh] = False
        g, f = gradient[active], fisher[active]
        diagonal = f.diagonal(dim1=1, dim2=2)
        scale = diagonal + 1e-6 * diagonal.mean(1, keepdim=True) + torch.finfo(z.dtype).tiny
        factor, failed = torch.linalg.cholesky_ex(f + torch.diag_embed(damping[active, None] * scale))
        step = -torch.cholesky_solve(g.unsqueeze(2), factor).squeeze(2)
        promised = -((g * step).sum(1) + 0.5 * torch.einsum("pi,pij,pj->p", step, f, step))
        usable = (failed == 0) & step.isfinite().all(1)
        trial = _by_parts(energy.value, torch.where(usable[:, None], z[active] + step, z[active]), rows[active])
        gain = (value[active] - trial) / promised
        good = usable & (trial < value[active])  # false for NaN

        taken, refused = active[good], active[~good]
        z[taken] += step[good]
        value[taken] = trial[good]
        stale[taken] = True
        damping[taken] *= (1 - (2 * gain[good] - 1) ** 3).clamp(1 / 3, 2)
        growth[taken] = 2.0
        damping[refused] *= growth[refused]
        growth[refused] *= 2
        done = usable & (promised <= tolerance * (1 + value[active].abs()))
        # A wall of values that are not finite also makes steps small: the best code is kept, under its name.
        lost = ~(g.isfinite().all(1) & f.flatten(1).isfinite().all(1)) | (damping[active] > 1e12)
        wall = lost | (done & ~trial.isfinite())
        state[active[done]] = 1
        state[active[wall]] = 2
        active = active[~(done | wall)]
    return z, value, state


def _by_parts(function: Callable, z: Tensor, rows: Tensor, size: int = 2048) -> Tensor:
    return torch.cat([function(*part) for part in zip(z.split(size), rows.split(size), strict=True)])


def _finite_or_inf(value: Tensor) -> Tensor:
    return torch.where(value.isfinite(), value, torch.inf)


def adam(energy: Energy, starts: Tensor, iterations: int, lr: float = 0.1) -> Modes:
    """Adam from all starts (S, N, k), the best iterate of each kept: CSGM's recipe (Bora et al. 2017, section 6)."""
    return _first_order(energy, starts, iterations, lambda z: torch.optim.Adam([z], lr=lr))


def lbfgs(energy: Energy, starts: Tensor, iterations: int) -> Modes:
    """torch's L-BFGS with a strong Wolfe search on the sum over all starts (S, N, k), the best iterate of each kept."""
    return _first_order(
        energy, starts, iterations, lambda z: torch.optim.LBFGS([z], max_iter=1, line_search_fn="strong_wolfe")
    )


def _first_order(energy: Energy, starts: Tensor, iterations: int, optimizer_of: Callable) -> Modes:
    count, problems, k = starts.shape
    rows = torch.arange(problems, device=starts.device).repeat(count)
    z = starts.reshape(-1, k).clone().requires_grad_()
    optimizer = optimizer_of(z)
    best, best_value = z.detach().clone(), z.new_full((len(z),), torch.inf)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = energy.value(z, rows)
        better = value.detach() < best_value
        best[better], best_value[better] = z.detach()[better], value.detach()[better]
        total = torch.where(value.isfinite(), value, 0.0).sum()
        total.backward()
        return total

    for _ in range(iterations):
        optimizer.step(closure)
    closure()
    state = torch.where(best_value.isfinite(), 0, 2)
    return Modes(best.reshape(starts.shape), best_value.reshape(count, problems), state.reshape(count, problems))
