"""Where a training stands, on disk: a killed stage goes on from there, to the bytes of an undisturbed run."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from tqdm import tqdm

import genprior.files
from genprior.files import InputError, whole_file
from pipeline import ranks
from pipeline.params import Params
from pipeline.patches import Patches
from pipeline.run import steps

DIGEST = 32  # bytes, before the tensors


class Checkpoint:
    """One file in `folder` for each training that a stage begins, written every `every` seconds and at its end.

    Before its tensors (safetensors) stands a digest of them and of the run: parameters, code (`script`, genprior/ and
    pipeline/), `data` and its device, torch and instruction set. A file that is damaged or of another run is passed
    over, and overwritten.
    """

    def __init__(self, folder: str | Path, params: Params, script: str, *data: Patches | Tensor, every: float = 15.0):
        self.folder, self.every, self.trainings, self.written = Path(folder), every, 0, time.monotonic()
        self.run = hashlib.sha256(params.model_dump_json().encode())
        self.run.update(f"{data[0].device} {torch.__version__} {torch.backends.cpu.get_cpu_capability()}".encode())
        library, shared = Path(genprior.files.__file__).parent, Path(__file__).parent
        for file in (Path(script), *sorted(library.glob("[!.]*.py")), *sorted(shared.glob("[!.]*.py"))):
            self.run.update(file.read_bytes())
        for patches in data:
            for first in range(0, len(patches), 2**14):  # they may be larger than memory
                self.run.update(patches[first : first + 2**14].cpu().numpy())

    def due(self) -> bool:
        """Whether the last writing is long enough ago; asked after every step."""
        return time.monotonic() - self.written > self.every

    def save(self, path: Path, parts: list, rows: list[dict], step: int) -> None:
        """Write the state of `parts` and the curve's rows after `step` steps."""
        tensors = {}

        def numbered(tensor: Tensor) -> dict:
            tensors[str(len(tensors))] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": str(len(tensors) - 1)}

        states = [part.get_state() if isinstance(part, torch.Generator) else part.state_dict() for part in parts]
        text = json.dumps([step, rows, states], default=numbered)
        tensors["text"] = torch.frombuffer(bytearray(text, "utf-8"), dtype=torch.uint8)
        content = safetensors.torch.save(tensors)
        with whole_file(path) as part:
            part.write_bytes(self._digest(content) + content)
        self.written = time.monotonic()

    def restore(self, path: Path, parts: list, rows: list[dict]) -> int:
        """Set `parts` and `rows` to what the file holds; returns its number of steps, 0 where it is not of this run."""
        if len({*ranks.of_all(self.run.hexdigest())}) > 1:
            raise InputError("ranks differ in code, data, torch or kind of CPU; the same on all would be right")
        content = path.read_bytes() if path.is_file() and ranks.rank() == 0 else b""
        content = ranks.of_all(content if content[:DIGEST] == self._digest(content[DIGEST:]) else b"")[0]
        if not content:
            return 0
        tensors = safetensors.torch.load(content[DIGEST:])

        def nested(found: dict) -> Tensor | dict:
            if "tensor" in found:
                return tensors[found["tensor"]].clone()  # where it lies in the file would reach the last bits of sums
            return {int(key) if key.isdigit() else key: value for key, value in found.items()}  # an optimiser's keys

        step, rows[:], states = json.loads(tensors["text"].numpy().tobytes(), object_hook=nested)
        for part, state in zip(parts, states, strict=True):
            part.set_state(state) if isinstance(part, torch.Generator) else part.load_state_dict(state)
        return step

    def _digest(self, content: bytes) -> bytes:
        digest = self.run.copy()
        digest.update(content)
        return digest.digest()

    def remove(self) -> None:
        """Leave nothing behind, once the stage has written its outputs."""
        shutil.rmtree(self.folder, ignore_errors=True)


def resumable(count: int, what: str, checkpoint: Checkpoint | None, parts: list, rows: list[dict]) -> tqdm:
    """`pipeline.run.steps`, from where a killed run of this training was last saved; without a checkpoint all of them.

    parts: all that a step changes (networks, optimisers, schedules, generators) at step 0; rows: the curve so far, [].
    """
    if checkpoint is None:
        return steps(count, what)
    checkpoint.trainings += 1
    path = checkpoint.folder / f"{checkpoint.trainings}.state"
    parts = [*parts, torch.default_generator]
    done = checkpoint.restore(path, parts, rows)

    def saved() -> Iterator[int]:
        for step in range(done, count):
            yield step
            if ranks.rank() == 0 and (checkpoint.due() or step == count - 1):
                checkpoint.save(path, parts, rows, step + 1)

    return steps(count, what, saved(), done)
