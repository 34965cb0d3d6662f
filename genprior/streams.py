"""Random numbers: one independent stream for each seed and purpose."""

import hashlib

import torch

from genprior.files import whole_number

MOST_SEED = 2**64


def stream(seed: int, purpose: str) -> torch.Generator:
    """Random numbers for one purpose, the same for whoever asks; other purposes and seeds get independent ones.

    What must not know of each other, say the starts of a search and the truths that it is to find, never shares them.
    InputError where the seed is no whole number.
    """
    digest = hashlib.sha256(f"{whole_number('seed', seed, -MOST_SEED, MOST_SEED)}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def generator_of(seed: int | torch.Generator, purpose: str) -> torch.Generator:
    """A generator as it is; the stream of a seed and a purpose where a number is given."""
    return seed if isinstance(seed, torch.Generator) else stream(seed, purpose)
