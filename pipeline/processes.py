"""Tasks of a stage side by side, in processes of one thread each."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from genprior.files import InputError
from pipeline import ranks
from pipeline.run import steps

Found = TypeVar("Found")


def side_by_side(function: Callable[[str], Found], tasks: Sequence[str], processes: int, what: str) -> dict[str, Found]:
    """What the function makes of each task: in this process where one is asked for, else in up to so many.

    Ranks take tasks in turn, and all get what all found. The function goes to a process pickled, and does well to
    `set_up` one thread there. An error of one ends all, at once; so does the end of this process, whatever its kind.
    what: the progress bar's name.
    """
    own_tasks = tasks[ranks.rank() :: ranks.count()]
    with ranks.apart():
        own = _side_by_side(function, own_tasks, processes, what)
    found = {task: value for of_rank in ranks.of_all(own) for task, value in of_rank.items()}
    return {task: found[task] for task in tasks}


def _side_by_side(function: Callable, tasks: Sequence[str], processes: int, what: str) -> dict[str, Found]:
    processes = min(processes, os.cpu_count() or 1, len(tasks))
    if processes < 2:
        return {task: function(task) for task in steps(len(tasks), what, tasks)}
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
            return {running[done]: done.result() for done in steps(len(tasks), what, as_completed(running))}
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
