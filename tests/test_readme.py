"""README.md: its Python example runs, and it is short."""

import re

import torch
from conftest import ROOT

from genprior.networks import PriorNetwork, save_network

README = (ROOT / "README.md").read_text()


def example(prior: str) -> str:
    """The README's Python example with another prior in place of its "vae": a name, or the path of a file."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return code.replace('load("vae")', f"load({prior!r})")


def test_python_example_runs(tmp_path, monkeypatch):
    torch.manual_seed(0)
    file = tmp_path / "tiny.safetensors"
    save_network(PriorNetwork((6, 6), 3, [8], "silu", "modulated"), file)
    monkeypatch.chdir(tmp_path)
    exec(example(str(file)), names := {})
    assert names["found"].x.shape == names["confined"].x.shape == (4, 1, 6, 6)
    assert names["post"].x.shape == (4, 200, 1, 6, 6)
    assert (names["low"] < names["high"]).all()


def test_is_short_and_begins_with_two_commands():
    assert len(README.splitlines()) <= 160
    first = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[0]
    assert [line.split("#")[0].strip() for line in first.splitlines()] == ["make repro", "make test"]
