"""Photographs to patches: data/patches/{train,validation,test}.npy, uint8, one array (N, height, width) each.

data/patches/test_photographs.npy says which of extract_patches.test each test patch is from.
"""

import hashlib

import numpy as np

from genprior import images
from genprior.files import InputError
from pipeline.files import write_array, write_metrics
from pipeline.params import ExtractPatches, load_params
from pipeline.prepare import prepare
from pipeline.run import run

SPLITS = ("train", "validation", "test")


def extract(settings: ExtractPatches, seed: int) -> dict[str, np.ndarray]:
    """The patches of every split, uint8 (N, h, w), at most `max_patches` of each, drawn with the seed.

    Beside them `test_photographs`: which of settings.test each test patch is from, (N,). Only training patches get
    mirrored and transposed copies. Raises InputError for a photograph that cannot be used, and for two files that hold
    the same picture.
    """
    patches, seen = {}, {}
    for number, split in enumerate(SPLITS):
        parts = []
        for file in getattr(settings, split):
            image = prepare(file, settings)
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest in seen:
                raise InputError(f"{file}: the same picture as {seen[digest]}; name every photograph once")
            seen[digest] = file
            parts.append(images.cut_patches(image, settings.patch_size, settings.stride))
        found = np.concatenate(parts)
        if split == "train" and settings.symmetries:
            found = images.symmetries(found)
        kept = np.arange(len(found))
        if len(found) > settings.max_patches:
            draw = np.random.default_rng([seed, number])
            kept = np.sort(draw.choice(len(found), settings.max_patches, replace=False))
        if split == "train" and len(kept) < 2:
            raise InputError("extract_patches.train gives one patch; a smaller stride or another photograph gives more")
        patches[split] = found[kept]
    photographs = np.repeat(np.arange(len(parts)), [len(part) for part in parts])  # the last split is the test's
    return {**patches, "test_photographs": photographs[kept]}


def main() -> None:
    params = load_params("params.yaml")
    settings = params.extract_patches
    patches = extract(settings, params.seed)
    summary = {}
    for name, array in patches.items():
        write_array(f"data/patches/{name}.npy", array)
    for split in SPLITS:
        array = patches[split]
        summary[split] = {
            "photographs": len(getattr(settings, split)),
            "patches": len(array),
            "mean": array.mean() / 255,
            "std": array.std() / 255,
        }
    write_metrics("metrics/patches.json", {"patches": summary})


if __name__ == "__main__":
    run(main)
