"""What README.md says against what stands in the repository."""

import re

import torch
from conftest import ROOT

from genprior.networks import Prior, save_network

README = (ROOT / "README.md").read_text()


def test_tables_of_results_are_the_reports():
    report = (ROOT / "data/report/README.md").read_text()
    results = README.split("## What comes out")[1].split("## Everyday use")[0]
    rows = [line for line in results.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    for row in rows:
        assert row in report


def test_tree_names_every_script():
    for pattern in ("stages/*.py", "genprior/*.py", "tools/*.py", "docs/*.md"):
        for file in ROOT.glob(pattern):
            assert file.name == "__init__.py" or file.name in README


def test_python_example_runs(tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "vae.safetensors"
    save_network(Prior((16, 16), 3, [8], "silu", "modulated"), file)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert '"data/models/vae.safetensors"' in code
    names = {}
    exec(code.replace('"data/models/vae.safetensors"', f'r"{file}"'), names)
    assert names["restored"].shape == (4, 1, 16, 16)
    assert names["samples"].shape == (4, 200, 16, 16)
    assert names["samples"].isfinite().all()
