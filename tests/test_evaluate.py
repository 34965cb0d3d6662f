"""The stage's pieces on a prior that was trained for seconds."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import MultivariateNormal

from genprior.energies import RangeEnergy
from genprior.inversion import CONVERGED
from genprior.operators import Identity
from genprior.posterior import dominant
from genprior.streams import stream
from pipeline.params import Evaluate, Network, Search, TrainVAE
from pipeline.patches import to_unit
from pipeline.problems import pose, reconstruction_measures
from stages import evaluate, train_vae

SETTINGS = Evaluate(
    patches=32,
    latent_weight=None,
    range={"starts": 3, "iterations": 30},
    relaxed={"starts": 2, "iterations": 25},
    mean_samples=32,
    solver_patches=4,
    posterior_patches=8,
    posterior_samples=200,
    likelihood_patches=8,
)


@pytest.fixture(scope="module")
def prior(patches):
    torch.manual_seed(0)
    network = Network(latent_size=4, hidden=[32], activation="silu")
    settings = TrainVAE(
        steps=300, batch_size=128, lr=0.005, noise="dct", sigma=0.1, objective="elbo", beta=1.0, chapter_steps=1
    )
    return train_vae.train(patches, patches, network, settings, 0)[0]


@pytest.fixture(scope="module")
def x(patches):
    return to_unit(patches[:32])


@pytest.fixture
def problems(params):
    small = {name: params.problems[name] for name in ("denoise", "inpaint", "blur", "cs_25")}
    return small


def test_relaxed_restores_better_than_its_range_does(prior, x, problems):
    for problem in pose(problems, x, 0):
        error = {}
        for constraint in ("range", "relaxed"):
            energy = evaluate.energy_of(prior, problem, constraint, SETTINGS)
            found = evaluate.restore(prior, energy, getattr(SETTINGS, constraint), 0).chosen
            error[constraint] = problem.measures(x, found.x)["mse"]
        assert error["relaxed"] < error["range"]


def test_solver_gap_falls_with_iterations_and_starts(prior, x, problems):
    for constraint in ("range", "relaxed"):
        energy = evaluate.energy_of(prior, pose(problems, x[:16], 0)[3], constraint, SETTINGS)
        gaps = []
        for starts, iterations in ((1, 1), (8, 60)):
            modes = evaluate.restore(prior, energy, Search(starts=starts, iterations=iterations), 0).modes
            gaps.append(evaluate.solver_gap(prior, energy, modes.energy.min(0).values, 0))
        assert gaps[0] > 0.1
        assert 0 <= gaps[1] < gaps[0] / 2


def test_range_takes_the_deepest_mode_and_relaxed_the_dominant(prior, x, problems):
    problem, found = pose(problems, x, 0)[3], {}
    for constraint in ("range", "relaxed"):
        energy = evaluate.energy_of(prior, problem, constraint, SETTINGS)
        found[constraint] = evaluate.restore(prior, energy, Search(starts=4, iterations=20), 0)
    confined, relaxed = found["range"], found["relaxed"]
    assert torch.equal(confined.chosen.energy, confined.modes.energy.min(0).values)
    assert relaxed.modes.z.shape == (4, len(x), 4)  # all four starts to the end, for `dominant` to choose from
    of_dominant = dominant(energy, relaxed.modes)  # which makes its own mixture
    torch.testing.assert_close(relaxed.chosen.x, of_dominant.x, rtol=0, atol=0)
    assert (relaxed.chosen.energy > relaxed.modes.energy.min(0).values).any()


def test_nothing_in_the_range_is_nearer_than_the_representation(prior, x, problems):
    best = reconstruction_measures(x, evaluate.represent(prior, x, SETTINGS, 0).x)["mse"]
    for problem in pose(problems, x, 0):
        energy = evaluate.energy_of(prior, problem, "range", SETTINGS)
        found = evaluate.restore(prior, energy, SETTINGS.range, 0).chosen
        assert reconstruction_measures(x, found.x)["mse"] >= best


def test_truths_of_the_control_are_no_draws_of_a_search(prior, x, params, monkeypatch):
    """A search that is handed a truth's code as a start finds it, and the control shows nothing."""
    seeds = {"starts": set(), "truths": set()}

    def starting_codes(prior, count, patches, draw):
        seeds["starts"].add(draw.initial_seed())
        return codes(prior, count, patches, draw)

    def sample(count, draw, residual):
        seeds["truths"].add(draw.initial_seed())
        return samples(count, draw, residual)

    codes, samples = evaluate.starting_codes, prior.sample
    monkeypatch.setattr(evaluate, "starting_codes", starting_codes)
    monkeypatch.setattr(prior, "sample", sample)
    evaluate.solve(prior, x, "cs_25", params.model_copy(update={"evaluate": SETTINGS}))
    assert seeds["starts"]
    assert seeds["truths"]
    assert not seeds["starts"] & seeds["truths"]


def test_truths_in_the_range_are_found_to_the_noise(prior, problems):
    own = prior.sample(16, stream(0, "control"), residual=False)
    for problem in pose({"cs_25": problems["cs_25"], "blur": problems["blur"]}, own, 0):
        energy = evaluate.energy_of(prior, problem, "range", SETTINGS)
        found = evaluate.restore(prior, energy, SETTINGS.range, 0).chosen
        assert problem.measures(own, found.x)["residual_over_sigma"] == pytest.approx(1, abs=0.15)
        assert reconstruction_measures(own, found.x)["psnr_db"] > 38


