"""What a GPU computes against what the CPU does; skipped where torch finds none. Of stages: tests/test_abuse.py."""

import copy

import pytest
import torch
from conftest import GPU, needs_gpu

from genprior.inversion import RangeEnergy, cross_energies, relaxed_energy, screen, search
from genprior.operators import Identity, PhaselessFourier, Saturation, build_operator
from genprior.params import Network
from genprior.posterior import sample_posterior
from genprior.prior import Prior
from stages import train_vae

pytestmark = needs_gpu
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


def both(prior, operator, constraint, problems=6):
    """The same energy on the CPU and on the GPU, of measurements that the prior itself drew."""
    draw = torch.Generator().manual_seed(0)
    y = operator.A(prior.sample(problems, draw, True))
    y = y + 0.1 * torch.randn(y.shape, generator=draw)
    for device in ("cpu", GPU):
        there, moved = copy.deepcopy(prior).to(device), copy.deepcopy(operator).to(device)
        if constraint == "range":
            yield RangeEnergy(there.decode, moved, y.to(device), 0.1, None)
        else:
            yield relaxed_energy(there, moved, y.to(device), 0.1)


@pytest.mark.parametrize("constraint", ["range", "relaxed"])
@pytest.mark.parametrize("name", ["denoise", "inpaint", "blur", "super_resolution", "cs_25", *NOT_LINEAR])
def test_energies_and_their_derivatives(prior, params, name, constraint):
    draw = torch.Generator().manual_seed(0)
    operator = NOT_LINEAR.get(name) or build_operator(params.problems[name], (8, 8), draw)
    z, rows, noise = torch.randn(20, 4, generator=draw), torch.arange(20) % 6, torch.rand(20, generator=draw)
    found = []
    for energy in both(prior, operator, constraint):
        z, rows, noise = (values.to(energy.y.device) for values in (z, rows, noise))
        computed = [energy.value(z, rows), energy.value(z, rows, noise), energy.estimate(z, rows)]
        computed += [*energy.value_and_gradient(z, rows), *energy.model(z, rows)]
        if energy.fades:
            computed.append(cross_energies(energy, z, rows[:6], 0.1))
        assert {values.device.type for values in computed} == {energy.y.device.type}
        found.append([values.cpu() for values in computed])
    for on_cpu, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, on_cpu, rtol=2e-3, atol=2e-3 * on_cpu.abs().max().item())


def test_search_and_evidence(prior, params):
    operator = build_operator(params.problems["cs_25"], (8, 8), torch.Generator().manual_seed(0))
    depths, evidences, errors = [], [], []
    for energy in both(prior, operator, "relaxed"):
        draw = torch.Generator().manual_seed(1)
        starts = screen(energy, torch.randn(500, 4, generator=draw).to(energy.y.device), 2)
        modes = search(energy, starts, 40)
        depths.append(modes.energy.min(0).values.cpu())
        posterior = sample_posterior(energy, modes, 200, draw)
        assert posterior.images(lambda z, rows, e=energy, d=draw: e.draw(z, rows, d)).isfinite().all()
        evidences.append(posterior.log_evidence.cpu())
        errors.append(posterior.log_evidence_error.cpu())
    torch.testing.assert_close(*depths, rtol=0, atol=0.01)
    assert ((evidences[0] - evidences[1]).abs() < 5 * (errors[0] + errors[1]) + 1e-3).all()


def test_training_gives_the_same_bytes_again_and_is_as_good(patches, params):
    settings = params.train_vae.model_copy(update={"steps": 60, "batch_size": 64})
    network, elbos, weights = Network(latent_size=4, hidden=[16], activation="silu"), [], []
    for device in ("cpu", GPU, GPU):
        torch.manual_seed(0)
        data = patches.to(device)
        prior, curve = train_vae.train(data, data, network, settings, 0)
        elbos.append(curve.validation_elbo.iloc[-1])
        weights.append({name: tensor.cpu() for name, tensor in prior.state_dict().items()})
        z = torch.randn(5, 4)
        torch.testing.assert_close(prior.cpu().decode(z), prior.to(GPU).decode(z.to(GPU)).cpu(), rtol=0, atol=1e-4)
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])
    assert elbos[1] == pytest.approx(elbos[0], abs=0.1)


def test_log_likelihood_without_noise(prior):
    """K = I and no noise: the energy's own path."""
    found = []
    x, z = prior.sample(6, torch.Generator().manual_seed(0), True), torch.randn(20, 4)
    for device in ("cpu", GPU):
        there = copy.deepcopy(prior).to(device)
        energy = relaxed_energy(there, Identity(), x.to(device), 0.0)
        rows = torch.arange(6, device=device)
        found.append(cross_energies(energy, z.to(device), rows).cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-2)
