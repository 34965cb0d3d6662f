"""Our expectation maximisation for Gaussian mixtures beside scikit-learn's, from the same shares, on training patches.

After `make repro`: `python -m benchmarks.mixtures`, two minutes; the result is benchmarks/mixtures.md.
"""

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from genprior.layers import Coefficients
from pipeline.classical import GaussianPrior, clusters, contrast, maximise_likelihood
from pipeline.files import write_text
from pipeline.params import load_params
from pipeline.patches import draw_batch, load_splits
from pipeline.run import run, set_up

RIDGE = 1e-3
SCORED = 2000  # patches on which the likelihoods are compared


def timed(fit: Callable[[], GaussianPrior]) -> tuple[GaussianPrior, float]:
    """What a fit gives, and its seconds."""
    began = time.perf_counter()
    return fit(), time.perf_counter() - began


def by_scikit_learn(x: np.ndarray, start: GaussianPrior, iterations: int) -> GaussianPrior:
    """So many iterations of its GaussianMixture, with its products in the precision of x as ours."""
    model = GaussianMixture(
        len(start.weight),
        reg_covar=RIDGE,
        max_iter=iterations,
        tol=0,
        weights_init=start.weight.astype(x.dtype),
        means_init=start.mean.astype(x.dtype),
        precisions_init=np.linalg.inv(start.covariance).astype(x.dtype),
    )
    with warnings.catch_warnings():  # it is not meant to converge
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x)
    return GaussianPrior(*(found.astype(float) for found in (model.weights_, model.means_, model.covariances_)))


def main() -> None:
    params = load_params("params.yaml")
    set_up(params.model_copy(update={"device": "cpu"}))
    (train,) = load_splits("data/patches", "cpu", ("train",))
    patches = draw_batch(train, None, torch.Generator().manual_seed(params.seed))
    x = Coefficients(tuple(patches.shape[2:])).fit(patches).analyse(patches).numpy()
    n, iterations = x.shape[1], params.baselines.mixture_iterations
    rows = []
    for count in params.baselines.mixture_components:
        share = clusters(contrast(x), count, params.seed)
        start = maximise_likelihood(x, share, 0, RIDGE)
        ours, seconds = timed(lambda share=share: maximise_likelihood(x, share, iterations, RIDGE, enough=-np.inf))
        theirs, longer = timed(lambda start=start: by_scikit_learn(x, start, iterations))
        likelihood, other = (prior.condition(np.eye(n), x[:SCORED], 0.0)[1].mean() / n for prior in (ours, theirs))
        rows.append(
            f"| {count} | {seconds:.1f} | {longer:.1f} | {longer / seconds:.2f} | {likelihood:.5f} | {other:.5f} |"
        )
        print(rows[-1], flush=True)
    parts = [
        "# Expectation maximisation",
        f"Seconds of {iterations} iterations for mixtures of {len(x)} patches of {n} pixels, with {params.threads} "
        f"threads, from the same k-means, and the mean log-likelihood of {SCORED} of them at the end, in nats per "
        "standardised coefficient. scikit-learn's GaussianMixture sums over all patches for every component, ours over "
        "those of a share. Written by `python -m benchmarks.mixtures`.",
        "\n".join(
            [
                "| components | ours, s | scikit-learn, s | ratio | ours, nats | scikit-learn, nats |",
                "| --- | --- | --- | --- | --- | --- |",
                *rows,
            ]
        ),
    ]
    write_text("benchmarks/mixtures.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    run(main)
