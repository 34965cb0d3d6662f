from itertools import pairwise

import numpy as np
import pytest
import torch

from genprior.inversion import CONVERGED, NOT_FINITE, adam, invert, levenberg_marquardt, objective


@pytest.fixture
def draw():
    torch.set_default_dtype(torch.float64)
    return torch.Generator().manual_seed(0)


def starts(draw, count, problems, k):
    return torch.randn(count, problems, k, generator=draw)


@pytest.mark.parametrize("latent_weight", [0.0, 1e-4, 0.3])
def test_linear_decoder_gives_least_squares(draw, latent_weight):
    forward, offset = torch.randn(12, 5, generator=draw), torch.randn(12, generator=draw)
    y = torch.randn(7, 12, generator=draw)
    found = invert(lambda z: z @ forward.T + offset, y, latent_weight, starts(draw, 3, 7, 5), 60)
    stacked = np.vstack([forward.numpy(), latent_weight**0.5 * np.eye(5)])
    right = np.hstack([(y - offset).numpy(), np.zeros((7, 5))])
    expected = np.linalg.lstsq(stacked, right.T, rcond=None)[0].T
    np.testing.assert_allclose(found.z.numpy(), expected, atol=1e-3)
    least = np.square(right - expected @ stacked.T).sum(1)
    np.testing.assert_allclose(found.objective.numpy(), least, rtol=1e-5)
    assert found.status == [CONVERGED] * 7


def test_rank_deficient_jacobian(draw):
    forward = torch.randn(12, 2, generator=draw) @ torch.randn(2, 5, generator=draw)
    y = torch.randn(7, 12, generator=draw)
    found = invert(lambda z: z @ forward.T, y, 0.0, starts(draw, 2, 7, 5), 60)
    residual = np.linalg.lstsq(forward.numpy(), y.numpy().T, rcond=None)[0].T @ forward.numpy().T - y.numpy()
    np.testing.assert_allclose(found.objective.numpy(), np.square(residual).sum(1), rtol=1e-4)


def curved(draw, k=3, m=20):
    inner, outer = torch.randn(16, k, generator=draw), torch.randn(m, 16, generator=draw) / 4
    return lambda z: torch.tanh(z @ inner.T) @ outer.T


def test_curved_decoder_is_solved_at_least_as_well_as_by_adam(draw):
    forward = curved(draw)
    y = forward(torch.randn(30, 3, generator=draw)) + 0.1 * torch.randn(30, 20, generator=draw)
    begin = starts(draw, 6, 30, 3)
    ours = invert(forward, y, 0.01, begin, 60)
    reference = adam(forward, y, 0.01, begin, 1500, lr=0.03)
    assert ours.objective.mean() <= 1.001 * reference.objective.mean()
    # It is a minimum: the gradient there vanishes, by autograd and not by the solver's own Jacobian.
    z = ours.z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(forward, y, 0.01, z).sum(), z)
    assert gradient.abs().max() < 0.05
    torch.testing.assert_close(objective(forward, y, 0.01, ours.z), ours.objective)


def test_truth_in_range_is_found(draw):
    forward = curved(draw)
    truth = torch.randn(30, 3, generator=draw)
    found = invert(forward, forward(truth), 0.0, starts(draw, 10, 30, 3), 80)
    assert (found.objective < 1e-6).double().mean() > 0.9


def test_more_starts_never_do_worse(draw):
    forward = curved(draw)
    y = torch.randn(30, 20, generator=draw)
    begin = starts(draw, 1, 30, 3)
    alone = invert(forward, y, 0.01, begin, 50)
    # the audition drops half: the kept ones include whichever is better by then
    together = invert(forward, y, 0.01, begin.repeat(4, 1, 1), 50)
    torch.testing.assert_close(together.objective, alone.objective)


def test_objective_never_rises(draw):
    forward = curved(draw)
    y, begin = torch.randn(30, 20, generator=draw), torch.randn(30, 3, generator=draw)
    values = [levenberg_marquardt(forward, y, 0.01, begin, n).objective for n in (0, 1, 2, 5, 20)]
    for before, after in pairwise(values):
        assert (after <= before).all()


def test_decoder_that_fails_for_some_leaves_the_others_alone(draw):
    smooth = curved(draw)

    def broken_beyond(z):
        return torch.where(z[:, :1] > 1.0, torch.nan, smooth(z))

    y = torch.randn(10, 20, generator=draw)
    begin = 0.1 * torch.randn(1, 10, 3, generator=draw)
    begin[0, 0, 0] = 5.0
    found = invert(broken_beyond, y, 0.01, begin, 50)
    assert found.status[0] == NOT_FINITE
    assert found.objective[0] == torch.inf
    assert torch.equal(found.z[0], begin[0, 0])
    assert found.objective[1:].isfinite().all()
    assert (found.z[1:, 0] <= 1.0).all()


def test_one_problem_does_not_depend_on_its_neighbours(draw):
    forward = curved(draw)
    y, begin = torch.randn(10, 20, generator=draw), starts(draw, 3, 10, 3)
    together = invert(forward, y, 0.01, begin, 50)
    alone = invert(forward, y[4:5], 0.01, begin[:, 4:5], 50)
    torch.testing.assert_close(together.objective[4:5], alone.objective, rtol=1e-6, atol=0)
