"""Each training loop on patches that it can learn in seconds."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from genprior.images import dct_basis, psnr_db
from genprior.layers import Encoder
from genprior.networks import PriorNetwork
from pipeline.checkpoints import resumable
from pipeline.classical import fit_gaussian_prior
from pipeline.losses import elbo_terms
from pipeline.measures import squared_mmd
from pipeline.params import (
    Collapse,
    CompressedSensing,
    Network,
    Residual,
    TrainDiscriminative,
    TrainGAN,
    Training,
    TrainSVAE,
    TrainVAE,
)
from pipeline.patches import draw_batch, draw_patches, to_unit
from pipeline.problems import pose
from pipeline.training import check_residual, descend, fit_residual, kl_weight
from stages import train_ae, train_discriminative, train_gan, train_svae, train_vae

NETWORK = Network(latent_size=4, hidden=[32], activation="silu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def vae_settings(**changed):
    values = {"steps": 150, "batch_size": 128, "lr": 0.003, "noise": "learned", "sigma": 0.1}
    values |= {
        "objective": "elbo",
        "beta": 1.0,
        "collapse": Collapse(steps=60, batch_size=128, sigmas=[0.05, 0.3, 5.0]),
    }
    return TrainVAE(**(values | changed))


def svae_settings(**changed):
    return TrainSVAE(**({"steps": 150, "batch_size": 128, "lr": 0.003, "noise": "dct"} | changed))


def gan_settings(**changed):
    values = {"steps": 300, "batch_size": 128, "lr": 0.01, "loss": "relativistic", "gradient_penalty": 1.0}
    values |= {"spectral_norm": False, "curvature": 0.0, "chapter_steps": 1}
    return TrainGAN(**(values | {"discriminator_hidden": [32], "average": 0.95} | changed))


def residual_settings(**changed):
    values = {"steps": 200, "batch_size": 128, "lr": 0.005, "noise": "dct", "code_weight": 0.1, "warm_up": 0.0}
    return Residual(**(values | changed))


@pytest.fixture(scope="module")
def trained(patches):
    """The state of an autoencoder and its plain encoder after 300 steps."""
    torch.manual_seed(0)
    prior, curve = train_ae.train(patches, patches[:100], NETWORK, Training(steps=300, batch_size=128, lr=0.005), 0)
    return prior, curve


def fresh(trained):
    """A copy of the trained autoencoder, and a new variational encoder."""
    prior = PriorNetwork((8, 8), **NETWORK.model_dump(), encoder="plain")
    prior.load_state_dict(trained[0].state_dict())
    torch.manual_seed(0)
    return prior, Encoder(prior.coefficients, **NETWORK.model_dump(), variational=True)


def test_batches_are_dequantised_around_the_grey_level_and_drawn_patches_the_same_for_whoever_asks(patches):
    offset = draw_batch(patches, None, torch.Generator().manual_seed(0)) * 255 - patches
    assert offset.abs().max() <= 0.5001
    assert abs(offset.mean().item()) < 0.01
    assert draw_batch(patches, 7, torch.Generator()).shape == (7, 1, 8, 8)
    assert torch.equal(draw_patches(patches, 50, 3), draw_patches(patches, 50, 3))
    assert len(draw_patches(patches, 10_000, 0)) == 600


def test_a_step_goes_down_the_gradient_by_no_more_than_its_clipped_length():
    for slope, length in ((10.0, 1.0), (0.5, 0.5)):
        layer = torch.nn.Linear(1, 1, bias=False)
        before = layer.weight.item()
        optimizer = torch.optim.SGD(layer.parameters(), 1.0)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        loss = lambda x, layer=layer: {"loss": (x * layer.weight.sum()).mean()}  # noqa: E731
        descend(loss, (torch.full((7,), slope),), layer, optimizer, schedule)
        assert before - layer.weight.item() == pytest.approx(length, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 10])
def test_shards_add_up_to_the_gradient_of_the_whole_batch(size):
    x, layer = torch.randn(size, 5), torch.nn.Linear(5, 1)
    before = layer.weight.detach().clone()
    layer(x).square().mean().backward()
    expected = layer.weight.grad.clone()
    error_of = lambda x: {"loss": layer(x).square().mean(), "mean": x.mean()}  # noqa: E731
    means = descend(error_of, (x,), layer, torch.optim.SGD(layer.parameters(), 1.0), clip=math.inf)
    torch.testing.assert_close(before - layer.weight, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(means["mean"], x.mean())


def test_autoencoder_comes_near_pca(patches, trained):
    prior, curve = trained
    x = to_unit(patches)
    flat = x.flatten(1).numpy()
    pca = PCA(4).fit(flat)
    floor = ((pca.inverse_transform(pca.transform(flat)) - flat) ** 2).mean()
    with torch.no_grad():
        assert psnr_db(train_ae.reconstruction_error(prior, x)) > psnr_db(floor) - 1
    assert curve.validation_mse.iloc[-1] < curve.validation_mse.iloc[0]


@pytest.mark.parametrize("noise", ["fixed", "learned", "dct", "modulated"])
def test_vae_learns(patches, noise):
    start, splits = 0.2 if noise == "learned" else 0.1, (patches, patches[:100])
    if noise in ("fixed", "learned"):
        prior, curve = train_vae.train(*splits, NETWORK, vae_settings(noise=noise, sigma=start), 0)
    else:
        prior, curve = train_svae.train(*splits, NETWORK, svae_settings(noise=noise), 0)
    assert curve.validation_elbo.iloc[-1] > curve.validation_elbo.iloc[0] + 0.3
    sigma = prior.moments(torch.zeros(1, 4))[1].sqrt()
    if noise == "fixed":
        torch.testing.assert_close(sigma, torch.full((1, 64), 0.1))
    elif noise == "learned":
        assert sigma.std() < 1e-6
        # on its way to the errors' root mean square, the best of one width; Adam moves it by no more than lr a step
        assert curve.validation_mse.iloc[-1] ** 0.5 < sigma[0, 0].item() < start - 0.02


def test_chapters_weighting_is_the_elbo_of_the_sigma_that_it_implies(patches):
    """Its gradient is the negative ELBO's, up to one factor: what a loss's minimum depends on."""
    chapter = vae_settings(objective="chapter", noise="fixed", beta=0.05, steps=1)
    assert train_vae.implied_sigma(0.05, 256, 8) == pytest.approx(0.894, abs=1e-3)  # as measured
    prior, _ = train_vae.train(patches, patches[:100], NETWORK, chapter, 0)
    assert prior.decoder.log_sigma.exp().item() == pytest.approx(math.sqrt(64 * 0.05 / (2 * 4)))
    prior.requires_grad_()
    x, noise = to_unit(patches[:50]), torch.randn(50, 4)
    gradients = []
    for settings in (chapter, vae_settings(noise="fixed")):
        loss = train_vae.objective(elbo_terms(prior, prior.encoder, x, noise), settings, 64, 4)
        gradients.append(torch.autograd.grad(loss, prior.encoder.mean.weight)[0])
    ratio = gradients[0] / gradients[1]
    torch.testing.assert_close(ratio, ratio.median().expand_as(ratio), rtol=1e-3, atol=0)


def test_more_noise_leaves_the_codes_less_to_say(patches):
    settings = vae_settings()
    swept = train_vae.collapse(patches, to_unit(patches), NETWORK, settings, {*settings.collapse.sigmas}, 0)
    assert list(swept.sigma) == [0.05, 0.3, 5.0]
    assert swept.test_kl.is_monotonic_decreasing
    assert swept.used_units.iloc[0] > swept.used_units.iloc[-1] == 0


def test_gan_comes_closer_to_the_data():
    """On patches that its generator can make: a spread in every coefficient, and as many codes as pixels."""
    coefficients = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.4, 0.05, 16)
    coefficients[:, 1] = coefficients[:, 1].abs()  # not Gaussian
    x = (0.5 + coefficients @ torch.from_numpy(dct_basis(4, 4)).float().T).clamp(0, 1)
    patches = (255 * x).round().to(torch.uint8).reshape(-1, 1, 4, 4)
    settings = gan_settings(steps=400, lr=0.005, discriminator_hidden=[64], average=0.98)
    prior, rows = train_gan.train(patches, Network(latent_size=16, hidden=[32], activation="silu"), settings, 0)
    first, last = (squared_mmd(to_unit(patches), rows[i]["samples"].float()) for i in (0, -1))
    assert last < first / 5
    drawn = prior.sample(1000, torch.Generator().manual_seed(0), residual=False)
    assert torch.equal(rows[-1]["samples"], drawn.squeeze(1).half())
    assert [row["step"] for row in rows] == [*range(1, 400, 20), 400]


@pytest.mark.parametrize("loss", ["non_saturating", "minimax", "hinge", "wasserstein"])
def test_games_begin_at_their_known_value(patches, loss):
    """The chapter's may oscillate or collapse later, as it says; a new discriminator says ½ to everything."""
    settings = gan_settings(steps=20, loss=loss, gradient_penalty=float(loss != "minimax"))
    _, rows = train_gan.train(patches, NETWORK, settings, 0)
    curve = pd.DataFrame(rows).drop(columns="samples")
    if loss in ("non_saturating", "minimax"):
        assert curve.d_loss[0] == pytest.approx(2 * math.log(2), abs=0.1)
        assert abs(curve.g_loss[0]) == pytest.approx(math.log(2), abs=0.1)
    assert (curve.penalty == 0).all() == (loss == "minimax")
    assert curve.notna().all(axis=None)


