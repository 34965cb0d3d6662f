"""The report of a pull request, the workflow that posts it, and the merge of two branches' dvc.lock."""

import json
import math
import re
from pathlib import Path

import pytest
import small_pipeline
import yaml
from conftest import ROOT
from PIL import Image

from genprior.files import InputError
from tools import pr_report

WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text())


def test_what_moved_and_what_is_no_finding():
    still = [("n", 3, 3), ("n", 0.0, 0.0), ("n", 1, 1.0), ("n", "a", "a"), ("n", math.nan, math.nan)]
    still += [("n", 0.123456, 0.123457), ("n", -5.43210e12, -5.43211e12)]  # one in the sixth digit
    moved = [("n", 1_000_000, 1_000_001), ("n", 0.123456, 0.123458), ("n", 9.99999, 10.0002), ("n", 0, 1e-300)]
    moved += [("n", None, 0.5), ("n", 0.5, None), ("n", "a", "b"), ("n", True, False), ("n", True, 1)]
    moved += [("n", math.inf, 1.0), ("a.weight", 0.1, 0.10001)]
    # within a measure's own noise: 0.05 dB, one per cent, one code
    still += [("a.psnr_db", 30.0, 30.05), ("a.mse", 0.001, 0.00101), ("a.active_codes", 15, 16)]
    moved += [("a.psnr_db", 30.0, 30.051), ("a.mse", 0.001, 0.00102), ("a.active_codes", 15, 17)]
    found = {row: pr_report.Row("f", *row).moved for row in [*still, *moved]}
    assert found == dict.fromkeys(still, False) | dict.fromkeys(moved, True)


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

    first = {"psnr_db": 20.0, "mse": 0.123, "gone": 1.0, "same": 7.0, "nested": {"psnr_db": 30.0}}
    pictures = {"same.png": 0, "new look.png": 0, "old.png": 0}
    commit({"a.json": {"a": first}, "b.json": {"b": {"kl": 5.0}}}, pictures, "1")
    run("git", "checkout", "-qb", "topic")
    second = {"psnr_db": 21.5, "mse": 0.124, "fresh": 2.0, "same": 7.0, "nested": {"psnr_db": 29.0}}
    (folder / "data/report/old.png").unlink()
    (folder / "data/report/table.csv").write_text("no picture\n")
    parameters = (folder / "params.yaml").read_text().replace("value: 0", "value: 0.00001\n  name: 'a|`b`'")
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
def test_report_of_two_branches(in_branches, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["pr_report", "main"])
    pr_report.main()
    text = capsys.readouterr().out
    assert text.splitlines()[0] == pr_report.MARKER
    assert row(text, "left.value") == ["0", "1e-05"]
    assert row(text.replace("\\|", "/"), "left.name") == ["–", "a/'b'"]
    assert "`right.value`" not in text
    # a.same is the same, a.mse differs by less than a per cent, b.kl moved on main alone
    assert "**Metrics:** 4 of 7 moved" in text
    assert "1 more differ by no more than another CPU or Monte Carlo moves them: no finding" in text
    assert row(text, "a.psnr_db") == ["20", "21.5", "+1.5"]
    assert row(text, "a.nested.psnr_db") == ["30", "29", "-1"]
    assert row(text, "a.gone") == ["1", "–", ""]
    assert row(text, "a.fresh") == ["–", "2", ""]
    for name in ("a.mse", "a.same", "b.kl"):
        assert f"`{name}`" not in text
    assert row(text, "psnr_db") == ["PSNR [dB]", "higher", "0.05", "1", "1", "+0.25", "+1.5", "a.psnr_db"]
    assert "<summary>metrics/a.json: 4 moved</summary>" in text

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


@pytest.mark.process
def test_what_cannot_be_compared_is_refused_in_one_line(in_branches, monkeypatch, tmp_path):
    run = in_branches
    run("git", "checkout", "-q", "--orphan", "stranger")
    run("git", "commit", "-qm", "another beginning")
    for base in ("nowhere", "--help", "", "HEAD:params.yaml", "main"):
        with pytest.raises(InputError, match=re.escape(f"BASE = '{base}': ")):
            pr_report.report(base)
    Path("metrics/a.json").write_text("{")  # no removal
    run("git", "commit", "-qam", "Break")
    with pytest.raises(InputError, match="failed to load some metrics"):
        pr_report.report("HEAD~1")
    run("git", "checkout", "-qf", "topic")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="not a git repository"):
        pr_report.report("main")


def test_long_report_fits_a_comment_and_keeps_what_moved_farthest():
    rows = [pr_report.Row("metrics/m.json", f"m.problem_{i}.psnr_db", 20.0, 20.0 + i / 100) for i in range(1, 3000)]
    lots = pr_report.assemble("head", rows, rows, [f"data/report/{i}.png" for i in range(30)])
    assert 30_000 < len(lots.encode()) <= 65_000
    assert lots.count("left out to keep this short") >= 2
    assert "2994 of 2999 moved" in lots
    moved = lots.split("<summary>metrics/m.json")[1]
    assert "`m.problem_2999.psnr_db`" in moved
    assert "`m.problem_4.psnr_db`" not in moved


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
    (step,) = [step for step in WORKFLOW["jobs"]["check"]["steps"] if "Is dvc.lock one side's" in step.get("name", "")]
    check = ("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"])  # as GitHub does

    # Without .gitattributes, as GitHub's merge button has it, Git merges this cleanly into a lie that DVC believes.
    run("git", "checkout", "-qb", "blend", "left")
    attributes = tmp_path / ".git/info/attributes"
    attributes.write_text("dvc.lock merge\n")
    run("git", "merge", "-q", "-m", "blend", "right")
    attributes.unlink()
    assert product() == 2
    assert "both sides changed dvc.lock" in run(*check, code=1)

    run("git", "checkout", "-q", "left")
    run("dvc", "checkout", "-q")
    assert "CONFLICT (content): Merge conflict in dvc.lock" in run("git", "merge", "-q", "right", code=1)
    # from here on as docs/pull-requests.md has it
    run("git", "checkout", "--theirs", "dvc.lock", "metrics")
    run("dvc", "repro", "-q")
    assert product() == 10
    run("git", "add", "dvc.lock", "metrics")
    run("git", "commit", "-qm", "Merge")
    # A merge of main into the branch is one side's lock for the merge that GitHub makes of it.
    run("git", "checkout", "-q", "--detach", "right")
    run("git", "merge", "-q", "--no-ff", "-m", "pull request", "left")
    run(*check)
