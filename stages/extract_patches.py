"""Photographs to patches: data/patches/{train,validation,test}.npy, uint8, one array (N, height, width) each.

data/patches/photographs.csv says how many patches of each photograph they hold, in their order. Photographs are read
one at a time, once to count and once to cut; ranks share them.
"""

import hashlib
import os
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from genprior import images
from genprior.files import InputError, part_of, whole_file
from pipeline import ranks
from pipeline.files import reserve_array, write_csv, write_metrics
from pipeline.params import SPLITS, ExtractPatches, load_params
from pipeline.prepare import prepare, split_photographs
from pipeline.processes import side_by_side
from pipeline.run import run

AT_ONCE = 2**16  # patches, which bounds memory


def measure(settings: ExtractPatches, file: str) -> tuple[str, int]:
    """A photograph's digest, and how many patches it has; InputError where it cannot be used."""
    image = prepare(file, settings)
    return hashlib.sha256(image.tobytes()).hexdigest(), images.count_patches(
        image, settings.patch_size, settings.stride
    )


def choose(counts: np.ndarray, settings: ExtractPatches, split: str, seed: int) -> list[np.ndarray]:
    """Which patches of each photograph are kept, at most `max_patches` of all, drawn with the seed.

    counts: how many each has, (F,). Training patches have mirrored and transposed copies, numbered on: copy · count +
    patch.
    """
    copies = images.symmetries_of(settings.patch_size) if split == "train" and settings.symmetries else 1
    ends = np.cumsum(counts * copies)
    if ends[-1] <= settings.max_patches:
        return [np.arange(count * copies) for count in counts]
    draw = np.random.default_rng([seed, SPLITS.index(split)])
    kept = np.sort(draw.choice(ends[-1], settings.max_patches, replace=False))
    bounds = np.searchsorted(kept, [0, *ends])
    return [kept[low:high] - first for low, high, first in zip(bounds, bounds[1:], [0, *ends], strict=False)]


def cut(settings: ExtractPatches, part: Path, starts: dict[str, int], kept: dict[str, np.ndarray], file: str) -> None:
    """Write the kept patches of one photograph where they belong in the array of its split."""
    found = np.load(part, mmap_mode="r+")
    image, grid = prepare(file, settings), (settings.patch_size, settings.stride)
    for first in range(0, len(kept[file]), AT_ONCE):
        chosen = kept[file][first : first + AT_ONCE]
        copy, patch = np.divmod(chosen, images.count_patches(image, *grid))
        patches = images.cut_patches(image, *grid, patch)
        for number in np.unique(copy):
            patches[copy == number] = images.symmetry(patches[copy == number], number)
        begin = starts[file] + first
        found[begin : begin + len(chosen)] = patches


def extract(settings: ExtractPatches, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    """Write the patches of every split to `folder`; returns what the metrics say of them.

    InputError for a photograph that cannot be used, and for two files that hold the same picture.
    """
    splits, seen, rows, summary = split_photographs(settings, seed), {}, [], {}
    every = [file for split in SPLITS for file in splits[split]]
    if twice := [file for file, count in Counter(every).items() if count > 1]:
        raise InputError(f"{twice[0]}: named twice; name every photograph once")
    measured = side_by_side(partial(measure, settings), every, 1, "photographs")
    for file, (digest, _) in measured.items():
        if digest in seen:
            raise InputError(f"{file}: the same picture as {seen[digest]}; name every photograph once")
        seen[digest] = file
    chosen = {}
    for split, files in splits.items():
        kept = choose(np.array([measured[file][1] for file in files]), settings, split, seed)
        chosen[split] = dict(zip(files, kept, strict=True))
        rows += [{"split": split, "photograph": file, "patches": len(own)} for file, own in chosen[split].items()]
    if sum(map(len, chosen["train"].values())) < 2:
        raise InputError("extract_patches.train gives one patch; a smaller stride or another photograph gives more")
    for split, kept in chosen.items():
        path, counts = folder / f"{split}.npy", [len(own) for own in kept.values()]
        starts = dict(zip(kept, np.cumsum([0, *counts]), strict=False))
        first = ranks.rank() == 0
        with whole_file(path) if first else nullcontext(part_of(path)) as part:
            if first:
                reserve_array(part, (sum(counts), *settings.patch_size))
            ranks.of_all(None)  # it is there
            side_by_side(partial(cut, settings, part, starts, kept), list(kept), 1, split)
        summary[split] = {"photographs": len(kept), "patches": sum(counts)}
    ranks.leave_to_first()
    write_csv(folder / "photographs.csv", pd.DataFrame(rows))
    return {split: values | brightness(folder / f"{split}.npy") for split, values in summary.items()}


def brightness(path: Path) -> dict[str, float]:
    """Mean and standard deviation of the grey values of an array of patches, in [0, 1]."""
    histogram, count = np.zeros(256), len(np.load(path, mmap_mode="r"))
    for first in range(0, count, AT_ONCE):  # mapped anew each time, as `Patches` are
        histogram += np.bincount(np.load(path, mmap_mode="r")[first : first + AT_ONCE].ravel(), minlength=256)
    grey, share = np.arange(256) / 255, histogram / histogram.sum()
    mean = share @ grey
    return {"mean": mean, "std": (share @ (grey - mean) ** 2) ** 0.5}


def main() -> None:
    params = load_params("params.yaml")
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        raise InputError("extract_patches: ranks of one machine alone write one file; see docs/scale.md")
    ranks.join("cpu")
    summary = extract(params.extract_patches, params.seed, Path("data/patches"))
    write_metrics("metrics/patches.json", {"patches": summary})


if __name__ == "__main__":
    run(main, shared=True)
