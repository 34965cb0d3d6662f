"""Classical reconstructions, which a learned prior has to beat: all from a matrix K (m, n), y (N, m), in float64."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits


def minimum_norm(matrix: np.ndarray, y: np.ndarray) -> np.ndarray:
    """argmin ‖x‖ among the least-squares solutions of K x = y, by the pseudo-inverse: (N, m) -> (N, n)."""
    return y @ np.linalg.pinv(matrix).T


def tikhonov(matrix: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    """argmin ‖K x - y‖² + weight ‖x‖², weight > 0: (N, m) -> (N, n)."""
    gram = matrix @ matrix.T + weight * np.eye(len(matrix))
    return np.linalg.solve(gram, y.T).T @ matrix


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
    matrix: np.ndarray, shape: tuple[int, int], y: np.ndarray, weight: float, iterations: int = 300
) -> np.ndarray:
    """argmin ‖K x - y‖² / 2 + weight Σ |∇x|, |∇x| the length of forward differences: (N, m) -> (N, n).

    Split Bregman, Goldstein & Osher 2009, section 4.1. Batched, as scikit-image's, which knows K = I alone and one
    picture at a time, is not. K has to see the patches' mean.
    """
    penalty = weight / 0.03  # differences of 0.03 grey are usual: the threshold, weight / penalty, is of their size
    pixels = np.eye(matrix.shape[1]).reshape(-1, *shape)
    laplacian = -_divergence(_gradient(pixels)).reshape(len(pixels), -1)
    inverse = np.linalg.inv(matrix.T @ matrix + penalty * laplacian)
    split = surplus = np.zeros((2, len(y), *shape))
    for _ in range(iterations):
        pull = y @ matrix - penalty * _divergence(split - surplus).reshape(len(y), -1)
        x = pull @ inverse
        wanted = _gradient(x.reshape(len(y), *shape)) + surplus
        length = np.sqrt(np.square(wanted).sum(0))
        split = wanted * np.maximum(0, 1 - weight / penalty / np.maximum(length, np.finfo(float).tiny))
        surplus = wanted - split
    return x


def _gradient(x: np.ndarray) -> np.ndarray:
    """Forward differences along rows and columns, 0 at the last: (N, h, w) -> (2, N, h, w)."""
    return np.stack([np.diff(x, axis=1, append=x[:, -1:]), np.diff(x, axis=2, append=x[..., -1:])])


def _divergence(field: np.ndarray) -> np.ndarray:
    """Minus the adjoint of `_gradient`, of fields that are 0 where it is: (2, N, h, w) -> (N, h, w)."""
    return np.diff(field[0], axis=1, prepend=0) + np.diff(field[1], axis=2, prepend=0)


@dataclass(frozen=True)
class GaussianPrior:
    """x ~ Σ_j w_j N(μ_j, C_j): weight (J,), mean (J, n), covariance (J, n, n). J = 1 is the linear Gaussian prior."""

    weight: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    def shrunk(self, share: float) -> "GaussianPrior":
        """Every covariance moved towards their weighted mean by `share` in [0, 1]."""
        pooled = np.einsum("j,jab->ab", self.weight, self.covariance)
        return GaussianPrior(self.weight, self.mean, (1 - share) * self.covariance + share * pooled)

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


def fit_gaussian_prior(
    patches: np.ndarray,
    basis: np.ndarray,
    components: int,
    iterations: int,
    seed: int,
    features: Callable[[np.ndarray], np.ndarray] | None = None,
) -> GaussianPrior:
    """A Gaussian mixture of patches (N, n) by expectation maximisation from k-means.

    In standardised DCT coefficients, where the ridge of 1e-3 means the same for every frequency. features: of these,
    by which k-means tells patches apart; themselves by default.
    """
    coefficients = patches @ basis
    offset, scale = coefficients.mean(0), coefficients.std(0).clip(1e-3)
    standard = ((coefficients - offset) / scale).astype(np.float32)
    share = clusters(standard if features is None else features(standard), components, seed)
    found = maximise_likelihood(standard, share, iterations, 1e-3)
    back = basis * scale
    return GaussianPrior(found.weight, (offset + scale * found.mean) @ basis.T, back @ found.covariance @ back.T)


def contrast(coefficients: np.ndarray) -> np.ndarray:
    """√|c|, by which k-means tells patches apart: their Gaussians differ in their variances, hardly in their means.

    By c itself it finds patches of high contrast, which lie far from all others, one for each cluster, and no iteration
    takes such a component apart: 23 of 50 were one patch each.
    """
    return np.sqrt(np.abs(coefficients))


def clusters(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Each cluster's share, 0 or 1, in features (N, d), by 20 rounds of scikit-learn's k-means: (N, count)."""
    if count == 1:
        return np.ones((len(features), 1))
    from sklearn.cluster import KMeans  # scikit-learn takes a second to import: not at every stage's start
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(), threadpool_limits(1):  # else sums depend on how many cores there are
        warnings.simplefilter("ignore", ConvergenceWarning)  # of fewer different rows than clusters: some have none
        return np.eye(count)[KMeans(count, n_init=1, max_iter=20, random_state=seed).fit_predict(features)]


