"""What evaluates a prior, on one that was trained for seconds."""

from types import SimpleNamespace

import pytest
import torch
from doubles import Analytic
from torch.distributions import MultivariateNormal

import genprior
from genprior.files import InputError
from genprior.inversion import CONVERGED
from genprior.networks import PriorNetwork
from genprior.operators import Identity
from genprior.plan import Plan
from genprior.views import Prior
from pipeline import evaluation, vae
from pipeline.files import write_array
from pipeline.params import Evaluate, LatentWeights, Network, TrainSVAE
from pipeline.patches import load_patches, to_unit
from pipeline.problems import pose, reconstruction_measures
from stages import train_svae

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
def trained(patches):
    torch.manual_seed(0)
    network = Network(latent_size=4, hidden=[32], activation="silu")
    settings = TrainSVAE(steps=300, batch_size=128, lr=0.005, noise="dct")
    return train_svae.train(patches, patches, network, settings, 0)[0]


@pytest.fixture(scope="module")
def prior(trained):
    return Prior(trained)


@pytest.fixture(scope="module")
def x(patches):
    return to_unit(patches[:32])


@pytest.fixture
def problems(params):
    return {name: params.problems[name] for name in ("denoise", "inpaint", "blur", "cs_25")}


def test_solver_gap_falls_with_iterations_and_starts(prior, x, problems):
    problem = pose(problems, x[:16], 0)[3]
    for view in evaluation.views_of(prior).values():
        gaps = []
        for starts, iterations in ((1, 1), (8, 60)):
            settings = SETTINGS.model_copy(
                update={"range": Plan(starts, iterations), "relaxed": Plan(starts, iterations)}
            )
            found = evaluation.restored(view, problem, settings, 0)
            gaps.append(evaluation.solver_gap(view, problem, found, settings, 0))
        assert gaps[0] > 0.1
        assert 0 <= gaps[1] < gaps[0] / 2


def test_truths_in_the_range_are_restored_to_the_noise_and_represented(prior, problems):
    own = prior.range.sample(16, torch.Generator().manual_seed(5))
    for problem in pose({"cs_25": problems["cs_25"], "blur": problems["blur"]}, own, 0):
        found = evaluation.restored(prior.range, problem, SETTINGS, 0)
        assert problem.measures(own, found.x)["residual_over_sigma"] == pytest.approx(1, abs=0.15)
        assert reconstruction_measures(own, found.x)["psnr_db"] > 38
    best = evaluation.represent(prior.range, own, SETTINGS, 0)
    assert reconstruction_measures(own, best)["psnr_db"] > 60
    assert genprior.restore(prior.range, Identity(), own, 0.01, latent_weight=0.0).status == [CONVERGED] * 16


def test_credible_intervals_on_truths_from_the_prior(prior, params):
    own = prior.sample(48, torch.Generator().manual_seed(3))
    (problem,) = pose({"cs_25": params.problems["cs_25"]}, own, 0)
    found = genprior.posterior(prior, problem.operator, problem.y, problem.sigma, samples=200)
    assert found.x.shape == (48, 200, 1, 8, 8)
    assert found.mean.shape == found.std.shape == own.shape
    for level, tolerance in ((0.9, 0.05), (0.5, 0.08)):
        assert evaluation.interval_coverage(found.x, own, level) == pytest.approx(level, abs=tolerance)
        low, high = found.interval(level)
        covered = ((own >= low) & (own <= high)).double().mean().item()
        assert covered == evaluation.interval_coverage(found.x, own, level)


def test_log_prob_is_no_less_than_the_elbo(prior, trained, x):
    noisy = x + (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5) / 255
    terms = [vae.measure(trained, noisy, seed) for seed in range(50)]
    elbo = torch.stack([t["log_likelihood"] - t["kl"] for t in terms]).mean().item() / 64
    found = evaluation.log_likelihood(prior, noisy, SETTINGS, 0)
    assert elbo - 3 * found["monte_carlo_error"] < found["log_likelihood"] < elbo + 0.5
    assert prior.log_prob(noisy).mean().item() / 64 == pytest.approx(found["log_likelihood"], abs=0.01)


def test_lower_bounds_of_the_exact_posterior_are_the_likelihood():
    """Probabilistic PCA with orthogonal columns: q(z | x) = p(z | x) makes every weight p(x)."""
    draw = torch.Generator().manual_seed(0)
    n, k, variance = 20, 3, 0.2
    weight = torch.linalg.qr(torch.randn(n, k, generator=draw))[0] * torch.tensor([2.0, 1.0, 0.5])
    x = torch.randn(6, 1, 4, 5, generator=draw)
    precision = 1 + weight.square().sum(0) / variance
    linear = Analytic(lambda z: (z @ weight.T, torch.full((len(z), n), variance)), basis=torch.eye(n))
    linear.network = SimpleNamespace(
        encoder=lambda x: (x.flatten(1) @ weight / variance / precision, -precision.log().expand(len(x), k))
    )
    covariance = weight @ weight.T + variance * torch.eye(n)
    expected = MultivariateNormal(torch.zeros(n), covariance).log_prob(x.flatten(1)).mean().item() / n
    found = evaluation.lower_bounds(linear, x, 50, 0)
    assert found["elbo"] == pytest.approx(expected, abs=1e-5)
    assert found["importance_bound"] == pytest.approx(expected, abs=1e-5)


