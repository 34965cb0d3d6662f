"""Sweeps as docs/sweeps.md has them, on a small pipeline in the real one's forms, and the table over seeds."""

import csv
import io
import json
import re
import shutil
import statistics
from types import SimpleNamespace

import psutil
import pytest
import small_pipeline
from conftest import ROOT, ran, runner
from PIL import Image
from test_pipeline import STAGES

from genprior.files import InputError
from tools import pr_report, seed_table

(LOOP,) = re.findall(r"^until dvc queue status.*$", (ROOT / "docs/sweeps.md").read_text(), re.MULTILINE)


def test_waiting_for_the_queue_ends_with_its_last_worker(tmp_path):
    states = ["1 active, 0 idle", "10 active, 0 idle", "0 active, 10 idle", "0 active, 1 idle", "0 active, 0 idle", ""]
    for name, text in {"dvc": "head -n1 states; sed -i 1d states", "sleep": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "states").write_text("\n".join(f"Worker status: {state}" for state in states))
    runner(tmp_path)("bash", "-c", f"PATH=.:$PATH; {LOOP}")
    assert (tmp_path / "states").read_text() == "Worker status: "


@pytest.fixture
def pipeline(tmp_path):
    """A small pipeline that ran; whatever works on it when the test ends is stopped."""
    yield tmp_path, small_pipeline.begin(tmp_path)
    workers = [process for process in psutil.process_iter(["cwd"]) if str(tmp_path) in (process.info["cwd"] or "")]
    for process in workers:
        process.kill()
    psutil.wait_procs(workers, timeout=10)


def shown(run, *flags: str) -> dict[str, dict]:
    """The experiments of `dvc exp show` by name, in its order; values as text."""
    printed = run("dvc", "exp", "show", "--csv", "--hide-workspace", *flags)
    lines = list(csv.DictReader(printed[printed.index("Experiment,") :].splitlines()))
    return {line["Experiment"]: line for line in lines if line["typ"].startswith("branch")}


@pytest.mark.dvc
def test_grid_with_a_failure_and_the_table(pipeline, monkeypatch, capsys):
    folder, run = pipeline
    run("dvc", "exp", "run", "--queue", "-S", "left.value=2,-1")
    run("bash", "-c", LOOP)  # as where the worker was killed: some are queued, and none works on them
    said = run("dvc", "exp", "run", "--run-all")
    assert "error: params.yaml: left.value = -1: at least 0" in said
    assert run("git", "status", "--porcelain") == ""  # nothing happened in the workspace

    # A failed experiment is shown with the metrics that it started from, unless hidden.
    found = shown(run)
    states = {line["State"]: float(line["join.noisy"]) for line in found.values()}
    assert states == {"Failed": 1, "Success": 3}
    (done,) = (name for name, line in found.items() if line["State"] != "Failed")

    def table(*arguments: str) -> tuple[list[str], str]:
        monkeypatch.setattr("sys.argv", ["seed_table", *arguments])
        seed_table.main()
        printed = capsys.readouterr()
        return printed.out.splitlines(), printed.err

    monkeypatch.chdir(folder)
    lines, note = table("--metrics", "join.n*")
    assert lines == ["| metric | all (n = 1) |", "| --- | --- |", "| join.noisy | 3 |"]
    assert note.startswith("note: left out, for they did not finish: ")

    # Run up to a stage only, an experiment has metrics of the commit behind it, which no table may take for its own.
    run("dvc", "exp", "run", "--temp", "-n", "part", "-S", "left.value=9", "left")
    with pytest.raises(InputError, match="fits no metric"):
        table("part")
    note = "note: part: left out, for their stages did not run with its parameters: metrics/join.json"
    assert note in capsys.readouterr().err

    # Experiments hang on the commit that they started from.
    run("git", "commit", "-q", "--allow-empty", "-m", "Go on")
    with pytest.raises(InputError, match="started from this commit; --rev COMMIT"):
        table("--metrics", "join.noisy")
    assert table("--metrics", "join.noisy", "--rev", "HEAD~1", done)[0][2] == "| join.noisy | 3 |"


