"""Classical reconstructions, which a learned prior has to beat: all from a matrix K (m, n), y (N, m), in float64."""

import math
import warnings

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from genprior.mixture import GaussianMixture


def minimum_norm(matrix: np.ndarray, y: np.ndarray) -> np.ndarray:
    """argmin ‖x‖ among the least-squares solutions of K x = y, by the pseudo-inverse: (N, m) -> (N, n)."""
    return y @ np.linalg.pinv(matrix).T


def tikhonov(matrix: np.ndarray, y: np.ndarray, weights: list[float]) -> np.ndarray:
    """argmin ‖K x - y‖² + weight ‖x‖², for each weight > 0: (N, m) -> (weights, N, n)."""
    gram, identity = matrix @ matrix.T, np.eye(len(matrix))
    return np.stack([np.linalg.solve(gram + weight * identity, y.T).T @ matrix for weight in weights])


def lasso(matrix: np.ndarray, basis: np.ndarray, y: np.ndarray, weights: list[float]) -> np.ndarray:
    """x = U c with argmin_c ‖K U c - y‖² / (2 m) + weight Σ_{i > 0} |c_i|, for each weight: (N, m) -> (weights, N, n).

    The first column of U, the patch's mean, is free. Least angle regression follows the minimum, exactly, from weights
    that leave no other coefficient down to the least: in a line from knot to knot. Efron et al. 2004, section 3.1.
    """
    from sklearn.linear_model import lars_path  # scikit-learn takes a second to import: not at every stage's start

    observed = matrix @ basis
    direction = observed[:, 0] / np.linalg.norm(observed[:, 0])
    # across what the free coefficient can explain, the others are an ordinary Lasso
    across = observed[:, 1:] - np.outer(direction, direction @ observed[:, 1:])
    coefficients = np.zeros((len(weights), len(y), len(basis)))
    for i, one in enumerate(y - np.outer(y @ direction, direction)):
        knots, _, path = lars_path(across, one, method="lasso", alpha_min=min(weights), max_iter=10 * len(basis))
        coefficients[:, i, 1:] = np.array([np.interp(weights, knots[::-1], c[::-1]) for c in path]).T
    rest = y - coefficients[..., 1:] @ observed[:, 1:].T
    coefficients[..., 0] = rest @ direction / np.linalg.norm(observed[:, 0])
    return coefficients @ basis.T


