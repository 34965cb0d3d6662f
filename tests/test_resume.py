"""Trainings that were interrupted go on to the bytes of undisturbed ones, and no other training's checkpoint does."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny
from safetensors.torch import save
from test_training import NETWORK, gan_settings, vae_settings
from torch import nn

from genprior.images import dct_basis
from genprior.layers import Encoder
from pipeline.classical import fit_gaussian_prior
from pipeline.files import write_array
from pipeline.params import CompressedSensing, Residual, TrainAE, TrainDiscriminative
from pipeline.patches import to_unit
from pipeline.problems import pose
from pipeline.training import Checkpoint, cosine_adam, fit_residual, resumable
from stages import train_ae, train_discriminative, train_gan, train_vae

STEPS = 12
DATA = torch.arange(5)
SPECTRAL = {"loss": "hinge", "spectral_norm": True, "curvature": 1.0}


@pytest.fixture(autouse=True)
def _one_thread(_torch_as_the_stages_set_it):
    torch.set_num_threads(1)  # matrices too small to share


class Dying(Checkpoint):
    """Written after every third step; the process "dies" in its `last` step, whatever training that is in."""

    def __init__(self, folder, params, data, last=None):
        super().__init__(folder, params, train_ae.__file__, data)
        self.last, self.done = last, 0

    def due(self):
        self.done += 1
        if self.done == self.last:
            raise KeyboardInterrupt
        return self.done % 3 == 0


def autoencoder(patches, checkpoint):
    """The stage's two trainings, one after the other."""
    prior, curve = train_ae.train(
        patches, patches, NETWORK, TrainAE(steps=STEPS, batch_size=32, lr=0.01), 0, checkpoint
    )
    encoder = Encoder(prior.coefficients, **NETWORK.model_dump(), variational=True)
    settings = Residual(steps=STEPS, batch_size=32, lr=0.01, noise="dct", code_weight=0.1, warm_up=0.5)
    residual_curve = fit_residual(prior, encoder, patches, settings, 0, checkpoint)
    return [prior, encoder], [curve, residual_curve]


def vae(patches, checkpoint):
    found = [
        train_vae.train(patches, patches, NETWORK, vae_settings(steps=STEPS, **changed), 0, checkpoint)
        for changed in ({}, {"objective": "chapter", "noise": "fixed"}, {"noise": "learned"})
    ]
    return [prior for prior, _ in found], [curve for _, curve in found]


def gan(patches, checkpoint):
    found = [
        train_gan.train(patches[:200], NETWORK, gan_settings(steps=STEPS, **changed), 0, checkpoint)
        for changed in ({}, SPECTRAL, {"loss": "wasserstein"})
    ]
    return [prior for prior, _ in found], [curve for _, curve in found]


def discriminative(patches, checkpoint):
    x = to_unit(patches)
    gaussian = fit_gaussian_prior(x.flatten(1).double().numpy(), dct_basis(8, 8), 1, 1, 0)
    prior = torch.from_numpy(gaussian.mean[0]), torch.from_numpy(gaussian.covariance[0])
    problem = pose({"s": CompressedSensing(operator="gaussian", measurements=5, sigma=0.01)}, x[:50], 0)[0]
    settings = TrainDiscriminative(steps=STEPS, batch_size=32, lr=0.003, hidden=[16])
    return [train_discriminative.train(problem, patches, settings, prior, 0, checkpoint)], []


def outcome(train, patches, checkpoint):
    """Every tensor and every curve's number of a stage's trainings, as it begins with the seed."""
    torch.manual_seed(0)
    networks, curves = train(patches, checkpoint)
    return [network.state_dict() for network in networks], [curve.to_dict() for curve in curves], torch.rand(1).item()


def same(a, b):
    (weights, curves, drawn), (others, other_curves, other_drawn) = a, b
    assert curves == other_curves
    assert drawn == other_drawn  # the global generator is where it would have been
    for state, other in zip(weights, others, strict=True):
        assert state.keys() == other.keys()
        assert [name for name in state if not torch.equal(state[name], other[name])] == []


