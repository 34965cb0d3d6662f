"""What a reader gets of a run: one HTML page that needs no network, and its short index for GitHub."""

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from PIL import Image

from pipeline.files import flat, markdown
from pipeline.params import Params
from pipeline.statements import STATEMENTS
from pipeline.tables import (
    NAMES,
    PRIORS,
    WITHOUT_PRIOR,
    by_method,
    crossover,
    fewer_measurements,
    label,
    measure_of,
    read_curve,
    title,
    value,
    wide,
    with_prior,
)

HERE = Path(__file__).parent
KINDS = {"range": "confined", "relaxed": "residual", "mean": "residual", "none": "classical"}  # by constraint
FLOOR = NAMES["floor"]
LASSO = NAMES["lasso_dct"]
LIKELIHOOD = ["log_likelihood", "standard_error", "monte_carlo_error", "effective_share"]


def render(
    template: str,
    table: pd.DataFrame,
    params: Params,
    folder: Path,
    paired: dict,
    photographs: dict[str, list],
    live: str,
) -> str:
    """A template of this folder, page.html.j2 or index.md.j2, filled with numbers and the pictures in `folder`.

    paired: what `pipeline.photographs.comparison` says; photographs: by problem a measured and a restored one, uint8
    (H, W); live: what `stages.live` writes.
    """
    problems, counts = list(params.problems), params.crossover.measurements
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"title": title, "leaves": leaves, "markdown": as_markdown}
    counted = table[(table.problem == "patches") & table.measure.isin(["patches", "photographs"])]
    return environment.get_template(template).render(
        settings=params.model_dump(mode="json"),
        patches=counted.pivot(index="method", columns="measure", values="value").astype(int).to_dict("index"),
        priors=PRIORS,
        lasso=LASSO,
        floor=FLOOR,
        pictures=sorted(file.stem for file in folder.glob("[!.]*.png")),
        picture=lambda name: picture((folder / f"{name}.png").read_bytes()),
        statements=statements(table, params),
        live=live,
        scripts="".join((HERE / name).read_text(encoding="utf-8") for name in ("live.js", "widgets.js")),
        tables=tables(table, problems, counts) | whole(table, params) | {"paired": paired},
        photographs={name: [grey(image) for image in pair] for name, pair in photographs.items()},
        rankings={
            problem: dots(table, wide(table, "psnr_db", [problem]).sort_values(problem, ascending=False))
            for problem in problems
        },
        sweep={"counts": counts} | dots(table, crossover(with_prior(table), counts)),
        chapter={
            " ".join([row.method, *([] if row.constraint == "none" else [row.constraint]), row.measure]): row.value
            for row in table[table.problem == "chapter"].itertuples()
        },
    )


def statements(table: pd.DataFrame, params: Params) -> list[dict[str, str]]:
    """The chapter's statements with this run's numbers; InputError where it lacks one."""
    few, *_, many = params.crossover.measurements
    words = {"PROBLEM": params.report.posterior, "FEWEST": str(few), "MOST": str(many)}

    def of_each_prior(part: re.Match) -> str:
        return ", ".join(part[1].replace("PRIOR", key).replace("NAME", name) for key, name in PRIORS.items())

    def measured(part: re.Match) -> str:
        block, *file, measure = part[1].split(".")
        found = read_curve(*file, [measure])[measure].iloc[-1] if block == "curves" else value(table, part[1])
        return number(found, measure_of(measure).digits)

    rows = []
    for says, shows, command in STATEMENTS:
        text = re.sub("|".join(words), lambda word: words[word[0]], re.sub("<(.+?)>", of_each_prior, shows))
        text, _, picture = re.sub(r"\{(.+?)\}", measured, text).rstrip("]").partition(" [")
        rows.append({"says": says, "shows": text, "picture": picture, "command": command})
    return rows


def as_markdown(cells: dict, corner: str) -> str:
    """One of `tables` as Markdown, the marked cells bold."""
    rows = ([name, *(f"**{text}**" if best else text for text, best in row)] for name, row in cells["rows"].items())
    return markdown([corner, *map(title, cells["columns"])], rows)


def picture(content: bytes) -> dict:
    """A PNG as a data URI, with its width and height."""
    with Image.open(io.BytesIO(content)) as opened:
        width, height = opened.size
    return {"uri": "data:image/png;base64," + base64.b64encode(content).decode(), "width": width, "height": height}


