"""The posterior of codes and images given a measurement: samples, how far to believe them, and the evidence.

Importance sampling weighs draws of a Laplace mixture at the modes that a search found, and of fits of it to its draws
where they have to be, which gives the effective sample size and the evidence p(y). Where that size is low, sequential
Monte Carlo goes from the prior to the posterior, which finds what no mode stands for.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from genprior.batches import by_parts, noise_like
from genprior.covariances import LOG_2_PI
from genprior.energies import Energy, Rows, energies_of_all
from genprior.files import InputError, nonnegative
from genprior.inversion import Modes

IMPORTANCE, ANNEALED = "importance sampling", "annealed SMC"


@dataclass(frozen=True)
class Constants:
    """What the samplers are set to, each with its reason."""

    degrees: float = 20.0  # of Student's t: tails that keep importance weights from growing without bound
    prior_share: float = 0.02  # of each proposal: the same, for codes that no mode is near to
    wider: float = 1.2  # proposals than modes and draws say: a narrow one rarely draws what has large weights
    trials: int = 200  # draws that try a proposal: enough to tell a poor one, few beside what is weighed
    fits: int = 11  # of a proposal to its trials: many small ones go where two large ones do not
    promised: float = 8.0  # times the effective size that is asked for: fresh draws keep a part of what trials promise
    worth: int = 2  # fits end where so many fresh draws for each trial so far would do: more cost more than they save
    least: int = 4  # fresh draws for each sample
    most: int = 32  # beyond which annealing costs less
    strength: float = 20.0  # samples' worth that holds a component where it is in a fit
    keep: float = 0.5  # effective share that a step of annealing leaves: less loses samples, more takes more steps
    moves: int = 100  # at most, in one step: some posteriors refuse nearly all
    mean_moves: float = 0.125  # refreshment of each sample for a mean, which asks less of samples than their tails do
    mean_pool: int = 2**12  # largest pool of draws for a mean
    pool: int = 2**13  # largest pool of draws else


CONSTANTS = Constants()


@dataclass(frozen=True)
class Samples:
    """Equally weighted codes of each problem and what is known of them.

    z: (N, S, k). log_evidence: log p(y) in nats, (N,), and its standard error. effective: the effective sample size of
    the weighed draws as a share of S, (N,), at most 1. Where no code explains y, -inf and NaN. status: N strings.
    """

    z: Tensor
    log_evidence: Tensor
    log_evidence_error: Tensor
    effective: Tensor
    status: list[str]


def credible_interval(samples: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The central credible interval of samples (N, S, ...), S > 1: lower and upper bounds, (N, ...) each.

    level: 0.9 for the interval between the 5 % and 95 % quantiles. These are the p (S + 1)-th smallest samples, between
    which a truth of their law lies with probability `level` where p (S + 1) is whole, as for S = 19 and 99, and within
    0.01 of it else; torch's own, the (1 + p (S - 1))-th, leave it out too often. Where there is none so small,
    S < 2 / (1 - level) - 1, the outermost are taken, which hold less. Hyndman & Fan 1996, definition 6.
    InputError for another level, and for one sample.
    """
    count = samples.shape[1]
    if not 0 < nonnegative("level", level) < 1 or count < 2:
        raise InputError(f"level = {level} of {count} samples: above 0, below 1, and of 2 samples, would be right")
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=samples.dtype, device=samples.device)
    low, high = samples.quantile(((tails * (count + 1) - 1) / (count - 1)).clamp(0, 1), dim=1)
    return low, high


