"""The transport of a standard normal code onto a mixture, against torch's own mixture, scipy and closed forms."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from genprior.inversion import with_columns
from genprior.transport import MixtureTransport


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
