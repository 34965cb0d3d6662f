"""What stages read and write: arrays, text, metrics, tables."""

import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from genprior.files import InputError, existing, whole_file

if TYPE_CHECKING:
    import pandas as pd


def photograph(file: str) -> Path:
    """Where a photograph of params.yaml lies; InputError where DVC, which watches imgs/, would see no change of it.

    DVC looks behind a link to a file, as its own cache may have them, not behind one to a folder, nor at hidden names.
    """
    path = existing(file)
    place = Path(os.path.relpath(os.path.realpath(path.parent), os.path.realpath("imgs")), path.name)
    if any(name.startswith(".") for name in place.parts):
        raise InputError(f"{file}: not in a folder really under imgs/, or hidden: DVC sees no change; copy it there")
    return path


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Write one array as .npy."""
    content = io.BytesIO()  # into a file, NumPy would write past Python, and say nothing of why that failed
    np.save(content, array, allow_pickle=False)
    with whole_file(path) as part:
        part.write_bytes(content.getbuffer())


def reserve_array(path: Path, shape: tuple[int, ...]) -> None:
    """A .npy file for a uint8 array that is to be mapped and filled; a full disk is found here, not on the way."""
    np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):  # not on a Mac
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def read_array(path: str | Path, mapped: bool = False) -> np.ndarray:
    """Read one .npy array, or map it; InputError names a file that is missing or holds something else."""
    try:
        if mapped:
            return np.load(path, mmap_mode="r", allow_pickle=False)
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
    for key, value in flat(values, f"{Path(path).stem}.").items():
        if not isinstance(value, str) and not math.isfinite(value):
            raise InputError(f"{key} came out as {float(value)}; no such number goes into the metrics")
    text = json.dumps(values, default=float)  # NumPy's and torch's numbers
    rounded = json.loads(text, parse_float=lambda number: float(f"{float(number):.{digits}g}"))
    write_text(path, json.dumps(rounded, indent=2, sort_keys=True) + "\n")


def write_csv(path: str | Path, table: "pd.DataFrame") -> None:
    """Write a table as CSV with plain line feeds and numbers of 6 significant digits."""
    write_text(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    """Nested values by dotted key."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))
