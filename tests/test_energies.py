"""Energies of every structure of S against densities, finite differences and dense matrices; LAPACK in place."""

import numpy as np
import pytest
import torch
from doubles import BASIS, SHAPE, Analytic, N, best, find, plain_energy, range_energy, scaled_energy

from examples.operators import PhaselessFourier, Saturation
from genprior.batches import by_forward_mode
from genprior.covariances import Dense, Diagonal, Observation, Scaled, Separable, White
from genprior.energies import Energy, energy_of
from genprior.inversion import adam, lowest_draws
from genprior.lapack import cholesky, inverse, inverse_root
from genprior.layers import scale_fields
from genprior.operators import GaussianBlur, Identity, as_matrix, gaussian_sensing

FIELDS = scale_fields(SHAPE, 3)


@pytest.fixture
def draw():
    torch.set_default_dtype(torch.float64)
    return torch.Generator().manual_seed(0)


def modulated_energy(moments, operator, y, sigma):
    return scaled_energy(moments, operator, y, sigma, FIELDS)


def observation(operator, y, sigma):
    return Observation(operator, y.flatten(1), sigma, BASIS, SHAPE, as_matrix(operator, SHAPE, BASIS))


def unstructured(moments, operator, y, sigma, scaled):
    """The energy that knows nothing of K."""
    of = observation(operator, y, sigma)
    covariance = Scaled(of, FIELDS) if scaled else Dense(of)
    view = Analytic(moments)
    return Energy(view, covariance, lambda z, rows, generator: covariance.condition(rows, moments(z), generator))


def dense_energy(moments, operator, y, sigma):
    return unstructured(moments, operator, y, sigma, scaled=True)


class DeepinvLike:
    """An object of the shape of deepinv's linear physics: more methods than we ask for, measurements as pictures."""

    def __init__(self, mask):
        self.mask = mask

    def A(self, x, **kwargs):
        return x * self.mask

    def A_adjoint(self, y, **kwargs):
        return y * self.mask

    def forward(self, x, **kwargs):
        return self.A(x, **kwargs)


class ByAxes:
    """K = K_h ⊗ K_w, neither of them symmetric."""

    def __init__(self, draw):
        self.rows, self.columns = (torch.eye(side) + 0.3 * torch.randn(side, side, generator=draw) for side in SHAPE)

    def A(self, x):
        return self.rows @ x @ self.columns.T

    def A_adjoint(self, y):
        return self.rows.T @ y @ self.columns

    @property
    def axes(self):
        return self.rows, self.columns


def curved_moments(draw, k=3):
    inner, outer = torch.randn(16, k, generator=draw), torch.randn(N, 16, generator=draw) / 3
    spread = torch.randn(N, k, generator=draw)
    return lambda z: (torch.tanh(z @ inner.T) @ outer.T, 0.1 * torch.exp(torch.tanh(z @ spread.T)))


def modulated_moments(draw, k=3):
    moments, spread = curved_moments(draw, k), torch.randn(len(FIELDS), k, generator=draw)
    return lambda z: (*moments(z), torch.exp(torch.tanh(z @ spread.T)))


