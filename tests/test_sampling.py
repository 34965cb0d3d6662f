"""Posterior and evidence against closed forms (probabilistic PCA), quadrature, and calibration by simulation."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from doubles import BASIS, SHAPE, Analytic, N, best, curved_moments, find, plain_energy, scaled_energy
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t

from genprior.batches import by_parts
from genprior.covariances import White
from genprior.energies import energy_of
from genprior.inversion import Modes, lowest_draws
from genprior.layers import scale_fields
from genprior.operators import GaussianBlur, Identity, gaussian_sensing
from genprior.sampling import (
    ANNEALED,
    CONSTANTS,
    IMPORTANCE,
    Mixture,
    _first_step,
    _weigh,
    annealed_smc,
    credible_interval,
    dominant,
    importance_samples,
    laplace_mixture,
    posterior_mean,
    sample_posterior,
    smc,
)
from genprior.views import Prior, load
from pipeline.params import PRIORS, Network, TrainSVAE
from pipeline.problems import build_operator
from stages import train_svae

K = 3


class Linear:
    """G(z) = c + W z in DCT coefficients, constant variances v: probabilistic PCA, where everything has a formula."""

    def __init__(self, draw):
        self.mean, self.weight = torch.randn(N, generator=draw), torch.randn(N, K, generator=draw)
        self.variance = 0.05 + 0.3 * torch.rand(N, generator=draw)

    def moments(self, z):
        return self.mean + z @ self.weight.T, self.variance.expand(len(z), N)

    def closed_form(self, matrix, y, sigma):
        """Mean and covariance of z and of x given y, log p(y), by conditioning the joint Gaussian of (z, x, y)."""
        covariance_x = BASIS @ (self.weight @ self.weight.T + self.variance.diag()) @ BASIS.T
        cross_z = (matrix @ BASIS @ self.weight).T
        covariance_y = matrix @ covariance_x @ matrix.T + sigma**2 * torch.eye(len(matrix))
        offset = y - matrix @ (BASIS @ self.mean)
        gain_z, gain_x = (torch.linalg.solve(covariance_y, c.T).T for c in (cross_z, covariance_x @ matrix.T))
        return {
            "z": (gain_z @ offset, torch.eye(len(cross_z)) - gain_z @ cross_z.T),
            "x": (BASIS @ self.mean + gain_x @ offset, covariance_x - gain_x @ matrix @ covariance_x),
            "evidence": multivariate_normal(np.zeros(len(y)), covariance_y.numpy()).logpdf(offset.numpy()),
        }


def operators(draw):
    return {
        "identity": Identity(),
        "blur": GaussianBlur(SHAPE, 0.8),
        "sensing": gaussian_sensing(SHAPE, 7, draw),
        "wide": gaussian_sensing(SHAPE, 30, draw),
        "range": gaussian_sensing(SHAPE, 7, draw),
    }


@pytest.mark.parametrize("name", ["identity", "blur", "sensing", "wide", "blur by its A alone", "range"])
def test_linear_decoder_against_closed_forms(draw, name):
    prior, sigma, operator = Linear(draw), 0.2, operators(draw)[name.split()[0]]
    y = operator.A(torch.randn(4, 1, *SHAPE, generator=draw))
    matrix = operator.A(torch.eye(N).reshape(N, 1, *SHAPE)).flatten(1).T
    known = SimpleNamespace(A=operator.A) if "alone" in name else operator  # without A_adjoint: not known as linear
    energy = plain_energy(prior.moments, known, y, sigma)
    if name == "range":
        prior.variance = torch.zeros(N)
        energy = energy_of(Analytic(prior.moments, "none"), operator, y, sigma)
    modes = find(energy, torch.randn(2, 4, K, generator=draw), 30)
    found = best(energy, modes)
    samples = 10_000
    posterior = sample_posterior(energy, modes, samples, draw)
    rows = torch.arange(4).repeat_interleave(samples)
    x = energy.draw(posterior.z.flatten(0, 1), rows, draw).reshape(4, samples, N)
    for i in range(4):
        exact = prior.closed_form(matrix, y[i].flatten(), sigma)
        torch.testing.assert_close(found.z[i], exact["z"][0], rtol=0, atol=1e-4)
        torch.testing.assert_close(found.x[i].flatten(), exact["x"][0], rtol=0, atol=1e-4)
        assert posterior.log_evidence[i].item() == pytest.approx(
            exact["evidence"], abs=5 * posterior.log_evidence_error[i].item() + 1e-4
        )
        assert posterior.log_evidence_error[i] < 5e-3
        # the curvature at the mode is the posterior's precision
        fisher = energy.derivatives(found.z[i : i + 1], torch.tensor([i]))[2][0]
        torch.testing.assert_close(torch.linalg.inv(fisher), exact["z"][1], rtol=0, atol=1e-4)
        for drawn, (mean, covariance) in ((posterior.z[i], exact["z"]), (x[i], exact["x"])):
            error = (drawn.mean(0) - mean) / (covariance.diagonal() / samples).sqrt()
            assert error.abs().max() < 6
            torch.testing.assert_close(
                torch.cov(drawn.T), covariance, rtol=0, atol=0.05 * covariance.abs().max().item()
            )
    assert posterior.effective.min() > 0.7
    assert posterior.status == [IMPORTANCE] * 4


def two_moons(z):
    """A curved decoder whose posterior has two modes: the sign of z_0 is lost."""
    mean = torch.stack([z[:, 0].square() - 0.5, z[:, 1] + 0.3 * z[:, 0].square(), torch.sin(z[:, 1])], 1)
    variance = 0.02 + 0.05 * torch.stack([torch.sigmoid(z[:, 1]), torch.sigmoid(z[:, 1]), 0 * z[:, 0]], 1)
    return torch.cat([mean, torch.zeros(len(z), N - 3)], 1), torch.cat([variance, torch.full((len(z), N - 3), 0.1)], 1)


@pytest.fixture(scope="module")
def grid():
    side = torch.linspace(-6, 6, 301, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    return z, (side[1] - side[0]) ** 2


FIELDS = scale_fields(SHAPE, 2)


def modulated_moons(z):
    """`two_moons` with scales."""
    return *two_moons(z), torch.exp(0.4 * torch.tanh(z[:, 1:] * torch.linspace(-1, 1, len(FIELDS))))


@pytest.mark.parametrize(
    ("kind", "force"),
    [
        ("relaxed", None),
        ("relaxed", ANNEALED),
        ("modulated", None),
        ("modulated", ANNEALED),
        ("all pixels, modulated", None),
    ],
)
def test_curved_decoder_with_two_modes_against_quadrature(draw, grid, kind, force):
    truth = torch.tensor([[1.2, 0.4], [-0.9, -1.0], [0.2, 0.5]])
    x = (two_moons(truth)[0] @ BASIS.T).reshape(-1, 1, *SHAPE) + 0.2 * torch.randn(3, 1, *SHAPE, generator=draw)
    if kind == "all pixels, modulated":  # as log p(x) is found
        energy = scaled_energy(modulated_moons, Identity(), x, 0.0, FIELDS)
        assert isinstance(energy.covariance, White)
    else:
        operator = gaussian_sensing(SHAPE, 6, draw)
        y = operator.A(x) + 0.1 * torch.randn(3, 6, generator=draw)
        energy = plain_energy(two_moons, operator, y, 0.1)
        if kind == "modulated":
            energy = scaled_energy(modulated_moons, operator, y, 0.1, FIELDS)
    modes = find(energy, torch.randn(8, 3, 2, generator=draw), 60)
    samples = 4_000 if force else 8_000
    posterior = sample_posterior(energy, modes, samples, draw, minimum_effective=2.0 if force else 0.0)
    assert set(posterior.status) == {force or IMPORTANCE}
    z, area = grid
    for i in range(3):
        log_joint = -energy.value(z, torch.full((len(z),), i)) - math.log(2 * math.pi)
        evidence = log_joint.logsumexp(0) + area.log()
        density = (log_joint - evidence).exp() * area
        tolerance = 0.05 if force else 5 * posterior.log_evidence_error[i].item() + 1e-3
        assert posterior.log_evidence[i].item() == pytest.approx(evidence.item(), abs=tolerance)
        # five standard errors over the samples that count, which importance sampling says and SMC is granted half of
        counting = samples * (0.5 if force else posterior.effective[i].item())
        upper = (z[:, 0] > 0).to(z.dtype)  # both modes are there, in their proportions
        drawn, right = posterior.z[i], (posterior.z[i, :, 0] > 0).to(z.dtype)
        for found, values in ((drawn, z), (drawn.square(), z.square()), (right[:, None], upper[:, None])):
            expected = density @ values
            error = (density @ (values - expected).square() / counting).sqrt()
            assert ((found.mean(0) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("minimum_effective", [0.0, math.inf])  # of weighed draws alone, and of annealed ones too
def test_posterior_mean_against_quadrature(draw, grid, minimum_effective):
    operator, truth = gaussian_sensing(SHAPE, 6, draw), torch.tensor([[1.2, 0.4], [-0.9, -1.0], [0.2, 0.5]])
    y = operator.A((two_moons(truth)[0] @ BASIS.T).reshape(-1, 1, *SHAPE)) + 0.1 * torch.randn(3, 6, generator=draw)
    energy = plain_energy(two_moons, operator, y, 0.1)
    modes = find(energy, torch.randn(8, 3, 2, generator=draw), 60)
    found = posterior_mean(energy, laplace_mixture(energy, modes), 2000, draw, minimum_effective)
    for i in range(3):
        rows = torch.full((len(grid[0]),), i)
        density = (-energy.value(grid[0], rows)).softmax(0)
        some = density > 1e-9
        x = energy.estimate(grid[0][some], rows[some]).flatten(1)
        expected = density[some] @ x
        spread = (density[some] @ (x - expected).square()).sqrt()
        assert ((found[i].flatten() - expected).abs() < 5 * spread / 500**0.5 + 1e-6).all()


def test_mixture_is_scipys_and_refitting_finds_what_drew_the_samples(draw):
    """Expectation maximisation from afar, towards Student's t that scipy drew from."""
    scale = np.array([[2.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 0.5]])
    target = multivariate_t([1.0, -2.0, 0.5], scale, CONSTANTS.degrees, seed=0)
    z = torch.from_numpy(target.rvs(40_000))[None]
    component = math.log(1 - CONSTANTS.prior_share)
    mixture = Mixture(torch.full((1, 1), component), torch.zeros(1, 1, K), torch.eye(K)[None, None])
    for _ in range(30):
        mixture = mixture.refitted(z, torch.zeros(1, z.shape[1]))
    np.testing.assert_allclose(mixture.centre[0, 0], [1.0, -2.0, 0.5], atol=0.03)
    found = torch.cholesky_inverse(mixture.factor[0, 0])
    np.testing.assert_allclose(found, scale, atol=0.05)
    few = z[:, :50]
    fitted = multivariate_t(mixture.centre[0, 0].numpy(), found.numpy(), CONSTANTS.degrees).logpdf(few[0].numpy())
    prior = multivariate_normal(np.zeros(K), np.eye(K)).logpdf(few[0].numpy())
    expected = logsumexp([fitted + component, prior + math.log(CONSTANTS.prior_share)], axis=0)
    np.testing.assert_allclose(mixture.log_density(few)[0], expected, rtol=1e-10)


