"""Patches whose only damage is noise of a known level, denoised in a few steps: the inner step of whole photographs."""

import torch
from torch import Tensor

from genprior.batches import by_parts
from genprior.energies import denoising_energy
from genprior.inversion import fisher_scoring
from genprior.views import Prior

STEPS, TOLERANCE = 10, 1e-2  # of Fisher scoring, which ends where a step gains a hundredth of the energy


@torch.no_grad()
def denoise(prior: Prior, patches: Tensor, level: float) -> Tensor:
    """E[x | y, z] of noisy patches y = x + level · e, e ~ N(0, I), at a code z near the likeliest.

    (N, 1, h, w) -> (N, 1, h, w). z starts as the encoder's code of y, at 0 without an encoder.
    """
    energy = denoising_energy(prior, patches, level)
    rows = torch.arange(len(patches), device=patches.device)
    start = patches.new_zeros(len(patches), prior.latent_size)
    if prior.network.encoder is not None:
        start = prior.own(prior.encode(patches))
    z, _, _ = fisher_scoring(energy, start, rows, STEPS, tolerance=TOLERANCE)
    return by_parts(energy.estimate, energy.chunk, z, rows)
