"""A prior of one's own photographs: a structured VAE of their 8 × 8 patches.

    python -m examples.own_prior own.safetensors imgs/standard/*.png
    genprior restore photo.jpg --prior own.safetensors

The ELBO is maximised by Adam. Grey levels get uniform noise, for else a density could grow without bound on their grid.
"""

import sys

import numpy as np
import torch

from genprior.images import cut_patches
from genprior.networks import PriorNetwork, save_network
from genprior.photographs import read_photograph
from pipeline.losses import elbo_terms


def main(out: str, *files: str, steps: int = 3000, batch: int = 256, k: int = 16) -> None:
    torch.manual_seed(0)
    grey = torch.from_numpy(np.concatenate([cut_patches(read_photograph(file), (8, 8), 2) for file in files]))[:, None]
    prior = PriorNetwork((8, 8), k, [128, 128], "silu", noise="modulated", encoder="variational")
    prior.coefficients.fit(grey / 255)
    optimizer = torch.optim.Adam(prior.parameters(), lr=2e-3)
    for step in range(steps):
        chosen = grey[torch.randint(len(grey), (batch,))]
        x = (chosen + torch.rand(chosen.shape) - 0.5) / 255
        terms = elbo_terms(prior, prior.encoder, x, torch.randn(batch, k))
        elbo = (terms["log_likelihood"] - terms["kl"]).mean() / 64
        optimizer.zero_grad()
        (-elbo).backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0 or step == steps - 1:
            print(f"step {step}: ELBO {elbo.item():.2f} nats a pixel")
    save_network(prior, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
