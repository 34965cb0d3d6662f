"""Solvers × problems with known minima."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from doubles import best, curved, find, range_energy

from genprior.energies import chapter_objective
from genprior.inversion import (
    CONVERGED,
    NOT_FINITE,
    STATUS,
    _secant,
    adam,
    fisher_scoring,
    lbfgs,
)

SOLVERS = {
    "fisher_scoring": lambda energy, starts: find(energy, starts, 60),
    "adam": lambda energy, starts: adam(energy, starts, 600, lr=0.05),
    "lbfgs": lambda energy, starts: lbfgs(energy, starts, 150),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("latent_weight", "rank"), [(0.0, 5), (1e-2, 5), (0.3, 5), (0.0, 2)])
def test_linear_decoder_gives_least_squares(draw, solver, latent_weight, rank):
    forward, offset = torch.randn(12, 5, generator=draw), torch.randn(12, generator=draw)
    if rank < 5:
        forward = forward[:, :rank] @ torch.randn(rank, 5, generator=draw)
    y = torch.randn(7, 12, generator=draw)
    energy = range_energy(lambda z: z @ forward.T + offset, y, latent_weight)
    found = best(energy, SOLVERS[solver](energy, torch.randn(3, 7, 5, generator=draw)))
    stacked = np.vstack([forward.numpy(), latent_weight**0.5 * np.eye(5)])
    right = np.hstack([(y - offset).numpy(), np.zeros((7, 5))])
    expected = np.linalg.lstsq(stacked, right.T, rcond=None)[0].T
    least = np.square(right - expected @ stacked.T).sum(1)
    np.testing.assert_allclose(chapter_objective(energy, found.z, torch.arange(7)).numpy(), least, rtol=1e-4)
    if rank == 5:
        np.testing.assert_allclose(found.z.numpy(), expected, atol=5e-3)
        assert found.status == [CONVERGED] * 7 or solver != "fisher_scoring"


@pytest.mark.parametrize("reference", ["adam", "lbfgs"])
def test_curved_decoder_is_solved_at_least_as_well_as_by_the_references(draw, reference):
    decode = curved(draw)
    y = decode(torch.randn(30, 3, generator=draw)) + 0.1 * torch.randn(30, 20, generator=draw)
    starts = torch.randn(6, 30, 3, generator=draw)
    energy = range_energy(decode, y, 0.01)
    ours, theirs = best(energy, find(energy, starts, 60)), best(energy, SOLVERS[reference](energy, starts))
    rows = torch.arange(30)
    assert chapter_objective(energy, ours.z, rows).mean() <= 1.001 * chapter_objective(energy, theirs.z, rows).mean()


def test_energy_never_rises(draw):
    energy = range_energy(curved(draw), torch.randn(30, 20, generator=draw), 0.01)
    starts, rows = torch.randn(30, 3, generator=draw), torch.arange(30)
    values = [fisher_scoring(energy, starts, rows, n)[1] for n in (0, 1, 2, 5, 20)]
    for before, after in pairwise(values):
        assert (after <= before).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_decoder_that_fails_for_some_leaves_the_others_alone(draw, solver):
    smooth = curved(draw)

    def broken_beyond(z):
        return torch.where(z[:, :1] > 1.0, torch.nan, smooth(z))

    starts = 0.1 * torch.randn(1, 10, 3, generator=draw)
    starts[0, 0, 0] = 5.0
    energy = range_energy(broken_beyond, torch.randn(10, 20, generator=draw), 0.01)
    found = best(energy, SOLVERS[solver](energy, starts))
    assert found.status[0] == NOT_FINITE
    assert found.energy[0] == torch.inf
    assert torch.equal(found.z[0], starts[0, 0])
    assert found.energy[1:].isfinite().all()
    assert (found.z[1:, 0] <= 1.0).all()


def test_one_problem_does_not_depend_on_its_neighbours(draw):
    decode = curved(draw)
    y, starts = torch.randn(10, 20, generator=draw), torch.randn(3, 10, 3, generator=draw)
    together, alone = range_energy(decode, y, 0.01), range_energy(decode, y[4:5], 0.01)
    torch.testing.assert_close(
        best(together, find(together, starts, 50)).energy[4:5],
        best(alone, find(alone, starts[:, 4:5], 50)).energy,
        rtol=1e-6,
        atol=0,
    )


def test_secant_learns_the_curvature_of_a_quadratic(draw):
    """k steps along conjugate directions give BFGS the inverse Hessian itself, wherever it starts."""
    root = torch.randn(5, 4, 4, generator=draw)
    hessian = root @ root.mT + 0.1 * torch.eye(4)
    inverse, usable = torch.linalg.inv(3 * hessian), torch.tensor([True] * 4 + [False])  # steep: nothing is damped
    untouched = inverse[4].clone()
    for step in torch.linalg.inv(torch.linalg.cholesky(hessian)).mT.unbind(2):
        curved = torch.linalg.solve(inverse, step)
        _secant(inverse, step, curved, (hessian @ step[..., None])[..., 0], usable)
    torch.testing.assert_close(inverse[:4], torch.linalg.inv(hessian[:4]))
    torch.testing.assert_close(inverse[4], untouched)


def test_dropped_starts_are_gone_and_the_others_as_if_alone(draw):
    """Ten starts, of which the first halving leaves five: the best of those is what the best would reach by itself."""
    energy = range_energy(curved(draw), torch.randn(30, 20, generator=draw), 0.01)
    starts = torch.randn(10, 30, 3, generator=draw)
    modes = find(energy, starts, 24, halve_every=12, widened=True)
    assert len(modes.z) <= 5
    rows = torch.arange(30).repeat(10)
    z, _, _ = fisher_scoring(energy.with_wider_noise(), starts.flatten(0, 1), rows, 8, tolerance=1e-3)
    _, early, _ = fisher_scoring(energy, z, rows, 12)
    at_end = fisher_scoring(energy, z, rows, 24)[1].reshape(10, 30)
    left = early.reshape(10, 30).argsort(dim=0, stable=True)[:5]
    torch.testing.assert_close(modes.energy.min(0).values, at_end.gather(0, left).min(0).values, rtol=1e-6, atol=0)


def test_truth_in_range_is_found(draw):
    decode = curved(draw)
    energy = range_energy(decode, decode(torch.randn(30, 3, generator=draw)), 0.0, sigma=0.01)
    found = best(energy, find(energy, torch.randn(10, 30, 3, generator=draw), 80))
    assert (chapter_objective(energy, found.z, torch.arange(30)) < 1e-6).double().mean() > 0.9


def test_minimum_behind_a_wall_ends_at_the_wall_and_says_so(draw):
    decode = lambda z: torch.where(z > 1.0, torch.nan, z)  # noqa: E731
    energy = range_energy(decode, torch.full((1, 2), 3.0), 0.0)
    found = best(energy, find(energy, torch.zeros(1, 1, 2), 200))
    assert found.status == [NOT_FINITE]
    assert 0.9 < found.z.min() <= 1.0


def test_a_start_without_a_fisher_matrix_stays_where_it_is(draw):
    energy = range_energy(lambda z: z, torch.ones(2, 3), 0.1)
    derivatives = energy.derivatives

    def lacking(z, rows):
        value, gradient, fisher = derivatives(z, rows)
        return value, gradient, torch.where(rows[:, None, None] == 0, torch.nan, fisher)

    energy.derivatives = lacking
    z, value, state = fisher_scoring(energy, torch.zeros(2, 3), torch.arange(2), 10)
    assert [STATUS[i] for i in state] == [NOT_FINITE, CONVERGED]
    assert torch.equal(z[0], torch.zeros(3))
    assert value[1] < value[0] < torch.inf


def test_secant_stays_positive_where_the_energy_is_concave(draw):
    inverse, step = torch.eye(4).repeat(50, 1, 1), torch.randn(50, 4, generator=draw)
    _secant(inverse, step, step, -step, torch.ones(50, dtype=torch.bool))
    assert torch.linalg.eigvalsh(inverse).min() > 0.1


def test_wider_noise_leads_past_shallow_minima(draw):
    """A much bent decoder: with it more problems end in their best minimum than after as many iterations without."""
    bent, sigma = curved(draw, k=8), 0.05
    decode = lambda z: bent(1.5 * z)  # noqa: E731
    y = decode(torch.randn(200, 8, generator=draw)) + sigma * torch.randn(200, 20, generator=draw)
    energy = range_energy(decode, y, None, sigma)
    starts, many = torch.randn(4, 200, 8, generator=draw), torch.randn(30, 200, 8, generator=draw)
    softly = best(energy, find(energy, starts, 60, halve_every=8, widened=True)).energy
    alone = best(energy, find(energy, starts, 80, halve_every=8)).energy
    deepest = best(energy, find(energy, many, 60)).energy + 0.1
    assert (softly < deepest).double().mean() > (alone < deepest).double().mean() + 0.03


def test_gradients_between_fisher_matrices_reach_the_same_minima(draw):
    weight, hidden = torch.randn(12, 8, generator=draw), torch.randn(8, 5, generator=draw)
    energy = range_energy(
        lambda z: (torch.tanh(z @ hidden.T) + z @ hidden.T) @ weight.T, torch.randn(20, 12, generator=draw), 0.1
    )
    start, rows = torch.zeros(20, 5), torch.arange(20)
    plain, corrected = (fisher_scoring(energy, start, rows, 200, refresh=refresh) for refresh in (1, 12))
    torch.testing.assert_close(corrected[1], plain[1], rtol=1e-4, atol=0)
    assert (corrected[2] == 1).all()