@pytest.mark.dvc
def test_temporary_copy_runs_the_code_of_its_own_beside_a_dirty_workspace(pipeline):
    """Though the main checkout is on Python's path, as it is where it is installed for development."""
    folder, run = pipeline
    code, params = folder / "lib/code.py", folder / "params.yaml"
    version = lambda number: code.write_text(re.sub(r"VERSION = \d", f"VERSION = {number}", code.read_text()))  # noqa: E731
    installed = {"PYTHONPATH": str(folder)}

    version(2)
    params.write_text(params.read_text().replace("value: 1", "value: 7"))
    (folder / "note.txt").write_text("not tracked\n")
    run("dvc", "exp", "run", "--queue", "-n", "queued", "-S", "left.value=3")
    version(3)
    dirty = run("git", "diff")
    run("dvc", "exp", "run", "--temp", "-n", "beside", "-S", "left.value=4", **installed)
    assert run("git", "diff") == dirty
    assert (folder / "note.txt").exists()
    version(4)
    run("dvc", "exp", "run", "--run-all", **installed)

    # Each took the code, the uncommitted parameter included, of the moment when it was made.
    found = {name: (float(line["join.product"]), line["join.version"]) for name, line in shown(run).items()}
    assert found == {"queued": (21, "2"), "beside": (28, "3")}
    # As scripts, `python stages/join.py`, they would take the checkout on the path: why none is run so.
    commands = [stage["cmd"] for stage in STAGES.values()]
    assert all(command.startswith("python -m stages.") for command in commands)


@pytest.mark.dvc
def test_tools_in_a_folder_of_a_larger_repository_and_in_its_worktree(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "tree/course work/project"
    small_pipeline.begin(tmp_path / "larger/course work/project")
    shutil.rmtree(tmp_path / "larger/course work/project/.git")
    larger = runner(tmp_path / "larger")
    for words in ("init -q -b main", "add -A", "commit -qm Begin", "worktree add -q -b topic ../tree"):
        larger("git", *words.split())
    run = runner(folder)
    run("dvc", "exp", "run", "-q", "-n", "one", "-S", "seed=1")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["seed_table", "--metrics", "join.noisy"])
    seed_table.main()

    (folder / "data/report").mkdir()
    Image.new("L", (2, 2)).save(folder / "data/report/a b.png")
    run("git", "add", "-Af", "data/report")
    run("git", "commit", "-qam", "Go on")
    (tmp_path / "tree/other.txt").write_text("of the larger repository")
    run("git", "add", "../..")
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.setattr("sys.argv", ["pr_report", "main"])
    pr_report.main()
    printed = capsys.readouterr()
    assert "| join.noisy | 0.5 |" in printed.out
    assert "<summary>metrics/join.json: 1 moved</summary>" in printed.out
    assert "![after](data/report/a%20b.png)" in printed.out
    assert printed.err == ""
    monkeypatch.setenv("GITHUB_REPOSITORY", "o/r")
    address = pr_report.shown("after", "data/report/a b.png", "HEAD")
    assert address.endswith("HEAD/course%20work/project/data/report/a%20b.png)")


def experiment(name: str, state: str = "success") -> dict:
    """One experiment as `dvc exp show --json` gives it."""
    data = {"params": {"params.yaml": {"data": {"seed": 0}}}, "metrics": {"metrics/a.json": {"data": {"m": 1.0}}}}
    error = {"msg": "Experiment run failed", "type": ""} if state == "failed" else None
    return {"revs": [{"rev": name * 8, "name": name, "data": data, "error": error}], "executor": {"state": state}}


def test_table_is_mean_and_standard_error_over_seeds():
    psnr = {10: [20.1, 20.4, 20.2], 9: [25.0, 24.1, 24.9], 200: [1234.0, 5678.0]}
    found = {
        f"{beta}-{seed}": ({"seed": seed, "vae.beta": beta, "vae.lr": 0.1}, {"vae.psnr_db": value, "vae.kl": 1.5})
        for beta, values in psnr.items()
        for seed, value in enumerate(values)
    }
    found["again"] = found["10-0"]
    head, _, kl, line = seed_table.seed_table(found).splitlines()
    assert head == "| metric | vae.beta = 9 (n = 3) | vae.beta = 10 (n = 3) | vae.beta = 200 (n = 2) |"
    assert kl == "| vae.kl | 1.5 ± 0 | 1.5 ± 0 | 1.5 ± 0 |"
    cells = [cell.split(" ± ") for cell in line.strip("| ").split(" | ")[1:]]
    for (mean, error), values in zip(cells, (psnr[9], psnr[10], psnr[200]), strict=True):
        expected = statistics.stdev(values) / len(values) ** 0.5
        assert float(error) == pytest.approx(expected, rel=0.05)
        assert float(mean) == pytest.approx(statistics.mean(values), abs=0.05 * expected)