class TwoWells:
    """The posterior 0.9 N(-2, 1) + 0.1 N(2, 0.01²): the narrow well is eleven times as deep, and holds a tenth."""

    y, chunk, fisher_chunk, precision = torch.zeros(1, 1), 8, 8, torch.tensor([1.0, 1e4])

    def derivatives(self, z, rows):
        return torch.zeros_like(z[:, 0]), torch.zeros_like(z), torch.where(z < 0, *self.precision)[..., None]

    def estimate(self, z, rows):
        return z


def test_dominant_mode_is_the_one_that_holds_most_not_the_deepest(draw):
    energy, shares = TwoWells(), torch.tensor([0.9, 0.1])
    depth = -(shares * (energy.precision / (2 * math.pi)).sqrt()).log()
    modes = Modes(torch.tensor([[[-2.0]], [[2.0]]]), depth[:, None], torch.ones(2, 1, dtype=torch.long))
    mixture = laplace_mixture(energy, modes)
    assert modes.at(modes.deepest())[0].item() == 2
    z, value, _ = modes.at(dominant(mixture))
    assert (z.item(), value.item()) == (-2, depth[0].item())
    torch.testing.assert_close(mixture.log_weight.softmax(1)[0], shares)


def poor_proposal(draw, off, repeats=600):
    """So many times one problem of a linear decoder: its energy, a proposal that is off and narrow, its log p(y)."""
    prior, sigma = Linear(draw), 0.5
    prior.weight = torch.randn(N, 8, generator=draw)
    operator = gaussian_sensing(SHAPE, 7, draw)
    y = operator.A(torch.randn(1, 1, *SHAPE, generator=draw))
    energy = plain_energy(prior.moments, operator, y.expand(repeats, -1), sigma)
    found = laplace_mixture(energy, find(energy, torch.zeros(1, repeats, 8), 30))
    poor = Mixture(found.log_weight, found.centre + off, (1 + 3 * off) * found.factor)
    return energy, poor, prior.closed_form(operator.matrix, y.flatten(), sigma)["evidence"]


