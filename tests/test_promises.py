"""What operators and measurements promise, checked where a problem is stated: kept to the letter, or one line."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from doubles import BASIS, SHAPE, Analytic, Both, N
from torch.distributions import MultivariateNormal

import genprior
from examples.operators import tomography
from genprior import energies
from genprior.files import InputError
from genprior.networks import PriorNetwork
from genprior.operators import Downsampling, GaussianBlur, Identity, Inpainting, gaussian_sensing
from genprior.problem import stated
from genprior.views import Prior

MASKS = torch.rand(N, 1, *SHAPE, generator=torch.Generator().manual_seed(1)) < 0.5


class Together:
    """deepinv's TensorList, as far as it is used here."""

    def __init__(self, x):
        self.x, self.shape = x, [part.shape for part in x]


@pytest.fixture
def view():
    """In float32, of a linear decoder with pixels' variance."""
    weight = 0.3 * torch.randn(N, 3, generator=torch.Generator().manual_seed(2))
    view = Analytic(lambda z: (z @ weight.to(z).T, torch.full((len(z), N), 0.2).to(z)), basis=BASIS.float())
    view.in_double = lambda: Analytic(view.moments)
    view.plan, view.code = genprior.Plan(2, 5), torch.Tensor
    return view


@pytest.fixture
def prior(patches):
    """Untrained, its weights moved from where codes do nothing, and its variances small."""
    torch.manual_seed(0)
    network = PriorNetwork((8, 8), 4, [16], "silu", "dct")
    network.coefficients.fit(patches / 255)
    for weights in network.decoder.parameters():
        weights.data.add_(0.3 * torch.randn(weights.shape))
    return Prior(network.eval().requires_grad_(False))


def line(view, operator, y, sigma=0.1):
    """What refuses a problem."""
    with pytest.raises(InputError) as caught:
        genprior.restore(view, operator, y, sigma)
    assert str(caught.value).isprintable()
    return str(caught.value)


def law(view, matrix, sigma, z):
    """Mean and covariance of K x + e given a code (k,), as they are defined, in float64."""
    mean, variance = (moment.double() for moment in view.moments(z[None]))
    spread = matrix @ BASIS
    return (spread @ mean.T)[:, 0], (spread * variance) @ spread.T + sigma**2 * torch.eye(len(matrix)).double()


def by_definition(view, matrix, y, sigma, z):
    """The energy of one code (k,) for one y (m,)."""
    return 0.5 * z.square().sum() - MultivariateNormal(*law(view, matrix, sigma, z)).log_prob(y)


# --- y and sigma ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.ones(3, 1, *SHAPE, dtype=torch.uint8), "torch.uint8.*divided by 255"),
        (torch.ones(0, 1, *SHAPE), r"\(0, 1, 4, 5\); \(N, 1, 4, 5\) would be right"),
        (torch.ones(1, *SHAPE), r"y: \(1, 4, 5\); \(N, 1, 4, 5\) would be right"),
        (torch.ones(3, 1, 4, 6), r"\(3, 1, 4, 5\) would be right"),
        (torch.tensor(1.0), r"y: \(\)"),
        ([torch.ones(3, 1, *SHAPE)] * 2, r"y: \(3, 1, 4, 5\), \(3, 1, 4, 5\)"),
        (torch.full((3, 1, *SHAPE), torch.nan), "not finite"),
        (torch.ones(3, 1, *SHAPE, dtype=torch.complex64), "complex, and Identity.A is real"),
        ([[1.0, 2.0]], "float"),
        ("y", "str"),
        (np.array(["a"]), "y: "),
    ],
)
def test_measurements_that_fit_nothing(view, y, said):
    with pytest.raises(InputError, match=said):
        genprior.restore(view, Identity(), y, 0.1)


@pytest.mark.parametrize(
    "sigma",
    [-0.1, np.nan, np.inf, 1j, "0.1", None, True, torch.ones(2), np.ones(1), torch.tensor(1j), np.float32(-1)],
)
def test_no_standard_deviation(view, sigma):
    y = torch.ones(3, 1, *SHAPE)
    assert line(view, Identity(), y, sigma).startswith("sigma = ")
    for refused in (
        lambda: genprior.measure(Identity(), y, sigma),
        lambda: genprior.restore(view, Identity(), y, sigma, latent_weight=0.1),
        lambda: genprior.restore(view, Identity(), y, 0.1, latent_weight=sigma if sigma is not None else "none"),
    ):
        with pytest.raises(InputError, match=r"(sigma|latent_weight) = "):
            refused()