@dataclass(frozen=True)
class Mixture:
    """Σ_j w_j t_ν(z; c_j, (L_j L_jᵀ)⁻¹) for each problem, plus a share of the prior N(0, I).

    t is Student's, whose tails, like the prior's share, keep importance weights from growing without bound.
    log_weight: (N, J), summing with the prior's share to 1; centre: (N, J, k); factor: L, (N, J, k, k).
    """

    log_weight: Tensor
    centre: Tensor
    factor: Tensor

    def of(self, rows: Tensor) -> "Mixture":
        """The mixtures of some of the problems, (P,)."""
        return Mixture(self.log_weight[rows], self.centre[rows], self.factor[rows])

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """(N, S, k), the components drawn by their weights."""
        problems, count, k = self.centre.shape
        weight = torch.cat([self.log_weight.exp(), self.log_weight.new_full((problems, 1), CONSTANTS.prior_share)], 1)
        chosen = torch.multinomial(weight.cpu(), samples, replacement=True, generator=generator).to(weight.device)
        shape = (problems, samples, k)
        normal = torch.randn(shape, generator=generator, dtype=weight.dtype).to(weight.device)
        # χ² with ν degrees as the sum of ν squares, which torch's generators can draw
        squares = sum(
            torch.randn(problems, samples, generator=generator, dtype=weight.dtype).square()
            for _ in range(int(CONSTANTS.degrees))
        )
        stretch = (CONSTANTS.degrees / squares).sqrt().to(weight.device)
        z = normal.clone()  # of the prior's share
        for j in range(count):
            step = torch.linalg.solve_triangular(self.factor[:, j].mT, normal.mT, upper=True).mT
            moved = self.centre[:, j, None] + stretch[..., None] * step
            z = torch.where((chosen == j)[..., None], moved, z)
        return z

    def _parts(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Each component's log w_j t_ν(z) and squared distance, both (J, N, S)."""
        k, degrees = z.shape[2], CONSTANTS.degrees
        constant = math.lgamma((degrees + k) / 2) - math.lgamma(degrees / 2) - k / 2 * math.log(degrees * math.pi)
        factor = self.factor.transpose(0, 1)
        squared = ((z - self.centre.transpose(0, 1)[:, :, None]) @ factor).square().sum(3)
        scale = self.log_weight.T + constant + factor.diagonal(dim1=2, dim2=3).log().sum(2)
        return scale[..., None] - (degrees + k) / 2 * torch.log1p(squared / degrees), squared

    def log_density(self, z: Tensor) -> Tensor:
        """(N, S, k) -> (N, S)."""
        prior = math.log(CONSTANTS.prior_share) - 0.5 * (z.square().sum(2) + z.shape[2] * LOG_2_PI)
        return torch.cat([self._parts(z)[0], prior[None]]).logsumexp(0)

    def refitted(self, z: Tensor, log_weight: Tensor) -> "Mixture":
        """One step of expectation maximisation on weighted samples (N, S, k), (N, S).

        Each component is held back as if its place rested on `strength` samples. Cappé et al. 2008, section 4.
        """
        strength = CONSTANTS.strength
        parts, squared = self._parts(z)
        weight = log_weight.softmax(1)
        share = parts.softmax(0) * weight  # of each component in each sample, (J, N, S)
        counting = share.sum(2) / weight.square().sum(1)  # samples that each rests on, (J, N)
        # Student's maximum likelihood counts far samples less.
        pull = (share * (CONSTANTS.degrees + z.shape[2]) / (CONSTANTS.degrees + squared)).unsqueeze(3)
        old = self.centre.transpose(0, 1)
        mean = (pull * z).sum(2) / pull.sum(2).clamp_min(1e-30)
        centre = old + (counting / (counting + strength / 2))[..., None] * (mean - old)
        offset = z - centre[:, :, None]
        scatter = (pull * offset).mT @ offset / share.sum(2).clamp_min(1e-30)[..., None, None]
        held = (strength / (counting + strength))[..., None, None]
        covariance = (1 - held) * scatter + held * torch.cholesky_inverse(self.factor.transpose(0, 1))
        factor, failed = torch.linalg.cholesky_ex(torch.linalg.inv_ex(covariance).inverse)
        factor = torch.where((failed > 0)[..., None, None], self.factor.transpose(0, 1), factor)
        log_share = (counting + strength / 10 / len(parts)).log().T.log_softmax(1)
        return Mixture(log_share + math.log(1 - CONSTANTS.prior_share), centre.transpose(0, 1), factor.transpose(0, 1))


def laplace_mixture(energy: Energy, modes: Modes) -> Mixture:
    """One component at each mode, its precision the Fisher matrix there, its weight the mode's Laplace evidence."""
    count, problems, k = modes.z.shape
    rows = torch.arange(problems, device=modes.z.device).repeat(count)
    z = modes.z.reshape(-1, k)
    fisher = by_parts(energy.derivatives, energy.fisher_chunk, z, rows)[2]
    factor, failed = torch.linalg.cholesky_ex(fisher)
    usable = (failed == 0) & modes.energy.flatten().isfinite() & z.isfinite().all(1)
    # A mode without curvature or energy gets no weight beside another, and stands for the prior where there is none.
    factor = torch.where(usable[:, None, None], factor, torch.eye(k, dtype=z.dtype, device=z.device))
    centre = torch.where(usable[:, None], z, 0.0).reshape(count, problems, k)
    log_weight = -modes.energy.flatten() - factor.diagonal(dim1=1, dim2=2).log().sum(1)
    log_weight = torch.where(usable, log_weight, -1e30).reshape(count, problems).log_softmax(0).T
    return Mixture(
        log_weight + math.log(1 - CONSTANTS.prior_share),
        centre.transpose(0, 1),
        factor.reshape(count, problems, k, k).transpose(0, 1),
    )


def dominant(mixture: Mixture) -> Tensor:
    """Of the modes of a `laplace_mixture`, the one of each problem that holds most of the posterior: (N,).

    By its Laplace evidence, e^{-E} det F^{-1/2}. A deep mode may be narrow and hold little, and how deep it is depends
    on how z is parametrised, far more than what it holds.
    """
    return mixture.log_weight.argmax(1)


def log_joint(energy: Energy, z: Tensor) -> Tensor:
    """log p(y, z) under the latent's standard normal: (N, S, k) -> (N, S); -inf where it is not finite."""
    problems, samples, k = z.shape
    rows = torch.arange(problems, device=z.device).repeat_interleave(samples)
    value = by_parts(energy.value, energy.chunk, z.reshape(-1, k), rows).reshape(problems, samples)
    return torch.where(value.isfinite(), -value - k / 2 * LOG_2_PI, -torch.inf)


def sample_posterior(
    energy: Energy, modes: Modes, samples: int, generator: torch.Generator, minimum_effective: float = 0.5
) -> Samples:
    """Samples of p(z | y) and the evidence of every problem, from the modes that `search` found.

    Problems where the effective share of `importance_samples` is below `minimum_effective` go through `smc`: a few
    samples that carry the weight look more alike than the posterior is, and hide what the modes do not stand for.
    """
    proposal = laplace_mixture(energy, modes)
    z, evidence, error, effective = importance_samples(energy, proposal, samples, generator, minimum_effective)
    poor = ~(effective >= minimum_effective)  # true for NaN: no sample was possible
    if poor.any():
        part = Rows(energy, poor.nonzero().squeeze(1))
        z[poor], evidence[poor], error[poor] = smc(part, (z[poor], evidence[poor], error[poor]), generator)
    return Samples(z, evidence, error, effective, [ANNEALED if bad else IMPORTANCE for bad in poor.tolist()])


def posterior_mean(
    energy: Energy, mixture: Mixture, samples: int, generator: torch.Generator, minimum_effective: float
) -> Tensor:
    """E[x | y], each code's E[x | y, z] averaged over samples of its posterior: (N, 1, h, w).

    Of weighed draws of the modes' `laplace_mixture` as it is, two for each sample, which find what is narrow, and of
    annealed samples, which find what is wide or bent; each in proportion to the evidence p(y) that it finds. A mean
    asks less of its samples than their tails do. Problems whose draws' effective size reaches `minimum_effective` of
    the samples are not annealed, which is for those whose measurements determine a code: else draws look effective
    that see one place. At inf all are annealed.
    """
    near, evidence, _, effective = _weigh(energy, mixture, 2 * samples, samples, generator)
    poor = (~(effective >= minimum_effective)).nonzero().squeeze(1)  # NaN too: no sample was possible
    z, rows, share = near, _numbers(energy.y), torch.ones_like(evidence)
    if len(poor):
        far, found, _ = annealed_smc(
            Rows(energy, poor), samples, near.shape[2], generator, CONSTANTS.mean_moves, CONSTANTS.mean_pool
        )
        other = torch.sigmoid(found - evidence[poor]).nan_to_num(nan=1.0)  # where none found any
        share[poor] = 1 - other
        z, rows, share = torch.cat([near, far]), torch.cat([rows, poor]), torch.cat([share, other])
    counts = share > 1e-6  # what weighs nothing, and may have no image, is left out

    def mean_images(z: Tensor, rows: Tensor) -> Tensor:
        x = by_parts(energy.estimate, energy.chunk, z.flatten(0, 1), rows.repeat_interleave(samples))
        return x.unflatten(0, z.shape[:2]).mean(1)

    rows = rows[counts]
    means = share[counts, None, None, None] * by_parts(mean_images, max(1, energy.chunk // samples), z[counts], rows)
    return means.new_zeros(len(energy.y), *means.shape[1:]).index_add(0, rows, means)


def importance_samples(
    energy: Energy, proposal: Mixture, samples: int, generator: torch.Generator, enough: float = 0.5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes (N, S, k) resampled by weight, log p(y), its standard error, and the effective size over S, (N,) each.

    Draws of q are weighed by w = p(y, z) / q(z), log p(y) = log E w. q is the proposal, a fifth wider, or what it
    becomes when it is fitted, again and again, to all trial draws so far. It is taken once as many fresh draws as its
    own trials promise to be worth `promised` times an effective size of `enough` of S are few beside all trials, or
    after `fits`; of these there are at most `most` S, and as many again where they are worth less than what is asked,
    but not less than half of it. Trial draws are not weighed: those that a fit has seen lie where it is high, those
    that chose q look even, and both would sum to too little.
    The fit: Cappé et al. 2008; its draws weighed against all proposals so far: Cornuet et al. 2012.
    """
    most = max(CONSTANTS.most * samples, (CONSTANTS.fits + 1) * CONSTANTS.trials)
    at_once = max(1, 2**24 // (most * proposal.centre.shape[2]))  # memory grows with no batch's size
    parts = [
        _importance_samples(Rows(energy, rows), proposal.of(rows), samples, generator, enough)
        for rows in _numbers(energy.y).split(at_once)
    ]
    return tuple(torch.cat(found) for found in zip(*parts, strict=True))


def _importance_samples(
    energy: Energy, fitted: Mixture, samples: int, generator: torch.Generator, enough: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    todo, found, proposals = _numbers(energy.y), [], []
    trials = fitted.centre[:, :0, :]  # what the proposals drew, its log p(y, z), and its density under all of them
    joint = density = trials.sum(2)
    for fits in range(CONSTANTS.fits + 1):
        proposal = replace(fitted, factor=fitted.factor / CONSTANTS.wider)
        z = proposal.sample(CONSTANTS.trials, generator)
        new_joint, own = log_joint(Rows(energy, todo), z), proposal.log_density(z)
        share = _mean_and_effective(new_joint - own)[1].nan_to_num()
        draws = (
            (CONSTANTS.promised * enough / share).nan_to_num().ceil().clamp(CONSTANTS.least, CONSTANTS.most)
        )  # for each sample
        taken = (draws * samples <= CONSTANTS.worth * (fits + 1) * CONSTANTS.trials) | (fits == CONSTANTS.fits)
        for count in draws[taken].unique().tolist():
            these = (taken & (draws == count)).nonzero().squeeze(1)
            part = Rows(energy, todo[these])
            weighed = _weigh(part, proposal.of(these), int(count) * samples, samples, generator, enough)
            found.append((todo[these], *weighed))
        poor = (~taken).nonzero().squeeze(1)
        if len(poor) == 0:
            break
        new_density = torch.stack([old.log_density(z) for old in proposals] + [own]).logsumexp(0)
        density = torch.cat([torch.logaddexp(density, proposal.log_density(trials)), new_density], 1)[poor]
        trials, joint = torch.cat([trials, z], 1)[poor], torch.cat([joint, new_joint], 1)[poor]
        todo, proposals = todo[poor], [old.of(poor) for old in [*proposals, proposal]]
        possible = joint.isfinite().any(1, keepdim=True)  # else there is nothing that weights could say
        fitted = fitted.of(poor).refitted(trials, torch.where(possible, joint - density, 0.0))
    rows, *weighed = (torch.cat(parts) for parts in zip(*found, strict=True))
    return tuple(part[rows.argsort()] for part in weighed)


def _weigh(
    energy: Energy, proposal: Mixture, draws: int, samples: int, generator: torch.Generator, enough: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `importance_samples` returns, of so many draws of this proposal, or twice as many.

    Twice where the draws' effective share is below `enough`, but not below half of it. That draws which look even are
    not doubled makes log p(y) up to 0.01 nats too small, less than the annealing that it spares would be uncertain.
    """

    def weighed(energy: Energy, proposal: Mixture) -> tuple[Tensor, Tensor]:
        z = proposal.sample(draws, generator)
        return z, log_joint(energy, z) - proposal.log_density(z)

    z, log_weight = weighed(energy, proposal)
    found = _resampled(z, log_weight, samples, generator)
    effective = found[3]
    short = ((effective >= enough / 2) & (effective < enough)).nonzero().squeeze(1)
    if len(short):
        more, more_weight = weighed(Rows(energy, short), proposal.of(short))
        more, more_weight = torch.cat([z[short], more], 1), torch.cat([log_weight[short], more_weight], 1)
        both = _resampled(more, more_weight, samples, generator)
        for whole, part in zip(found, both, strict=True):
            whole[short] = part
    return found


def _resampled(z: Tensor, log_weight: Tensor, samples: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Samples of weighed draws (N, M, k), log p(y), its standard error, and the effective size over S."""
    evidence, share = _mean_and_effective(log_weight)
    draws = log_weight.shape[1]
    error = ((1 / share - 1) / draws).clamp_min(0).sqrt()  # delta method
    effective = (draws / samples * share).clamp_max(1.0)
    return z.take_along_dim(_resample(log_weight, samples, generator)[..., None], 1), evidence, error, effective


def _mean_and_effective(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """log mean w and the effective share (Σw)² / (S Σw²) over the last axis."""
    samples = log_weight.shape[-1]
    total, squares = log_weight.logsumexp(-1), (2 * log_weight).logsumexp(-1)
    return total - math.log(samples), (2 * total - squares).exp() / samples


def _resample(log_weight: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """Systematic resampling by weight (Douc et al. 2005), in random order: (N, M) -> indices (N, samples)."""
    cumulative = log_weight.double().softmax(1).cumsum(1)
    offset = torch.rand(len(log_weight), 1, generator=generator, dtype=torch.double).to(cumulative.device)
    points = (torch.arange(samples, device=cumulative.device) + offset) / samples
    index = torch.searchsorted(cumulative, points).clamp_max(log_weight.shape[1] - 1)
    return index.gather(1, torch.rand(index.shape, generator=generator).argsort(1).to(index.device))


def smc(
    energy: Energy, found: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior samples (N, S, k) by annealing, and by what importance sampling found.

    Annealing is blind to what no draw of the prior is near to, and to codes whose S(z) is narrow; a search of modes
    finds both: `found` are the samples (N, S, k), log evidence (N,) and its standard error (N,) of importance sampling,
    whose few distinct codes are moved (`_move`) before they count. Both estimate p(y), nearly without bias, so their
    mean does too; samples come from each in proportion. Returns the samples, log p(y) and its standard error: of the
    estimates' own, or of their spread where that is more. None of it knows of a mode that no sample found.
    """
    z, log_evidence, error = found
    samples, k = z.shape[1:]
    likelihood = _log_likelihood(energy, z)
    start = torch.full_like(log_evidence, 0.7)
    z, _, _ = _move(energy, z, likelihood, torch.ones_like(start), start, generator, 1.0)
    estimates = [annealed_smc(energy, samples, k, generator, 1.0), (z, log_evidence, error)]
    evidence = torch.stack([evidence for _, evidence, _ in estimates]).nan_to_num(nan=-torch.inf, neginf=-torch.inf)
    share = evidence.softmax(0)
    # The shares in turn, not at random: as many samples of each as its share says, to within one.
    offset = torch.rand(share.shape[1], generator=generator).to(share)
    place = (torch.arange(samples, device=share.device) + offset[:, None]) / samples
    chosen = (place > share[0][:, None]).to(torch.long)
    mixed = torch.stack([z for z, _, _ in estimates]).gather(0, chosen[None, ..., None].expand(1, -1, -1, k))[0]
    own = (share * torch.stack([error for *_, error in estimates]).nan_to_num()).square().sum(0).sqrt()
    return mixed, evidence.logsumexp(0) - math.log(2), torch.maximum(own, 2**0.5 * share.std(0))


def annealed_smc(
    energy: Energy,
    samples: int,
    k: int,
    generator: torch.Generator,
    refreshed: float,
    largest_pool: int = CONSTANTS.pool,
    most: int = 200,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sequential Monte Carlo along p(z) p(y | z)^β: samples (N, samples, k), log p(y) and its standard error (N,).

    It begins with a pool of prior draws, the same for all problems, and each problem's own step away from the prior
    (`_first_step`). Each further step goes as far as the weights keep half their effective size, resamples, and moves
    the samples until they are `refreshed` that many times (`_move`); the last of at most `most` steps goes to the end.
    The error is (Σ_i f_i²)^½, f_i the share of the samples that descend from the i-th of the pool.
    Del Moral et al. 2006, section 3; steps: Jasra et al. 2011; error: Lee & Whiteley 2018, without their correction.
    """
    like = energy.y
    pool = max(min(2**25 // energy.size, largest_pool), 1024, 4 * samples)  # more draws where a draw costs less
    draws = torch.randn(pool, k, generator=generator, dtype=like.dtype).to(like.device)
    first = [_first_step(energy, draws, rows, samples, generator) for rows in _numbers(like).split(256)]
    founder, likelihood, evidence, power = (torch.cat(parts) for parts in zip(*first, strict=True))
    z, reach, live = draws[founder], torch.full_like(power, 0.7), _numbers(like)  # problems that have not arrived
    for step in range(most):
        if step > 0:
            last = step == most - 1
            raised = torch.ones_like(power[live]) if last else _next_power(likelihood[live], power[live])
            log_weight, power[live] = _powered(likelihood[live], raised - power[live]), raised
            evidence[live] += _mean_and_effective(log_weight)[0]
            index = _resample(log_weight, samples, generator)
            z[live], founder[live] = z[live].take_along_dim(index[..., None], 1), founder[live].gather(1, index)
            likelihood[live] = likelihood[live].gather(1, index)
        part = Rows(energy, live)
        z[live], likelihood[live], reach[live] = _move(
            part, z[live], likelihood[live], power[live], reach[live], generator, refreshed
        )
        # what no code explains need not be annealed to its end
        live = live[(power[live] < 1) & evidence[live].isfinite()]
        if len(live) == 0:
            break
    share = z.new_zeros(len(z), pool).scatter_add_(1, founder, torch.full_like(z[..., 0], 1 / samples))
    return z, evidence, share.square().sum(1).sqrt()


def _first_step(
    energy: Energy, pool: Tensor, rows: Tensor, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As far from the prior as leaves `samples` of a pool (M, k) effective: the first step of `annealed_smc`.

    Each problem's samples as indices into the pool and their log likelihoods, (P, samples), the evidence's change and
    the power, (P,).
    """
    likelihood = (0.5 * pool.square().sum(1, keepdim=True) - energies_of_all(energy, pool, rows)).T
    power = _next_power(likelihood, torch.zeros_like(rows, dtype=pool.dtype), samples / len(pool))
    log_weight = _powered(likelihood, power)
    index = _resample(log_weight, samples, generator)
    return index, likelihood.gather(1, index), _mean_and_effective(log_weight)[0], power


def _next_power(likelihood: Tensor, power: Tensor, share: float = CONSTANTS.keep) -> Tensor:
    """The largest β' <= 1 at which the weights p(y | z)^(β' - β) keep the effective share, by bisection: (N,).

    Of log (β' - β): the first step may be a millionth.
    """
    whole = 1 - power

    def keeps(step: Tensor) -> Tensor:
        return _mean_and_effective(_powered(likelihood, step))[1] >= share

    low, high = torch.full_like(power, math.log(1e-8)), torch.zeros_like(power)
    for _ in range(16):
        middle = (low + high) / 2
        fine = keeps(whole * middle.exp())
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    return torch.where(keeps(whole), 1.0, power + whole * low.exp())


def _powered(likelihood: Tensor, power: Tensor) -> Tensor:
    """β log p(y | z), -inf where p(y | z) = 0 whatever β: (N, S)."""
    return torch.where(likelihood == -torch.inf, -torch.inf, power[:, None] * likelihood)


def _move(
    energy: Energy,
    z: Tensor,
    likelihood: Tensor,
    power: Tensor,
    reach: Tensor,
    generator: torch.Generator,
    refreshed: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Metropolis moves of samples (N, S, k) of p(z) p(y | z)^power; samples, log p(y | z), reach (N,).

    z' = μ + (1 - ρ²)^½ (z - μ) + ρ C^½ ξ leaves N(μ, C), the samples' own mean and covariance, as it is, and is
    accepted by how the target differs from it: independent draws where it is Gaussian, small steps where it is not.
    ρ = reach e^(-2u), u uniform, has steps for narrow modes and for wide ones; the reach follows the acceptance.
    Each problem's moves end once Σ ρ² · acceptance, 1 for a fresh sample, has reached `refreshed`.
    """
    mean = z.mean(1, keepdim=True)
    covariance = (z - mean).mT @ (z - mean) / z.shape[1]
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    diagonal += 1e-3 * diagonal.mean(1, keepdim=True) + 1e-8  # samples may be fewer than codes, or coincide
    factor = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(factor, (z - mean).mT, upper=False).mT
    travelled = torch.zeros_like(reach)
    todo = torch.arange(len(z), device=z.device)
    for _ in range(CONSTANTS.moves):
        old, old_white = z[todo], white[todo]
        rho = reach[todo, None] * torch.exp(-2 * torch.rand(old.shape[:2], generator=generator).to(z))
        moved = (1 - rho.square()).sqrt()[..., None] * old_white + rho[..., None] * noise_like(old, generator)
        proposed = mean[todo] + moved @ factor[todo].mT
        proposed_likelihood = _log_likelihood(Rows(energy, todo), proposed)
        log_accept = power[todo, None] * (proposed_likelihood - likelihood[todo])  # NaN of two that are impossible
        log_accept += 0.5 * (old.square() - proposed.square() + moved.square() - old_white.square()).sum(2)
        accepted = torch.rand(log_accept.shape, generator=generator).to(z).log() < log_accept  # false for NaN
        z[todo] = torch.where(accepted[..., None], proposed, old)
        white[todo] = torch.where(accepted[..., None], moved, old_white)
        likelihood[todo] = torch.where(accepted, proposed_likelihood, likelihood[todo])
        travelled[todo] += torch.where(accepted, rho.square(), 0.0).mean(1)
        reach[todo] = (reach[todo] * (2 * accepted.to(z).mean(1) - 0.6).exp()).clamp(0.02, 0.999)
        todo = todo[travelled[todo] < refreshed]
        if len(todo) == 0:
            break
    return z, likelihood, reach


def _log_likelihood(energy: Energy, z: Tensor) -> Tensor:
    """log p(y | z): (N, S, k) -> (N, S), -inf where it is not finite."""
    return log_joint(energy, z) + 0.5 * (z.square() + LOG_2_PI).sum(2)


def _numbers(y: Tensor) -> Tensor:
    return torch.arange(len(y), device=y.device)
