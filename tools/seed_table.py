"""Mean ± standard error over seeds, for each metric of experiments that differ in their seed.

    python -m tools.seed_table                                  # all experiments of this commit
    python -m tools.seed_table --metrics '*.psnr_db' NAME NAME  # some metrics, some experiments

The experiments come from `dvc exp show --json`. Those whose parameters agree in all but `seed` are one column; the
standard error of n seeds is their standard deviation (n − 1) over √n. The same seed twice counts once. Metrics of a
stage that did not run with an experiment's parameters are left out, with a note.
"""

import argparse
import json
import math
import subprocess
import sys
from fnmatch import fnmatchcase

import pandas as pd
from ruamel.yaml import YAML  # reads 1e-05 as the number that DVC means

from genprior.files import InputError
from pipeline.run import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments; without any, all of the commit")
    parser.add_argument("--metrics", default="*", metavar="GLOB", help="only metrics of such a name, e.g. '*.psnr_db'")
    parser.add_argument("--rev", default="HEAD", metavar="COMMIT", help="the commit that they started from")
    arguments = parser.parse_args()
    shown = json.loads(output(sys.executable, "-m", "dvc", "exp", "show", "--json", "--rev", arguments.rev))
    found = {}
    for name, told in experiments(shown, arguments.names).items():
        params = values(told["data"]["params"])
        lock = YAML(typ="safe").load(output("git", "show", f"{told['rev']}:dvc.lock"))
        stale = stale_outputs(lock["stages"], params) & set(told["data"]["metrics"])
        if stale:
            files = ", ".join(sorted(stale))
            print(f"note: {name}: left out, for their stages did not run with its parameters: {files}", file=sys.stderr)
        fresh = {file: content for file, content in told["data"]["metrics"].items() if file not in stale}
        found[name] = (params, values(fresh))
    print(seed_table(found, arguments.metrics))


def output(*command: str) -> str:
    """What a command prints; InputError with its first line where it fails."""
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"{' '.join(command[-3:])}: {said[0].removeprefix('ERROR: ')}")
    return done.stdout


def experiments(shown: list[dict], names: list[str]) -> dict[str, dict]:
    """What `dvc exp show --json` tells of each finished experiment of those names, or of every one if none is named.

    DVC shows a failed or waiting experiment with the metrics it started from; such a one is left out. Raises InputError
    for a name that is no finished experiment.
    """
    found, unfinished = {}, []
    for commit in shown:
        for experiment in commit["experiments"] or []:
            (last, *_) = experiment["revs"]
            state = (experiment["executor"] or {"state": "success"})["state"]
            if last["error"] or state != "success":
                unfinished.append(last["name"])
            else:
                found[last["name"]] = last
    for name in names:
        if name in unfinished:
            raise InputError(f"NAME = '{name}': did not finish")
        if name not in found:
            raise InputError(f"NAME = '{name}': no such experiment; there is {', '.join(found) or 'none'}")
    if not found:
        raise InputError(
            "no finished experiment started from this commit; --rev COMMIT shows those of another one, and "
            "dvc exp run --queue -S 'seed=range(3)' makes some"
        )
    if unfinished and not names:
        print(f"note: left out, for they did not finish: {', '.join(sorted(unfinished))}", file=sys.stderr)
    return {name: found[name] for name in names or found}


def stale_outputs(stages: dict[str, dict], params: dict) -> set[str]:
    """Outputs that a lock's stages made with other parameters than `params`, or from other files than the lock's own.

    An experiment that ran only up to a stage has them: what comes behind is still that of the commit.
    """
    made = {out["path"]: out.get("md5") for stage in stages.values() for out in stage.get("outs", [])}
    stale = set()
    for _ in stages:  # in the longest chain, each round finds one more
        for stage in stages.values():
            recorded = values({file: {"data": block} for file, block in stage.get("params", {}).items()})
            changed = any(params.get(key) != value for key, value in recorded.items())
            deps = {dep["path"]: dep.get("md5") for dep in stage.get("deps", [])}
            behind = any(_overlap(path, other) for path in deps for other in stale)
            if changed or behind or any(made.get(path, md5) != md5 for path, md5 in deps.items()):
                stale |= {out["path"] for out in stage.get("outs", [])}
    return stale


def _overlap(path: str, other: str) -> bool:
    """Whether one of two paths is the other, or lies in it: `imgs` depends on what makes `imgs/standard`."""
    return f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/")


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
            if (metrics.loc[twice.index].nunique() > 1).any():  # one that ran only up to a stage lacks some
                names = " and ".join(sorted(twice.index))
                raise InputError(f"{names}: equal parameters, other metrics: their code differs; name the ones to take")
        seeds = metrics.loc[same.index].groupby(same["seed"]).first()
        title = ", ".join(f"{name} = {same[name].iloc[0]}" for name in changed) or "all"
        columns[f"{title} (n = {len(seeds)})".replace("|", "\\|")] = [
            spread(seeds[name].dropna(), len(seeds)) for name in metrics
        ]
    rows = [["metric", *columns], ["---"] * (1 + len(columns)), *zip(metrics, *columns.values(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _rank(value: object) -> tuple:
    """Numbers by size, before all else by its text."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, repr(value))


def spread(seeds: pd.Series, of: int) -> str:
    """mean ± standard error, to two digits of the error; of a single seed its value; how many, if fewer than `of`."""
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
