"""The single-answer reconstructor that the chapter starts from: one network for each problem, measurement → patch.

x̂ = x̂_G + a ⊙ (x̂_G - μ) + b in DCT coefficients: x̂_G the linear Gaussian estimate, the best that is linear in y, and
a, b of one network of x̂_G, trained on pairs (x, K x + e) by the mean squared error: gains that follow the patch, as a
mixture's posterior mean has them. It needs no generator and no search, and has to be trained anew for every K.
"""

import torch
from torch import Tensor, nn

from genprior.classical import fit_gaussian_prior
from genprior.images import dct_basis
from genprior.networks import Coefficients, mlp, tamed
from genprior.operators import Measured, as_matrix, pose
from genprior.params import TrainDiscriminative, load_params
from genprior.patches import draw_batch, draw_patches, load_splits, to_unit
from genprior.stage import run, set_up, write_array, write_metrics
from genprior.training import Checkpoint, cosine_adam, resumable


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
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        bar.set_postfix(mse=f"{loss.item():.5f}")
    return network.eval().requires_grad_(False)


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params)
    patches, test = load_splits("data/patches", device, ("train", "test"))
    x = draw_patches(test, params.evaluate.patches, params.seed)
    shape = tuple(x.shape[2:])
    flat = to_unit(patches).flatten(1).double().cpu().numpy()
    gaussian = fit_gaussian_prior(flat, dct_basis(*shape), 1, 1, params.seed)
    prior = torch.from_numpy(gaussian.mean[0]), torch.from_numpy(gaussian.covariance[0])
    checkpoint = Checkpoint(".checkpoints/train_discriminative", params, __file__, patches)
    values, restored = {}, []
    for problem in pose(params.problems, x, params.seed):
        network = train(problem, patches, params.train_discriminative, prior, params.seed, checkpoint)
        restored.append(network(problem.y.flatten(1)))
        values[problem.name] = problem.measures(x, restored[-1])
    write_metrics("metrics/train_discriminative.json", {"discriminative": {"none": values}})
    write_array("data/reconstructions/discriminative.npy", torch.stack(restored).squeeze(2).cpu().numpy())
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
