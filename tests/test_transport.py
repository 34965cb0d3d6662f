"""Maps of a standard normal code, onto a mixture and by a flow, against torch, scipy and closed forms."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from genprior.energies import with_columns
from genprior.transport import CouplingFlow, MixtureTransport


def build(components, k, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    transport = MixtureTransport(components, k).to(dtype)
    transport.log_weight.copy_(torch.randn(components, generator=draw).to(dtype).log_softmax(0))
    transport.mean.copy_(2 * torch.randn(components, k, generator=draw))
    spread = 0.5 * torch.randn(components, k, k, generator=draw)
    transport.factor.copy_(torch.linalg.cholesky(spread @ spread.mT + 0.1 * torch.eye(k)))
    return transport


def codes(count, k, dtype=torch.float64):
    return torch.randn(count, k, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_one_component_is_an_affine_map():
    transport, z = build(1, 5), codes(100, 5)
    torch.testing.assert_close(transport(z), transport.mean[0] + z @ transport.factor[0].T)
    torch.testing.assert_close(transport.jacobian(transport(z)), transport.factor.expand(100, -1, -1))


def test_a_normal_code_has_the_mixtures_density():
    # N(z; 0, I) = p(T(z)) |det ∂T/∂z|, p by torch's own distributions: T and its Jacobian at once
    transport, z = build(4, 3), codes(500, 3)
    t = transport(z)
    parts = torch.distributions.MultivariateNormal(transport.mean, scale_tril=transport.factor)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=transport.log_weight), parts)
    log_normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    log_determinant = torch.linalg.slogdet(transport.jacobian(t)).logabsdet
    torch.testing.assert_close(mixture.log_prob(t) + log_determinant, log_normal, rtol=0, atol=1e-10)


def test_quantiles_are_those_that_bisection_finds():
    transport = build(3, 1)
    weight, mean = transport.log_weight.exp().numpy(), transport.mean[:, 0].numpy()
    width = transport.factor[:, 0, 0].numpy()
    z = np.linspace(-4, 4, 17)
    expected = [
        scipy.optimize.brentq(
            lambda t, level=level: weight @ scipy.stats.norm.cdf((t - mean) / width) - level, -50, 50, xtol=1e-13
        )
        for level in scipy.stats.norm.cdf(z)
    ]
    np.testing.assert_allclose(transport(torch.from_numpy(z)[:, None])[:, 0].numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_inverse_takes_it_back_also_far_out(dtype, tolerance):
    transport = build(6, 8, dtype)
    z = torch.cat([codes(2000, 8, dtype), 7 * codes(20, 8, dtype).sign()])
    torch.testing.assert_close(transport.inverse(transport(z)), z, rtol=0, atol=tolerance)


def test_components_far_apart_are_both_reached():
    # between them the distribution is flat, which Newton's method alone would not cross
    transport = MixtureTransport(2, 1).double()
    transport.log_weight.copy_(torch.tensor([0.5, 0.5]).log())
    transport.mean.copy_(torch.tensor([[-30.0], [30.0]]))
    t = transport(torch.tensor([[-1.0], [-1e-6], [1e-6], [1.0]], dtype=torch.float64))[:, 0]
    expected = scipy.stats.norm.ppf(2 * scipy.stats.norm.cdf(-1.0)) - 30
    np.testing.assert_allclose(t[0], expected, atol=1e-9)
    assert -30 < t[1] < -20 < 20 < t[2] < 30
    torch.testing.assert_close(t[3], -t[0])


def test_derivatives_are_finite_differences():
    transport, z = build(3, 4), codes(20, 4)
    assert torch.autograd.gradcheck(transport, z.requires_grad_())
    t, columns = with_columns(transport, z.detach())  # forward mode, as a search uses it
    torch.testing.assert_close(columns, transport.jacobian(t))


def flow_of(k):
    """A flow that bends, its last layers not the zeros that it starts with."""
    torch.manual_seed(3)
    flow = CouplingFlow(k).double()
    z = codes(50, k)
    torch.testing.assert_close(flow(z), z)  # untrained, it is the identity
    for network in flow.networks:
        torch.nn.init.normal_(network[-1].weight, std=0.3)
        torch.nn.init.normal_(network[-1].bias, std=0.3)
    return flow.requires_grad_(False)


@pytest.mark.parametrize("k", [2, 3, 5, 20])
def test_flow_its_inverse_and_its_derivatives(k):
    flow, z = flow_of(k), codes(30, k)
    t, columns = flow.with_columns(z)
    torch.testing.assert_close(flow(z), t)
    assert (t - z).abs().mean() > 0.1
    expected = torch.func.vmap(torch.func.jacrev(lambda code: flow(code[None])[0]))(z)
    torch.testing.assert_close(columns, expected)
    if k > 2:
        assert (expected.abs().mean(0) > 1e-6).all()  # every code reaches every other
    back, log_determinant = flow.inverse(t)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(log_determinant, -torch.linalg.slogdet(expected).logabsdet)
    normal = torch.distributions.Normal(torch.zeros(()).double(), 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(flow.log_density(t), normal + log_determinant)


def test_flow_has_the_density_of_its_draws():
    """Of two codes, on a grid that holds them all: it integrates to one, with the mean of what is drawn."""
    flow = flow_of(2)
    axis = torch.linspace(-40, 40, 501, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    density = torch.cat([flow.log_density(part) for part in grid.split(200_000)]).exp() * (axis[1] - axis[0]) ** 2
    assert density.sum().item() == pytest.approx(1, abs=1e-3)
    drawn = flow(codes(100_000, 2))
    mean = density @ grid
    assert ((drawn.mean(0) - mean).abs() < 5 * drawn.std(0) / 100_000**0.5 + 1e-3).all()


def test_trained_flow_comes_near_the_entropy_of_bent_codes():
    """-E log p of a banana, t = (a, a² + b / 2): at best its entropy, log 2πe - log 2; one Gaussian's is 1.1 more."""
    torch.manual_seed(0)
    flow, draw = CouplingFlow(2), torch.Generator().manual_seed(0)

    def banana(count):
        a, b = torch.randn(2, count, generator=draw)
        return torch.stack([a, a.square() + b / 2], 1)

    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(400):
        optimizer.zero_grad()
        (-flow.log_density(banana(256)).mean()).backward()
        optimizer.step()
    entropy = np.log(2 * np.pi * np.e) - np.log(2)
    with torch.no_grad():
        excess = -flow.log_density(banana(20_000)).mean().item() - entropy
    t = banana(100_000)
    gaussian = 0.5 * torch.logdet(2 * np.pi * np.e * torch.cov(t.T)).item() - entropy
    assert gaussian > 1.0
    assert -0.05 < excess < 0.15
