"""Photographs as the pipeline takes them: which there are, in which split, and how each is prepared."""

from collections import Counter
from glob import glob, has_magic
from itertools import chain
from pathlib import Path

import numpy as np

from genprior.files import InputError, existing
from genprior.images import resize
from genprior.photographs import read_photograph
from pipeline.files import photograph
from pipeline.params import SPLITS, ExtractPatches, scenes_of, torn_scenes


def split_photographs(settings: ExtractPatches, seed: int) -> dict[str, list[str]]:
    """The photographs of each split: patterns spelt out, and shares of `train` drawn with the seed, scene by scene.

    InputError where a pattern finds none, where nothing is left to train on, and for one scene in two splits.
    """
    named, scenes = {split: getattr(settings, split) for split in SPLITS}, settings.scenes
    if scenes != "folders":
        scenes = [spelt_out("scenes", scene) for scene in scenes]
        if twice := [file for file, count in Counter(chain(*scenes)).items() if count > 1]:
            raise InputError(f"extract_patches.scenes: {twice[0]} is in two; make them one")
    found = {split: spelt_out(split, files) for split, files in named.items() if isinstance(files, list)}
    shares = {split: share for split, share in named.items() if split not in found}
    if shares:
        together, count = scenes_of(found["train"], scenes), len(found["train"])
        order = np.random.default_rng([seed, len(SPLITS)]).permutation(len(together)).tolist()
        for split, share in shares.items():
            found[split] = []
            while order and len(found[split]) < share * count:
                found[split] += together[order.pop()]
        found["train"] = sorted(file for scene in order for file in together[scene])
        if not found["train"] or not all(found[split] for split in shares):
            raise InputError(f"extract_patches: {len(together)} scenes in train are too few for the shares {shares}")
    for line in torn_scenes(found, scenes):
        raise InputError(line)
    return {split: found[split] for split in SPLITS}


def spelt_out(split: str, files: list[str]) -> list[str]:
    """Files, and those that patterns find, in order; InputError for a pattern that finds none."""
    found = []
    for name in files:
        pattern = has_magic(name) and not existing(name).exists()
        matched = sorted(Path(file).as_posix() for file in glob(name, recursive=True) if Path(file).is_file())
        if pattern and not matched:
            raise InputError(f"extract_patches.{split}: {name} finds no file; a pattern as imgs/mine/**/*.jpg would")
        found += matched if pattern else [name]
    return found


def prepare(file: str, settings: ExtractPatches) -> np.ndarray:
    """One photograph, grey, resized and cropped as `settings` say: uint8, (height, width).

    InputError where it is too small for that, or no picture.
    """
    image = resize(read_photograph(photograph(file), settings.white_level), settings.image_size)
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