def test_weight_of_the_latent_prior_pulls_codes_to_the_centre(prior, x, problems):
    problem = pose({"cs_25": problems["cs_25"]}, x, 0)[0]
    norms = []
    for weight in (1e-6, 1e-3, 1.0):
        settings = SETTINGS.model_copy(update={"latent_weight": weight})
        energy = evaluate.energy_of(prior, problem, "range", settings)
        norms.append(evaluate.restore(prior, energy, settings.range, 0).chosen.z.norm().item())
    assert norms[0] > norms[1] > norms[2]


def test_credible_intervals_on_truths_from_the_prior(prior, params):
    own = prior.sample(48, torch.Generator().manual_seed(3), residual=True)
    problem = pose({"cs_25": params.problems["cs_25"]}, own, 0)[0]
    energy = evaluate.energy_of(prior, problem, "relaxed", SETTINGS)
    starts = evaluate.starts_of(prior, energy, 4, stream(0, "starts"))
    found, samples = evaluate.uncertainty(energy, starts, own, SETTINGS, 0)
    assert samples.shape == (48, 200, 8, 8)
    assert found["coverage_90"] == pytest.approx(0.9, abs=0.05)
    assert found["coverage_50"] == pytest.approx(0.5, abs=0.08)


def test_posterior_mean_beats_the_mode_on_truths_from_the_prior(prior, params):
    """No estimate has a smaller mean squared error, and the dominant mode's has a larger one."""
    own = prior.sample(1000, torch.Generator().manual_seed(4), residual=True)
    # two numbers about four codes: the posterior is wide and bent
    few = params.problems["cs_10"].model_copy(update={"measurements": 2})
    energy = evaluate.energy_of(prior, pose({"cs_2": few}, own, 0)[0], "relaxed", SETTINGS)
    found = evaluate.restore(prior, energy, SETTINGS.relaxed, 0)
    mean = evaluate.mean_of(energy, found.mixture, 2, SETTINGS, 0)
    gain = ((found.chosen.x - own).square() - (mean - own).square()).flatten(1).mean(1)
    assert gain.mean() > 2 * gain.std() / len(gain) ** 0.5


@pytest.mark.parametrize(("m", "times"), [(5, 4), (10, 4), (16, 3), (25, 2), (40, 1), (256, 1)])
def test_few_measurements_anneal_every_patch_and_take_more_samples(monkeypatch, m, times):
    def asked(energy, mixture, samples, draw, minimum_effective):
        return samples, minimum_effective

    monkeypatch.setattr(evaluate, "posterior_mean", asked)
    samples, minimum_effective = evaluate.mean_of(None, SimpleNamespace(centre=torch.zeros(3, 2, 20)), m, SETTINGS, 0)
    assert samples == times * SETTINGS.mean_samples
    assert minimum_effective == (math.inf if m < 40 else 0.5)


def test_log_likelihood_is_no_less_than_the_elbo(prior, x):
    generator = torch.Generator().manual_seed(0)
    noisy = x + (torch.rand(x.shape, generator=generator) - 0.5) / 255
    terms = [train_vae.measure(prior, noisy, seed) for seed in range(50)]
    elbo = torch.stack([t["log_likelihood"] - t["kl"] for t in terms]).mean().item() / 64
    found = evaluate.log_likelihood(prior, noisy, SETTINGS, 0)
    assert found["log_likelihood"] > elbo - 3 * found["monte_carlo_error"]
    assert found["log_likelihood"] < elbo + 0.5


def test_lower_bounds_stand_in_order_below_the_likelihood(prior, x):
    bounds = evaluate.lower_bounds(prior, x, 2000, 0)
    exact = evaluate.log_likelihood(prior, x, SETTINGS, 0)["log_likelihood"]
    assert bounds["elbo"] < bounds["importance_bound"] < exact + 0.02
    tighter = evaluate.lower_bounds(prior, x, 4, 0)
    assert bounds["elbo"] < tighter["importance_bound"] < bounds["importance_bound"]


def test_lower_bounds_of_the_exact_posterior_are_the_likelihood():
    """Probabilistic PCA with orthogonal columns: q(z | x) = p(z | x) makes every weight p(x)."""
    draw = torch.Generator().manual_seed(0)
    n, k, variance = 12, 3, 0.2
    weight = torch.linalg.qr(torch.randn(n, k, generator=draw))[0] * torch.tensor([2.0, 1.0, 0.5])
    x = torch.randn(6, 1, 3, 4, generator=draw)
    precision = 1 + weight.square().sum(0) / variance
    linear = SimpleNamespace(
        encoder=lambda x: (x.flatten(1) @ weight / variance / precision, -precision.log().expand(len(x), k)),
        moments=lambda z: (z @ weight.T, torch.full((len(z), n), variance)),
        basis=torch.eye(n),
        shape=(3, 4),
        fields=None,
    )
    covariance = weight @ weight.T + variance * torch.eye(n)
    expected = MultivariateNormal(torch.zeros(n), covariance).log_prob(x.flatten(1)).mean().item() / n
    found = evaluate.lower_bounds(linear, x, 50, 0)
    assert found["elbo"] == pytest.approx(expected, abs=1e-5)
    assert found["importance_bound"] == pytest.approx(expected, abs=1e-5)


def test_representation_of_what_is_in_the_range(prior):
    own = prior.sample(16, torch.Generator().manual_seed(5), residual=False)
    found = evaluate.represent(prior, own, SETTINGS, 0)
    assert found.status.count(CONVERGED) == 16
    assert reconstruction_measures(own, found.x)["psnr_db"] > 60
    energy = RangeEnergy(prior.decode, Identity(), own, evaluate.REPRESENTATION_SIGMA, 0.0)
    assert energy.chapter_objective(found.z, torch.arange(16)).mean() < 1e-4
