import numpy as np
import pytest
import torch

from genprior.batches import by_forward_mode
from genprior.layers import Coefficients, Encoder, scale_fields, tamed
from genprior.networks import Observed, PriorNetwork, load_network, save_network
from genprior.operators import GaussianBlur, as_matrix
from pipeline.patches import to_unit


def build(noise=None, encoder="none", flow=False):
    torch.manual_seed(0)
    prior = PriorNetwork((8, 8), 3, [16, 12], "silu", noise, encoder, flow)
    if flow:
        for network in prior.flow.networks:  # as it comes, it is the identity
            torch.nn.init.normal_(network[-1].weight, std=0.3)
    return prior


def test_coefficients_standardise_and_invert(patches):
    x = to_unit(patches)
    coefficients = Coefficients((8, 8)).fit(x)
    c = coefficients.analyse(x)
    torch.testing.assert_close(c.mean(0), torch.zeros(64), rtol=0, atol=1e-3)
    assert (c.std(0) <= 1.001).all()
    torch.testing.assert_close(coefficients.synthesise(c), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("noise", "encoder", "flow"),
    [
        (None, "plain", False),
        ("constant", "variational", False),
        ("dct", "none", True),
        ("dct", "plain", True),
        ("modulated", "variational", True),
    ],
)
def test_what_is_saved_is_loaded(tmp_path, patches, noise, encoder, flow):
    prior = build(noise, encoder, flow)
    prior.coefficients.fit(to_unit(patches))
    if encoder == "plain":
        prior.fit_codes(to_unit(patches))
    for name in ("one", "two"):
        save_network(prior, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    loaded = load_network(tmp_path / "one.safetensors")
    z = torch.randn(5, 3)
    for before, after in zip(prior.moments(z), loaded.moments(z), strict=True):
        assert before is after is None or torch.equal(before, after)
    if encoder != "none":
        assert torch.equal(prior.encode(to_unit(patches)), loaded.encode(to_unit(patches)))


def test_fitted_codes_are_standard_normal_in_mean_and_covariance(patches):
    prior = build(encoder="plain")
    x = to_unit(patches)
    prior.coefficients.fit(x)
    prior.fit_codes(x)
    z = prior.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=1e-3)
    torch.testing.assert_close(torch.cov(z.T), torch.eye(3), rtol=0, atol=1e-2)
    # folded into the decoder: decoding z is decoding the code
    torch.testing.assert_close(prior.decode(z), prior.coefficients.synthesise(prior.decoder(prior.encoder(x))))
    prior.fit_codes(x[:1].expand(10, -1, -1, -1))  # codes that never move can still be fitted
    assert prior.encode(x).isfinite().all()


@pytest.mark.parametrize(("noise", "flow"), [("constant", False), ("dct", True), ("modulated", True)])
def test_own_derivatives_are_forward_modes(patches, noise, flow):
    prior = build(noise, "plain", flow).double()
    x = to_unit(patches).double()
    prior.coefficients.fit(x)
    prior.fit_codes(x)
    prior.requires_grad_(False)
    z = torch.randn(5, 3, dtype=torch.float64)
    operator = GaussianBlur((8, 8), 1.0).double()
    observed = Observed(prior, as_matrix(operator, (8, 8), z))
    image = lambda z: (operator.A(prior.decode(z)).flatten(1),)  # noqa: E731
    for network, moments in ((prior, prior.moments), (observed, image)):
        torch.testing.assert_close(network.moments_with_columns(z), by_forward_mode(moments, z))
    torch.testing.assert_close(observed.moments(z), image(z))


@pytest.mark.parametrize("shape", [(16, 16), (8, 12), (3, 5)])
def test_scale_fields_interpolate_bilinearly(shape):
    """As numpy does, along one axis after the other; they add up to 1."""
    axes = []
    for size in shape:
        knots = (np.arange(min(4, size)) + 0.5) * size / min(4, size) - 0.5
        axes.append([np.interp(np.arange(size), knots, bump) for bump in np.eye(len(knots))])
    fields = scale_fields(shape).numpy()
    np.testing.assert_allclose(fields, np.kron(*axes), atol=1e-12)
    np.testing.assert_allclose(fields.sum(0), 1)


