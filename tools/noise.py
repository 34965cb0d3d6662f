"""By how much two runs differ in each measure, beside the own noise that docs/metrics.md has for it, as Markdown.

    python -m tools.noise metrics OTHER/metrics    # of the same code and parameters, on another kind of CPU
    python -m tools.noise --method gan metrics OTHER/metrics

For a measure whose own noise is in per cent, so are its differences: of the larger of the two values.
"""

import argparse

import pandas as pd

from genprior.files import InputError
from pipeline.files import markdown
from pipeline.run import run
from pipeline.tables import COLUMNS, MEASURES, measure_of, read_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs=2, metavar="METRICS", help="a folder of metrics")
    parser.add_argument("--method", metavar="NAME", help="numbers of this method alone")
    arguments = parser.parse_args()
    one, other = map(read_table, arguments.folders)
    print(noise_table(one if arguments.method is None else one[one.method == arguments.method], other))


def noise_table(one: pd.DataFrame, other: pd.DataFrame) -> str:
    """A line for each measure of the registry that both have: how many numbers, their differences, those beyond."""
    both = one.merge(other, on=COLUMNS[:-1], suffixes=("", "_other"))
    if both.empty:
        raise InputError("METRICS: no number in common; two folders like metrics/, and a method of both, are right")
    both["size"] = both[["value", "value_other"]].abs().max(axis=1)
    both["far"] = (both.value - both.value_other).abs()
    both["known"] = [known.key if (known := measure_of(name)) else None for name in both.measure]
    lines = []
    for key, measure in MEASURES.items():
        rows = both[both.known == key]
        if rows.empty:
            continue
        percent = " %" if measure.noise.endswith("%") else ""
        far = 100 * rows.far / rows["size"].where(rows["size"] > 0, 1) if percent else rows.far
        slack = 1 + 1e-9  # the difference of two decimals is not exact
        beyond = (rows.far > slack * rows["size"].map(measure.own_noise)).sum()
        where = ".".join(rows.loc[far.idxmax(), ["method", "constraint", "problem"]])
        said = [f"{far.median():.2g}{percent}", f"{far.max():.2g}{percent}", where if far.max() else ""]
        lines.append([f"`{key}`", str(len(rows)), measure.noise, *said, str(beyond)])
    header = ["measure", "numbers", "own noise", "median difference", "largest", "where", "beyond own noise"]
    return markdown(header, lines)


if __name__ == "__main__":
    run(main)