@pytest.mark.parametrize(
    ("samples", "enough", "off"), [(20, 0.0, 0.0), (20, 0.5, 0.1), (20, 0.5, 0.2), (20, 2.0, 0.2), (100, 0.5, 0.2)]
)
def test_evidence_of_importance_sampling_has_no_bias(draw, samples, enough, off):
    """From a poor proposal, however few the samples: mean and spread over repetitions, against the closed form."""
    energy, poor, exact = poor_proposal(draw, off)
    _, evidence, error, _ = importance_samples(energy, poor, samples, draw, enough)
    ratio = (evidence - exact).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=4 * ratio.std().item() / len(ratio) ** 0.5)
    if (samples, off) != (20, 0.2):  # where few draws do not know how large a weight they have missed
        assert ratio.std().item() == pytest.approx(error.square().mean().sqrt().item(), rel=0.2)


class Bumps:
    """log p(y | z) of two Gaussian bumps, a wide one where the prior is and a narrow one five of its widths away.

    The narrow one holds ten times the evidence, and a millionth of the prior's draws.
    """

    size, chunk, fisher_chunk, latent_precision, CENTRE, WIDTH = 4096, 1024, 8, 1.0, 5.0, 0.05

    def __init__(self, problems):
        self.y = torch.zeros(problems, 1)
        self.wide = 0.5  # its evidence, E[exp(-‖z‖² / 2)] for z ~ N(0, I) of two numbers
        spread = 1 + self.WIDTH**2
        narrow = self.WIDTH**2 / spread * math.exp(-(self.CENTRE**2) / (2 * spread))
        self.log_height = math.log(10 * self.wide / narrow)

    def value(self, z, rows):
        offset = z - torch.tensor([self.CENTRE, 0.0])
        narrow = self.log_height - offset.square().sum(1) / (2 * self.WIDTH**2)
        return 0.5 * z.square().sum(1) - torch.logaddexp(-0.5 * z.square().sum(1), narrow)

    def of_all(self, z, rows):
        return self.value(z, None)[:, None].expand(-1, len(rows))

    def posterior(self, problems, samples, draw):
        """Exact draws, (problems, samples, 2)."""
        spread = 1 / (1 + 1 / self.WIDTH**2)
        z = torch.randn(problems, samples, 2, generator=draw)
        near = z * 0.5**0.5
        far = z * spread**0.5 + torch.tensor([self.CENTRE * spread / self.WIDTH**2, 0.0])
        return torch.where(torch.rand(problems, samples, 1, generator=draw) < 10 / 11, far, near)


