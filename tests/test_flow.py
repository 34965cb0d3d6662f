"""The flow against finite differences, and a density whose entropy is known."""

import numpy as np
import pytest
import torch

from genprior.flow import CouplingFlow


def codes(count, k, dtype=torch.float64):
    return torch.randn(count, k, generator=torch.Generator().manual_seed(2)).to(dtype)


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