def test_what_numpy_and_other_precisions_have_to_say_is_taken(view):
    y = torch.rand(3, 1, *SHAPE)
    expected = genprior.restore(view, Identity(), y, 0.25)
    for other in (y.numpy(), y.numpy().astype(">f4").astype("<f4")[::-1][::-1], y.double(), y.double().numpy()):
        found = genprior.restore(view, Identity(), other, 0.25)
        assert torch.equal(found.x, expected.x)
        assert found.x.dtype == torch.float32
    for sigma in (np.float32(0.25), np.float64(0.25), torch.tensor(0.25), np.array(0.25)):
        assert torch.equal(genprior.restore(view, Identity(), y, sigma).energy, expected.energy)


# --- operators --------------------------------------------------------------------------------------------------------


def test_what_an_operator_makes_of_nothing_is_taken_off(draw):
    """A(x) = ½ x + 0.3 is ½ x with y - 0.3: energies are those of the closed form."""
    weight = 0.3 * torch.randn(N, 3, generator=draw)
    view = Analytic(lambda z: (z @ weight.T, torch.full((len(z), N), 0.2)))
    y, z = torch.rand(3, 1, *SHAPE, generator=draw), torch.randn(3, 3, generator=draw)
    affine = Both(lambda x: 0.5 * x + 0.3, lambda y: 0.5 * y)
    found = energies.energy_of(view, affine, y, 0.1).value(z, torch.arange(3))
    for i in range(3):
        expected = by_definition(view, 0.5 * torch.eye(N), y[i].flatten() - 0.3, 0.1, z[i])
        torch.testing.assert_close(found[i], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("operator", "said"),
    [
        (Both(lambda x: x.square(), lambda y: y), "Both has A_adjoint, and its A is not linear"),
        (Both(lambda x: 2 * x, lambda y: y), r"Both.A_adjoint is not A's: ⟨A x, y⟩ = [\d.]+, and ⟨x, A_adjoint y⟩ = "),
        (Both(lambda x: x, lambda y: y[:, :, 1:]), "A_adjoint gives 15 numbers; 20 would be right"),
        (Both(lambda x: x, lambda y: 1 / 0), "Both.A_adjoint fails on .*ZeroDivisionError: division by zero"),
        (Both(lambda x: x @ torch.ones(3, 3)), r"Both.A fails on \(1, 1, 4, 5\) of torch.float32: RuntimeError"),
        (Both(lambda x: (x - 2).log()), "not finite"),
        (Both(lambda x: x, lambda y: y, axes=(torch.eye(2), torch.eye(5))), "Both.axes"),
        (Both(lambda x: 2 * x, lambda y: 2 * y, axes=()), "Both.axes"),
        (SimpleNamespace(A_adjoint=1), "SimpleNamespace has no A"),
        (Inpainting(torch.ones(3, 3) > 0), r"mask: \(3, 3\); \(4, 5\)"),
        (Downsampling(4), "factor = 4"),
        (gaussian_sensing(SHAPE, 20, torch.Generator()).double(), "Dense.A fails on .* of torch.float32"),
        (Both(lambda x: x[0, 0]), "Both.A takes one picture to .*restore the problems of each K apart"),
        (Both(lambda x: x.mean()), r"Both.A takes one picture to \(\); \(1, ...\)"),
        (Both(lambda x: x.sum(0, keepdim=True)), "different rows; one K for a batch"),
    ],
)
def test_promises_that_operators_break(view, operator, said):
    with pytest.raises(InputError, match=said) as caught:
        genprior.restore(view, operator, torch.ones(3, 1, *SHAPE), 0.1)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("count", [3, N])  # N: as many problems as pixels, whose matrix has N rows of N masks
@pytest.mark.parametrize("linear", [True, False])
def test_a_k_of_its_own_for_each_problem(view, count, linear):
    masks = MASKS[:count].float()
    for A in (lambda x: x * masks, lambda x: x * masks[: len(x)]):
        said = line(view, Both(A, A if linear else None), torch.ones(count, 1, *SHAPE))
        assert said.endswith("restore the problems of each K apart")
    genprior.restore(view, Both(lambda x: x * masks[:1], lambda x: x * masks[:1]), torch.ones(count, 1, *SHAPE), 0.1)


def test_a_structure_that_is_stated_and_not_there_is_not_used(draw):
    weight, operator = torch.randn(N, 3, generator=draw), gaussian_sensing(SHAPE, N, draw)
    view = Analytic(lambda z: (z @ weight.T, torch.full((len(z), N), 0.2)))
    y, z = torch.rand(1, N, generator=draw), torch.randn(1, 3, generator=draw)
    operator.orthogonal_in = ("dct",)
    found = energies.energy_of(view, operator, y, 0.1).value(z, torch.tensor([0]))
    torch.testing.assert_close(found[0], by_definition(view, operator.matrix, y[0], 0.1, z[0]))


