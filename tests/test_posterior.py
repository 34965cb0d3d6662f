"""Posterior and evidence against closed forms (probabilistic PCA), quadrature, and calibration by simulation."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from genprior.images import dct_basis
from genprior.inversion import RangeEnergy, RelaxedEnergy, search
from genprior.operators import GaussianBlur, Identity, gaussian_sensing
from genprior.posterior import IMPORTANCE, TEMPERED, sample_posterior

SHAPE, N, K = (4, 5), 20, 3
BASIS = torch.from_numpy(dct_basis(*SHAPE))


@pytest.fixture
def draw():
    torch.set_default_dtype(torch.float64)
    return torch.Generator().manual_seed(0)


class Linear:
    """G(z) = c + W z in DCT coefficients, constant variances v: probabilistic PCA, where everything has a formula."""

    def __init__(self, draw):
        self.mean, self.weight = torch.randn(N, generator=draw), torch.randn(N, K, generator=draw)
        self.variance = 0.05 + 0.3 * torch.rand(N, generator=draw)

    def moments(self, z):
        return self.mean + z @ self.weight.T, self.variance.expand(len(z), N)

    def decode(self, z):
        return (self.moments(z)[0] @ BASIS.T).reshape(-1, 1, *SHAPE)

    def closed_form(self, matrix, y, sigma):
        """Mean and covariance of z and of x given y, log p(y), by conditioning the joint Gaussian of (z, x, y)."""
        covariance_x = BASIS @ (self.weight @ self.weight.T + self.variance.diag()) @ BASIS.T
        cross_z = (matrix @ BASIS @ self.weight).T
        covariance_y = matrix @ covariance_x @ matrix.T + sigma**2 * torch.eye(len(matrix))
        offset = y - matrix @ (BASIS @ self.mean)
        gain_z, gain_x = (torch.linalg.solve(covariance_y, c.T).T for c in (cross_z, covariance_x @ matrix.T))
        return {
            "z": (gain_z @ offset, torch.eye(K) - gain_z @ cross_z.T),
            "x": (BASIS @ self.mean + gain_x @ offset, covariance_x - gain_x @ matrix @ covariance_x),
            "evidence": multivariate_normal(np.zeros(len(y)), covariance_y.numpy()).logpdf(offset.numpy()),
        }


def operators(draw):
    return {
        "identity": Identity(),
        "blur": GaussianBlur(SHAPE, 0.8),
        "sensing": gaussian_sensing(SHAPE, 7, draw),
        "wide": gaussian_sensing(SHAPE, 30, draw),
    }


class Rotated:
    """An operator without `A_adjoint`, which the engine must take for a non-linear one."""

    def __init__(self, operator):
        self.A = operator.A


@pytest.mark.parametrize("wrap", [lambda operator: operator, Rotated])
@pytest.mark.parametrize("name", ["identity", "blur", "sensing", "wide"])
def test_linear_decoder_against_closed_forms(draw, name, wrap):
    prior, sigma = Linear(draw), 0.2
    operator = operators(draw)[name]
    y = operator.A(torch.randn(4, 1, *SHAPE, generator=draw))
    matrix = operator.A(torch.eye(N).reshape(N, 1, *SHAPE)).flatten(1).T
    energy = RelaxedEnergy(prior.moments, BASIS, SHAPE, wrap(operator), y, sigma)
    modes = search(energy, torch.randn(2, 4, K, generator=draw), 30)
    found = modes.best(energy)
    samples = 20_000
    posterior = sample_posterior(energy, modes, samples, draw)
    x = posterior.images(lambda z, rows: energy.draw(z, rows, draw)).flatten(2)
    for i in range(4):
        exact = prior.closed_form(matrix, y[i].flatten(), sigma)
        torch.testing.assert_close(found.z[i], exact["z"][0], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.x[i].flatten(), exact["x"][0], rtol=0, atol=1e-4)
        assert posterior.log_evidence[i].item() == pytest.approx(
            exact["evidence"], abs=5 * posterior.log_evidence_error[i].item() + 1e-4
        )
        assert posterior.log_evidence_error[i] < 5e-3
        # the curvature at the mode is the posterior's precision
        fisher = energy.model(found.z[i : i + 1], torch.tensor([i]))[1][0]
        torch.testing.assert_close(torch.linalg.inv(fisher), exact["z"][1], rtol=0, atol=1e-4)
        for drawn, (mean, covariance) in ((posterior.z[i], exact["z"]), (x[i], exact["x"])):
            error = (drawn.mean(0) - mean) / (covariance.diagonal() / samples).sqrt()
            assert error.abs().max() < 6
            torch.testing.assert_close(
                torch.cov(drawn.T), covariance, rtol=0, atol=0.05 * covariance.abs().max().item()
            )
    assert posterior.effective.min() > 0.7
    assert posterior.method == [IMPORTANCE] * 4


def test_range_of_a_linear_decoder_against_closed_forms(draw):
    prior, sigma = Linear(draw), 0.3
    prior.variance = torch.zeros(N)
    operator = gaussian_sensing(SHAPE, 7, draw)
    y = torch.randn(4, 7, generator=draw)
    energy = RangeEnergy(prior.decode, operator, y, sigma, None)
    modes = search(energy, torch.zeros(1, 4, K), 30)
    posterior = sample_posterior(energy, modes, 20_000, draw)
    for i in range(4):
        exact = prior.closed_form(operator.matrix, y[i], sigma)
        torch.testing.assert_close(modes.best(energy).z[i], exact["z"][0], rtol=0, atol=1e-4)
        assert posterior.log_evidence[i].item() == pytest.approx(exact["evidence"], abs=0.02)


def two_moons(z):
    """A curved decoder whose posterior has two modes: the sign of z_0 is lost."""
    mean = torch.stack([z[:, 0].square() - 0.5, z[:, 1] + 0.3 * z[:, 0].square(), torch.sin(z[:, 1])], 1)
    variance = 0.02 + 0.05 * torch.stack([torch.sigmoid(z[:, 1]), torch.sigmoid(z[:, 1]), 0 * z[:, 0]], 1)
    return torch.cat([mean, torch.zeros(len(z), N - 3)], 1), torch.cat([variance, torch.full((len(z), N - 3), 0.1)], 1)


@pytest.fixture(scope="module")
def grid():
    side = torch.linspace(-6, 6, 601, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    return z, (side[1] - side[0]) ** 2


@pytest.mark.parametrize("force", [None, TEMPERED])
def test_curved_decoder_with_two_modes_against_quadrature(draw, grid, force):
    operator = gaussian_sensing(SHAPE, 6, draw)
    truth = torch.tensor([[1.2, 0.4], [-0.9, -1.0], [0.2, 0.5]])
    y = operator.A((two_moons(truth)[0] @ BASIS.T).reshape(-1, 1, *SHAPE)) + 0.1 * torch.randn(3, 6, generator=draw)
    energy = RelaxedEnergy(two_moons, BASIS, SHAPE, operator, y, 0.1)
    modes = search(energy, torch.randn(8, 3, 2, generator=draw), 60)
    samples = 8_000
    posterior = sample_posterior(energy, modes, samples, draw, minimum_effective=2.0 if force else 0.1)
    assert set(posterior.method) == {force or IMPORTANCE}
    z, area = grid
    for i in range(3):
        log_joint = -energy.value(z, torch.full((len(z),), i)) - math.log(2 * math.pi)
        evidence = log_joint.logsumexp(0) + area.log()
        density = (log_joint - evidence).exp() * area
        mean, square = density @ z, density @ z.square()
        tolerance = 0.05 if force else 5 * posterior.log_evidence_error[i].item() + 1e-3
        assert posterior.log_evidence[i].item() == pytest.approx(evidence.item(), abs=tolerance)
        torch.testing.assert_close(posterior.z[i].mean(0), mean, rtol=0, atol=0.08)
        torch.testing.assert_close(posterior.z[i].square().mean(0), square, rtol=0, atol=0.08)
        # both modes are there, in their proportions
        assert (posterior.z[i, :, 0] > 0).double().mean().item() == pytest.approx(
            density[z[:, 0] > 0].sum().item(), abs=0.05
        )


def rank_uniformity(draw, problems, samples, dimensions=4):
    """Ranks of true codes, and of the true log likelihood, among posterior samples, truths drawn from the prior."""
    inner, outer = torch.randn(16, dimensions, generator=draw), torch.randn(N, 16, generator=draw) / 3
    spread = torch.randn(N, dimensions, generator=draw)

    def moments(z):
        return torch.tanh(z @ inner.T) @ outer.T, 0.05 * torch.exp(torch.tanh(z @ spread.T))

    operator = gaussian_sensing(SHAPE, 8, draw)
    truth = torch.randn(problems, dimensions, generator=draw)
    mean, variance = moments(truth)
    x = ((mean + variance.sqrt() * torch.randn(mean.shape, generator=draw)) @ BASIS.T).reshape(-1, 1, *SHAPE)
    y = operator.A(x) + 0.1 * torch.randn(problems, 8, generator=draw)
    energy = RelaxedEnergy(moments, BASIS, SHAPE, operator, y, 0.1)
    modes = search(energy, torch.randn(6, problems, dimensions, generator=draw), 40)
    posterior = sample_posterior(energy, modes, 1000, draw)
    thinned = posterior.z[:, torch.randperm(1000, generator=draw)[:samples]]
    rows = torch.arange(problems)
    likelihood = torch.stack(
        [-energy.value(thinned[:, j], rows) + 0.5 * thinned[:, j].square().sum(1) for j in range(samples)], 1
    )
    true_likelihood = -energy.value(truth, rows) + 0.5 * truth.square().sum(1)
    drawn = energy.draw(posterior.z[:, 0], rows, draw).flatten(1)
    below = [(thinned[..., d] < truth[:, d, None]).sum(1) for d in range(dimensions)]
    below.append((likelihood < true_likelihood[:, None]).sum(1))
    return torch.stack(below), drawn, x.flatten(1)


def assert_uniform(ranks, samples):
    """Within the band that the empirical distribution of uniform ranks leaves once in a thousand (DKW, all of them)."""
    for rank in ranks:
        empirical = (rank[None, :] <= torch.arange(samples + 1)[:, None]).double().mean(1)
        uniform = torch.arange(1, samples + 2) / (samples + 1)
        band = math.sqrt(math.log(2 * len(ranks) / 1e-3) / (2 * len(rank)))
        assert (empirical - uniform).abs().max() < band


def test_calibration_by_simulation(draw):
    ranks, drawn, x = rank_uniformity(draw, 400, 99)
    assert_uniform(ranks, 99)
    # a posterior draw of x is distributed as the truth is, over problems drawn from the prior
    torch.testing.assert_close(drawn.var(0), x.var(0), rtol=0.35, atol=0)


def test_calibration_test_can_fail(draw):
    ranks, _, _ = rank_uniformity(draw, 400, 99)
    squeezed = (50 + 0.7 * (ranks - 50)).round()  # ranks of a posterior that is too wide
    with pytest.raises(AssertionError):
        assert_uniform(squeezed, 99)


@pytest.mark.slow
def test_calibration_by_simulation_at_length(draw):
    ranks, _, _ = rank_uniformity(draw, 6000, 99)
    assert_uniform(ranks, 99)
