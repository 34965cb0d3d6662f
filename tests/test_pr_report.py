"""The report of a pull request, the workflow that posts it, and the merge of two branches' dvc.lock."""

import json
import os
import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import small_pipeline
import yaml
from conftest import ROOT
from PIL import Image

from genprior.files import InputError
from tools import pr_report

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())


@pytest.mark.parametrize("value", ["1", "-0.123456", "999999", "1.00000E-7", "5.43210E+12", "99.9999"])
def test_moved_is_more_than_one_in_the_sixth_digit(value):
    value = Decimal(value)
    for steps in (0, 1, -1, 2, -2, 20, -20, 1000):
        other = value - steps * Decimal(1).scaleb(value.adjusted() - 5)
        unit = Decimal(1).scaleb(max(value.adjusted(), other.adjusted()) - 5)
        found = pr_report.Row("f", "n", float(value), float(other)).moved
        assert found == (abs(value - other) > unit), (value, other)


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        (1_000_000, 1_000_001, True),
        (3, 3, False),
        (0.0, 0.0, False),
        (0.0, 1e-300, True),
        (1, 1.0, False),
        (None, 0.5, True),
        (0.5, None, True),
        (True, False, True),
        (True, 1, True),
        ("a", "b", True),
        ("a", "a", False),
        (float("nan"), float("nan"), False),
        (float("inf"), 1.0, True),
    ],
)
def test_moved_of_whole_numbers_words_and_what_is_not_there(before, after, moved):
    assert pr_report.Row("f", "n", before, after).moved == moved


def test_arrows_point_where_the_docs_say_that_better_is():
    text = (ROOT / "docs/metrics.md").read_text()
    better = {
        name: row[2].strip()
        for row in re.finditer(r"^\| (`[^|]*`) \| [^|]* \| ([^|]*) \|", text, re.MULTILINE)
        for name in re.findall(r"\w+", row[1])
    }
    assert {better[name] for name in pr_report.HIGHER} == {"higher"}
    assert {better[name] for name in pr_report.LOWER} == {"lower"}


@pytest.mark.parametrize("value", ["a|b", "`x`", "<img src=x>", "@somebody", "two\nlines", "", "x" * 5000, "**bold**"])
def test_a_cell_is_one_cell_of_code(value):
    cell = pr_report.code(value)
    assert len(cell) < 250
    assert "\n" not in cell
    assert not re.search(r"(?<!\\)\|", cell)
    assert re.fullmatch(r"`[^`]+`|\(empty\)", cell)


