"""Stages and DVC killed at random moments: the next run ends as an undisturbed one, and nothing goes on writing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, surroundings, tiny

from pipeline.files import write_array
from stages import train_ae

pytestmark = pytest.mark.process
# What a shell runs in the background ignores Ctrl-C, and hands that on to its tests and to what they start.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
# A training with a checkpoint after every step.
EAGER = f"""{HEARD}
from stages import train_ae
train_ae.Checkpoint.due = lambda self: True
train_ae.run(train_ae.main)
"""
OUTPUTS = ("data/models/ae.safetensors", "data/curves/ae.csv", "data/curves/ae_residual.csv", "metrics/train_ae.json")


def start(folder: Path, program: str, **environment: str) -> subprocess.Popen:
    """Python at work in a folder, with what it says in the file stderr there."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with (folder / "stderr").open("w") as stderr:
        return subprocess.Popen([sys.executable, "-c", program], cwd=folder, env=environment, stderr=stderr)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_stopped_stage_goes_on_to_the_same_bytes(tmp_path, values, patches, monkeypatch):
    """Killed in its first training, and stopped by Ctrl-C in its second."""
    tiny(values)
    values["train_ae"]["steps"] = values["residual"]["steps"] = 40
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values | {"threads": 1}))
    for split in ("train", "validation", "test"):
        write_array(tmp_path / f"data/patches/{split}.npy", patches.squeeze(1).numpy())
    monkeypatch.chdir(tmp_path)
    train_ae.main()
    expected = {name: Path(name).read_bytes() for name in OUTPUTS}
    for name in OUTPUTS:
        Path(name).unlink()
    for number, code, checkpoint in ((signal.SIGKILL, -9, "1.state"), (signal.SIGINT, 130, "2.state")):
        running = start(tmp_path, EAGER)
        wait_for(Path(".checkpoints/train_ae", checkpoint).exists)
        running.send_signal(number)
        assert running.wait() == code
        assert Path("stderr").read_text() == ""
        assert not any(Path(name).exists() for name in OUTPUTS)
    train_ae.main()
    assert {name: Path(name).read_bytes() for name in OUTPUTS} == expected
    assert not Path(".checkpoints/train_ae").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stage may outlive its DVC")
@pytest.mark.parametrize(("under_dvc", "at_work"), [(True, True), (True, False), (False, True)])
def test_stage_dies_with_the_dvc_that_started_it_and_no_other_parent(tmp_path, under_dvc, at_work):
    """The parent is killed once the stage is at work, or while it still imports."""
    stage = f"""
import time
from pathlib import Path
from pipeline.run import run
time.sleep({0 if at_work else 1})
run(lambda: (Path("begun").touch(), time.sleep(1), Path("done").touch()))
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {stage!r}])"
    running = start(tmp_path, parent, **({"DVC_STAGE": "train_ae"} if under_dvc else {}))
    wait_for(lambda: psutil.Process(running.pid).children())
    if at_work:
        wait_for((tmp_path / "begun").exists)
    child = psutil.Process(running.pid).children()[0]
    running.kill()
    running.wait()
    child.wait(60)
    assert (tmp_path / "done").exists() != under_dvc


def recorded(folder):
    """What dvc.lock says of each stage."""
    lock = folder / "dvc.lock"
    return (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.exists() else {}


def mend(folder):
    """Remove what DVC was killed at writing: it writes these in place, and refuses to read them cut."""
    lock, readers = folder / "dvc.lock", folder / ".dvc/tmp/rwlock"
    if lock.exists() and not (lock.read_text().endswith("\n") and recorded(folder)):
        lock.unlink()
    with suppress(FileNotFoundError):
        try:
            json.loads(readers.read_text())
        except ValueError:
            readers.unlink()


@pytest.mark.slow
def test_50_kills(workspace):
    """`kill -9` of DVC or of its stage at random moments, and `dvc repro` again, until it comes through.

    After every kill dvc.lock may lack a stage, but says nothing of one that an undisturbed run does not say; one that
    DVC itself left cut is removed, as docs/reproducibility.md has it. KILLS in the environment sets another number.
    """
    folder, run = workspace
    checkpoints = folder / "pipeline/checkpoints.py"
    assert checkpoints.read_text().count("every: float = 15.0") == 1  # the tiny trainings are over sooner
    checkpoints.write_text(checkpoints.read_text().replace("every: float = 15.0", "every: float = 0.0"))
    run("git", "commit", "-qam", "Write a checkpoint after every step")

    def repro():
        with (folder.parent / "output").open("w") as output:
            return subprocess.Popen(["dvc", "repro"], cwd=folder, env=surroundings(), stdout=output, stderr=output)

    begin = time.monotonic()
    assert repro().wait() == 0
    usual, expected = time.monotonic() - begin, recorded(folder)
    run("git", "clean", "-fdxq")
    draw, kills, most = random.Random(0), 0, int(os.environ.get("KILLS", "50"))
    while True:
        dvc, moment = repro(), time.monotonic() + draw.uniform(0, usual / 6)
        while dvc.poll() is None and (kills == most or time.monotonic() < moment):
            time.sleep(0.001)
        if dvc.poll() is None:
            stage = psutil.Process(dvc.pid).children() if draw.random() < 0.5 else []
            with suppress(psutil.NoSuchProcess):
                (stage[0] if stage else dvc).kill()
                kills += 1
            dvc.wait()
            mend(folder)
            assert recorded(folder).items() <= expected.items()
            continue
        assert dvc.returncode == 0, (folder.parent / "output").read_text()
        assert recorded(folder) == expected
        assert "up to date" in run("dvc", "status")
        assert not [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(folder)]
        assert not list((folder / ".checkpoints").glob("*/*"))
        if kills == most:
            return
        run("git", "clean", "-fdxq")
