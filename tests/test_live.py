"""What the page computes, in node: against torch, closed forms and quadrature."""

import base64
import json
import shutil
import subprocess
import zlib

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy.integrate import quad
from scipy.stats import norm
from torch.nn.functional import softplus

from genprior.layers import ACTIVATIONS
from genprior.networks import PriorNetwork
from stages.live import LEVELS, drawing, packed, whole_numbers

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not there")
SHAPE, K = (6, 8), 3


def node(script: str, **given: object) -> object:
    """What JavaScript returns that knows `live`, `given`, and `prior` where a packed one is given."""
    start = f"""
    const live = require({json.dumps(str(ROOT / "pipeline/live.js"))});
    const given = JSON.parse(require("fs").readFileSync(0));
    const flat = (rows) => ({{ rows: rows.length, cols: rows[0].length, data: Float64Array.from(rows.flat()) }});
    const prior = given.prior && live.unpack(given.prior, Uint8Array.from(given.prior.bytes).buffer);
    const plain = (key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
    const main = () => {{ {script} }};
    console.log(JSON.stringify(main(), plain));
    """
    done = subprocess.run(["node", "-e", start], input=json.dumps(given), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def network_of(noise: str, activation: str, flow: bool, k: int = K) -> PriorNetwork:
    """A prior of random weights, all of which matter."""
    torch.manual_seed(3)
    network = PriorNetwork(SHAPE, k, [16, 12], activation, noise, "variational", flow)
    with torch.no_grad():
        network.coefficients.fit(0.5 + 0.2 * torch.randn(500, 1, *SHAPE))
        for weight in (*network.decoder.parameters(), *(network.flow.parameters() if flow else ())):
            weight.add_(0.2 * torch.randn(weight.shape))
        network.code_mean.copy_(0.3 * torch.randn(k))
        network.code_factor.copy_(torch.eye(k) + 0.1 * torch.randn(k, k).tril())
    return network.eval().requires_grad_(False)


@torch.no_grad()
def rounded(network: PriorNetwork) -> PriorNetwork:
    """The prior, changed in place to what the page has of it."""
    for weight in drawing(network).values():
        if weight.ndim > 1:
            steps, whole = whole_numbers(weight)
            weight.copy_(torch.from_numpy(steps[:, None] * whole))
    return network


def for_page(network: PriorNetwork) -> dict:
    found = packed(network, torch.rand(2, 1, *SHAPE))
    return found | {"bytes": [*zlib.decompress(base64.b64decode(found["content"]))]}


@pytest.fixture(params=[("modulated", "silu", False), ("dct", "gelu", True), ("dct", "leaky_relu", True)])
def both(request):
    """A prior, as the page has it, in torch and packed."""
    network = network_of(*request.param)
    return rounded(network), for_page(network)


def matrices(network: PriorNetwork, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """G(T(z)) and Σ(z) as matrices, in float64: (n,) and (n, n)."""
    double = network.in_double()
    mean, variance, *scales = double.moments(z.double()[None])
    factor = double.basis * variance[0].sqrt()
    if scales:
        factor = (scales[0] @ double.scale_fields)[0][:, None] * factor
    return double.basis @ mean[0], factor @ factor.T


def test_steps_of_weights_are_small():
    network = network_of("modulated", "silu", False)
    coarse = drawing(rounded(network_of("modulated", "silu", False)))
    for name, weight in drawing(network).items():
        off, most = (weight - coarse[name]).abs(), weight.abs()
        assert off.max() == 0 if weight.ndim < 2 else (off <= (0.501 / LEVELS) * most.amax(1, keepdim=True)).all()


def test_decoders(both):
    network, prior = both
    z = torch.randn(K)
    mean, covariance = matrices(network, z)
    found = node(
        """
        const z = Float64Array.from(given.z), at = live.law(prior, live.transport(prior, z)), draw = live.random(1);
        const residual = () => live.spread(prior, at, draw.normals(prior.n));
        const draws = Array.from({ length: 4000 }, () => live.added(at.image, residual()));
        const mean = draws.reduce((a, b) => live.added(a, b)).map((value) => value / draws.length);
        const squares = draws.map((x) => live.added(x, mean, -1).map((v) => v * v)).reduce((a, b) => live.added(a, b));
        return { own: live.decode(prior, z), image: at.image, std: live.deviation(prior, at), mean,
          drawn: squares.map((v) => Math.sqrt(v / draws.length)) };
        """,
        prior=prior,
        z=z.tolist(),
    )
    std = covariance.diagonal().sqrt().numpy()
    np.testing.assert_allclose(found["own"], network.decode(z[None]).flatten(), atol=1e-5)
    np.testing.assert_allclose(found["image"], mean, atol=1e-5)
    np.testing.assert_allclose(found["std"], std, rtol=1e-4)
    np.testing.assert_allclose(found["mean"], mean, atol=4 * std.max() / 4000**0.5)
    np.testing.assert_allclose(found["drawn"], std, rtol=0.06)


def test_energy_and_what_is_known_of_x_at_a_code(both):
    network, prior = both
    z, kernel, sigma = torch.randn(K), torch.randn(7, 48, dtype=torch.float64) / 7, 0.05
    mean, covariance = matrices(network, z)
    y = kernel @ mean + 0.3 * torch.randn(7, dtype=torch.float64)
    of_y = kernel @ covariance @ kernel.T + sigma**2 * torch.eye(7)
    likelihood = torch.distributions.MultivariateNormal(kernel @ mean, of_y).log_prob(y)
    gain = covariance @ kernel.T @ torch.linalg.inv(of_y)
    found = node(
        """
        const problem = { K: flat(given.K), y: Float64Array.from(given.y), sigma: given.sigma };
        const at = live.posed(prior, problem, Float64Array.from(given.z));
        return { energy: at.energy, ...live.given(prior, at) };
        """,
        **{"prior": prior, "z": z.tolist(), "K": kernel.tolist(), "y": y.tolist(), "sigma": sigma},
    )
    assert found["energy"] == pytest.approx(float(-likelihood + 0.5 * z.double().square().sum()), rel=1e-4)
    np.testing.assert_allclose(found["mean"], mean + gain @ (y - kernel @ mean), atol=1e-3)
    np.testing.assert_allclose(found["variance"], (covariance - gain @ kernel @ covariance).diagonal(), atol=1e-5)


def test_the_chapters_descent_ends_at_a_minimum(both):
    network, prior = both
    kernel, weight = torch.randn(20, 48) / 7, 0.01
    y = kernel @ network.decode(torch.randn(1, K)).flatten() + 0.01 * torch.randn(20)
    found = node(
        """
        const problem = { K: flat(given.K), y: Float64Array.from(given.y) }, steps = [];
        const zero = new Float64Array(prior.k);
        for (const { z, value } of live.descent(prior, problem, given.weight, zero, 3000)) steps.push([value, z]);
        return steps;
        """,
        **{"prior": prior, "K": kernel.tolist(), "y": y.tolist(), "weight": weight},
    )
    values = [value for value, _ in found]
    assert (np.diff(values) < 0).all()
    z = torch.tensor([found[-1][1]], requires_grad=True)
    value = (network.decode(z).flatten() @ kernel.T - y).square().sum() + weight * z.square().sum()
    assert value.item() == pytest.approx(values[-1], rel=1e-4)
    (gradient,) = torch.autograd.grad(value, z)
    assert gradient.norm() < 0.05


def test_the_posterior_is_that_of_quadrature():
    network = network_of("modulated", "silu", False, k=1)
    prior, kernel, sigma = for_page(network), torch.randn(4, 48, dtype=torch.float64) / 7, 0.2
    rounded(network)
    y = kernel @ matrices(network, torch.tensor([0.7]))[0] + sigma * torch.randn(4, dtype=torch.float64)
    weights, means, squares = [], [], []
    for z in torch.linspace(-5, 5, 401):
        mean, covariance = matrices(network, z[None])
        of_y = kernel @ covariance @ kernel.T + sigma**2 * torch.eye(4)
        log_joint = torch.distributions.MultivariateNormal(kernel @ mean, of_y).log_prob(y) - 0.5 * z.double() ** 2
        gain = covariance @ kernel.T @ torch.linalg.inv(of_y)
        weights.append(float(log_joint.exp()))
        means.append((mean + gain @ (y - kernel @ mean)).numpy())
        squares.append((covariance - gain @ kernel @ covariance).diagonal().numpy() + means[-1] ** 2)
    mean, square = (np.average(values, axis=0, weights=weights) for values in (means, squares))
    found = node(
        """
        const problem = { K: flat(given.K), y: Float64Array.from(given.y), sigma: given.sigma };
        for (const now of live.posterior(prior, problem, live.random(2), [])) if (now?.count === 4000) return now;
        """,
        **{"prior": prior, "K": kernel.tolist(), "y": y.tolist(), "sigma": sigma},
    )
    std = np.sqrt(square - mean**2)
    assert np.abs(found["mean"] - mean).max() < 0.1 * std.mean()
    np.testing.assert_allclose(found["std"], std, rtol=0.05)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_and_their_slopes(activation):
    network = network_of("dct", activation, False)
    prior = for_page(network)
    rounded(network)
    z = torch.randn(1, K, requires_grad=True)
    (gradient,) = torch.autograd.grad(network.decode(z).square().sum(), z)
    found = node(
        """
        const at = live.decoded(prior, Float64Array.from(given.z));
        return live.pulled(prior, at, at.image.map((value) => 2 * value));
        """,
        prior=prior,
        z=z[0].tolist(),
    )
    np.testing.assert_allclose(found, gradient[0], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("saturating", [False, True])
def test_the_game_has_the_losses_and_gradients_of_torch(saturating):
    real, codes = 1.5 + 0.2 * torch.randn(9), torch.randn(9)
    found = node(
        """
        const game = live.game(live.random(4), given.saturating), { G, D } = game;
        const [real, codes] = [given.real, given.codes].map((values) => Float64Array.from(values));
        const judged = game.losses(real, codes, false), made = game.losses(null, codes, true);
        return { G, D, judged, made };
        """,
        **{"saturating": saturating, "real": real.tolist(), "codes": codes.tolist()},
    )
    nets = {}
    for name in "GD":
        nets[name] = [
            torch.tensor(values, requires_grad=True)
            for layer in found[name]
            for values in (np.reshape(layer["weight"]["data"], (layer["weight"]["rows"], -1)).tolist(), layer["bias"])
        ]

    def of(name, x):
        first, bias, last, end = nets[name]
        return (x[:, None] @ first.T + bias).relu() @ last.T + end

    fake = of("D", of("G", codes)[:, 0])
    losses = {
        "judged": ("D", softplus(-of("D", real)).mean() + softplus(fake).mean()),
        "made": ("G", -softplus(fake).mean() if saturating else softplus(-fake).mean()),
    }
    for name, (moved, loss) in losses.items():
        assert found[name]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        gradients = torch.autograd.grad(loss, nets[moved], retain_graph=True)
        own = [values for layer in found[name]["total"] for values in (layer["weight"], layer["bias"])]
        for mine, torchs in zip(own, gradients, strict=True):
            np.testing.assert_allclose(mine, torchs.flatten(), atol=1e-6)


def test_the_games_steps_are_adams():
    found = node(
        """
        const game = live.game(live.random(4)), before = JSON.stringify(game.D, plain);
        game.step();
        return [JSON.parse(before), game.D].map((net) => net.map(({ bias }) => bias));
        """
    )
    moved = np.abs(np.concatenate(found[1]) - np.concatenate(found[0]))
    assert moved.max() == pytest.approx(0.01, rel=1e-3)  # the first step is the learning rate, whatever the gradient


def test_the_elbo_has_the_terms_of_quadrature():
    mu, sigma, x, s = 0.4, 0.6, 0.8, 0.3
    found = node("return live.bound(0.4, 0.6, 0.8, 0.3, (z) => Math.tanh(1.5 * z));")
    of_x = lambda z: norm.logpdf(x, np.tanh(1.5 * z), s)  # noqa: E731
    reconstruction = quad(lambda z: -norm.pdf(z, mu, sigma) * of_x(z), -6, 6)[0]
    evidence = np.log(quad(lambda z: norm.pdf(z) * np.exp(of_x(z)), -8, 8)[0])
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mu, sigma), torch.distributions.Normal(0.0, 1.0)
    ).item()
    assert found["reconstruction"] == pytest.approx(reconstruction, rel=1e-4)
    assert found["kl"] == pytest.approx(kl, rel=1e-6)
    assert found["evidence"] == pytest.approx(evidence, rel=1e-4)
    q = np.array(found["q"])
    of_posterior = np.array(found["posterior"])
    gap = np.trapezoid(q * np.log(np.maximum(q, 1e-300) / of_posterior), found["z"])
    assert found["evidence"] - found["elbo"] == pytest.approx(gap, rel=1e-3)
