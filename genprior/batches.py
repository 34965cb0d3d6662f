"""Functions of batches of codes: a part at a time, and differentiated."""

from collections.abc import Callable

import torch
from torch import Tensor


def floats_at_once(like: Tensor) -> int:
    """How large the temporaries of one part of a computation may be, on the device of `like`.

    On a CPU 16 MB of float32, in each thread, which stay in its caches; elsewhere 1 GB, which keep the device busy.
    Memory does not grow with the number of codes.
    """
    return 2**22 if like.device.type == "cpu" else 2**28


def by_parts(function: Callable, size: int, *batches: Tensor) -> Tensor | tuple[Tensor, ...]:
    """A function of batches of one length, `size` entries of each at a time."""
    parts = [function(*part) for part in zip(*(batch.split(size) for batch in batches), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
    return torch.cat(parts)


def by_forward_mode(function: Callable[[Tensor], tuple[Tensor, ...]], z: Tensor) -> tuple:
    """A function of codes (P, k) and its Jacobians: its outputs, each (P, ...), then theirs, each (P, ..., k)."""

    def column(direction: Tensor) -> tuple:
        return torch.func.jvp(function, (z,), (direction.expand_as(z),))

    directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    # Moved by hand: with out_dims=-1, torch 2.13 gives an output that does not depend on z a first axis of 2^35.
    outputs, tangents = torch.func.vmap(column, out_dims=(None, 0))(directions)
    return outputs, tuple(tangent.movedim(0, -1).contiguous() for tangent in tangents)


def by_reverse_mode(value: Callable[[Tensor, Tensor], Tensor], z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """An energy and its gradient: (P,) and (P, k)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        energy = value(z, rows)
        return energy.detach(), torch.autograd.grad(energy.sum(), z)[0]


def noise_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers of the shape of a tensor, of a complex one in each part, drawn on the CPU."""
    parts = torch.view_as_real(like.resolve_conj()) if like.is_complex() else like
    noise = torch.randn(parts.shape, generator=generator, dtype=parts.dtype).to(like.device)
    return torch.view_as_complex(noise) if like.is_complex() else noise