def test_residual_model_learns_what_the_decoder_leaves_out(patches, trained):
    """v(z) comes near the squared residuals at the codes of patches, and beats one variance for each coefficient."""
    prior, encoder = fresh(trained)
    curve = fit_residual(prior, encoder, patches, residual_settings(steps=300), 0)
    assert curve.elbo.iloc[-1] > curve.elbo.iloc[0] + 0.3
    before, after = trained[0].decoder.state_dict(), prior.decoder.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert {name.split(".")[0] for name in after.keys() - before.keys()} == {"log_variance"}

    x = draw_batch(patches, None, torch.Generator().manual_seed(1))
    mean, variance = prior.moments(encoder(x)[0])
    residual = x.flatten(1) @ prior.coefficients.basis - mean
    constant = residual.square().mean(0).expand_as(variance)
    fitted, flat = (prior.residual_log_likelihood(residual, v).mean() / 64 for v in (variance, constant))
    assert fitted > flat
    assert 0.5 < (residual.square() / variance).mean() < 2


@pytest.mark.parametrize("variational", [False, True])
def test_the_weight_of_codes_decides_between_the_elbo_and_their_own_density(patches, trained, variational):
    """From none to much: the ELBO falls, log p_T of G's own codes rises."""
    own = torch.randn(2000, 4) if variational else trained[0].encode(to_unit(patches)).detach()
    elbos, densities = [], []
    for weight in (0.0, 100.0):
        prior, encoder = fresh(trained)
        if variational:
            prior.encoder, prior.config["encoder"] = encoder, "variational"
        curve = fit_residual(prior, encoder, patches, residual_settings(steps=150, code_weight=weight), 0)
        elbos.append(curve.elbo.iloc[-3:].mean())
        densities.append(prior.flow.log_density(own).mean().item())
    assert densities[0] < densities[1]
    assert elbos[0] > elbos[1]
    standard = torch.distributions.Normal(0.0, 1.0).log_prob(own).sum(1).mean().item()
    # the law of a variational prior's codes, which no density fits better; an autoencoder's are no Gaussian
    assert abs(densities[1] - standard) < 0.1 if variational else densities[1] > standard + 0.1


