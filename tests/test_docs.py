"""What docs/, README.md and the package's docstring say, against what there is.

`python -m tests.test_docs` writes the columns of docs/parameters.md that come from the schema anew.
"""

import contextlib
import doctest
import fnmatch
import importlib
import importlib.util
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from dvc.cli import DvcParserError
from dvc.cli.parser import get_main_parser

import genprior
from genprior.networks import Prior, save_network
from pipeline.params import Params

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [file.relative_to(ROOT).as_posix() for file in DOCS]
PARAMETERS = ROOT / "docs/parameters.md"


def stages() -> dict[str, dict]:
    """The stages of dvc.yaml by name, those of a matrix one by one: their params, deps and outs."""
    found = {}
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        for item in stage.get("matrix", {}).get("prior", [None]):
            text = json.dumps(stage).replace("${item.prior}", str(item))
            found[name if item is None else f"{name}@{item}"] = json.loads(text)
    return found


STAGES = stages()


# Links and commands


def prose(text: str) -> str:
    """Markdown without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page.read_text())):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file.read_text()), target


def simple_commands(text: str) -> list[list[str]]:
    """The words of each simple command in a page's shell blocks and `code`."""
    blocks = re.findall(r"^ *```(?:sh|bash|shell|console)\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]
    found = []
    for line in lines:
        lexer = shlex.shlex(line.replace("\\|", "|"), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # an apostrophe, in code that is no command
            continue
        command = []
        for word in [*words, ";"]:
            if re.fullmatch(r"[();<>|&]+", word):
                found.append(command)
                command = []
            elif command or not re.fullmatch(r"\w+=.*|do|then|else|while|until|if|!", word):
                command.append(word)
    return [command for command in found if command]


def check(command: list[str], values: dict) -> None:
    """Fail where a command of this project names what is not there; ... and words in capitals stand for anything."""
    program, *words = [word for word in command if word != "..."]
    if program == "dvc" and words:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                args = get_main_parser().parse_args(words)
            except (DvcParserError, SystemExit):
                pytest.fail(f"{command}: {said.getvalue()}")
        if args.cmd == "repro" or getattr(args, "set_param", None) is not None:
            for target in args.targets:
                base = target.removesuffix(".dvc")
                assert base.isupper() or base in STAGES or base in {name.split("@")[0] for name in STAGES}, command
        for setting in getattr(args, "set_param", None) or []:
            key, place = setting.lstrip("+~").split("=")[0], values
            for step in [] if key.isupper() else key.split("."):
                assert step in place, f"{command}: {setting}"
                place = place[step]
    elif program == "make":
        targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in words if "=" not in word and not word.startswith("-")} <= set(targets), command
    elif program.startswith("python") and words[:1] == ["-m"]:
        assert words[1].split(".")[-1].isupper() or importlib.util.find_spec(words[1]), command


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_real(name, values):
    for command in simple_commands((ROOT / name).read_text()):
        check(command, values)


@pytest.mark.parametrize(
    "line",
    [
        "dvc repo",
        "dvc repro --no-such-option",
        "dvc repro train_vea",
        "dvc exp run -S train_vae.betta=1",
        "cd x && dvc exp run --queue -S 'train_vae.beta=1,2' -S nonsense.x=1",
        "make tset",
        "python -m stages.nonsense",
        "while dvc queue stats; do sleep 1; done",
    ],
)
def test_a_wrong_command_is_found(line, values):
    commands = simple_commands(f"```sh\n{line}\n```\n")
    assert commands == simple_commands(f"Type `{line}`.\n")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(commands[-1] if line.startswith("cd") else commands[0], values)


def holds(values: dict, key: str) -> bool:
    """Whether nested values have a dotted key, or a block of that name; `*` stands for any part of a step."""
    step, _, rest = key.partition(".")
    found = [values[name] for name in fnmatch.filter(values, step)]
    return any(not rest or (isinstance(value, dict) and holds(value, rest)) for value in found)


@pytest.mark.parametrize("name", NAMES)
def test_dotted_keys_are_parameters_or_metrics(name, values):
    metrics = {}
    for file in (ROOT / "metrics").glob("*.json"):
        metrics |= json.loads(file.read_text())
    for key in re.findall(r"(?<!`)`([a-z]\w*(?:\.[\w*]+)+)`(?!`)", prose((ROOT / name).read_text())):
        first, suffix = key.split(".")[0], key.split(".")[-1]
        if (first in values or first in metrics) and suffix not in ("py", "json", "safetensors", "csv", "html"):
            assert "NAME" in key or holds(values, key) or holds(metrics, key), key


# The package's docstring


def test_example_in_the_docstring_runs(tmp_path, monkeypatch):
    torch.manual_seed(0)
    save_network(Prior((16, 16), 20, [8], "silu", "modulated"), tmp_path / "data/models/vae.safetensors")
    monkeypatch.chdir(tmp_path)
    assert "data/models/vae.safetensors" in genprior.__doc__
    done = doctest.testmod(genprior)
    assert done.attempted > 8
    assert done.failed == 0


def test_public_names_exist():
    lines = re.findall(r"^ +(genprior\.\w+) +(\w+(?:, \w+)*)$", genprior.__doc__, re.MULTILINE)
    assert len(lines) > 5
    for module, names in lines:
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"


# Parameters


def allowed(schema: dict, definitions: dict) -> str:
    """The values that a part of the JSON schema of `Params` allows, in words."""
    if "anyOf" in schema:
        return " or ".join(allowed(part, definitions) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind in ("integer", "number"):
        word = "whole number" if kind == "integer" else "number"
        # pydantic leaves its own names where a validator stands before the bound
        low, above, high, below = (
            schema.get(name, schema.get(own))
            for name, own in (
                ("minimum", "ge"),
                ("exclusiveMinimum", "gt"),
                ("maximum", "le"),
                ("exclusiveMaximum", "lt"),
            )
        )
        if kind == "integer":
            low, high = (above + 1 if above is not None else low), (below - 1 if below is not None else high)
            return f"{word} {low} to {high}"
        lower = f"above {above:g}" if above is not None else f"from {low:g}"
        return f"{word} {lower}, " + (f"below {below:g}" if below is not None else f"at most {high:g}")
    if kind == "array":
        least, most = schema.get("minItems"), schema.get("maxItems")
        count = f"{least} × " if least is not None and least == most else ""
        return f"list of {count}{allowed(schema['items'], definitions)}"
    return {"null": "`null`", "boolean": "`true`, `false`", "string": "text"}[kind]


def leaves(schema: dict, definitions: dict, key: str = "") -> dict[str, str]:
    """Every parameter's dotted key and what it allows; the problems' under the key problems.NAME.operator."""
    if "$ref" in schema:
        return leaves(definitions[schema["$ref"].split("/")[-1]], definitions, key)
    if "properties" in schema:
        parts = [leaves(part, definitions, f"{key}.{name}") for name, part in schema["properties"].items()]
        return {name: text for part in parts for name, text in part.items()}
    if "patternProperties" in schema:  # the problems, each under a name of the user's
        found = {}
        for reference in next(iter(schema["patternProperties"].values()))["oneOf"]:
            for name, text in leaves(reference, definitions, f"{key}.NAME").items():
                found[name] = f"{found[name]}, {text}" if name in found and name.endswith("operator") else text
        return found
    return {key.removeprefix("."): allowed(schema, definitions)}


def default(key: str, values: dict) -> str:
    """A parameter's value in params.yaml as that would write it, lists of photographs as their number."""
    if key.startswith("problems."):
        return ""
    for step in key.split("."):
        values = values[step]
    if isinstance(values, list) and isinstance(values[0], str | list):
        return f"{len(values)} of them"
    return f"`{json.dumps(values)}`" if not isinstance(values, str) else f"`{values}`"


def reruns(key: str) -> str:
    """The stages whose params list a key or a block that holds it, then those behind them."""
    key = key.replace(".NAME", "")
    parts = [key.rsplit(".", cut)[0] for cut in range(key.count(".") + 1)]
    direct = [name for name, stage in STAGES.items() if set(parts) & set(stage.get("params", []))]
    made, behind = {}, {}
    for name, stage in STAGES.items():
        for out in stage["outs"]:
            made[out if isinstance(out, str) else next(iter(out))] = name
    for name, stage in STAGES.items():
        behind[name] = {
            maker for out, maker in made.items() for dep in stage["deps"] if f"{out}/".startswith(f"{dep}/")
        }
    after, todo = [], list(direct)
    while todo:
        name = todo.pop(0)
        following = [other for other in STAGES if name in behind[other] and other not in [*direct, *after]]
        after, todo = after + following, todo + following
    every = [name for name in STAGES if name.startswith("evaluate@")]
    listed = []
    for group in (direct, after):
        names = [name for name in STAGES if name in group]
        if set(every) <= set(group):  # all priors alike
            names = ["evaluate" if name == every[0] else name for name in names if name not in every[1:]]
        listed.append(", ".join(f"`{name}`" for name in names))
    return "; then ".join(filter(None, listed))


def parameter_rows(values: dict) -> dict[str, list[str]]:
    """The columns of docs/parameters.md that are not prose, by key."""
    schema = Params.model_json_schema()
    found = leaves(schema, schema["$defs"])
    return {key: [f"`{key}`", default(key, values), text, reruns(key)] for key, text in found.items()}


def written_rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of a Markdown page whose first is `code`, by that."""
    rows = re.findall(r"^\| (`.*) \|$", text, re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\) \|(?: |$)", row)] for row in rows]
    return {row[0].strip("`"): row for row in cells}


def test_parameters_are_those_of_the_schema(values):
    written = written_rows(PARAMETERS.read_text())
    expected = parameter_rows(values)
    assert list(written) == list(expected)
    for key, row in written.items():
        assert row[:4] == expected[key]
        assert len(row[4]) > 10, f"{key} is not explained"


# Metrics


def measures(values: dict) -> set[str]:
    """The last keys of nested metrics."""
    inner = [measures(value) if isinstance(value, dict) else {key} for key, value in values.items()]
    return set().union(*inner)


def test_every_measure_is_documented_under_its_file_and_no_other():
    sections = re.split(r"^## ", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE)[1:]
    documented = {}
    for section in sections:
        heading = section.splitlines()[0]
        for file in re.findall(r"`(\w+\*?\.json)`", heading):
            documented[file] = written_rows(section)
    for file in (ROOT / "metrics").glob("*.json"):
        (rows,) = [rows for pattern, rows in documented.items() if fnmatch.fnmatch(file.name, pattern)]
        for measure in measures(json.loads(file.read_text())):
            assert any(fnmatch.fnmatchcase(measure, name) for name in rows), f"{file.name}: {measure}"
    for pattern, rows in documented.items():
        found = [measures(json.loads(file.read_text())) for file in (ROOT / "metrics").glob(pattern)]
        assert found, pattern
        for name, row in rows.items():
            assert fnmatch.filter(set().union(*found), name), f"{pattern}: {name}"
            assert row[2] in ("higher", "lower", "") or row[2].startswith("→ "), f"{pattern}: {name}"


CLAIMS = [  # numbers that docs/chapter.md quotes: file of metrics/, key, and how they stand there
    ("train_ae", "train_ae.test_psnr_db", "at {:.1f} dB"),
    ("sample", "sample.ae_raw.range.coverage", "covers {:.2f} of the real patches"),
    ("sample", "sample.ae.range.coverage", "the codes {:.2f}, where"),
    ("sample", "sample.floor.coverage", "covers {:.2f} (`coverage`"),
    ("evaluate_vae", "vae.relaxed.likelihood.log_likelihood", "log p(x) = {:.3f} nats"),
    ("evaluate_vae", "vae.relaxed.likelihood.monte_carlo_error", "error of {:.5f}"),
    ("evaluate_vae", "vae.relaxed.likelihood.elbo", "the ELBO says {:.3f}"),
    ("evaluate_vae", "vae.relaxed.likelihood.importance_bound", "sampling {:.3f}"),
    ("sample", "sample.vae.range.detail_db", "the VAE's {:.1f}, the GAN"),
    ("sample", "sample.ae.range.detail_db", "the autoencoder's G(z) {:.1f} dB"),
    ("sample", "sample.gan.range.detail_db", "the GAN's {:.1f}."),
    ("sample", "sample.gan.range.coverage", "{:.2f} of the default GAN's G(z)"),
    ("sample", "sample.vae.range.coverage", "the VAE's {:.2f} without v(z)"),
    ("sample", "sample.vae.relaxed.coverage", "and {:.2f} with it"),
    ("train_vae", "train_vae.chapter.active_units", "{} of 20 coordinates stay active"),
    ("train_vae", "train_vae.chapter.test_kl", "the KL is {:.1f} nats"),
    ("train_vae", "train_vae.test_kl", "instead of {:.1f}"),
    ("train_vae", "train_vae.chapter.sigma", "σ ≈ {:.2f}"),
    ("sample", "sample.ae_raw.range.coverage", "raw N(0, I) codes | {:.3f} |"),
    ("sample", "sample.ae.range.coverage", "fitted to its codes | {:.3f} |"),
    ("sample", "sample.ae.range.mmd_p_value", "| {:g} | | VAE"),
    ("sample", "sample.ae.relaxed.coverage", "v(z) the samples cover {:.2f},"),
    ("sample", "sample.vae.relaxed.coverage", "decoder's noise | {:.3f} |"),
    ("chapter", "chapter.gan_1d.step_001.fake_std", "from {:.2f} to"),
    ("chapter", "chapter.gan_1d.step_200.fake_std", "to {:.2f}, where"),
]


@pytest.mark.parametrize(("file", "key", "wording"), CLAIMS)
def test_numbers_of_the_chapter_page_are_the_committed_ones(file, key, wording):
    value = json.loads((ROOT / f"metrics/{file}.json").read_text())
    for step in key.split("."):
        value = value[step]
    assert wording.format(value) in " ".join((ROOT / "docs/chapter.md").read_text().split())


def rewrite_parameters() -> None:
    """Write the schema's columns of docs/parameters.md anew."""
    text = PARAMETERS.read_text()
    expected = parameter_rows(yaml.safe_load((ROOT / "params.yaml").read_text()))
    for key, row in written_rows(text).items():
        cells = [*expected[key], row[4]] if key in expected else row
        text = re.sub(rf"^\| `{re.escape(key)}` \|.*$", lambda _, c=cells: f"| {' | '.join(c)} |", text, flags=re.M)
    PARAMETERS.write_text(text)


if __name__ == "__main__":
    rewrite_parameters()
