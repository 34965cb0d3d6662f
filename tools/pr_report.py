"""What a branch changes, as Markdown for a pull request: parameters, metrics and pictures.

    python -m tools.pr_report main                   # the commit HEAD against where it left main
    python -m tools.pr_report main --out report.md

The numbers are those of `dvc params diff` and `dvc metrics diff`. A metric has moved when its two values differ by more
than one in the sixth significant digit, the last that the pipeline writes; a whole number or a word, when they differ.
On GitHub, where GITHUB_REPOSITORY is set, pictures are shown by the address of their commit, elsewhere by their path.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from itertools import groupby
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import quote

import pandas as pd

from genprior.files import InputError
from pipeline.files import write_text
from pipeline.run import run

MARKER = "<!-- genprior: what this branch changes -->"  # by which the workflow finds its comment again
MOST_BYTES = 65_000  # GitHub takes comments of 65,536 characters
DIGITS = 6
PICTURES = {".png", ".jpg", ".jpeg", ".svg", ".gif"}
HIGHER = {"psnr_db", "test_psnr_db", "log_likelihood", "elbo", "test_elbo", "coverage", "recall"}
LOWER = {"mse", "test_mse", "relative_error", "sliced_wasserstein", "squared_mmd", "solver_gap"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="the branch or commit to compare with, e.g. main")
    parser.add_argument("--out", help="a file to write; without it, the report is printed")
    arguments = parser.parse_args()
    text = report(arguments.base)
    if git("status", "--porcelain", "--untracked-files=no"):
        print("note: what is not committed is not in this report", file=sys.stderr)
    if arguments.out:
        write_text(arguments.out, text)
    else:
        print(text, end="")


class Row(NamedTuple):
    """A parameter or a metric in two commits; None where it is not there, or null."""

    file: str
    name: str
    before: object
    after: object

    @property
    def change(self) -> float | None:
        """after − before, where both are finite numbers."""
        pair = (self.before, self.after)
        if any(isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300 for value in pair):
            return None
        return None if math.isnan(self.after - self.before) else self.after - self.before

    @property
    def relative(self) -> float:
        """|change| over the larger of the two values; infinite for a row that is new, gone or no number."""
        return math.inf if self.change is None else abs(self.change) / (max(abs(self.before), abs(self.after)) or 1)

    @property
    def differs(self) -> bool:
        return repr(self.before) != repr(self.after)

    @property
    def moved(self) -> bool:
        """Whether it differs by more than one in the sixth significant digit; two whole numbers, at all."""
        if self.change is None or isinstance(self.change, int):
            return self.differs
        largest = max(abs(self.before), abs(self.after))
        # Half a unit of slack: the difference of two decimals is not exact.
        return largest > 0 and abs(self.change) > 1.5 * 10.0 ** (math.floor(math.log10(largest)) + 1 - DIGITS)


def report(base: str) -> str:
    """The report of HEAD against the commit where it left `base`, short enough for a comment on GitHub.

    Raises InputError where `base` names no commit, shares no history with HEAD, or a metric or parameter is unreadable.
    """
    before, after = common_commit(base), git("rev-parse", "HEAD").strip()
    parameters = differences("params", before, after)
    metrics = differences("metrics", before, after)
    pictures = changed_pictures(before, after)
    head = f"Commit `{after[:7]}` against `{before[:7]}`, where it left {code(base)}."
    return assemble(head, parameters, metrics, pictures, before, after)


def assemble(
    head: str, parameters: list[Row], metrics: list[Row], pictures: dict[str, str], before: str, after: str
) -> str:
    """The report as text, every table cut to as many rows as fit a comment."""
    for most in (10_000, 500, 200, 100, 50, 25, 10, 5, 0):
        parts = [
            f"{MARKER}\n## What this branch changes",
            head,
            parameters_part(parameters, most),
            *metrics_part(metrics, most),
            *pictures_part(pictures, before, after, most),
        ]
        text = "\n\n".join(parts) + "\n"
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def git(*arguments: str) -> str:
    """What a git command prints; InputError with its first line where it fails."""
    return _output(["git", *arguments]).stdout


def common_commit(base: str) -> str:
    """The newest commit that HEAD and `base` share: what came to `base` since is no change of this branch."""
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
    except InputError:
        git("rev-parse", "HEAD")  # where that fails too, its own line says why
        raise InputError(f"BASE = '{base}': no such branch or commit here; try main or origin/main") from None
    try:
        return git("merge-base", commit, "HEAD").strip()
    except InputError:
        raise InputError(f"BASE = '{base}': shares no commit with HEAD; fetch the whole history") from None


def differences(kind: str, before: str, after: str) -> list[Row]:
    """All rows of `dvc params diff` or `dvc metrics diff`, by file and name.

    Raises InputError where DVC could not read a file of either commit: it counts that as not there, and ends well.
    """
    done = _output([sys.executable, "-m", "dvc", kind, "diff", "--all", "--json", before, after])
    unread = [line for line in done.stderr.splitlines() if "failed to load" in line]
    if unread:
        raise InputError(f"dvc {kind} diff {before[:7]} {after[:7]}: {unread[0]}")
    found = json.loads(done.stdout or "{}")
    return [
        Row(file, name, pair.get("old"), pair.get("new"))
        for file, names in sorted(found.items())
        for name, pair in sorted(names.items())
    ]


def _output(command: list[str]) -> subprocess.CompletedProcess:
    done = subprocess.run(command, text=True, capture_output=True, check=False)
    if done.returncode:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.strip()]
        raise InputError(f"{' '.join(command[-5:])}: {said[0] if said else f'exit code {done.returncode}'}")
    return done


def parameters_part(rows: list[Row], most: int) -> str:
    """The parameters that changed."""
    rows = [row for row in rows if row.differs]
    if not rows:
        return "**Parameters:** none changed."
    lines = [[code(row.name), code(row.before), code(row.after)] for row in rows]
    return f"**Parameters:** {len(rows)} changed.\n\n{table(['parameter', 'before', 'after'], lines, most)}"


def metrics_part(rows: list[Row], most: int) -> list[str]:
    """How many metrics moved, a line for each measure, and the rows by file, those first that moved farthest."""
    moved = [row for row in rows if row.moved]
    within = sum(row.differs for row in rows) - len(moved)
    head = f"**Metrics:** {len(moved)} of {len(rows)} moved, by more than one in the {DIGITS}th significant digit"
    parts = [head + (f"; {within} more differ by less." if within else ".")]
    if any(row.change is not None for row in moved):
        parts.append(by_measure([row for row in moved if row.change is not None], most))
    for file, group in groupby(moved, key=lambda row: row.file):
        far = sorted(group, key=lambda row: -row.relative)
        lines = [[code(row.name), code(row.before), code(row.after), signed(row.change)] for row in far]
        parts.append(folded(f"{file}: {len(far)} moved", table(["metric", "before", "after", "change"], lines, most)))
    return parts


def by_measure(rows: list[Row], most: int) -> str:
    """One line for each measure, the last part of a metric's name: how many rows went up and down, and how far."""
    frame = pd.DataFrame([(row.name.rsplit(".", 1)[-1], row.name, float(row.change)) for row in rows])
    frame.columns = ["measure", "name", "change"]
    directed = sorted(frame.groupby("measure"), key=lambda pair: pair[0] not in HIGHER | LOWER)
    lines = []
    for measure, group in directed:
        far = group.loc[group.change.abs().idxmax()]
        arrow = " ↑" if measure in HIGHER else " ↓" if measure in LOWER else ""
        counts = [str((group.change > 0).sum()), str((group.change < 0).sum())]
        sizes = [signed(group.change.median()), signed(far.change)]
        lines.append([code(measure) + arrow, *counts, *sizes, code(far["name"])])
    header = ["measure", "up", "down", "median change", "largest change", "where"]
    return f"{table(header, lines, most)}\n\n↑: higher is better; ↓: lower is better."


