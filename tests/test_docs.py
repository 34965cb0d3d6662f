"""README.md and docs/ against what there is: links, commands, parameters."""

import contextlib
import importlib.util
import re
import shlex

import pytest
import torch
from conftest import ROOT
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML
from test_pipeline import runs

from genprior.command import arguments
from genprior.networks import PriorNetwork, save_network
from pipeline.files import flat
from pipeline.statements import STATEMENTS

NAMES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("[!.]*.md"))]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
OUTPUTS = [out for _, outs in runs().values() for out in outs]
TARGETS = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


def without_code(text: str) -> str:
    """Markdown without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", without_code(page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_relative_to(ROOT), target
        # Of a stage that failed or was killed DVC has deleted the outputs.
        gone = any(file.is_relative_to(ROOT / out) and not (ROOT / out).exists() for out in OUTPUTS)
        assert file.exists() or gone, target
        headings = re.findall(r"^#+ (.+)$", without_code(file.read_text()), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, target


def simple_commands(text: str) -> list[list[str]]:
    """The words of each simple command in a page's shell blocks and `code`."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", without_code(text))]
    found = [[]]
    for line in lines:
        with contextlib.suppress(ValueError):  # an apostrophe, in code that is no command
            for word in [*shlex.split(line, comments=True), "&&"]:
                found.append([]) if word in ("&&", "|", ";") else found[-1].append(word)
    return [command for command in found if command]


def check(command: list[str], values: dict) -> None:
    """Fail where a command of this project names what is not there; words in capitals stand for anything."""
    program, *words = [word for word in command if word != "..."]
    if program == "dvc" and words:
        args = get_main_parser().parse_args(words)  # ends where they are wrong
        settings = getattr(args, "set_param", None)
        if args.cmd == "repro" or settings is not None:
            assert all(target.isupper() or target.split("@")[0] in STAGES for target in args.targets), command
        for setting in settings or []:
            key, place = setting.split("=")[0], values
            for step in [] if key.isupper() else key.split("."):
                assert step in place, f"{command}: {setting}"
                place = place[step]
    elif program == "make":
        assert {word for word in words if "=" not in word} <= set(TARGETS), command
    elif program == "genprior" and words:
        arguments(words)
    elif program.startswith("python") and words[:1] == ["-m"]:
        assert words[1].split(".")[-1].isupper() or importlib.util.find_spec(words[1]), command


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_real(name, values):
    for command in simple_commands((ROOT / name).read_text()):
        check(command, values)


@pytest.mark.parametrize("command", sorted({command for *_, command in STATEMENTS}))
def test_commands_of_the_reports_statements_are_real(command, values):
    check(shlex.split(command), values)


def test_every_parameter_is_explained_and_no_other(values):
    rows = re.findall(r"^\| `(.+?)` \| .+? \| ", (ROOT / "docs/parameters.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == {re.sub(r"(^|\.)problems\.\w+", r"\1problems.NAME", key) for key in flat(values)}


def test_python_example_runs(tmp_path, monkeypatch):
    torch.manual_seed(0)
    file = tmp_path / "tiny.safetensors"
    save_network(PriorNetwork((6, 6), 3, [8], "silu", "modulated"), file)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    exec(code.replace('load("svae")', f"load({str(file)!r})"), names := {})
    assert names["found"].x.shape == names["confined"].x.shape == (4, 1, 6, 6)
    assert names["post"].x.shape == (4, 200, 1, 6, 6)
    assert (names["low"] < names["high"]).all()
    assert names["whole"].x.shape == (1, 1, 60, 80)
