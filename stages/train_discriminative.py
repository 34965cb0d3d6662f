"""The single-answer reconstructor that the chapter starts from: one network for each problem, measurement → patch.

x̂ = x̂_G + a ⊙ (x̂_G - μ) + b in DCT coefficients: x̂_G the linear Gaussian estimate, the best that is linear in y, and
a, b of one network of x̂_G, trained on pairs (x, K x + e) by the mean squared error: scales that follow the patch, as a
mixture's posterior mean has them. It needs no generator and no search, and has to be trained anew for every K.

Problems are solved side by side in up to `threads` processes of one thread each, on a CPU.
"""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from genprior.images import dct_basis
from genprior.layers import Coefficients, mlp, tamed
from genprior.operators import as_matrix
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.classical import GaussianPrior, fit_gaussian_prior
from pipeline.files import write_array, write_metrics
from pipeline.params import Params, TrainDiscriminative, load_params
from pipeline.patches import draw_batch, draw_patches, load_splits, to_unit
from pipeline.problems import Measured, pose
from pipeline.processes import side_by_side
from pipeline.run import run, set_up
from pipeline.training import cosine_adam, descend

CHECKPOINTS = Path(".checkpoints/train_discriminative")  # with a folder for each problem


class Reconstructor(nn.Module):
    """Measurements (N, m) -> patches (N, 1, h, w) by a linear estimate `gain` (n, m), `offset` (n,) and a network.

    estimates: the scale of the linear estimates' coefficients, in which faint ones are seen; truths: of the patches'.
    """

    def __init__(self, gain: Tensor, offset: Tensor, estimates: Coefficients, truths: Coefficients, hidden: list[int]):
        super().__init__()
        n = len(offset)
        self.estimates, self.truths, self.network = estimates, truths, mlp([n, *hidden, 2 * n], "silu")
        self.register_buffer("gain", gain)
        self.register_buffer("offset", offset)

    def linear(self, y: Tensor) -> Tensor:
        """The linear Gaussian estimate: (N, m) -> (N, 1, h, w)."""
        return (y @ self.gain.T + self.offset).reshape(-1, 1, *self.truths.shape)

    def forward(self, y: Tensor) -> Tensor:
        linear = self.linear(y)
        c = self.truths.analyse(linear)
        a, b = self.network(tamed(self.estimates.analyse(linear))[0]).chunk(2, 1)
        return self.truths.synthesise(c + a * c + b)


def train(
    problem: Measured,
    patches: Tensor,
    settings: TrainDiscriminative,
    prior: tuple,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> Reconstructor:
    """Train for one problem on uint8 patches (N, 1, h, w), measured anew in every step; prior: mean and covariance."""
    shape = tuple(patches.shape[2:])
    matrix = as_matrix(problem.operator, shape, problem.y).cpu().double()
    mean, covariance = prior
    s = matrix @ covariance @ matrix.T + problem.sigma**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(s, matrix @ covariance).T
    draw = torch.Generator().manual_seed(seed)

    def measured(count: int) -> tuple[Tensor, Tensor]:
        x = draw_batch(patches, count, draw)
        y = problem.operator.A(x).flatten(1)
        return x, y + problem.sigma * torch.randn(y.shape, generator=draw).to(y.device)

    truths, estimates = Coefficients(shape).fit(to_unit(patches.cpu())), Coefficients(shape)
    network = Reconstructor(
        gain.float(), (mean - gain @ (matrix @ mean)).float(), estimates, truths, settings.hidden
    ).to(patches.device)
    estimates.fit(network.linear(measured(10_000)[1]), least=1e-8)
    optimizer, schedule = cosine_adam(network, settings.lr, settings.steps)
    what, state = f"train_discriminative {problem.name}", [network, optimizer, schedule, draw]
    for _ in (bar := resumable(settings.steps, what, checkpoint, state, [])):
        x, y = measured(settings.batch_size)
        loss = (network(y) - x).square().mean()
        descend(loss, network, optimizer, schedule)
        bar.set_postfix(mse=f"{loss.item():.5f}")
    return network.eval().requires_grad_(False)


def solve(gaussian: GaussianPrior, params: Params, name: str) -> tuple[dict[str, float], np.ndarray]:
    """Train for one of `problems` and restore its test patches: measures, and images (N, h, w); with one thread."""
    device = set_up(params.model_copy(update={"threads": 1}))
    patches, test = load_splits("data/patches", device, ("train", "test"))
    x = draw_patches(test, params.evaluate.patches, params.seed)
    (problem,) = pose({name: params.problems[name]}, x, params.seed)
    prior = torch.from_numpy(gaussian.mean[0]), torch.from_numpy(gaussian.covariance[0])
    number = str(list(params.problems).index(name))  # no folder for some names, and one for two, on some systems
    checkpoint = Checkpoint(CHECKPOINTS / number, params, __file__, patches)
    network = train(problem, patches, params.train_discriminative, prior, params.seed, checkpoint)
    restored = network(problem.y.flatten(1))
    return problem.measures(x, restored), restored.squeeze(1).cpu().numpy()


def linear_gaussian(params: Params) -> GaussianPrior:
    """One Gaussian of the training patches."""
    (patches,) = load_splits("data/patches", "cpu", ("train",))
    return fit_gaussian_prior(
        to_unit(patches).flatten(1).double().numpy(), dct_basis(*patches.shape[2:]), 1, 0, params.seed
    )


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params.model_copy(update={"threads": 1}))  # as in the processes: what it writes is the same
    processes = params.threads if device.type == "cpu" else 1
    function = partial(solve, linear_gaussian(params), params)
    found = side_by_side(function, list(params.problems), processes, "train_discriminative")
    values = {name: found[name][0] for name in params.problems}
    write_metrics("metrics/train_discriminative.json", {"discriminative": {"none": values}})
    write_array("data/reconstructions/discriminative.npy", np.stack([found[name][1] for name in params.problems]))
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)


if __name__ == "__main__":
    run(main)
