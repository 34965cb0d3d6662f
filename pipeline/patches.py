"""Patches as tensors: loading, scaling to [0, 1], random batches, the held-out ones that are evaluated."""

import numpy as np
import torch
from torch import Tensor

from genprior.files import InputError
from pipeline.files import read_array
from pipeline.params import MOST_PIXELS

TOGETHER = 2**11  # patches read from one map, since the system reads 16 pages around each, and measured at once
MOST = 2**16  # patches that statistics, and measures of what is held out, are taken of


class Patches:
    """Patches in a .npy file, uint8 (N, 1, h, w), of which each index reads its own: they may be larger than memory.

    The file is mapped anew each time, since what a map has read counts as this process's memory while it is there.
    """

    def __init__(self, path: str, shape: tuple[int, ...], device: torch.device | str):
        self.path, self.shape, self.device = path, torch.Size(shape), torch.device(device)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        if isinstance(index, int):
            return self[torch.tensor([index])][0]
        rows = index.cpu().numpy() if isinstance(index, Tensor) else np.arange(*index.indices(len(self)))
        parts = np.split(rows, range(TOGETHER, len(rows), TOGETHER))
        found = np.concatenate([np.load(self.path, mmap_mode="r")[part] for part in parts])
        return torch.from_numpy(found).unsqueeze(1).to(self.device)


def load_patches(path: str, device: torch.device | str) -> Patches:
    """Patches of a .npy file as uint8, (N, 1, h, w); InputError where it holds something else."""
    patches = read_array(path, mapped=True)
    if patches.dtype != "uint8" or patches.ndim != 3 or patches.size == 0 or patches[0].size > MOST_PIXELS:
        raise InputError(
            f"{path}: {patches.dtype} {patches.shape}; patches are uint8 (N, height, width), N > 0, "
            f"of at most {MOST_PIXELS} pixels"
        )
    return Patches(path, (len(patches), 1, *patches.shape[1:]), device)


def load_splits(
    folder: str, device: torch.device | str, splits: tuple[str, ...] = ("train", "validation", "test")
) -> tuple[Patches, ...]:
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


def spread(patches: Patches | Tensor) -> Tensor:
    """All patches, or so many of them, evenly spread, that they lie in memory: uint8 (N, 1, h, w)."""
    return patches[:: -(-len(patches) // MOST)]


def draw_batch(patches: Patches | Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    """A random batch (all patches for None), x in [0, 1], dequantised: x = (grey + u - ½) / 255, u ~ U[0, 1).

    Without the noise a density model would gain without bound on the grid of grey levels
    (Theis et al. 2016, section 3.1).
    """
    index = slice(None) if size is None else torch.randint(len(patches), (size,), generator=generator)
    patches = patches[index if size is None else index.to(patches.device)]
    noise = torch.rand(patches.shape, generator=generator).to(patches.device)
    return (patches + noise - 0.5) / 255


def different_patches(patches: Patches | Tensor, count: int | None, generator: torch.Generator) -> Tensor:
    """`count` of the patches in random order, none twice; all for None, or where there are fewer."""
    order = torch.randperm(len(patches), generator=generator)[:count]
    return patches[order.to(patches.device)]


def draw_patches(patches: Patches | Tensor, count: int, seed: int) -> Tensor:
    """`different_patches`, x in [0, 1], the same for whoever asks with this seed."""
    return to_unit(different_patches(patches, count, torch.Generator().manual_seed(seed)))
