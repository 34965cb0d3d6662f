"""One prior through all inverse problems: restorations, where their errors come from, and what the posterior knows.

`range` confines images to the range of G, as the chapter does; `relaxed` lets the prior's residual model speak too, at
the posterior's dominant mode; `mean` is the posterior mean over all codes.

On a CPU, problems are solved side by side in up to `threads` processes of one thread each: small matrices leave further
threads idle.
"""

import math
import sys
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genprior.energies import Energy, RangeEnergy, relaxed_energy
from genprior.files import InputError
from genprior.gaussian import LOG_2_PI
from genprior.inversion import CONVERGED, Inversion, Modes, screen, search
from genprior.networks import PriorNetwork, load_network
from genprior.operators import Identity
from genprior.posterior import (
    ANNEALED,
    Mixture,
    Posterior,
    dominant,
    laplace_mixture,
    log_joint,
    posterior_mean,
    sample_posterior,
)
from genprior.streams import stream
from pipeline.files import write_array, write_metrics
from pipeline.params import Evaluate, Params, Search, load_params
from pipeline.patches import draw_batch, draw_patches, load_patches
from pipeline.problems import Measured, interval_coverage, pose, reconstruction_measures
from pipeline.processes import side_by_side
from pipeline.run import run, set_up

REPRESENTATION_SIGMA = 0.01  # scales the energy of the best G(z) for a known patch, and moves nothing
SCREENED = 2048  # draws from the prior among which a relaxed search finds its starts
POSTERIOR_STARTS = 4  # of the searches for a posterior's modes


def energy_of(prior: PriorNetwork, problem: Measured, constraint: str, settings: Evaluate) -> Energy:
    """What is minimised for a posed problem; λ weighs the latent prior of `range`, Bayes' σ² by default."""
    if constraint == "range":
        return RangeEnergy(prior.decode, problem.operator, problem.y, problem.sigma, settings.latent_weight)
    return relaxed_energy(prior, problem.operator, problem.y, problem.sigma)


def starting_codes(prior: PriorNetwork, count: int, patches: int, draw: torch.Generator) -> Tensor:
    """The prior's centre, then draws from it, for each patch: (count, patches, k)."""
    starts = torch.randn(count, patches, prior.latent_size, generator=draw)
    starts[0] = 0
    return starts.to(prior.code_mean.device)


def starts_of(prior: PriorNetwork, energy: Energy, count: int, draw: torch.Generator, deepest: bool = False) -> Tensor:
    """Where the search of an energy begins; relaxed, what `screen` keeps of many draws: (count, N, k)."""
    if isinstance(energy, RangeEnergy):
        return starting_codes(prior, count, len(energy.y), draw)
    return screen(energy, starting_codes(prior, SCREENED, 1, draw).squeeze(1), count, deepest=deepest)


def find_modes(energy: Energy, starts: Tensor, iterations: int) -> Modes:
    """Where a search of each patch ends; relaxed, no start is dropped: one that looks poor early may hold the most."""
    if isinstance(energy, RangeEnergy):
        return search(energy, starts, iterations)
    return search(energy, starts, iterations, audition=iterations)


class Restored(NamedTuple):
    """Patches restored from one problem: starts (S, N, k) of its searches, their modes, the chosen codes and images.

    Relaxed, with the modes' `laplace_mixture`.
    """

    starts: Tensor
    modes: Modes
    chosen: Inversion
    mixture: Mixture | None


def restore(prior: PriorNetwork, energy: Energy, solver: Search, seed: int) -> Restored:
    """Restore each patch by the deepest mode that `solver` finds, relaxed by the dominant one.

    Relaxed, there are no fewer than `POSTERIOR_STARTS` starts, which `posterior_of` goes on with.
    """
    confined = isinstance(energy, RangeEnergy)
    starts = starts_of(prior, energy, max(solver.starts, 0 if confined else POSTERIOR_STARTS), stream(seed, "starts"))
    modes = find_modes(energy, starts[: solver.starts], solver.iterations)
    if confined:
        return Restored(starts, modes, modes.best(energy), None)
    mixture = laplace_mixture(energy, modes)
    return Restored(starts, modes, dominant(energy, modes, mixture), mixture)


def represent(prior: PriorNetwork, x: Tensor, settings: Evaluate, seed: int) -> Inversion:
    """The best G(z) for the true patches: what the range of G cannot reach is the chapter's bias."""
    starts = starting_codes(prior, settings.range.starts, len(x), stream(seed, "starts"))
    if prior.encoder is not None:
        starts = torch.cat([starts, prior.encode(x)[None]])
    energy = RangeEnergy(prior.decode, Identity(), x, REPRESENTATION_SIGMA, 0.0)
    return search(energy, starts, settings.range.iterations).best(energy)