def test_annealing_keeps_what_only_the_search_has_found(draw):
    """Annealing misses the narrow bump; the evidence is the mean of both, and each has its share of samples."""
    energy, problems, samples = Bumps(20), 20, 300
    everything = 11 * energy.wide
    _, evidence, _ = annealed_smc(energy, samples, 2, draw, 1.0)
    np.testing.assert_allclose(evidence.exp(), energy.wide, rtol=0.3)
    found = (
        energy.posterior(problems, samples, draw),
        torch.full((problems,), math.log(everything)),
        torch.zeros(problems),
    )
    z, evidence, error = smc(energy, found, draw)
    np.testing.assert_allclose(evidence.exp(), (energy.wide + everything) / 2, rtol=0.05)
    far = (z[..., 0] > energy.CENTRE / 2).double().mean(1)
    expected = everything / (energy.wide + everything) * 10 / 11
    assert far.mean().item() == pytest.approx(expected, abs=0.02)
    assert (error > 0.3).all()  # that they differ shows


def simulate(draw, view, operator, sigma, problems):
    """Truths from the prior, measured: codes (N, k), images (N, n), the energy of each."""
    truth = torch.randn(problems, view.latent_size, generator=draw).to(view.basis.device)
    mean, variance, *scales = view.moments(truth)
    residual = (variance.sqrt() * torch.randn(mean.shape, generator=draw).to(truth)) @ view.basis.T
    x = mean @ view.basis.T + (scales[0] @ view.scale_fields * residual if scales else residual)
    y = operator.A(x.reshape(-1, 1, *view.shape))
    y = y + sigma * torch.randn(y.shape, generator=draw).to(y)
    return truth, x, energy_of(view, operator, y, sigma)