def changed_pictures(before: str, after: str) -> dict[str, str]:
    """The pictures under data/report/ that differ between two commits, each with A(dded), D(eleted) or M(odified)."""
    told = git("diff", "--name-status", "--no-renames", "-z", before, after, "--", "data/report").split("\0")
    pairs = zip(told[1::2], told[::2], strict=False)
    return {path: status for path, status in pairs if PurePosixPath(path).suffix.lower() in PICTURES}


def pictures_part(pictures: dict[str, str], before: str, after: str, most: int) -> list[str]:
    """The pictures that changed, before and after."""
    if not pictures:
        return ["**Pictures:** none changed."]
    parts = [f"**Pictures:** {len(pictures)} changed."]
    for path, status in list(pictures.items())[:most]:
        word = {"A": "new", "D": "removed"}.get(status, "changed")
        old = "" if status == "A" else shown("before", path, before)
        new = "" if status == "D" else shown("after", path, after)
        parts.append(folded(f"{path}: {word}", f"| before | after |\n| --- | --- |\n| {old} | {new} |"))
    parts[0] += left_out(pictures, most)
    return parts


def shown(word: str, path: str, commit: str) -> str:
    """Markdown for a picture as it is in a commit."""
    repository = os.environ.get("GITHUB_REPOSITORY")
    if repository:
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        return f"![{word}]({server}/{repository}/raw/{commit}/{quote(path)})"
    return f"![{word}]({quote(path)})" if word == "after" else f"`git show {commit[:7]}:{path}`"


def folded(summary: str, content: str) -> str:
    """A part that the reader opens with a click; the empty lines make GitHub read its content as Markdown."""
    summary = summary.replace("&", "&amp;").replace("<", "&lt;")
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def table(header: list[str], lines: list[list[str]], most: int) -> str:
    """A Markdown table of the first `most` lines; below it, how many it leaves out."""
    rows = [header, ["---"] * len(header), *lines[:most]]
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return text + left_out(lines, most)


def left_out(lines: list | dict, most: int) -> str:
    """What to say below a list that shows only `most` of its lines."""
    return f"\n\n… and {len(lines) - most} more, left out to keep this short." if len(lines) > most else ""


def signed(value: float | None) -> str:
    """A change with its sign, in three significant digits."""
    return "" if value is None else f"{value:+.3g}"


def code(value: object) -> str:
    """A value as code in a table's cell: nothing in it is Markdown, HTML or a mention of somebody; None is a dash."""
    if value is None:
        return "–"
    text = f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split()).replace("`", "'").replace("|", "\\|")
    return f"`{text if len(text) <= 200 else text[:199] + '…'}`" if text else "(empty)"


if __name__ == "__main__":
    run(main)
