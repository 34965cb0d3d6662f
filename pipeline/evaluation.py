"""What a prior is worth in the inverse problems: restorations, where their errors come from, what its posterior knows.

`range` confines images to the range of G, as the chapter does; `relaxed` is the prior with its residual model, at the
posterior's dominant mode; `mean` is its posterior mean.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from genprior.covariances import LOG_2_PI
from genprior.energies import Energy, energy_of
from genprior.inversion import CONVERGED, search, starting_codes
from genprior.operators import Identity
from genprior.plan import Plan
from genprior.restoration import Posterior, Restored, posterior, restore
from genprior.sampling import ANNEALED, credible_interval, log_joint
from genprior.streams import stream
from genprior.views import Prior, View
from pipeline.params import Evaluate, Params
from pipeline.problems import Measured, pose, reconstruction_measures

REPRESENTATION_SIGMA = 0.01  # scales the energy of the best G(z) for a known patch, and moves nothing
Rows = dict[str, dict[str, float]]  # measures by constraint
Images = dict[str, Tensor]  # (N, h, w) by constraint


def views_of(prior: Prior) -> dict[str, View]:
    """A prior's views by the names of params.yaml and metrics."""
    return {"range": prior.range, "relaxed": prior}


def plan_of(view: View, settings: Evaluate) -> Plan:
    """The view's way to search, with the starts and iterations of params.yaml."""
    chosen = settings.relaxed if view.plan.dominant else settings.range
    return replace(view.plan, starts=chosen.starts, iterations=chosen.iterations)


def restored(view: View, problem: Measured, settings: Evaluate, seed: int) -> Restored:
    """Patches restored from a posed problem; λ of params.yaml weighs the latent prior of a range."""
    weight = None if view.plan.dominant else settings.latent_weight
    return restore(view, problem.operator, problem.y, problem.sigma, weight, plan_of(view, settings), seed)


def represent(view: View, x: Tensor, settings: Evaluate, seed: int) -> Tensor:
    """The best G(z) for true patches, (N, 1, h, w): what the range of G cannot reach is the chapter's bias."""
    plan, energy = plan_of(view, settings), energy_of(view, Identity(), x, REPRESENTATION_SIGMA, 0.0)
    starts = starting_codes(energy, plan, view.latent_size, stream(seed, "starts"))
    if view.network.encoder is not None:
        starts = torch.cat([starts, view.own(view.encode(x))[None]])
    modes = search(energy, starts, plan)
    return view.decode(modes.at(modes.deepest())[0])


def solver_gap(view: View, problem: Measured, found: Restored, settings: Evaluate, seed: int) -> float:
    """Nats by which a far longer search ends below the lowest energies of `found`, on average; >= 0.

    Of the first patches alone, as many as the problem has.
    """
    weight = None if view.plan.dominant else settings.latent_weight
    energy = energy_of(view, problem.operator, problem.y, problem.sigma, weight)
    plan = replace(view.plan, starts=16, iterations=150, halve_every=0)
    starts = starting_codes(energy, plan, view.latent_size, stream(seed, "longer search"), by_likelihood=True)
    lowest = found.lowest[: len(problem.y)]
    longer = search(energy, starts, plan).energy.min(0).values
    return (lowest - torch.minimum(lowest, longer)).mean().item()


def interval_coverage(samples: Tensor, truth: Tensor, level: float) -> float:
    """Share of pixels whose truth (N, ...) lies in the samples' (N, S, ...) credible interval: `level` is right."""
    low, high = credible_interval(samples, level)
    return ((truth >= low) & (truth <= high)).double().mean().item()


def uncertainty(found: Posterior, x: Tensor) -> dict[str, float]:
    """How often intervals hold the truths x (N, 1, h, w), and how far to believe the sampler."""
    return {
        "coverage_50": interval_coverage(found.x, x, 0.5),
        "coverage_90": interval_coverage(found.x, x, 0.9),
        **reliability(found),
    }


def reliability(found: Posterior) -> dict[str, float]:
    """How far to believe the sampler."""
    return {
        "effective_share": found.effective.median().item(),
        "annealed": found.status.count(ANNEALED) / len(found.status),
    }