OPERATORS = {
    "identity": lambda draw: Identity(),
    "blur": lambda draw: GaussianBlur(SHAPE, 0.8),
    "by axes": ByAxes,
    "sensing": lambda draw: gaussian_sensing(SHAPE, 7, draw),
    "few": lambda draw: gaussian_sensing(SHAPE, 3, draw),
    "deepinv": lambda draw: DeepinvLike((torch.rand(1, 1, *SHAPE, generator=draw) < 0.5).double()),
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


@pytest.mark.parametrize("name", list(OPERATORS))
@pytest.mark.parametrize("constraint", ["range", "relaxed", "modulated"])
def test_gradient_against_finite_differences(draw, name, constraint):
    energy = energies(draw, name)[constraint]
    energy.covariance.dense_chunk = energy.covariance.dense_fisher_chunk = 3  # of 4 codes, by parts
    z, rows = torch.randn(4, 3, generator=draw), torch.arange(4)
    gradient, fisher = energy.gradient_and_fisher(z, rows)
    value, same = energy.value_and_gradient(z, rows)
    torch.testing.assert_close(value, energy.value(z, rows))
    expected = finite_difference(lambda z: energy.value(z, rows), z)
    for found in (gradient, same):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
    assert (torch.linalg.eigvalsh(fisher) > 0).all()


@pytest.mark.parametrize("m", [3, 7])  # whose Fisher matrices are made in different ways
@pytest.mark.parametrize("kind", ["relaxed", "modulated"])
def test_a_prior_whose_weights_are_not_frozen_is_searched_as_one_whose_are(draw, kind, m):
    """What LAPACK factorises in place, torch has to remember how to differentiate."""
    weight = torch.eye(3)
    moments = {"relaxed": curved_moments, "modulated": modulated_moments}[kind](draw)
    operator, y = gaussian_sensing(SHAPE, m, draw), torch.randn(4, m, generator=draw)
    make = {"relaxed": plain_energy, "modulated": modulated_energy}[kind]
    z, rows, found = torch.randn(4, 3, generator=draw), torch.arange(4), []
    for trained in (False, True):
        weight.requires_grad_(trained)
        energy = make(lambda z: moments(z @ weight), operator, y, 0.1)
        found.append([energy.value(z, rows), energy.of_all(z, rows), *energy.gradient_and_fisher(z, rows)])
    for frozen, free in zip(*found, strict=True):
        (slope,) = torch.autograd.grad(free.sum(), weight, retain_graph=True)  # nothing it needs is overwritten
        assert slope.isfinite().all()
        assert slope.any()
        torch.testing.assert_close(free, frozen)


def test_jacobian_against_finite_differences(draw):
    moments, z = curved_moments(draw), torch.randn(4, 3, generator=draw)
    _, jacobians = by_forward_mode(moments, z)
    for j, jacobian in enumerate(jacobians):
        expected = finite_difference(lambda z, j=j: moments(z)[j], z)
        torch.testing.assert_close(jacobian, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", ["identity", "blur", "sensing", "deepinv", "phaseless", "saturation"])
@pytest.mark.parametrize("constraint", ["range", "relaxed", "modulated"])
def test_every_code_for_every_problem_is_each_ones_energy(draw, name, constraint):
    energy = energies(draw, name)[constraint]
    z, problems = torch.randn(7, 3, generator=draw), torch.tensor([2, 0, 3])
    each = energy.value(z.repeat_interleave(3, 0), problems.repeat(7))
    torch.testing.assert_close(energy.of_all(z, problems), each.reshape(7, 3))


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
    inner, outer = torch.randn(16, 3, generator=draw), torch.randn(20, 16, generator=draw) / 4
    decode = lambda z: torch.tanh(z @ inner.T) @ outer.T  # noqa: E731
    y, z = torch.randn(30, 20, generator=draw), torch.randn(30, 3, generator=draw)
    wider, rows = range_energy(decode, y, 0.1, sigma=0.2).with_wider_noise(), torch.arange(30)
    noisier = range_energy(decode, y, 4 * 0.1, sigma=0.4)  # λ / σ², the prior's weight in nats, stays
    torch.testing.assert_close(wider.value(z, rows), noisier.value(z, rows))
    torch.testing.assert_close(wider.gradient_and_fisher(z, rows), noisier.gradient_and_fisher(z, rows))


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
    expected = energy.gradient_and_fisher(z, rows[:1])[1][0]
    step, hessian = 1e-4, torch.empty(3, 3)
    for i in range(3):
        shift = step * torch.eye(3)[i]
        forward, backward = (
            energy.gradient_and_fisher((z + s).expand(count, 3), rows)[0].mean(0) for s in (shift, -shift)
        )
        hessian[i] = (forward - backward) / (2 * step)
    torch.testing.assert_close(hessian, expected, rtol=0.05, atol=0.03 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["identity", "blur", "sensing", "deepinv"])
def test_relaxed_energy_is_the_gaussians(draw, name):
    """Whatever path it takes (rotated, diagonal or dense), the energy is -log N(y; K G(z), S) + ½‖z‖²."""
    energy = energies(draw, name)["relaxed"]
    moments, operator = energy.model.moments, energy.covariance.observation.operator
    z = torch.randn(4, 3, generator=draw)
    x = torch.randn(4, 1, *SHAPE, generator=draw)
    y = operator.A(x)
    energy = plain_energy(moments, operator, y, 0.1)
    matrix = operator.A(torch.eye(N).reshape(N, 1, *SHAPE)).flatten(1).T
    mean, variance = moments(z)
    for i in range(4):
        covariance = matrix @ BASIS @ variance[i].diag() @ BASIS.T @ matrix.T + 0.01 * torch.eye(len(matrix))
        law = torch.distributions.MultivariateNormal(matrix @ BASIS @ mean[i], covariance)
        expected = -law.log_prob(y[i].flatten()) + 0.5 * z[i].square().sum()
        torch.testing.assert_close(energy.value(z, torch.arange(4))[i], expected)


def image_law(moments, z):
    """Mean and covariance of x given each code, as they are defined: (P, N) and (P, N, N)."""
    mean, variance, scales = moments(z)
    root = (scales @ FIELDS)[:, :, None] * BASIS
    return mean @ BASIS.T, (root * variance[:, None]) @ root.mT


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "energy_of"),
    [
        ("identity", dense_energy),
        ("identity", modulated_energy),
        ("blur", dense_energy),
        ("blur", modulated_energy),
        ("by axes", modulated_energy),
        ("sensing", modulated_energy),
        ("few", modulated_energy),
        ("deepinv", modulated_energy),
    ],
)
def test_modulated_energy_is_the_gaussians(draw, name, energy_of, sigma):
    """Energies, Fisher matrices, conditional means and draws against the dense Gaussian, by torch's own density."""
    if sigma == 0 and name != "identity":
        pytest.skip("S has no inverse")
    moments, operator, z = modulated_moments(draw), OPERATORS[name](draw), torch.randn(4, 3, generator=draw)
    x = 0.3 * torch.randn(4, 1, *SHAPE, generator=draw)
    energy, rows = energy_of(moments, operator, operator.A(x), sigma), torch.arange(4)
    energy.covariance.dense_chunk = energy.covariance.dense_fisher_chunk = 3  # of 4 codes
    separable = energy_of is modulated_energy and sigma > 0 and name in ("identity", "blur", "by axes")
    assert isinstance(energy.covariance, Separable) == separable
    assert isinstance(energy.covariance, White) == (energy_of is modulated_energy and sigma == 0)
    matrix = operator.A(torch.eye(N).reshape(N, 1, *SHAPE)).flatten(1).T

    def law(z):
        mean, covariance = image_law(moments, z[None])
        return matrix @ mean[0], matrix @ covariance[0] @ matrix.T + sigma**2 * torch.eye(len(matrix))

    value, _ = energy.value_and_gradient(z, rows)
    cross, fisher = energy.of_all(z, rows), energy.gradient_and_fisher(z, rows)[1]
    for i in range(4):
        mean, covariance = law(z[i])
        y, prior = operator.A(x[i : i + 1]).flatten(), 0.5 * z[i].square().sum()
        expected = prior - torch.distributions.MultivariateNormal(mean, covariance).log_prob(y)
        for found in (value[i], energy.value(z, rows)[i], cross[i, i]):
            torch.testing.assert_close(found, expected)
        slope, change = torch.func.jacfwd(law)(z[i])
        inverse = torch.linalg.inv(covariance)
        trace = torch.einsum("ab,bci,cd,daj->ij", inverse, change, inverse, change)
        torch.testing.assert_close(fisher[i], slope.T @ inverse @ slope + 0.5 * trace + torch.eye(3))
        if sigma:
            x_mean, x_covariance = image_law(moments, z[i : i + 1])
            gain = x_covariance[0] @ matrix.T @ inverse
            expected = x_mean[0] + gain @ (y - mean)
            torch.testing.assert_close(energy.estimate(z, rows)[i].flatten(), expected)
            many = torch.full((20_000,), i)
            drawn = energy.draw(z[i].expand(20_000, 3), many, draw).flatten(1)
            spread = x_covariance[0] - gain @ matrix @ x_covariance[0]
            largest = spread.diagonal().max()
            torch.testing.assert_close(torch.cov(drawn.T), spread, rtol=0, atol=0.05 * largest.item())
            torch.testing.assert_close(drawn.mean(0), expected, rtol=0, atol=0.04 * largest.sqrt().item())


