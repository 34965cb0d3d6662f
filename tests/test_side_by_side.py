"""Tasks in processes of their own: the same bytes from one or two, one line, and no process left."""

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

from genprior.networks import PriorNetwork, save_network
from pipeline.files import write_array
from pipeline.patches import to_unit
from stages import evaluate, train_discriminative

pytestmark = pytest.mark.process
# What a shell runs in the background ignores Ctrl-C, and hands that on to its tests and to what they start.
HEARD = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, '-m', *sys.argv[1:]])"
)
SCRIPT = """\
import os, sys, time
from pathlib import Path
from genprior.files import InputError
from pipeline.processes import side_by_side
from pipeline.run import run, steps

Path(f"begun.{os.getpid()}").touch()
time.sleep(float(sys.argv[2]))

def work(task):
    Path(f"at_work.{os.getpid()}").touch()
    if task == "wrong":
        raise InputError("imgs/a.png: wrong")
    if task == "killed":
        os.kill(os.getpid(), 9)
    if task == "defect":
        raise ZeroDivisionError
    for _ in steps(60, "inner"):
        time.sleep(0.5 if task == "long" else 0)
    return task.upper()

if __name__ == "__main__":
    run(lambda: print(side_by_side(work, sys.argv[1].split(","), 2, "outer")))
"""


@pytest.fixture
def start(tmp_path):
    """`start(tasks, importing)` runs a script that does them in two processes, each so many seconds at its imports."""
    (tmp_path / "script.py").write_text(SCRIPT)
    started = []

    def begin(tasks: str, importing: float = 0) -> subprocess.Popen:
        command = [sys.executable, "-c", HEARD, "script", tasks, str(importing)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with (tmp_path / "stdout").open("w") as out, (tmp_path / "stderr").open("w") as err:
            started.append(
                subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True, stdout=out, stderr=err)
            )
        return started[-1]

    yield begin
    for running in started:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def children_of(running: subprocess.Popen, folder, begun: str) -> list[psutil.Process]:
    """The processes of a script's pool, once two of them have begun so much."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert running.poll() is None
        found = [int(file.suffix[1:]) for file in folder.glob(f"{begun}.*")]
        if len(found := [pid for pid in found if pid != running.pid]) == 2:
            return [psutil.Process(pid) for pid in found]
        time.sleep(0.02)
    raise AssertionError("no two processes")


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has one process")
class TestTwoProcesses:
    def test_results_and_a_quiet_log(self, start, tmp_path):
        assert start("a,b,c").wait(60) == 0
        assert sorted(eval((tmp_path / "stdout").read_text()).items()) == [("a", "A"), ("b", "B"), ("c", "C")]
        assert (tmp_path / "stderr").read_text() == ""

    @pytest.mark.parametrize(
        ("task", "last"),
        [
            ("wrong", "error: imgs/a.png: wrong"),
            ("killed", "error: one of 2 processes was killed"),
            ("defect", "ZeroDivisionError"),
        ],
    )
    def test_an_error_of_one_ends_all_at_once(self, start, tmp_path, task, last):
        begin = time.monotonic()
        assert start(f"long,{task},long,long").wait(60) == 1
        assert time.monotonic() - begin < 25  # each of the long ones takes thirty
        left = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(tmp_path)]
        assert not psutil.wait_procs(left, timeout=10)[1]
        lines = (tmp_path / "stderr").read_text().splitlines()
        assert lines[-1].startswith(last)
        assert len(lines) == 1 or task == "defect"

    @pytest.mark.parametrize(
        ("number", "begun"),
        [(signal.SIGINT, "at_work"), (signal.SIGTERM, "at_work"), (signal.SIGKILL, "begun")],
    )
    def test_no_process_outlives_its_stage(self, start, tmp_path, number, begun):
        running = start("long,long,long", importing=1 if begun == "begun" else 0)
        children = children_of(running, tmp_path, begun)
        if number == signal.SIGINT:  # Ctrl-C goes to all that a terminal started
            os.killpg(running.pid, number)
        else:
            running.send_signal(number)
        assert running.wait(20) == (130 if number == signal.SIGINT else -number)
        assert not psutil.wait_procs(children, timeout=10)[1]
        # Python's own tracker of semaphores tells of what a killed process left it to clean up.
        lines = (tmp_path / "stderr").read_text().splitlines()
        assert lines == [] or (number != signal.SIGINT and "resource_tracker" in lines[0] and len(lines) == 2)


@pytest.fixture
def folder(tmp_path, values, patches, monkeypatch):
    """Where stages find an untrained autoencoder, patches and tiny parameters; the tests work there."""
    torch.manual_seed(0)
    network = PriorNetwork((8, 8), 3, [8], "silu", "dct", "plain")
    network.coefficients.fit(to_unit(patches))
    save_network(network.eval().requires_grad_(False), tmp_path / "data/models/ae.safetensors")
    for split in ("train", "validation", "test"):
        write_array(tmp_path / f"data/patches/{split}.npy", patches.squeeze(1).numpy())
    tiny(values)["extract_patches"]["patch_size"] = [8, 8]
    values["problems"] = {name: values["problems"][name] for name in ("denoise", "cs_50")}
    values["crossover"]["measurements"] = [3, 6]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", "ae"])
    return tmp_path


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core has one process")
@pytest.mark.parametrize("stage", [evaluate, train_discriminative])
def test_two_processes_write_what_one_writes(folder, values, stage):
    found = []
    for threads in (1, 2):
        (folder / "params.yaml").write_text(yaml.safe_dump(values | {"threads": threads}))
        stage.main()
        assert not list(folder.glob(".checkpoints/*"))
        files = [*folder.glob("metrics/*"), *folder.glob("data/reconstructions/*")]
        found.append({file.name: file.read_bytes() for file in files})
        for file in files:
            file.unlink()
    assert len(found[0]) >= 2
    assert found[0] == found[1]
