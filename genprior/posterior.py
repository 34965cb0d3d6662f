"""The posterior of codes and images given a measurement: samples, how far to believe them, and the evidence.

A Laplace mixture at the best modes proposes, and adapts once to what it finds; importance sampling weighs, which gives
the effective sample size and the evidence p(y). Where few samples carry the weight, sequential Monte Carlo tempers from
the proposal to the posterior: its random-walk moves need no gradient and mix where the modes' curvature misleads.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.inversion import LOG_2_PI, Energy, Modes, _by_parts

IMPORTANCE, TEMPERED = "importance sampling", "tempered SMC"


@dataclass(frozen=True)
class Posterior:
    """Equally weighted samples of each problem and what is known of them.

    z: (N, S, k). log_evidence: log p(y) in nats, (N,), and its standard error. effective: the effective sample size of
    the importance weights as a share of S, (N,), in (0, 1]: what the proposal was worth. method: N strings.
    """

    z: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    effective: Tensor
    method: list[str]

    def images(self, draw: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """One image for each sample, `draw(z, rows)`: (N, S, h, w)."""
        problems, samples, _ = self.z.shape
        rows = torch.arange(problems, device=self.z.device).repeat_interleave(samples)
        x = _by_parts(draw, self.z.flatten(0, 1), rows)
        return x.reshape(problems, samples, *x.shape[2:])


@dataclass(frozen=True)
class Mixture:
    """Σ_j w_j t_ν(z; c_j, (L_j L_jᵀ)⁻¹) for each problem, plus a share of the prior N(0, I).

    t is Student's, whose tails, like the prior's share, keep importance weights from growing without bound.
    log_weight: (N, J), summing with the prior's share to 1; centre: (N, J, k); factor: L, (N, J, k, k).
    """

    log_weight: Tensor
    centre: Tensor
    factor: Tensor
    DEGREES, PRIOR_SHARE = 20.0, 0.02

    def of(self, rows: Tensor) -> "Mixture":
        """The mixtures of some of the problems."""
        return Mixture(self.log_weight[rows], self.centre[rows], self.factor[rows])

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """(N, S, k), the components drawn by their weights."""
        problems, count, k = self.centre.shape
        weight = torch.cat([self.log_weight.exp(), self.log_weight.new_full((problems, 1), self.PRIOR_SHARE)], 1)
        chosen = torch.multinomial(weight.cpu(), samples, replacement=True, generator=generator).to(weight.device)
        shape = (problems, samples, k)
        normal = torch.randn(shape, generator=generator, dtype=weight.dtype).to(weight.device)
        # χ² with ν degrees as the sum of ν squares, which torch's generators can draw
        squares = torch.randn(problems, samples, int(self.DEGREES), generator=generator, dtype=weight.dtype)
        stretch = (self.DEGREES / squares.square().sum(2)).sqrt().to(weight.device)
        z = normal.clone()  # of the prior's share
        for j in range(count):
            step = torch.linalg.solve_triangular(self.factor[:, j].mT, normal.mT, upper=True).mT
            moved = self.centre[:, j, None] + stretch[..., None] * step
            z = torch.where((chosen == j)[..., None], moved, z)
        return z

    def log_density(self, z: Tensor) -> Tensor:
        """(N, S, k) -> (N, S)."""
        k = z.shape[2]
        degrees = self.DEGREES
        constant = math.lgamma((degrees + k) / 2) - math.lgamma(degrees / 2) - k / 2 * math.log(degrees * math.pi)
        parts = [math.log(self.PRIOR_SHARE) - 0.5 * (z.square().sum(2) + k * LOG_2_PI)]
        for j in range(self.centre.shape[1]):
            factor = self.factor[:, j]
            squared = ((z - self.centre[:, j, None]) @ factor).square().sum(2)
            density = constant + factor.diagonal(dim1=1, dim2=2).log().sum(1, keepdim=True)
            parts.append(self.log_weight[:, j, None] + density - (degrees + k) / 2 * torch.log1p(squared / degrees))
        return torch.stack(parts).logsumexp(0)


def laplace_mixture(energy: Energy, modes: Modes) -> Mixture:
    """One component at each mode, its precision the Fisher matrix there, its weight the mode's Laplace evidence."""
    count, problems, k = modes.z.shape
    rows = torch.arange(problems, device=modes.z.device).repeat(count)
    z = modes.z.reshape(-1, k)
    fisher = torch.cat([energy.model(*part)[1] for part in zip(z.split(256), rows.split(256), strict=True)])
    factor, failed = torch.linalg.cholesky_ex(fisher)
    usable = (failed == 0) & modes.energy.flatten().isfinite()
    # A mode without curvature or energy gets no weight; the prior's share remains.
    factor = torch.where(usable[:, None, None], factor, torch.eye(k, dtype=z.dtype, device=z.device))
    log_weight = -modes.energy.flatten() - factor.diagonal(dim1=1, dim2=2).log().sum(1)
    log_weight = torch.where(usable, log_weight, -1e30).reshape(count, problems).log_softmax(0).T
    return Mixture(
        log_weight + math.log(1 - Mixture.PRIOR_SHARE),
        modes.z.transpose(0, 1),
        factor.reshape(count, problems, k, k).transpose(0, 1),
    )


