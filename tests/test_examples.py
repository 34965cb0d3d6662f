"""The examples run, and what they say holds."""

import re
import runpy
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

import genprior
from examples import deepinv_model, intervals, own_model, own_operator, own_prior
from genprior.networks import PriorNetwork, save_network
from genprior.operators import Inpainting


@pytest.fixture
def file(tmp_path):
    """A small prior whose samples differ."""
    torch.manual_seed(0)
    network = PriorNetwork((8, 8), 3, [16], "silu", "dct")
    network.coefficients.fit(0.5 + 0.1 * torch.randn(500, 1, 8, 8))
    save_network(network, tmp_path / "small.safetensors")
    return str(tmp_path / "small.safetensors")


def test_a_prior_of_ones_own_photographs(tmp_path, capsys):
    picture = np.random.default_rng(0).normal(120, 20, (40, 40)).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "own.png")
    own_prior.main(str(tmp_path / "own.safetensors"), str(tmp_path / "own.png"), steps=60)
    first, last = (float(found) for found in re.findall(r"ELBO (\S+)", capsys.readouterr().out))
    assert last > first
    x = genprior.load(tmp_path / "own.safetensors").sample(500)
    assert x.mean().item() == pytest.approx(120 / 255, abs=0.03)
    assert x.std().item() == pytest.approx(20 / 255, rel=0.3)


def test_an_operator_of_ones_own(file, capsys):
    own_operator.main(file)
    assert re.match(r"16 numbers for 64 pixels: they are found to within 0\.0\d\d\n", capsys.readouterr().out)


def test_intervals_hold_what_they_say_and_the_evidence_tells_the_noise(file, capsys):
    intervals.main(file)
    out = capsys.readouterr().out
    assert 80 <= int(re.search(r"hold (\d+)%", out)[1]) <= 97
    half, true, twice = (float(found) for found in re.findall(r"= (-?[\d.]+) nats", out))
    assert true > half
    assert true > twice


def test_a_model_in_closed_form_is_its_gaussian(tmp_path):
    draw = np.random.default_rng(0)
    patches = (0.5 + 0.05 * draw.normal(size=(400, 6)) @ draw.normal(size=(6, 64)) / 3).reshape(-1, 8, 8)
    patches += 0.02 * draw.normal(size=patches.shape)
    np.save(tmp_path / "patches.npy", np.rint(255 * patches.clip(0, 1)).astype(np.uint8))
    own_model.main(str(tmp_path / "ppca.safetensors"), str(tmp_path / "patches.npy"))
    x = torch.from_numpy(np.load(tmp_path / "patches.npy")).double().flatten(1) / 255
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T))
    values[:-20] = values[:-20].mean()
    covariance = torch.from_numpy((vectors * values) @ vectors.T)
    expected = torch.distributions.MultivariateNormal(x.mean(0), covariance).log_prob(x[:5])
    prior, patches = genprior.load(tmp_path / "ppca.safetensors"), x[:5].float().reshape(5, 1, 8, 8)
    torch.testing.assert_close(prior.log_prob(patches).double(), expected, atol=0.3, rtol=1e-3)
    # E[z | x] is where the posterior of x itself, seen with no more noise than s, has its mode
    s = float(np.sqrt(values[0]))
    found = genprior.restore(prior.range, genprior.operators.Identity(), patches, s)
    torch.testing.assert_close(found.z.as_subclass(torch.Tensor), prior.network.encode(patches), atol=2e-3, rtol=1e-2)


def test_a_physics_of_deepinv_meets_our_prior(file):
    prior, draw = genprior.load(file), torch.Generator().manual_seed(0)
    for shape in ((8, 8), (20, 24)):
        physics = Inpainting(torch.rand(shape, generator=draw) < 0.5)
        physics.noise_model = SimpleNamespace(sigma=torch.tensor(0.05))
        y = genprior.measure(physics, torch.full((2, 1, *shape), 0.5), 0.05, seed=1)
        found = deepinv_model.Reconstructor(prior)(y, physics)
        assert found.shape == (2, 1, *shape)
        assert (found - 0.5).square().mean().sqrt() < 0.15


def test_the_chapters_notebook_runs(capsys):
    matplotlib.use("agg")
    runpy.run_module("examples.chapter_notebook")
    matplotlib.pyplot.close("all")
    assert "90 % intervals hold" in capsys.readouterr().out
