"""S(z) = σ² I + K Σ(z) Kᵀ, the covariance of a measurement given a code, by a class for each structure of it.

Each class turns a prior's moments into the data's part of the energy, ½ rᵀS⁻¹r + ½ log det S with r = y - K G(z):
its value, its slopes along the moments, its Fisher matrix, and the images that go with a code and a measurement.
`moments`, here and below: of the codes (P, k) of a batch, c = E[Uᵀx] (P, n), then v (P, n) and scales (P, B) where the
prior has them; `rows` (P,) says which problem each code belongs to; `columns` are the moments' Jacobians (P, ..., k).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from genprior.batches import by_forward_mode, by_parts, floats_at_once, noise_like
from genprior.files import InputError

LOG_2_PI = math.log(2 * math.pi)
Moments = tuple[Tensor, ...]
Expanded = tuple[Tensor, Tensor, Moments | None, Tensor]  # what `Covariance.fisher` gives
Axes = tuple[Tensor, Tensor]  # of A = A_h ⊗ A_w: A_h (h, h) and A_w (w, w)


class Covariance(Protocol):
    """What an energy asks of a structure of S.

    y: measurements as rows (N, m); chunk, fisher_chunk: how many codes a part of a computation takes; size: floats that
    one code takes in `misfit`; slopes_known: whether `slopes` and `fisher` know the slopes, else they are None.
    """

    y: Tensor
    chunk: int
    fisher_chunk: int
    size: int
    slopes_known: bool

    def constant(self, rows: Tensor) -> float | Tensor:
        """What each problem's energy has beside misfit, determinant and latent prior: a number or (P,)."""

    def misfit(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        """rᵀS⁻¹r and log det S: (P,) each."""

    def misfit_of_all(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        """The same of M codes for each of P problems, S computed once a code: (M, P) and (M,)."""

    def slopes(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Moments | None]:
        """`misfit`, and the slopes of ½ rᵀS⁻¹r + ½ log det S along each of the moments."""

    def fisher(self, rows: Tensor, moments: Moments, columns: Moments) -> Expanded:
        """rᵀS⁻¹r, log det S, the slopes or None, and the data's Fisher matrix of the code (P, k, k)."""


@dataclass(frozen=True)
class Observation:
    """y = K x + e, e ~ N(0, σ² I), of images with coefficients c = Uᵀx.

    y: (N, m); basis: U (n, n); shape: (h, w); matrix: K (m, n) where it is linear, else None: then S takes K's Jacobian
    at G(z). Where such a K has kinks, as clipping has, the energy jumps.
    """

    operator: object
    y: Tensor
    sigma: float
    basis: Tensor
    shape: tuple[int, int]
    matrix: Tensor | None

    @cached_property
    def in_basis(self) -> Tensor | None:
        """K U: (m, n)."""
        return None if self.matrix is None else self.matrix @ self.basis

    def linearised(self, c: Tensor, pixels: bool = False) -> tuple[Tensor, Tensor]:
        """K x and the Jacobian of K U, or of K in pixels, at coefficients c (P, n): (P, m), and (m, n) or (P, m, n)."""
        if self.matrix is not None:
            return c @ self.in_basis.T, self.matrix if pixels else self.in_basis

        def forward(c: Tensor) -> tuple[Tensor]:
            return (self.operator.A(self.images(c)).flatten(1),)

        (predicted,), (jacobian,) = by_forward_mode(forward, c)
        return predicted, jacobian @ self.basis.T if pixels else jacobian

    def images(self, c: Tensor) -> Tensor:
        """Images of coefficients: (P, n) -> (P, 1, h, w)."""
        return (c @ self.basis.T).reshape(-1, 1, *self.shape)


def cholesky(covariance: Tensor) -> Tensor:
    """The lower factor L of each matrix (P, m, m); NaN where there is none, which no solver accepts as an energy."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    return torch.where((failed > 0)[:, None, None], torch.nan, factor) if failed.any() else factor


def inverse(factor: Tensor) -> Tensor:
    """L⁻¹ of lower factors: (P, m, m) -> (P, m, m)."""
    identity = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)


def solve(factor: Tensor, y: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ y for lower factors (P, m, m) and vectors (P, m)."""
    return torch.cholesky_solve(y.unsqueeze(2), factor).squeeze(2)


def log_determinant(factor: Tensor) -> Tensor:
    """log det L Lᵀ: (P, m, m) -> (P,)."""
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


class Isotropic:
    """S = σ² I, for images confined to a range. The one moment is K G(z) itself, (P, m)."""

    slopes_known = True

    def __init__(self, y: Tensor, sigma: float, latent_size: int = 64):
        self.y, self.sigma, self.latent_size = y, sigma, latent_size
        m, floats = y.shape[1], floats_at_once(y)
        self.size = max(2**12, 16 * m)
        self.chunk, self.fisher_chunk = (max(1, floats // n) for n in (self.size, max(2**16, 12 * m * latent_size)))

    def constant(self, rows: Tensor) -> float:
        return self.y.shape[1] / 2 * (LOG_2_PI + 2 * math.log(self.sigma))

    def misfit(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        squared = (moments[0] - self.y[rows]).square().sum(1) / self.sigma**2
        return squared, torch.zeros_like(squared)

    def misfit_of_all(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        squared = (
            torch.cdist(moments[0], self.y[rows], compute_mode="donot_use_mm_for_euclid_dist").square() / self.sigma**2
        )
        return squared, torch.zeros_like(squared[:, 0])

    def slopes(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Moments]:
        return *self.misfit(rows, moments), ((moments[0] - self.y[rows]) / self.sigma**2,)

    def fisher(self, rows: Tensor, moments: Moments, columns: Moments) -> Expanded:
        (jacobian,) = columns
        return *self.slopes(rows, moments), jacobian.mT @ jacobian / self.sigma**2


class Dense:
    """S = σ² I + K U diag(v(z)) Uᵀ Kᵀ for any K. With B = K U and P = BᵀS⁻¹B, the slope along v is ½ diag P - ½ a²,
    a = BᵀS⁻¹r the one along -c, and the Fisher matrix JᵀPJ + ½ Vᵀ(P ∘ P)V for the columns J of c and V of v.
    """

    def __init__(self, observation: Observation):
        self.observation, self.y, self.sigma = observation, observation.y, observation.sigma
        self.slopes_known = observation.matrix is not None  # else S changes with K's Jacobian too
        m, n = self.y.shape[1], len(observation.basis)
        # B diag(v) Bᵀ for all codes as one matrix product: products of B's rows, (n, m(m + 1)/2), where they are few
        self.products = None
        if self.slopes_known and m <= 128:
            b = observation.in_basis
            i, j = torch.tril_indices(m, m, device=b.device)
            self.products = (b[i] * b[j]).T.contiguous()
            place = torch.empty(m, m, dtype=torch.long, device=b.device)
            place[i, j] = place[j, i] = torch.arange(len(i), device=place.device)
            self.unpacked = place.flatten()  # where each entry of S stands among the products
        self.size = 4 * n + 4 * m**2 + (0 if self.products is not None else m * n) if self.slopes_known else 4 * m * n
        floats = floats_at_once(self.y)
        self.chunk, self.fisher_chunk = (max(1, floats // numbers) for numbers in (self.size, max(self.size, n**2)))
        self.dense_chunk = self.chunk

    def constant(self, rows: Tensor) -> float:
        return self.y.shape[1] / 2 * LOG_2_PI

    def _factors(self, c: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K x at coefficients c (P, m), B, and the Cholesky factor of S (P, m, m)."""
        predicted, b = self.observation.linearised(c)
        if self.products is not None:
            covariance = (v @ self.products).index_select(1, self.unpacked).unflatten(1, (len(b), -1))
        else:
            covariance = (b * v[:, None, :]) @ b.mT
        covariance.diagonal(dim1=1, dim2=2).add_(self.sigma**2)
        return predicted, b, cholesky(covariance)

    def misfit(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        predicted, _, factor = self._factors(*moments)
        white = torch.linalg.solve_triangular(factor, (self.y[rows] - predicted).unsqueeze(2), upper=False)
        return white.square().sum((1, 2)), log_determinant(factor)

    def misfit_of_all(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        predicted, _, factor = self._factors(*moments)
        root, y = inverse(factor), self.y[rows]
        # L⁻¹ (y - K G(z)) for all pairs, the difference within the product: (M, m, P)
        left = torch.cat([root, -(root @ predicted.unsqueeze(2))], 2)
        return (left @ torch.cat([y.T, y.new_ones(1, len(y))])).square_().sum(1), log_determinant(factor)

    def _whitened(self, rows: Tensor, moments: Moments) -> tuple[Tensor, ...]:
        """L⁻¹ (P, m, m), L⁻¹r (P, m, 1), B, and log det S (P,)."""
        predicted, b, factor = self._factors(*moments)
        # L⁻¹, then products with it: several times as fast as solving for every column of B
        root = inverse(factor)
        return root, root @ (self.y[rows] - predicted).unsqueeze(2), b, log_determinant(factor)

    def slopes(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Moments]:
        root, white, b, log_det = self._whitened(rows, moments)
        a = (white.mT @ root @ b).squeeze(1)
        # few at a time, which stay in the cache: in half the time
        p = torch.cat([(part @ b).square_().sum(1) for part in root.split(64)])
        return white.square().sum((1, 2)), log_det, (-a, 0.5 * (p - a.square()))

    def fisher(self, rows: Tensor, moments: Moments, columns: Moments) -> Expanded:
        c_columns, v_columns = columns
        root, white, b, log_det = self._whitened(rows, moments)
        w = root @ b
        projected = w @ c_columns
        fisher = projected.mT @ projected
        if self.products is not None and self.products.shape[1] <= len(self.observation.basis):
            # Vᵀ(P ∘ P)V from L⁻¹ B diag(column of V) Bᵀ L⁻ᵀ, how S changes with each code
            changes = (v_columns.mT @ self.products).index_select(2, self.unpacked)
            changes = changes.unflatten(2, (w.shape[1], -1))
            changes = (root[:, None] @ changes @ root[:, None].mT).flatten(2)
            fisher += 0.5 * changes @ changes.mT
        else:
            fisher += 0.5 * v_columns.mT @ ((w.mT @ w).square_() @ v_columns)
        a = (white.mT @ w).squeeze(1)
        slopes = (-a, 0.5 * (w.square().sum(1) - a.square())) if self.slopes_known else None
        return white.square().sum((1, 2)), log_det, slopes, fisher

    def condition(self, rows: Tensor, moments: Moments, generator: torch.Generator | None) -> Tensor:
        """E[x | y, z] = G(z) + Σ Kᵀ S⁻¹ (y - K G(z)), or with a generator a draw of x | y, z: (P, 1, h, w).

        A draw is one from the prior, moved by what it leaves of y: Matheron's rule, see Doucet 2010; exact for a
        linear K, else for K taken as linear around G(z).
        """
        c, v = moments
        start, noise = c, 0.0
        if generator is not None:
            start = c + v.sqrt() * noise_like(c, generator)
            noise = self.sigma * noise_like(self.y[rows], generator)
        predicted, b, factor = self._factors(c, v)
        moved = ((start - c).unsqueeze(1) @ b.mT).squeeze(1)
        solved = solve(factor, self.y[rows] - predicted - moved - noise)
        return self.observation.images(start + v * (b.mT @ solved.unsqueeze(2)).squeeze(2))


class Diagonal:
    """`Dense` where the columns of K U are orthogonal: S is diagonal once y is rotated into them.

    So it is for K = I and for a blur mirrored at the borders. y is the rotated one here, (N, n).
    """

    slopes_known = True

    def __init__(self, observation: Observation):
        self.observation, self.sigma = observation, observation.sigma
        norms = observation.in_basis.norm(dim=0)
        self.seen = norms > 1e-5 * norms.max()  # what the operator blots out says nothing
        self.norms = torch.where(self.seen, norms, 0.0)
        y = observation.y
        self.y = y @ (observation.in_basis / torch.where(self.seen, norms, 1.0)) * self.seen
        self.constants = y.new_full((len(y),), y.shape[1] / 2 * LOG_2_PI)
        if blind := y.shape[1] - int(self.seen.sum()):  # what of y lies outside the operator's range is noise alone
            if self.sigma == 0:
                raise InputError("sigma = 0: the operator leaves numbers of y to noise alone; above 0 would be right")
            lost = (y.square().sum(1) - self.y.square().sum(1)).clamp_min(0)
            self.constants = self.constants + lost / (2 * self.sigma**2) + blind * math.log(self.sigma)
        self.size, n = 4 * len(norms), len(norms)
        floats = floats_at_once(y)
        self.chunk, self.fisher_chunk = max(1, floats // self.size), max(1, floats // max(self.size, n**2))

    def constant(self, rows: Tensor) -> Tensor:
        return self.constants[rows]

    def _variance(self, v: Tensor) -> Tensor:
        """The diagonal of S: (P, n), 1 where nothing is seen."""
        return torch.where(self.seen, self.norms**2 * v + self.sigma**2, 1.0)

    def misfit(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        c, v = moments
        s = self._variance(v)
        return ((self.y[rows] - self.norms * c).square() / s).sum(1), s.log().sum(1)

    def misfit_of_all(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        c, v = moments
        s, predicted, y = self._variance(v), self.norms * c, self.y[rows]
        misfit = (1 / s) @ y.square().T - 2 * (predicted / s) @ y.T
        return misfit + (predicted.square() / s).sum(1, keepdim=True), s.log().sum(1)

    def _slopes(self, rows: Tensor, moments: Moments) -> tuple[Moments, Tensor]:
        """The slopes, and diag P: (P, n)."""
        c, v = moments
        s = self._variance(v)
        a, p = self.norms * (self.y[rows] - self.norms * c) / s, self.norms**2 / s
        return (-a, 0.5 * (p - a.square())), p

    def slopes(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Moments]:
        return *self.misfit(rows, moments), self._slopes(rows, moments)[0]

    def fisher(self, rows: Tensor, moments: Moments, columns: Moments) -> Expanded:
        c_columns, v_columns = columns
        slopes, p = self._slopes(rows, moments)
        fisher = c_columns.mT @ (p.unsqueeze(2) * c_columns)
        return *self.misfit(rows, moments), slopes, fisher + 0.5 * v_columns.mT @ (p.square().unsqueeze(2) * v_columns)

    def condition(self, rows: Tensor, moments: Moments, generator: torch.Generator | None) -> Tensor:
        """As `Dense.condition`: (P, 1, h, w)."""
        c, v = moments
        start, noise = c, 0.0
        if generator is not None:
            start, noise = c + v.sqrt() * noise_like(c, generator), self.sigma * noise_like(c, generator)
        residual = self.y[rows] - self.norms * start - noise
        return self.observation.images(start + v * self.norms * residual / self._variance(v))


class Scaled:
    """S where Σ(z) = D U diag(v(z)) Uᵀ D: what v(z) draws is multiplied by a scale in every pixel.

    fields: (B, n), D = diag(scales @ fields), positive. B(z) = K D U is linear in the scales, Σ_b scales_b K
    diag(fields_b) U, and S is dense, whatever K is. Networks take more codes at a time than what S costs allows: of
    few, they would read their weights for little.
    """

    def __init__(self, observation: Observation, fields: Tensor):
        self.observation, self.fields = observation, fields
        self.y, self.sigma, self.basis = observation.y, observation.sigma, observation.basis
        self.slopes_known = observation.matrix is not None
        m, n, floats = self.y.shape[1], len(self.basis), floats_at_once(self.y)
        self.size = self._floats(m, n)
        self.dense_chunk = max(1, floats // self.size)
        self.dense_fisher_chunk = max(1, floats // (8 * n**2 + 4 * m * n))
        self.chunk, self.fisher_chunk = max(self.dense_chunk, floats // 2**14), max(1, floats // n**2)

    def _floats(self, m: int, n: int) -> int:
        return 4 * m**2 + 3 * m * n

    def constant(self, rows: Tensor) -> float:
        return self.y.shape[1] / 2 * LOG_2_PI

    @cached_property
    def parts(self) -> Tensor:
        """K diag(fields_b) U for each b, where K is linear: (B, m n)."""
        return ((self.observation.matrix * self.fields[:, None]) @ self.basis).flatten(1)

    def _spread(self, jacobian: Tensor, scales: Tensor) -> Tensor:
        """B(z) = K D U: (P, m, n)."""
        if self.slopes_known:
            return (scales @ self.parts).unflatten(1, self.observation.matrix.shape)
        return (jacobian * (scales @ self.fields)[:, None]) @ self.basis

    def _covariance(self, jacobian: Tensor, v: Tensor, scales: Tensor) -> Tensor:
        """S: (P, m, m)."""
        spread = self._spread(jacobian, scales)
        covariance = (spread * v[:, None]) @ spread.mT
        covariance.diagonal(dim1=1, dim2=2).add_(self.sigma**2)
        return covariance

    def _white(self, y: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        """L⁻¹ (y - K G(z)) for the columns of y, (P, m, 1) or (m, N) -> (P, m, N), and log det S (P,)."""
        predicted, jacobian = self.observation.linearised(moments[0], pixels=True)
        factor = cholesky(self._covariance(jacobian, *moments[1:]))
        white = torch.linalg.solve_triangular(factor, y - predicted.unsqueeze(2), upper=False)
        return white, log_determinant(factor)

    def misfit(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        def of_part(rows: Tensor, *moments: Tensor) -> tuple[Tensor, Tensor]:
            white, log_det = self._white(self.y[rows].unsqueeze(2), moments)
            return white.square().sum((1, 2)), log_det

        return by_parts(of_part, self.dense_chunk, rows, *moments)

    def misfit_of_all(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        def of_part(*moments: Tensor) -> tuple[Tensor, Tensor]:
            white, log_det = self._white(self.y[rows].T, moments)
            return white.square().sum(1), log_det

        return by_parts(of_part, self.dense_chunk, *moments)

    def _root(self, moments: Moments) -> tuple[Tensor, ...]:
        """K x, K's Jacobian, R with R S Rᵀ = I (P, m, m), and log det S (P,)."""
        predicted, jacobian = self.observation.linearised(moments[0], pixels=True)
        factor = cholesky(self._covariance(jacobian, *moments[1:]))
        return predicted, jacobian, inverse(factor), log_determinant(factor)

    def _data_term(self, rows: Tensor, moments: Moments) -> tuple:
        """Misfit, log det S, the slopes or None, and what `_fisher` asks for: W = R B, R, K's Jacobian."""
        _, v, scales = moments
        predicted, jacobian, root, log_det = self._root(moments)
        w, white = root @ self._spread(jacobian, scales), root @ (self.y[rows] - predicted).unsqueeze(2)
        misfit = white.square().sum((1, 2))
        if not self.slopes_known:
            return misfit, log_det, None, (w, root, jacobian)
        solved, a = root.mT @ white, (white.mT @ w).squeeze(1)  # S⁻¹r and BᵀS⁻¹r
        along_spread = (root.mT @ w - solved * a[:, None]) * v[:, None]  # (S⁻¹ - S⁻¹r rᵀS⁻¹) B diag(v)
        along_scales = along_spread.flatten(1) @ self.parts.T
        along_c = -solved.squeeze(2) @ self.observation.in_basis
        return misfit, log_det, (along_c, 0.5 * (w.square().sum(1) - a.square()), along_scales), (w, root, jacobian)

    def slopes(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Moments]:
        def of_part(rows: Tensor, *moments: Tensor) -> tuple[Tensor, ...]:
            misfit, log_det, slopes, _ = self._data_term(rows, moments)
            return misfit, log_det, *slopes

        misfit, log_det, *slopes = by_parts(of_part, self.dense_chunk, rows, *moments)
        return misfit, log_det, tuple(slopes)

    def fisher(self, rows: Tensor, moments: Moments, columns: Moments) -> Expanded:
        """(R K J)ᵀ(R K J) + ½ tr(Δ_i Δ_j), Δ = R dS Rᵀ along each code, behind what `slopes` gives."""

        def of_part(rows: Tensor, *batches: Tensor) -> tuple[Tensor, ...]:
            moments, columns = batches[:3], batches[3:]
            misfit, log_det, slopes, parts = self._data_term(rows, moments)
            return misfit, log_det, *(slopes or ()), self._fisher(parts, moments[1], columns)

        misfit, log_det, *slopes, fisher = by_parts(of_part, self.dense_fisher_chunk, rows, *moments, *columns)
        return misfit, log_det, tuple(slopes) or None, fisher

    def _fisher(self, parts: tuple[Tensor, ...], v: Tensor, columns: Moments) -> Tensor:
        """With Q = R K and Y = U diag(v) Wᵀ, Δ = W diag(dv) Wᵀ + Q diag(dd) Y + (Q diag(dd) Y)ᵀ: (P, k, k).

        All traces are quadratic forms in dv and dd, of Hadamard products of n × n matrices. Of few measurements, Δ
        itself costs less.
        """
        w, root, jacobian = parts
        c_columns, v_columns, scales_columns = columns
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

    def condition(self, rows: Tensor, moments: Moments, generator: torch.Generator | None) -> Tensor:
        """As `Dense.condition`: (P, 1, h, w)."""
        v = moments[1]
        own, noise = torch.zeros_like(v), torch.zeros_like(self.y[rows])
        if generator is not None:
            own, noise = v.sqrt() * noise_like(v, generator), self.sigma * noise_like(self.y[rows], generator)

        def of_part(rows: Tensor, own: Tensor, noise: Tensor, *moments: Tensor) -> Tensor:
            c, v, scales = moments
            d = scales @ self.fields
            predicted, jacobian = self.observation.linearised(c, pixels=True)
            residual = self.y[rows] - predicted - noise
            residual = residual - ((d * (own @ self.basis.T)).unsqueeze(1) @ jacobian.mT).squeeze(1)
            solved = solve(cholesky(self._covariance(jacobian, v, scales)), residual)
            own = own + v * ((d * (solved.unsqueeze(1) @ jacobian).squeeze(1)) @ self.basis)
            return c @ self.basis.T + d * (own @ self.basis.T)

        return by_parts(of_part, self.dense_chunk, rows, own, noise, *moments).reshape(-1, 1, *self.observation.shape)


class White(Scaled):
    """`Scaled` where K = I and σ = 0, that is -log p(x | z): diag(v)^{-½} Uᵀ D⁻¹ whitens x - G(z)."""

    def __init__(self, observation: Observation, fields: Tensor):
        super().__init__(observation, fields)
        self.size = 2**14

    def _whitening(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """D's diagonal (P, n), and log det S (P,)."""
        d = moments[2] @ self.fields
        return d, moments[1].log().sum(1) + 2 * d.log().sum(1)

    def _root(self, moments: Moments) -> tuple[Tensor, ...]:
        d, log_det = self._whitening(moments)
        root = self.basis.T / d[:, None] / moments[1].sqrt()[:, :, None]
        return *self.observation.linearised(moments[0], pixels=True), root, log_det

    def misfit(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        d, log_det = self._whitening(moments)
        white = (self.y[rows] - moments[0] @ self.basis.T) / d @ self.basis
        return (white.square() / moments[1]).sum(1), log_det

    def misfit_of_all(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        d, log_det = self._whitening(moments)
        white = (self.y[rows] - (moments[0] @ self.basis.T)[:, None]) / d[:, None] @ self.basis
        return (white.square() / moments[1][:, None]).sum(2), log_det

    def slopes(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor, Moments]:
        c, v, _ = moments
        d, log_det = self._whitening(moments)
        relative = (self.y[rows] - c @ self.basis.T) / d
        white = relative @ self.basis
        along_relative = white / v @ self.basis.T
        along_d = (1 - along_relative * relative) / d
        slopes = -(along_relative / d) @ self.basis, 0.5 * (1 - white.square() / v) / v, along_d @ self.fields.T
        return (white.square() / v).sum(1), log_det, slopes


class Separable(Scaled):
    """`Scaled` where K and U act on one axis after the other, U = U_h ⊗ U_w and K = K_h ⊗ K_w, as a blur does; σ > 0.

    On the columns of a matrix, both then cost (h + w) / n of a product. What the energy asks of S⁻¹ is in pixels:
    Q = Kᵀ S⁻¹ K, and N = Q - Kᵀ S⁻¹ r rᵀ S⁻¹ K, with the slopes ½ diag(Uᵀ D N D U) along v and (C ∘ N) d along d,
    C = U diag(v) Uᵀ. operator_axes: K_h and K_w, None for K = I; basis_axes: U_h and U_w.
    """

    def __init__(self, observation: Observation, fields: Tensor, operator_axes: Axes | None, basis_axes: Axes):
        self.operator_axes, self.basis_axes = operator_axes, basis_axes
        self.products_by_axis = [(axis[:, None] * axis).flatten(0, 1) for axis in basis_axes]  # (h h, h), (w w, w)
        super().__init__(observation, fields)

    def _floats(self, m: int, n: int) -> int:
        return 8 * n**2

    def _covariance(self, jacobian: Tensor, v: Tensor, scales: Tensor) -> Tensor:
        return self._of_pixels(_scaled(self._in_pixels(v), scales @ self.fields))

    def _of_pixels(self, covariance: Tensor) -> Tensor:
        """σ² I + K Σ Kᵀ for Σ (P, n, n), in its place where K = I."""
        if self.operator_axes is not None:
            covariance = _from_both_sides(self.operator_axes, covariance)
        covariance.diagonal(dim1=1, dim2=2).add_(self.sigma**2)
        return covariance

    def _in_pixels(self, v: Tensor) -> Tensor:
        """C = U diag(v) Uᵀ: (P, n) -> (P, n, n)."""
        (h, w), (first, second) = self.observation.shape, self.products_by_axis
        by_axes = first @ (v.unflatten(1, (h, w)) @ second.T)  # (P, h h, w w)
        return by_axes.reshape(-1, h, h, w, w).transpose(2, 3).reshape(-1, h * w, h * w)

    def _spectrum(self, matrix: Tensor) -> Tensor:
        """diag(Uᵀ M U), the adjoint of `_in_pixels`: (P, n, n) -> (P, n)."""
        (h, w), (first, second) = self.observation.shape, self.products_by_axis
        by_axes = matrix.reshape(-1, h, w, h, w).transpose(2, 3).reshape(-1, h * h, w * w)
        return (first.T @ by_axes @ second).flatten(1)

    def _data_term(self, rows: Tensor, moments: Moments) -> tuple:
        """Misfit, log det S, the slopes, and for `_fisher` D's diagonal (P, n) and Q (P, n, n)."""
        c, v, scales = moments
        d, inside = scales @ self.fields, self._in_pixels(v)
        factor = cholesky(self._of_pixels(_scaled(inside, d)))
        residual = self.y[rows] - c @ self.observation.in_basis.T
        solved = solve(factor, residual)
        q, a = torch.cholesky_inverse(factor).mT, solved  # Q, row by row, and KᵀS⁻¹r
        if self.operator_axes is not None:
            q = _from_both_sides(tuple(axis.T for axis in self.operator_axes), q)
            a = solved @ self.observation.matrix
        outer = q - a[:, :, None] * a[:, None]  # N
        along_v = 0.5 * self._spectrum(_scaled(outer, d))
        along_scales = (inside.mul_(outer) @ d.unsqueeze(2)).squeeze(2) @ self.fields.T
        slopes = (-a @ self.basis, along_v, along_scales)
        return (residual * solved).sum(1), log_determinant(factor), slopes, (d, q)

    def _fisher(self, parts: tuple[Tensor, ...], v: Tensor, columns: Moments) -> Tensor:
        """With A = Uᵀ D Q, P = A D U, X = U diag(v) A, Y = U diag(v) P and Z = U diag(v) Yᵀ: (P, k, k).

        It is (U J)ᵀ Q (U J), and of dv, dd the quadratic form
        ½ dvᵀ (P ∘ P) dv + dvᵀ (A ∘ Yᵀ) dd + ddᵀ (A ∘ Yᵀ)ᵀ dv + ddᵀ (X ∘ Xᵀ + Z ∘ Q) dd.
        """
        d, q = parts
        c_columns, v_columns, scales_columns = columns
        basis, adjoint = self.basis_axes, tuple(axis.T for axis in self.basis_axes)
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
