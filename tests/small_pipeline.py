"""A pipeline of three quick stages in the real one's forms, for tests of what people do around a pipeline with DVC."""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from conftest import DVC_CONFIG, ROOT, runner

FILES = {
    "dvc.yaml": """\
stages:
  left:
    cmd: python -m stages.left
    deps: [lib/code.py, stages/left.py]
    params: [left]
    outs: [data/left.txt]
  right:
    cmd: python -m stages.right
    deps: [lib/code.py, stages/right.py]
    params: [right]
    outs: [data/right.txt]
  join:
    cmd: python -m stages.join
    deps: [data/left.txt, data/right.txt, lib/code.py, stages/join.py]
    params: [seed]
    outs:
      - metrics/join.json: {cache: false}
metrics: [metrics]
""",
    "params.yaml": """\
seed: 0
left:
  value: 0

# far enough from each other for a merge of both
right:
  value: 1
""",
    "lib/__init__.py": "",
    "lib/code.py": """\
import sys
from pathlib import Path
import yaml

VERSION = 1
PARAMS = yaml.safe_load(Path("params.yaml").read_text())

def write(path, text):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(text)

def read(path):
    return float(Path(path).read_text())
""",
    "stages/__init__.py": "",
    "stages/left.py": """\
from lib.code import PARAMS, sys, write

if PARAMS["left"]["value"] < 0:
    sys.exit(f"error: params.yaml: left.value = {PARAMS['left']['value']}: at least 0")
write("data/left.txt", str(PARAMS["left"]["value"]))
""",
    "stages/right.py": """\
from lib.code import PARAMS, write

write("data/right.txt", str(PARAMS["right"]["value"]))
""",
    "stages/join.py": """\
import json
from lib.code import PARAMS, VERSION, read, write

product = read("data/left.txt") * read("data/right.txt")
found = {"product": product, "noisy": product + 0.5 ** PARAMS["seed"], "version": VERSION}
write("metrics/join.json", json.dumps({"join": found}))
""",
    ".dvc/config": DVC_CONFIG,
    ".gitignore": "__pycache__/\n/data/\n",
}


@functools.cache
def _begun(repro: bool) -> Path:
    """The pipeline committed in a repository of its own on the branch main: made once, for copies."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name in (".gitattributes", ".dvcignore", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    run = runner(folder)
    run("git", "init", "-q", "-b", "main")
    if repro:
        run("dvc", "repro", "-q")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "Begin")
    return folder


def begin(folder: Path, repro: bool = True) -> Callable[..., str]:
    """Lay the pipeline in a folder, committed and, unless told not to, run; returns its `runner`."""
    shutil.copytree(_begun(repro), folder, dirs_exist_ok=True)
    return runner(folder)