def adapted(proposal: Mixture, z: Tensor, log_weight: Tensor) -> Mixture:
    """The proposal with one component more, of half the weight, at the weighted samples' own mean and covariance.

    The covariance is shrunk halfway to the heaviest component's: few samples carry the weight. Cappé et al. 2008.
    """
    weight = log_weight.softmax(1)
    mean = (weight[..., None] * z).sum(1)
    centred = z - mean[:, None]
    covariance = torch.einsum("ns,nsi,nsj->nij", weight, centred, centred)
    heaviest = proposal.log_weight.argmax(1)
    laplace = torch.cholesky_inverse(proposal.factor[torch.arange(len(z), device=z.device), heaviest])
    factor = torch.linalg.cholesky(torch.linalg.inv((covariance + laplace) / 2))
    half = math.log(0.5)
    share = proposal.log_weight.new_full((len(z), 1), math.log(1 - Mixture.PRIOR_SHARE) + half)
    return Mixture(
        torch.cat([proposal.log_weight + half, share], 1),
        torch.cat([proposal.centre, mean[:, None]], 1),
        torch.cat([proposal.factor, factor[:, None]], 1),
    )


def log_joint(energy: Energy, z: Tensor) -> Tensor:
    """log p(y, z) under the latent's standard normal: (N, S, k) -> (N, S); -inf where it is not finite."""
    problems, samples, k = z.shape
    rows = torch.arange(problems, device=z.device).repeat_interleave(samples)
    value = _by_parts(energy.value, z.reshape(-1, k), rows).reshape(problems, samples)
    return torch.where(value.isfinite(), -value - k / 2 * LOG_2_PI, -torch.inf)


def sample_posterior(
    energy: Energy, modes: Modes, samples: int, generator: torch.Generator, minimum_effective: float = 0.1
) -> Posterior:
    """Samples of p(z | y) and the evidence of every problem, from the modes that `search` found.

    A first round of samples adapts the proposal; the second, independent of it, is what counts.
    log p(y) = log mean w, w = p(y, z) / q(z), with standard error ((1/ESS - 1) / S)^½ (delta method), ESS the
    effective share (Σw)² / (S Σw²). Problems with an ESS below `minimum_effective` go through `tempered_smc`.
    """
    proposal = laplace_mixture(energy, modes)
    for adapting in (True, False):
        z = proposal.sample(samples, generator)
        log_weight = log_joint(energy, z) - proposal.log_density(z)
        if adapting:
            proposal = adapted(proposal, z, log_weight)
    evidence, effective = _mean_and_effective(log_weight)
    error = ((1 / effective - 1) / samples).sqrt()
    resampled = _resample(z, log_weight, generator)
    method = [IMPORTANCE] * len(z)
    poor = (effective < minimum_effective).nonzero().squeeze(1)
    if len(poor):
        resampled[poor], evidence[poor], error[poor] = tempered_smc(energy, proposal, z, log_weight, poor, generator)
        for i in poor.tolist():
            method[i] = TEMPERED
    return Posterior(resampled, evidence, error, effective, method)