def solver_gap(prior: PriorNetwork, energy: Energy, lowest: Tensor, seed: int) -> float:
    """Nats by which a far longer search ends below each problem's lowest energy so far (N,), on average; >= 0."""
    starts = starts_of(prior, energy, 16, stream(seed, "longer search"), deepest=True)
    longer = search(energy, starts, 150, audition=150).energy.min(0).values
    return (lowest - torch.minimum(lowest, longer)).mean().item()


def posterior_of(energy: Energy, starts: Tensor, settings: Evaluate, seed: int) -> Posterior:
    """Samples of the posterior of an energy's problems, from the modes of the first of starts (S, N, k)."""
    modes = find_modes(energy, starts[:POSTERIOR_STARTS], settings.relaxed.iterations)
    return sample_posterior(energy, modes, settings.posterior_samples, stream(seed, "posterior"))


def mean_of(energy: Energy, mixture: Mixture, m: int, settings: Evaluate, seed: int) -> Tensor:
    """The posterior mean of each patch (N, 1, h, w) given m numbers, from the `laplace_mixture` of its modes.

    Fewer than two measurements for each number of a code leave it open. Then modes show too little of the posterior,
    however effective their draws look, and the samples' chance costs the mean the more: every patch is annealed, with
    up to four times as many samples.
    """
    k = mixture.centre.shape[2]
    samples = settings.mean_samples * min(4, math.ceil(2 * k / m))
    draw = stream(seed, "posterior mean")
    return posterior_mean(energy, mixture, samples, draw, minimum_effective=math.inf if m < 2 * k else 0.5)


def uncertainty(energy: Energy, starts: Tensor, x: Tensor, settings: Evaluate, seed: int) -> tuple[dict, Tensor]:
    """How often intervals hold the truth x (N, 1, h, w), how far to believe the sampler, the samples (N, S, h, w).

    starts: of the searches for modes, (4 or more, N, k).
    """
    posterior = posterior_of(energy, starts, settings, seed)
    draw = stream(seed, "posterior images")
    samples = posterior.images(lambda z, rows: energy.draw(z, rows, draw))
    found = {
        "coverage_50": interval_coverage(samples, x.squeeze(1), 0.5),
        "coverage_90": interval_coverage(samples, x.squeeze(1), 0.9),
        "effective_share": posterior.effective.median().item(),
        "annealed": posterior.method.count(ANNEALED) / len(x),
    }
    return found, samples


def log_likelihood(prior: PriorNetwork, x: Tensor, settings: Evaluate, seed: int) -> dict[str, float]:
    """log p(x) of dequantised patches in nats per pixel: the evidence with K = I and no noise; below it, its bounds."""
    energy = relaxed_energy(prior, Identity(), x, 0.0)
    starts = starts_of(prior, energy, POSTERIOR_STARTS, stream(seed, "starts"))
    posterior = posterior_of(energy, starts, settings, seed)
    n = x[0].numel()
    per_pixel = posterior.log_evidence / n
    return {
        "log_likelihood": per_pixel.mean().item(),
        "standard_error": (per_pixel.std() / len(x) ** 0.5).item(),  # over patches
        "monte_carlo_error": (posterior.log_evidence_error.square().sum().sqrt() / len(x) / n).item(),
        "effective_share": posterior.effective.median().item(),
        "annealed": posterior.method.count(ANNEALED) / len(x),
        **(lower_bounds(prior, x, settings.posterior_samples, seed) if prior.is_variational else {}),
    }


def lower_bounds(prior: PriorNetwork, x: Tensor, draws: int, seed: int) -> dict[str, float]:
    """What the encoder's q(z | x) alone says of log p(x), nats per pixel: the ELBO, and the bound of so many draws.

    log w = log p(x | z) + log p(z) - log q(z | x): E log w <= E log mean w <= log p(x). Burda et al. 2016, theorem 1.
    """
    mean, log_variance = prior.encoder(x)
    energy = relaxed_energy(prior, Identity(), x, 0.0)
    noise = torch.randn(len(x), draws, mean.shape[1], generator=stream(seed, "lower bounds")).to(mean)
    z = mean[:, None] + (0.5 * log_variance).exp()[:, None] * noise
    log_q = -0.5 * (noise.square() + log_variance[:, None] + LOG_2_PI).sum(2)
    log_weight = log_joint(energy, z) - log_q
    bound = log_weight.logsumexp(1) - math.log(draws)
    n = x[0].numel()
    return {"elbo": log_weight.mean().item() / n, "importance_bound": bound.mean().item() / n}


def picture_rows(samples: Tensor) -> Tensor:
    """What the report shows of a posterior (N, S, h, w): four samples, their mean, their standard deviation."""
    return torch.cat([samples[:, :4], samples.mean(1, keepdim=True), samples.std(1, keepdim=True)], 1)


Found = tuple[dict[str, dict], dict[str, np.ndarray]]  # of a task: measures and images by constraint


