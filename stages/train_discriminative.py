"""The single-answer reconstructor that the chapter starts from: one network for each problem, measurement → patch.

x̂ = x̂_G + a ⊙ (x̂_G - μ) + b in DCT coefficients. x̂_G is the linear Gaussian estimate, the best that is linear in y.
One network gives a and b from x̂_G, trained on pairs (x, K x + e) by the mean squared error: scales that follow the
patch, as a mixture's posterior mean has them. It needs no generator and no search, but another training for every K.

Problems are solved side by side in up to `threads` processes of one thread each, on a CPU.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genprior.images import dct_basis
from genprior.layers import mlp, tamed
from genprior.operators import as_matrix
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.files import write_array, write_metrics
from pipeline.params import Params, TrainDiscriminative, load_params
from pipeline.patches import draw_batch, draw_patches, load_splits, to_unit
from pipeline.problems import Measured, pose
from pipeline.processes import side_by_side
from pipeline.run import run, set_up
from pipeline.training import cosine_adam, descend

CHECKPOINTS = Path(".checkpoints/train_discriminative")  # with a folder for each problem


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
    x, basis = to_unit(patches.cpu()).flatten(1).double(), torch.from_numpy(dct_basis(*patches.shape[2:]))
    ridge = 1e-3 * (x @ basis).std(0, correction=0).clamp_min(1e-3).square()
    return x.mean(0), torch.cov(x.T, correction=0) + (basis * ridge) @ basis.T


def train(
    problem: Measured,
    patches: Tensor,
    settings: TrainDiscriminative,
    prior: tuple[Tensor, Tensor],
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> Reconstructor:
    """Train for one problem on uint8 patches (N, 1, h, w), measured anew in every step; prior: mean and covariance."""
    shape, draw = tuple(patches.shape[2:]), torch.Generator().manual_seed(seed)
    matrix = as_matrix(problem.operator, shape, problem.y).cpu().double()
    network = Reconstructor(matrix, problem.sigma, prior, shape, settings.hidden).to(patches.device)
    optimizer, schedule = cosine_adam(network, settings.lr, settings.steps)
    for _ in (bar := resumable(settings.steps, problem.name, checkpoint, [network, optimizer, schedule, draw], [])):
        x = draw_batch(patches, settings.batch_size, draw)
        y = problem.operator.A(x).flatten(1)
        y = y + problem.sigma * torch.randn(y.shape, generator=draw).to(y.device)
        loss = (network(y) - x).square().mean()
        descend(loss, network, optimizer, schedule)
        bar.set_postfix(mse=f"{loss.item():.5f}")
    return network.eval().requires_grad_(False)


def solve(prior: tuple[Tensor, Tensor], params: Params, name: str) -> tuple[dict[str, float], np.ndarray]:
    """Train for one of `problems` and restore its test patches: measures, and images (N, h, w); with one thread."""
    device = set_up(params.model_copy(update={"threads": 1}))
    patches, test = load_splits("data/patches", device, ("train", "test"))
    x = draw_patches(test, params.evaluate.patches, params.seed)
    (problem,) = pose({name: params.problems[name]}, x, params.seed)
    folder = CHECKPOINTS / str(list(params.problems).index(name))  # a name may be no folder's, or two be one's
    checkpoint = Checkpoint(folder, params, __file__, patches)
    network = train(problem, patches, params.train_discriminative, prior, params.seed, checkpoint)
    restored = network(problem.y.flatten(1))
    return problem.measures(x, restored), restored.squeeze(1).cpu().numpy()


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params.model_copy(update={"threads": 1}))  # as in the processes: what it writes is the same
    (patches,) = load_splits("data/patches", "cpu", ("train",))
    processes = params.threads if device.type == "cpu" else 1
    names, function = list(params.problems), partial(solve, linear_gaussian(patches), params)
    found = side_by_side(function, names, processes, "train_discriminative")
    values = {"discriminative": {"none": {name: found[name][0] for name in names}}}
    write_metrics("metrics/train_discriminative.json", values)
    write_array("data/reconstructions/discriminative.npy", np.stack([found[name][1] for name in names]))
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)


if __name__ == "__main__":
    run(main)
