"""What is minimised and sampled: E(z) = -log p(y | z) + ½ τ ‖z‖² in nats, batched over problems and codes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from genprior.batches import by_forward_mode, by_parts, by_reverse_mode, floats_at_once, noise_like
from genprior.covariances import Covariance, Dense, Diagonal, Isotropic, Moments, Observation, Scaled, Separable, White
from genprior.problem import Problem, stated
from genprior.streams import stream

MOST_LOST = 0.005  # nats, of the 0.01 to which energies are right: no draw shows the worst code


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

    def derivatives(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The energy (P,), its gradient (P, k), and the Fisher matrix of the data plus τ I (P, k, k)."""
        moments, columns = self.model.moments_with_columns(z)
        misfit, log_det, slopes, fisher = self.covariance.fisher(rows, moments, columns)
        fisher.diagonal(dim1=1, dim2=2).add_(self.latent_precision)
        if slopes is None:
            return *self.value_and_gradient(z, rows), fisher
        parts = zip(columns, slopes, strict=True)
        gradient = sum(torch.einsum("pnk,pn->pk", column, slope) for column, slope in parts)
        return self._total(z, rows, misfit, log_det), gradient + self.latent_precision * z, fisher

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
        own = self.covariance
        if not isinstance(own, Isotropic):
            return None
        wider = Isotropic(own.y, 2 * own.sigma, own.latent_size)
        return Energy(self.model, wider, self.image, self.latent_precision)


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

    def derivatives(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.energy.derivatives(z, self.rows[rows])

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


def energy_of(view: object, operator: object, y: object, sigma: float, latent_weight: float | None = None) -> Energy:
    """The energy of measurements y (N, ...) = K x + e, e ~ N(0, σ² I), under a view of a prior.

    latent_weight: λ of ‖K G(z) - y‖² + λ ‖z‖², None for Bayes' σ². What K and the prior state of themselves picks the
    structure of S: `view.covariance`, `view.basis_kind`, `operator.orthogonal_in` and `operator.axes`. In float64 where
    float32 would lose 0.01 nats in S, K is linear and the view has `in_double`. InputError as of
    `genprior.problem.stated`.
    """
    problem = stated(view, operator, y, sigma)
    precision = 1.0 if latent_weight is None else latent_weight / problem.sigma**2
    rounded = problem.matrix is not None and problem.matrix.dtype == torch.float32 and view.covariance != "none"
    if rounded and hasattr(view, "in_double") and _lost_in_float32(view, problem, precision) > MOST_LOST:
        view, problem = view.in_double(), problem.in_double()
    return _energy(view, problem, precision)


def denoising_energy(view: object, patches: Tensor, level: float) -> Energy:
    """The energy of patches (N, 1, h, w) = x + level · e, e ~ N(0, I), in the view's precision, unchecked."""
    identity = torch.eye(patches[0].numel()).to(view.basis)
    rows = patches.flatten(1)
    return _energy(view, Problem(lambda x: x.flatten(1), rows, level, identity, ("dct",), ()), 1.0)


def _energy(view: object, problem: Problem, precision: float) -> Energy:
    """In the precision of the view."""
    y, sigma, matrix = problem.y.to(view.basis), problem.sigma, problem.matrix
    if view.covariance == "none":
        model = ByForwardMode(lambda z: (problem.A(view.decode(z)),)) if matrix is None else view.through(matrix)
        covariance = Isotropic(y, sigma, view.latent_size)
        return Energy(model, covariance, lambda z, rows, generator: view.decode(z), precision)
    covariance = structured(view, Observation(problem, y, sigma, view.basis, view.shape, matrix))

    def image(z: Tensor, rows: Tensor, generator: torch.Generator | None) -> Tensor:
        return covariance.condition(rows, view.moments(z), generator)

    return Energy(view, covariance, image, precision)


def structured(view: object, observation: Observation) -> Covariance:
    """S with all the structure that the prior's Σ and the operator's K state."""
    problem = observation.operator
    if view.covariance == "diagonal":
        known = view.basis_kind in problem.orthogonal_in and has_orthogonal_columns(observation.in_basis)
        return Diagonal(observation) if known else Dense(observation)
    if problem.axes is None:
        return Scaled(observation, view.scale_fields)
    axes = tuple(axis.to(observation.y) for axis in problem.axes)  # () for K = I
    if observation.sigma == 0:
        return (Scaled if axes else White)(observation, view.scale_fields)
    return Separable(observation, view.scale_fields, axes or None, view.basis_axes)


def has_orthogonal_columns(matrix: Tensor) -> bool:
    """Whether MᵀM is diagonal, by one product with a vector: a K rounded to float32 is not, in float64."""
    vector = torch.linspace(-1, 1, matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    squares = matrix.square().sum(0)
    off = matrix.T @ (matrix @ vector) - squares * vector
    return bool(off.abs().max() <= torch.finfo(matrix.dtype).eps ** 0.75 * squares.max())


def _lost_in_float32(view: object, problem: Problem, precision: float) -> float:
    """By how many nats float32 is off, at most, in problems drawn from the prior, at the codes that they have."""
    draw, exact, count = stream(0, "float32"), view.in_double(), 2**22 // len(problem.matrix) ** 2
    z = torch.randn(max(4, min(512, count)), view.latent_size, generator=draw).to(problem.matrix)
    c, v, *scales = exact.moments(z.double())
    own = noise_like(c, draw) * v.sqrt()
    scales = scales[0] @ exact.scale_fields if scales else 1.0
    double = problem.in_double()
    y = (c @ exact.basis.T + scales * (own @ exact.basis.T)) @ double.matrix.T
    y, rows = y + problem.sigma * noise_like(y, draw), torch.arange(len(z), device=z.device)
    energy = _energy(view, replace(problem, y=y), precision)
    rounded = torch.stack([energy.value(z, rows), energy.of_all(z, rows).diagonal()])
    value = _energy(exact, replace(double, y=y), precision).value(z.double(), rows)
    return (rounded - value).abs().nan_to_num(nan=torch.inf).max().item()


def chapter_objective(energy: Energy, z: Tensor, rows: Tensor) -> Tensor:
    """‖K G(z) - y‖² + λ‖z‖² as the chapter writes it, of an energy with S = σ² I: (P,)."""
    return 2 * energy.covariance.sigma**2 * (energy.value(z, rows) - energy.covariance.constant(rows))