@pytest.mark.parametrize("train", [autoencoder, vae, gan, discriminative])
def test_killed_training_resumes_to_the_same_bits(train, patches, params, tmp_path):
    undisturbed = outcome(train, patches, None)
    counting = Dying(tmp_path / "counting", params, patches)
    same(outcome(train, patches, counting), undisturbed)  # what is written on the way changes nothing
    total = counting.done
    assert total == STEPS * {autoencoder: 2, vae: 3, gan: 3, discriminative: 1}[train]
    for last in {2, 7, total // 2 + 2, total}:
        folder = tmp_path / str(last)
        with pytest.raises(KeyboardInterrupt):
            outcome(train, patches, Dying(folder, params, patches, last))
        resumed = Dying(folder, params, patches)
        same(outcome(train, patches, resumed), undisturbed)
        # A finished training is never repeated, nor are more than two steps of another.
        assert total - resumed.done >= last - 1 - 2
        resumed.remove()
        assert not folder.exists()


def test_networks_for_their_problems_go_on_where_they_were(values, patches, tmp_path, monkeypatch):
    tiny(values)["extract_patches"]["patch_size"] = [8, 8]
    values["threads"], values["train_discriminative"]["steps"] = 1, STEPS
    names = values["problems"] = {name: values["problems"][name] for name in ("denoise", "inpaint", "cs_50")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    for split in ("train", "test"):
        write_array(tmp_path / f"data/patches/{split}.npy", patches.squeeze(1).numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    save, taken, last = Checkpoint.save, [], STEPS + 3

    def counted(self, path, parts, rows, step):
        save(self, path, parts, rows, step)
        taken.append(step)
        if len(taken) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", counted)
    with pytest.raises(KeyboardInterrupt):
        train_discriminative.main()
    last = None
    train_discriminative.main()
    assert len(taken) == len(names) * STEPS  # none was taken twice
    files = [Path("metrics/train_discriminative.json"), Path("data/reconstructions/discriminative.npy")]
    found = [file.read_bytes() for file in files]
    train_discriminative.main()
    assert len(taken) == 2 * len(names) * STEPS  # nothing was left to go on from
    assert found == [file.read_bytes() for file in files]


def test_training_that_dies_again_and_again_comes_to_the_same_bits(patches, params, tmp_path):
    undisturbed, deaths = outcome(gan, patches, None), 0
    while True:
        try:
            found = outcome(gan, patches, Dying(tmp_path, params, patches, last=4))
            break
        except KeyboardInterrupt:
            deaths += 1
    same(found, undisturbed)
    assert deaths > 6


def small(checkpoint):
    """A training of one layer; returns the layer and the steps that it took."""
    torch.manual_seed(0)
    layer, taken = nn.Linear(3, 3), []
    optimizer, schedule = cosine_adam(layer, 0.1, STEPS)
    for step in resumable(STEPS, "small", checkpoint, [layer, optimizer, schedule], []):
        taken.append(step)
        optimizer.zero_grad()
        layer(torch.rand(2, 3)).sum().backward()
        optimizer.step()
        schedule.step()
    return layer.weight, taken


@pytest.fixture
def killed(tmp_path, params):
    """The file that `small` leaves when it dies in its eighth step."""
    with pytest.raises(KeyboardInterrupt):
        small(Dying(tmp_path, params, DATA, last=8))
    return tmp_path / "1.safetensors"


def test_only_the_same_run_resumes(killed, params, tmp_path):
    def first_step(params=params, script=train_ae.__file__, data=DATA):
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(killed, folder)
        return small(Checkpoint(folder, params, script, data))[1][0]

    assert first_step() == 6
    assert first_step(params=params.model_copy(update={"seed": 1})) == 0
    other = params.train_ae.model_copy(update={"lr": 0.0020001})
    assert first_step(params=params.model_copy(update={"train_ae": other})) == 0
    assert first_step(script=train_vae.__file__) == 0
    assert first_step(data=DATA + 1) == 0


def damaged(whole):
    """A checkpoint's bytes after many mishaps, and files that are none."""
    yield from (b"", whole[: len(whole) // 2], bytes(len(whole)), b"PK\x03\x04" + whole, whole + b"\0")
    draw = torch.Generator().manual_seed(0)
    for i in torch.randint(len(whole), (100,), generator=draw).tolist():  # one bit, in the header or in a weight
        yield whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]
    for metadata in (None, {"prior": "{}"}, {"training": "5"}, {"training": "[1, 2]"}, {"training": '["{}", "0"]'}):
        yield save({"0": torch.ones(3)}, metadata)


def test_damaged_or_foreign_checkpoint_is_passed_over(killed, params, tmp_path):
    undisturbed, whole = small(None)[0], killed.read_bytes()
    for content in damaged(whole):
        killed.write_bytes(content)
        weight, taken = small(Checkpoint(tmp_path, params, train_ae.__file__, DATA))
        assert taken == list(range(STEPS)), content
        assert torch.equal(weight, undisturbed)
    killed.write_bytes(whole)
    assert small(Checkpoint(tmp_path, params, train_ae.__file__, DATA))[1][0] == 6


def test_short_training_is_written_at_its_end_only(params, tmp_path):
    checkpoint = Checkpoint(tmp_path, params, train_ae.__file__, DATA)
    checkpoint.save = lambda path, parts, rows, step: written.append(step)
    written = []
    small(checkpoint)
    assert written == [STEPS]
    checkpoint.every = 0
    small(checkpoint)
    assert written == [STEPS, *range(1, STEPS + 1)]
