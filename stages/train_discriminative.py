"""The single-answer reconstructor that the chapter starts from: one network for each problem, measurement → patch.

x̂ = x̂_G + a ⊙ (x̂_G - μ) + b in DCT coefficients. x̂_G is the linear Gaussian estimate, the best that is linear in y.
One network gives a and b from x̂_G, trained on pairs (x, K x + e) by the mean squared error: scales that follow the
patch, as a mixture's posterior mean has them. It needs no generator and no search, but another training for every K.

Validation patches say when to learn more slowly, when to stop, and which of the parameters on the way to keep.

Problems are solved side by side in up to `threads` processes of one thread each, on a CPU.
"""

import math
import shutil
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from genprior.images import dct_basis
from genprior.layers import mlp, tamed
from genprior.operators import as_matrix
from pipeline import ranks
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.files import write_array, write_metrics
from pipeline.params import Params, TrainDiscriminative, load_params
from pipeline.patches import draw_batch, draw_patches, load_splits, spread, to_unit
from pipeline.problems import Measured, pose
from pipeline.processes import side_by_side
from pipeline.run import run, set_up
from pipeline.training import descend

CHECKPOINTS = Path(".checkpoints/train_discriminative")  # with a folder for each problem
VALIDATION_PATCHES, CHECK = 1000, 50  # on so many, after every so many steps
GAIN = 0.01  # the share by which the error has to fall: for less, a lower learning rate gains more
CUT, LEAST = 0.3, 0.02  # what a cut leaves of the learning rate; below this share of the first one, training ends


class Reconstructor(nn.Module):
    """Measurements (N, m) -> patches (N, 1, h, w); begins as the linear Gaussian estimate.

    matrix: K (m, n); prior: mean (n,) and covariance (n, n) of the patches, with K and sigma of all that is linear.
    """

    def __init__(
        self, matrix: Tensor, sigma: float, prior: tuple[Tensor, Tensor], shape: tuple[int, int], hidden: list[int]
    ):
        super().__init__()
        (mean, covariance), basis = prior, torch.from_numpy(dct_basis(*shape))
        s = matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
        gain = basis.T @ torch.linalg.solve(s, matrix @ covariance).T
        self.shape, self.network = shape, mlp([len(mean), *hidden, 2 * len(mean)], "silu")
        constants = {"basis": basis, "mean": mean, "gain": gain, "centre": matrix @ mean}
        # standard deviations of the patches' coefficients, and of their linear estimates', in which faint ones are seen
        constants["scale"] = (basis.T @ covariance @ basis).diagonal().sqrt()
        constants["estimated"] = (gain @ matrix @ covariance @ basis).diagonal().clamp_min(1e-16).sqrt()
        for name, value in constants.items():
            self.register_buffer(name, value.float())

    def forward(self, y: Tensor) -> Tensor:
        c = (y - self.centre) @ self.gain.T
        a, b = self.network(tamed(c / self.estimated)[0]).chunk(2, 1)
        return (self.mean + (c + a * c + self.scale * b) @ self.basis.T).reshape(-1, 1, *self.shape)


def linear_gaussian(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (n,) and covariance (n, n) of uint8 patches (N, 1, h, w); 1e-3 more of each DCT coefficient's variance."""
    x, basis = to_unit(spread(patches).cpu()).flatten(1).double(), torch.from_numpy(dct_basis(*patches.shape[2:]))
    ridge = 1e-3 * (x @ basis).std(0, correction=0).clamp_min(1e-3).square()
    return x.mean(0), torch.cov(x.T, correction=0) + (basis * ridge) @ basis.T


def train(
    problem: Measured,
    truth: Tensor,
    patches: Tensor,
    settings: TrainDiscriminative,
    prior: tuple[Tensor, Tensor],
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[Reconstructor, int]:
    """Train on uint8 patches (N, 1, h, w), measured anew in every step, until validation stops; also returns the steps.

    problem: posed on validation patches `truth`, x in [0, 1]; prior: mean and covariance.
    """
    shape, draw, rows = tuple(patches.shape[2:]), torch.Generator().manual_seed(seed), []
    matrix = as_matrix(problem.operator, shape, problem.y).cpu().double()
    network = Reconstructor(matrix, problem.sigma, prior, shape, settings.hidden).to(patches.device)
    best = deepcopy(network).eval().requires_grad_(False)
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr, fused=True)
    schedule = ReduceLROnPlateau(optimizer, factor=CUT, patience=settings.patience, threshold=GAIN)

    def error_of(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"loss": (network(y) - x).square().mean()}

    state = [network, best, optimizer, schedule, draw]
    for step in (bar := resumable(settings.steps, problem.name, checkpoint, state, rows)):
        if optimizer.param_groups[0]["lr"] < LEAST * settings.lr:
            continue  # and not break: `resumable` saves after the last
        x = draw_batch(patches, settings.batch_size, draw)
        y = problem.operator.A(x).flatten(1)
        y = y + problem.sigma * torch.randn(y.shape, generator=draw).to(y.device)
        descend(error_of, (x, y), network, optimizer)
        if (step + 1) % CHECK == 0 or step == settings.steps - 1:
            with torch.no_grad():
                error = (network(problem.y.flatten(1)) - truth).square().mean().item()
            if error < min((row["mse"] for row in rows), default=math.inf):
                best.load_state_dict(network.state_dict())
            rows.append({"step": step + 1, "mse": error})
            schedule.step(error)
            bar.set_postfix(validation_mse=f"{error:.5f}")
    return best, rows[-1]["step"]


def solve(prior: tuple[Tensor, Tensor], params: Params, name: str) -> tuple[dict[str, float], np.ndarray]:
    """Train for one of `problems` and restore its test patches: measures, and images (N, h, w); with one thread."""
    device = set_up(params.model_copy(update={"threads": 1}))
    patches, validation, test = load_splits("data/patches", device)
    x = draw_patches(test, params.evaluate.patches, params.seed)
    x_validation = draw_patches(validation, VALIDATION_PATCHES, params.seed)
    posed = {name: params.problems[name]}
    (problem,), (on_validation,) = pose(posed, x, params.seed), pose(posed, x_validation, params.seed, "validation")
    folder = CHECKPOINTS / str(list(params.problems).index(name))  # a name may be no folder's, or two be one's
    checkpoint = Checkpoint(folder, params, __file__, patches, validation)
    settings = params.train_discriminative
    network, count = train(on_validation, x_validation, patches, settings, prior, params.seed, checkpoint)
    restored = network(problem.y.flatten(1))
    return problem.measures(x, restored) | {"steps": count}, restored.squeeze(1).cpu().numpy()


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params.model_copy(update={"threads": 1}))  # as in the processes: what it writes is the same
    (patches,) = load_splits("data/patches", "cpu", ("train",))
    processes = params.threads if device.type == "cpu" else 1
    names, function = list(params.problems), partial(solve, linear_gaussian(patches), params)
    found = side_by_side(function, names, processes, "train_discriminative")
    ranks.leave_to_first()
    values = {"discriminative": {"none": {name: found[name][0] for name in names}}}
    write_metrics("metrics/train_discriminative.json", values)
    write_array("data/reconstructions/discriminative.npy", np.stack([found[name][1] for name in names]))
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)


if __name__ == "__main__":
    run(main, shared=True)
