"""All numbers of a run as one long table, its pivots, and what docs/metrics.md says of each measure."""

import json
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from genprior.files import InputError
from pipeline.files import flat, read_array
from pipeline.params import PRIORS, Params

WITHOUT_PRIOR = ["minimum_norm", "tikhonov"]  # whose error is of another order
CONSTRAINTS = ("none", "range", "relaxed", "mean", "whole")  # in the order of the tables
NAMES = {  # in the order of the tables
    "floor": "other real patches",
    **PRIORS,
    "ae_raw": "autoencoder, raw N(0, I) codes",
    "pca": "PCA, same k",
    "gaussian": "linear Gaussian",  # after it the mixtures
    "epll": "mixture, mean apart",
    "lasso_dct": "Lasso in the DCT",
    "tv": "total variation",
    "tikhonov": "Tikhonov",
    "minimum_norm": "minimum norm",
    "mixture": "mixture of patches, EPLL",
    "nlm": "non-local means",
    "wavelets": "wavelets",
    "discriminative": "network for this problem",
}
SUFFIXES = {"relaxed": ", relaxed", "mean": ", posterior mean", "chapter": ", the chapter's weighting"}
REGISTRY = Path(__file__).parent.parent / "docs/metrics.md"
COLUMNS = ["method", "problem", "constraint", "measure", "value"]


class Measure(NamedTuple):
    """A line of the tables in docs/metrics.md."""

    key: str
    title: str
    unit: str
    better: str  # higher | lower | → the value to aim at | nothing
    digits: int  # after the point, in tables
    noise: str  # in its unit, or in per cent of the value
    note: str

    def own_noise(self, value: float) -> float:
        """By how much another CPU or Monte Carlo moves such a value."""
        if self.noise.endswith("%"):
            return float(self.noise[:-1]) / 100 * abs(value)
        return float(self.noise or 0)


MEASURES = {}
for line in REGISTRY.read_text(encoding="utf-8").splitlines():
    if line.startswith("| `"):
        key, *cells, digits, noise, note = (cell.strip(" `") for cell in line.strip("|").split(" | "))
        MEASURES[key] = Measure(key, *cells, int(digits), noise, note)


def measure_of(key: str) -> Measure | None:
    """What the registry says of a measure; None where it knows none of that name."""
    return MEASURES.get(key) or next((m for pattern, m in MEASURES.items() if fnmatchcase(key, pattern)), None)


def title(key: object) -> str:
    """A measure's or a problem's name for readers."""
    known = MEASURES.get(str(key))
    if known is None:
        return str(key).replace("_", " ")
    return known.title + (" [dB]" if known.unit == "dB" else "")


def label(method: str, constraint: str = "none") -> str:
    """A method's name for readers."""
    name = NAMES.get(method) or f"{method.removeprefix('mixture_')} Gaussians"
    return name + SUFFIXES.get(constraint, "")


