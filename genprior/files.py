"""Errors in one line, and files that are written whole or not at all."""

import io
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from numbers import Real
from operator import index
from pathlib import Path
from unicodedata import normalize


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what would be right."""

    def __str__(self) -> str:
        # Names of files and keys are the user's, and may hold anything.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


def whole_number(name: str, value: object, least: int = 1, most: int = 10**9) -> int:
    """A count, of NumPy and torch too, as an int; InputError where it is none of `least` to `most`."""
    with suppress(TypeError):
        if not isinstance(value, bool) and least <= (number := index(value)) <= most:
            return number
    shown = " ".join(str(value).split())[:100]
    raise InputError(f"{name} = {shown}: a whole number from {least} to {most} would be right")


def nonnegative(name: str, value: object) -> float:
    """A finite number of at least 0, of NumPy and torch too, as a float; InputError where it is none."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, bool) or not isinstance(number, Real) or not 0 <= number < math.inf:
        shown = " ".join(str(value).split())[:100]
        raise InputError(f"{name} = {shown}: a finite number of at least 0 would be right")
    return float(number)


@contextmanager
def one_line_errors(advice: str = "") -> Iterator[None]:
    """End the program with one line, and `advice` where memory is short, by what is the user's to mend; 130 by Ctrl-C.

    Want of memory has a class in Python and NumPy; torch's, of a CPU and of the parts of CUDA, are known by their text.
    """
    signs = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where it has no σ, as on a pipe of Windows, a ? has to do
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a read-only folder
        sys.exit(f"error: {error.filename or 'writing'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in signs):
            raise
        sys.exit(f"error: out of memory. {advice or ' '.join(str(error).split())[:300]}".rstrip())
    except KeyboardInterrupt:
        sys.exit(130)


def existing(path: str | Path) -> Path:
    """The path under which a file is there: the given one, or with names in Unicode's other form, as macOS writes them.

    A path that is not there comes back as it is.
    """
    path, found = Path(path), Path()
    try:
        for name in path.parts:
            there = [name] if os.path.exists(found / name) else os.listdir(found)
            found /= next(twin for twin in there if normalize("NFC", twin) == normalize("NFC", name))
    except (OSError, StopIteration):  # no folder to look into, no such name
        return path
    return found


def find_prior(name: str | Path) -> Path:
    """The file of a trained prior: a path, or a name that the installed package or this checkout has a model of.

    Raises InputError that says which there are.
    """
    package = Path(__file__).parent
    # in a wheel; in a checkout, after `dvc repro`
    folders = (package / "models", package.parent / "data/models", package.parent / "data/baselines")
    if Path(name).name == str(name) and not Path(name).suffix:
        files = [folder / f"{name}.safetensors" for folder in folders]
    else:
        files = [existing(name)]
    for file in files:
        if file.is_file():
            return file
    there = sorted({file.stem for folder in folders for file in folder.glob("[!.]*.safetensors")})
    known = f"there is {', '.join(there)}, or the path of a file" if there else "`make repro` trains the priors"
    raise InputError(f"{name}: no such prior; {known}")


def part_of(path: Path) -> Path:
    """Where `whole_file` has a file until it is whole."""
    return path.with_name(f".part-{path.name}")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not.

    Its name is always the same, so that what a killed stage left is overwritten; Git and DVC look past `.part-*`.
    An OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        part.unlink(missing_ok=True)