def test_residual_check_tells_variances_that_follow_the_patch_from_one_covariance(patches):
    """Against scipy's densities, and with v(z) made worse by hand."""
    prior, _ = train_svae.train(patches, patches[:100], NETWORK, svae_settings(steps=300), 0)
    x, y = to_unit(patches[:300]), to_unit(patches[300:])
    found = check_residual(prior, prior.encoder, x, y)
    residuals = [p.flatten(1) - prior.decode(prior.encode(p)).flatten(1) for p in (x, y)]
    covariance = (residuals[0].T @ residuals[0]).double().numpy() / 300
    expected = multivariate_normal(np.zeros(64), covariance, allow_singular=True).logpdf(residuals[1].numpy()).mean()
    assert found["residual_log_likelihood_constant"] == pytest.approx(expected / 64, rel=1e-2)
    prior.decoder.log_variance[-1].bias.data += 3.0
    assert check_residual(prior, prior.encoder, x, y)["residual_log_likelihood"] < found["residual_log_likelihood"]


def test_network_for_one_problem_goes_on_from_the_linear_gaussian(patches):
    """Its last layer silenced, it is the Gaussian's posterior mean; trained, it beats that."""
    x = to_unit(patches)
    gaussian = fit_gaussian_prior(x.flatten(1).double().numpy(), dct_basis(8, 8))
    prior = torch.from_numpy(gaussian.mean[0]), torch.from_numpy(gaussian.covariance[0])
    problem = pose({"sensing": CompressedSensing(operator="gaussian", measurements=5, sigma=0.01)}, x, 0)[0]
    settings = TrainDiscriminative(steps=300, patience=9, batch_size=128, lr=0.003, hidden=[64])
    network, _ = train_discriminative.train(problem, x, patches, settings, prior, 0)
    trained = (network(problem.y) - x).square().mean()
    network.network[-1].weight.zero_()
    network.network[-1].bias.zero_()
    linear = network(problem.y)
    expected, _ = gaussian.condition(problem.operator.matrix.double().numpy(), problem.y.double().numpy(), 0.01)
    torch.testing.assert_close(linear.flatten(1).double(), torch.from_numpy(expected), rtol=0, atol=1e-3)
    assert trained < 0.8 * (linear - x).square().mean()


