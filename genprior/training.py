"""What the three training loops share: the optimiser's schedule, and when a curve gets a row."""

import torch
from torch import nn


def cosine_adam(
    network: nn.Module, lr: float, steps: int, **options
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam and a learning rate that falls from `lr` to 0 along half a cosine over `steps` steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, **options)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def logged(step: int, steps: int, rows: int = 100) -> bool:
    """Whether a training curve of about `rows` rows has one for this step (counted from 0); the last always."""
    return step % max(1, steps // rows) == 0 or step == steps - 1
