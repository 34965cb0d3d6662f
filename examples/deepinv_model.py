"""deepinv's physics as our K, and our prior as deepinv's model, x̂ = model(y, physics).

    physics = deepinv.physics.Inpainting((1, 16, 16), mask=0.3, noise_model=deepinv.physics.GaussianNoise(0.05))
    model = Reconstructor(genprior.load("svae"))
    x_hat = model(physics(x), physics)

A physics is an operator as it is: it has `A`, and where it is linear `A_adjoint`. Its noise model knows σ. So a prior
takes part in deepinv's `test(model, data, physics)` and its metrics beside deepinv's own models.
"""

import torch
from torch import Tensor, nn

import genprior


class Reconstructor(nn.Module):
    """The posterior mean of patches (N, 1, h, w); of larger images, what `restore_image` finds."""

    def __init__(self, prior: genprior.Prior, samples: int = 100):
        super().__init__()
        self.prior, self.samples = prior, samples

    @torch.no_grad()
    def forward(self, y: Tensor, physics: nn.Module) -> Tensor:
        sigma = float(physics.noise_model.sigma)
        if physics.A_adjoint(y).shape[2:] == self.prior.shape:
            return genprior.posterior(self.prior, physics, y, sigma, self.samples).mean
        return torch.cat([genprior.restore_image(self.prior, physics, one[None], sigma).x for one in y])
