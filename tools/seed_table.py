"""Mean ± standard error over seeds, for each metric of experiments that differ in their seed.

    python -m tools.seed_table                                  # all experiments of this commit
    python -m tools.seed_table --metrics '*.psnr_db' NAME NAME  # some metrics, some experiments
    python -m tools.seed_table --over gaussian.none             # every method's less those of this one, seed by seed

The experiments come from `dvc exp show --json`. Those whose parameters agree in all but `seed` are one column; the
standard error of n seeds is their standard deviation (n − 1) over √n. The same seed twice counts once. Metrics of a
stage that did not run with an experiment's parameters are left out, with a note.
"""

import argparse
import json
import math
import sys
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import pandas as pd
from ruamel.yaml import YAML  # reads 1e-05 as the number that DVC means

from genprior.files import InputError
from pipeline.files import flat, markdown
from pipeline.run import run
from tools import output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; without any, all of the commit")
    parser.add_argument("--metrics", default="*", metavar="GLOB", help="only metrics of such a name, e.g. '*.psnr_db'")
    parser.add_argument("--over", metavar="METHOD.CONSTRAINT", help="differences to this one's, paired seed by seed")
    parser.add_argument("--rev", default="HEAD", metavar="COMMIT", help="the commit that they started from")
    arguments = parser.parse_args()
    found = {}
    for name, told in experiments(arguments.names, "--rev", arguments.rev).items():
        params, metrics = values(told["data"]["params"]), told["data"]["metrics"]
        lock = YAML(typ="safe").load(output("git", "show", f"{told['rev']}:./dvc.lock").stdout)
        if stale := sorted(stale_outputs(lock["stages"], params) & set(metrics)):
            print(f"note: {name}: left out, for their stages did not run with its parameters:", *stale, file=sys.stderr)
        found[name] = params, values({file: told for file, told in metrics.items() if file not in stale})
    print(seed_table(found, arguments.metrics, arguments.over))


def experiments(names: list[str], *options: str) -> dict[str, dict]:
    """What `dvc exp show` tells of each finished experiment of those names, or of every one if none is named.

    DVC shows a failed or waiting experiment with the metrics it started from; such a one is left out. Raises InputError
    for a name that is no finished experiment.
    """
    shown = json.loads(output(sys.executable, "-m", "dvc", "exp", "show", "--json", *options).stdout)
    every = {each["revs"][0]["name"]: each for commit in shown for each in commit["experiments"] or []}
    finished = {
        name: each["revs"][0]
        for name, each in every.items()
        if not each["revs"][0]["error"] and (each["executor"] or {"state": "success"})["state"] == "success"
    }
    for name in (name for name in names if name not in finished):
        wrong = "did not finish" if name in every else "no such experiment"
        raise InputError(f"NAME = '{name}': {wrong}; there is {', '.join(finished) or 'none'}")
    if not finished:
        raise InputError(
            "no finished experiment started from this commit; --rev COMMIT shows those of another one, and "
            "dvc exp run --queue -S 'seed=range(3)' makes some"
        )
    if len(finished) < len(every) and not names:
        rest = ", ".join(sorted(every.keys() - finished.keys()))
        print(f"note: left out, for they did not finish: {rest}", file=sys.stderr)
    return {name: finished[name] for name in names or finished}


def stale_outputs(stages: dict[str, dict], params: dict) -> set[str]:
    """Outputs that a lock's stages made with other parameters than `params`, or from other files than the lock's own.

    An experiment that ran only up to a stage has them: what comes behind is still that of the commit.
    """
    made, stale = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}, set()

    def is_stale(stage: dict) -> bool:
        recorded = flat({key: value for block in stage.get("params", {}).values() for key, value in block.items()})
        deps = {dep["path"]: dep.get("md5") for dep in stage.get("deps", [])}
        return (
            any(params.get(key) != value for key, value in recorded.items())
            or any(made.get(path, md5) != md5 for path, md5 in deps.items())
            or any(within(path, other) or within(other, path) for path in deps for other in stale)
        )

    for _ in stages:  # in the longest chain, each round finds one more
        stale |= {out["path"] for stage in stages.values() if is_stale(stage) for out in stage.get("outs", [])}
    return stale


def within(path: str, folder: str) -> bool:
    """Whether a path is or lies in another: `imgs` depends on what makes `imgs/standard`."""
    return PurePosixPath(path).is_relative_to(folder)


def values(files: dict[str, dict]) -> dict:
    """The values of all of an experiment's files by dotted key."""
    return {key: value for file in files.values() for key, value in flat(file.get("data", {})).items()}


def seed_table(found: dict[str, tuple[dict, dict]], pattern: str = "*", over: str | None = None) -> str:
    """The Markdown table: a line for each metric whose name the pattern fits, a column for each setting.

    over: METHOD.CONSTRAINT whose PROBLEM.MEASURE is taken from all others'. Raises InputError where no metric fits, and
    for two experiments of equal parameters and unequal metrics.
    """
    params, metrics = (pd.DataFrame([pair[i] for pair in found.values()], list(found), dtype=object) for i in (0, 1))
    if "seed" not in params:
        raise InputError("params.yaml: seed: not there, so no experiments can differ in it")
    metrics = metrics.apply(pd.to_numeric, errors="coerce")
    if over:
        references = {name: f"{over}.{name.split('.', 2)[-1]}" for name in metrics if not name.startswith(f"{over}.")}
        metrics = pd.DataFrame(
            {a: metrics[a] - metrics[b] for a, b in references.items() if b in metrics}, params.index
        )
    metrics = metrics[sorted(name for name in metrics if fnmatchcase(name, pattern))].dropna(axis="columns", how="all")
    if metrics.empty:
        raise InputError(f"--metrics = '{pattern}': fits no metric's name; try '*.psnr_db'")
    words = params.map(repr)
    changed = [name for name in params if name != "seed" and words[name].nunique() > 1]
    for name in reversed(changed):  # numbers by size, text as it comes
        params = params.sort_values(name, key=lambda column: pd.to_numeric(column.map(str), "coerce"), kind="stable")

    columns = {}
    for _, same in params.groupby(words[changed].agg(", ".join, axis="columns"), sort=False):
        for _, twice in same.groupby("seed"):
            if (metrics.loc[twice.index].nunique() > 1).any():  # one that ran only up to a stage lacks some
                names = " and ".join(sorted(twice.index))
                raise InputError(f"{names}: equal parameters, other metrics: their code differs; name the ones to take")
        seeds = metrics.loc[same.index].groupby(same["seed"]).first()
        title = ", ".join(f"{name} = {same[name].iloc[0]}" for name in changed) or "all"
        columns[f"{title} (n = {len(seeds)})".replace("|", "\\|")] = seeds.agg(spread, of=len(seeds))
    return markdown(["metric", *columns], zip(metrics, *columns.values(), strict=True))


def spread(seeds: pd.Series, of: int) -> str:
    """mean ± standard error, to two digits of the error; of a single seed its value; how many, if fewer than `of`."""
    seeds = seeds.dropna()
    fewer = f" (n = {len(seeds)})" if 0 < len(seeds) < of else ""
    if len(seeds) < 2:
        return "".join(f"{value:.6g}" for value in seeds) + fewer
    error = seeds.sem()
    if not error > 0:
        return f"{seeds.mean():.6g} ± 0{fewer}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{seeds.mean():.{digits}f} ± {error:.{digits}f}{fewer}"


if __name__ == "__main__":
    run(main)
