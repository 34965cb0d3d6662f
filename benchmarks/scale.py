"""Growth: seconds and peak memory of extract_patches and train_svae, from a thousand patches to ten million.

    python -m benchmarks.scale                      # 10³ to 10⁶; --most 10000000 takes 3 GB of disk
    python -m benchmarks.scale --status 100000      # also what `dvc status` takes with so many photographs

Photographs are synthetic, 256 × 256 of smooth noise. Each stage runs as it is, in a folder of its own, in one process
of two threads, with 100 steps of training. Memory is the process's peak, its pages of mapped files included. Then two
ranks of one thread run beside one process of two, in turn, with all steps of params.yaml: seconds of whole commands.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from ruamel.yaml import YAML
from scipy.ndimage import gaussian_filter

from genprior.files import InputError
from pipeline.files import markdown, write_text
from pipeline.ranks import OPTIONS
from pipeline.run import run

ROOT = Path(__file__).parent.parent
OF_ONE = 8 * 61**2  # patches of one photograph, at stride 4 with all symmetries


def write_photographs(folder: Path, count: int, side: int = 256) -> None:
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        smooth = gaussian_filter(draw.normal(size=(side, side)), min(4, side / 4))
        grey = np.rint(128 + 40 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)
        (folder / f"{number % 100}").mkdir(exist_ok=True)
        Image.fromarray(grey).save(folder / f"{number % 100}/{number}.png", compress_level=1)


def write_params(folder: Path, **changed: dict) -> None:
    yaml = YAML(typ="safe", pure=True)
    values = yaml.load(ROOT / "params.yaml")
    values["extract_patches"] |= {"train": ["imgs/mine/**/*.png"], "validation": 0.1, "test": 0.1, "scenes": "folders"}
    for block, settings in changed.items():
        values[block] = values[block] | settings if isinstance(settings, dict) else settings
    yaml.dump(values, folder / "params.yaml")


def timed(folder: Path, *stage: str, options: str = "") -> tuple[float, float]:
    """Seconds of a stage, and its peak memory in MiB."""
    environment = {name: value for name, value in os.environ.items() if name != OPTIONS}
    environment |= {"PYTHONPATH": str(ROOT)} | ({OPTIONS: options} if options else {})
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", f"stages.{stage[0]}", *stage[1:]], cwd=folder, env=environment)
    _, code, used = os.wait4(process.pid, 0)
    if code:
        raise InputError(f"stages.{stage[0]} failed")
    return time.perf_counter() - begin, used.ru_maxrss / 1024


def growth(most: int, folder: Path) -> list[list[str]]:
    rows, count = [], 1000
    while count <= most:
        at = folder / str(count)
        write_photographs(at / "imgs/mine", max(20, -(-count * 5 // (4 * OF_ONE))))
        write_params(at, extract_patches={"max_patches": count}, train_svae={"steps": 100})
        found = [*timed(at, "extract_patches"), *timed(at, "train_svae")]
        rows.append([f"{count:,}", *(f"{number:.0f}" for number in found)])
        print(*rows[-1], flush=True)
        shutil.rmtree(at)
        count *= 10
    return rows


def sharing(pairs: int, folder: Path) -> list[list[str]]:
    """Seconds of a training and an evaluation, by one process of two threads and by two ranks of one."""
    at, rows = folder / "sharing", []
    write_photographs(at / "imgs/mine", 40)
    few = {"patches": 32, "posterior_patches": 8, "posterior_samples": 50, "mean_samples": 24, "likelihood_patches": 16}
    changed = {"evaluate": few, "crossover": {"patches": 16}}
    write_params(at, **changed)
    timed(at, "extract_patches")
    for stage in ("train_svae", "evaluate svae"):
        ratios = []
        for _ in range(pairs):
            write_params(at, **changed, threads=2)
            one = timed(at, *stage.split())[0]
            write_params(at, **changed, threads=1)
            ratios.append(one / timed(at, *stage.split(), options="--nproc-per-node=2")[0])
        rows.append([stage, f"{np.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"])
        print(*rows[-1], flush=True)
    return rows


def status(count: int, folder: Path) -> list[list[str]]:
    """Seconds of `dvc status` with so many photographs of 16 × 16 pixels: the first, and the next two."""
    write_photographs(folder / "status/imgs/mine", count, 16)
    at = folder / "status"
    write_text(at / "dvc.yaml", "stages: {cut: {cmd: mkdir cut, deps: [imgs], outs: [cut]}}\n")
    subprocess.run(["git", "init", "-q"], cwd=at, check=True)
    subprocess.run(["dvc", "init", "-q"], cwd=at, check=True)
    subprocess.run(["dvc", "repro", "-q"], cwd=at, check=True)
    rows = []
    for what in ("first", "second", "third"):
        begin = time.perf_counter()
        subprocess.run(["dvc", "status", "-q"], cwd=at, check=True)
        rows.append([what, f"{time.perf_counter() - begin:.1f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--status", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = [
            "# Growth",
            f"Written by `python -m benchmarks.scale --most {args.most} --pairs {args.pairs} --status {args.status}`, "
            f"on {os.cpu_count()} cores. Seconds, and peak memory in MiB, by number of training patches:",
            markdown(["patches", "extract s", "MiB", "train s", "MiB"], growth(args.most, folder)),
            "Two ranks of one thread against one process of two: its seconds over theirs, median and range:",
            markdown(["stage", "ratio", "range"], sharing(args.pairs, folder)),
        ]
        if args.status:
            parts += [
                f"`dvc status` with {args.status:,} files under a dependency, in seconds:",
                markdown(["call", "s"], status(args.status, folder)),
            ]
    write_text("benchmarks/scale.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    run(main)
