"""Classical reconstructions, which a learned prior has to beat: all from a matrix K (m, n), y (N, m), in float64."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp
from threadpoolctl import threadpool_limits


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

    def log_prob(self, x: np.ndarray) -> np.ndarray:
        """log p(x) in nats: (N, n) -> (N,)."""
        return self.condition(np.eye(x.shape[1]), x, 0.0)[1]


def fit_gaussian_prior(
    patches: np.ndarray, basis: np.ndarray, components: int, iterations: int, seed: int
) -> GaussianPrior:
    """A Gaussian mixture of patches (N, n) by scikit-learn's expectation maximisation, which k-means starts.

    In standardised DCT coefficients, where the ridge of 1e-3 means the same for every frequency, and in float32, which
    halves the time. `components` or, where k-means finds fewer clusters, as many as it finds.
    """
    coefficients = patches @ basis
    offset, scale = coefficients.mean(0), coefficients.std(0).clip(1e-3)
    x, ridge = ((coefficients - offset) / scale).astype(np.float32), 1e-3
    labels = clusters(x, components, seed)
    parts = [x[labels == label] for label in np.unique(labels)]
    weight = np.array([len(part) / len(x) for part in parts])
    mean = np.stack([part.mean(0, dtype=float) for part in parts])
    covariance = np.stack([np.cov(part.T, bias=True) + ridge * np.eye(len(basis)) for part in parts])
    if len(parts) > 1:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        start = {"weights_init": weight, "means_init": mean, "precisions_init": np.linalg.inv(covariance)}
        start = {name: value.astype(x.dtype) for name, value in start.items()}
        model = GaussianMixture(len(parts), reg_covar=ridge, max_iter=iterations, **start)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # few iterations are as good on other patches
            model.fit(x)
        weight, mean, covariance = (found.astype(float) for found in (model.weights_, model.means_, model.covariances_))
    back = basis * scale
    return GaussianPrior(weight, (offset + scale * mean) @ basis.T, back @ covariance @ back.T)


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


def likeliest(priors: Iterable[GaussianPrior], patches: np.ndarray) -> GaussianPrior:
    """The prior of the largest mean log-density over patches (N, n)."""
    return max(priors, key=lambda prior: prior.log_prob(patches).mean())
