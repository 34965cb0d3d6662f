"""Photographs to patches: data/patches/{train,validation,test}.npy, uint8, one array (N, height, width) each."""

import hashlib
import math

import numpy as np

from genprior import images
from genprior.files import InputError
from pipeline.files import write_array, write_metrics
from pipeline.params import MOST_NUMBERS, ExtractPatches, load_params
from pipeline.run import run

SPLITS = ("train", "validation", "test")
MOST_CUT = 2**31  # pixels of all patches of a split, in bytes, before any are drawn


def prepare(file: str, settings: ExtractPatches) -> np.ndarray:
    """One photograph, grey, resized and cropped as `settings` say: uint8, (height, width)."""
    image = images.read_photograph(file)
    if isinstance(settings.image_size, int):
        width = round(settings.image_size * max(image.shape) / min(image.shape))
        if settings.image_size * width > images.MOST_PIXELS:
            raise InputError(
                f"{file}: {list(image.shape)} (height, width) with extract_patches.image_size = {settings.image_size} "
                f"as its shorter side has more than {images.MOST_PIXELS} pixels; a smaller one would be right"
            )
    image = images.resize(image, settings.image_size)
    if settings.crop:
        top, left, height, width = settings.crop
        if top + height > image.shape[0] or left + width > image.shape[1]:
            raise InputError(
                f"{file}: resized to {list(image.shape)} (height, width), it does not hold "
                f"extract_patches.crop = {settings.crop} (top, left, height, width)"
            )
        image = image[top : top + height, left : left + width]
    if any(side < patch for side, patch in zip(image.shape, settings.patch_size, strict=True)):
        raise InputError(
            f"{file}: {list(image.shape)} (height, width) is smaller than "
            f"extract_patches.patch_size = {settings.patch_size}"
        )
    return image


def patch_count(image: np.ndarray, settings: ExtractPatches) -> int:
    """How many patches a photograph gives, before any are mirrored."""
    sides = zip(image.shape, settings.patch_size, strict=True)
    return math.prod((side - patch) // settings.stride + 1 for side, patch in sides)


def extract(settings: ExtractPatches, seed: int) -> dict[str, np.ndarray]:
    """The patches of every split, uint8 (N, h, w), at most `max_patches` of each, drawn with the seed.

    Only training patches get mirrored and transposed copies. Raises InputError for a photograph that cannot be used,
    and for two files that hold the same picture.
    """
    patches, seen = {}, {}
    for number, split in enumerate(SPLITS):
        parts, pixels = [], 0
        height, width = settings.patch_size
        copies = (8 if height == width else 4) if split == "train" and settings.symmetries else 1
        for file in getattr(settings, split):
            image = prepare(file, settings)
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest in seen:
                raise InputError(f"{file}: the same picture as {seen[digest]}; name every photograph once")
            seen[digest] = file
            pixels += patch_count(image, settings) * math.prod(settings.patch_size) * copies
            if pixels > MOST_CUT:
                raise InputError(
                    f"extract_patches.stride = {settings.stride}: the patches of extract_patches.{split}, of which "
                    f"max_patches are drawn, have {pixels / 2**30:.1f} GB by {file} already; a larger stride, a "
                    "smaller image_size or fewer photographs would be right"
                )
            parts.append(images.cut_patches(image, settings.patch_size, settings.stride))
        found = np.concatenate(parts)
        if split == "train" and settings.symmetries:
            found = images.symmetries(found)
        if len(found) > settings.max_patches:
            draw = np.random.default_rng([seed, number])
            found = found[np.sort(draw.choice(len(found), settings.max_patches, replace=False))]
        if found.size > MOST_NUMBERS:
            raise InputError(
                f"extract_patches.max_patches = {settings.max_patches}: the {len(found)} patches of "
                f"extract_patches.{split} are more than memory is asked to hold; at most "
                f"{MOST_NUMBERS // math.prod(settings.patch_size)} would be right"
            )
        if split == "train" and len(found) < 2:
            raise InputError("extract_patches.train gives one patch; a smaller stride or another photograph gives more")
        patches[split] = np.ascontiguousarray(found)
    return patches


def main() -> None:
    params = load_params("params.yaml")
    settings = params.extract_patches
    patches = extract(settings, params.seed)
    for split, array in patches.items():
        write_array(f"data/patches/{split}.npy", array)
    summary = {
        split: {
            "photographs": len(getattr(settings, split)),
            "patches": len(array),
            "mean": array.mean() / 255,
            "std": array.std() / 255,
        }
        for split, array in patches.items()
    }
    write_metrics("metrics/patches.json", {"patches": summary})


if __name__ == "__main__":
    run(main)