def row(text: str, name: str) -> list[str]:
    """The cells after the name, of the one row of a table that has this name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    return [cell.strip(" `") for cell in line.split("|")[2:-1]]


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    """A repository where main went on after topic had left it, each with other metrics, parameters and pictures."""
    folder = tmp_path_factory.mktemp("branches")
    run = small_pipeline.begin(folder, repro=False)

    def commit(metrics: dict, pictures: dict, message: str) -> None:
        for name, values in metrics.items():
            (folder / "metrics").mkdir(exist_ok=True)
            (folder / "metrics" / name).write_text(json.dumps(values))
        for name, grey in pictures.items():
            (folder / "data/report").mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2), grey).save(folder / "data/report" / name)
        run("git", "add", "-A", "-f", "data", "metrics", "params.yaml")
        run("git", "commit", "-qm", message)

    first = {"psnr_db": 20.0, "mse": 0.123456, "gone": 1.0, "same": 7.0, "steps": 10, "nested": {"psnr_db": 30.0}}
    commit(
        {"a.json": {"a": first}, "b.json": {"b": {"kl": 5.0}}}, {"same.png": 0, "new look.png": 0, "old.png": 0}, "1"
    )
    run("git", "checkout", "-qb", "topic")
    second = {"psnr_db": 21.5, "mse": 0.123457, "fresh": 2.0, "same": 7.0, "steps": 11, "nested": {"psnr_db": 29.0}}
    (folder / "data/report/old.png").unlink()
    (folder / "data/report/table.csv").write_text("no picture\n")
    parameters = (folder / "params.yaml").read_text().replace("value: 0", "value: 0.00001\n  name: 'a|b'")
    (folder / "params.yaml").write_text(parameters)
    commit({"a.json": {"a": second}}, {"new look.png": 9, "more.png": 1}, "2")
    run("git", "checkout", "-q", "main")
    commit({"b.json": {"b": {"kl": 6.0}}}, {"same.png": 5}, "3")
    run("git", "checkout", "-q", "topic")
    return folder, run


@pytest.fixture
def in_branches(branches, monkeypatch):
    folder, run = branches
    monkeypatch.chdir(folder)
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    return run


@pytest.mark.dvc
def test_report_of_two_branches(in_branches, monkeypatch):
    text = pr_report.report("main")
    assert text.startswith("<!-- ")
    assert text.splitlines()[0] == pr_report.MARKER

    assert row(text, "left.value") == ["0", "1e-05"]
    assert row(text.replace("\\|", "/"), "left.name") == ["–", "a/b"]
    assert "`right.value`" not in text
    assert "`seed`" not in text

    # a.same is the same, a.mse differs by rounding, b.kl moved on main alone
    assert "**Metrics:** 5 of 8 moved" in text
    assert "1 more differ by less" in text
    assert row(text, "a.psnr_db") == ["20", "21.5", "+1.5"]
    assert row(text, "a.nested.psnr_db") == ["30", "29", "-1"]
    assert row(text, "a.steps") == ["10", "11", "+1"]
    assert row(text, "a.gone") == ["1", "–", ""]
    assert row(text, "a.fresh") == ["–", "2", ""]
    for name in ("a.mse", "a.same", "b.kl"):
        assert f"`{name}`" not in text
    assert "| `psnr_db` ↑ | 1 | 1 | +0.25 | +1.5 | `a.psnr_db` |" in text
    assert "<summary>metrics/a.json: 5 moved</summary>" in text

    said = dict(re.findall(r"<summary>data/report/(.*): (\w+)</summary>", text))
    assert said == {"new look.png": "changed", "more.png": "new", "old.png": "removed"}
    assert "![after](data/report/new%20look.png)" in text
    assert "![after](data/report/old.png)" not in text

    # On GitHub the pictures have addresses; each names a commit that holds the file.
    monkeypatch.setenv("GITHUB_REPOSITORY", "o/r")
    text = pr_report.report("main")
    shown = re.findall(r"!\[(\w+)\]\(https://github.com/o/r/raw/([0-9a-f]{40})/(.+?)\)", text)
    assert len(shown) == 4
    for word, commit, path in shown:
        in_branches("git", "cat-file", "-e", f"{commit}:{path.replace('%20', ' ')}")
        parent = in_branches("git", "rev-parse", "topic~1" if word == "before" else "topic").strip()
        assert commit == parent


@pytest.mark.dvc
def test_command_writes_a_file_or_prints_and_leaves_out_what_is_not_committed(branches, in_branches):
    folder, run = branches
    command, path = [sys.executable, "-m", "tools.pr_report"], {"PYTHONPATH": str(ROOT)}
    assert run(*command, "main", "--out", ".git/report.md", **path) == ""
    assert (folder / ".git/report.md").read_text() == pr_report.report("main")

    (folder / "params.yaml").write_text((folder / "params.yaml").read_text() + "\nmore: 1\n")
    printed = run(*command, "HEAD", **path)
    assert "**Parameters:** none changed." in printed
    assert "note: what is not committed is not in this report" in printed
    run("git", "checkout", "-q", "params.yaml")


@pytest.mark.process
def test_bad_base_is_refused_in_one_line(branches, in_branches):
    folder, run = branches
    run("git", "checkout", "-q", "--orphan", "stranger")
    run("git", "commit", "-qm", "another beginning")
    for base in ("nowhere", "--help", "", "HEAD:params.yaml", "main"):
        with pytest.raises(InputError, match=re.escape(f"BASE = '{base}': ")):
            pr_report.report(base)
    command = [sys.executable, "-m", "tools.pr_report", "nowhere", "--out", ".git/none.md"]
    printed = run(*command, code=1, PYTHONPATH=str(ROOT))
    assert printed == "error: BASE = 'nowhere': no such branch or commit here; try main or origin/main\n"
    assert not (folder / ".git/none.md").exists()
    run("git", "checkout", "-qf", "topic")


@pytest.mark.dvc
def test_unreadable_metrics_are_an_error_not_a_removal(tmp_path, monkeypatch):
    run = small_pipeline.begin(tmp_path)
    (tmp_path / "metrics/join.json").write_text("{")
    run("git", "commit", "-qam", "Break")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="failed to load some metrics"):
        pr_report.report("HEAD~1")
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(InputError, match="not a git repository"):
        pr_report.report("main")


def test_long_report_fits_a_comment_and_keeps_what_moved_farthest():
    rows = [pr_report.Row("metrics/m.json", f"m.problem_{i}.psnr_db", 20.0, 20.0 + i / 100) for i in range(1, 3000)]
    pictures = {f"data/report/{i}.png": "M" for i in range(30)}
    lots = pr_report.assemble("head", rows, rows, pictures, "a" * 40, "b" * 40)
    assert 30_000 < len(lots.encode()) <= 65_000
    assert lots.count("left out to keep this short") >= 2
    assert "2999 of 2999 moved" in lots
    moved = lots.split("<summary>metrics/m.json")[1]
    assert "`m.problem_2999.psnr_db`" in moved
    assert "`m.problem_1.psnr_db`" not in moved


def test_workflow_is_pinned_and_has_the_least_permissions():
    assert WORKFLOW["permissions"] == {}
    assert set(WORKFLOW[True]) == {"pull_request", "push"}  # `on` is YAML for true; never pull_request_target
    used = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert used
    for action in used:
        assert re.fullmatch(r"actions/(checkout|setup-python)@[0-9a-f]{40}", action)
    granted = {name: job["permissions"] for name, job in WORKFLOW["jobs"].items()}
    comment = WORKFLOW["jobs"]["comment"]
    assert granted.pop("comment") == {"pull-requests": "write"}
    assert all(permissions == {"contents": "read"} for permissions in granted.values())
    # The job that may write runs no code of the branch, and not for a fork.
    assert all("uses" not in step for step in comment["steps"])
    assert "head.repo.full_name == github.repository" in comment["if"]
    for job in WORKFLOW["jobs"].values():
        for step in job["steps"]:
            assert step.get("with", {}).get("persist-credentials", False) is False
            # What strangers may name (a title, a branch) is never pasted into a script.
            assert "${{" not in step.get("run", "")


def script(job: str, name: str) -> str:
    (step,) = [step for step in WORKFLOW["jobs"][job]["steps"] if step.get("name", "").startswith(name)]
    return step["run"]


def test_page_names_what_there_is():
    page = (ROOT / "docs/pull-requests.md").read_text()
    assert set(re.findall(r"^\| (\w+) \| .* \|$", page, re.MULTILINE)) - {"job"} == set(WORKFLOW["jobs"])
    assert re.search(r"^pr-report:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.process
@pytest.mark.skipif(not shutil.which("jq"), reason="jq stands in for the filter within gh")
def test_comment_is_written_once_and_then_anew(tmp_path):
    """GitHub can't be here: a stand-in for `gh api` keeps the comments in a file, and jq filters them as gh does."""
    (tmp_path / "gh").write_text(f"#!{sys.executable}\n" + STAND_IN)
    (tmp_path / "gh").chmod(0o755)
    others = [
        {"id": 1, "user": {"login": "somebody"}, "body": f"{pr_report.MARKER} quoted"},
        {"id": 2, "user": {"login": "github-actions[bot]"}, "body": "of another workflow"},
    ]
    (tmp_path / "comments.json").write_text(json.dumps(others))
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "GITHUB_REPOSITORY": "o/r", "NUMBER": "5"}
    for text in ("first `$(false)`", "second"):
        report = f"{pr_report.MARKER}\n{text}"
        run_script(tmp_path, script("comment", "Write the comment"), environment | {"REPORT": report})
        comments = json.loads((tmp_path / "comments.json").read_text())
        assert comments[:2] == others
        assert [comment["body"] for comment in comments[2:]] == [f"{report}\n"]


