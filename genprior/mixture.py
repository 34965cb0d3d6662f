"""A Gaussian mixture of patches: the prior of EPLL, and the field's classical rival."""

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy.special import logsumexp
from torch import Tensor

from genprior.files import InputError, whole_file

TOGETHER = 2**13  # patches denoised at a time, which stay in the caches


@dataclass(frozen=True)
class GaussianMixture:
    """x ~ Σ_j w_j N(μ_j, C_j): weight (J,), mean (J, n), covariance (J, n, n). J = 1 is the linear Gaussian prior.

    shape: (h, w) of a patch, where photographs are to be restored.
    """

    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray
    shape: tuple[int, int] | None = None

    def shrunk(self, share: float) -> "GaussianMixture":
        """Every covariance moved towards their weighted mean by `share` in [0, 1]."""
        pooled = np.einsum("j,jab->ab", self.weight, self.covariance)
        return GaussianMixture(self.weight, self.mean, (1 - share) * self.covariance + share * pooled, self.shape)

    def condition(self, matrix: np.ndarray, y: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """E[x | y] and log p(y) in nats for y = K x + e, e ~ N(0, σ² I): (N, m) -> (N, n), (N,).

        E[x | y] = Σ_j p(j | y) (μ_j + C_j Kᵀ S_j⁻¹ (y - K μ_j)), S_j = K C_j Kᵀ + σ² I: the best reconstructor there
        is, in the mean square, for patches of this law.
        """
        log_joint, means = [], []
        for weight, mean, covariance in zip(self.weight, self.mean, self.covariance, strict=True):
            cross = covariance @ matrix.T
            s = matrix @ cross + sigma**2 * np.eye(len(matrix))
            residual = y - mean @ matrix.T
            solved = np.linalg.solve(s, residual.T).T
            log_determinant = np.linalg.slogdet(2 * np.pi * s)[1]
            log_joint.append(np.log(weight) - 0.5 * ((residual * solved).sum(1) + log_determinant))
            means.append(mean + solved @ cross.T)
        evidence = logsumexp(log_joint, axis=0)
        share = np.exp(np.array(log_joint) - evidence)
        return np.einsum("ji,jin->in", share, np.array(means)), evidence

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x) in nats: (N, n) -> (N,)."""
        return self.condition(np.eye(x.shape[1]), x, 0.0)[1]

    @cached_property
    def _spectra(self) -> tuple[Tensor, ...]:
        """log w (J,), μ (J, n), and the eigenvalues (J, n) and eigenvectors (J, n, n) of every C, in float32."""
        values, vectors = np.linalg.eigh(self.covariance)
        parts = (np.log(self.weight), self.mean, values.clip(1e-9), vectors)
        return tuple(torch.from_numpy(part).float() for part in parts)

    def denoise(self, patches: Tensor, level: float) -> Tensor:
        """The mean E[x | y, j] of noisy patches y = x + level · e, given the component j that is likeliest.

        (N, 1, h, w) -> (N, 1, h, w), float32. Zoran & Weiss 2011, section 4.
        """
        log_weight, mean, values, vectors = (part.to(patches) for part in self._spectra)
        spread = values + level**2
        whitening = vectors / spread.sqrt()[:, None]
        offset = (mean[:, None] @ whitening).squeeze(1)
        constant = log_weight - 0.5 * spread.log().sum(1)
        restored = torch.empty_like(patches).flatten(1)
        for rows in torch.arange(len(patches), device=patches.device).split(TOGETHER):
            y = patches[rows].flatten(1)
            log_joint = [
                c - 0.5 * (y @ root - away).square_().sum(1)
                for c, root, away in zip(constant, whitening, offset, strict=True)
            ]
            winner = torch.stack(log_joint).argmax(0)
            for j in winner.unique():
                own = (winner == j).nonzero().squeeze(1)
                gain = (vectors[j] * (values[j] / spread[j])) @ vectors[j].T
                restored[rows[own]] = mean[j] + (y[own] - mean[j]) @ gain
        return restored.view_as(patches)


def save_mixture(mixture: GaussianMixture, path: str | Path) -> None:
    """Write a mixture as safetensors in float32, with the shape of its patches in the metadata."""
    parts = {name: torch.from_numpy(getattr(mixture, name)).float() for name in ("weight", "mean", "covariance")}
    content = save(parts, metadata={"mixture": json.dumps({"shape": list(mixture.shape)})})
    with whole_file(path) as part:
        part.write_bytes(content)


def load_mixture(path: str | Path) -> GaussianMixture | None:
    """A mixture from its file; None where the file is of another kind; InputError where it is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            about = (file.metadata() or {}).get("mixture")
            if about is None:
                return None
            parts = {name: file.get_tensor(name).astype(np.float64) for name in ("weight", "mean", "covariance")}
            shape, count = tuple(json.loads(about)["shape"]), len(parts["weight"])
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `dvc repro` fits the mixture") from None
    except (OSError, SafetensorError):
        return None  # what reads priors says what is wrong with it
    n = math.prod(shape)
    sizes = {"weight": (count,), "mean": (count, n), "covariance": (count, n, n)}
    for name, size in sizes.items():
        if parts[name].shape != size or not np.isfinite(parts[name]).all():
            raise InputError(f"{path}: not the file of a mixture: {name} is not {size} finite numbers")
    return GaussianMixture(**parts, shape=shape)
