"""What a branch changes, as Markdown for a pull request: parameters, metrics and pictures.

    python -m tools.pr_report main                   # the commit HEAD against where it left main
    python -m tools.pr_report main > report.md

The numbers are those of `dvc params diff` and `dvc metrics diff`. A metric has moved when its two values differ by more
than its measure's own noise, as docs/metrics.md has it, and by more than one in the sixth significant digit, the
last that the pipeline writes. On GitHub, where GITHUB_REPOSITORY is set, pictures are shown by the address of their
commit, elsewhere by their path.
"""

import argparse
import json
import math
import os
import sys
from itertools import groupby
from statistics import median
from typing import NamedTuple
from urllib.parse import quote

from genprior.files import InputError
from pipeline.files import markdown
from pipeline.run import run
from pipeline.tables import measure_of, title
from tools import output

MARKER = "<!-- genprior: what this branch changes -->"  # by which the workflow finds its comment again
MOST_BYTES = 65_000  # GitHub takes comments of 65,536 characters
DIGITS = 6


class Row(NamedTuple):
    """A parameter or a metric in two commits; None where it is not there, or null."""

    file: str
    name: str
    before: object
    after: object

    @property
    def measure(self) -> str:
        return self.name.rsplit(".", 1)[-1]

    @property
    def change(self) -> float | None:
        """after − before, where both are finite numbers."""
        for value in (self.before, self.after):
            if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
                return None
        return self.after - self.before

    @property
    def share(self) -> float:
        """The change over the larger of the two values; inf for what is new, gone or no number."""
        return math.inf if self.change is None else abs(self.change) / max(abs(self.before), abs(self.after))

    @property
    def differs(self) -> bool:
        return repr(self.before) != repr(self.after)

    @property
    def moved(self) -> bool:
        """Whether it differs by more than its own noise and one in the sixth digit, which a whole number lacks."""
        if not self.change:
            return self.differs and self.change is None
        known, largest = measure_of(self.measure), max(abs(self.before), abs(self.after))
        # Half a unit of slack: the difference of two decimals is not exact.
        digit = 0 if isinstance(self.change, int) else 1.5 * 10.0 ** (math.floor(math.log10(largest)) + 1 - DIGITS)
        return abs(self.change) > max(digit, known.own_noise(largest) * (1 + 1e-9) if known else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="the branch or commit to compare with, e.g. main")
    print(report(parser.parse_args().base), end="")
    if git("status", "--porcelain", "--untracked-files=no", "."):
        print("note: what is not committed is not in this report", file=sys.stderr)


def report(base: str) -> str:
    """The report of HEAD against the commit where it left `base`, short enough for a comment on GitHub.

    Raises InputError where `base` names no commit, shares no history with HEAD, or a metric or parameter is unreadable.
    """
    before, after = common_commit(base), git("rev-parse", "HEAD")
    parameters, metrics = (differences(kind, before, after) for kind in ("params", "metrics"))
    head = f"Commit `{after[:7]}` against `{before[:7]}`, where it left {code(base)}."
    return assemble(head, parameters, metrics, changed_pictures(before, after))


def assemble(head: str, parameters: list[Row], metrics: list[Row], pictures: list[str]) -> str:
    """The report as text, every list cut to as many entries as fit a comment."""
    for most in (10_000, 500, 200, 100, 50, 25, 10, 5, 0):
        parts = [f"{MARKER}\n## What this branch changes", head, parameters_part(parameters, most)]
        parts += [*metrics_part(metrics, most), f"**Pictures:** {len(pictures) or 'none'} changed.", *pictures[:most]]
        text = "\n\n".join(parts) + left_out(pictures, most) + "\n"
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def git(*arguments: str) -> str:
    """What a git command prints."""
    return output("git", *arguments).stdout.strip()


def common_commit(base: str) -> str:
    """The newest commit that HEAD and `base` share: what came to `base` since is no change of this branch."""
    git("rev-parse", "HEAD")  # where this fails, its own line says why
    try:
        return git("merge-base", git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}"), "HEAD")
    except InputError:
        wrong = "no commit here that HEAD goes back to; fetch the whole history, or try origin/main"
        raise InputError(f"BASE = '{base}': {wrong}") from None


