"""What a GPU computes against what the CPU does; skipped where there is none. tests/test_abuse.py runs stages there."""

import copy
import math
from itertools import product

import pytest
import torch
from conftest import needs_gpu
from genprior.posterior import laplace_mixture, posterior_mean, sample_posterior

from examples.operators import PhaselessFourier, Saturation
from genprior.energies import RangeEnergy, by_parts, cross_energies, relaxed_energy
from genprior.inversion import screen, search
from genprior.networks import Prior
from pipeline.params import Network
from pipeline.problems import build_operator
from stages import train_vae

pytestmark = needs_gpu
LINEAR = ("denoise", "inpaint", "blur", "super_resolution", "cs_25")
NOT_LINEAR = {"phaseless": PhaselessFourier((8, 8)), "saturation": Saturation(0.0, 0.7)}


@pytest.fixture(params=["dct", "modulated"])
def prior(request, patches) -> Prior:
    """Untrained, its weights moved from where codes do nothing."""
    torch.manual_seed(0)
    prior = Prior((8, 8), latent_size=4, hidden=[16], activation="silu", noise=request.param, encoder="variational")
    prior.coefficients.fit(patches / 255)
    for weights in prior.decoder.parameters():
        weights.data.add_(0.1 * torch.randn(weights.shape))
    return prior.eval().requires_grad_(False)


def both(prior, operator, constraint, sigma=0.1, problems=6, dtype=torch.float32):
    """The same energy on the CPU and on the GPU, of measurements that the prior itself drew."""
    draw = torch.Generator().manual_seed(0)
    y = operator.A(prior.sample(problems, draw, True))
    y = y + sigma * torch.randn(y.shape, generator=draw)
    for device in ("cpu", "cuda"):
        there, moved = copy.deepcopy(prior).to(device, dtype), copy.deepcopy(operator).to(device, dtype)
        if constraint == "range":
            yield RangeEnergy(there.decode, moved, y.to(device, dtype), sigma, None)
        else:
            yield relaxed_energy(there, moved, y.to(device, dtype), sigma)


@pytest.mark.parametrize(
    ("name", "constraint", "sigma"),
    [
        *product(LINEAR + tuple(NOT_LINEAR), ("range", "relaxed"), (0.1,)),
        ("denoise", "relaxed", 0.0),  # as log p(x) is found
    ],
)
def test_energies_and_their_derivatives(prior, params, name, constraint, sigma):
    """In float64: in float32 a code beside a kink, where a Fourier magnitude is 0, has a gradient of either side."""
    draw = torch.Generator().manual_seed(0)
    operator = NOT_LINEAR.get(name) or build_operator(params.problems[name], (8, 8), draw)
    z, rows, noise = torch.randn(20, 4, generator=draw), torch.arange(20) % 6, torch.rand(20, generator=draw)
    z, noise, found = z.double(), noise.double(), []
    for energy in both(prior, operator, constraint, sigma, dtype=torch.float64):
        z, rows, noise = (values.to(energy.y.device) for values in (z, rows, noise))
        computed = [energy.value(z, rows), energy.value(z, rows, noise), energy.estimate(z, rows)]
        computed += [*energy.value_and_gradient(z, rows), *by_parts(energy.model, 7, z, rows)]
        if energy.fades:
            computed.append(cross_energies(energy, z, rows[:6], 0.1))
        assert {values.device.type for values in computed} == {energy.y.device.type}
        found.append([values.cpu() for values in computed])
    for on_cpu, on_gpu in zip(*found, strict=True):
        each = on_cpu.flatten(1).abs().amax(1) if on_cpu.dim() > 1 else on_cpu.abs()  # each code in its own measure
        error = (on_gpu - on_cpu).abs().reshape(len(each), -1).amax(1)
        assert (error <= 1e-8 * (each + 1)).all()


def test_search_evidence_and_posterior_mean(prior, params):
    operator = build_operator(params.problems["cs_25"], (8, 8), torch.Generator().manual_seed(0))
    depths, means, evidences, errors = [], [], {0.5: [], 2.0: []}, {0.5: [], 2.0: []}
    for energy in both(prior, operator, "relaxed"):
        draw = torch.Generator().manual_seed(1)
        starts = screen(energy, torch.randn(500, 4, generator=draw).to(energy.y.device), 2)
        modes = search(energy, starts, 40)
        depths.append(modes.energy.min(0).values.cpu())
        means.append(posterior_mean(energy, laplace_mixture(energy, modes), 400, draw, math.inf).cpu())
        for enough in evidences:  # importance sampling where it does, annealing everywhere
            posterior = sample_posterior(energy, modes, 200, draw, enough)
            assert posterior.images(lambda z, rows, e=energy, d=draw: e.draw(z, rows, d)).isfinite().all()
            evidences[enough].append(posterior.log_evidence.cpu())
            errors[enough].append(posterior.log_evidence_error.cpu())
    torch.testing.assert_close(*depths, rtol=0, atol=0.01)
    torch.testing.assert_close(*means, rtol=0, atol=0.05)
    for enough, (on_cpu, on_gpu) in evidences.items():
        assert ((on_cpu - on_gpu).abs() < 5 * sum(errors[enough]) + 1e-3).all()


@pytest.mark.parametrize("noise", ["dct", "modulated"])
def test_training_and_inversion_give_the_same_bytes_again(patches, params, noise):
    settings = params.train_vae.model_copy(update={"steps": 60, "batch_size": 64, "noise": noise})
    network, elbos, results = Network(latent_size=4, hidden=[16], activation="silu"), [], []
    operator = build_operator(params.problems["cs_25"], (8, 8), torch.Generator().manual_seed(0))
    for device in ("cpu", "cuda", "cuda"):
        torch.manual_seed(0)
        data = patches.to(device)
        prior, curve = train_vae.train(data, data, network, settings, 0)
        elbos.append(curve.validation_elbo.iloc[-1])
        there, draw = copy.deepcopy(operator).to(device), torch.Generator().manual_seed(0)
        energy = relaxed_energy(prior, there, there.A(data[:20] / 255), 0.01)
        modes = search(energy, torch.randn(2, 20, 4, generator=draw).to(device), 20)
        mean = posterior_mean(energy, laplace_mixture(energy, modes), 50, draw, math.inf)
        found = [*prior.state_dict().values(), modes.z, mean]
        results.append([tensor.cpu() for tensor in found])
    assert all(map(torch.equal, results[1], results[2]))
    assert elbos[1] == pytest.approx(elbos[0], abs=0.1)