def maximise_likelihood(
    x: np.ndarray, share: np.ndarray, iterations: int, ridge: float, enough: float = 1e-4
) -> GaussianPrior:
    """Expectation maximisation for a Gaussian mixture of x (N, n), from each component's share (N, J) in each of them.

    w_j = mean_i s_ij, μ_j and C_j the moments weighed by s_ij, C_j with `ridge` added to its diagonal; then
    s_ij = w_j N(x_i; μ_j, C_j) / Σ_l w_l N(x_i; μ_l, C_l), until the mean log-likelihood moves by less than `enough`
    nats. scikit-learn's GaussianMixture does the same, and takes two to three times as long for patches: a patch is
    shared by one or two components, and only those of a share above 1e-8 are summed here. Dempster et al. 1977,
    example 4.3.
    """
    prior, before = _weighted_mixture(x, share, ridge), -np.inf
    for _ in range(iterations):
        log_joint = _log_joint(x, prior)
        log_density = logsumexp(log_joint, axis=1)
        share = np.exp(np.subtract(log_joint, log_density[:, None], out=log_joint), out=log_joint)
        prior, likelihood = _weighted_mixture(x, share, ridge), log_density.mean()
        if abs(likelihood - before) < enough:
            break
        before = likelihood
    return prior


def _weighted_mixture(x: np.ndarray, share: np.ndarray, ridge: float) -> GaussianPrior:
    """The likeliest mixture of x (N, n) for given shares (N, J); a component without any is the law of all x."""
    weight = share.mean(0).clip(1e-12)
    mean, covariance = zip(*(_moments(x, share[:, j]) for j in range(share.shape[1])), strict=True)
    return GaussianPrior(weight / weight.sum(), np.stack(mean), np.stack(covariance) + ridge * np.eye(x.shape[1]))


def _moments(x: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (n,) and covariance (n, n) of x (N, n) weighed by shares (N,) of 1e-8 and more, else by none; in float64."""
    counts = share >= 1e-8
    x, weight = (x[counts], share[counts]) if counts.any() else (x, np.ones(len(x)))
    weight = weight / weight.sum()
    mean = weight @ x
    offset = np.sqrt(weight)[:, None] * (x - mean)
    return mean, offset.T @ offset


def _log_joint(x: np.ndarray, prior: GaussianPrior, at_once: int = 2048) -> np.ndarray:
    """log w_j N(x_i; μ_j, C_j) in nats, but for n/2 log 2π: (N, J), in float64; the squares in the precision of x."""
    root = np.linalg.inv(np.linalg.cholesky(prior.covariance))  # R with R C Rᵀ = I
    constant = np.log(prior.weight) + np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
    shift = np.einsum("jab,jb->ja", root, prior.mean).astype(x.dtype)
    root, squared = root.astype(x.dtype), np.empty((len(x), len(prior.weight)))
    for first in range(0, len(x), at_once):  # few enough for the cache
        rows = slice(first, first + at_once)
        for j in range(len(prior.weight)):
            white = x[rows] @ root[j].T
            white -= shift[j]
            squared[rows, j] = np.einsum("ia,ia->i", white, white)
    return constant - squared / 2
