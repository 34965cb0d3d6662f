"""Photographs as the pipeline takes them."""

import numpy as np

from genprior.files import InputError
from genprior.images import resize
from genprior.photographs import read_photograph
from pipeline.files import photograph
from pipeline.params import ExtractPatches


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
