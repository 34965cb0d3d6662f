"""One HTML page of the last run, needing no network: `python -m tools.page [--out report.html]`.

It is made from what stands in Git, dvc.lock, metrics/ and data/report/; the same files give the same page.
"""

import argparse
import base64
import hashlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image
from ruamel.yaml import YAML, YAMLError  # reads 1e-05 as the number that DVC means

from genprior.files import InputError
from pipeline.files import write_text
from pipeline.run import run
from stages.report import (
    NAMES,
    PRIORS,
    TARGET,
    Metrics,
    by_method,
    crossover,
    fewer_measurements,
    label,
    weightings,
    wide,
)

KINDS = {"range": "confined", "relaxed": "residual", "mean": "residual", "none": "classical"}  # by constraint
WORDS = {
    "detail_db": "detail [dB]",
    "elbo": "ELBO",
    "mmd_p_value": "MMD p-value",
    "monte_carlo_error": "Monte Carlo error",
    "squared_mmd": "squared MMD",
    "sliced_wasserstein": "sliced Wasserstein",
}
WITHOUT_PRIOR = ["minimum_norm", "tikhonov"]
FLOOR = NAMES["floor"]
LASSO = NAMES["lasso_dct"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.page", description="Write the last run as one HTML page.")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page's file (default: %(default)s)")
    out = parser.parse_args().out
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; the name of a file would be right")
    write_text(out, render())
    print(f"wrote {out}, {out.stat().st_size / 2**20:.1f} MiB")


def render() -> str:
    """The page; InputError names a file that is missing or damaged."""
    stages = read_stages()
    check_recorded(stages)
    settings = stages["report"]["parameters"]
    problems, counts = list(settings["problems"]), settings["crossover"]["measurements"]
    table = read_table([*problems, *(f"m_{m}" for m in counts)])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    patches, chapter = (read_metrics(name) for name in ("patches", "chapter"))
    environment.filters["words"] = lambda name: WORDS.get(name, str(name).replace("_", " "))
    return environment.get_template("page.html.j2").render(
        stages=stages,
        settings=settings,
        patches=patches,
        priors={name: NAMES[name] for name in PRIORS},
        lasso=LASSO,
        picture=picture,
        leaves=leaves,
        tables=tables(table, problems, counts) | {"weightings": cells(weightings(Metrics("train_vae")), 2)},
        rankings={problem: ranking(table, problem) for problem in problems},
        sweep=sweep(table, counts),
        chapter=leaves(chapter),
    )


