"""The chapter's printed numbers, to every digit that does not depend on the kind of CPU."""

import os

import numpy as np
import pytest
import torch

from stages import chapter


def test_elbo():
    found = chapter.elbo()
    assert found["reconstruction"] == 0.8500000238418579
    assert found["kl"] == 0.2282220721244812
    assert found["elbo"] == -1.0782220363616943


def test_reparameterisation():
    assert [(d["z1"], d["z2"]) for d in chapter.reparameterisation().values()] == [
        (1.7705, -1.0734),
        (-0.0894, -0.8579),
        (0.4577, -1.3496),
        (1.2017, -0.7905),
        (0.6404, -1.1008),
    ]


def test_gan_losses():
    found = chapter.gan_losses()
    assert found["discriminator"] == 0.5608953237533569
    assert found["generator"] == 1.0702883005142212
    assert list(found["d_real"].values()) == [0.9241, 0.8581, 0.9608]
    assert list(found["d_fake"].values()) == [0.2315, 0.3318, 0.5250]


def test_gan_1d():
    found = chapter.gan_1d().values()
    assert [(s["d_loss"], s["g_loss"], s["fake_mean"]) for s in found] == [
        (1.4222, 0.6463, 0.1051),
        (1.2525, 1.2192, 2.9288),
        (1.3479, 0.6396, 1.4250),
        (1.2644, 1.2425, 2.3706),
    ]
    # What the chapter does not print: the spread of a target of 0.2 oscillates and collapses.
    assert [round(s["fake_std"], 3) for s in found] == [0.279, 0.268, 0.069, 0.043]


@pytest.fixture(scope="module")
def data():
    if "CHAPTER_PHOTOGRAPH" not in os.environ:
        pytest.skip("CHAPTER_PHOTOGRAPH names the chapter's photograph")
    return chapter.chapter_patches(os.environ["CHAPTER_PHOTOGRAPH"])


def test_variational_autoencoder(data):
    assert [(e["recon"], e["kl"]) for e in chapter.variational_autoencoder(data).values()] == [
        (0.064360, 0.031250),
        (0.052795, 0.002086),
        (0.050103, 0.011786),
        (0.044030, 0.081561),
    ]


def test_autoencoder(data, monkeypatch):
    """200 steps of Adam amplify the last bits, which each kind of CPU rounds in its own way.

    So the chapter's numbers are compared with those of 20 trainings whose first weights are rounded anew: the first to
    every digit, the others within three of their standard deviations.
    """
    draw, mlp = torch.Generator().manual_seed(1), chapter.mlp

    def rounded(sizes):
        network = mlp(sizes)
        for weight in network.parameters():
            up = torch.rand(weight.shape, generator=draw) < 0.5
            weight.data = torch.where(up, weight.nextafter(torch.tensor(1.0)), weight.nextafter(torch.tensor(-1.0)))
        return network

    monkeypatch.setattr(chapter, "mlp", rounded)
    found = np.array([[*chapter.autoencoder(data).values()] for _ in range(20)])
    assert (found[:, 0] == 0.059913).all()
    off = np.abs([0.022438, 0.002200, 0.000236] - found[:, 1:].mean(0))
    assert (off < 3 * found[:, 1:].std(0, ddof=1)).all(), found
    assert (found.std(0) < 0.1 * found.mean(0)).all()
