"""Patches as tensors: loading, scaling to [0, 1], random batches, the held-out ones that are evaluated."""

import torch
from torch import Tensor

from genprior.files import InputError
from pipeline.files import read_array
from pipeline.params import MOST_PIXELS


def load_patches(path: str, device: torch.device | str) -> Tensor:
    """Patches from a .npy file as uint8, (N, 1, h, w); InputError where it holds something else."""
    patches = read_array(path)
    if patches.dtype != "uint8" or patches.ndim != 3 or patches.size == 0 or patches[0].size > MOST_PIXELS:
        raise InputError(
            f"{path}: {patches.dtype} {patches.shape}; patches are uint8 (N, height, width), N > 0, "
            f"of at most {MOST_PIXELS} pixels"
        )
    return torch.from_numpy(patches).unsqueeze(1).to(device)


def load_splits(
    folder: str, device: torch.device | str, splits: tuple[str, ...] = ("train", "validation", "test")
) -> tuple[Tensor, ...]:
    """Patches of a folder's splits, each uint8 (N, 1, h, w) of one shape; InputError where the shapes differ."""
    loaded = tuple(load_patches(f"{folder}/{split}.npy", device) for split in splits)
    for split, patches in zip(splits, loaded, strict=True):
        if patches.shape[2:] != loaded[0].shape[2:]:
            shapes = [list(found.shape[2:]) for found in (patches, loaded[0])]
            raise InputError(f"{folder}/{split}.npy: patches of {shapes[0]}, and in {splits[0]}.npy of {shapes[1]}")
    return loaded


def to_unit(patches: Tensor) -> Tensor:
    """uint8 grey values -> x in [0, 1]."""
    return patches.float() / 255


def draw_batch(patches: Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    """A random batch (all patches for None), x in [0, 1], dequantised: x = (grey + u - ½) / 255, u ~ U[0, 1).

    Without the noise a density model would gain without bound on the grid of grey levels
    (Theis et al. 2016, section 3.1).
    """
    if size is not None:
        patches = patches[torch.randint(len(patches), (size,), generator=generator).to(patches.device)]
    noise = torch.rand(patches.shape, generator=generator).to(patches.device)
    return (patches + noise - 0.5) / 255


def different_patches(patches: Tensor, count: int | None, generator: torch.Generator) -> Tensor:
    """`count` of the patches in random order, none twice; all for None, or where there are fewer."""
    order = torch.randperm(len(patches), generator=generator)[:count]
    return patches[order.to(patches.device)]


def draw_patches(patches: Tensor, count: int, seed: int) -> Tensor:
    """`different_patches`, x in [0, 1], the same for whoever asks with this seed."""
    return to_unit(different_patches(patches, count, torch.Generator().manual_seed(seed)))