# --- complex numbers, several instruments -----------------------------------------------------------------------------


def fourier(x):
    return torch.fft.fft2(x, norm="ortho")


def back(y):
    return torch.fft.ifft2(y, norm="ortho").real


def blurred(x):
    return x.mean(3)


def spread(y):
    return y.unsqueeze(3).expand(*y.shape, SHAPE[1]) / SHAPE[1]


INSTRUMENTS = {
    "complex": (fourier, back),
    "tuple": (lambda x: (2 * x, blurred(x)), lambda y: 2 * y[0] + spread(y[1])),
    "list": (lambda x: [fourier(x), blurred(x)], lambda y: back(y[0]) + spread(y[1])),
    "deepinv": (lambda x: Together([fourier(x), 2 * x]), lambda y: back(y.x[0]) + 2 * y.x[1]),
}


def stacked(kind, x):
    """What an instrument measures, real parts beside imaginary ones, by hand: (N, m)."""
    rows = INSTRUMENTS[kind][0](x)
    parts = [rows] if torch.is_tensor(rows) else getattr(rows, "x", rows)
    return torch.cat(
        [torch.stack([p.real, p.imag], -1).flatten(1) if p.is_complex() else p.flatten(1) for p in parts], 1
    )


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("kind", INSTRUMENTS)
def test_several_instruments_and_complex_numbers(draw, kind, linear):
    """Energies are those of the stack of all rows; noise is σ in each of them."""
    weight, (A, adjoint) = 0.3 * torch.randn(N, 3, generator=draw), INSTRUMENTS[kind]
    view = Analytic(lambda z: (z @ weight.T, torch.full((len(z), N), 0.2)))
    operator, matrix = Both(A, adjoint if linear else None), stacked(kind, torch.eye(N).reshape(N, 1, *SHAPE)).T
    x = torch.rand(2000, 1, *SHAPE, generator=draw)
    y = genprior.measure(operator, x, 0.1, seed=1)
    assert type(y) is type(A(x))
    rows = stated(view, operator, y, 0.1).y
    noise = rows - x.flatten(1) @ matrix.T
    torch.testing.assert_close(torch.cov(noise.T), 0.01 * torch.eye(len(matrix)), rtol=0, atol=2e-3)
    z = torch.randn(3, 3, generator=draw)
    found = energies.energy_of(view, operator, y, 0.1).value(z, torch.arange(3))
    for i in range(3):
        torch.testing.assert_close(found[i], by_definition(view, matrix, rows[i], 0.1, z[i]))


def test_of_instruments_the_adjoint_is_checked_too(view):
    (A, adjoint), y = INSTRUMENTS["deepinv"], Together([torch.ones(2, 1, *SHAPE) + 0j, torch.ones(2, 1, *SHAPE)])
    genprior.restore(view, Both(A, adjoint), y, 0.1)
    assert "A_adjoint is not A's" in line(view, Both(A, lambda y: 2 * adjoint(y)), y)
    assert "y: real, and Both.A is complex" in line(view, Both(A, adjoint), Together([y.x[1], y.x[1]]))
    assert "y: (2, 1, 4, 5), (3, 1, 4, 5)" in line(view, Both(A, adjoint), Together([y.x[0], torch.ones(3, 1, *SHAPE)]))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"starts": 0},
        {"iterations": 0},
        {"pool": -1},
        {"pool": 2, "starts": 3},
        {"halve_every": -1},
    ],
)
def test_plans(wrong):
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} = "):
        genprior.Plan(**({"starts": 2, "iterations": 3} | wrong))


