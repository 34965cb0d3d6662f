"""Stages solve their problems in processes of their own: the same bytes from one or two, one line, and none left."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import torch
import yaml
from conftest import ROOT, tiny
from threadpoolctl import threadpool_info

from genprior.networks import Prior, save_network
from pipeline.files import write_array
from pipeline.params import load_params
from pipeline.patches import to_unit
from stages import evaluate

pytestmark = pytest.mark.process
# What a shell runs in the background ignores Ctrl-C, and hands that on to its tests and to what they start.
HEARD = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])"
)


@pytest.fixture
def stage(tmp_path, values, patches):
    """A folder, and `start(threads, command, **changed)`, which runs a stage in it with these settings of `evaluate`.

    By default that evaluates an untrained autoencoder.
    """
    (tmp_path / "data/models").mkdir(parents=True)
    torch.manual_seed(0)
    prior = Prior((8, 8), 3, [8], "silu", "dct", "plain")
    prior.coefficients.fit(to_unit(patches))
    save_network(prior.eval().requires_grad_(False), tmp_path / "data/models/ae.safetensors")
    for split in ("train", "test"):
        write_array(tmp_path / f"data/patches/{split}.npy", patches.squeeze(1).numpy())
    tiny(values)["extract_patches"]["patch_size"] = [8, 8]
    values["problems"] = {name: values["problems"][name] for name in ("denoise", "inpaint", "cs_50")}

    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    started = []

    def start(threads, command="stages.evaluate ae", **changed):
        values["threads"] = threads
        values["evaluate"] |= changed
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
        with (tmp_path / "stderr").open("w") as stderr:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", HEARD, *command.split()],
                    cwd=tmp_path,
                    env=os.environ | {"PYTHONPATH": str(ROOT)},
                    stderr=stderr,
                    start_new_session=True,
                )
            )
        return started[-1]

    yield tmp_path, start
    for running in started:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def children_of(running, user_seconds):
    """The processes that a stage's pool has begun, once both have used so much of the processor's time."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert running.poll() is None
        with suppress(psutil.Error):
            children = psutil.Process(running.pid).children()
            children = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
            if len(children) == 2 and all(child.cpu_times().user > user_seconds for child in children):
                return children
        time.sleep(0.05)
    raise AssertionError("no two processes")


def written(folder):
    """Every file that the stage wrote."""
    files = [*folder.glob("metrics/*"), *folder.glob("data/reconstructions/*")]
    return {file.name: file.read_bytes() for file in files}


def test_a_process_has_one_thread(stage, monkeypatch):
    folder, _ = stage
    monkeypatch.chdir(folder)
    params = load_params("params.yaml")
    assert params.threads == 2
    evaluate.work("ae", params, "representation")
    assert torch.get_num_threads() == 1
    assert {pool["num_threads"] for pool in threadpool_info()} == {1}


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has one process")
@pytest.mark.parametrize(("command", "files"), [("stages.evaluate ae", 5), ("stages.train_discriminative", 2)])
def test_two_processes_write_what_one_writes(stage, command, files):
    folder, start = stage
    found = []
    for threads in (1, 2):
        assert start(threads, command).wait(120) == 0, (folder / "stderr").read_text()
        assert not list(folder.glob(".checkpoints/*"))
        found.append(written(folder))
        for file in (*folder.glob("metrics/*"), *folder.glob("data/reconstructions/*")):
            file.unlink()
    assert len(found[0]) == files
    assert found[0] == found[1]


AT_WORK = 6  # seconds of the processor; imports take three
LONG = {"patches": 300, "mean_samples": 1500, "posterior_patches": 300, "posterior_samples": 1500}  # minutes


@pytest.mark.parametrize(
    ("number", "user_seconds"),
    [(signal.SIGINT, 0.5), (signal.SIGINT, AT_WORK), (signal.SIGTERM, AT_WORK), (signal.SIGKILL, AT_WORK)],
)
def test_no_process_outlives_its_stage(stage, number, user_seconds):
    """Once all are at work, and Ctrl-C also while they still import."""
    folder, start = stage
    running = start(2, **LONG)
    children = children_of(running, user_seconds)
    if number == signal.SIGINT:  # Ctrl-C goes to all that a terminal started
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    assert running.wait(20) == (130 if number == signal.SIGINT else -number)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    # Python's own tracker of semaphores tells of what a killed process left it to clean up.
    lines = (folder / "stderr").read_text().splitlines()
    assert lines == [] or (number != signal.SIGINT and "resource_tracker" in lines[0] and len(lines) == 2)
    assert written(folder) == {}


def test_a_killed_process_ends_the_stage_with_one_line(stage):
    folder, start = stage
    running = start(2, **LONG)
    children = children_of(running, AT_WORK)
    children[0].kill()
    assert running.wait(20) == 1
    (line,) = (folder / "stderr").read_text().splitlines()
    assert line.startswith("error: one of 2 processes was killed")
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    assert written(folder) == {}


def test_a_wrong_file_is_named_once_for_all_processes(stage):
    folder, start = stage
    (folder / "data/models/ae.safetensors").write_bytes(b"no model")
    assert start(2).wait(60) == 1
    (line,) = (folder / "stderr").read_text().splitlines()
    assert line.startswith("error: data/models/ae.safetensors: ")
