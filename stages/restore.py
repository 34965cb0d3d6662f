"""Photographs: the middles of those held out for the test, restored by priors of patches and by classical methods.

Total variation is restored in the same splitting, its weight chosen on the validation photographs; non-local means and
wavelets know noise alone. Problems are solved side by side in up to `threads` processes of one thread each.
"""

import math
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import norm
from skimage.metrics import structural_similarity
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle, denoise_wavelet
from torch import Tensor

from genprior.files import InputError
from genprior.images import psnr_db
from genprior.splitting import RestoredImage, restore_image
from genprior.views import load
from pipeline import ranks
from pipeline.files import write_array, write_metrics
from pipeline.params import Params, load_params
from pipeline.photographs import of_split
from pipeline.prepare import prepare
from pipeline.problems import Measured, pose
from pipeline.processes import side_by_side
from pipeline.run import run, set_up

LEAST = 7  # pixels of a side, the window of the structural similarity
NINE_TENTHS = norm.ppf(0.95)  # standard deviations to either side
SAMPLES = 16  # of which standard deviations are taken: right to a sixth, were they independent
MOST = 128  # pixels of a side, of the photograph's middle: the whole takes as long as all that is before it
FILES = {"mixture": "data/baselines/mixture.safetensors"}  # beside the trained priors


def held_out(split: str, params: Params) -> list[str]:
    """The photographs of a split that are restored."""
    return of_split(split)["photograph"].tolist()[: params.restore.photographs]


