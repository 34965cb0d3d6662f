"""The same outputs whatever the surroundings, and two DVCs at once."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, surroundings
from test_kill import digests, recorded, stage, wait_for  # noqa: F401 (stage is a fixture)

pytestmark = pytest.mark.process
OTHER = {
    "LC_ALL": "tr_TR.UTF-8",
    "TZ": "Pacific/Kiritimati",
    "PYTHONHASHSEED": "4711",
    "OMP_NUM_THREADS": "5",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "3",
}


def busy():
    """A process that keeps a core busy."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def test_a_stage_writes_the_same_bytes_in_other_surroundings(stage):  # noqa: F811
    """With layers and batches large enough for threads; that their number is fixed, the next test says."""
    folder, start = stage
    values = yaml.safe_load((folder / "params.yaml").read_text())
    values["threads"] = 2
    values["network"] |= {"latent_size": 16, "hidden": [256, 256]}
    values["train_ae"] |= {"steps": 5, "batch_size": 512}
    values["residual"] |= {"steps": 5, "batch_size": 512}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    assert start(PYTHONHASHSEED="0").wait() == 0
    expected = digests(folder)
    assert start(**OTHER).wait() == 0
    assert digests(folder) == expected


def test_threads_are_what_the_parameters_say(params, values):
    """In every library that has threads of its own, whatever the environment asks of it."""
    program = f"""
import sys
import numpy, torch
from threadpoolctl import threadpool_info
from genprior.params import Params
from genprior.stage import set_up
set_up(Params.model_validate({values | {"threads": 2}!r}))
print(torch.get_num_threads(), *(pool["num_threads"] for pool in threadpool_info()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=surroundings() | OTHER,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.split()) >= 3
    assert set(done.stdout.split()) == {"2"}


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="OpenBLAS has other kernels there")
def test_openblas_takes_the_same_kernels_on_every_x86_cpu():
    """All that a stage loads, NumPy's copy and SciPy's; as a stage is started, whose script loads NumPy first."""
    program = """
import runpy
from threadpoolctl import threadpool_info
runpy.run_module("stages.baselines", run_name="looked at")
import scipy.linalg
print(*{pool["architecture"] for pool in threadpool_info() if pool["internal_api"] == "openblas"})
"""
    environment = surroundings("OPENBLAS")
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["Haswell"]


@pytest.mark.slow
def test_forced_run_elsewhere_gives_the_same_lock(workspace, tmp_path_factory):
    """In a clone in another folder, with other surroundings, beside a process that takes a core."""
    folder, run = workspace
    dvc = str(Path(sys.executable).parent / "dvc")
    environment = surroundings()
    subprocess.run([dvc, "repro", "-q"], cwd=folder, env=environment, check=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deeper" / "clone"
    run("git", "clone", "-q", str(folder), str(elsewhere))
    other = busy()
    try:
        subprocess.run([dvc, "repro", "-q", "-f"], cwd=elsewhere, env=environment | OTHER, check=True)
    finally:
        other.kill()
        other.wait()
    assert (elsewhere / "dvc.lock").read_text() == (folder / "dvc.lock").read_text()


@pytest.mark.slow
def test_two_at_once(workspace):
    """While one trains: the same stage is refused, another runs, a copy runs, metrics can be read; nothing is lost."""
    folder, run = workspace
    run("dvc", "repro", "train_ae", "train_vae", "chapter")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "Run")
    expected = recorded(folder)
    parameters = yaml.safe_load((folder / "params.yaml").read_text())
    parameters["train_vae"]["steps"] = 3000  # long enough for what follows
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters))
    environment = surroundings()
    training = subprocess.Popen(["dvc", "repro", "-q", "train_vae"], cwd=folder, env=environment)
    wait_for(lambda: not (folder / "metrics/train_vae.json").exists())
    assert "busy" in run("dvc", "repro", "-s", "train_vae", code=255)
    run("dvc", "repro", "-f", "-s", "chapter")
    run("dvc", "exp", "run", "--temp", "-S", "chapter.image=imgs/standard/coins.png", "chapter")
    assert "train_ae" in run("dvc", "metrics", "show", "--json")
    run("dvc", "exp", "show", "--csv")
    assert training.poll() is None
    assert training.wait() == 0
    after = recorded(folder)
    assert after.pop("train_vae") != expected.pop("train_vae")
    assert after == expected
    assert "up to date" in run("dvc", "status", "train_vae", "chapter", "train_ae")
