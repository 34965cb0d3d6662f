"""What is minimised and sampled: energies of codes, with their gradients and Fisher matrices, batched over problems.

An energy is -log p(y | z) + ½ τ ‖z‖² in nats. `RangeEnergy` confines images to the range of G, as the chapter does;
`RelaxedEnergy` lets the prior's residual model speak: y | z ~ N(K G(z), S(z)), S(z) = σ² I + K Σ(z) Kᵀ. Its subclasses
know more of S, and make less work of it; `relaxed_energy` takes the one that fits a prior and an operator.
"""

import copy
import math
from collections.abc import Callable
from functools import cache, cached_property
from typing import Protocol

import torch
from scipy.linalg import get_lapack_funcs
from threadpoolctl import ThreadpoolController
from torch import Tensor

from genprior.gaussian import LOG_2_PI
from genprior.operators import Identity, as_matrix, factors_by_axis

LEAF = 64  # rows of a matrix up to which LAPACK alone is faster than halves and matrix products
Axes = tuple[Tensor, Tensor] | list[Tensor]  # of A = A_h ⊗ A_w: A_h (h, h) and A_w (w, w)


class Energy(Protocol):
    """What a solver asks of a batch of N problems; `rows` (P,) says which problem each code of z (P, k) belongs to."""

    y: Tensor  # the measurements, (N, ...)
    size: int  # how many numbers the temporaries of one code's value take
    chunk: int  # how many codes to hand to `value`, `value_and_gradient` or `estimate` at a time
    model_chunk: int  # and to `model`, whose temporaries are larger
    latent_precision: float  # τ
    fades: bool  # whether energies with noise cost no more than those without, so that sampling may go by them

    def value(self, z: Tensor, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        """The energy of each code: (P,).

        With noise s (P,), up to a constant of each problem and s, as if y held a further error, s times as large in
        variance as what the prior and the measurement leave open at its centre z = 0.
        """

    def cross(self, z: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor:
        """The energy of every code for each problem of `rows` (P,), G and S computed once a code: (M, k) -> (M, P)."""

    def value_and_gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The energy of each code and its gradient: (P,) and (P, k)."""

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (P, k) and Fisher matrix (P, k, k), positive semi-definite, of the energy at each code."""

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        """The image that goes with each code: (P, 1, h, w)."""

    def softened(self) -> "Energy | None":
        """An energy with fewer, wider minima, near deep ones of this one; None where it would lead a search astray."""


def floats_at_once(like: Tensor) -> int:
    """How large the temporaries of one part of a computation may be, on the device of `like`.

    On a CPU 16 MB of float32, which stay in its caches; elsewhere 1 GB, which keep the device busy. Memory does not
    grow with the number of codes.
    """
    return 2**22 if like.device.type == "cpu" else 2**28


def by_parts(function: Callable, size: int, *batches: Tensor) -> Tensor | tuple[Tensor, ...]:
    """A function of batches of one length, codes and rows for one, `size` of each at a time."""
    parts = [function(*part) for part in zip(*(batch.split(size) for batch in batches), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
    return torch.cat(parts)


def cross_energies(energy: Energy, pool: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor:
    """`energy.cross` of a pool (M, k) by parts, inf where it is not finite: (M, P)."""
    size = max(1, min(energy.chunk, floats_at_once(energy.y) // (len(rows) * energy.y.shape[1])))
    value = torch.cat([energy.cross(part, rows, noise) for part in pool.split(size)])
    return torch.where(value.isfinite(), value, torch.inf)


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


def differentiated(value: Callable[[Tensor, Tensor], Tensor], z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """An energy and its gradient by reverse mode: (P,) and (P, k)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        energy = value(z, rows)
        return energy.detach(), torch.autograd.grad(energy.sum(), z)[0]


class RangeEnergy:
    """‖K G(z) - y‖² / (2 σ²) + λ / (2 σ²) ‖z‖² + m/2 log(2π σ²): the chapter's objective, divided by 2 σ².

    decode: G, codes (P, k) -> (P, 1, h, w), any differentiable callable; operator: K, linear or not; y: (N, ...);
    latent_weight: λ, None for Bayes' σ². A method of a `Prior` brings its own derivatives, which are faster.
    """

    fades = True

    def __init__(
        self, decode: Callable[[Tensor], Tensor], operator: object, y: Tensor, sigma: float, latent_weight: float | None
    ):
        self.decode, self.operator, self.y, self.sigma = decode, operator, y.flatten(1), sigma
        self.latent_precision = 1.0 if latent_weight is None else latent_weight / sigma**2
        self.constant = self.y.shape[1] / 2 * (LOG_2_PI + 2 * math.log(sigma))
        prior, m, floats = getattr(decode, "__self__", None), self.y.shape[1], floats_at_once(self.y)
        jacobian = m * getattr(prior, "latent_size", 64)
        self.size = max(2**12, 16 * m)
        self.chunk, self.model_chunk = (max(1, floats // n) for n in (self.size, max(2**16, 12 * jacobian)))
        if hasattr(prior, "through") and hasattr(operator, "A_adjoint"):
            self.forward = prior.through(as_matrix(operator, prior.shape, prior.coefficients.basis))
        else:
            self.forward = lambda z: operator.A(decode(z)).flatten(1)  # K G(z): (P, k) -> (P, m)

    def value(self, z: Tensor, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        squared = (self.forward(z) - self.y[rows]).square().sum(1)
        if noise is None:
            misfit = squared / self.sigma**2
        else:
            misfit = squared / (self.sigma**2 * (1 + noise)) + self.y.shape[1] * torch.log1p(noise)
        return 0.5 * (misfit + self.latent_precision * z.square().sum(1)) + self.constant

    def cross(self, z: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor:
        misfit = torch.cdist(self.forward(z), self.y[rows]).square() / (self.sigma**2 * (1 + noise))
        misfit += self.y.shape[1] * math.log1p(noise)
        return 0.5 * (misfit + self.latent_precision * z.square().sum(1, keepdim=True)) + self.constant

    def value_and_gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return differentiated(self.value, z, rows)

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        predicted, jacobian = with_columns(self.forward, z)
        residual = (predicted - self.y[rows]) / self.sigma**2
        gradient = torch.einsum("pmk,pm->pk", jacobian, residual) + self.latent_precision * z
        fisher = jacobian.mT @ jacobian / self.sigma**2
        fisher.diagonal(dim1=1, dim2=2).add_(self.latent_precision)
        return gradient, fisher

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.decode(z)

    def softened(self) -> "RangeEnergy":
        """As if σ were twice as large, beside the same latent prior; for λ = 0, a quarter of the energy itself."""
        softer = copy.copy(self)
        softer.sigma = 2 * self.sigma
        softer.constant = self.constant + self.y.shape[1] * math.log(2)
        return softer

    def chapter_objective(self, z: Tensor, rows: Tensor) -> Tensor:
        """‖K G(z) - y‖² + λ‖z‖² as the chapter writes it: (P,)."""
        return 2 * self.sigma**2 * (self.value(z, rows) - self.constant)


class RelaxedEnergy:
    """½ rᵀS⁻¹r + ½ log det S + ½‖z‖² + m/2 log 2π, r = y - K G(z), S = σ² I + K U diag(v(z)) Uᵀ Kᵀ.

    moments: codes (P, k) -> mean and variance v > 0 of the coefficients Uᵀx, each (P, n); basis: U (n, n);
    shape: (h, w); operator: K; y: (N, ...); sigma >= 0, and above 0 unless K has full row rank; operator_matrix: a
    linear K as (m, n), built where it is not given. S is dense here, whatever K is: `relaxed_energy` picks a subclass
    where S has structure.
    A non-linear K enters S through its Jacobian at G(z); where it has kinks, as clipping has, the energy jumps, and a
    search may end at a jump.
    """

    latent_precision, fades = 1.0, True

    def __init__(
        self,
        moments: Callable,
        basis: Tensor,
        shape: tuple[int, int],
        operator: object,
        y: Tensor,
        sigma: float,
        operator_matrix: Tensor | None = None,
    ):
        self.moments, self.basis, self.shape, self.operator, self.sigma = moments, basis, shape, operator, sigma
        self.y = y.flatten(1)
        if operator_matrix is None and hasattr(operator, "A_adjoint"):
            operator_matrix = as_matrix(operator, shape, basis)
        self.operator_matrix = operator_matrix  # K
        self.matrix = None if operator_matrix is None else operator_matrix @ basis  # K U
        self._prepare()

    def _prepare(self) -> None:
        """What all codes share."""
        # B diag(v) Bᵀ for all codes as one matrix product: products of K U's rows, (n, m(m + 1)/2), where they are few
        self.products, m, n = None, self.y.shape[1], len(self.basis)
        if self.matrix is not None and m <= 128:
            i, j = torch.tril_indices(m, m, device=self.matrix.device)
            self.products = (self.matrix[i] * self.matrix[j]).T.contiguous()
            place = torch.empty(m, m, dtype=torch.long, device=self.matrix.device)
            place[i, j] = place[j, i] = torch.arange(len(i), device=place.device)
            self.unpacked = place.flatten()  # where each entry of S stands among the products
        if self.matrix is None:  # K's Jacobian for each code, by forward mode
            self._size_chunks(4 * m * n)
        else:  # S, its factor, that one's inverse and their like
            self._size_chunks(4 * n + 4 * m**2 + (0 if self.products is not None else m * n))

    def _size_chunks(self, size: int) -> None:
        self.size, floats = size, floats_at_once(self.y)
        self.chunk, self.model_chunk = (max(1, floats // n) for n in (size, max(size, len(self.basis) ** 2)))

    def _linearise(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """K x and the Jacobian of K U at coefficients c (P, n): (P, m), and (m, n) or (P, m, n)."""
        if self.matrix is not None:
            return c @ self.matrix.T, self.matrix

        def forward(c: Tensor) -> Tensor:
            return self.operator.A((c @ self.basis.T).reshape(-1, 1, *self.shape)).flatten(1)

        return with_columns(forward, c)

    def _factors(self, c: Tensor, v: Tensor, noise: Tensor | None = None) -> tuple[Tensor, ...]:
        """K x at coefficients c (P, m), Jacobian B of K U, and the Cholesky factor L of S (P, m, m)."""
        predicted, matrix = self._linearise(c)
        if self.products is not None:
            covariance = (v @ self.products).index_select(1, self.unpacked).unflatten(1, (len(matrix), -1))
        else:
            covariance = (matrix * v[:, None, :]) @ matrix.mT
        variance = self.sigma**2 if noise is None else (self.sigma**2 * (1 + noise))[:, None]
        covariance.diagonal(dim1=1, dim2=2).add_(variance)
        return predicted, matrix, _cholesky(covariance)

    def _whitening(self, rows: Tensor, c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """L⁻¹ (P, m, m), L⁻¹r (P, m, 1), B, and log det S (P,)."""
        predicted, matrix, factor = self._factors(c, v)
        # L⁻¹, then products with it: several times as fast as solving for every column of B
        inverse = _inverse(factor)
        return inverse, inverse @ (self.y[rows] - predicted).unsqueeze(2), matrix, _log_determinant(factor)

    def _constant(self, rows: Tensor) -> float | Tensor:
        return self.y.shape[1] / 2 * LOG_2_PI

    def _energy(self, z: Tensor, rows: Tensor, misfit: Tensor, log_determinant: Tensor) -> Tensor:
        return 0.5 * (misfit + log_determinant + z.square().sum(1)) + self._constant(rows)

    def _cross_energy(self, z: Tensor, rows: Tensor, misfit: Tensor, log_determinant: Tensor) -> Tensor:
        return 0.5 * (misfit + (log_determinant + z.square().sum(1))[:, None]) + self._constant(rows)

    def _noisy_moments(self, z: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """`moments`, and with noise s (P,) the variances v(z) + s v(0)."""
        c, v = self.moments(z)
        return c, v if noise is None else v + noise[:, None] * self.moments(torch.zeros_like(z[:1]))[1]

    def value(self, z: Tensor, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        predicted, _, factor = self._factors(*self._noisy_moments(z, noise), noise)
        white = torch.linalg.solve_triangular(factor, (self.y[rows] - predicted).unsqueeze(2), upper=False)
        return self._energy(z, rows, white.square().sum((1, 2)), _log_determinant(factor))

    def cross(self, z: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor:
        spread = z.new_full((len(z),), noise) if noise else None
        predicted, _, factor = self._factors(*self._noisy_moments(z, spread), spread)
        inverse, y = _inverse(factor), self.y[rows]
        # L⁻¹ (y - K G(z)) for all pairs, the difference within the product: (M, m, P)
        left = torch.cat([inverse, -(inverse @ predicted.unsqueeze(2))], 2)
        misfit = (left @ torch.cat([y.T, y.new_ones(1, len(y))])).square_().sum(1)
        return self._cross_energy(z, rows, misfit, _log_determinant(factor))

    def _slopes(self, rows: Tensor, c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """The misfit and log det S (P,), a = BᵀS⁻¹r and diag P, P = BᵀS⁻¹B (P, n)."""
        inverse, white, matrix, log_determinant = self._whitening(rows, c, v)
        a = (white.mT @ inverse @ matrix).squeeze(1)
        # few at a time, which stay in the cache: in half the time
        p = torch.cat([(part @ matrix).square_().sum(1) for part in inverse.split(64)])
        return white.square().sum((1, 2)), log_determinant, a, p

    def value_and_gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The energy and -Jᵀa + ½ Vᵀ(diag P - a²) + z, the products with J and V by reverse mode."""
        if self.matrix is None:  # S changes with K's Jacobian too, which the formula does not know
            return differentiated(self.value, z, rows)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            c, v = self.moments(z)
        misfit, log_determinant, a, p = self._slopes(rows, c.detach(), v.detach())
        with torch.enable_grad():  # what has the energy's gradient
            twin = (0.5 * (p - a.square()) * v - a * c).sum() + 0.5 * z.square().sum()
        return self._energy(z.detach(), rows, misfit, log_determinant), torch.autograd.grad(twin, z)[0]

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient -Jᵀa + ½ Vᵀ(diag P - a²) + z and Fisher (WJ)ᵀ(WJ) + ½ Vᵀ(P∘P)V + I, W = L⁻¹B, P = WᵀW."""
        (c, v), columns = with_columns(self.moments, z)
        a, p, fisher = self._slopes_and_fisher(rows, c, v, *columns)
        if self.matrix is None:
            gradient = self.value_and_gradient(z, rows)[1]
        else:
            gradient = -torch.einsum("pnk,pn->pk", columns[0], a) + z
            gradient += 0.5 * torch.einsum("pnk,pn->pk", columns[1], p - a.square())
        fisher.diagonal(dim1=1, dim2=2).add_(1.0)
        return gradient, fisher

    def _slopes_and_fisher(
        self, rows: Tensor, c: Tensor, v: Tensor, mean_jacobian: Tensor, variance_jacobian: Tensor
    ) -> tuple[Tensor, ...]:
        """Of `model`: a and diag P (P, n), and the Fisher matrix less I (P, k, k)."""
        inverse, white, matrix, _ = self._whitening(rows, c, v)
        w = inverse @ matrix
        projected = w @ mean_jacobian
        fisher = projected.mT @ projected
        if self.products is not None and self.products.shape[1] <= len(self.basis):
            # Vᵀ(P∘P)V from L⁻¹ B diag(column of V) Bᵀ L⁻ᵀ, how S changes with each code
            changes = (variance_jacobian.mT @ self.products).index_select(2, self.unpacked)
            changes = changes.unflatten(2, (w.shape[1], -1))
            changes = (inverse[:, None] @ changes @ inverse[:, None].mT).flatten(2)
            fisher += 0.5 * changes @ changes.mT
        else:
            fisher += 0.5 * variance_jacobian.mT @ ((w.mT @ w).square_() @ variance_jacobian)
        return (white.mT @ w).squeeze(1), w.square().sum(1), fisher

    def _gain(self, rows: Tensor, c: Tensor, v: Tensor, noise: Tensor | float, start: Tensor) -> Tensor:
        """start + Σ Kᵀ S⁻¹ (y - K start - noise) in coefficients; start is (P, n), noise (P, m) or 0."""
        predicted, matrix, factor = self._factors(c, v)
        # K is linear, or taken as linear around G(z): K start = K G(z) + B (start - c).
        moved = ((start - c).unsqueeze(1) @ matrix.mT).squeeze(1)
        solved = _solve(factor, self.y[rows] - predicted - moved - noise)
        return start + v * (matrix.mT @ solved.unsqueeze(2)).squeeze(2)

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        """E[x | y, z] = G(z) + Σ(z) Kᵀ S(z)⁻¹ (y - K G(z)): (P, 1, h, w)."""
        c, v = self.moments(z)
        return (self._gain(rows, c, v, 0.0, c) @ self.basis.T).reshape(-1, 1, *self.shape)

    def softened(self) -> None:
        """None: S(z) already lets a code be wrong, and more noise would drown what v(z) says."""

    def draw(self, z: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One x ~ p(x | y, z) for each code: a draw from the prior, moved by the gain of what it leaves unexplained.

        Exact for linear K (Matheron's rule, see Doucet 2010): (P, 1, h, w).
        """
        c, v = self.moments(z)
        start = c + v.sqrt() * torch.randn(c.shape, generator=generator, dtype=c.dtype).to(c.device)
        noise = self.sigma * torch.randn(self.y[rows].shape, generator=generator, dtype=c.dtype).to(c.device)
        return (self._gain(rows, c, v, noise, start) @ self.basis.T).reshape(-1, 1, *self.shape)


class DiagonalEnergy(RelaxedEnergy):
    """`RelaxedEnergy` where the columns of K U are orthogonal: S is diagonal once y is rotated into them.

    So it is for K = I and for a blur mirrored at the borders. norms: of the columns, (n,). y is the rotated one here.
    """

    def __init__(self, *relaxed: object, norms: Tensor):
        self.seen = norms > 1e-5 * norms.max()  # what the operator blots out says nothing
        self.diagonal = torch.where(self.seen, norms, 0.0)
        super().__init__(*relaxed)

    def _prepare(self) -> None:
        norms = torch.where(self.seen, self.diagonal, 1.0)
        rotated = self.y @ (self.matrix / norms) * self.seen
        unseen = self.y.shape[1] - int(self.seen.sum())
        self.constants = self.y.new_full((len(self.y),), self.y.shape[1] / 2 * LOG_2_PI)
        if unseen:  # what of y lies outside the operator's range is noise alone
            lost = (self.y.square().sum(1) - rotated.square().sum(1)).clamp_min(0)
            self.constants = self.constants + lost / (2 * self.sigma**2) + unseen * math.log(self.sigma)
        self.y = rotated
        self._size_chunks(4 * len(self.basis))

    def _constant(self, rows: Tensor) -> Tensor:
        return self.constants[rows]

    def _variance(self, v: Tensor, noise: Tensor | None = None) -> Tensor:
        """The diagonal of S: (P, n), 1 where nothing is seen."""
        added = self.sigma**2 if noise is None else (self.sigma**2 * (1 + noise))[:, None]
        return torch.where(self.seen, self.diagonal**2 * v + added, 1.0)

    def value(self, z: Tensor, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        c, v = self._noisy_moments(z, noise)
        s, residual = self._variance(v, noise), self.y[rows] - self.diagonal * c
        return self._energy(z, rows, (residual.square() / s).sum(1), s.log().sum(1))

    def cross(self, z: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor:
        spread = z.new_full((len(z),), noise) if noise else None
        c, v = self._noisy_moments(z, spread)
        s, predicted, y = self._variance(v, spread), self.diagonal * c, self.y[rows]
        misfit = (1 / s) @ y.square().T - 2 * (predicted / s) @ y.T
        misfit += (predicted.square() / s).sum(1, keepdim=True)
        return self._cross_energy(z, rows, misfit, s.log().sum(1))

    def _slopes(self, rows: Tensor, c: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        s, residual = self._variance(v), self.y[rows] - self.diagonal * c
        return (residual.square() / s).sum(1), s.log().sum(1), self.diagonal * residual / s, self.diagonal**2 / s

    def _slopes_and_fisher(
        self, rows: Tensor, c: Tensor, v: Tensor, mean_jacobian: Tensor, variance_jacobian: Tensor
    ) -> tuple[Tensor, ...]:
        s = self._variance(v)
        p = self.diagonal**2 / s
        fisher = mean_jacobian.mT @ (p.unsqueeze(2) * mean_jacobian)
        fisher += 0.5 * variance_jacobian.mT @ (p.square().unsqueeze(2) * variance_jacobian)
        return self.diagonal * (self.y[rows] - self.diagonal * c) / s, p, fisher

    def _gain(self, rows: Tensor, c: Tensor, v: Tensor, noise: Tensor | float, start: Tensor) -> Tensor:
        residual = self.y[rows] - self.diagonal * start - noise
        return start + v * self.diagonal * residual / self._variance(v)


class ModulatedEnergy(RelaxedEnergy):
    """The relaxed energy where Σ(z) = D U diag(v(z)) Uᵀ D: what v(z) draws is multiplied by a scale in every pixel.

    moments: codes (P, k) -> mean and variance v of Uᵀx, (P, n), and scales g (P, B); fields: (B, n), D = diag(g fields),
    positive; the rest as in `RelaxedEnergy`. B(z) = K D U is linear in the scales, Σ_b g_b K diag(fields_b) U, and S is
    dense, whatever K is; what some K leave of structure is for the subclasses.
    """

    def __init__(self, *relaxed: object, fields: Tensor):
        self.fields = fields
        super().__init__(*relaxed)

    def _prepare(self) -> None:
        self._centre = None  # S(0), once noise asks for it
        m, n, floats = self.y.shape[1], len(self.basis), floats_at_once(self.y)
        self.size = self._dense_size()
        self.dense_chunk = max(1, floats // self.size)
        self.dense_model_chunk = max(1, floats // (8 * n**2 + 4 * m * n))
        # The networks take more codes at a time: of few, they would read their weights for little.
        self.chunk, self.model_chunk = max(self.dense_chunk, floats // 2**14), max(1, floats // n**2)

    def _dense_size(self) -> int:
        m, n = self.y.shape[1], len(self.basis)
        return 4 * m**2 + 3 * m * n

    @cached_property
    def parts(self) -> Tensor:
        """K diag(fields_b) U for each b, where K is linear: (B, m, n)."""
        return (self.operator_matrix * self.fields[:, None]) @ self.basis

    def _linearise_in_pixels(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """K x and the Jacobian of K in pixels at coefficients c (P, n): (P, m), and (m, n) or (P, m, n)."""
        if self.matrix is not None:
            return c @ self.matrix.T, self.operator_matrix
        predicted, jacobian = self._linearise(c)
        return predicted, jacobian @ self.basis.T

    def _spread(self, jacobian: Tensor, scales: Tensor) -> Tensor:
        """B(z) = K D U: (P, m, n)."""
        if self.matrix is not None:
            return (scales @ self.parts.flatten(1)).unflatten(1, self.matrix.shape)
        return (jacobian * (scales @ self.fields)[:, None]) @ self.basis

    def _covariance(self, jacobian: Tensor, v: Tensor, scales: Tensor) -> Tensor:
        """S without further noise: (P, m, m)."""
        spread = self._spread(jacobian, scales)
        covariance = (spread * v[:, None]) @ spread.mT
        covariance.diagonal(dim1=1, dim2=2).add_(self.sigma**2)
        return covariance

    def _centre_covariance(self, z: Tensor) -> Tensor:
        """S(0), which noise is a multiple of: (1, m, m); z: any codes."""
        if self._centre is None:
            c, v, scales = self.moments(torch.zeros_like(z[:1]))
            self._centre = self._covariance(self._linearise_in_pixels(c)[1], v, scales)
        return self._centre

    def _factorised(self, c: Tensor, v: Tensor, scales: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """K G(z) (P, m), and the Cholesky factor of S, or of S and what is added to it, (P or 1, m, m): (P, m, m)."""
        predicted, jacobian = self._linearise_in_pixels(c)
        covariance = self._covariance(jacobian, v, scales)
        return predicted, _cholesky(covariance if added is None else covariance.add_(added))

    def value(self, z: Tensor, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        centre = self._centre_covariance(z) if noise is not None and noise.any() else None

        def data_term(rows: Tensor, c: Tensor, v: Tensor, scales: Tensor, *noise: Tensor) -> tuple[Tensor, Tensor]:
            added = None if centre is None else noise[0][:, None, None] * centre
            predicted, factor = self._factorised(c, v, scales, added)
            white = torch.linalg.solve_triangular(factor, (self.y[rows] - predicted).unsqueeze(2), upper=False)
            return white.square().sum((1, 2)), _log_determinant(factor)

        batches = rows, *self.moments(z), *(() if centre is None else (noise,))
        return self._energy(z, rows, *by_parts(data_term, self.dense_chunk, *batches))

    def cross(self, z: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor:
        added = noise * self._centre_covariance(z) if noise else None

        def data_term(c: Tensor, v: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
            predicted, factor = self._factorised(c, v, scales, added)
            white = torch.linalg.solve_triangular(factor, self.y[rows].T - predicted.unsqueeze(2), upper=False)
            return white.square().sum(1), _log_determinant(factor)

        return self._cross_energy(z, rows, *by_parts(data_term, self.dense_chunk, *self.moments(z)))

    def _root(self, c: Tensor, v: Tensor, scales: Tensor) -> tuple[Tensor, ...]:
        """K x, K's Jacobian, R with R S Rᵀ = I (P, m, m), and log det S (P,)."""
        predicted, jacobian = self._linearise_in_pixels(c)
        return predicted, jacobian, *_inverse_root(self._covariance(jacobian, v, scales))

    def _data_term(self, rows: Tensor, c: Tensor, v: Tensor, scales: Tensor) -> tuple:
        """The misfit and log det S (P,); for a linear K their slopes along c, v and scales; what `_fisher` asks for."""
        predicted, jacobian, root, log_determinant = self._root(c, v, scales)
        w, white = root @ self._spread(jacobian, scales), root @ (self.y[rows] - predicted).unsqueeze(2)  # W = R B, R r
        misfit = white.square().sum((1, 2))
        if self.matrix is None:  # S changes with K's Jacobian too
            return misfit, log_determinant, None, (w, root, jacobian)
        solved, a = root.mT @ white, (white.mT @ w).squeeze(1)  # S⁻¹r and BᵀS⁻¹r
        along_spread = (root.mT @ w - solved * a[:, None]) * v[:, None]  # (S⁻¹ - S⁻¹r rᵀS⁻¹) B diag(v)
        along_scales = along_spread.flatten(1) @ self.parts.flatten(1).T
        slopes = -solved.squeeze(2) @ self.matrix, 0.5 * (w.square().sum(1) - a.square()), along_scales
        return misfit, log_determinant, slopes, (w, root, jacobian)

    def value_and_gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.matrix is None:  # by parts, for what is differentiated keeps S
            return by_parts(lambda z, rows: differentiated(self.value, z, rows), self.dense_chunk, z, rows)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            moments = self.moments(z)

        def data_term(*batches: Tensor) -> tuple[Tensor, ...]:
            misfit, log_determinant, slopes, _ = self._data_term(*batches)
            return misfit, log_determinant, *slopes

        batches = rows, *(found.detach() for found in moments)
        misfit, log_determinant, *slopes = by_parts(data_term, self.dense_chunk, *batches)
        energy = self._energy(z.detach(), rows, misfit, log_determinant)
        with torch.enable_grad():  # what has the energy's gradient
            twin = sum((slope * moment).sum() for slope, moment in zip(slopes, moments, strict=True))
            return energy, torch.autograd.grad(twin + 0.5 * z.square().sum(), z)[0]

    def model(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient, and Fisher matrix (R K J)ᵀ(R K J) + ½ tr(Δ_i Δ_j) + I, Δ = R dS Rᵀ along each code."""
        moments, columns = with_columns(self.moments, z)

        def data_term(rows: Tensor, *batches: Tensor) -> tuple[Tensor, ...]:
            moments, columns = batches[:3], batches[3:]
            *_, slopes, found = self._data_term(rows, *moments)
            return self._fisher(found, moments[1], *columns), *(() if slopes is None else slopes)

        fisher, *slopes = by_parts(data_term, self.dense_model_chunk, rows, *moments, *columns)
        if self.matrix is None:
            gradient = self.value_and_gradient(z, rows)[1]
        else:
            parts = zip(columns, slopes, strict=True)
            gradient = z + sum(torch.einsum("pnk,pn->pk", column, slope) for column, slope in parts)
        fisher.diagonal(dim1=1, dim2=2).add_(1.0)
        return gradient, fisher

    def _fisher(
        self, found: tuple[Tensor, ...], v: Tensor, c_columns: Tensor, v_columns: Tensor, scales_columns: Tensor
    ) -> Tensor:
        """Of `model`, less I, from W = R B, R and K's Jacobian, which `_data_term` found: (P, k, k).

        With Q = R K and Y = U diag(v) Wᵀ, Δ = W diag(dv) Wᵀ + Q diag(dd) Y + (Q diag(dd) Y)ᵀ: all traces are quadratic
        forms in dv and dd, of Hadamard products of n × n matrices. Of few measurements, Δ itself costs less.
        """
        w, root, jacobian = found
        q = root @ jacobian
        projected = q @ (self.basis @ c_columns)
        y = self.basis @ (v.unsqueeze(2) * w.mT)
        d_columns = self.fields.T @ scales_columns
        if w.shape[1] ** 2 <= 2 * len(self.basis):  # Δ along each code, from products of rows
            products = torch.cat([0.5 * w[:, :, None] * w[:, None], q[:, :, None] * y.mT[:, None]], 3)  # (P, m, m, 2 n)
            halves = (products.flatten(1, 2) @ torch.cat([v_columns, d_columns], 1)).unflatten(1, products.shape[1:3])
            changes = (halves + halves.transpose(1, 2)).flatten(1, 2)
            return projected.mT @ projected + 0.5 * changes.mT @ changes
        yq = y @ q
        mixed = (w.mT @ q) * (y @ w).mT
        along_v = 0.5 * (w.mT @ w).square_() @ v_columns + mixed @ d_columns
        along_d = (yq * yq.mT).addcmul_(y @ y.mT, q.mT @ q) @ d_columns + mixed.mT @ v_columns
        return projected.mT @ projected + v_columns.mT @ along_v + d_columns.mT @ along_d

    def _conditioned(self, z: Tensor, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        """E[x | y, z], or a draw of it by Matheron's rule: (P, 1, h, w)."""
        c, v, scales = self.moments(z)
        own, noise = torch.zeros_like(v), torch.zeros_like(self.y[rows])
        if generator is not None:
            own = v.sqrt() * torch.randn(v.shape, generator=generator, dtype=v.dtype).to(v.device)
            noise = self.sigma * torch.randn(noise.shape, generator=generator, dtype=v.dtype).to(v.device)

        def conditioned(rows: Tensor, c: Tensor, v: Tensor, scales: Tensor, own: Tensor, noise: Tensor) -> Tensor:
            d = scales @ self.fields
            predicted, jacobian = self._linearise_in_pixels(c)
            residual = self.y[rows] - predicted - noise
            residual = residual - ((d * (own @ self.basis.T)).unsqueeze(1) @ jacobian.mT).squeeze(1)
            solved = _solve(_cholesky(self._covariance(jacobian, v, scales)), residual)
            own = own + v * ((d * (solved.unsqueeze(1) @ jacobian).squeeze(1)) @ self.basis)
            return c @ self.basis.T + d * (own @ self.basis.T)

        return by_parts(conditioned, self.dense_chunk, rows, c, v, scales, own, noise).reshape(-1, 1, *self.shape)

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        """E[x | y, z] = G(z) + Σ(z) Kᵀ S(z)⁻¹ (y - K G(z)): (P, 1, h, w)."""
        return self._conditioned(z, rows, None)

    def draw(self, z: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One x ~ p(x | y, z) for each code, exact for linear K: (P, 1, h, w)."""
        return self._conditioned(z, rows, generator)


class WhiteEnergy(ModulatedEnergy):
    """`ModulatedEnergy` where K = I and sigma = 0, that is -log p(x, z): diag(v)^{-½} Uᵀ D⁻¹ whitens x - G(z).

    Both are taken for granted; `relaxed_energy` sees to it.
    """

    fades = False  # noise alone makes S dense

    def _prepare(self) -> None:
        super()._prepare()
        self.size = 2**14

    def _whitened(self, v: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """D's diagonal (P, n), and log det S (P,)."""
        d = scales @ self.fields
        return d, v.log().sum(1) + 2 * d.log().sum(1)

    def _root(self, c: Tensor, v: Tensor, scales: Tensor) -> tuple[Tensor, ...]:
        d, log_determinant = self._whitened(v, scales)
        root = self.basis.T / d[:, None] / v.sqrt()[:, :, None]
        return *self._linearise_in_pixels(c), root, log_determinant

    def value(self, z: Tensor, rows: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is not None and noise.any():
            return super().value(z, rows, noise)
        c, v, scales = self.moments(z)
        d, log_determinant = self._whitened(v, scales)
        white = (self.y[rows] - c @ self.basis.T) / d @ self.basis
        return self._energy(z, rows, (white.square() / v).sum(1), log_determinant)

    def cross(self, z: Tensor, rows: Tensor, noise: float = 0.0) -> Tensor:
        if noise:
            return super().cross(z, rows, noise)
        c, v, scales = self.moments(z)
        d, log_determinant = self._whitened(v, scales)
        white = (self.y[rows] - (c @ self.basis.T)[:, None]) / d[:, None] @ self.basis
        return self._cross_energy(z, rows, (white.square() / v[:, None]).sum(2), log_determinant)

    def value_and_gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return differentiated(self.value, z, rows)


class SeparableEnergy(ModulatedEnergy):
    """`ModulatedEnergy` where K and U act on one axis after the other, U = U_h ⊗ U_w and K = K_h ⊗ K_w, as a blur does.

    On the columns of a matrix, both then cost (h + w) / n of a product. What the energy asks of S⁻¹ is in pixels:
    Q = Kᵀ S⁻¹ K, and N = Q - Kᵀ S⁻¹ r rᵀ S⁻¹ K, with the slopes ½ diag(Uᵀ D N D U) along v and (C ∘ N) d along d,
    C = U diag(v) Uᵀ. operator_axes: K_h (h, h) and K_w (w, w), None for K = I; basis_axes: U_h and U_w; sigma > 0.
    """

    def __init__(self, *relaxed: object, fields: Tensor, operator_axes: Axes | None, basis_axes: Axes):
        self.operator_axes, self.basis_axes = operator_axes, basis_axes
        self.products_by_axis = [(axis[:, None] * axis).flatten(0, 1) for axis in basis_axes]  # (h h, h), (w w, w)
        super().__init__(*relaxed, fields=fields)

    def _dense_size(self) -> int:
        return 8 * len(self.basis) ** 2

    def _covariance(self, jacobian: Tensor, v: Tensor, scales: Tensor) -> Tensor:
        return self._seen(_scaled(self._in_pixels(v), scales @ self.fields))

    def _seen(self, covariance: Tensor) -> Tensor:
        """σ² I + K Σ Kᵀ for Σ (P, n, n), in its place where K = I."""
        if self.operator_axes is not None:
            covariance = _from_both_sides(self.operator_axes, covariance)
        covariance.diagonal(dim1=1, dim2=2).add_(self.sigma**2)
        return covariance

    def _in_pixels(self, v: Tensor) -> Tensor:
        """C = U diag(v) Uᵀ: (P, n) -> (P, n, n)."""
        (h, w), (first, second) = self.shape, self.products_by_axis
        by_axes = first @ (v.unflatten(1, self.shape) @ second.T)  # (P, h h, w w)
        return by_axes.reshape(-1, h, h, w, w).transpose(2, 3).reshape(-1, h * w, h * w)

    def _spectrum(self, matrix: Tensor) -> Tensor:
        """diag(Uᵀ M U), the adjoint of `_in_pixels`: (P, n, n) -> (P, n)."""
        (h, w), (first, second) = self.shape, self.products_by_axis
        by_axes = matrix.reshape(-1, h, w, h, w).transpose(2, 3).reshape(-1, h * h, w * w)
        return (first.T @ by_axes @ second).flatten(1)

    def _data_term(self, rows: Tensor, c: Tensor, v: Tensor, scales: Tensor) -> tuple:
        d, inside = scales @ self.fields, self._in_pixels(v)
        factor, residual = _cholesky(self._seen(_scaled(inside, d))), self.y[rows] - c @ self.matrix.T
        solved = _solve(factor, residual)
        q, a = torch.cholesky_inverse(factor.mT, upper=True).mT, solved  # Q, and KᵀS⁻¹r; transposed as in `_solve`
        if self.operator_axes is not None:
            q, a = _from_both_sides([axis.T for axis in self.operator_axes], q), solved @ self.operator_matrix
        outer = q - a[:, :, None] * a[:, None]  # N
        along_v = 0.5 * self._spectrum(_scaled(outer, d))
        along_scales = (inside.mul_(outer) @ d.unsqueeze(2)).squeeze(2) @ self.fields.T
        return (residual * solved).sum(1), _log_determinant(factor), (-a @ self.basis, along_v, along_scales), (d, q)

    def _fisher(
        self, found: tuple[Tensor, ...], v: Tensor, c_columns: Tensor, v_columns: Tensor, scales_columns: Tensor
    ) -> Tensor:
        """Of `model`, less I, from D's diagonal (P, n) and Q (P, n, n), which `_data_term` found: (P, k, k).

        With A = Uᵀ D Q, P = A D U, X = U diag(v) A, Y = U diag(v) P and Z = U diag(v) Yᵀ, it is (U J)ᵀ Q (U J) and of
        dv, dd the quadratic form ½ dvᵀ (P ∘ P) dv + dvᵀ (A ∘ Yᵀ) dd + ddᵀ (A ∘ Yᵀ)ᵀ dv + ddᵀ (X ∘ Xᵀ + Z ∘ Q) dd.
        """
        d, q = found
        basis, adjoint = self.basis_axes, [axis.T for axis in self.basis_axes]
        spectral = _on_axes(adjoint, d.unsqueeze(2) * q)
        p = _on_axes(adjoint, d.unsqueeze(2) * spectral.mT)
        x = _on_axes(basis, v.unsqueeze(2) * spectral)
        y = _on_axes(basis, v.unsqueeze(2) * p)
        d_columns, mean_columns = self.fields.T @ scales_columns, _on_axes(basis, c_columns)
        mixed = spectral.mul_(y.mT)
        along_v = 0.5 * p.square_() @ v_columns + mixed @ d_columns
        along_d = (x * x.mT).addcmul_(_on_axes(basis, v.unsqueeze(2) * y.mT), q) @ d_columns + mixed.mT @ v_columns
        return mean_columns.mT @ q @ mean_columns + v_columns.mT @ along_v + d_columns.mT @ along_d


def _on_axes(axes: Axes, matrix: Tensor) -> Tensor:
    """(A_h ⊗ A_w) M, A_h (h, h) and A_w (w, w), for matrices M (P, h w, j)."""
    (first, second), (count, n, columns) = axes, matrix.shape
    h, w = len(first), len(second)
    along_w = torch.bmm(second.expand(count * h, w, w), matrix.reshape(count * h, w, columns))
    return torch.bmm(first.expand(count, h, h), along_w.view(count, h, w * columns)).view(count, n, columns)


def _from_both_sides(axes: Axes, matrix: Tensor) -> Tensor:
    """A M Aᵀ, A = A_h ⊗ A_w, for matrices M (P, h w, h w)."""
    first, second = axes
    along_w = _on_axes(axes, matrix).view(-1, len(second)) @ second.T
    along_h = along_w.view(-1, len(first), len(second))
    return torch.bmm(first.expand(len(along_h), -1, -1), along_h).view_as(matrix)


def _scaled(matrix: Tensor, d: Tensor) -> Tensor:
    """D M D for matrices M (P, n, n) and D's diagonal d (P, n)."""
    return (d[:, :, None] * matrix).mul_(d[:, None])


def orthogonal_columns(matrix: Tensor) -> Tensor | None:
    """The norms of a matrix's columns where they are orthogonal, else None: (m, n) -> (n,)."""
    gram = matrix.T @ matrix
    norms = gram.diagonal().sqrt()
    return None if (gram - gram.diagonal().diag()).abs().max() > 1e-5 * norms.max() ** 2 else norms


def relaxed_energy(prior: object, operator: object, y: Tensor, sigma: float) -> RelaxedEnergy:
    """The relaxed energy of a `Prior` with a residual model, of the kind that makes least work of its S."""
    basis, shape, fields = prior.basis, prior.shape, prior.scale_fields
    matrix = as_matrix(operator, shape, basis) if hasattr(operator, "A_adjoint") else None
    relaxed = prior.moments, basis, shape, operator, y, sigma, matrix
    if fields is None:
        norms = None if matrix is None else orthogonal_columns(matrix @ basis)
        return RelaxedEnergy(*relaxed) if norms is None else DiagonalEnergy(*relaxed, norms=norms)
    if isinstance(operator, Identity) and sigma == 0:
        return WhiteEnergy(*relaxed, fields=fields)
    if matrix is not None and sigma > 0 and (basis_axes := factors_by_axis(basis, shape)) is not None:
        operator_axes = None if isinstance(operator, Identity) else factors_by_axis(matrix, shape)
        if isinstance(operator, Identity) or operator_axes is not None:
            return SeparableEnergy(*relaxed, fields=fields, operator_axes=operator_axes, basis_axes=basis_axes)
    return ModulatedEnergy(*relaxed, fields=fields)


def _cholesky(covariance: Tensor) -> Tensor:
    """The lower factor of each matrix (P, m, m), NaN where there is none, which no solver accepts as an energy.

    On a CPU in the matrices' own place, or in a copy of what does not lie row by row, with what they held above the
    diagonal left there: torch copies them, and zeroes that half column by column, which takes as long as LAPACK. Where
    S is to be differentiated, in reverse mode, by torch.
    """
    if covariance.device.type != "cpu" or covariance.requires_grad:
        factor, failed = torch.linalg.cholesky_ex(covariance)
        return torch.where((failed > 0)[:, None, None], torch.nan, factor) if failed.any() else factor
    factor = covariance.contiguous()
    _by_lapack("potrf", factor, overwrite_a=True, clean=False)
    return factor


def _by_lapack(routine: str, matrices: Tensor, **options: bool) -> None:
    """A LAPACK routine on the lower triangles of contiguous matrices (P, m, m), in their own place; NaN where it fails.

    options: among them the one by which this routine overwrites what it is given.
    """
    array = matrices.numpy()
    (function,) = get_lapack_funcs((routine,), dtype=array.dtype)
    with _blas().limit(limits=1):
        for matrix in array:
            _, failed = function(matrix.T, lower=False, **options)  # LAPACK's columns are rows here
            if failed:
                matrix[:] = math.nan


@cache
def _blas() -> ThreadpoolController:
    """SciPy's BLAS, among others: its threads and torch's, waiting for each other, take longer than one alone."""
    return ThreadpoolController().select(user_api="blas")


def _solve(factor: Tensor, y: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ y for lower factors (P, m, m) and vectors (P, m).

    By the upper factor: LAPACK goes by columns, and its columns are rows here, so that torch copies them as they lie.
    """
    return torch.cholesky_solve(y.unsqueeze(2), factor.mT, upper=True).squeeze(2)


def _inverse(factor: Tensor) -> Tensor:
    """L⁻¹ of lower factors (P, m, m), contiguous, whatever they hold above the diagonal.

    By halves above `LEAF`, so that matrix products do most of the work.
    """
    m = factor.shape[1]
    if m <= LEAF:
        return _leaf_inverse(factor)
    inverse, half = factor.new_zeros(factor.shape), m // 2
    corner = inverse[:, :half, :half] = _inverse(factor[:, :half, :half])
    rest = inverse[:, half:, half:] = _inverse(factor[:, half:, half:])
    inverse[:, half:, :half] = -(rest @ (factor[:, half:, :half] @ corner))
    return inverse


def _leaf_inverse(factor: Tensor) -> Tensor:
    """`_inverse` without halves; by torch on other devices, and for a prior whose weights are not frozen."""
    if factor.device.type != "cpu" or factor.requires_grad:
        identity = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device).expand_as(factor)
        return torch.linalg.solve_triangular(factor, identity, upper=False).contiguous()
    inverse = factor.tril().contiguous()
    _by_lapack("trtri", inverse, overwrite_c=True)
    return inverse


def _inverse_root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the Cholesky factor of S (P, m, m), and log det S (P,), NaN where there is none.

    By halves, as `_inverse`, and in less time than one after the other; S may be overwritten, as by `_cholesky`.
    """
    m = covariance.shape[1]
    if m <= LEAF:
        factor = _cholesky(covariance)
        return _inverse(factor), _log_determinant(factor)
    half = m // 2
    inverse = torch.zeros_like(covariance)
    corner, log_determinant = _inverse_root(covariance[:, :half, :half])
    below = covariance[:, half:, :half] @ corner.mT
    rest, further = _inverse_root(torch.baddbmm(covariance[:, half:, half:], below, below.mT, alpha=-1))
    inverse[:, :half, :half], inverse[:, half:, half:] = corner, rest
    inverse[:, half:, :half] = -(rest @ (below @ corner))
    return inverse, log_determinant + further


def _log_determinant(factor: Tensor) -> Tensor:
    """log det L Lᵀ: (P, m, m) -> (P,)."""
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
