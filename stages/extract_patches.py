"""Photographs to patches: data/patches/{train,validation,test}.npy, uint8, one array (N, height, width) each.

data/patches/photographs.csv says how many patches of each photograph they hold, in their order. Photographs are read
one at a time, once to count and once to cut; ranks share them.
"""

import hashlib
import os
from collections import Counter
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
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


def copies_in(settings: ExtractPatches, split: str) -> int:
    """How many copies of a patch, mirrored and transposed, a split may hold."""
    return images.symmetries_of(settings.patch_size) if split == "train" and settings.symmetries else 1


def kept_of(counts: list[int], most: int) -> np.ndarray:
    """How many patches of each photograph are kept, at most `most` of all: in proportion to how many it has, (F,)."""
    ends = np.cumsum([0, *counts])
    return np.diff(ends * min(most, ends[-1]) // ends[-1])


def cut(
    settings: ExtractPatches, split: str, seed: int, part: Path, places: dict[str, tuple[int, int]], file: str
) -> None:
    """Write patches of one photograph, drawn with the seed, where they belong in the array of its split.

    places: where those of each photograph begin and end.
    """
    found, (start, end) = np.load(part, mmap_mode="r+"), places[file]
    image, grid = prepare(file, settings), (settings.patch_size, settings.stride)
    count = images.count_patches(image, *grid)
    # Copies are numbered on, copy · count + patch. No two photographs start at one place.
    draw = np.random.default_rng([seed, SPLITS.index(split), start])
    kept = np.sort(draw.choice(count * copies_in(settings, split), end - start, replace=False))
    for first in range(0, len(kept), AT_ONCE):
        copy, patch = np.divmod(kept[first : first + AT_ONCE], count)
        patches = images.cut_patches(image, *grid, patch)
        for number in np.unique(copy):
            patches[copy == number] = images.symmetry(patches[copy == number], number)
        found[start + first : start + first + len(patches)] = patches


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
    places = {}
    for split, files in splits.items():
        kept = kept_of([measured[file][1] * copies_in(settings, split) for file in files], settings.max_patches)
        places[split] = dict(zip(files, pairwise(np.cumsum([0, *kept]).tolist()), strict=True))
        rows += [{"split": split, "photograph": file, "patches": n} for file, n in zip(files, kept, strict=True)]
        summary[split] = {"photographs": len(files), "patches": int(kept.sum())}
    if summary["train"]["patches"] < 2:
        raise InputError("extract_patches.train gives one patch; a smaller stride or another photograph gives more")
    for split, files in splits.items():
        path, first = folder / f"{split}.npy", ranks.rank() == 0
        with whole_file(path) if first else nullcontext(part_of(path)) as part:
            if first:
                reserve_array(part, (summary[split]["patches"], *settings.patch_size))
            ranks.of_all(None)  # it is there
            side_by_side(partial(cut, settings, split, seed, part, places[split]), files, 1, split)
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
