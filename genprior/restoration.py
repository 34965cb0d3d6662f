"""Restoring measurements: `measure`, `restore`, `posterior`, for either view of a prior and any operator.

A view is one of `genprior.views`, or what `genprior.energies.energy_of` asks of one, with a `plan` and a `code`.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from genprior.batches import by_parts, noise_like
from genprior.energies import Energy, Rows, energy_of
from genprior.files import InputError, nonnegative, whole_number
from genprior.inversion import Modes, search, starting_codes
from genprior.plan import Plan
from genprior.problem import each, refused
from genprior.sampling import (
    Mixture,
    credible_interval,
    dominant,
    laplace_mixture,
    posterior_mean,
    sample_posterior,
)
from genprior.streams import generator_of, stream

POSTERIOR_STARTS = 4  # searches for a posterior's modes
DRAWN_TOGETHER = 256  # images of samples, which bounds memory


def measure(operator: object, x: Tensor, sigma: float, seed: int | torch.Generator = 0) -> object:
    """y = K x + e, e ~ N(0, σ² I), of images x (N, 1, h, w) in [0, 1]: (N, ...), in the units of K x.

    What is complex gets noise of σ in each part. Of a K that gives several tensors, y has the structure of A(x).
    InputError where A fails on x, and for a sigma that is none.
    """
    sigma, generator = nonnegative("sigma", sigma), generator_of(seed, "noise")
    with refused(operator, "A", x):
        clean = operator.A(x)
    return each(lambda part: part + sigma * noise_like(part, generator), clean)


@dataclass(frozen=True)
class Restored:
    """Images restored from measurements, and the searches that found them.

    x: (N, 1, h, w); z: their codes (N, k); energy: (N,), in nats; status: how each search ended; modes: where all
    searches ended; starts: where they began, at least `POSTERIOR_STARTS` (S, N, k).
    """

    x: Tensor
    z: Tensor
    energy: Tensor
    status: list[str]
    modes: Modes
    starts: Tensor
    problem: Energy
    plan: Plan
    mixture: Mixture | None

    @property
    def lowest(self) -> Tensor:
        """The lowest energy that a search of each problem ended at: (N,)."""
        return self.modes.energy.min(0).values.to(self.energy)

    @torch.no_grad()
    def mean(self, samples: int = 24, seed: int = 0) -> Tensor:
        """The posterior mean E[x | y], E[x | y, z] averaged over samples of the posterior of z: (N, 1, h, w).

        Fewer than two measurements for each number of a code leave it open. Then modes show too little of the
        posterior, however effective their draws look, and chance costs the mean the more: every problem is annealed,
        with up to four times as many samples.
        """
        samples = _as_samples(samples, self.problem)
        k, m = self.z.shape[1], self.problem.y.shape[1]
        samples *= min(4, math.ceil(2 * k / m))
        mixture = self.mixture or laplace_mixture(self.problem, self.modes)
        draw = stream(seed, "posterior mean")
        return posterior_mean(self.problem, mixture, samples, draw, math.inf if m < 2 * k else 0.5).to(self.x)

    @torch.no_grad()
    def posterior(self, samples: int = 200, seed: int = 0, first: int | None = None) -> "Posterior":
        """Samples of the posterior of the `first` problems, None for all."""
        energy, count = self.problem, len(self.z) if first is None else whole_number("first", first)
        if count < len(self.z):
            energy = Rows(energy, torch.arange(count, device=self.z.device))
        return _sampled(energy, self.starts[:, :count], self.plan, self.z, samples, seed)


@dataclass(frozen=True)
class Posterior:
    """Equally weighted samples of codes and images given measurements, and what is known of them.

    codes: (N, S, k), in the precision of the problem, which may be float64; log_evidence: log p(y) in nats, (N,), and
    its standard error, which knows nothing of modes that no sample found; effective: the effective size of the weighed
    draws as a share of the samples, at most 1, (N,); status: where each problem's samples come from, "importance
    sampling" or "annealed SMC"; like: a code of the view, of whose kind and precision all else is.
    """

    codes: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    effective: Tensor
    status: list[str]
    like: Tensor
    problem: Energy
    seed: int

    @property
    def z(self) -> Tensor:
        """Codes: (N, S, k)."""
        return self.codes.to(self.like.dtype).as_subclass(type(self.like))

    @cached_property
    @torch.no_grad()
    def x(self) -> Tensor:
        """One image x ~ p(x | y, z) for each code: (N, S, 1, h, w)."""
        problems, count, _ = self.codes.shape
        rows = torch.arange(problems, device=self.codes.device).repeat_interleave(count)
        draw, codes = stream(self.seed, "posterior images"), self.codes.flatten(0, 1)
        x = by_parts(lambda z, rows: self.problem.draw(z, rows, draw), DRAWN_TOGETHER, codes, rows)
        return x.unflatten(0, (problems, count)).to(self.like.dtype)

    @property
    def mean(self) -> Tensor:
        """The samples' mean: (N, 1, h, w)."""
        return self.x.mean(1)

    @property
    def std(self) -> Tensor:
        """The samples' standard deviation in each pixel: (N, 1, h, w)."""
        return self.x.std(1)

    def interval(self, level: float) -> tuple[Tensor, Tensor]:
        """Bounds of the central credible interval of each pixel: (N, 1, h, w) each."""
        return credible_interval(self.x, level)


