"""What no module may import, itself or through another of this project's, inside functions too."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ENGINE = ("batches", "covariances", "energies", "inversion", "sampling", "restoration")
ENGINE = [f"genprior/{name}.py" for name in ENGINE]
# Of the priors: the network for one problem starts from a classical estimator.
TRAININGS = ["stages/train_*.py", "pipeline/training.py", "pipeline/losses.py", "pipeline/checkpoints.py"]
SHIPPED = {"genprior", "numpy", "scipy", "torch", "safetensors", "PIL", "tifffile"}


def imports(file: Path, everywhere: bool = True) -> set[str]:
    """Dotted names that a file imports, `module` and `module.name`; only at its top level, where not `everywhere`."""
    tree, found = ast.parse(file.read_text()), set()
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def reached(file: Path) -> set[str]:
    """Modules of this project that a file imports, directly or not, without itself."""
    found, to_read = set(), [file]
    while to_read:
        for name in imports(to_read.pop()) - found:
            if (module := ROOT / f"{name.replace('.', '/')}.py").is_file():
                found.add(name)
                to_read.append(module)
    return found - {".".join(file.relative_to(ROOT).with_suffix("").parts)}


@pytest.mark.parametrize(
    ("files", "never"),
    [
        (["genprior/*.py"], ["pipeline", "stages", "tools"]),
        (ENGINE, ["genprior.networks", "genprior.layers", "genprior.flow", "genprior.views"]),
        (TRAININGS, ["pipeline.measures", "pipeline.classical"]),
        (["stages/*.py", "tools/*.py", "examples/*.py"], ["stages"]),  # benchmarks run what the stages run
    ],
)
def test_never(files, never):
    found = [file for pattern in files for file in ROOT.glob(pattern.replace("*", "[!.]*"))]
    assert found
    for file in found:
        for name in reached(file):
            assert not any(f"{name}.".startswith(f"{part}.") for part in never), f"{file.name} reaches {name}"
    if never[0] == "pipeline":
        for file in found:
            for everywhere, more in ((False, set()), (True, {"imagecodecs"})):
                outside = {name.split(".")[0] for name in imports(file, everywhere)} - SHIPPED - more
                assert outside <= sys.stdlib_module_names, file.name