def differences(kind: str, before: str, after: str) -> list[Row]:
    """All rows of `dvc params diff` or `dvc metrics diff`, by file and name.

    Raises InputError where DVC could not read a file of either commit: it counts that as not there, and ends well.
    """
    done = output(sys.executable, "-m", "dvc", kind, "diff", "--all", "--json", before, after)
    if unread := [line for line in done.stderr.splitlines() if "failed to load" in line]:
        raise InputError(f"dvc {kind} diff {before[:7]} {after[:7]}: {unread[0]}")
    found = sorted(json.loads(done.stdout or "{}").items())
    return [Row(file, name, v.get("old"), v.get("new")) for file, names in found for name, v in sorted(names.items())]


def parameters_part(rows: list[Row], most: int) -> str:
    """The parameters that changed."""
    lines = [[code(row.name), code(row.before), code(row.after)] for row in rows if row.differs]
    if not lines:
        return "**Parameters:** none changed."
    return f"**Parameters:** {len(lines)} changed.\n\n{table(['parameter', 'before', 'after'], lines, most)}"


def metrics_part(rows: list[Row], most: int) -> list[str]:
    """How many metrics moved, a line for each measure, and the rows by file, those first that moved farthest."""
    moved = sorted((row for row in rows if row.moved), key=lambda row: (row.file, -row.share))
    parts = [f"**Metrics:** {len(moved)} of {len(rows)} moved by more than their own noise."]
    if within := sum(row.differs for row in rows) - len(moved):
        parts[0] += f" {within} more differ by no more than another CPU or Monte Carlo moves them: no finding."
    if numbers := [row for row in moved if row.change is not None]:
        parts.append(by_measure(numbers, most))
    for file, group in groupby(moved, key=lambda row: row.file):
        lines = [[code(row.name), code(row.before), code(row.after), signed(row.change)] for row in group]
        parts.append(folded(f"{file}: {len(lines)} moved", table(["metric", "before", "after", "change"], lines, most)))
    return parts


def by_measure(rows: list[Row], most: int) -> str:
    """One line for each measure, those with a direction first: how many rows went up and down, and how far."""
    lines = []
    for name, group in groupby(sorted(rows, key=lambda row: row.measure), key=lambda row: row.measure):
        known, far = measure_of(name), sorted(group, key=lambda row: abs(row.change))
        said = [title(name), known.better, known.noise] if known else ["", "", ""]
        counts = [str(sum(sign * row.change > 0 for row in far)) for sign in (1, -1)]
        middle = signed(median(row.change for row in far))
        lines.append([code(name), *said, *counts, middle, signed(far[-1].change), code(far[-1].name)])
    header = ["measure", "what it is", "better", "own noise", "up", "down", "median change", "largest change", "where"]
    return table(header, sorted(lines, key=lambda line: not line[2]), most)


def changed_pictures(before: str, after: str) -> list[str]:
    """The pictures under data/report/ that differ between two commits, each folded, before and after."""
    options = ("--name-status", "--no-renames", "--relative", "-z")
    told = git("diff", *options, before, after, "--", "data/report").split("\0")
    parts = []
    for status, path in zip(told[::2], told[1::2], strict=False):
        if path.endswith((".png", ".jpg", ".jpeg", ".svg", ".gif")):
            word = {"A": "new", "D": "removed"}.get(status, "changed")
            old = "" if status == "A" else shown("before", path, before)
            new = "" if status == "D" else shown("after", path, after)
            parts.append(folded(f"{path}: {word}", markdown(["before", "after"], [[old, new]])))
    return parts


def shown(word: str, path: str, commit: str) -> str:
    """Markdown for a picture as it is in a commit."""
    if repository := os.environ.get("GITHUB_REPOSITORY"):
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        folder = git("rev-parse", "--show-prefix")  # of this project within its repository
        return f"![{word}]({server}/{repository}/raw/{commit}/{quote(folder + path)})"
    return f"![{word}]({quote(path)})" if word == "after" else f"`git show {commit[:7]}:./{path}`"


def folded(summary: str, content: str) -> str:
    """A part that the reader opens with a click; the empty lines make GitHub read its content as Markdown."""
    summary = summary.replace("&", "&amp;").replace("<", "&lt;")
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def table(header: list[str], lines: list[list[str]], most: int) -> str:
    """A Markdown table of the first `most` lines; below it, how many it leaves out."""
    return markdown(header, lines[:most]) + left_out(lines, most)


def left_out(lines: list, most: int) -> str:
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