def solve(prior: PriorNetwork, x: Tensor, name: str, params: Params) -> Found:
    """Restore patches x (N, 1, h, w) from one problem under each constraint, with all that is measured of it."""
    settings, seed, posed = params.evaluate, params.seed, {name: params.problems[name]}
    few = x[: settings.posterior_patches]
    (problem,) = pose(posed, x, seed)
    rows, images = {}, {}
    for constraint in ("range", "relaxed"):
        energy, solver = energy_of(prior, problem, constraint, settings), getattr(settings, constraint)
        found = restore(prior, energy, solver, seed)
        images[constraint] = found.chosen.x
        row = rows[constraint] = problem.measures(x, found.chosen.x)
        row["converged"] = found.chosen.status.count(CONVERGED) / len(x)
        checked = energy_of(prior, problem.of(settings.solver_patches), constraint, settings)
        row["solver_gap"] = solver_gap(prior, checked, found.modes.energy.min(0).values[: len(checked.y)], seed)

        # The control: truths that the prior itself drew, so that only noise and ambiguity are left.
        own = prior.sample(len(few), stream(seed, "control"), constraint == "relaxed")
        (on_own,) = pose(posed, own, seed, "control")
        in_range = energy_of(prior, on_own, constraint, settings)
        found_own = restore(prior, in_range, solver, seed)
        row["in_range_psnr_db"] = reconstruction_measures(own, found_own.chosen.x)["psnr_db"]
        if found.mixture is not None:
            images["mean"] = mean_of(energy, found.mixture, problem.y[0].numel(), settings, seed)
            rows["mean"] = problem.measures(x, images["mean"])
            on_few = energy_of(prior, problem.of(len(few)), constraint, settings)
            spread, samples = uncertainty(on_few, found.starts[:, : len(few)], few, settings, seed)
            images["posterior"] = picture_rows(samples)
            in_range_spread, _ = uncertainty(in_range, found_own.starts, own, settings, seed)
            row.update(spread, **{f"in_range_{measure}": value for measure, value in in_range_spread.items()})
    return rows, {kind: image.squeeze(1).cpu().numpy() for kind, image in images.items()}


def cross_over(prior: PriorNetwork, x: Tensor, name: str, params: Params) -> Found:
    """The errors alone, of a problem of the crossover, on the first of patches x (N, 1, h, w)."""
    few, settings, seed = x[: params.crossover.patches], params.evaluate, params.seed
    (problem,) = pose({name: params.crossover_problems()[name]}, few, seed)
    rows = {}
    for constraint in ("range", "relaxed"):
        energy = energy_of(prior, problem, constraint, settings)
        found = restore(prior, energy, getattr(settings, constraint), seed)
        rows[constraint] = reconstruction_measures(few, found.chosen.x)
        if found.mixture is not None:
            mean = mean_of(energy, found.mixture, problem.y[0].numel(), settings, seed)
            rows["mean"] = reconstruction_measures(few, mean)
    return rows, {}


def work(name: str, params: Params, task: str) -> Found:
    """One of `main`'s tasks for one prior: a problem, or "representation" or "likelihood"; with one thread."""
    device = set_up(params.model_copy(update={"threads": 1}))
    seed, settings = params.seed, params.evaluate
    test = load_patches("data/patches/test.npy", device)
    prior = load_network(f"data/models/{name}.safetensors", device, test.shape[2:])
    x = draw_patches(test, settings.patches, seed)
    if task == "representation":
        best = represent(prior, x, settings, seed).x
        return {"range": reconstruction_measures(x, best)}, {"range": best.squeeze(1).cpu().numpy()}
    if task == "likelihood":
        dequantised = draw_batch(test, settings.likelihood_patches, torch.Generator().manual_seed(seed))
        return {"relaxed": log_likelihood(prior, dequantised, settings, seed)}, {}
    return (solve if task in params.problems else cross_over)(prior, x, task, params)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in ("ae", "vae", "gan"):
        raise InputError("usage: python -m stages.evaluate ae|vae|gan")
    params = load_params("params.yaml")
    device = set_up(params)
    # Long ones first: what starts last ends last, and alone.
    posed = sorted(params.problems, key=lambda name: params.problems[name].operator not in ("identity", "blur"))
    tasks = [*posed, "likelihood", *reversed(params.crossover_problems()), "representation"]
    processes = params.threads if device.type == "cpu" else 1
    values, images = {"range": {}, "relaxed": {}, "mean": {}}, {}
    found = side_by_side(partial(work, name, params), tasks, processes, f"evaluate {name}")
    for task, (rows, restored) in found.items():
        images[task] = restored
        for constraint, row in rows.items():
            values[constraint][task] = row
    for problem in params.problems:
        row = values["range"][problem]
        row["added_mse"] = row["mse"] - values["range"]["representation"]["mse"]
    write_metrics(f"metrics/evaluate_{name}.json", {name: values})
    for kind in ("range", "relaxed", "mean", "posterior"):
        stack = [images[task][kind] for task in ("representation", *params.problems) if kind in images[task]]
        write_array(f"data/reconstructions/{name}_{kind}.npy", np.stack(stack))


if __name__ == "__main__":
    run(main)
