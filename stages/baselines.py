"""The same problems, measurements and patches by classical methods, all that they leave open chosen on validation.

Problems are solved side by side in up to `threads` processes of one thread each.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from genprior.files import InputError
from genprior.images import dct_basis
from genprior.operators import as_matrix
from pipeline import classical
from pipeline.files import write_array, write_metrics
from pipeline.params import Params, load_params
from pipeline.patches import different_patches, draw_batch, draw_patches, load_splits, to_unit
from pipeline.problems import pose, reconstruction_measures
from pipeline.processes import side_by_side
from pipeline.run import run, set_up, steps

Estimator = Callable[[np.ndarray, list[float]], list[np.ndarray] | np.ndarray]  # of y (N, m): (N, n) for each weight


def choose(method: Estimator, weights: list[float], y: np.ndarray, truth: np.ndarray) -> float:
    """The weight whose estimates of the validation patches have the smallest squared error."""
    errors = [np.square(estimate - truth).sum() for estimate in method(y, weights)]
    return weights[int(np.argmin(errors))]


def for_each(method: Callable[[np.ndarray, float], np.ndarray]) -> Estimator:
    """A method that takes one weight, for several."""
    return lambda y, weights: [method(y, weight) for weight in weights]


def principal_components(patches: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """PCA of patches (N, n) as a generator with a standard normal code: mean (n,) and components (n, k)."""
    from sklearn.decomposition import PCA  # a second to import

    pca = PCA(count, svd_solver="covariance_eigh").fit(patches)
    return pca.mean_, pca.components_.T * np.sqrt(pca.explained_variance_)


def fit_mixtures(
    patches: np.ndarray, validation: np.ndarray, basis: np.ndarray, params: Params
) -> dict[str, classical.GaussianPrior]:
    """One Gaussian and the mixtures, of the start and the shrinkage that validation patches (N, n) are likeliest by."""
    settings, n = params.baselines, patches.shape[1]
    found = {}
    counts = [1, *settings.mixture_components]
    for i in (bar := steps(len(counts), "mixtures")):
        count = counts[i]
        bar.set_postfix(components=count)
        starts, shrinkages = (settings.mixture_starts, settings.mixture_shrinkages) if count > 1 else (1, [0.0])
        fits = (
            classical.fit_gaussian_prior(
                patches, basis, count, settings.mixture_iterations, params.seed + start, classical.contrast
            )
            for start in range(starts)
        )
        shrunk = (fitted.shrunk(share) for fitted in fits for share in shrinkages)
        best = max(shrunk, key=lambda prior: prior.condition(np.eye(n), validation, 0.0)[1].mean())
        found["gaussian" if count == 1 else f"mixture_{count}"] = best
    return found


def solve(
    pca: tuple[np.ndarray, np.ndarray], mixtures: dict[str, classical.GaussianPrior], params: Params, name: str
) -> dict[str, tuple[np.ndarray, float | None]]:
    """Every method's estimates of one problem's patches (N, n) and the weight it chose, by name; with one thread.

    The problem is one of `problems`, or of the crossover, on fewer patches.
    """
    set_up(params.model_copy(update={"device": "cpu", "threads": 1}))
    validation, test = load_splits("data/patches", "cpu", ("validation", "test"))
    x = draw_patches(test, params.evaluate.patches, params.seed)
    posed = {name: {**params.problems, **params.crossover_problems()}[name]}
    (problem,) = pose(posed, x if name in params.problems else x[: params.crossover.patches], params.seed)
    x_validation = draw_patches(validation, params.baselines.validation_patches, params.seed)
    (on_validation,) = pose(posed, x_validation, params.seed, "validation")
    truth, shape = x_validation.flatten(1).double().numpy(), tuple(x.shape[2:])
    matrix = as_matrix(problem.operator, shape).double().numpy()
    basis = dct_basis(*shape)
    y, y_validation = (measured.y.flatten(1).double().numpy() for measured in (problem, on_validation))
    latent_weight = problem.sigma**2 if params.evaluate.latent_weight is None else params.evaluate.latent_weight
    choices = params.baselines
    weighted = {
        "tikhonov": (for_each(partial(classical.tikhonov, matrix)), choices.tikhonov_weights),
        "lasso_dct": (partial(classical.lasso, matrix, basis), choices.lasso_weights),
        "tv": (for_each(partial(classical.total_variation, matrix, shape)), choices.tv_weights),
    }
    found = {
        "minimum_norm": (classical.minimum_norm(matrix, y), None),
        "pca": (classical.linear_prior(matrix, *pca, y, latent_weight), None),
    }
    for method, (estimates, weights) in weighted.items():
        weight = choose(estimates, weights, y_validation, truth)
        found[method] = (estimates(y, [weight])[0], weight)
    for method, prior in mixtures.items():
        found[method] = (prior.condition(matrix, y, problem.sigma)[0], None)
    return found


def main() -> None:
    params = load_params("params.yaml")
    set_up(params.model_copy(update={"device": "cpu"}))  # small linear algebra in float64
    train, validation, test = load_splits("data/patches", "cpu")
    shape = tuple(test.shape[2:])
    if len(train) < params.network.latent_size:
        raise InputError(
            f"data/patches/train.npy: {len(train)} patches; as many principal components as network.latent_size = "
            f"{params.network.latent_size} need no fewer"
        )
    if len(train) < (most := max(params.baselines.mixture_components, default=0)):
        raise InputError(f"{len(train)} training patches are too few for baselines.mixture_components = {most}")
    x = draw_patches(test, params.evaluate.patches, params.seed)
    pca = principal_components(to_unit(train).flatten(1).double().numpy(), params.network.latent_size)
    draw, dequantised = torch.Generator().manual_seed(params.seed), []
    for split, count in ((train, params.baselines.mixture_patches), (validation, 2000)):
        different = different_patches(split, count, draw)
        dequantised.append(draw_batch(different, None, draw).flatten(1).double().numpy())
    mixtures = fit_mixtures(*dequantised, dct_basis(*shape), params)

    # the patches on which the learned priors' likelihood is measured
    held_out = draw_batch(test, params.evaluate.likelihood_patches, torch.Generator().manual_seed(params.seed))
    held_out = held_out.flatten(1).double().numpy()
    n = held_out.shape[1]
    values, restored = {}, {}
    for name, prior in mixtures.items():
        per_pixel = prior.condition(np.eye(n), held_out, 0.0)[1] / n
        error = per_pixel.std(ddof=1) / len(per_pixel) ** 0.5
        likelihood = {"log_likelihood": per_pixel.mean(), "standard_error": error}
        values[name] = {"none": {"likelihood": likelihood}}

    posed = {**params.problems, **params.crossover_problems()}
    solved = side_by_side(partial(solve, pca, mixtures, params), list(posed), params.threads, "baselines")
    for problem in pose(params.problems, x, params.seed):
        for method, (estimate, weight) in solved[problem.name].items():
            images = torch.from_numpy(estimate).float().reshape(x.shape)
            restored.setdefault(method, []).append(images.squeeze(1))
            constraint = values.setdefault(method, {}).setdefault("range" if method == "pca" else "none", {})
            constraint[problem.name] = problem.measures(x, images)
            if weight is not None:
                constraint[problem.name]["weight"] = weight
    centred = x.flatten(1).double().numpy() - pca[0]
    best = pca[0] + centred @ np.linalg.pinv(pca[1]).T @ pca[1].T
    values["pca"]["range"]["representation"] = reconstruction_measures(x, torch.from_numpy(best).reshape(x.shape))
    few = x[: params.crossover.patches]
    for name in params.crossover_problems():
        for method, (estimate, _) in solved[name].items():
            (constraint,) = values[method].values()
            constraint[name] = reconstruction_measures(few, torch.from_numpy(estimate).float().reshape(few.shape))

    write_metrics("metrics/baselines.json", values)
    for method, estimates in restored.items():
        write_array(f"data/baselines/{method}.npy", torch.stack(estimates).numpy())


if __name__ == "__main__":
    run(main)