def test_a_code_of_one_view_is_refused_by_the_other(prior, x):
    confined, whole = prior.range.encode(x), prior.encode(x)
    torch.testing.assert_close(prior.decode(whole), prior.range.decode(confined), rtol=0, atol=1e-5)  # T is I here
    for view, code in ((prior, confined), (prior.range, whole), (prior, 2 * confined[:3])):
        with pytest.raises(InputError, match="a code of"):
            view.decode(code)
    with pytest.raises(InputError, match="different laws"):
        confined + whole
    found = genprior.restore(prior.range, Identity(), x, 0.1)
    torch.testing.assert_close(prior.range.decode(found.z), found.x)


def test_range_takes_the_deepest_mode_and_a_prior_the_dominant(prior, x, problems):
    problem = pose(problems, x, 0)[3]
    confined, relaxed = (evaluation.restored(view, problem, SETTINGS, 0) for view in (prior.range, prior))
    assert torch.equal(confined.energy, confined.lowest)
    assert relaxed.modes.z.shape == (2, len(x), 4)  # all starts to the end, for the dominant mode to be among them
    assert (relaxed.energy >= relaxed.lowest).all()


def test_nothing_in_the_range_is_nearer_than_the_representation(prior, x, problems):
    best = reconstruction_measures(x, evaluation.represent(prior.range, x, SETTINGS, 0))["mse"]
    for problem in pose(problems, x, 0):
        found = evaluation.restored(prior.range, problem, SETTINGS, 0)
        assert reconstruction_measures(x, found.x)["mse"] >= best


def test_weight_of_the_latent_prior_pulls_codes_to_the_centre(prior, x, problems):
    problem = pose({"cs_25": problems["cs_25"]}, x, 0)[0]
    norms = []
    for weight in (1e-6, 1e-3, 1.0):
        settings = SETTINGS.model_copy(update={"latent_weight": weight})
        norms.append(evaluation.restored(prior.range, problem, settings, 0).z.norm().item())
    assert norms[0] > norms[1] > norms[2]


def test_posterior_mean_beats_the_mode_on_truths_from_the_prior(prior, params):
    """No estimate has a smaller mean squared error, and the dominant mode's has a larger one."""
    own = prior.sample(1000, torch.Generator().manual_seed(4))
    # two numbers about four codes: the posterior is wide and bent
    few = params.problems["cs_10"].model_copy(update={"measurements": 2})
    found = evaluation.restored(prior, pose({"cs_2": few}, own, 0)[0], SETTINGS, 0)
    improvement = ((found.x - own).square() - (found.mean(32) - own).square()).flatten(1).mean(1)
    assert improvement.mean() > 2 * improvement.std() / len(improvement) ** 0.5


def test_lower_bounds_stand_in_order_below_the_likelihood(prior, x):
    bounds = evaluation.lower_bounds(prior, x, 2000, 0)
    exact = evaluation.log_likelihood(prior, x, SETTINGS, 0)["log_likelihood"]
    tighter = evaluation.lower_bounds(prior, x, 4, 0)["importance_bound"]
    assert bounds["elbo"] < tighter < bounds["importance_bound"] < exact + 0.02


def test_a_weighed_range_is_its_closed_form(params, patches):
    """Of a linear decoder without noise to speak of: G(z) = m + W z, z = (WᵀKᵀK W + λ)⁻¹ WᵀKᵀ(y - K m)."""
    torch.manual_seed(0)
    network = PriorNetwork((8, 8), 3, [4], "silu", "dct")
    network.coefficients.fit(to_unit(patches))
    for weights in (*network.decoder.body.parameters(), network.decoder.mean.weight):
        weights.data.zero_()
    network.requires_grad_(False)
    x, name = to_unit(patches[:6]), "weight_100"
    params = params.model_copy(
        update={"latent_weights": LatentWeights(problem="cs_25", factors=[1, 100]), "evaluate": SETTINGS}
    )
    rows, _ = evaluation.weigh(Prior(network), x, name, params)
    (problem,) = pose({"cs_25": params.problems["cs_25"]}, x, params.seed)
    mean = network.decode(torch.zeros(1, 3)).flatten()
    w = (network.decode(torch.eye(3)).flatten(1) - mean).T
    k, weight = problem.operator.matrix, 100 * problem.sigma**2
    z = torch.linalg.solve(w.T @ k.T @ k @ w + weight * torch.eye(3), (problem.y - k @ mean) @ k @ w, left=False)
    expected = (mean + z @ w.T - x.flatten(1)).square().mean().item()
    assert rows["range"]["mse"] == pytest.approx(expected, rel=1e-4)


def test_patches_of_a_file_are_read_as_a_tensor_is(tmp_path, patches):
    write_array(tmp_path / "a.npy", patches.squeeze(1).numpy())
    found = load_patches(str(tmp_path / "a.npy"), "cpu")
    assert found.shape == patches.shape
    for index in (3, slice(None), slice(7, 500, 3), slice(0, 0), torch.tensor([5, 5, 0])):
        assert torch.equal(found[index], patches[index])
