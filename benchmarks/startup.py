"""How long a `dvc repro` with nothing to do and a stage's start take, beside what they cannot be quicker than.

Processor time of whole processes, the quickest of several rounds, each round running everything once side by side.
After `make repro`: `python -m benchmarks.startup`, two minutes; the result is benchmarks/startup.md.
"""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.files import write_text

ROUNDS = 5
MOST_REPRO, MOST_START = 1.5, 1.3  # the ratios that we want at most
STAGES = [file.stem for file in sorted(Path("stages").glob("[a-z]*.py"))]
TORCH = "import torch; torch.optim.Adam([torch.zeros(1, requires_grad=True)])"
# A stage up to its work: its imports, its parameters, seed, device and threads; torch where it uses torch.
START = """
import stages.{stage}, sys
from genprior.params import load_params
from genprior.stage import set_up
params = load_params("params.yaml")
if "torch" in sys.modules:
    set_up(params)
"""


def seconds(*command: str) -> float:
    """Processor time of a command and of all that it starts, in seconds."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(command)}: {errors}")
    return usage.ru_utime + usage.ru_stime


def quickest(commands: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """Each command's least processor time over the rounds, in seconds."""
    rounds = [{name: seconds(*command) for name, command in commands.items()} for _ in range(ROUNDS)]
    return {name: min(times[name] for times in rounds) for name in commands}


def main() -> None:
    if "Running stage" in subprocess.run(["dvc", "repro", "--dry"], capture_output=True, text=True, check=True).stdout:
        sys.exit("error: dvc.lock is not current: `make repro` first")
    commands = {"dvc status": ("dvc", "status"), "dvc repro": ("dvc", "repro")}
    commands["torch and an optimiser"] = (sys.executable, "-c", TORCH)
    commands |= {f"start of {stage}": (sys.executable, "-c", START.format(stage=stage)) for stage in STAGES}
    found = quickest(commands)
    rows = []
    for name, time in found.items():
        base = "dvc status" if name.startswith("dvc") else "torch and an optimiser"
        most = "" if name == base else MOST_REPRO if name.startswith("dvc") else MOST_START
        rows.append(f"| {name} | {time:.2f} | {time / found[base]:.2f} | {most} |")
    parts = [
        "# Starting",
        f"Processor time in seconds, the least of {ROUNDS} rounds, and its ratio to `dvc status` or to importing "
        "torch and making an optimiser; the ratio that is wanted at most. Written by `python -m benchmarks.startup`.",
        "| what | seconds | ratio | at most |\n| --- | ---: | ---: | ---: |\n" + "\n".join(rows),
    ]
    write_text("benchmarks/startup.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