STAND_IN = """
import json, subprocess, sys
from pathlib import Path

arguments = sys.argv[1:]
assert arguments.pop(0) == "api"
value = lambda name: arguments[arguments.index(name) + 1] if name in arguments else None
comments = json.loads(Path("comments.json").read_text())
if "--jq" in arguments:
    assert "repos/o/r/issues/5/comments" in arguments
    print(subprocess.check_output(["jq", value("--jq")], input=json.dumps(comments), text=True), end="")
else:
    body = Path(value("--field").removeprefix("body=@")).read_text()
    if value("--method") == "POST":
        assert "repos/o/r/issues/5/comments" in arguments
        comments.append({"id": 33, "user": {"login": "github-actions[bot]"}, "body": body})
    else:
        assert value("--method") == "PATCH"
        (address,) = [argument for argument in arguments if argument.startswith("repos/")]
        (old,) = [comment for comment in comments if address == f"repos/o/r/issues/comments/{comment['id']}"]
        old["body"] = body
    Path("comments.json").write_text(json.dumps(comments))
"""


def run_script(folder: Path, text: str, environment: dict, code: int = 0) -> str:
    """Run a step's script as GitHub does with `shell: bash`."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.dvc
def test_merge_of_two_branches_ends_in_a_conflict_and_then_in_the_right_lock(tmp_path):
    """left: 0 → 2 on one branch, right: 1 → 5 on another, where 0 × 5 is still 0: only their merge makes 10."""
    run = small_pipeline.begin(tmp_path)
    for name, old, new in (("left", 0, 2), ("right", 1, 5)):
        run("git", "checkout", "-qb", name, "main")
        text = (tmp_path / "params.yaml").read_text()
        (tmp_path / "params.yaml").write_text(text.replace(f"{name}:\n  value: {old}", f"{name}:\n  value: {new}"))
        run("dvc", "repro", "-q")
        run("git", "commit", "-qam", name)
    product = lambda: json.loads((tmp_path / "metrics/join.json").read_text())["join"]["product"]  # noqa: E731
    check = script("check", "Is dvc.lock one side's")

    # Without .gitattributes, as GitHub's merge button has it, Git merges this cleanly into a lie that DVC believes.
    run("git", "checkout", "-qb", "blend", "left")
    attributes = tmp_path / ".git/info/attributes"
    attributes.write_text("dvc.lock merge\n")
    run("git", "merge", "-q", "-m", "blend", "right")
    attributes.unlink()
    run("dvc", "checkout", "-q")
    assert "up to date" in run("dvc", "repro", "--dry")
    assert product() == 2
    assert "both sides changed dvc.lock" in run_script(tmp_path, check, os.environ, code=1)

    locks = []
    for side in ("ours", "theirs"):
        run("git", "checkout", "-qb", f"by-{side}", "left")
        run("dvc", "checkout", "-q")
        assert "CONFLICT (content): Merge conflict in dvc.lock" in run("git", "merge", "-q", "right", code=1)
        # from here on as docs/pull-requests.md has it
        run("git", "checkout", f"--{side}", "dvc.lock", "metrics")
        run("dvc", "repro", "-q")
        assert product() == 10
        run("git", "add", "dvc.lock", "metrics")
        run("git", "commit", "-qm", "Merge")
        locks.append((tmp_path / "dvc.lock").read_text())
        # A merge of main into the branch is one side's lock for the merge that GitHub makes of it.
        run("git", "checkout", "-q", "--detach", "right")
        run("git", "merge", "-q", "--no-ff", "-m", "pull request", f"by-{side}")
        run_script(tmp_path, check, os.environ)
        run("git", "checkout", "-q", f"by-{side}")
    run("dvc", "repro", "--force", "-q")
    assert locks == [(tmp_path / "dvc.lock").read_text()] * 2
    assert run("git", "status", "--porcelain") == ""
