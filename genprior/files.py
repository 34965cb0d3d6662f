"""Errors in one line, and files that are written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Something the user gave is wrong; the message is one line that says what, and what would be right."""

    def __str__(self) -> str:
        # Names of files and keys are the user's, and may hold anything.
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in super().__str__())


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