def ranks_of(truth, energy, z):
    """How many of the posterior's samples z (N, S, k) lie below the truth: in every code, and in log likelihood."""
    problems, samples, k = z.shape

    def likelihood(z):
        rows = torch.arange(problems, device=z.device).repeat_interleave(len(z) // problems)
        return by_parts(lambda z, rows: 0.5 * z.square().sum(1) - energy.value(z, rows), 1000, z, rows)

    below = [(z[..., d] < truth[:, d, None]).sum(1) for d in range(k)]
    below.append((likelihood(z.flatten(0, 1)).reshape(problems, samples) < likelihood(truth)[:, None]).sum(1))
    return torch.stack(below).cpu()


def assert_uniform(ranks, samples=99):
    """Within the band that the empirical distribution of uniform ranks leaves once in a thousand (DKW, all of them)."""
    for rank in ranks:
        empirical = (rank[None, :] <= torch.arange(samples + 1)[:, None]).double().mean(1)
        uniform = torch.arange(1, samples + 2) / (samples + 1)
        band = math.sqrt(math.log(2 * len(ranks) / 1e-3) / (2 * len(rank)))
        assert (empirical - uniform).abs().max() < band


def calibrate(draw, view, operator, sigma, problems, minimum_effective=0.5, samples=99, thin=3):
    """Simulation-based calibration (Talts et al. 2018): ranks of truths among posterior samples; x drawn, x true."""
    truth, x, energy = simulate(draw, view, operator, sigma, problems)
    starts = lowest_draws(energy, torch.randn(2048, view.latent_size, generator=draw).to(energy.y), 4)
    posterior = sample_posterior(energy, find(energy, starts, 40), samples * thin, draw, minimum_effective)
    drawn = energy.draw(posterior.z[:, 0], torch.arange(problems, device=truth.device), draw).flatten(1)
    thinned = posterior.z[:, torch.randperm(samples * thin, generator=draw)[:samples]]
    return ranks_of(truth, energy, thinned), drawn, x


@pytest.mark.parametrize(
    ("forced", "problems", "samples", "thin"),
    [(IMPORTANCE, 400, 99, 6), (ANNEALED, 200, 49, 3)],  # of importance sampling, a part of their number's worth
)
def test_calibration_by_simulation(draw, forced, problems, samples, thin):
    operator, minimum_effective = gaussian_sensing(SHAPE, 8, draw), 2.0 if forced == ANNEALED else 0.0
    view = Analytic(curved_moments(draw, 4, 0.05))
    view.latent_size = 4
    ranks, drawn, x = calibrate(draw, view, operator, 0.1, problems, minimum_effective, samples, thin)
    assert_uniform(ranks, samples)
    # a posterior draw of x is distributed as the truth is, over problems drawn from the prior
    torch.testing.assert_close(drawn.var(0), x.var(0), rtol=0.35, atol=0)
    middle = (samples + 1) / 2
    squeezed = (middle + 0.7 * (ranks - middle)).round()  # ranks of a posterior that is too wide: the test can fail
    with pytest.raises(AssertionError):
        assert_uniform(squeezed, samples)


def test_calibration_of_a_trained_decoder(patches):
    torch.manual_seed(0)
    settings = TrainSVAE(steps=400, batch_size=128, lr=0.005, noise="modulated")
    prior, _ = train_svae.train(patches, patches, Network(latent_size=4, hidden=[32], activation="silu"), settings, 0)
    prior.requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    operator = gaussian_sensing((8, 8), 12, draw)
    ranks, _, _ = calibrate(draw, Prior(prior), operator, 0.01, 300)
    assert_uniform(ranks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "problem"),
    [(name, problem) for name in PRIORS for problem in ("denoise", "cs_10", "cs_50")],
)
def test_calibration_of_the_pipelines_priors(params, name, problem):
    """At length, on what `make repro` trained; on a GPU where there is one."""
    path = ROOT / "data" / "models" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip("needs `make repro`")
    torch.set_default_dtype(torch.float32)  # as the pipeline has it, and in half the time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    prior, draw = load(path, device), torch.Generator().manual_seed(0)
    settings = params.problems[problem]
    operator = build_operator(settings, prior.shape, draw).to(device)
    ranks, _, _ = calibrate(draw, prior, operator, settings.sigma, 400)
    assert_uniform(ranks)


