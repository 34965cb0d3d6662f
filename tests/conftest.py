"""What several test modules share."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from genprior.params import Params

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _torch_as_the_stages_set_it():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def values() -> dict:
    """The committed params.yaml as plain values, to be changed at will."""
    return yaml.safe_load((ROOT / "params.yaml").read_text())


@pytest.fixture
def params(values) -> Params:
    """The committed params.yaml."""
    return Params.model_validate(values)


@pytest.fixture(scope="session")
def patches() -> torch.Tensor:
    """Smooth random patches, uint8 (600, 1, 8, 8): enough structure to learn in seconds."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[0:8, 0:8] / 8
    phase, angle, level, contrast = draw.random((4, 600, 1, 1))
    waves = np.sin(2 * np.pi * (rows * np.cos(6 * angle) + columns * np.sin(6 * angle) + phase))
    return torch.from_numpy((255 * (0.2 + 0.6 * level + 0.2 * contrast * waves)).clip(0, 255).astype(np.uint8))[:, None]
