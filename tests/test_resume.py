"""Trainings that were interrupted go on to the bytes of undisturbed ones, and no other training's checkpoint does."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny
from test_training import NETWORK, gan_settings, residual_settings, vae_settings
from torch import nn

from genprior.layers import Encoder
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.files import write_array
from pipeline.params import Training
from pipeline.training import cosine_adam, descend, fit_residual
from stages import train_ae, train_discriminative, train_gan, train_vae

STEPS = 12
DATA = torch.arange(5)
SPECTRAL = {"loss": "hinge", "spectral_norm": True, "curvature": 1.0}


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
    settings = Training(steps=STEPS, batch_size=32, lr=0.01)
    prior, curve = train_ae.train(patches, patches, NETWORK, settings, 0, checkpoint)
    encoder = Encoder(prior.coefficients, **NETWORK.model_dump(), variational=True)
    residual = residual_settings(steps=STEPS, batch_size=32, warm_up=0.5)
    residual_curve = fit_residual(prior, encoder, patches, residual, 0, checkpoint)
    return [prior.state_dict(), encoder.state_dict()], [curve.to_dict(), residual_curve.to_dict()]


def vae(patches, checkpoint):
    found = [
        train_vae.train(patches, patches, NETWORK, vae_settings(steps=STEPS, **changed), 0, checkpoint)
        for changed in ({"objective": "chapter", "noise": "fixed"}, {"noise": "learned"})
    ]
    return [prior.state_dict() for prior, _ in found], [curve.to_dict() for _, curve in found]


def gan(patches, checkpoint):
    found = [
        train_gan.train(patches[:200], NETWORK, gan_settings(steps=STEPS, **changed), 0, checkpoint)
        for changed in ({}, SPECTRAL, {"loss": "wasserstein"})
    ]
    samples = {f"{i},{j}": row.pop("samples") for i, (_, rows) in enumerate(found) for j, row in enumerate(rows)}
    return [samples, *(prior.state_dict() for prior, _ in found)], [rows for _, rows in found]


def outcome(train, patches, checkpoint):
    """Every tensor and every curve's number of a stage's trainings, as it begins with the seed."""
    torch.manual_seed(0)
    states, curves = train(patches, checkpoint)
    return states, curves, torch.rand(1).item()


def same(a, b):
    (states, curves, drawn), (others, other_curves, other_drawn) = a, b
    assert curves == other_curves
    assert drawn == other_drawn  # the global generator is where it would have been
    for state, other in zip(states, others, strict=True):
        assert state.keys() == other.keys()
        assert [name for name in state if not torch.equal(state[name], other[name])] == []


@pytest.mark.parametrize(("train", "trainings"), [(autoencoder, 2), (vae, 2), (gan, 3)])
def test_training_that_dies_again_and_again_comes_to_the_same_bits(train, trainings, patches, params, tmp_path):
    undisturbed = outcome(train, patches, None)
    counting = Dying(tmp_path / "counting", params, patches)
    same(outcome(train, patches, counting), undisturbed)  # what is written on the way changes nothing
    assert counting.done == trainings * STEPS
    lives, found = [], None
    while found is None:
        lives.append(Dying(tmp_path / "dying", params, patches, last=5))
        with suppress(KeyboardInterrupt):
            found = outcome(train, patches, lives[-1])
    same(found, undisturbed)
    # a finished training is never repeated, nor are more than two steps of another
    assert sum(life.done for life in lives) <= counting.done + 2 * (len(lives) - 1)
    assert len(lives) > 3 * trainings
    lives[-1].remove()
    assert not (tmp_path / "dying").exists()


def small(checkpoint):
    """A training of one layer; returns the layer and the steps that it took."""
    torch.manual_seed(0)
    layer, taken = nn.Linear(3, 3), []
    optimizer, schedule = cosine_adam(layer, 0.1, STEPS)
    for step in resumable(STEPS, "small", checkpoint, [layer, optimizer, schedule], []):
        taken.append(step)
        x = torch.rand(2, 3)
        descend(lambda x: {"loss": layer(x).sum()}, (x,), layer, optimizer, schedule)
    return layer.weight, taken


@pytest.fixture
def killed(tmp_path, params):
    """The file that `small` leaves when it dies in its eighth step."""
    with pytest.raises(KeyboardInterrupt):
        small(Dying(tmp_path, params, DATA, last=8))
    return tmp_path / "1.state"


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


def test_damaged_or_foreign_checkpoint_is_passed_over(killed, params, tmp_path):
    undisturbed, whole = small(None)[0], killed.read_bytes()
    draw = torch.Generator().manual_seed(0)
    flips = [0, 31, 32, *torch.randint(len(whole), (30,), generator=draw).tolist()]  # one bit, anywhere
    damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in flips]
    for content in (b"", whole[:20], whole[: len(whole) // 2], bytes(len(whole)), whole + b"\0", *damaged):
        killed.write_bytes(content)
        weight, taken = small(Checkpoint(tmp_path, params, train_ae.__file__, DATA))
        assert taken == list(range(STEPS)), content
        assert torch.equal(weight, undisturbed)
    killed.write_bytes(whole)
    assert small(Checkpoint(tmp_path, params, train_ae.__file__, DATA))[1][0] == 6


def test_networks_for_their_problems_go_on_where_they_were(values, patches, tmp_path, monkeypatch):
    tiny(values)["extract_patches"]["patch_size"] = [8, 8]
    values["threads"] = 1
    values["train_discriminative"] |= {"steps": STEPS, "patience": 1, "lr": 0.03}
    names = values["problems"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    for split in ("train", "validation", "test"):
        write_array(tmp_path / f"data/patches/{split}.npy", patches.squeeze(1).numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)
    monkeypatch.setattr(train_discriminative, "CHECK", 1)
    save, taken, last = Checkpoint.save, [], STEPS + 8

    def counted(self, path, parts, rows, step):
        save(self, path, parts, rows, step)
        taken.append(step)
        if len(taken) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", counted)
    with pytest.raises(KeyboardInterrupt):
        train_discriminative.main()
    files = [Path("metrics/train_discriminative.json"), Path("data/reconstructions/discriminative.npy")]
    found = []
    for times in (1, 2):  # none was taken twice; then nothing is left to go on from
        last = None
        train_discriminative.main()
        assert len(taken) == times * len(names) * STEPS
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1]
