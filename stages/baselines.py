"""The same problems, measurements and patches by classical methods, all that they leave open chosen on validation.

Problems are solved side by side in up to `threads` processes of one thread each.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from genprior.files import InputError
from genprior.images import dct_basis
from genprior.mixture import GaussianMixture, save_mixture
from genprior.operators import as_matrix
from pipeline import classical, ranks
from pipeline.files import write_array, write_metrics
from pipeline.params import Params, load_params
from pipeline.patches import different_patches, draw_batch, draw_patches, load_splits, spread, to_unit
from pipeline.problems import pose, reconstruction_measures
from pipeline.processes import side_by_side
from pipeline.run import run, set_up, steps


def fit_mixtures(
    patches: np.ndarray, validation: np.ndarray, params: Params
) -> tuple[dict[str, GaussianMixture], dict[str, float]]:
    """One Gaussian and the mixtures, of the shrinkage by which validation patches are likeliest; and the shrinkages.

    patches, validation: (N, h, w). The largest mixture also with the patch's mean apart, as EPLL has it: `epll`.
    """
    settings, basis = params.baselines, dct_basis(*patches.shape[1:])
    counts = settings.mixture_components
    patches, validation = (split.reshape(len(split), -1) for split in (patches, validation))
    kinds = {"gaussian": (1, False), **{f"mixture_{count}": (count, False) for count in counts}}
    kinds |= {"epll": (max(counts), True)} if counts else {}
    found, shrinkages, how = {}, {}, (settings.mixture_iterations, settings.mixture_strength)
    for name, (count, apart) in steps(len(kinds), "mixtures", kinds.items()):
        prior = classical.fit_gaussian_prior(patches, basis, count, *how, params.seed, apart)
        if count > 1:
            fits = [prior.shrunk(share).log_prob(validation).mean() for share in settings.mixture_shrinkages]
            shrinkages[name] = settings.mixture_shrinkages[int(np.argmax(fits))]
            prior = prior.shrunk(shrinkages[name])
        found[name] = prior
    return found, shrinkages


def solve(
    pca: tuple[np.ndarray, np.ndarray], mixtures: dict[str, GaussianMixture], params: Params, name: str
) -> dict[str, tuple[dict[str, float], np.ndarray]]:
    """Each method's measures and images (N, h, w) of one of `problems`, or of the crossover's, on one thread."""
    set_up(params.model_copy(update={"device": "cpu", "threads": 1}))
    settings, of_crossover = params.baselines, params.crossover_problems()
    validation, test = load_splits("data/patches", "cpu", ("validation", "test"))
    x = draw_patches(test, params.evaluate.patches, params.seed)
    x = x[: params.crossover.patches] if name in of_crossover else x
    x_validation = draw_patches(validation, settings.validation_patches, params.seed)
    posed = {name: {**params.problems, **of_crossover}[name]}
    (problem,), (on_validation,) = pose(posed, x, params.seed), pose(posed, x_validation, params.seed, "validation")
    shape = tuple(x.shape[2:])
    matrix = as_matrix(problem.operator, shape, x).double().numpy()
    y, y_validation, truth = (t.flatten(1).double().numpy() for t in (problem.y, on_validation.y, x_validation))

    latent_weight = problem.sigma**2 if params.evaluate.latent_weight is None else params.evaluate.latent_weight
    estimates = {
        "minimum_norm": classical.minimum_norm(matrix, y),
        "pca": classical.linear_prior(matrix, *pca, y, latent_weight),
        **{method: prior.condition(matrix, y, problem.sigma)[0] for method, prior in mixtures.items()},
    }
    weights = {}
    for method, solver, tried in (
        ("tikhonov", partial(classical.tikhonov, matrix), settings.tikhonov_weights),
        ("lasso_dct", partial(classical.lasso, matrix, dct_basis(*shape)), settings.lasso_weights),
        ("tv", partial(classical.total_variation, matrix, shape), settings.tv_weights),
    ):
        errors = np.square(solver(y_validation, tried) - truth).sum((1, 2))
        # With faint noise all small weights restore alike, Tikhonov's as the minimum norm does: the least error would
        # then be a matter of its last digits, often at the grid's edge.
        weights[method] = {"weight": max(np.array(tried)[errors <= 1.001 * errors.min()])}
        (estimates[method],) = solver(y, list(weights[method].values()))

    measures = reconstruction_measures if name in of_crossover else problem.measures
    found = {}
    for method, estimate in estimates.items():
        images = torch.from_numpy(estimate).float().reshape(x.shape)
        chosen = {} if name in of_crossover else weights.get(method, {})
        found[method] = measures(x, images) | chosen, images.squeeze(1).numpy()
    return found


def main() -> None:
    params = load_params("params.yaml")
    set_up(params.model_copy(update={"device": "cpu"}))  # small linear algebra in float64
    train, validation, test = load_splits("data/patches", "cpu")
    most = {
        "network.latent_size": params.network.latent_size,
        "baselines.mixture_components": max(params.baselines.mixture_components, default=0),
    }
    for name, count in most.items():
        if len(train) < count:
            raise InputError(f"data/patches/train.npy: {len(train)} patches are too few for {name} = {count}")
    pixels = to_unit(spread(train)).flatten(1).double().numpy()
    mean, components = classical.principal_components(pixels, params.network.latent_size)
    draw, dequantised = torch.Generator().manual_seed(params.seed), []
    for split, count in ((train, params.baselines.mixture_patches), (validation, 2000)):
        different = different_patches(split, count, draw)
        dequantised.append(draw_batch(different, None, draw).squeeze(1).double().numpy())
    mixtures, shrinkages = fit_mixtures(*dequantised, params)
    names = [*params.problems, *params.crossover_problems()]
    solved = side_by_side(partial(solve, (mean, components), mixtures, params), names, params.threads, "baselines")
    ranks.leave_to_first()
    values = {method: {name: solved[name][method][0] for name in names} for method in solved[names[0]]}

    # the patches on which the learned priors' likelihood is measured
    held_out = draw_batch(test, params.evaluate.likelihood_patches, torch.Generator().manual_seed(params.seed))
    for method, prior in mixtures.items():
        per_pixel = prior.log_prob(held_out.flatten(1).double().numpy()) / mean.size
        error = per_pixel.std(ddof=1) / len(per_pixel) ** 0.5
        values[method]["likelihood"] = {"log_likelihood": per_pixel.mean(), "standard_error": error}
        if method in shrinkages:
            values[method]["likelihood"]["shrinkage"] = shrinkages[method]
    x = draw_patches(test, params.evaluate.patches, params.seed)
    best = mean + (x.flatten(1).double().numpy() - mean) @ np.linalg.pinv(components).T @ components.T
    values["pca"]["representation"] = reconstruction_measures(x, torch.from_numpy(best).reshape(x.shape))

    write_metrics("metrics/baselines.json", {m: {"range" if m == "pca" else "none": v} for m, v in values.items()})
    last = list(mixtures.values())[-1]  # of most components, its mean apart: EPLL's prior, for whole photographs
    save_mixture(replace(last, shape=tuple(x.shape[2:])), "data/baselines/mixture.safetensors")
    for method in values:
        write_array(f"data/baselines/{method}.npy", np.stack([solved[name][method][1] for name in params.problems]))


if __name__ == "__main__":
    run(main, shared=True)
