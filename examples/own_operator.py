"""An operator of one's own: a camera that sees a patch through random masks, by few detectors.

    python -m examples.own_operator            # after make repro

Each exposure multiplies x by a mask of 0 and 1, and each detector adds up a block of pixels:

    y_ij = Σ_{p in block j} m_i(p) x(p),   (Kᵀ y)(p) = Σ_i m_i(p) y_i,block(p).

Nothing else is asked of K. That both belong together is checked when a problem is stated.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

import genprior


class MaskedCamera:
    def __init__(self, shape: tuple[int, int], exposures: int, block: int, seed: int = 0):
        self.block, draw = block, torch.Generator().manual_seed(seed)
        self.masks = (torch.rand(1, exposures, *shape, generator=draw) < 0.5).float()

    def A(self, x: Tensor) -> Tensor:
        return avg_pool2d(self.masks.to(x) * x, self.block) * self.block**2

    def A_adjoint(self, y: Tensor) -> Tensor:
        return (self.masks.to(y) * interpolate(y, scale_factor=self.block)).sum(1, keepdim=True)


def main(model: str = "svae") -> None:
    prior = genprior.load(model)
    x, K = prior.sample(8, seed=1), MaskedCamera(prior.shape, exposures=4, block=4)
    y = genprior.measure(K, x, sigma=0.02, seed=2)
    found = genprior.restore(prior, K, y, sigma=0.02)
    error = (found.x - x).square().mean().sqrt().item()
    print(f"{y[0].numel()} numbers for {x[0].numel()} pixels: they are found to within {error:.3f}")


if __name__ == "__main__":
    main()
