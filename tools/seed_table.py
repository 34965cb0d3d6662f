"""Mean ± standard error over seeds, for each metric of experiments that differ in their seed.

    python -m tools.seed_table                                  # all experiments of this commit
    python -m tools.seed_table --metrics '*.psnr_db' NAME NAME  # some metrics, some experiments

The experiments come from `dvc exp show --json`. Those whose parameters agree in all but `seed` are one column; the
standard error of n seeds is their standard deviation (n − 1) over √n. The same seed twice counts once.
"""

import argparse
import json
import math
import subprocess
import sys
from fnmatch import fnmatchcase

import pandas as pd

from genprior.params import InputError
from genprior.stage import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; without any, all of this commit")
    parser.add_argument("--metrics", default="*", metavar="GLOB", help="only metrics of such a name, e.g. '*.psnr_db'")
    arguments = parser.parse_args()
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "exp", "show", "--json"], text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise InputError(f"dvc exp show: {done.stderr.strip().splitlines()[0].removeprefix('ERROR: ')}")
    found = experiments(json.loads(done.stdout), arguments.names)
    print(seed_table(found, arguments.metrics))


def experiments(shown: list[dict], names: list[str]) -> dict[str, tuple[dict, dict]]:
    """Parameters and metrics, flat, of each finished experiment of those names, or of every one where none is named.

    DVC shows a failed or waiting experiment with the metrics it started from; such a one is left out, and named where
    it was asked for. Raises InputError for a name that is no finished experiment.
    """
    found, unfinished = {}, []
    for commit in shown:
        for experiment in commit["experiments"] or []:
            (last, *_) = experiment["revs"]
            state = (experiment["executor"] or {"state": "success"})["state"]
            if last["error"] or state != "success":
                unfinished.append(last["name"])
            else:
                found[last["name"]] = (values(last["data"]["params"]), values(last["data"]["metrics"]))
    for name in names:
        if name not in found:
            why = (
                "did not finish" if name in unfinished else f"no such experiment; there is {', '.join(found) or 'none'}"
            )
            raise InputError(f"NAME = '{name}': {why}")
    if not found:
        raise InputError("dvc exp show: no finished experiment; try dvc exp run --queue -S 'seed=range(3)'")
    if unfinished and not names:
        print(f"note: left out, for they did not finish: {', '.join(sorted(unfinished))}", file=sys.stderr)
    return {name: found[name] for name in names or found}


def values(files: dict[str, dict]) -> dict:
    """The values of all files by dotted key."""

    def leaves(value: object, path: str) -> dict:
        if not isinstance(value, dict):
            return {path: value}
        return {key: leaf for name, inner in value.items() for key, leaf in leaves(inner, f"{path}.{name}").items()}

    return {key[1:]: leaf for file in files.values() for key, leaf in leaves(file.get("data", {}), "").items()}


def seed_table(found: dict[str, tuple[dict, dict]], pattern: str = "*") -> str:
    """The Markdown table: a line for each metric whose name the pattern fits, a column for each setting.

    Raises InputError where no metric fits, and for two experiments of equal parameters and unequal metrics.
    """
    params = pd.DataFrame([pair[0] for pair in found.values()], index=list(found), dtype=object)
    if "seed" not in params:
        raise InputError("params.yaml: seed: not there, so no experiments can differ in it")
    metrics = pd.DataFrame([pair[1] for pair in found.values()], index=list(found), dtype=object)
    metrics = metrics[sorted(name for name in metrics if fnmatchcase(name, pattern))]
    metrics = metrics.apply(pd.to_numeric, errors="coerce").dropna(axis="columns", how="all")
    if metrics.empty:
        raise InputError(f"--metrics = '{pattern}': fits no metric's name; try '*.psnr_db'")
    words = params.map(repr)
    changed = [name for name in params if name != "seed" and words[name].nunique() > 1]
    params = params.sort_values(changed, key=lambda column: column.map(_rank)) if changed else params

    columns = {}
    for _, same in params.groupby(words[changed].agg(", ".join, axis="columns"), sort=False):
        for _, twice in same.groupby("seed"):
            if (metrics.loc[twice.index].nunique(dropna=False) > 1).any():
                names = " and ".join(sorted(twice.index))
                raise InputError(f"{names}: equal parameters, other metrics: their code differs; name the ones to take")
        seeds = metrics.loc[same.drop_duplicates("seed").index]
        title = ", ".join(f"{name} = {same[name].iloc[0]}" for name in changed) or "all"
        columns[f"{title} (n = {len(seeds)})".replace("|", "\\|")] = [spread(seeds[name].dropna()) for name in metrics]
    rows = [["metric", *columns], ["---"] * (1 + len(columns)), *zip(metrics, *columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rank(value: object) -> tuple:
    """Numbers by size, before all else by its text."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, repr(value))


def spread(seeds: pd.Series) -> str:
    """mean ± standard error, to two digits of the error; of a single seed its value alone."""
    if len(seeds) < 2:
        return "".join(f"{value:.6g}" for value in seeds)
    error = seeds.sem()
    if not error > 0:
        return f"{seeds.mean():.6g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{seeds.mean():.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    run(main)
