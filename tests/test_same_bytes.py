"""The same outputs whatever the surroundings."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, surroundings

from pipeline.files import write_array

pytestmark = pytest.mark.process
OTHER = {
    "LC_ALL": "tr_TR.UTF-8",
    "TZ": "Pacific/Kiritimati",
    "PYTHONHASHSEED": "4711",
    "OMP_NUM_THREADS": "5",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "3",
}


def test_a_stage_writes_the_same_bytes_in_other_surroundings(tmp_path, values, patches):
    """With layers and batches large enough for threads; that their number is fixed, the next test says."""
    values["threads"] = 2
    values["train_ae"] |= {"steps": 5, "batch_size": 512}
    values["residual"] |= {"steps": 5, "batch_size": 512}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    for split in ("train", "validation", "test"):
        write_array(tmp_path / f"data/patches/{split}.npy", patches.squeeze(1).numpy())
    found = []
    for other in ({"PYTHONHASHSEED": "0"}, OTHER):
        environment = surroundings() | {"PYTHONPATH": str(ROOT)} | other
        subprocess.run([sys.executable, "-m", "stages.train_ae"], cwd=tmp_path, env=environment, check=True)
        files = [*tmp_path.glob("data/models/*"), *tmp_path.glob("data/curves/*"), *tmp_path.glob("metrics/*")]
        found.append({file.name: file.read_bytes() for file in files})
    assert len(found[0]) == 4
    assert found[0] == found[1]


def test_threads_are_what_the_parameters_say_and_openblas_has_the_same_kernels_on_every_x86_cpu(values):
    """In every library that has threads of its own, whatever the environment asks of it; NumPy's copy and SciPy's."""
    program = f"""
import runpy
from threadpoolctl import threadpool_info
runpy.run_module("stages.baselines", run_name="looked at")  # as a stage is started, whose script loads NumPy first
import scipy.linalg, torch
from pipeline.params import Params
from pipeline.run import set_up
set_up(Params.model_validate({values | {"threads": 2}!r}))
pools = threadpool_info()
print(torch.get_num_threads(), *(pool["num_threads"] for pool in pools))
print(*(pool["architecture"] for pool in pools if pool["internal_api"] == "openblas"))
"""
    environment = surroundings("OPENBLAS") | OTHER
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    threads, kernels = map(str.split, done.stdout.splitlines())
    assert len(threads) >= 3
    assert set(threads) == {"2"}
    assert set(kernels) == {"Haswell"} or platform.machine() not in ("x86_64", "AMD64")


@pytest.mark.slow
def test_forced_run_elsewhere_gives_the_same_lock(workspace, tmp_path_factory):
    """In a clone in another folder, with other surroundings, beside a process that takes a core."""
    folder, run = workspace
    dvc = str(Path(sys.executable).parent / "dvc")
    environment = surroundings()
    subprocess.run([dvc, "repro", "-q"], cwd=folder, env=environment, check=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "deeper" / "clone"
    run("git", "clone", "-q", str(folder), str(elsewhere))
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            subprocess.run([dvc, "repro", "-q", "-f"], cwd=elsewhere, env=environment | OTHER, check=True)
        finally:
            busy.kill()
    assert (elsewhere / "dvc.lock").read_text() == (folder / "dvc.lock").read_text()
