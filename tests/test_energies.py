"""Energies of every structure of S against densities, finite differences and dense matrices."""

from functools import partial

import numpy as np
import pytest
import torch
from doubles import (
    BASIS,
    SHAPE,
    Analytic,
    Both,
    N,
    best,
    curved,
    curved_moments,
    find,
    plain_energy,
    range_energy,
    scaled_energy,
)
from torch.distributions import MultivariateNormal

from examples.operators import PhaselessFourier, Saturation
from genprior.covariances import (
    Dense,
    Diagonal,
    Observation,
    Scaled,
    Separable,
    White,
    cholesky,
    inverse,
    log_determinant,
)
from genprior.energies import Energy, energy_of
from genprior.inversion import adam, lowest_draws
from genprior.layers import scale_fields
from genprior.operators import GaussianBlur, Identity, as_matrix, gaussian_sensing

FIELDS = scale_fields(SHAPE, 3)


modulated_energy = partial(scaled_energy, fields=FIELDS)


def unstructured_energy(moments, operator, y, sigma):
    """With scales, of an S that knows nothing of K."""
    observation = Observation(operator, y.flatten(1), sigma, BASIS, SHAPE, as_matrix(operator, SHAPE, BASIS))
    covariance = Scaled(observation, FIELDS)
    view = Analytic(moments)
    return Energy(view, covariance, lambda z, rows, generator: covariance.condition(rows, moments(z), generator))


def masking(draw):
    """As deepinv's linear physics, whose measurements are pictures."""
    mask = torch.rand(1, 1, *SHAPE, generator=draw) < 0.5
    return Both(lambda x: x * mask, lambda y: y * mask)


def by_axes(draw):
    """K = K_h ⊗ K_w, neither of them symmetric."""
    rows, columns = axes = tuple(torch.eye(side) + 0.3 * torch.randn(side, side, generator=draw) for side in SHAPE)
    return Both(lambda x: rows @ x @ columns.T, lambda y: rows.T @ y @ columns, axes=axes)


def modulated_moments(draw, k=3):
    moments, spread = curved_moments(draw, k), torch.randn(len(FIELDS), k, generator=draw)
    return lambda z: (*moments(z), torch.exp(torch.tanh(z @ spread.T)))


OPERATORS = {
    "identity": lambda draw: Identity(),
    "blur": lambda draw: GaussianBlur(SHAPE, 0.8),
    "wide blur": lambda draw: GaussianBlur(SHAPE, 3.0),  # leaves nothing of some coefficients
    "by axes": by_axes,
    "sensing": lambda draw: gaussian_sensing(SHAPE, 7, draw),
    "few": lambda draw: gaussian_sensing(SHAPE, 3, draw),
    "deepinv": masking,
    "phaseless": lambda draw: PhaselessFourier(SHAPE),
    "saturation": lambda draw: Saturation(-0.5, 0.5),
}


def energies(draw, name, problems=4):
    moments, operator = curved_moments(draw), OPERATORS[name](draw)
    x = (moments(torch.randn(problems, 3, generator=draw))[0] @ BASIS.T).reshape(-1, 1, *SHAPE)
    y = operator.A(x)
    y = y + 0.1 * torch.randn(y.shape, generator=draw)
    return {
        "range": energy_of(Analytic(moments, "none"), operator, y, 0.1),
        "relaxed": plain_energy(moments, operator, y, 0.1),
        "modulated": modulated_energy(modulated_moments(draw), operator, y, 0.1),
    }


def finite_difference(function, z, step=1e-6):
    directions = step * torch.eye(z.shape[1])
    return torch.stack([(function(z + d) - function(z - d)) / (2 * step) for d in directions], -1)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "wide blur"])
@pytest.mark.parametrize("constraint", ["range", "relaxed", "modulated"])
def test_gradient_against_finite_differences(draw, name, constraint):
    energy = energies(draw, name)[constraint]
    energy.covariance.dense_chunk = energy.covariance.dense_fisher_chunk = 3  # of 4 codes, by parts
    z, rows = torch.randn(4, 3, generator=draw), torch.arange(4)
    value, gradient, fisher = energy.derivatives(z, rows)
    same_value, same = energy.value_and_gradient(z, rows)
    for found in (value, same_value, energy.of_all(z, rows).diagonal()):
        torch.testing.assert_close(found, energy.value(z, rows))
    some = torch.tensor([2, 0, 3])  # problems, out of order, for every code
    each = energy.value(z.repeat_interleave(3, 0), some.repeat(4))
    torch.testing.assert_close(energy.of_all(z, some), each.reshape(4, 3))
    expected = finite_difference(lambda z: energy.value(z, rows), z)
    for found in (gradient, same):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
    assert (torch.linalg.eigvalsh(fisher) > 0).all()