def grey(image: np.ndarray) -> dict:
    """An image (H, W) of uint8 as `picture`."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return picture(content.getvalue())


def leaves(values: dict) -> dict[str, str]:
    """Nested values as {"block.key": text}."""
    as_text = lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)  # noqa: E731
    return {key: as_text(value) for key, value in flat(values).items()}


def tables(table: pd.DataFrame, problems: list[str], counts: list[int]) -> dict[str, dict]:
    """Every table of the page and the index, ready to print."""

    def problemwise(measure: str, *more: str, marked: bool = False) -> dict:
        return cells(wide(table, measure, [*more, *problems]), measure, marked)

    sets = by_method(table, "samples", ["coverage", "coverage_error", "density", "precision", "recall"])
    drawn = ["coverage", "detail_db"]
    distances = ["squared_mmd", "mmd_p_value", "sliced_wasserstein", "detail_db", "distance_to_train"]
    confined = table[table.constraint == "range"]
    errors = pd.concat([wide(confined, "mse", ["representation"]), wide(confined, "added_mse", problems)], axis=1)
    curves = crossover(with_prior(table), counts)
    of_vaes = table[table.method.isin(["vae", "svae"])]
    compared = with_prior(table[table.constraint.isin(["mean", "none"])])
    residuals = ["residual_log_likelihood", "residual_log_likelihood_constant"]
    return {
        "restored": cells(wide(compared, "psnr_db", problems), "psnr_db", True),
        "psnr": problemwise("psnr_db", "representation", marked=True),
        "relative": problemwise("relative_error", "representation", marked=True),
        "residual": problemwise("residual_over_sigma"),
        "crossover": cells(curves, "psnr_db", True),
        "fewer": cells(fewer_measurements(curves, LASSO), "times_fewer", True),
        "sets": cells(sets, marked=["coverage", "density", "precision", "recall"], aim=FLOOR),
        "distributions": cells(
            by_method(table, "samples", distances), marked=[distances[i] for i in (0, 2, 3)], aim=FLOOR
        ),
        "drawn": cells(by_method(table, "samples", drawn), marked=drawn, aim=FLOOR),
        "codes": cells(by_method(table, "samples", ["active_codes", "kl_nats"])),
        "errors": cells(errors.dropna(), "mse"),
        "solver": problemwise("solver_gap"),
        "control": problemwise("in_range_psnr_db"),
        "likelihood": cells(by_method(table, "likelihood", LIKELIHOOD), marked=["log_likelihood"]),
        "bounds": cells(by_method(table, "likelihood", ["elbo", "importance_bound", "log_likelihood"]).dropna()),
        "coverage_90": intervals(table, "coverage_90", problems),
        "coverage_50": intervals(table, "coverage_50", problems),
        "weightings": cells(by_method(of_vaes, "training", ["test_kl", "active_units", "used_units", "test_psnr_db"])),
        "residuals": cells(by_method(table, "training", residuals)),
    }


def whole(table: pd.DataFrame, params: Params) -> dict[str, dict]:
    """The tables of whole photographs: means over them."""
    restored, problems = table[table.constraint == "whole"], list(params.restore.problems)
    compared = {f"whole_{m}": cells(wide(restored, m, problems), m, True) for m in ("psnr_db", "ssim")}
    return compared | {"whole_coverage_90": cells(wide(restored, "coverage_90", problems), "coverage_90")}


def intervals(table: pd.DataFrame, measure: str, problems: list[str]) -> dict:
    """Shares of pixels within their credible interval, of held-out patches and of the prior's own draws."""
    own = wide(table, f"in_range_{measure}", problems).rename(index=lambda name: f"{name}, own draws")
    return cells(pd.concat([wide(table, measure, problems), own]), measure)


def cells(frame: pd.DataFrame, of: str | None = None, marked: bool | list[str] = False, aim: str | None = None) -> dict:
    """A table as text, by the registry's digits, and of the columns `marked` the best cells, by its direction.

    of: the measure of all columns; without it, each is named after its own. aim: the row that others should be near.
    """
    rows = {name: [] for name in frame.index}
    for column, values in frame.items():
        measure, best = measure_of(of or column), None
        texts = values.map(lambda value, digits=measure.digits: number(value, digits))
        if (marked is True or (marked and column in marked)) and values.notna().any():
            if aim is not None:
                score = -(values - values[aim]).abs().drop(aim)
            else:
                score = {"higher": values, "lower": -values}[measure.better]
            best = texts[score.idxmax()]
        for name, text in texts.items():
            rows[name].append((text, text == best and name != aim))
    return {"columns": list(frame), "rows": rows}


def number(value: float, digits: int) -> str:
    """A number with a true minus sign, which is as wide as a digit; nothing where there is none."""
    return "" if math.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def dots(table: pd.DataFrame, psnr: pd.DataFrame) -> dict:
    """Each row of PSNRs as places in per cent of one axis, which fits those methods that have a prior."""
    of_patches = (table.measure == "psnr_db") & table.constraint.isin(KINDS)
    pairs = table.loc[of_patches, ["method", "constraint"]].drop_duplicates()
    kinds = {label(method, constraint): KINDS[constraint] for method, constraint in pairs.values}
    fitted = psnr.drop(index=[NAMES[name] for name in WITHOUT_PRIOR], errors="ignore")
    low, high = fitted.min().min() // 1, -(-fitted.max().max() // 1)
    places = (100 * (psnr - low) / (high - low)).clip(0, 100).round(2)
    return {
        "low": int(low),
        "high": int(high),
        "lasso": places.loc[LASSO].tolist(),
        "rows": [
            {
                "name": name,
                "kind": kinds[name] + (" off" if (values < low).any() else ""),
                "places": places.loc[name].tolist(),
                "texts": [number(value, measure_of("psnr_db").digits) for value in values],
            }
            for name, values in psnr.iterrows()
        ],
    }
