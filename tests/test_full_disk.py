"""A full disk ends each way of writing with one line that names the file and says why, and leaves nothing of it."""

import resource
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from genprior.files import whole_file
from genprior.images import save_grid
from genprior.networks import PriorNetwork, save_network
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.files import reserve_array, write_array, write_csv, write_metrics
from pipeline.pictures import curve_figure
from pipeline.run import run
from stages.collect_images import collect


def train(file, params):
    """A training with a checkpoint."""
    checkpoint = Checkpoint(file.parent, params, __file__, torch.ones(3))
    for _ in resumable(3, "x", checkpoint, [torch.nn.Linear(200, 200)], []):
        pass


def reserve(file, params):
    with whole_file(file) as part:
        reserve_array(part, (100_000, 8, 8))


WRITERS = {
    "mapped.npy": reserve,
    "a.npy": lambda file, params: write_array(file, np.zeros(100_000)),
    "a.csv": lambda file, params: write_csv(file, pd.DataFrame({"a": np.arange(50_000)})),
    "a.json": lambda file, params: write_metrics(file, {str(i): i for i in range(20_000)}),
    "grid.png": lambda file, params: save_grid(file, np.random.default_rng(0).random((900, 16, 16))),
    "figure.png": lambda file, params: curve_figure(
        file, {f"{i}": (pd.DataFrame({"step": range(99), "y": range(99)}), ["y"]) for i in range(4)}
    ),
    "a.safetensors": lambda file, params: save_network(PriorNetwork((16, 16), 20, [64], "silu", "dct"), file),
    "checkpoints/1.state": train,
    ".part-standard/camera.png": lambda file, params: collect(["camera"], file.parent.with_name("standard")),
}


@pytest.fixture
def small_disk(tmp_path, monkeypatch):
    """A folder that takes no file beyond some 20 kB, and what the kernel says then."""
    # Python takes a file cut short for one that it wrote, and .venv would keep half the bytecode of a first import.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield tmp_path, "File too large"
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_ends_in_one_line(name, small_disk, params):
    folder, reason = small_disk
    with pytest.raises(SystemExit) as caught:
        run(lambda: WRITERS[name](folder / name, params))
    assert caught.value.code == f"error: {folder / name}: {reason}"  # Python prints it to stderr and exits with 1
    assert [path for path in folder.rglob("*") if path.is_file()] == []