def principal_components(patches: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """PCA of patches (N, n) as a generator with a standard normal code: mean (n,) and components (n, k)."""
    from sklearn.decomposition import PCA

    pca = PCA(count, svd_solver="covariance_eigh").fit(patches)
    return pca.mean_, pca.components_.T * np.sqrt(pca.explained_variance_)


def linear_prior(
    matrix: np.ndarray, mean: np.ndarray, components: np.ndarray, y: np.ndarray, latent_weight: float
) -> np.ndarray:
    """The chapter's reconstruction with a linear generator G(z) = mean + components z, in closed form.

    argmin_z ‖K G(z) - y‖² + λ‖z‖², components (n, k) scaled so that z ~ N(0, I): (N, m) -> (N, n).
    """
    forward = matrix @ components
    normal = forward.T @ forward + latent_weight * np.eye(components.shape[1])
    # lstsq and not solve: with λ = 0 and fewer measurements than codes, the shortest code
    z = np.linalg.lstsq(normal, forward.T @ (y - mean @ matrix.T).T, rcond=None)[0]
    return mean + z.T @ components.T


def total_variation(
    matrix: np.ndarray, shape: tuple[int, int], y: np.ndarray, weights: list[float], iterations: int = 300
) -> np.ndarray:
    """argmin ‖K x - y‖² / 2 + weight Σ |∇x|, for each weight: (N, m) -> (weights, N, n).

    |∇x| is the length of forward differences; K has to see the patches' mean. scikit-image knows K = I alone and one
    picture at a time. Split Bregman, Goldstein & Osher 2009, section 4.1.
    """
    pixels = np.eye(matrix.shape[1]).reshape(-1, *shape)
    laplacian = -_divergence(_gradient(pixels)).reshape(len(pixels), -1)
    found, threshold = [], 0.03  # differences of 0.03 grey are usual
    for weight in weights:
        penalty = weight / threshold
        inverse = np.linalg.inv(matrix.T @ matrix + penalty * laplacian)
        split = surplus = np.zeros((2, len(y), *shape))
        for _ in range(iterations):
            pull = y @ matrix - penalty * _divergence(split - surplus).reshape(len(y), -1)
            x = pull @ inverse
            wanted = _gradient(x.reshape(len(y), *shape)) + surplus
            length = np.sqrt(np.square(wanted).sum(0))
            split = wanted * np.maximum(0, 1 - threshold / np.maximum(length, np.finfo(float).tiny))
            surplus = wanted - split
        found.append(x)
    return np.stack(found)


def _gradient(x: np.ndarray) -> np.ndarray:
    """Forward differences along rows and columns, 0 at the last: (N, h, w) -> (2, N, h, w)."""
    return np.stack([np.diff(x, axis=1, append=x[:, -1:]), np.diff(x, axis=2, append=x[..., -1:])])


def _divergence(field: np.ndarray) -> np.ndarray:
    """Minus the adjoint of `_gradient`, of fields that are 0 where it is: (2, N, h, w) -> (N, h, w)."""
    return np.diff(field[0], axis=1, prepend=0) + np.diff(field[1], axis=2, prepend=0)


def fit_gaussian_prior(
    patches: np.ndarray,
    basis: np.ndarray,
    components: int = 1,
    iterations: int = 1,
    strength: float = 0.0,
    seed: int = 0,
    apart: bool = False,
) -> GaussianMixture:
    """A Gaussian mixture of patches (N, n) by expectation maximisation, which k-means starts.

    In standardised DCT coefficients, where the ridge of 1e-3 means the same for every frequency. `components` or, where
    k-means finds fewer clusters, as many as it finds. apart: the patch's mean is a Gaussian of its own, as EPLL leaves
    it out of its mixture (Zoran & Weiss 2011).
    """
    coefficients = patches @ basis
    offset, scale = coefficients.mean(0), coefficients.std(0).clip(1e-3)
    x = torch.from_numpy((coefficients - offset) / scale).float()
    first = int(apart)  # the DCT's first coefficient is the patch's mean
    labels = torch.from_numpy(clusters(x[:, first:].numpy(), components, seed)).long()
    share = torch.nn.functional.one_hot(labels).float()
    weight, mean, covariance = expectation_maximisation(x[:, first:], share[:, share.any(0)], iterations, strength)
    if apart:
        mean = np.pad(mean, ((0, 0), (1, 0)))
        covariance = np.pad(covariance, ((0, 0), (1, 0), (1, 0)))
        covariance[:, 0, 0] = 1
    back = basis * scale
    return GaussianMixture(weight, (offset + scale * mean) @ basis.T, back @ covariance @ back.T)


def expectation_maximisation(x: Tensor, share: Tensor, iterations: int, strength: float) -> tuple[np.ndarray, ...]:
    """Weights (J,), means (J, n) and covariances (J, n, n) of a mixture of x (N, n), from each one's share (N, J).

    Until the mean log-density of a patch gains less than 0.01 nats, or for so many iterations. Each covariance is
    shrunk as if `strength` more patches had its own variances and all patches' correlations R:
    (N_j C_j + s D_j R D_j) / (N_j + s). Ormoneit & Tresp 1998 regularise EM so; the target is of Ledoit & Wolf 2004.
    """
    ridge, last = 1e-3 * torch.eye(x.shape[1], dtype=x.dtype), -math.inf
    for _ in range(iterations):
        counts, parts = share.sum(0), []
        for j in range(share.shape[1]):
            rows = (share[:, j] > 1e-6).nonzero().squeeze(1)  # few of the patches: nearly each is of one component
            own = share[rows, j]
            mean = own @ x[rows] / own.sum()
            offset = (x[rows] - mean) * own.sqrt()[:, None]
            parts.append((mean, offset.T @ offset / own.sum()))
        means, covariances = (torch.stack(part) for part in zip(*parts, strict=True))
        pooled = torch.einsum("j,jab->ab", counts / counts.sum(), covariances) + ridge
        size = pooled.diagonal().sqrt()
        sizes = covariances.diagonal(dim1=1, dim2=2).sqrt()
        target = sizes[:, :, None] * (pooled / size / size[:, None]) * sizes[:, None]
        kept = (counts / (counts + strength))[:, None, None] if len(counts) > 1 else 1.0
        covariances = kept * covariances + (1 - kept) * target + ridge
        if len(counts) == 1:
            break
        factors, identity = torch.linalg.cholesky(covariances), torch.eye(x.shape[1], dtype=x.dtype)
        roots = torch.linalg.solve_triangular(factors, identity.expand_as(factors), upper=False)
        density = torch.stack(
            [
                count.log() + root.diagonal().log().sum() - 0.5 * ((x - mean) @ root.T).square_().sum(1)
                for count, mean, root in zip(counts / counts.sum(), means, roots, strict=True)
            ],
            1,
        )
        total = density.logsumexp(1, keepdim=True)
        share = (density - total).exp()
        share = share[:, share.sum(0) > 1]  # a component of less than one patch is gone
        if total.mean() < last + 0.01:
            break
        last = total.mean()
    return tuple(part.double().numpy() for part in (counts / counts.sum(), means, covariances))


def clusters(coefficients: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Labels of coefficients c (N, n) by 20 rounds of k-means on √|c|: (N,).

    Patches' Gaussians differ in their variances, hardly in their means. On c itself k-means finds single patches of
    high contrast, far from all others, and no iteration takes such a component apart: 23 of 50 were one patch each.
    """
    if count == 1:
        return np.zeros(len(coefficients), int)
    from sklearn.cluster import KMeans  # scikit-learn takes a second to import: not at every stage's start
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), threadpool_limits(1):  # else sums depend on how many cores there are
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer different rows than clusters: some have none
        model = KMeans(count, n_init=1, max_iter=20, random_state=seed)
        return model.fit_predict(np.sqrt(np.abs(coefficients)))
