"""How a stage starts and ends: seed, device, threads, progress; what the user got wrong in one line."""

import ctypes
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from genprior.files import InputError, one_line_errors
from pipeline import ranks
from pipeline.params import Params, load_params

if TYPE_CHECKING:
    import torch

tqdm.set_lock(threading.RLock())  # its own is shared by processes: a killed one leaves it behind, which Python tells of

# OpenBLAS takes its kernels, and with them the last bits, from the CPU's kind, once, when NumPy loads it: after this
# module, which each stage imports first. These run on every x86 CPU with AVX2, and cost the pipeline nothing.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")


def run(main: Callable[[], None], shared: bool = False) -> None:
    """Run a stage's `main`; what the user got wrong ends it with one line and exit code 1, Ctrl-C with 130.

    shared: whether ranks share its work. Where the environment names options of torchrun, it then starts itself anew
    under torchrun. The others leave all of it to the first rank.
    """
    with one_line_errors():
        _end_with_dvc()
        if "RANK" in os.environ:
            if shared:
                return ranks.said_once(main)
            with ranks.apart():
                return main() if os.environ["RANK"] == "0" else None
        if shared and os.environ.get(ranks.OPTIONS):
            main = partial(ranks.start, os.environ[ranks.OPTIONS])
        before = _dependencies()
        main()
        after = _dependencies()
        # DVC looks at them only now, and would record that the stage ran on what they have become.
        for name in (name for name in before if before[name] != after.get(name)):
            raise InputError(f"{name}: edited while this stage ran, which is not recorded; type `dvc repro` again")


def _dependencies() -> dict[str, object]:
    """What this stage depends on by dvc.yaml: blocks of params.yaml, and when files were written; {} without DVC."""
    if "DVC_STAGE" not in os.environ or not Path("dvc.yaml").exists():
        return {}
    name, _, key = os.environ["DVC_STAGE"].split(":")[-1].partition("@")
    stage = YAML(typ="safe", pure=True).load(Path("dvc.yaml"))["stages"][name]
    stage = stage.get("do", stage)  # one for each key
    blocks, params = {param.split(".")[0] for param in stage["params"]}, load_params("params.yaml")
    found = {f"params.yaml: {block}": getattr(params, block) for block in sorted(blocks)}
    deps = [Path(dep.replace("${key}", key)) for dep in stage["deps"]]
    files = [file for dep in deps for file in (dep, *dep.rglob("[!.]*")) if file.is_file()]
    return found | {str(file): file.stat().st_mtime_ns for file in files}


def _end_with_dvc() -> None:
    """Let Linux kill this stage when the DVC that started it dies.

    Left alone it would write on, into what the next `dvc repro` produces. Started by hand, it may outlive its shell.
    """
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        # Did that DVC die before this line? In a container DVC may itself be process 1, which adopts orphans.
        if os.getppid() == 1 and b"dvc" not in Path("/proc/1/cmdline").read_bytes():
            sys.exit("error: the dvc that started this stage is gone")


def set_up(params: Params) -> "torch.device":
    """Seed torch, fix the thread count and demand deterministic kernels; returns the device that params names.

    Raises InputError where that device is not there.
    """
    limit = os.environ.get("OMP_THREAD_LIMIT", "")
    if limit.isdigit() and 0 < int(limit) < params.threads:  # MKL's solvers would be wrong, silently
        raise InputError(f"OMP_THREAD_LIMIT = {limit}: below threads = {params.threads} of params.yaml; unset it")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's deterministic kernels ask for
    import torch  # two seconds that the stages without a network need not spend

    torch.manual_seed(params.seed)
    torch.set_num_threads(params.threads)
    _keep_freed_memory()
    threadpool_limits(params.threads)  # and of NumPy's BLAS, which else takes as many as there are cores
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # what is overwritten at once
    found = params.device != "cpu" and torch.cuda.is_available()
    if params.device == "cuda" and not found:
        raise InputError("params.yaml: device = 'cuda': torch finds no such device here; 'cpu' is there")
    device = torch.device("cuda" if found else "cpu")
    if found and "LOCAL_RANK" in os.environ:  # one for each rank; "cuda" is then that one
        if (local := int(os.environ["LOCAL_RANK"])) >= torch.cuda.device_count():
            there = torch.cuda.device_count()
            raise InputError(f"device = '{params.device}': {there} GPUs here; as many ranks would be right")
        torch.cuda.set_device(local)
    if params.shards < ranks.count():
        raise InputError(
            f"params.yaml: shards = {params.shards}: fewer than {ranks.count()} ranks; as many would be right"
        )
    ranks.SHARDS = params.shards
    ranks.join(device.type)
    return device


def _keep_freed_memory() -> None:
    """Keep what large temporaries free, where the C library is glibc.

    It would hand that back to the system and get it anew, zeroed page by page: up to a third of a dense energy's time.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        m_trim_threshold, m_mmap_max = -1, -4
        if mallopt(m_mmap_max, 0):  # nothing is mapped on its own, which would go back as soon as it is freed
            mallopt(m_trim_threshold, 2**30)


def steps(count: int, what: str, numbers: Iterable | None = None, done: int = 0) -> tqdm:
    """A progress bar over `count` steps on a terminal, nothing in a log; `set_postfix(loss=...)` shows numbers.

    Nothing either in one of the processes of `side_by_side`, which has a bar, nor in ranks after the first. numbers:
    the steps that are left, where `done` of them are done.
    """
    numbers = range(count) if numbers is None else numbers
    first = multiprocessing.parent_process() is None and os.environ.get("RANK", "0") == "0"
    quiet = None if first else True
    return tqdm(numbers, what, count, initial=done, disable=quiet, dynamic_ncols=True, mininterval=0.5)