@pytest.mark.parametrize(("width", "sigma"), [(None, 0.1), (None, 0.0), (0.8, 0.1), (0.8, 0.0), (3.0, 0.1)])
def test_diagonal_energy_is_the_dense_one(draw, width, sigma):
    """In the DCT against in the pixels; the widest blur leaves nothing of some coefficients."""
    operator = GaussianBlur(SHAPE, width).double() if width else Identity()
    moments, z, rows = curved_moments(draw), torch.randn(4, 3, generator=draw), torch.tensor([1, 0, 1, 2])
    y = torch.randn(3, 1, *SHAPE, generator=draw)
    diagonal = plain_energy(moments, operator, y, sigma)
    dense = unstructured(moments, operator, y, sigma, scaled=False)
    assert isinstance(diagonal.covariance, Diagonal)
    assert diagonal.covariance.seen.all() == (width != 3.0)
    found, expected = (
        [
            *energy.value_and_gradient(z, rows),
            *energy.gradient_and_fisher(z, rows),
            energy.value(z, rows),
            energy.of_all(z, rows),
            energy.estimate(z, rows),
        ]
        for energy in (diagonal, dense)
    )
    # A gain below 1e-5 counts as none: a slope is missing 1e-5 r / σ² of it, r about 1 here.
    tolerance = 1e-3 if width == 3.0 else 1e-7
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_modulated_energy_without_gains_is_the_relaxed(draw):
    moments, operator, z = curved_moments(draw), gaussian_sensing(SHAPE, 7, draw), torch.randn(4, 3, generator=draw)
    y, rows = torch.randn(4, 7, generator=draw), torch.arange(4)
    plain = plain_energy(moments, operator, y, 0.1)
    ones = dense_energy(lambda z: (*moments(z), torch.ones(len(z), len(FIELDS))), operator, y, 0.1)
    for found, expected in zip(ones.gradient_and_fisher(z, rows), plain.gradient_and_fisher(z, rows), strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ones.estimate(z, rows), plain.estimate(z, rows))


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float64, 1e-7, 1e-9), (torch.float32, 1e-4, 1e-4)])
@pytest.mark.parametrize("m", [1, 16, 65, 100, 150])
def test_inverse_root_in_halves_is_lapacks(draw, m, dtype, rtol, atol):
    columns = m + 3 if dtype == torch.float64 else 2 * m  # nearly singular in float64
    matrix = torch.randn(4, m, columns, generator=draw)
    covariance = (matrix @ matrix.mT / m).to(dtype)
    inverse, log_determinant = inverse_root(covariance.clone())
    expected = np.linalg.inv(np.linalg.cholesky(covariance.double()))
    np.testing.assert_allclose(inverse.numpy(), expected, rtol=rtol, atol=atol)
    np.testing.assert_allclose(log_determinant.numpy(), np.linalg.slogdet(covariance.double())[1], rtol=rtol, atol=atol)
    covariance[2] -= 100 * torch.eye(m, dtype=dtype)  # not positive: NaN there, the others as they were
    found, log_determinant = inverse_root(covariance)
    assert log_determinant[2].isnan()
    torch.testing.assert_close(found[[0, 1, 3]], inverse[[0, 1, 3]])