@pytest.mark.parametrize("constraint", ["range", "relaxed"])
@pytest.mark.parametrize("deepest", [False, True])
def test_the_lowest_draws_are_picked(draw, deepest, constraint):
    """By their energies; for the deepest mode by what is left of them without the latent prior."""
    energy = energies(draw, "sensing")[constraint]
    precision = energy.latent_precision = 2.0 if constraint == "range" else 1.0
    pool = torch.randn(50, 3, generator=draw)
    starts = lowest_draws(energy, pool, 2, deepest)
    for i in range(4):
        values = energy.value(pool, torch.full((50,), i))
        if deepest:
            values -= 0.5 * precision * pool.square().sum(1)
        torch.testing.assert_close(starts[:, i], pool[values.argsort()[:2]])


def test_wider_noise_is_twice_the_noise(draw):
    decode = curved(draw)
    y, z = torch.randn(30, 20, generator=draw), torch.randn(30, 3, generator=draw)
    wider, rows = range_energy(decode, y, 0.1, sigma=0.2).with_wider_noise(), torch.arange(30)
    noisier = range_energy(decode, y, 4 * 0.1, sigma=0.4)  # λ / σ², the prior's weight in nats, stays
    torch.testing.assert_close(wider.value(z, rows), noisier.value(z, rows))
    torch.testing.assert_close(wider.derivatives(z, rows), noisier.derivatives(z, rows))


def image_law(moments, z):
    """Mean and covariance of x given a code (k,), as they are defined: (N,) and (N, N)."""
    mean, variance, *scales = moments(z[None])
    root = (scales[0] @ FIELDS)[0, :, None] * BASIS if scales else BASIS
    return (mean @ BASIS.T)[0], (root * variance) @ root.T


KINDS = {
    "plain": (curved_moments, plain_energy),
    "unstructured": (modulated_moments, unstructured_energy),
    "scaled": (modulated_moments, modulated_energy),
}
CASES = {
    ("identity", "plain"): Diagonal,
    ("blur", "plain"): Diagonal,
    ("wide blur", "plain"): Diagonal,
    ("sensing", "plain"): Dense,
    ("deepinv", "plain"): Dense,
    ("phaseless", "plain"): Dense,
    ("identity", "unstructured"): Scaled,
    ("blur", "unstructured"): Scaled,
    ("identity", "scaled"): Separable,
    ("blur", "scaled"): Separable,
    ("by axes", "scaled"): Separable,
    ("sensing", "scaled"): Scaled,
    ("few", "scaled"): Scaled,
    ("deepinv", "scaled"): Scaled,
}
EXACT = {("identity", "plain"): Diagonal, ("identity", "unstructured"): Scaled, ("identity", "scaled"): White}


@pytest.mark.parametrize(("name", "kind", "sigma"), [(*case, 0.1) for case in CASES] + [(*case, 0.0) for case in EXACT])
def test_energy_is_the_gaussians(draw, name, kind, sigma):
    """Energies, Fisher matrices, conditional means and draws against the dense Gaussian, by torch's own density."""
    make_moments, make_energy = KINDS[kind]
    moments, operator, z = make_moments(draw), OPERATORS[name](draw), torch.randn(4, 3, generator=draw)
    x = 0.3 * torch.randn(4, 1, *SHAPE, generator=draw)
    energy, rows = make_energy(moments, operator, operator.A(x), sigma), torch.arange(4)
    energy.covariance.dense_chunk = energy.covariance.dense_fisher_chunk = 3  # of 4 codes
    assert type(energy.covariance) is (CASES if sigma else EXACT)[name, kind]
    # A gain of the blur below 1e-5 counts as none: a slope is missing 1e-5 r / σ² of it, r about 1 here.
    close = partial(torch.testing.assert_close, **({"rtol": 1e-3, "atol": 1e-3} if name == "wide blur" else {}))

    def law(z):
        """Of y, K linear about the code's image where it is not."""
        mean, covariance = image_law(moments, z)
        measure = lambda x: operator.A(x.reshape(1, 1, *SHAPE)).flatten()  # noqa: E731
        matrix = torch.func.jacrev(measure)(mean)
        return measure(mean), matrix @ covariance @ matrix.T + sigma**2 * torch.eye(len(matrix)), matrix

    value, _ = energy.value_and_gradient(z, rows)
    cross, fisher = energy.of_all(z, rows), energy.derivatives(z, rows)[2]
    for i in range(4):
        (mean, covariance, matrix), prior = law(z[i]), 0.5 * z[i].square().sum()
        y = operator.A(x[i : i + 1]).flatten()
        expected = prior - MultivariateNormal(mean, covariance).log_prob(y)
        for found in (value[i], energy.value(z, rows)[i], cross[i, i]):
            close(found, expected)
        if name == "phaseless":
            continue
        slope, change = torch.func.jacfwd(lambda z: law(z)[:2])(z[i])
        inverse = torch.linalg.inv(covariance)
        trace = torch.einsum("ab,bci,cd,daj->ij", inverse, change, inverse, change)
        close(fisher[i], slope.T @ inverse @ slope + 0.5 * trace + torch.eye(3))
        x_mean, x_covariance = image_law(moments, z[i])
        gain = x_covariance @ matrix.T @ inverse
        close(energy.estimate(z, rows)[i].flatten(), x_mean + gain @ (y - mean))
    if name != "phaseless":
        energy.covariance.dense_chunk = 1000
        drawn = energy.draw(z[3:].expand(20_000, 3), torch.full((20_000,), 3), draw).flatten(1)
        spread = x_covariance - gain @ matrix @ x_covariance
        largest = max(spread.diagonal().max().item(), 1e-9)
        torch.testing.assert_close(torch.cov(drawn.T), spread, rtol=0, atol=0.05 * largest)
        torch.testing.assert_close(drawn.mean(0), x_mean + gain @ (y - mean), rtol=0, atol=0.04 * largest**0.5)