def read(file: str, params: Params) -> Tensor:
    """The middle of a photograph, of sides that every factor of super-resolution divides: (1, 1, H, W) in [0, 1].

    InputError where it is too small to measure.
    """
    picture = prepare(file, params.extract_patches)
    factor = math.lcm(*(getattr(problem, "factor", 1) for problem in params.restore.problems.values()))
    sides = [min(side, MOST) - min(side, MOST) % factor for side in picture.shape]
    if min(sides) < LEAST:
        raise InputError(f"{file}: {sides} pixels are too few for ssim; at least {LEAST} × {LEAST} would be right")
    top, left = ((whole - side) // 2 for whole, side in zip(picture.shape, sides, strict=True))
    middle = picture[top : top + sides[0], left : left + sides[1]]
    return torch.from_numpy(middle / np.float32(255))[None, None]


def shrunk(x: Tensor, level: float, weight: float) -> Tensor:
    """argmin_z ‖z - x‖² / 2 τ² + weight Σ |∇z| of a photograph. Chambolle 2004."""
    found = denoise_tv_chambolle(x[0, 0].numpy(), weight * level**2, eps=1e-4, max_num_iter=100)
    return torch.from_numpy(found)[None, None].to(x)


def by_total_variation(problem: Measured, weight: float) -> Tensor:
    return restore_image(partial(shrunk, weight=weight), problem.operator, problem.y, problem.sigma).x


def by_prior(name: str, problem: Measured, params: Params) -> RestoredImage:
    prior = load(FILES.get(name, f"data/models/{name}.safetensors"), shape=params.extract_patches.patch_size)
    return restore_image(prior, problem.operator, problem.y, problem.sigma, params.restore.stride, params.seed)


def methods(problem: Measured, params: Params, weight: float) -> dict[str, Tensor]:
    """Every method's restoration of a photograph, and the `std` of the first prior's: (1, 1, H, W)."""
    first, *others = params.restore.priors
    found = by_prior(first, problem, params)
    found = {first: found.x, "std": found.std(SAMPLES, params.seed)}
    found |= {name: by_prior(name, problem, params).x for name in others}
    found["tv"] = by_total_variation(problem, weight)
    if params.restore.problems[problem.name].operator == "identity":
        y, sigma = problem.y[0, 0].numpy(), problem.sigma
        classical = {
            "nlm": denoise_nl_means(y, 5, 10, 0.8 * sigma, sigma=sigma),
            "wavelets": denoise_wavelet(y, sigma, wavelet="db2", rescale_sigma=True),
        }
        found |= {name: torch.from_numpy(np.float32(image))[None, None] for name, image in classical.items()}
    return found


def weigh(params: Params, name: str) -> float:
    """The weight of total variation that restores the validation photographs best, from one problem."""
    set_up(params.model_copy(update={"device": "cpu", "threads": 1}))
    tried, errors = params.restore.tv_weights, np.zeros(len(params.restore.tv_weights))
    for number, file in enumerate(held_out("validation", params)):
        x = read(file, params)
        (problem,) = pose({name: params.restore.problems[name]}, x, params.seed, f"validation {number}")
        restored = (by_total_variation(problem, weight) for weight in tried)
        errors += [np.log((image - x).square().mean().item()) for image in restored]
    return tried[int(errors.argmin())]


def as_picture(problem: Measured, x: Tensor) -> Tensor:
    """What was measured, where it is a picture of x's size, else as much of Aᵀy as explains y best."""
    if problem.y.shape == x.shape:
        return problem.y
    back = problem.operator.A_adjoint(problem.y)
    again = problem.operator.A(back)
    return back * (problem.y * again.conj()).real.sum() / again.abs().square().sum()


def solve(params: Params, weights: dict[str, float], task: tuple[str, int]) -> tuple[dict[str, np.ndarray], float]:
    """Truth, what was measured, and all methods' restorations of one photograph from one problem: uint8 (H, W).

    With them the standard deviations of the first prior's, five times, and which share of its pixels is within the
    interval that should hold nine tenths.
    """
    set_up(params.model_copy(update={"device": "cpu", "threads": 1}))
    name, number = task
    x = read(held_out("test", params)[number], params)
    (problem,) = pose({name: params.restore.problems[name]}, x, params.seed, f"photograph {number}")
    found = {"truth": x, "measured": as_picture(problem, x)}
    found |= methods(problem, params, weights[name])
    std = found.pop("std")
    held = ((found[params.restore.priors[0]] - x).abs() <= NINE_TENTHS * std).float().mean().item()
    found["std"] = 5 * std
    pictures = {name: np.rint(255 * image[0, 0].clamp(0, 1).numpy()).astype(np.uint8) for name, image in found.items()}
    return pictures, held


def main() -> None:
    params = load_params("params.yaml")
    set_up(params.model_copy(update={"device": "cpu"}))
    names, files = list(params.restore.problems), held_out("test", params)
    weights = side_by_side(partial(weigh, params), names, params.threads, "total variation")
    tasks = [(name, number) for name in names for number in range(len(files))]
    solved = side_by_side(partial(solve, params, weights), tasks, params.threads, "restore")
    ranks.leave_to_first()
    values, first = {}, params.restore.priors[0]
    for (name, number), (found, _) in solved.items():
        truth = found["truth"] / 255
        for method in [key for key in found if key not in ("truth", "measured", "std")]:
            image, of_photograph = found[method] / 255, re.sub(r"\W+", "_", str(Path(files[number]).with_suffix("")))
            row = values.setdefault(method, {"whole": {}})["whole"].setdefault(name, {})
            row[f"psnr_db_{of_photograph}"] = psnr_db(np.square(image - truth).mean())
            row[f"ssim_{of_photograph}"] = structural_similarity(image, truth, data_range=1)
    for method, problems in values.items():
        for name, row in problems["whole"].items():
            for measure in ("psnr_db", "ssim"):
                own = [value for key, value in row.items() if key.startswith(measure)]
                row[measure] = float(np.mean(own))
            if method == "tv":
                row["weight"] = weights[name]
            if method == first:
                row["coverage_90"] = float(np.mean([solved[name, number][1] for number in range(len(files))]))
    write_metrics("metrics/restore.json", values)
    for name in names:
        for method, image in solved[name, 0][0].items():  # the report shows the first photograph
            write_array(f"data/photographs/{name}_{method}.npy", image)


if __name__ == "__main__":
    run(main, shared=True)
