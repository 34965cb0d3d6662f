"""Ranks: processes of torchrun that share a stage's work, on one machine or many. Without torchrun there is one.

Each rank reads the same files and draws the same random numbers. What they compute is gathered in an order that does
not depend on how many there are, so that 1, 2 and 4 end in the same bytes. The first alone writes.
"""

import logging
import multiprocessing
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from genprior.files import InputError

if TYPE_CHECKING:
    import torch

OPTIONS = "GENPRIOR_TORCHRUN"  # the environment variable with torchrun's options: --nproc-per-node=2
SHARDS = 4  # of a training batch, `shards` of params.yaml once `pipeline.run.set_up` has read it
LOST = 75  # the exit code of a rank that lost another one, whose own says why
Value = TypeVar("Value")
_apart = False


def rank() -> int:
    """This process's number, 0 for the first."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def count() -> int:
    """How many share the work; 1 in a process that a rank has started, and within `apart`."""
    alone = _apart or multiprocessing.parent_process() is not None
    return 1 if alone else int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def apart() -> Iterator[None]:
    """Work of this rank's own, in which nothing is shared."""
    global _apart
    before, _apart = _apart, True
    try:
        yield
    finally:
        _apart = before


def join(device: str) -> None:
    """Meet the other ranks, where there are any; device: "cpu", or "cuda", which each has one of."""
    import torch

    if count() > 1 and not torch.distributed.is_initialized():
        backend, forever = "nccl" if device == "cuda" else "gloo", timedelta(days=30)  # tasks differ in length
        torch.distributed.init_process_group(backend, timeout=forever)


def said_once(main: Callable[[], None]) -> None:
    """Run `main`; what is wrong for all ranks the first says, which ends the others while they wait."""
    try:
        main()
    except InputError:
        time.sleep(3 if rank() else 0)
        raise
    _part()


def leave_to_first() -> None:
    """End all ranks but the first: what is left is measured and written once."""
    _part()
    if rank():
        sys.exit(0)


def _part() -> None:
    """Leave the other ranks: Python may abort where it ends while their connections' threads still run."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def of_all(value: Value) -> list[Value]:
    """What each rank has, in their order."""
    if count() == 1:
        return [value]
    import torch

    found = [None] * count()
    with _none_lost():
        torch.distributed.all_gather_object(found, value)
    return found


def rows_of_all(rows: "torch.Tensor") -> "torch.Tensor":
    """Rows (S / R, ...) of each of R ranks in turn, rank 0's first, rank 1's first, ..., rank 0's second: (S, ...)."""
    if count() == 1:
        return rows
    import torch

    found = rows.new_empty(count(), *rows.shape)
    with _none_lost():
        torch.distributed.all_gather(list(found), rows)
    return found.transpose(0, 1).flatten(0, 1)


@contextmanager
def _none_lost() -> Iterator[None]:
    """End quietly where another rank is gone: torchrun ends all, and `start` says why."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        os._exit(LOST)


def start(options: str) -> None:
    """Run this stage under torchrun in place of this process, and end as its first rank to fail does."""
    os.environ.setdefault("LOGLEVEL", "CRITICAL")  # torchrun's own: what went wrong is said in one line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # gloo warns of hosts without a reverse name
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun has it; `set_up` sets what params.yaml says
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    here = [] if "nnodes" in options else ["--standalone"]  # two stages at once do not meet
    module = sys.modules["__main__"].__spec__.name
    wrong = f"{OPTIONS} = {options!r}: torchrun's options would be right, --nproc-per-node=2"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # its usage is many lines
            args = torchrun.parse_args([*here, *shlex.split(options), "-m", module, *sys.argv[1:]])
    except (SystemExit, ValueError):
        raise InputError(wrong) from None
    try:
        torchrun.run(args)
    except ValueError:
        raise InputError(wrong) from None
    except RendezvousError as error:
        raise InputError(f"{OPTIONS} = {options!r}: ranks did not meet: {' '.join(str(error).split())}") from None
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        killed = [code for code in codes if code < 0]
        if killed and 1 not in codes:
            raise InputError(f"a rank was killed by signal {-killed[0]}, perhaps for want of memory") from None
        if {*codes} == {LOST}:
            raise InputError("a rank of another machine is gone; what it said there says why") from None
        sys.exit(next((code for code in codes if code not in (LOST, *killed)), 1))