@pytest.mark.parametrize(
    ("name", "constraint"), [("phaseless", "range"), ("phaseless", "relaxed"), ("saturation", "range")]
)
def test_non_linear_operators_are_solved(draw, name, constraint):
    energy = energies(draw, name)[constraint]
    starts = torch.randn(12, 4, 3, generator=draw)
    ours, theirs = (
        best(energy, find(energy, starts, 60, halve_every=8)),
        best(energy, adam(energy, starts, 200, lr=0.05)),
    )
    assert ours.energy.mean() <= theirs.energy.mean() + 0.05


def test_saturated_pixels_are_told_from_the_others(draw):
    """The relaxed energy jumps where a pixel starts to clip, so no minimum to compare with: what it restores counts."""
    moments, operator, problems = curved_moments(draw), Saturation(-0.5, 0.5), 40
    mean, variance = moments(torch.randn(problems, 3, generator=draw))
    x = ((mean + variance.sqrt() * torch.randn(mean.shape, generator=draw)) @ BASIS.T).reshape(-1, 1, *SHAPE)
    y = operator.A(x) + 0.02 * torch.randn(x.shape, generator=draw)
    energy = plain_energy(moments, operator, y, 0.02)
    found = best(energy, find(energy, torch.randn(8, problems, 3, generator=draw), 40))
    assert (found.x - x).square().mean() < 0.8 * (y - x).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("m", [1, 5, 64, 65, 100, 200])
def test_cholesky_in_place_is_torchs(draw, m, dtype):
    """Also of matrices that do not lie row by row, as slices do not, which then stay as they were."""
    columns = m + 3 if dtype == torch.float64 else 2 * m  # nearly singular in float64
    matrix = torch.randn(5, m, columns, generator=draw, dtype=dtype)
    covariance = matrix @ matrix.mT / m
    expected = torch.linalg.cholesky(covariance)
    covariance[2] -= 100 * torch.eye(m, dtype=dtype)  # not positive, and not finite: NaN there alone
    covariance[4, -1, -1] = torch.nan
    padded = torch.nn.functional.pad(covariance, (0, 3))[:, :, :m]
    for given in (padded, covariance):
        found, kept = cholesky(given), given is padded
        assert found[[2, 4]].diagonal(dim1=1, dim2=2).isnan().any(1).all()
        torch.testing.assert_close(found.tril()[[0, 1, 3]], expected[[0, 1, 3]])
        assert (found.data_ptr() == given.data_ptr()) != kept
        if kept:
            torch.testing.assert_close(given, covariance, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("m", [1, 16, 65, 150])
def test_inverse_in_halves_is_lapacks(draw, m):
    """What stands above the diagonal does not count."""
    above = torch.randn(4, m, m, generator=draw).triu(1)
    factor = torch.randn(4, m, m, generator=draw).tril(-1) / m + torch.diag_embed(1 + torch.rand(4, m, generator=draw))
    np.testing.assert_allclose(inverse(factor + above).numpy(), np.linalg.inv(factor), rtol=1e-7, atol=1e-9)
    factor[2, 0, 0] = torch.nan
    assert inverse(factor)[2].isnan().any()
    np.testing.assert_allclose(
        inverse(factor)[[0, 1, 3]].numpy(), np.linalg.inv(factor[[0, 1, 3]]), rtol=1e-7, atol=1e-9
    )
