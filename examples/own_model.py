"""A prior of another kind in the pipeline's format: probabilistic PCA, in closed form.

    python -m examples.own_model data/models/ppca.safetensors       # after make repro
    genprior sample --prior data/models/ppca.safetensors

x = W z + μ + e, z ~ N(0, I), e ~ N(0, s² I): with the eigenvectors U and eigenvalues λ of the patches' covariance,

    s² = mean of the n - k smallest λ,   W = U_k (Λ_k - s² I)^½,   E[z | x] = (Wᵀ W + s² I)⁻¹ Wᵀ (x - μ).

Tipping & Bishop 1999, equations 6 to 8.

As a stage of dvc.yaml, and with `ppca` in PRIORS of pipeline/params.py, it is evaluated beside the four others.
"""

import sys

import numpy as np
import torch

from genprior.networks import PriorNetwork, save_network


def fitted(patches: np.ndarray, k: int = 20) -> PriorNetwork:
    """Probabilistic PCA of patches (N, h, w) in [0, 1]: decoder and encoder with a linear path alone, and one σ."""
    prior = PriorNetwork(patches.shape[1:], k, [1], "silu", noise="constant", encoder="plain")
    x = torch.from_numpy(patches).float()[:, None]
    coefficients = prior.coefficients.fit(x)
    values, vectors = np.linalg.eigh(np.cov(coefficients.restore(coefficients.analyse(x)).double().numpy().T))
    s2 = values[:-k].mean()
    W = torch.from_numpy(vectors[:, -k:] * np.sqrt(values[-k:] - s2))
    with torch.no_grad():
        for head in (prior.decoder.mean, prior.encoder.mean):
            head.weight.zero_(), head.bias.zero_()
        prior.decoder.linear.weight.copy_(W / coefficients.scale[:, None])
        prior.encoder.linear.weight.copy_(torch.linalg.solve(W.T @ W + s2 * torch.eye(k), W.T) * coefficients.scale)
        prior.decoder.log_sigma.fill_(0.5 * np.log(s2))
    return prior


def main(out: str, patches: str = "data/patches/train.npy") -> None:
    save_network(fitted(np.load(patches) / np.float32(255)), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
