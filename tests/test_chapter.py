"""The chapter's printed numbers, to every digit."""

import os

import pytest

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


@pytest.mark.skipif("CHAPTER_PHOTOGRAPH" not in os.environ, reason="CHAPTER_PHOTOGRAPH names the chapter's photograph")
def test_networks_on_the_chapters_photograph():
    data = chapter.chapter_patches(os.environ["CHAPTER_PHOTOGRAPH"])
    assert list(chapter.autoencoder(data).values()) == [0.059913, 0.022438, 0.002200, 0.000236]
    assert [(e["recon"], e["kl"]) for e in chapter.variational_autoencoder(data).values()] == [
        (0.064360, 0.031250),
        (0.052795, 0.002086),
        (0.050103, 0.011786),
        (0.044030, 0.081561),
    ]
