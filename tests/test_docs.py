"""README.md and docs/ against what there is: links, commands, parameters; and their English."""

import contextlib
import importlib.util
import re
import shlex

import pytest
from conftest import ROOT
from dvc.cli.parser import get_main_parser
from ruamel.yaml import YAML

from genprior.command import arguments
from pipeline.params import Params

NAMES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
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
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
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


def allowed(schema: dict) -> str:
    """The values that a part of the JSON schema of `Params` allows, in words."""
    if "anyOf" in schema:
        return " or ".join(map(allowed, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] in ("integer", "number"):
        low, high = (schema.get(name, schema.get(short)) for name, short in (("minimum", "ge"), ("maximum", "le")))
        above, below = (schema.get(f"exclusive{name}") for name in ("Minimum", "Maximum"))
        if schema["type"] == "integer":
            return f"whole number {above + 1 if low is None else low} to {below - 1 if high is None else high}"
        lower = f"above {above:g}" if low is None else f"from {low:g}"
        return f"number {lower}, " + (f"below {below:g}" if high is None else f"at most {high:g}")
    if schema["type"] == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        return f"list of {f'{least} × ' if least and least == most else ''}{allowed(schema['items'])}"
    return {"null": "`null`", "boolean": "`true`, `false`", "string": "text"}[schema["type"]]


def leaves(schema: dict, definitions: dict, key: str) -> dict[str, str]:
    """Every parameter's dotted key and what it allows; those of the problems under problems.NAME."""
    if "$ref" in schema:
        return leaves(definitions[schema["$ref"].split("/")[-1]], definitions, key)
    parts = [(f"{key}.{name}", part) for name, part in schema.get("properties", {}).items()]
    for problem in schema.get("patternProperties", {}).values():
        parts += [(f"{key}.NAME", part) for part in problem["oneOf"]]
    if not parts:
        return {key.removeprefix("."): allowed(schema)}
    found = {}
    for name, part in parts:
        for leaf, text in leaves(part, definitions, name).items():
            found[leaf] = f"{found[leaf]}, {text}" if leaf.endswith(".operator") and leaf in found else text
    return found


def test_parameters_are_those_of_the_schema():
    schema = Params.model_json_schema()
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| ", (ROOT / "docs/parameters.md").read_text(), re.MULTILINE)
    assert dict(rows) == leaves(schema, schema["$defs"], "")


@pytest.mark.parametrize("name", NAMES)
def test_sentences_are_short(name):
    text = without_code((ROOT / name).read_text())
    prose = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("|", "#")))
    lengths = [len(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+", prose.strip())]
    assert sum(lengths) <= 18 * len(lengths)
    assert max(lengths) <= 40
