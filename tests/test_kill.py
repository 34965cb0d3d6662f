"""Stages and DVC killed at random moments: the next run ends as an undisturbed one, and nothing goes on writing."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import ROOT, surroundings, tiny

from pipeline.files import write_array

pytestmark = pytest.mark.process
# What a shell runs in the background ignores Ctrl-C, and hands that on to its tests and to what they start.
HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
STAGE = f"{HEARD}; import runpy; runpy.run_module('stages.train_ae', run_name='__main__')"
# With a checkpoint after every step.
EAGER = f"from pipeline.checkpoints import Checkpoint; Checkpoint.due = lambda self: True; {STAGE}"
OUTPUTS = ("data/models/ae.safetensors", "data/curves/ae.csv", "data/curves/ae_residual.csv", "metrics/train_ae.json")


@pytest.fixture
def stage(tmp_path, values, patches):
    """`start(program, **environment)` starts a tiny training stage in a folder of its own."""
    tiny(values)
    values["threads"] = 1
    values["train_ae"]["steps"] = values["residual"]["steps"] = 40
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    for split in ("train", "validation", "test"):
        write_array(tmp_path / f"data/patches/{split}.npy", patches.squeeze(1).numpy())

    def start(program=STAGE, **environment):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        with (tmp_path / "stderr").open("w") as stderr:
            return subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment, stderr=stderr)

    return tmp_path, start


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def digests(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in OUTPUTS}


def test_killed_stage_goes_on_to_the_same_bytes(stage):
    folder, start = stage
    assert start().wait() == 0
    expected = digests(folder)
    assert not (folder / ".checkpoints/train_ae").exists()
    for name in OUTPUTS:
        (folder / name).unlink()
    for checkpoint in ("1.state", "2.state"):  # in the first training, and in the second
        running = start(EAGER)
        wait_for((folder / ".checkpoints/train_ae" / checkpoint).exists)
        running.kill()
        assert running.wait() == -signal.SIGKILL
        assert not any((folder / name).exists() for name in OUTPUTS)
    assert start(EAGER).wait() == 0
    assert digests(folder) == expected
    assert not (folder / ".checkpoints/train_ae").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_stopped_stage_says_so_by_its_code(stage, number, code):
    folder, start = stage
    running = start(EAGER)
    wait_for((folder / ".checkpoints/train_ae/1.state").exists)
    running.send_signal(number)
    assert running.wait() == code
    assert (folder / "stderr").read_text() == ""
    assert not any((folder / name).exists() for name in OUTPUTS)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stage may outlive its DVC")
@pytest.mark.parametrize(("under_dvc", "at_work"), [(True, True), (True, False), (False, True)])
def test_stage_dies_with_the_dvc_that_started_it_and_no_other_parent(stage, under_dvc, at_work):
    """The parent is killed once the stage is at work, or while it still imports."""
    folder, start = stage
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {EAGER!r}])"
    running = start(parent, **({"DVC_STAGE": "train_ae"} if under_dvc else {}))
    wait_for(lambda: psutil.Process(running.pid).children())
    if at_work:
        wait_for((folder / ".checkpoints/train_ae/1.state").exists)
    child = psutil.Process(running.pid).children()[0]
    running.kill()
    running.wait()
    child.wait(60)
    assert (folder / OUTPUTS[0]).exists() != under_dvc


def at_work(folder):
    """The processes that work in a folder or below."""
    found = []
    for process in psutil.process_iter(["cwd", "status"]):
        cwd = process.info["cwd"]
        if cwd and Path(cwd).is_relative_to(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def recorded(folder):
    """What dvc.lock says of each stage."""
    lock = folder / "dvc.lock"
    return (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.exists() else {}


def mended(folder):
    """The files that DVC was killed at writing, removed: it writes them in place, and refuses to read them cut."""
    lock, readers = folder / "dvc.lock", folder / ".dvc/tmp/rwlock"
    found = []
    if lock.exists() and not (lock.read_text().endswith("\n") and recorded(folder)):
        found.append(lock)
    with suppress(FileNotFoundError):
        try:
            json.loads(readers.read_text())
        except ValueError:
            found.append(readers)
    for file in found:
        file.unlink()
    return [file.name for file in found]


@pytest.mark.slow
def test_50_kills(workspace):
    """`kill -9` of DVC or of its stage at random moments, and `dvc repro` again, until it comes through.

    After every kill dvc.lock may lack a stage, but says nothing of one that an undisturbed run does not say; one that
    DVC itself left cut is removed, as docs/reproducibility.md has it. KILLS in the environment sets another number.
    """
    folder, run = workspace
    code = folder / "pipeline/checkpoints.py"
    assert code.read_text().count("every: float = 15.0") == 1  # the tiny trainings are over sooner
    code.write_text(code.read_text().replace("every: float = 15.0", "every: float = 0.0"))
    parameters = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters | {"threads": 1}))
    run("git", "commit", "-qam", "Write a checkpoint after every step")
    environment = surroundings()

    def repro():
        with (folder.parent / "output").open("w") as output:
            return subprocess.Popen(["dvc", "repro"], cwd=folder, env=environment, stdout=output, stderr=output)

    begin = time.monotonic()
    assert repro().wait() == 0
    usual, expected = time.monotonic() - begin, recorded(folder)
    run("git", "add", "data/.gitignore", "data/*/.gitignore", "imgs/.gitignore")
    run("git", "commit", "-qm", "Ignore what DVC keeps")  # DVC adds to these at its end, so not where it was killed
    seen = run("git", "status", "--porcelain", "--untracked-files=all")
    run("git", "clean", "-fdxq")
    draw, killed, runs = random.Random(0), Counter(), 1
    while True:
        dvc = repro()
        moment = time.monotonic() + draw.uniform(0, usual / 6)
        last = killed["dvc"] + killed["stage"] == int(os.environ.get("KILLS", "50"))
        while dvc.poll() is None and (last or time.monotonic() < moment):
            time.sleep(0.001)
        if dvc.poll() is None:
            stage = psutil.Process(dvc.pid).children() if draw.random() < 0.5 else []
            with suppress(psutil.NoSuchProcess):
                (stage[0] if stage else dvc).kill()
                killed["stage" if stage else "dvc"] += 1
            dvc.wait()
            if not stage:
                killed.update(mended(folder))
            number = killed["dvc"] + killed["stage"]
            print(f"{number}: {'stage' if stage else 'dvc'}, {len(recorded(folder))} recorded", flush=True)
            assert recorded(folder).items() <= expected.items()
            continue
        assert dvc.returncode == 0, (folder.parent / "output").read_text()
        assert recorded(folder) == expected
        assert run("git", "status", "--porcelain", "--untracked-files=all") == seen
        assert "up to date" in run("dvc", "status")
        assert at_work(folder) == []
        assert not list((folder / ".checkpoints").glob("*/*"))
        if last:
            break
        run("git", "clean", "-fdxq")
        runs += 1
    print(f"{killed['dvc']} kills of dvc and {killed['stage']} of a stage in {runs} runs of {usual:.0f} s;")
    print(f"of the first, {killed['dvc.lock']} at writing dvc.lock and {killed['rwlock']} at its rwlock")