@pytest.mark.parametrize("noise", ["dct", "modulated"])
def test_samples_and_density_are_of_the_gaussian_that_the_moments_state(patches, noise):
    """x given z is N(G(z), D U diag(v) Uᵀ D): the samples' covariance, and the density that training maximises."""
    prior = build(noise)
    prior.coefficients.fit(to_unit(patches))
    decoder = prior.decoder
    with torch.no_grad():
        for layer in (decoder.linear, decoder.mean, decoder.log_variance[-1]):
            layer.weight.zero_()
        if noise == "modulated":
            decoder.log_scale[-1].weight.zero_()  # nothing depends on z now
            decoder.log_scale[-1].bias.copy_(torch.linspace(-1, 1, 16))
        x = prior.sample(20_000, torch.Generator().manual_seed(0), residual=True).flatten(1).double()
        still = prior.sample(2, torch.Generator().manual_seed(0), residual=False)
        prior.double()
        mean, variance, *scales = prior.moments(torch.zeros(1, 3).double())
        root = (scales[0] @ prior.scale_fields).T * prior.basis if scales else prior.basis
        law = torch.distributions.MultivariateNormal(prior.basis @ mean[0], (root * variance) @ root.T)
        covariance = law.covariance_matrix
        torch.testing.assert_close(torch.cov(x.T), covariance, rtol=0, atol=0.05 * covariance.max().item())
        assert ((x.mean(0) - law.mean).abs() < 5 * (covariance.diagonal() / 20_000).sqrt() + 1e-5).all()
        found = prior.residual_log_likelihood(x[:9] @ prior.basis - mean, variance, *scales)
        torch.testing.assert_close(found, law.log_prob(x[:9]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(still[0], still[1])


def test_a_flow_moves_codes_of_the_residual_model_alone(patches):
    """G(z) stays what it was; the moments are those at T(z), and a variational code leads to the same image by both."""
    prior, x = build("dct", "variational", flow=True).double(), to_unit(patches).double()
    prior.coefficients.fit(x)
    flow, z = prior.flow, prior.encoder(x)[0]
    moved, image = prior.moments(z), prior.decode(z)
    torch.testing.assert_close(prior.decode(prior.encode(x)).flatten(1) @ prior.basis, moved[0])
    prior.flow = None
    torch.testing.assert_close(prior.decode(z), image)
    for before, after in zip(moved, prior.moments(flow(z)), strict=True):
        torch.testing.assert_close(before, after)
    assert (prior.moments(z)[0] - moved[0]).abs().mean() > 1e-3
    # samples of G alone are of its own codes, with or without a flow
    prior.float()
    alone, prior.flow = prior.sample(5, torch.Generator().manual_seed(0), residual=False), flow.float()
    torch.testing.assert_close(prior.sample(5, torch.Generator().manual_seed(0), residual=False), alone)


def test_tamed_is_torchs_asinh():
    c = torch.cat([torch.logspace(-30, 18, 97), torch.zeros(1)])
    found, size = tamed(torch.cat([c, -c]))
    torch.testing.assert_close(found, torch.asinh(torch.cat([c, -c])), rtol=1e-6, atol=0)
    torch.testing.assert_close(size, found.abs(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(16, 16), (8, 5), (2, 9)])
def test_an_encoder_sees_the_energy_of_every_band_in_every_part(shape):
    """The parts' add up to a band's, by Parseval, and the bands' to the patch's without its mean, diagonals twice."""
    coefficients = Coefficients(shape)
    encoder = Encoder(coefficients, 3, [8], "silu", variational=True)
    x = torch.rand(4, 1, *shape, generator=torch.Generator().manual_seed(0))
    energies = (2 * encoder.log_energies(x) - 7).exp().unflatten(1, (8, -1)).sum(2)
    squared = (x.flatten(1) @ coefficients.basis).square()
    torch.testing.assert_close(energies, squared @ encoder.bands.T, rtol=1e-3, atol=1e-4)
    rows, columns = (torch.arange(size) / size for size in shape)
    times = 1.0 + (rows[:, None] == columns)
    times[0, 0] = 0
    assert torch.equal(encoder.bands.sum(0).reshape(shape), times)
