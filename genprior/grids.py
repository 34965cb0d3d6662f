"""The patches of a photograph on a grid, cut out and laid back, strip by strip, so that memory is bounded."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import fold, unfold

TOGETHER = 2**15  # patches of a strip, at most


@dataclass(frozen=True)
class Strip:
    """Some rows of a grid's patches: P of one photograph (.., H, W), which is continued by mirrors beyond its borders.

    rows, columns: which pixel of the photograph lies in each row and column that the patches cover; weights (P, 1):
    what share of each patch lies within the photograph, over how many patches hold a pixel, on average.
    """

    rows: Tensor
    columns: Tensor
    weights: Tensor
    shape: tuple[int, int]
    stride: int

    def cut(self, x: Tensor) -> Tensor:
        """The patches of photographs: (S, 1, H, W) -> (S, P, h w)."""
        return unfold(x[:, :, self.rows][:, :, :, self.columns], self.shape, stride=self.stride).mT

    def add(self, patches: Tensor, x: Tensor) -> None:
        """Add patches (S, P, h w) to photographs x (S, 1, H, W) where they lie: the adjoint of `cut`."""
        laid = fold(patches.mT, (len(self.rows), len(self.columns)), self.shape, stride=self.stride)
        narrow = x.new_zeros(*laid.shape[:3], x.shape[3]).index_add_(3, self.columns, laid)
        x.index_add_(2, self.rows, narrow)


def strips(x: Tensor, shape: tuple[int, int], stride: int, offset: list[int]) -> list[Strip]:
    """A grid over photographs (.., H, W): every patch of shape (h, w) whose corner is `offset` and whole strides away.

    All that hold a pixel of the photograph are there, so that each pixel lies in one.
    """
    corners, pixels, weights = [], [], []
    for side, patch, begin in zip(x.shape[2:], shape, offset, strict=True):
        first = 1 - patch  # of all corners whose patch holds a pixel
        corners.append(torch.arange(first + (begin - first) % stride, side, stride))
        covered = torch.arange(int(corners[-1][0]), int(corners[-1][-1]) + patch)
        pixels.append(mirrored(covered, side).to(x.device))
        within = (corners[-1] + patch).clamp_max(side) - corners[-1].clamp_min(0)
        weights.append((within / patch * stride / patch).to(x))
    together, found = max(1, TOGETHER // len(corners[1])), []
    for first in range(0, len(corners[0]), together):
        last = min(first + together, len(corners[0])) - 1
        rows = pixels[0][first * stride : last * stride + shape[0]]
        shares = weights[0][first : last + 1, None] * weights[1]
        found.append(Strip(rows, pixels[1], shares.reshape(-1, 1), shape, stride))
    return found


def mirrored(index: Tensor, side: int) -> Tensor:
    """Indices of a line of `side` pixels continued by its mirror images, the border pixel twice."""
    index = index.remainder(2 * side)
    return torch.minimum(index, 2 * side - 1 - index)