def test_network_for_one_problem_stops_and_is_taken_where_validation_is_best(patches, monkeypatch):
    """Of 30 patches it learns what others do not have."""
    curves = []
    monkeypatch.setattr(train_discriminative, "CHECK", 5)
    monkeypatch.setattr(train_discriminative, "resumable", lambda *args: curves.append(args[-1]) or resumable(*args))
    x, few = to_unit(patches[300:]), patches[:30]
    problem = pose({"sensing": CompressedSensing(operator="gaussian", measurements=5, sigma=0.01)}, x, 0)[0]
    settings = TrainDiscriminative(steps=2000, patience=2, batch_size=30, lr=0.003, hidden=[64])
    prior = train_discriminative.linear_gaussian(few)
    network, steps = train_discriminative.train(problem, x, few, settings, prior, 0)
    errors = [row["mse"] for row in curves[0]]
    assert steps == 5 * len(errors) < 1000
    assert (network(problem.y) - x).square().mean().item() == min(errors) < 0.99 * errors[-1]


def test_scales_say_on_which_side_of_an_edge_texture_is():
    """Noise in one half of each patch, the code says which: no variances in the DCT follow that, scales do."""
    draw = torch.Generator().manual_seed(0)
    z = torch.randint(0, 2, (500, 1), generator=draw) * 2.0 - 1
    sigma = torch.where(torch.arange(8) < 4, z[:, :, None], -z[:, :, None]).clamp_min(0) * 0.14 + 0.01
    x = 0.5 + sigma[:, None] * torch.randn(500, 1, 8, 8, generator=draw)
    found = {}
    for noise in ("dct", "modulated"):
        prior = PriorNetwork((8, 8), 1, [16], "silu", noise)
        prior.coefficients.fit(x)
        optimizer = torch.optim.Adam(prior.parameters(), 0.02)
        for _ in range(300):
            mean, *spread = prior.moments(z)
            density = prior.residual_log_likelihood(x.flatten(1) @ prior.basis - mean, *spread).mean() / 64
            optimizer.zero_grad()
            (-density).backward()
            optimizer.step()
        found[noise] = density.item()
    truth = torch.distributions.Normal(0.5, sigma.expand(-1, 8, 8)).log_prob(x.squeeze(1)).mean()
    assert found["dct"] < truth - 0.7
    assert truth - 0.3 < found["modulated"]


def test_patch_that_no_training_showed_keeps_the_elbo_finite(patches):
    """e^v of its variances would overflow, and one such patch end a training."""
    prior = PriorNetwork((8, 8), **NETWORK.model_dump(), noise="dct", encoder="variational")
    prior.coefficients.fit(to_unit(patches))
    prior.encoder.log_variance.bias.data.fill_(1000.0)
    for term in elbo_terms(prior, prior.encoder, to_unit(patches[:5]), torch.randn(5, 4)).values():
        assert term.isfinite().all()


def test_spectral_norm_bounds_the_discriminators_slope():
    settings = gan_settings(spectral_norm=True, discriminator_hidden=[32, 32])
    discriminator = train_gan.Discriminator(torch.ones(64), settings).eval()
    x, y = torch.randn(2, 100, 64, generator=torch.Generator().manual_seed(0))
    slope = (discriminator(x) - discriminator(y)).abs().squeeze(1) / (x - y).norm(dim=1)
    assert slope.max() <= 1.05  # power iteration is approximate


def test_curvature_penalty_straightens_the_generator(patches):
    bends = []
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        prior, _ = train_gan.train(patches, NETWORK, gan_settings(steps=150, curvature=weight), 0)
        z, step = torch.randn(2, 500, NETWORK.latent_size, generator=torch.Generator().manual_seed(1))
        turned = prior.decoder(z + step) - 2 * prior.decoder(z) + prior.decoder(z - step)
        bends.append((turned.square().sum() / (prior.decoder(z + step) - prior.decoder(z)).square().sum()).item())
    assert bends[1] < bends[0] / 2


def test_the_weight_of_the_kl_rises_from_a_quarter_to_1_while_warm_up_lasts():
    half = [kl_weight(step, residual_settings(warm_up=0.5)) for step in (0, 50, 99, 100, 199)]
    assert half == pytest.approx([0.25, 0.625, 0.9925, 1.0, 1.0])
    assert kl_weight(0, residual_settings()) == 1.0
