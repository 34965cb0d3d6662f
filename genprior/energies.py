"""What is minimised and sampled: E(z) = -log p(y | z) + ½ τ ‖z‖² in nats, batched over problems and codes."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from genprior.batches import by_forward_mode, by_parts, by_reverse_mode, floats_at_once
from genprior.covariances import Covariance, Dense, Diagonal, Isotropic, Moments, Observation, Scaled, Separable, White
from genprior.files import InputError
from genprior.operators import as_matrix


class Model(Protocol):
    """What an energy asks of a prior: the moments that its covariance understands, and their Jacobians."""

    def moments(self, z: Tensor) -> Moments:
        """Of codes (P, k): tensors (P, ...)."""

    def moments_with_columns(self, z: Tensor) -> tuple[Moments, Moments]:
        """The moments, and their Jacobians (P, ..., k)."""


class ByForwardMode:
    """A `Model` of any function of codes that torch can differentiate."""

    def __init__(self, moments: Callable[[Tensor], Moments]):
        self.moments = moments

    def moments_with_columns(self, z: Tensor) -> tuple[Moments, Moments]:
        return by_forward_mode(self.moments, z)


class Energy:
    """E(z) = ½ rᵀS(z)⁻¹r + ½ log det S(z) + m/2 log 2π + ½ τ ‖z‖², r = y - K G(z), for a batch of N problems.

    model: gives the moments of each code; covariance: S, with the measurements; image: the image (P, 1, h, w) that goes
    with codes (P, k) of problems `rows` (P,), or with a generator a draw of it; latent_precision: τ, 1 is Bayes', λ/σ²
    the chapter's. `rows` says below, too, which problem each code belongs to.
    """

    def __init__(self, model: Model, covariance: Covariance, image: Callable, latent_precision: float = 1.0):
        self.model, self.covariance, self.image, self.latent_precision = model, covariance, image, latent_precision
        self.y, self.size = covariance.y, covariance.size
        self.chunk, self.fisher_chunk = covariance.chunk, covariance.fisher_chunk

    def _total(self, z: Tensor, rows: Tensor, misfit: Tensor, log_det: Tensor) -> Tensor:
        prior = self.latent_precision * z.square().sum(1)
        return 0.5 * (misfit + log_det + prior) + self.covariance.constant(rows)

    def value(self, z: Tensor, rows: Tensor) -> Tensor:
        """The energy of each code: (P,)."""
        return self._total(z, rows, *self.covariance.misfit(rows, self.model.moments(z)))

    def of_all(self, z: Tensor, rows: Tensor) -> Tensor:
        """The energy of every code for each problem of `rows` (P,), G and S computed once a code: (M, k) -> (M, P)."""
        misfit, log_det = self.covariance.misfit_of_all(rows, self.model.moments(z))
        own = log_det + self.latent_precision * z.square().sum(1)
        return 0.5 * (misfit + own[:, None]) + self.covariance.constant(rows)

    def value_and_gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The energy of each code and its gradient: (P,) and (P, k)."""
        if not self.covariance.slopes_known:  # by parts, for what is differentiated keeps S
            function = lambda z, rows: by_reverse_mode(self.value, z, rows)  # noqa: E731
            return by_parts(function, self.covariance.dense_chunk, z, rows)
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            moments = self.model.moments(z)
        misfit, log_det, slopes = self.covariance.slopes(rows, tuple(moment.detach() for moment in moments))
        with torch.enable_grad():  # what has the energy's gradient
            twin = sum((slope * moment).sum() for slope, moment in zip(slopes, moments, strict=True))
            (gradient,) = torch.autograd.grad(twin + 0.5 * self.latent_precision * z.square().sum(), z)
        return self._total(z.detach(), rows, misfit, log_det), gradient

    def gradient_and_fisher(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient (P, k), and the Fisher matrix of the data plus τ I (P, k, k)."""
        moments, columns = self.model.moments_with_columns(z)
        fisher, slopes = self.covariance.fisher(rows, moments, columns)
        if slopes is None:
            gradient = self.value_and_gradient(z, rows)[1]
        else:
            parts = zip(columns, slopes, strict=True)
            gradient = sum(torch.einsum("pnk,pn->pk", column, slope) for column, slope in parts)
            gradient += self.latent_precision * z
        fisher.diagonal(dim1=1, dim2=2).add_(self.latent_precision)
        return gradient, fisher

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        """The image of each code given its measurement, E[x | y, z]: (P, 1, h, w)."""
        return self.image(z, rows, None)

    def draw(self, z: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        """One x ~ p(x | y, z) for each code: (P, 1, h, w)."""
        return self.image(z, rows, generator)

    def with_wider_noise(self) -> "Energy | None":
        """As if σ were twice as large: fewer, wider minima near deep ones. None where S(z) lets a code be wrong anyway.

        Graduated non-convexity, Blake & Zisserman 1987.
        """
        wider = getattr(self.covariance, "wider", None)
        return None if wider is None else Energy(self.model, wider(2.0), self.image, self.latent_precision)


class Rows:
    """An energy of some of its problems (P,), numbered anew."""

    def __init__(self, energy: Energy, rows: Tensor):
        self.energy, self.rows, self.y = energy, rows, energy.y[rows]
        self.size, self.chunk, self.fisher_chunk = energy.size, energy.chunk, energy.fisher_chunk
        self.latent_precision = energy.latent_precision

    def value(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.energy.value(z, self.rows[rows])

    def of_all(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.energy.of_all(z, self.rows[rows])

    def value_and_gradient(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy.value_and_gradient(z, self.rows[rows])

    def gradient_and_fisher(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.energy.gradient_and_fisher(z, self.rows[rows])

    def estimate(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.energy.estimate(z, self.rows[rows])

    def draw(self, z: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
        return self.energy.draw(z, self.rows[rows], generator)

    def with_wider_noise(self) -> "Rows | None":
        wider = self.energy.with_wider_noise()
        return None if wider is None else Rows(wider, self.rows)


def energies_of_all(energy: Energy, pool: Tensor, rows: Tensor) -> Tensor:
    """`Energy.of_all` of a pool (M, k) by parts, inf where it is not finite: (M, P)."""
    size = max(1, min(energy.chunk, floats_at_once(energy.y) // (len(rows) * energy.y.shape[1])))
    value = torch.cat([energy.of_all(part, rows) for part in pool.split(size)])
    return torch.where(value.isfinite(), value, torch.inf)


def energy_of(view: object, operator: object, y: Tensor, sigma: float, latent_weight: float | None = None) -> Energy:
    """The energy of measurements y (N, ...) = K x + e, e ~ N(0, σ² I), under a view of a prior.

    latent_weight: λ of ‖K G(z) - y‖² + λ ‖z‖², None for Bayes' σ². What K and the prior state of themselves picks the
    structure of S: `view.covariance`, `view.basis_kind`, `operator.orthogonal_in` and `operator.axes`.
    """
    y, precision = y.flatten(1), 1.0 if latent_weight is None else latent_weight / sigma**2
    matrix = as_matrix(operator, view.shape, view.basis) if hasattr(operator, "A_adjoint") else None
    if matrix is not None:
        check_linear(operator, matrix, view.shape)
    if view.covariance == "none":
        if matrix is None:
            model = ByForwardMode(lambda z: (operator.A(view.decode(z)).flatten(1),))
        else:
            model = view.through(matrix)
        covariance = Isotropic(y, sigma, view.latent_size)
        return Energy(model, covariance, lambda z, rows, generator: view.decode(z), precision)
    covariance = structured(view, Observation(operator, y, sigma, view.basis, view.shape, matrix))

    def image(z: Tensor, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        return covariance.condition(rows, view.moments(z), generator)

    return Energy(view, covariance, image, precision)


def check_linear(operator: object, matrix: Tensor, shape: tuple[int, int]) -> None:
    """InputError where A of one picture is not its matrix (m, n) times that picture, which A_adjoint promises."""
    x = torch.linspace(-1, 1, matrix.shape[1], dtype=matrix.dtype, device=matrix.device).square()
    found, expected = operator.A(x.reshape(1, 1, *shape)).flatten(), matrix @ x
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-6):
        name = type(operator).__name__
        raise InputError(f"operator: {name} has A_adjoint, and its A is not linear; take off A(0), or leave it out")


def structured(view: object, observation: Observation) -> Covariance:
    """S with all the structure that the prior's Σ and the operator's K state."""
    operator = observation.operator
    if view.covariance == "diagonal":
        stated = view.basis_kind in getattr(operator, "orthogonal_in", ())
        return Diagonal(observation) if stated else Dense(observation)
    axes = getattr(operator, "axes", None)  # () for K = I
    if axes is None:
        return Scaled(observation, view.scale_fields)
    if observation.sigma == 0:
        return (Scaled if axes else White)(observation, view.scale_fields)
    return Separable(observation, view.scale_fields, axes or None, view.basis_axes)


def chapter_objective(energy: Energy, z: Tensor, rows: Tensor) -> Tensor:
    """‖K G(z) - y‖² + λ‖z‖² as the chapter writes it, of an energy with S = σ² I: (P,)."""
    return 2 * energy.covariance.sigma**2 * (energy.value(z, rows) - energy.covariance.constant(rows))
