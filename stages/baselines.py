"""The same problems, measurements and patches by classical methods, all that they leave open chosen on validation."""

from collections.abc import Callable

import numpy as np
import torch

from genprior import classical
from genprior.images import dct_basis
from genprior.operators import Measured, as_matrix, pose
from genprior.params import InputError, Params, load_params
from genprior.patches import draw_batch, draw_patches, load_splits, to_unit
from genprior.quality import reconstruction_measures
from genprior.stage import run, set_up, steps, write_array, write_metrics


def choose(
    method: Callable[[np.ndarray, float], np.ndarray], weights: list[float], y: np.ndarray, truth: np.ndarray
) -> float:
    """The weight whose estimates of the validation patches have the smallest squared error."""
    errors = [np.square(method(y, weight) - truth).sum() for weight in weights]
    return weights[int(np.argmin(errors))]


def principal_components(patches: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """PCA of patches (N, n) as a generator with a standard normal code: mean (n,) and components (n, k)."""
    from sklearn.decomposition import PCA  # a second to import

    pca = PCA(count, svd_solver="covariance_eigh").fit(patches)
    return pca.mean_, pca.components_.T * np.sqrt(pca.explained_variance_)


def fit_mixtures(
    patches: np.ndarray, validation: np.ndarray, basis: np.ndarray, params: Params
) -> dict[str, classical.GaussianPrior]:
    """One Gaussian and the mixtures, each shrunk by what gives validation patches (N, n) the highest likelihood."""
    settings, n = params.baselines, patches.shape[1]
    found = {}
    counts = [1, *settings.mixture_components]
    for i in (bar := steps(len(counts), "mixtures")):
        count = counts[i]
        bar.set_postfix(components=count)
        fitted = classical.fit_gaussian_prior(patches, basis, count, settings.mixture_iterations, params.seed)
        shrunk = [fitted.shrunk(share) for share in settings.mixture_shrinkages] if count > 1 else [fitted]
        likelihoods = [prior.condition(np.eye(n), validation, 0.0)[1].mean() for prior in shrunk]
        found["gaussian" if count == 1 else f"mixture_{count}"] = shrunk[int(np.argmax(likelihoods))]
    return found


def solve(
    problem: Measured,
    validation: Measured,
    truth: np.ndarray,
    shape: tuple,
    pca: tuple,
    mixtures: dict[str, classical.GaussianPrior],
    params: Params,
) -> dict:
    """Every method's estimates of one problem's patches (N, n) and the weight it chose, by name."""
    matrix = as_matrix(problem.operator, shape).double().numpy()
    basis = dct_basis(*shape)
    y, y_validation = (measured.y.flatten(1).double().numpy() for measured in (problem, validation))
    latent_weight = problem.sigma**2 if params.evaluate.latent_weight is None else params.evaluate.latent_weight
    weighted = {
        "tikhonov": (lambda y, weight: classical.tikhonov(matrix, y, weight), params.baselines.tikhonov_weights),
        "lasso_dct": (lambda y, weight: classical.lasso(matrix, basis, y, weight), params.baselines.lasso_weights),
        "tv": (lambda y, weight: classical.total_variation(matrix, shape, y, weight), params.baselines.tv_weights),
    }
    found = {
        "minimum_norm": (classical.minimum_norm(matrix, y), None),
        "pca": (classical.linear_prior(matrix, *pca, y, latent_weight), None),
    }
    for name, (method, weights) in weighted.items():
        weight = choose(method, weights, y_validation, truth)
        found[name] = (method(y, weight), weight)
    for name, prior in mixtures.items():
        found[name] = (prior.condition(matrix, y, problem.sigma)[0], None)
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
    x = draw_patches(test, params.evaluate.patches, params.seed)
    x_validation = draw_patches(validation, params.baselines.validation_patches, params.seed)
    truth = x_validation.flatten(1).double().numpy()
    pca = principal_components(to_unit(train).flatten(1).double().numpy(), params.network.latent_size)
    draw = torch.Generator().manual_seed(params.seed)
    dequantised = {
        name: draw_batch(split, count, draw).flatten(1).double().numpy()
        for name, split, count in (
            ("train", train, params.baselines.mixture_patches),
            ("validation", validation, 2000),
        )
    }
    mixtures = fit_mixtures(dequantised["train"], dequantised["validation"], dct_basis(*shape), params)

    values, restored = {}, {}

    def record(method: str, problem: Measured, estimate: np.ndarray, weight: float | None) -> None:
        estimate = torch.from_numpy(estimate).float().reshape(x.shape)
        restored.setdefault(method, []).append(estimate.squeeze(1))
        constraint = values.setdefault(method, {}).setdefault("range" if method == "pca" else "none", {})
        constraint[problem.name] = problem.measures(x, estimate)
        if weight is not None:
            constraint[problem.name]["weight"] = weight

    posed = list(
        zip(pose(params.problems, x, params.seed), pose(params.problems, x_validation, params.seed), strict=True)
    )
    for i in (bar := steps(len(posed), "baselines")):
        problem, on_validation = posed[i]
        bar.set_postfix(problem=problem.name)
        for method, (estimate, weight) in solve(problem, on_validation, truth, shape, pca, mixtures, params).items():
            record(method, problem, estimate, weight)
    centred = x.flatten(1).double().numpy() - pca[0]
    best = pca[0] + centred @ np.linalg.pinv(pca[1]).T @ pca[1].T
    values["pca"]["range"]["representation"] = reconstruction_measures(x, torch.from_numpy(best).reshape(x.shape))
    few = x[: params.crossover.patches]
    for problem, on_validation in zip(
        pose(params.crossover_problems(), few, params.seed),
        pose(params.crossover_problems(), x_validation, params.seed),
        strict=True,
    ):
        estimates = solve(problem, on_validation, truth, shape, pca, mixtures, params)
        for method, (estimate, _) in estimates.items():
            (constraint,) = values[method].values()
            error = reconstruction_measures(few, torch.from_numpy(estimate).float().reshape(few.shape))
            constraint[problem.name] = error

    # the patches on which the learned priors' likelihood is measured
    held_out = draw_batch(test, params.evaluate.likelihood_patches, torch.Generator().manual_seed(params.seed))
    held_out = held_out.flatten(1).double().numpy()
    n = held_out.shape[1]
    for name, prior in mixtures.items():
        per_pixel = prior.condition(np.eye(n), held_out, 0.0)[1] / n
        error = per_pixel.std(ddof=1) / len(per_pixel) ** 0.5
        values[name]["none"]["likelihood"] = {"log_likelihood": per_pixel.mean(), "standard_error": error}
    write_metrics("metrics/baselines.json", values)
    for method, estimates in restored.items():
        write_array(f"data/baselines/{method}.npy", torch.stack(estimates).numpy())


if __name__ == "__main__":
    run(main)