def read(path: str | Path, parse: Callable[[bytes], Any]) -> Any:
    """What `parse` makes of a file of the run; InputError where it is missing or damaged."""
    try:
        return parse(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: not there; `make repro` writes it") from None
    except (OSError, ValueError, SyntaxError, LookupError, TypeError, AttributeError, YAMLError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path}: damaged; `make repro` writes it anew ({reason})") from None


def read_stages() -> dict[str, dict]:
    """What dvc.lock says of each stage that has run: its command, its parameters then, its outputs' hashes."""

    def recorded(content: bytes) -> dict[str, dict]:
        return {
            name: {
                "command": stage["cmd"],
                "parameters": stage.get("params", {}).get("params.yaml", {}),
                "outputs": {out["path"]: out["md5"] for out in stage["outs"]},
            }
            for name, stage in YAML(typ="safe").load(content)["stages"].items()
        }

    stages = read("dvc.lock", recorded)
    if "report" not in stages:
        raise InputError("dvc.lock: the stage report has not run; `make repro` runs it")
    if lacking := {"problems", "crossover"} - set(stages["report"]["parameters"]):
        raise InputError(f"dvc.lock: stage report has no {min(lacking)} among its params; `make repro` writes it anew")
    return stages


def check_recorded(stages: dict[str, dict]) -> None:
    """InputError where a metrics file is not the one of dvc.lock: its parameters and numbers would be of two runs."""
    for path, md5 in (output for stage in stages.values() for output in stage["outputs"].items()):
        if path.startswith("metrics/") and read(path, lambda content: hashlib.md5(content).hexdigest()) != md5:
            raise InputError(f"{path}: not what dvc.lock has of it; `make repro` brings them together")


def read_metrics(name: str) -> dict:
    """One file of metrics/, without its outermost key, which is its name."""
    return read(f"metrics/{name}.json", lambda content: json.loads(content)[name])


def read_table(problems: list[str]) -> pd.DataFrame:
    """The report's long table, which has to hold the named problems."""
    path = TARGET / "table.csv"
    table = read(path, lambda content: pd.read_csv(io.BytesIO(content)))
    wanted = ["method", "problem", "constraint", "measure", "value"]
    if list(table) != wanted:
        raise InputError(f"{path}: damaged; `make repro` writes it anew (its columns are not {', '.join(wanted)})")
    if lacking := [problem for problem in problems if problem not in set(table.problem)]:
        raise InputError(f"{path}: holds nothing of {lacking[0]}, which dvc.lock names; `make repro` writes it anew")
    return table


def picture(name: str) -> dict:
    """One of the report's PNGs as a data URI, with its width and height."""

    def embedded(content: bytes) -> dict:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as opened:
            opened.load()  # a PNG that is cut short fails here
            width, height = opened.size
        uri = "data:image/png;base64," + base64.b64encode(content).decode()
        return {"uri": uri, "width": width, "height": height}

    return read(TARGET / f"{name}.png", embedded)


def leaves(values: dict, prefix: str = "") -> dict[str, str]:
    """Nested values as {"block.key": text}."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def tables(table: pd.DataFrame, problems: list[str], counts: list[int]) -> dict[str, dict]:
    """Every table of the page, ready to print."""
    psnr = wide(table, "psnr_db", ["representation", *problems])
    relative = wide(table, "relative_error", ["representation", *problems])
    curves = crossover(with_prior(table), counts)
    fewer = fewer_measurements(curves, LASSO)
    sets = by_method(table, "samples", ["coverage", "coverage_error", "density", "precision", "recall"])
    measures = ["squared_mmd", "mmd_p_value", "sliced_wasserstein", "detail_db", "distance_to_train"]
    distributions = by_method(table, "samples", measures)
    likelihood = by_method(
        table, "likelihood", ["log_likelihood", "standard_error", "monte_carlo_error", "effective_share"]
    )
    confined = table[table.constraint == "range"]
    errors = pd.concat([wide(confined, "mse", ["representation"]), wide(confined, "added_mse", problems)], axis=1)
    return {
        "psnr": cells(psnr, 2, psnr),
        "relative": cells(relative, 3, -relative),
        "residual": cells(wide(table, "residual_over_sigma", problems), 2),
        "crossover": cells(curves, 2, curves),
        "fewer": cells(fewer, 2, fewer),
        "sets": cells(sets, 3, nearness(sets).drop(columns="coverage_error")),
        "distributions": cells(
            distributions, [4, 3, 4, 2, 2], nearness(distributions).drop(columns=["mmd_p_value", "distance_to_train"])
        ),
        "errors": cells(1000 * errors.dropna(), 2),
        "solver": cells(wide(table, "solver_gap", problems), 2),
        "control": cells(wide(table, "in_range_psnr_db", problems), 2),
        "likelihood": cells(likelihood, [4, 4, 4, 2], likelihood[["log_likelihood"]]),
        "bounds": cells(by_method(table, "likelihood", ["elbo", "importance_bound", "log_likelihood"]).dropna(), 4),
        "coverage_90": cells(intervals(table, "coverage_90", problems), 2),
        "coverage_50": cells(intervals(table, "coverage_50", problems), 2),
    }


def with_prior(table: pd.DataFrame) -> pd.DataFrame:
    """The table without those methods whose error is of another order."""
    return table[~table.method.isin(WITHOUT_PRIOR)]


def nearness(samples: pd.DataFrame) -> pd.DataFrame:
    """How near each set of samples comes to what other real patches get."""
    return -(samples - samples.loc[FLOOR]).abs().drop(index=FLOOR)


def intervals(table: pd.DataFrame, measure: str, problems: list[str]) -> pd.DataFrame:
    """Shares of pixels within their credible interval, of held-out patches and of the prior's own draws."""
    own = wide(table, f"in_range_{measure}", problems)
    return pd.concat([wide(table, measure, problems), own.rename(index=lambda name: f"{name}, own draws")])


def cells(frame: pd.DataFrame, digits: int | list[int], score: pd.DataFrame | None = None) -> dict:
    """A table as text, with those cells of a column marked that print as the one of the highest score does.

    digits: after the point, for all columns or for each.
    """
    places = dict(zip(frame, [digits] * frame.shape[1] if isinstance(digits, int) else digits, strict=True))
    shown = frame.apply(lambda column: column.map(lambda value: number(value, places[column.name])))
    scored = [] if score is None else score.dropna(axis=1, how="all")
    best = {column: shown.loc[scored[column].idxmax(), column] for column in scored}
    return {
        "columns": list(frame),
        "rows": {name: [(text, text == best.get(c)) for c, text in row.items()] for name, row in shown.iterrows()},
    }


def number(value: float, digits: int) -> str:
    """A number with a true minus sign, which is as wide as a digit; nothing where there is none."""
    return "" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def ranking(table: pd.DataFrame, problem: str) -> dict:
    """Every method's PSNR in one problem as a dot, the best first."""
    return dots(table, wide(table, "psnr_db", [problem]).sort_values(problem, ascending=False))


def sweep(table: pd.DataFrame, counts: list[int]) -> dict:
    """The same against the number of measurements, methods in the order of the tables."""
    return {"counts": counts} | dots(table, crossover(with_prior(table), counts))


def dots(table: pd.DataFrame, psnr: pd.DataFrame) -> dict:
    """Each row of PSNRs as places in per cent of one axis, which fits those methods that have a prior."""
    kinds = {label(m, c): KINDS[c] for m, c in table[["method", "constraint"]].drop_duplicates().values}
    fitted = psnr.drop(index=[NAMES[name] for name in WITHOUT_PRIOR], errors="ignore")
    low, high = fitted.min().min() // 1, -(-fitted.max().max() // 1)
    places = (100 * (psnr - low) / (high - low)).clip(0, 100)
    return {
        "low": int(low),
        "high": int(high),
        "lasso": places.loc[LASSO].round(2).tolist(),
        "rows": [
            {
                "name": name,
                "kind": kinds[name] + (" off" if (values < low).any() else ""),
                "places": places.loc[name].round(2).tolist(),
                "texts": [number(value, 2) for value in values],
            }
            for name, values in psnr.iterrows()
        ],
    }


if __name__ == "__main__":
    run(main)
