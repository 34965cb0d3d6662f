"""What README.md says against what stands in the repository."""

import re

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_tables_of_results_are_the_reports():
    report = (ROOT / "data/report/README.md").read_text()
    results = README.split("## What comes out")[1].split("## Everyday use")[0]
    rows = [line for line in results.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        assert row in report


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists()


def test_tree_names_every_script():
    for file in [*ROOT.glob("stages/*.py"), *ROOT.glob("genprior/*.py")]:
        assert file.name == "__init__.py" or file.name in README


def test_parameters_in_commands_exist(values):
    for key in re.findall(r"-S '?([\w.]+)=", README):
        block = values
        for step in key.split("."):
            block = block[step]
