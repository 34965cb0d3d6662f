"""How a stage starts and ends: parameters, seed, device; outputs written whole; errors in one line."""

import ctypes
import hashlib
import io
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from genprior.params import InputError, Params

if TYPE_CHECKING:
    import pandas as pd
    import torch

Found = TypeVar("Found")


def run(main: Callable[[], None]) -> None:
    """Run a stage's `main`; what the user got wrong ends it with one line and exit code 1, Ctrl-C with 130."""
    try:
        _end_with_dvc()
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a read-only folder: the user's to mend, not a defect of ours
        sys.exit(f"error: {error.filename or 'writing'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_want_of_memory(error):
            raise
        sys.exit(f"error: out of memory. {' '.join(str(error).split())[:300]}".rstrip())
    except KeyboardInterrupt:
        sys.exit(130)


def _is_want_of_memory(error: Exception) -> bool:
    """Python's and NumPy's have a class; torch's, on a CPU and from the parts of CUDA, are known by their text."""
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


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
    return torch.device("cuda" if found else "cpu")


def stream(seed: int, purpose: str) -> "torch.Generator":
    """Random numbers for one purpose, the same for whoever asks; other purposes and seeds get independent ones.

    What must not know of each other, say the starts of a search and the truths that it is to find, never shares them.
    """
    import torch

    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _keep_freed_memory() -> None:
    """Keep what large temporaries free, where the C library is glibc.

    It would hand that back to the system and get it anew, zeroed page by page: up to a third of a dense energy's time.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        m_trim_threshold, m_mmap_max = -1, -4
        if mallopt(m_mmap_max, 0):  # nothing is mapped on its own, which would go back as soon as it is freed
            mallopt(m_trim_threshold, 2**30)


def side_by_side(function: Callable[[str], Found], tasks: Sequence[str], processes: int, what: str) -> dict[str, Found]:
    """What the function makes of each task: in this process where one is asked for, else in up to so many.

    The function goes to a process pickled, and does well to `set_up` one thread there. An error of one ends all, at
    once; so does the end of this process, whatever its kind. what: the progress bar's name.
    """
    processes = min(processes, os.cpu_count() or 1, len(tasks))
    results = _in_processes(function, tasks, processes) if processes > 1 else ((task, function(task)) for task in tasks)
    found = {}
    with closing(results):
        for task, result in (bar := steps(len(tasks), what, results)):
            found[task] = result
            bar.set_postfix(done=task)
    return found


def _in_processes(
    function: Callable[[str], Found], tasks: Sequence[str], processes: int
) -> Iterator[tuple[str, Found]]:
    """Each task with what the function makes of it, in the order in which processes are done with them."""
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what starts now leaves Ctrl-C to this process
    try:
        pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin_process)
        running = {pool.submit(function, task): task for task in tasks}
    except OSError as error:
        raise InputError(f"cannot start {processes} processes: {error.strerror}; threads: 1 needs none") from None
    finally:
        signal.signal(signal.SIGINT, heard)
    with pool:
        try:
            for done in as_completed(running):
                yield running[done], done.result()
        except BrokenProcessPool as error:
            if error.__cause__ is not None:  # a defect, and where it is
                raise
            raise InputError(
                f"one of {processes} processes was killed, perhaps for want of memory; fewer threads in params.yaml "
                "take less"
            ) from None
        except BaseException:  # nobody waits for what an error, or Ctrl-C, made useless
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _begin_process() -> None:
    """Leave Ctrl-C to the stage that started this process, on Windows too, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_stage() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_stage, daemon=True).start()


def steps(count: int, what: str, numbers: Iterable[int] | None = None, done: int = 0) -> tqdm:
    """A progress bar over `count` steps on a terminal, nothing in a log; `set_postfix(loss=...)` shows numbers.

    Nothing either in one of the processes of `side_by_side`, which has a bar. numbers: the steps that are left, where
    `done` of them are done.
    """
    numbers = range(count) if numbers is None else numbers
    quiet = None if multiprocessing.parent_process() is None else True
    return tqdm(numbers, what, count, initial=done, disable=quiet, dynamic_ncols=True, mininterval=0.5)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not.

    Its name is always the same, so that what a killed stage left is overwritten; Git and DVC look past `.part-*`.
    An OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        part.unlink(missing_ok=True)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write one array as .npy."""
    content = io.BytesIO()  # into a file, NumPy would write past Python, and say nothing of why that failed
    np.save(content, array, allow_pickle=False)
    with whole_file(path) as part:
        part.write_bytes(content.getbuffer())


def read_array(path: str | Path) -> np.ndarray:
    """Read one .npy array; InputError names a file that is missing or holds something else."""
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged header raises nearly anything
        raise InputError(f"{path}: not a readable .npy array: {' '.join(str(error).split())[:400]}") from None


def write_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8 with plain line feeds, whatever the platform."""
    with whole_file(path) as part:
        part.write_bytes(text.encode())


def write_metrics(path: str | Path, values: Mapping, digits: int = 6) -> None:
    """Write nested numbers as sorted JSON, each rounded to `digits` significant digits.

    Raises InputError for a value that is not finite: in a metric difference it would show as changed for ever.
    """
    text = json.dumps(_rounded(values, digits, Path(path).stem), indent=2, sort_keys=True)
    write_text(path, text + "\n")


def _rounded(value: object, digits: int, key: str) -> object:
    if isinstance(value, Mapping):
        return {name: _rounded(inner, digits, f"{key}.{name}") for name, inner in value.items()}
    if isinstance(value, bool | str | int):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise InputError(f"{key} came out as {number}; no such number goes into the metrics")
    return float(f"{number:.{digits}g}")


def write_csv(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV with plain line feeds and numbers of 6 significant digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