def solve(prior: Prior, x: Tensor, name: str, params: Params) -> tuple[Rows, Images]:
    """Restore patches x (N, 1, h, w) from one problem under each constraint, with all that is measured of it."""
    settings, seed, posed = params.evaluate, params.seed, {name: params.problems[name]}
    count = min(settings.posterior_patches, len(x))
    (problem,) = pose(posed, x, seed)
    few, rows, images = replace(problem, y=problem.y[: settings.solver_patches]), {}, {}
    for constraint, view in views_of(prior).items():
        found = restored(view, problem, settings, seed)
        images[constraint] = found.x
        row = rows[constraint] = problem.measures(x, found.x)
        row["converged"] = found.status.count(CONVERGED) / len(x)
        row["solver_gap"] = solver_gap(view, few, found, settings, seed)

        # The control: truths that the prior itself drew, so that only noise and ambiguity are left.
        own = view.sample(count, stream(seed, "control"))
        (on_own,) = pose(posed, own, seed, "control")
        found_own = restored(view, on_own, settings, seed)
        row["in_range_psnr_db"] = reconstruction_measures(own, found_own.x)["psnr_db"]
        if constraint == "relaxed":
            images["mean"] = found.mean(settings.mean_samples, seed)
            rows["mean"] = problem.measures(x, images["mean"])
            spread = found.posterior(settings.posterior_samples, seed, first=count)
            images["posterior"] = torch.cat([spread.x[:, :4], spread.mean[:, None], spread.std[:, None]], 1).squeeze(2)
            row |= uncertainty(spread, x[:count])
            on_own = uncertainty(found_own.posterior(settings.posterior_samples, seed), own)
            row |= {f"in_range_{measure}": value for measure, value in on_own.items()}
    return rows, {kind: image.squeeze(1) for kind, image in images.items()}


def cross_over(prior: Prior, x: Tensor, name: str, params: Params) -> tuple[Rows, Images]:
    """The errors alone, of a problem of the crossover, on the first of patches x (N, 1, h, w)."""
    few, settings, seed = x[: params.crossover.patches], params.evaluate, params.seed
    (problem,) = pose({name: params.crossover_problems()[name]}, few, seed)
    rows = {}
    for constraint, view in views_of(prior).items():
        found = restored(view, problem, settings, seed)
        rows[constraint] = reconstruction_measures(few, found.x)
    rows["mean"] = reconstruction_measures(few, found.mean(settings.mean_samples, seed))
    return rows, {}


def weigh(prior: Prior, x: Tensor, name: str, params: Params) -> tuple[Rows, Images]:
    """The errors of a range whose latent prior has one of the swept weights λ, on the patches of the crossover."""
    few, seed, swept = x[: params.crossover.patches], params.seed, params.latent_weights.problem
    (problem,) = pose({swept: params.problems[swept]}, few, seed)
    weight = params.weighed()[name] * problem.sigma**2
    plan = plan_of(prior.range, params.evaluate)
    found = restore(prior.range, problem.operator, problem.y, problem.sigma, weight, plan, seed)
    return {"range": reconstruction_measures(few, found.x)}, {}


def log_likelihood(prior: Prior, x: Tensor, settings: Evaluate, seed: int) -> dict[str, float]:
    """log p(x) of dequantised patches in nats per pixel: the evidence with K = I and no noise; below it, its bounds."""
    plan = plan_of(prior, settings)
    found = posterior(prior, Identity(), x, 0.0, settings.posterior_samples, seed, plan)
    n = x[0].numel()
    per_pixel = found.log_evidence / n
    return {
        "log_likelihood": per_pixel.mean().item(),
        "standard_error": (per_pixel.std() / len(x) ** 0.5).item(),  # over patches
        "monte_carlo_error": (found.log_evidence_error.square().sum().sqrt() / len(x) / n).item(),
        **reliability(found),
        **(lower_bounds(prior, x, settings.posterior_samples, seed) if prior.network.is_variational else {}),
    }


def lower_bounds(prior: Prior, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    """What the encoder's q(z | x) alone says of log p(x), nats per pixel: the ELBO, and the bound of so many draws.

    log w = log p(x | z) + log p(z) - log q(z | x): E log w <= E log mean w <= log p(x). Burda et al. 2016, theorem 1.
    """
    mean, log_variance = prior.network.encoder(x)
    energy: Energy = energy_of(prior, Identity(), x, 0.0)
    noise = torch.randn(len(x), draws, mean.shape[1], generator=stream(seed, "lower bounds")).to(mean)
    z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise
    log_q = -0.5 * (noise.square() + log_variance[:, None] + LOG_2_PI).sum(2)
    log_weight = log_joint(energy, z) - log_q
    bound = log_weight.logsumexp(1) - math.log(draws)
    n = x[0].numel()
    return {"elbo": log_weight.mean().item() / n, "importance_bound": bound.mean().item() / n}