def test_differences_are_paired_seed_by_seed():
    found = {}
    for seed, level in enumerate((20.0, 30.0, 25.0)):
        metrics = {"ae.mean.cs_50.psnr_db": level + 1 + seed / 10, "pca.range.cs_50.psnr_db": level, "ae.kl": 1.0}
        found[f"{seed}"] = {"seed": seed}, metrics
    lines = seed_table.seed_table(found, over="pca.range").splitlines()
    assert lines[2:] == ["| ae.mean.cs_50.psnr_db | 1.100 ± 0.058 |"]  # 0.1 / √3
    with pytest.raises(InputError, match="fits no metric"):
        seed_table.seed_table(found, over="nobody.range")


def test_table_refuses_what_it_can_not_compare(capsys, monkeypatch):
    def experiments(names: list[str], shown: list[dict]) -> dict:
        monkeypatch.setattr(seed_table, "output", lambda *command: SimpleNamespace(stdout=json.dumps(shown)))
        return seed_table.experiments(names)

    shown = [{"experiments": [experiment("good"), *(experiment(state, state) for state in ("failed", "queued"))]}]
    assert list(experiments([], shown)) == ["good"]
    assert "did not finish: failed, queued" in capsys.readouterr().err
    with pytest.raises(InputError, match="NAME = 'failed': did not finish"):
        experiments(["good", "failed"], shown)
    with pytest.raises(InputError, match="NAME = 'nobody': no such experiment; there is good"):
        experiments(["nobody"], shown)
    with pytest.raises(InputError, match="a and b: equal parameters, other metrics"):
        seed_table.seed_table({"b": ({"seed": 0}, {"m": 1.0}), "a": ({"seed": 0}, {"m": 2.0})})


@pytest.mark.dvc
def test_two_machines_share_results_and_a_sweep(tmp_path):
    """As docs/sharing.md and docs/scale.md have it: two clones, a Git remote, and a directory for the arrays."""
    first = small_pipeline.begin(tmp_path / "first")
    first("git", "clone", "-q", "--bare", ".", str(tmp_path / "origin"))
    first("git", "remote", "add", "origin", str(tmp_path / "origin"))
    first("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"))
    first("git", "commit", "-qam", "Name the remote")
    first("git", "push", "-q", "origin", "main")
    first("dvc", "push", "-q")
    first("git", "clone", "-q", str(tmp_path / "origin"), str(tmp_path / "second"))
    second = runner(tmp_path / "second")
    assert not (tmp_path / "second/data").exists()
    second("dvc", "pull", "-q", "left")
    assert (tmp_path / "second/data/left.txt").read_bytes() == (tmp_path / "first/data/left.txt").read_bytes()
    assert not (tmp_path / "second/data/right.txt").exists()
    second("dvc", "pull", "-q")
    assert ran(second("dvc", "repro")) == set()
    assert second("git", "status", "--porcelain") == ""
    for machine, name, value in ((first, "two", 2), (second, "three", 3)):
        machine("dvc", "exp", "run", "-q", "-S", f"left.value={value}", "-n", name)
        machine("dvc", "exp", "push", "-q", "origin", name)
    first("dvc", "exp", "pull", "-q", "origin", "three")
    shown = first("dvc", "exp", "show", "--csv", "--no-pager")
    rows = {row["Experiment"]: row["join.product"] for row in csv.DictReader(io.StringIO(shown))}
    assert {name: rows[name] for name in ("two", "three")} == {"two": "2.0", "three": "3.0"}
    first("git", "checkout", "-q", "--", ".")
    first("dvc", "exp", "apply", "-q", "three")
    assert (tmp_path / "first/data/left.txt").read_text() == "3"