@pytest.mark.parametrize(
    ("name", "constraint"), [("phaseless", "range"), ("phaseless", "relaxed"), ("saturation", "range")]
)
def test_non_linear_operators_are_solved(draw, name, constraint):
    energy = energies(draw, name)[constraint]
    starts = torch.randn(8, 4, 3, generator=draw)
    ours = best(energy, find(energy, starts, 60, halve_every=8))
    theirs = best(energy, adam(energy, starts, 150, lr=0.05))
    assert ours.energy.mean() <= theirs.energy.mean() + 0.05


def test_a_covariance_without_a_factor_is_nan_and_leaves_the_others_alone(draw):
    matrix = torch.randn(5, 20, 40, generator=draw)
    covariance = matrix @ matrix.mT / 20
    factors = np.linalg.cholesky(covariance)
    covariance[2] -= 100 * torch.eye(20)
    covariance[4, -1, -1] = torch.nan
    found, fine = cholesky(covariance), [0, 1, 3]
    np.testing.assert_allclose(found[fine], factors[fine], rtol=1e-7)
    np.testing.assert_allclose(inverse(found[fine]), np.linalg.inv(factors[fine]), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(log_determinant(found[fine]), np.linalg.slogdet(covariance[fine])[1], rtol=1e-7)
    assert log_determinant(found)[[2, 4]].isnan().all()


@pytest.mark.parametrize("m", [3, 7])  # whose Fisher matrices are made in different ways
@pytest.mark.parametrize("kind", ["relaxed", "modulated"])
def test_a_prior_whose_weights_are_not_frozen_is_searched_as_one_whose_are(draw, kind, m):
    weight = torch.eye(3)
    moments = {"relaxed": curved_moments, "modulated": modulated_moments}[kind](draw)
    operator, y = gaussian_sensing(SHAPE, m, draw), torch.randn(4, m, generator=draw)
    make = {"relaxed": plain_energy, "modulated": modulated_energy}[kind]
    z, rows, found = torch.randn(4, 3, generator=draw), torch.arange(4), []
    for trained in (False, True):
        weight.requires_grad_(trained)
        energy = make(lambda z: moments(z @ weight), operator, y, 0.1)
        found.append([energy.value(z, rows), energy.of_all(z, rows), *energy.derivatives(z, rows)])
    for frozen, free in zip(*found, strict=True):
        (slope,) = torch.autograd.grad(free.sum(), weight, retain_graph=True)  # nothing it needs is overwritten
        assert slope.isfinite().all()
        assert slope.any()
        torch.testing.assert_close(free, frozen)


@pytest.mark.parametrize("m", [1, 5, 7])  # two ways to the same matrix
def test_fisher_matrix_is_the_expected_hessian(draw, m):
    """Averaged over measurements drawn at z, the Hessian of the energy is the Fisher matrix (plus the prior's I)."""
    moments, operator, count = curved_moments(draw), gaussian_sensing(SHAPE, m, draw), 15_000
    z = torch.randn(1, 3, generator=draw)
    mean, variance = moments(z)
    x = (mean + variance.sqrt() * torch.randn(count, N, generator=draw)) @ BASIS.T
    y = operator.A(x.reshape(-1, 1, *SHAPE)) + 0.1 * torch.randn(count, m, generator=draw)
    energy = plain_energy(moments, operator, y, 0.1)
    rows = torch.arange(count)
    expected = energy.derivatives(z, rows[:1])[2][0]
    step, hessian = 1e-4, torch.empty(3, 3)
    for i in range(3):
        shift = step * torch.eye(3)[i]
        forward, backward = (energy.derivatives((z + s).expand(count, 3), rows)[1].mean(0) for s in (shift, -shift))
        hessian[i] = (forward - backward) / (2 * step)
    torch.testing.assert_close(hessian, expected, rtol=0.05, atol=0.03 * expected.abs().max().item())
