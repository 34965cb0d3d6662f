"""One prior through all inverse problems: restorations, where their errors come from, and what the posterior knows.

On a CPU, problems are solved side by side in up to `threads` processes of one thread each: small matrices leave further
threads idle.
"""

import sys
from functools import partial

import numpy as np
import torch

from genprior.files import InputError
from genprior.views import load
from pipeline import ranks
from pipeline.evaluation import cross_over, log_likelihood, represent, solve, weigh
from pipeline.files import write_array, write_metrics
from pipeline.params import PRIORS, Params, load_params
from pipeline.patches import draw_batch, draw_patches, load_patches
from pipeline.problems import reconstruction_measures
from pipeline.processes import side_by_side
from pipeline.run import run, set_up


def work(name: str, params: Params, task: str) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """One task for one prior, a problem, "representation" or "likelihood", with one thread: measures and images."""
    device = set_up(params.model_copy(update={"threads": 1}))
    seed, settings = params.seed, params.evaluate
    test = load_patches("data/patches/test.npy", device)
    prior = load(f"data/models/{name}.safetensors", device, test.shape[2:])
    x = draw_patches(test, settings.patches, seed)
    if task == "representation":
        best = represent(prior.range, x, settings, seed)
        rows, images = {"range": reconstruction_measures(x, best)}, {"range": best.squeeze(1)}
    elif task == "likelihood":
        dequantised = draw_batch(test, settings.likelihood_patches, torch.Generator().manual_seed(seed))
        rows, images = {"relaxed": log_likelihood(prior, dequantised, settings, seed)}, {}
    else:
        kind = solve if task in params.problems else weigh if task in params.weighed() else cross_over
        rows, images = kind(prior, x, task, params)
    return rows, {kind: image.cpu().numpy() for kind, image in images.items()}


def main() -> None:
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in PRIORS:
        raise InputError(f"usage: python -m stages.evaluate {'|'.join(PRIORS)}")
    params = load_params("params.yaml")
    device = set_up(params)
    # Long ones first: what starts last ends last, and alone.
    posed = sorted(params.problems, key=lambda name: params.problems[name].operator not in ("identity", "blur"))
    tasks = [*posed, "likelihood", *reversed(params.crossover_problems()), *params.weighed(), "representation"]
    processes = params.threads if device.type == "cpu" else 1
    found = side_by_side(partial(work, name, params), tasks, processes, f"evaluate {name}")
    ranks.leave_to_first()

    values = {"range": {}, "relaxed": {}, "mean": {}}
    for task, (rows, _) in found.items():
        for constraint, row in rows.items():
            values[constraint][task] = row
    for problem in params.problems:
        row = values["range"][problem]
        row["added_mse"] = row["mse"] - values["range"]["representation"]["mse"]
    write_metrics(f"metrics/evaluate_{name}.json", {name: values})
    for kind in ("range", "relaxed", "mean", "posterior"):
        restored = [found[task][1] for task in ("representation", *params.problems)]
        write_array(
            f"data/reconstructions/{name}_{kind}.npy", np.stack([images[kind] for images in restored if kind in images])
        )


if __name__ == "__main__":
    run(main, shared=True)
