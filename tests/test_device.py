"""What a GPU computes against what the CPU does; skipped where there is none. tests/test_abuse.py runs stages there."""

import copy
from itertools import product

import pytest
import torch
from conftest import needs_gpu
from test_training import NETWORK, svae_settings

import genprior
from examples.operators import PhaselessFourier, Saturation
from genprior.energies import energy_of
from genprior.networks import PriorNetwork
from genprior.views import Prior
from pipeline.problems import build_operator
from stages import train_svae

pytestmark = needs_gpu
LINEAR = ("denoise", "inpaint", "blur", "super_resolution", "cs_25")
NOT_LINEAR = {"phaseless": PhaselessFourier((8, 8)), "saturation": Saturation(0.0, 0.7)}
DEVICES = ("cpu", "cuda")


@pytest.fixture(params=["dct", "modulated"])
def network(request, patches) -> PriorNetwork:
    """Untrained, its weights moved from where codes do nothing."""
    torch.manual_seed(0)
    network = PriorNetwork((8, 8), 4, [16], "silu", request.param, "variational")
    network.coefficients.fit(patches / 255)
    for weights in network.decoder.parameters():
        weights.data.add_(0.1 * torch.randn(weights.shape))
    return network.eval().requires_grad_(False)


def on(device, dtype, network, operator):
    return Prior(copy.deepcopy(network).to(device, dtype)), copy.deepcopy(operator).to(device, dtype)


@pytest.mark.parametrize(
    ("name", "confined", "sigma"),
    [*product((*LINEAR, *NOT_LINEAR), (True, False), (0.1,)), ("denoise", False, 0.0)],  # as log p(x) is found
)
def test_energies_and_their_derivatives(network, params, name, confined, sigma):
    """In float64: in float32 a code beside a kink, where a Fourier magnitude is 0, has a gradient of either side."""
    draw, found = torch.Generator().manual_seed(0), []
    operator = NOT_LINEAR.get(name) or build_operator(params.problems[name], (8, 8), draw)
    y, z, rows = genprior.measure(operator, Prior(network).sample(6), 0.1), torch.randn(20, 4), torch.arange(20) % 6
    for device in DEVICES:
        prior, moved = on(device, torch.float64, network, operator)
        energy = energy_of(prior.range if confined else prior, moved, y.to(device).double(), sigma)
        codes, of = z.to(device).double(), rows.to(device)
        computed = [energy.value(codes, of), energy.estimate(codes, of), energy.of_all(codes, of[:6])]
        computed += [*energy.value_and_gradient(codes, of), *energy.derivatives(codes, of)]
        assert {values.device.type for values in computed} == {device}
        found.append([values.cpu() for values in computed])
    for on_cpu, on_gpu in zip(*found, strict=True):
        each = on_cpu.reshape(20, -1).abs().amax(1)  # each code in its own measure
        assert ((on_gpu - on_cpu).reshape(20, -1).abs().amax(1) <= 1e-8 * (each + 1)).all()


@pytest.mark.parametrize("noise", ["dct", "modulated"])
def test_training_and_inversion_give_the_same_bytes_again(patches, params, noise):
    settings, elbos, results = svae_settings(steps=60, batch_size=64, noise=noise), [], []
    operator = build_operator(params.problems["cs_25"], (8, 8), torch.Generator().manual_seed(0))
    for device in (*DEVICES, DEVICES[1]):
        torch.manual_seed(0)
        data = patches.to(device)
        network, curve = train_svae.train(data, data, NETWORK, settings, 0)
        elbos.append(curve.validation_elbo.iloc[-1])
        prior, moved = on(device, torch.float32, network, operator)
        restored = genprior.restore(prior, moved, moved.A(data[:20] / 255), 0.01)
        results.append([tensor.cpu() for tensor in (*network.state_dict().values(), restored.z, restored.mean(50))])
    assert all(map(torch.equal, results[1], results[2]))
    assert elbos[1] == pytest.approx(elbos[0], abs=0.1)