def _mean_and_effective(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """log mean w and the effective share (Σw)² / (S Σw²) over the last axis."""
    samples = log_weight.shape[-1]
    total, squares = log_weight.logsumexp(-1), (2 * log_weight).logsumexp(-1)
    return total - math.log(samples), (2 * total - squares).exp() / samples


def _resample(z: Tensor, log_weight: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling by weight (Douc et al. 2005): (N, S, k) -> (N, S, k)."""
    problems, samples, k = z.shape
    cumulative = log_weight.softmax(1).cumsum(1)
    offset = torch.rand(problems, 1, generator=generator, dtype=cumulative.dtype).to(z.device)
    points = (torch.arange(samples, device=z.device) + offset) / samples
    index = torch.searchsorted(cumulative.contiguous(), points.contiguous()).clamp_max(samples - 1)
    return z.gather(1, index[..., None].expand(-1, -1, k))


def tempered_smc(
    energy: Energy,
    proposal: Mixture,
    z: Tensor,
    log_weight: Tensor,
    rows: Tensor,
    generator: torch.Generator,
    moves: int = 5,
    most_steps: int = 60,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequential Monte Carlo from the proposal to the posterior along q^{1-β} p^β, for the problems `rows`.

    z, log_weight: samples of q (N, S, k) and log p/q (N, S) of all problems. Each step raises β as far as the
    incremental weights keep half their effective size, resamples, and moves every sample by random-walk Metropolis
    with the samples' own covariance · 2.38² / k. Returns samples, log evidence, and its standard error from the
    incremental weights. Del Moral et al. 2006, section 3; β by Jasra et al. 2011.
    """
    z, log_ratio = z[rows], log_weight[rows]
    problems, samples, k = z.shape
    beta = z.new_zeros(problems)
    evidence, variance = z.new_zeros(problems), z.new_zeros(problems)
    narrow = _Rows(energy, rows)
    part = proposal.of(rows)
    density = part.log_density(z)
    for step in range(most_steps):
        target = z.new_ones(problems) if step == most_steps - 1 else _next_beta(log_ratio, beta)
        log_increment = (target - beta)[:, None] * log_ratio
        log_increment = torch.where(log_ratio == -torch.inf, -torch.inf, log_increment).nan_to_num(nan=-torch.inf)
        gain, effective = _mean_and_effective(log_increment)
        moving = target > beta
        evidence += torch.where(moving, gain, 0.0)
        variance += torch.where(moving, (1 / effective - 1) / samples, 0.0)
        beta = target
        index = _resample(
            torch.arange(samples, device=z.device).expand(problems, -1)[..., None], log_increment, generator
        )
        chosen = index.squeeze(2)
        z = z.gather(1, index.expand(-1, -1, k))
        log_ratio, density = log_ratio.gather(1, chosen), density.gather(1, chosen)
        centred = z - z.mean(1, keepdim=True)
        covariance = centred.mT @ centred / samples
        covariance.diagonal(dim1=1, dim2=2).add_(1e-6)
        factor = torch.linalg.cholesky(covariance) * (2.38 / k**0.5)
        scale = z.new_ones(problems)
        for _ in range(moves):
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
            proposed = z + scale[:, None, None] * noise @ factor.mT
            new_density = part.log_density(proposed)
            new_ratio = log_joint(narrow, proposed) - new_density
            log_accept = (new_density + beta[:, None] * new_ratio) - (density + beta[:, None] * log_ratio)
            uniform = torch.rand(log_accept.shape, generator=generator, dtype=z.dtype).to(z.device)
            accepted = uniform.log() < log_accept  # false for NaN
            z = torch.where(accepted[..., None], proposed, z)
            log_ratio = torch.where(accepted, new_ratio, log_ratio)
            density = torch.where(accepted, new_density, density)
            scale = scale * (accepted.to(z.dtype).mean(1) - 0.25).exp()
        if (beta >= 1).all():
            break
    return z, evidence, variance.sqrt()


def _next_beta(log_ratio: Tensor, beta: Tensor, share: float = 0.5) -> Tensor:
    """The largest β' <= 1 at which the weights (β' - β) log p/q keep the effective share, by bisection: (N,)."""
    low, high = beta.clone(), torch.ones_like(beta)

    def keeps(target: Tensor) -> Tensor:
        increment = torch.where(log_ratio == -torch.inf, -torch.inf, (target - beta)[:, None] * log_ratio)
        return _mean_and_effective(increment.nan_to_num(nan=-torch.inf))[1] >= share

    whole = keeps(high)
    for _ in range(30):
        middle = (low + high) / 2
        fine = keeps(middle)
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    # a step at least: a few samples at -inf alone can hold the share down whatever β
    return torch.where(whole, 1.0, torch.maximum(low, (beta + 1e-4).clamp_max(1.0)))


class _Rows:
    """An energy of some of its problems, numbered anew."""

    def __init__(self, energy: Energy, rows: Tensor):
        self.energy, self.rows = energy, rows

    def value(self, z: Tensor, rows: Tensor) -> Tensor:
        return self.energy.value(z, self.rows[rows])
