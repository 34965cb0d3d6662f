"""Ranks of torchrun end in the bytes of one process, and end together."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import PARAMS, ROOT, runner, surroundings, tiny

from genprior.files import InputError
from pipeline import ranks
from pipeline.params import PRIORS
from pipeline.ranks import OPTIONS


def run(folder: Path, stage: str, *arguments: str, ranks: int = 1, code: int = 0) -> str:
    """A stage in a folder, by so many ranks; returns what it prints."""
    options = {OPTIONS: f"--nproc-per-node={ranks}"} if ranks > 1 else {}
    command = (sys.executable, "-m", f"stages.{stage}", *arguments)
    return runner(folder)(*command, code=code, PYTHONPATH=str(ROOT), **options)


def prepared(folder: Path, extract: bool = True) -> Path:
    values = tiny(yaml.safe_load(PARAMS.read_text()))
    values["extract_patches"] |= {"patch_size": [8, 8], "image_size": 48}
    values["train_gan"] |= {"spectral_norm": True}
    values["problems"].pop("cs_50"), values["restore"]["problems"].pop("double")
    values["latent_weights"]["problem"] = values["report"]["posterior"] = "denoise"
    values["restore"]["stride"] = 4
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    run(folder, "collect_images")
    if extract:
        run(folder, "extract_patches")
    return folder


def written(folder: Path) -> dict[str, bytes]:
    files = [file for part in ("data", "metrics") for file in (folder / part).rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def clear(folder: Path, kept: dict[str, bytes]) -> None:
    for name in written(folder).keys() - kept.keys():
        (folder / name).unlink()


def compare(folder: Path, stages: list[list[str]], counts: tuple[int, ...]) -> None:
    before = written(folder)
    for stage in stages:
        run(folder, *stage)
    one = written(folder)
    for count in counts:
        clear(folder, before)
        for stage in stages:
            run(folder, *stage, ranks=count)
        assert written(folder) == one, count


@pytest.mark.process
def test_ranks_end_in_the_bytes_of_one_process(tmp_path):
    compare(prepared(tmp_path, extract=False), [["extract_patches"], ["train_svae"]], (2, 4))
    compare(tmp_path, [["evaluate", "svae"]], (2,))


@pytest.mark.slow
def test_ranks_of_every_stage_end_in_the_bytes_of_one_process(tmp_path):
    shared = [[name] for name in ("baselines", "train_discriminative", "restore")]
    stages = [["extract_patches"], *([f"train_{name}"] for name in PRIORS), *(["evaluate", name] for name in PRIORS)]
    compare(prepared(tmp_path, extract=False), [*stages, *shared], (2, 4))


@pytest.mark.process
def test_what_is_wrong_is_said_once(tmp_path):
    prepared(tmp_path)
    assert run(tmp_path, "train_svae", ranks=5, code=1).splitlines() == [
        "error: params.yaml: shards = 4: fewer than 5 ranks; as many would be right"
    ]
    assert not (tmp_path / "data/models").exists()
    (tmp_path / "data/patches/test.npy").unlink()
    said = run(tmp_path, "train_svae", ranks=2, code=1)
    assert said.startswith("error: data/patches/test.npy: not a readable .npy array: ")
    assert said.count("\n") == 1


def killed(folder: Path, delay: float, victim: int, *stage: str) -> None:
    """A stage by two ranks, of which one is killed after a while: one line, and nothing half-written."""
    environment = surroundings("GENPRIOR") | {"PYTHONPATH": str(ROOT), OPTIONS: "--nproc-per-node=2"}
    command = [sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe) as running:
        found, deadline = [], time.monotonic() + 60
        while len(found) < 2 and time.monotonic() < deadline:
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            found = [int(child) for child in children if b"stages." in Path(f"/proc/{child}/cmdline").read_bytes()]
            time.sleep(0.05)
        time.sleep(delay)
        os.kill(found[victim], signal.SIGKILL)
        out, said = running.communicate(timeout=60)
    assert running.returncode == 1, said
    assert out + said == "error: a rank was killed by signal 9, perhaps for want of memory\n"
    assert not [*folder.glob("data/**/.part-*"), *folder.glob("metrics/.part-*")]


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stage", [("train_svae",), ("evaluate", "svae")])
def test_after_a_killed_rank_the_next_run_ends_in_the_same_bytes(tmp_path, stage, count):
    prepared(tmp_path)
    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    values["train_svae"]["steps"], values["evaluate"]["mean_samples"] = 1500, 2000
    values["evaluate"]["patches"] = 100
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    if stage[0] == "evaluate":
        run(tmp_path, "train_svae")
    before, draw = written(tmp_path), random.Random(0)
    run(tmp_path, *stage)
    undisturbed = written(tmp_path)
    clear(tmp_path, before)
    for number in range(count):
        killed(tmp_path, draw.uniform(1, 3), number % 2, *stage)
    run(tmp_path, *stage, ranks=2)
    assert written(tmp_path) == undisturbed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_training_goes_on_with_another_number_of_ranks(tmp_path):
    before = written(prepared(tmp_path))
    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    values["train_svae"]["steps"] = 12_000
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    run(tmp_path, "train_svae")
    undisturbed = written(tmp_path)
    clear(tmp_path, before)
    killed(tmp_path, 20, 1, "train_svae")
    assert [*(tmp_path / ".checkpoints/train_svae").iterdir()]  # written every 15 seconds
    run(tmp_path, "train_svae", ranks=4)
    assert written(tmp_path) == undisturbed


@pytest.mark.process
@pytest.mark.parametrize("options", ["--nproc-per-node=abc", "--no-such=1", "'"])
def test_options_that_torchrun_does_not_know_are_refused_in_one_line(tmp_path, monkeypatch, options):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", SimpleNamespace(name="stages.sample"), raising=False)
    with pytest.raises(InputError, match="torchrun's options would be right"):
        ranks.start(options)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch finds no two GPUs")
def test_ranks_of_a_gpu_each(tmp_path):
    prepared(tmp_path)
    values = yaml.safe_load((tmp_path / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values | {"device": "cuda"}))
    compare(tmp_path, [["train_svae"]], (2,))