def read_table(folder: str | Path = "metrics") -> pd.DataFrame:
    """Every number of metrics/*.json as a row; InputError names a file that is damaged or holds anything else."""
    rows = []
    for file in sorted(Path(folder).glob("[!.]*.json")):
        try:
            values = flat(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise InputError(f"{file}: not readable metrics: {error}") from None
        for key, value in values.items():
            if not isinstance(value, int | float):
                raise InputError(f"{file}: {key} holds {type(value).__name__}; a number would be right")
            rows.append((*place(key, file), float(value)))
    return pd.DataFrame(sorted(rows, key=_rank), columns=COLUMNS)


def _rank(row: tuple) -> tuple:
    """Where a row stands in the table: as NAMES and CONSTRAINTS have it, mixtures by their size behind the Gaussian."""
    method, _, constraint, *_ = row
    name, size = ("gaussian", (len(method), method)) if method.startswith("mixture_") else (method, (0, ""))
    return [*NAMES, name].index(name), size, CONSTRAINTS.index(constraint) if constraint in CONSTRAINTS else 0


def place(key: str, file: Path) -> tuple[str, str, str, str]:
    """Method, problem, constraint and measure of a number, by its key."""
    match key.split("."):
        case method, constraint, problem, measure if constraint in CONSTRAINTS:
            return method, problem, constraint, measure
        case "sample" | "patches" | "chapter" as block, method, *constraint, measure if len(constraint) < 2:
            problem = "samples" if block == "sample" else block
            return method, problem, *(constraint or ["none"]), measure
        case stage, *constraint, measure if len(constraint) < 2:
            problem = "training" if stage.startswith("train_") else stage
            return stage.removeprefix("train_"), problem, *(constraint or ["none"]), measure
    raise InputError(f"{file}: {key}: method.constraint.problem.measure would be right")


def value(table: pd.DataFrame, key: str) -> float:
    """A number of the table by its key, as `dvc metrics show` has it; InputError where the table lacks it."""
    found = table.value[(table[COLUMNS[:4]] == list(place(key, Path("metrics")))).all(axis=1)]
    if len(found) != 1:
        raise InputError(f"metrics/: nothing of {key}, which the report shows; its stage would have to run")
    return found.item()


def read_curve(name: str, columns: list[str], against: str = "step") -> pd.DataFrame:
    """A curve with these columns, all numbers; InputError where the file is missing or holds anything else."""
    path = f"data/curves/{name}.csv"
    try:
        return pd.read_csv(path)[[against, *columns]].astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a curve of {', '.join(columns)}: {' '.join(str(error).split())}") from None


def read_images(name: str, *shape: int | None) -> np.ndarray:
    """An array under data/ of this shape, None for any length but 0; InputError where it has another."""
    array = read_array(f"data/{name}.npy")
    if array.ndim != len(shape) or any(m not in (None, n) or n == 0 for n, m in zip(array.shape, shape, strict=True)):
        wanted = str(tuple("any" if n is None else n for n in shape)).replace("'", "")
        raise InputError(f"data/{name}.npy: {array.shape}; {wanted} would be right")
    return array


def check_table(table: pd.DataFrame, params: Params) -> None:
    """InputError where the table lacks a part that the page shows."""
    known = set(table[["method", "constraint", "problem"]].itertuples(index=False, name=None))
    problems = [*params.problems, *params.crossover_problems()]
    for needed in (
        *product(PRIORS, ("range", "relaxed", "mean"), problems),
        *product(["pca"], ["range"], problems),
        *product(["gaussian", "lasso_dct", "minimum_norm"], ["none"], problems),
        *product(PRIORS, ["range"], ["representation", "samples", *params.weighed()]),
        *product(PRIORS, ["relaxed"], ["likelihood"]),
        *product(["train", "test"], ["none"], ["patches"]),
        *product(params.restore.priors, ["whole"], params.restore.problems),
        *[("floor", "none", "samples"), ("vae", "none", "training")],
    ):
        if needed not in known:
            raise InputError("metrics/: nothing of {}, {}: {}; its stage would have to run".format(*needed))


def with_prior(table: pd.DataFrame) -> pd.DataFrame:
    """The table without those methods whose error is of another order."""
    return table[~table.method.isin(WITHOUT_PRIOR)]


def labelled(table: pd.DataFrame, columns: str, order: list[str], corner: str) -> pd.DataFrame:
    """Values of the long table, a line for each method and constraint, `order` of the named column across."""
    chosen = table[table[columns].isin(order)].copy()
    chosen[corner] = [label(m, c) for m, c in zip(chosen.method, chosen.constraint, strict=True)]
    found = chosen.pivot(index=corner, columns=columns, values="value").reindex(chosen[corner].unique())
    return found[[name for name in order if name in found]]


def wide(table: pd.DataFrame, measure: str, problems: list[str], corner: str = "method") -> pd.DataFrame:
    """One measure as methods × problems."""
    return labelled(table[table.measure == measure], "problem", problems, corner)


def by_method(table: pd.DataFrame, problem: str, measures: list[str]) -> pd.DataFrame:
    """The named measures of one problem, a line for each method and constraint."""
    return labelled(table[table.problem == problem], "measure", measures, problem)


def crossover(table: pd.DataFrame, counts: list[int]) -> pd.DataFrame:
    """PSNR of compressed sensing, methods × numbers of measurements."""
    found = wide(table, "psnr_db", [f"m_{m}" for m in counts], "measurements")
    return found.set_axis([int(name.removeprefix("m_")) for name in found], axis=1)


def fewer_measurements(curves: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How many times as many measurements the reference needs for a method's PSNR, interpolated in log m.

    NaN where its whole curve lies above or below.
    """
    counts = np.log(curves.columns.to_numpy(dtype=float))
    known = np.maximum.accumulate(curves.loc[reference].to_numpy())
    needed = curves.apply(lambda row: np.interp(row, known, counts, left=np.nan, right=np.nan), axis=1, raw=True)
    return np.exp(needed - counts).drop(index=reference).rename_axis("times fewer")