def test_intervals_are_order_statistics():
    """With 19 samples the 90 % interval reaches from the least to the greatest, the other from the 5th to the 15th."""
    samples = torch.arange(19.0)[torch.randperm(19, generator=torch.Generator().manual_seed(0))][None, :, None]
    for level, bounds in ((0.9, (0.0, 18.0)), (0.5, (4.0, 14.0))):
        torch.testing.assert_close([bound.item() for bound in credible_interval(samples, level)], list(bounds))


def test_draws_that_fall_short_are_doubled(draw):
    """As samples of the posterior, and with next to no bias: those that look even are left, and say 0.01 too little."""
    energy, poor, exact = poor_proposal(draw, 0.1, repeats=6000)
    state = draw.get_state()
    once = _weigh(energy, poor, 200, 100, draw)[3]
    enough = once.median().item()  # half fall short, of which hardly any by half
    draw.set_state(state)
    z, evidence, _, effective = _weigh(energy, poor, 200, 100, draw, enough)
    short = (once < enough) & (once >= enough / 2)
    assert 0.3 * len(once) < short.sum() <= 0.5 * len(once)
    assert torch.equal(effective[~short], once[~short])
    assert (effective / once)[short].median() > 1.5
    ratio = (evidence - exact).exp()
    assert ratio.mean().item() == pytest.approx(1, abs=0.01 + 4 * ratio.std().item() / len(ratio) ** 0.5)
    spread = z.var(1)  # samples of twice as many draws are of the same posterior
    torch.testing.assert_close(spread[short].mean(0), spread[~short].mean(0), rtol=0.1, atol=0)