@torch.no_grad()
def restore(
    view: object,
    operator: object,
    y: object,
    sigma: float,
    latent_weight: float | None = None,
    plan: Plan | None = None,
    seed: int = 0,
) -> Restored:
    """Restore images from measurements y (N, ...) = K x + e, e ~ N(0, σ² I), under `prior` or `prior.range`.

    y has the structure of `operator.A(x)`: a tensor, or several where several instruments measure at once, each divided
    by its own noise, in K and in y; sigma is 1 then. InputError, in one line, for a problem that is wrongly stated.
    The image of the most probable code, of those that a search finds: for a range the deepest minimum of
    ‖K G(z) - y‖² + λ‖z‖², for a prior E[x | y, z] at the posterior's dominant mode.
    latent_weight: λ, None for Bayes' σ²; plan: how to search, `view.plan` by default.
    """
    plan = view.plan if plan is None else plan
    energy, starts = _begun(view, operator, y, sigma, latent_weight, plan, seed)
    modes = search(energy, starts[: plan.starts], plan)
    mixture = laplace_mixture(energy, modes) if plan.dominant else None
    z, lowest, status = modes.at(dominant(mixture) if plan.dominant else modes.deepest())
    x = by_parts(energy.estimate, energy.chunk, z, torch.arange(len(z), device=z.device))
    x, z, lowest = (found.to(view.basis.dtype) for found in (x, z, lowest))
    return Restored(x, z.as_subclass(view.code), lowest, status, modes, starts, energy, plan, mixture)


@torch.no_grad()
def posterior(
    view: object,
    operator: object,
    y: object,
    sigma: float,
    samples: int = 200,
    seed: int = 0,
    plan: Plan | None = None,
) -> Posterior:
    """Samples of the posterior of measurements y (N, ...) = K x + e, e ~ N(0, σ² I), and the evidence p(y)."""
    plan = view.plan if plan is None else plan
    energy, starts = _begun(view, operator, y, sigma, None, plan, seed)
    like = starts[0].to(view.basis.dtype).as_subclass(view.code)
    return _sampled(energy, starts, plan, like, samples, seed)


def _begun(
    view: object, operator: object, y: object, sigma: float, latent_weight: float | None, plan: Plan, seed: int
) -> tuple[Energy, Tensor]:
    """The energy of measurements, and at least `POSTERIOR_STARTS` starts of its searches (S, N, k)."""
    if latent_weight is not None and nonnegative("latent_weight", latent_weight) >= 0 == nonnegative("sigma", sigma):
        raise InputError(f"latent_weight = {latent_weight}: with sigma above 0 it would be right")
    energy = energy_of(view, operator, y, sigma, latent_weight)
    most = max(plan.starts, POSTERIOR_STARTS)
    more = replace(plan, starts=most, pool=max(plan.pool, most) if plan.pool else 0)
    return energy, starting_codes(energy, more, view.latent_size, stream(seed, "starts"))


def _sampled(energy: Energy, starts: Tensor, plan: Plan, like: Tensor, samples: int, seed: int) -> Posterior:
    """Samples from the modes that searches from the first starts find, none of them dropped."""
    samples = _as_samples(samples, energy)
    modes = search(energy, starts[:POSTERIOR_STARTS], replace(plan, halve_every=0))
    found = sample_posterior(energy, modes, samples, stream(seed, "posterior"))
    told = (part.to(like.dtype) for part in (found.log_evidence, found.log_evidence_error, found.effective))
    return Posterior(found.z, *told, found.status, like, energy, seed)


def _as_samples(samples: int, energy: Energy) -> int:
    """InputError for no samples, and for an energy that is no posterior's."""
    if energy.latent_precision != 1:
        raise InputError("latent_weight: a posterior has Bayes' λ = sigma², None; restore alone takes another one")
    return whole_number("samples", samples)
