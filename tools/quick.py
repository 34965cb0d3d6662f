"""Every stage at small size, in a copy of the checkout: it shows that all works, and its numbers mean little.

    python -m tools.quick    # or make quick; the report's page is data/quick.html

tools/quick.yaml holds the sizes, in the form of params.yaml. The copy holds what Git tracks or would track, uncommitted
edits too, and all of imgs/. It lies in the folder for temporary files, and is removed at the end.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML

from genprior.files import InputError
from pipeline.files import write_text
from pipeline.params import Params, check, load_params
from pipeline.run import run
from tools import output

SIZES = Path(__file__).with_suffix(".yaml")
PAGE = Path("data/quick.html")
CONFIG = """\
[core]
    analytics = false
    no_scm = true
    site_cache_dir = {}
[cache]
    dir = cache
"""


def reduced(values: object, sizes: object) -> object:
    """Nested values with `sizes` in their places."""
    if not isinstance(values, dict) or not isinstance(sizes, dict):
        return sizes
    return values | {key: reduced(values.get(key), size) for key, size in sizes.items()}


def small_params() -> Params:
    """Those of params.yaml at the sizes of quick.yaml; InputError where the schema refuses either."""
    values = load_params("params.yaml").model_dump(mode="json")
    return check(reduced(values, YAML(typ="safe", pure=True).load(SIZES)), f"params.yaml with tools/{SIZES.name}")


def copy_checkout(folder: Path) -> None:
    """Copy what Git has or would take, as it is now, and the photographs, which DVC may have."""
    for file in output("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0"):
        if os.path.isfile(file) and not file.startswith("imgs/"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / file)
    shutil.copytree("imgs", folder / "imgs", symlinks=True)


def main() -> None:
    params = small_params()
    with TemporaryDirectory(prefix="genprior-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        copy_checkout(folder)
        write_text(folder / "params.yaml", json.dumps(params.model_dump(mode="json")))  # JSON is YAML
        write_text(folder / ".dvc/config", CONFIG.format(folder / ".dvc/site"))  # a cache of its own, and no remote
        if subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=folder, check=False).returncode:
            raise InputError("the small run failed; the reason stands above")
        write_text(PAGE, (folder / "data/report.html").read_text(encoding="utf-8"))
    print(f"the page: {PAGE.resolve()}")


if __name__ == "__main__":
    run(main)