def test_counts_and_seeds(view, prior):
    found = genprior.restore(view, Identity(), torch.ones(2, 1, *SHAPE), 0.1)
    for count in (0, -1, 1.5, True, "3", None, 10**12):
        for take in (found.posterior, found.mean, lambda count: found.posterior(5, first=count) if count else 1 // 0):
            with pytest.raises((InputError, ZeroDivisionError)):
                take(count)
        with pytest.raises(InputError, match="count = "):
            prior.sample(count)
    for seed in (1.5, True, "1", None, 2**70):
        for take in (lambda seed: prior.sample(2, seed), lambda seed: found.mean(3, seed), measure):
            with pytest.raises(InputError, match="seed = "):
                take(seed)
    assert not torch.equal(prior.sample(2, -1), prior.sample(2, 1))
    assert torch.equal(prior.sample(2, np.int64(3)), prior.sample(2, 3))
    for level, samples in ((0, 5), (1, 5), ("a", 5), (0.9, 1)):
        with pytest.raises(InputError, match="level = "):
            found.posterior(samples).interval(level)


def measure(seed):
    return genprior.measure(Identity(), torch.ones(2, 1, *SHAPE), 0.1, seed)


# --- precision --------------------------------------------------------------------------------------------------------

SIDES = (8, 8)
LINEAR = {
    "identity": Identity(),
    "inpainting": Inpainting(torch.rand(SIDES, generator=torch.Generator().manual_seed(0)) < 0.4),
    "blur": GaussianBlur(SIDES, 0.8),
    "wide blur": GaussianBlur(SIDES, 2.0),
    "downsampling": Downsampling(2),
    "sensing": gaussian_sensing(SIDES, 64, torch.Generator().manual_seed(0)),
    "tomography": tomography(SIDES, np.arange(0.0, 180.0, 15.0)),
}


@pytest.mark.parametrize("kind", ["range", "dct", "modulated"])
@pytest.mark.parametrize("name", LINEAR)
def test_energies_are_right_to_a_hundredth_of_a_nat_for_every_sigma(prior, name, kind):
    """In whichever precision they are, and their slopes: against their definition, with all of it in float64.

    Those of a range, which may be 1e5 nats, to a few millionths.
    """
    if kind == "modulated":
        prior.network.decoder.set_noise("modulated", 4, [32], "silu")
        for weights in prior.network.decoder.log_scale.parameters():
            weights.data.add_(0.1 * torch.randn(weights.shape)).requires_grad_(False)
    view, operator = prior.range if kind == "range" else prior, LINEAR[name]
    z, x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), prior.sample(6, 2)
    x, rows = view.decode(z) + 0.3 * (x - x.mean(0)), torch.arange(6)
    exact, matrix = view.in_double(), operator.A(torch.eye(64).reshape(64, 1, *SIDES)).flatten(1).T.double()
    if axes := getattr(operator, "axes", None):  # of float64
        matrix = torch.kron(*axes)
    kinds = set()
    for sigma in (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4):
        y = genprior.measure(operator, x, sigma).flatten(1)
        energy = energies.energy_of(view, operator, y.reshape(operator.A(x).shape), sigma)
        codes = z.double().requires_grad_()
        expected = energy_by_definition(exact, matrix, y.double(), sigma, codes)
        slope = torch.autograd.grad(expected.sum(), codes)[0]
        taken = z.to(energy.y)
        value, gradient = energy.value_and_gradient(taken, rows)
        for found in (value, energy.value(taken, rows), energy.of_all(taken, rows).diagonal()):
            torch.testing.assert_close(
                found.double(), expected.detach(), rtol=5e-6 if kind == "range" else 0, atol=0.01
            )
        assert ((gradient - slope).norm(dim=1) <= 1e-2 * (1 + slope.norm(dim=1))).all()
        kinds.add(energy.y.dtype)
    assert torch.float32 in kinds
    assert torch.float64 in kinds or kind == "range" or (name, kind) == ("identity", "dct")


def energy_by_definition(view, matrix, y, sigma, z):
    """Of each code (P, k) for its own y (P, m), with S as it is defined."""
    mean, *spread = view.moments(z)
    covariance = sigma**2 * torch.eye(len(matrix)).double().expand(len(z), -1, -1)
    if spread:
        scales = spread[1] @ view.scale_fields if len(spread) > 1 else torch.ones_like(mean)
        root = (matrix * scales[:, None]) @ view.basis
        covariance = covariance + (root * spread[0][:, None]) @ root.mT
    predicted = mean @ view.basis.T @ matrix.T
    return 0.5 * z.square().sum(1) - MultivariateNormal(predicted, covariance).log_prob(y)


def test_what_float64_found_comes_back_as_float32(prior):
    operator, x = LINEAR["tomography"], prior.sample(3, 1)
    y = genprior.measure(operator, x, 1e-3)
    for view in (prior, prior.range):
        found = genprior.restore(view, operator, y, 1e-3, plan=genprior.Plan(2, 30))
        spread = found.posterior(20)
        assert found.problem.y.dtype == (torch.float32 if view is prior.range else torch.float64)
        results = (found.x, found.z, found.energy, found.lowest, found.mean(3), spread.x, spread.z, spread.log_evidence)
        assert {result.dtype for result in results} == {torch.float32}
        assert isinstance(found.z, view.code)
        assert isinstance(spread.z, view.code)
        assert all(torch.as_tensor(result).isfinite().all() for result in results)


def test_a_range_asks_for_noise(prior):
    with pytest.raises(InputError, match="sigma = 0"):
        genprior.restore(prior.range, Identity(), torch.ones(2, 1, *SIDES), 0.0)
