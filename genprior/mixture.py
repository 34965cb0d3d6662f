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
from scipy.linalg import solve_triangular
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
    device = torch.device("cpu")  # where its numbers are, as views have it

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
        log_joint = []
        for weight, mean, covariance in zip(self.weight, self.mean, self.covariance, strict=True):
            factor = np.linalg.cholesky(2 * np.pi * covariance)
            white = solve_triangular(factor, (x - mean).T, lower=True)
            log_joint.append(np.log(weight) - np.log(factor.diagonal()).sum() - np.pi * np.square(white).sum(0))
        return logsumexp(log_joint, axis=0)

    @cached_property
    def _spectra(self) -> tuple[Tensor, ...]:
        """log w (J,), μ (J, n), and the eigenvalues (J, n) and eigenvectors (J, n, n) of every C, in float32."""
        values, vectors = np.linalg.eigh(self.covariance)
        parts = (np.log(self.weight), self.mean, values.clip(1e-9), vectors)
        return tuple(torch.from_numpy(part).float() for part in parts)

    def likeliest(self, patches: Tensor, level: float) -> Tensor:
        """The component that is likeliest to have made each noisy patch y = x + level · e: (N, 1, h, w) -> (N,)."""
        log_weight, mean, values, vectors = (part.to(patches) for part in self._spectra)
        spread = values + level**2
        whitening = vectors / spread.sqrt()[:, None]
        offset = (mean[:, None] @ whitening).squeeze(1)
        constant, found = log_weight - 0.5 * spread.log().sum(1), []
        for y in patches.flatten(1).split(TOGETHER):
            log_joint = [
                c - 0.5 * (y @ root - away).square_().sum(1)
                for c, root, away in zip(constant, whitening, offset, strict=True)
            ]
            found.append(torch.stack(log_joint).argmax(0))
        return torch.cat(found)

    def denoise(self, patches: Tensor, level: float) -> Tensor:
        """The mean E[x | y, j] of noisy patches y = x + level · e, given the component j that is likeliest.

        (N, 1, h, w) -> (N, 1, h, w), float32. Zoran & Weiss 2011, section 4.
        """
        _, mean, values, vectors = (part.to(patches) for part in self._spectra)
        y, winner = patches.flatten(1), self.likeliest(patches, level)
        restored = torch.empty_like(y)
        for j in winner.unique():
            own = (winner == j).nonzero().squeeze(1)
            gain = (vectors[j] * (values[j] / (values[j] + level**2))) @ vectors[j].T
            restored[own] = mean[j] + (y[own] - mean[j]) @ gain
        return restored.view_as(patches)

    def gaussians(self, patches: Tensor, level: float) -> "tuple[Tensor, ComponentWhitening]":
        """Mean (N, n) and whitening of the component that is likeliest to have made each noisy patch (N, 1, h, w)."""
        _, mean, values, vectors = (part.to(patches) for part in self._spectra)
        winner = self.likeliest(patches, level)
        own = [(int(j), (winner == j).nonzero().squeeze(1)) for j in winner.unique()]
        return mean[winner], ComponentWhitening(vectors / values.sqrt()[:, None], own)


@dataclass(frozen=True)
class ComponentWhitening:
    """Patches' covariances W⁻ᵀ W⁻¹ by their components' W (J, n, n); own: each component j, and its patches."""

    roots: Tensor
    own: list[tuple[int, Tensor]]

    def diagonal(self) -> Tensor:
        """The diagonals of their inverses: (P, n)."""
        found = self.roots.new_empty(sum(len(own) for _, own in self.own), self.roots.shape[1])
        for j, own in self.own:
            found[own] = self.roots[j].square().sum(1)
        return found

    def whitened(self, x: Tensor) -> Tensor:
        """Wᵀx: (S, P, n) -> (S, P, n)."""
        return self._by_component(x, self.roots)

    def spread(self, e: Tensor) -> Tensor:
        """W e, the adjoint of `whitened`: (S, P, n) -> (S, P, n)."""
        return self._by_component(e, self.roots.mT)

    def _by_component(self, patches: Tensor, matrices: Tensor) -> Tensor:
        found = torch.empty_like(patches)
        for j, own in self.own:
            found[:, own] = patches[:, own] @ matrices[j]
        return found


def save_mixture(mixture: GaussianMixture, path: str | Path) -> None:
    """Write a mixture as safetensors in float32, with the shape of its patches in the metadata."""
    parts = {name: torch.from_numpy(getattr(mixture, name)).float() for name in ("weight", "mean", "covariance")}
    content = save(parts, metadata={"mixture": json.dumps({"shape": list(mixture.shape)})})
    with whole_file(path) as part:
        part.write_bytes(content)


def load_mixture(path: str | Path) -> GaussianMixture | None:
    """A mixture from its file; None where the file is of another kind or none; InputError where it is damaged."""
    try:
        with safe_open(path, framework="np") as file:
            about = (file.metadata() or {}).get("mixture")
            if about is None:
                return None
            parts = {name: file.get_tensor(name).astype(np.float64) for name in ("weight", "mean", "covariance")}
            shape, count = tuple(json.loads(about)["shape"]), len(parts["weight"])
    except (OSError, SafetensorError):
        return None  # what reads priors says what is wrong with it
    n = math.prod(shape)
    sizes = {"weight": (count,), "mean": (count, n), "covariance": (count, n, n)}
    for name, size in sizes.items():
        if parts[name].shape != size or not np.isfinite(parts[name]).all():
            raise InputError(f"{path}: not the file of a mixture: {name} is not {size} finite numbers")
    return GaussianMixture(**parts, shape=shape)