def test_first_step_goes_as_far_as_the_pool_bears(draw):
    """Power and evidence against scipy's Gaussian densities of a linear decoder."""
    prior, sigma, samples = Linear(draw), 0.2, 100
    operator = gaussian_sensing(SHAPE, 7, draw)
    y = operator.A(torch.randn(4, 1, *SHAPE, generator=draw))
    energy = plain_energy(prior.moments, operator, y, sigma)
    pool = torch.randn(2000, K, generator=draw)
    index, likelihood, evidence, power = _first_step(energy, pool, torch.arange(4), samples, draw)
    matrix = (operator.matrix @ BASIS).numpy()
    predicted = prior.moments(pool)[0].numpy() @ matrix.T

    def log_weight(i, power):
        covariance = matrix @ prior.variance.diag().numpy() @ matrix.T + sigma**2 * np.eye(7)
        return power * multivariate_normal(np.zeros(7), covariance).logpdf(y[i].flatten().numpy() - predicted)

    def share(w):
        return np.exp(2 * logsumexp(w) - logsumexp(2 * w)) / len(w)

    for i in range(4):
        taken = log_weight(i, power[i].item())
        assert share(taken) >= samples / len(pool) * 0.999
        assert share(log_weight(i, power[i].item() * 1.01)) < samples / len(pool)
        change = evidence[i].item() - logsumexp(taken) + math.log(len(pool))
        assert change == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose(likelihood[i], (taken / power[i].item())[index[i]], rtol=1e-6)


class Impossible(Bumps):
    """Bumps whose first problem no code explains."""

    def value(self, z, rows):
        return torch.where(rows == 0, torch.nan, super().value(z, rows))

    def of_all(self, z, rows):
        return torch.where(rows == 0, torch.nan, super().value(z, rows)[:, None])

    def derivatives(self, z, rows):
        return torch.zeros_like(z[:, 0]), torch.zeros_like(z), torch.eye(2).expand(len(z), 2, 2)


def test_a_problem_that_no_code_explains_leaves_the_others_alone(draw):
    energy = Impossible(3)
    modes = Modes(torch.zeros(2, 3, 2), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.long))
    modes.z[:, 0], modes.energy[:, 0] = torch.nan, torch.inf
    posterior = sample_posterior(energy, modes, 200, draw)
    assert posterior.log_evidence[0] == -torch.inf
    assert posterior.effective[0].isnan()
    assert posterior.status == [ANNEALED, IMPORTANCE, IMPORTANCE]
    assert posterior.z.isfinite().all()
    np.testing.assert_allclose(posterior.log_evidence[1:].exp(), energy.wide, rtol=0.2)  # no start was near the other


class Far(Bumps):
    """An energy that is a number, and has an image, nowhere but within 1 of a code that the prior never draws."""

    def value(self, z, rows):
        distance = (z - torch.tensor([9.0, 0.0])).square().sum(1)
        return torch.where(distance < 1, 50 * distance, torch.nan)

    def derivatives(self, z, rows):
        return torch.zeros_like(z[:, 0]), torch.zeros_like(z), 100 * torch.eye(2).expand(len(z), 2, 2)

    def estimate(self, z, rows):
        return torch.where(self.value(z, rows).isfinite(), z[:, 0], torch.nan).reshape(-1, 1, 1, 1)


def test_posterior_mean_is_of_what_found_any(draw):
    modes = Modes(torch.tensor([9.0, 0.0]).expand(1, 3, 2), torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.long))
    mean = posterior_mean(Far(3), laplace_mixture(Far(3), modes), 200, draw, math.inf)
    torch.testing.assert_close(mean, torch.full((3, 1, 1, 1), 9.0), rtol=0, atol=0.05)


def test_annealing_survives_fewer_samples_than_codes(draw):
    """In float32, where their covariance has no full rank; what is left of them is a poor posterior, not a crash."""
    torch.set_default_dtype(torch.float32)
    k = 24
    weight = torch.randn(N, k, generator=draw)
    energy = plain_energy(
        lambda z: (50 * torch.tanh(z @ weight.T), torch.full((len(z), N), 1e-4)),
        Identity(),
        torch.randn(3, 1, *SHAPE, generator=draw),
        1e-3,
        BASIS.float(),
    )
    z, evidence, error = annealed_smc(energy, 20, k, draw, 1.0, most=15)
    assert z.isfinite().all()
    assert evidence.isfinite().all()
    assert (error > 0).all()
