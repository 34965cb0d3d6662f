"""Classical reconstructions, which a learned prior has to beat: all from a matrix K (m, n), y (N, m), in float64."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp


def minimum_norm(matrix: np.ndarray, y: np.ndarray) -> np.ndarray:
    """argmin ‖x‖ among the least-squares solutions of K x = y, by the pseudo-inverse: (N, m) -> (N, n)."""
    return y @ np.linalg.pinv(matrix).T


def tikhonov(matrix: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    """argmin ‖K x - y‖² + weight ‖x‖², weight > 0: (N, m) -> (N, n)."""
    gram = matrix @ matrix.T + weight * np.eye(len(matrix))
    return np.linalg.solve(gram, y.T).T @ matrix


def lasso(matrix: np.ndarray, basis: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    """x = U c with argmin_c ‖K U c - y‖² / (2 m) + weight ‖c‖₁, by scikit-learn: (N, m) -> (N, n)."""
    from sklearn.linear_model import Lasso  # scikit-learn takes a second to import: not at every stage's start

    solver = Lasso(weight, fit_intercept=False, precompute=True, max_iter=2000, tol=1e-3)
    coefficients = solver.fit(matrix @ basis, y.T).coef_
    return coefficients.reshape(len(y), -1) @ basis.T


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

    Chambolle & Pock 2011, algorithm 1. Batched, as scikit-image's, which knows K = I alone and one picture at a time,
    is not.
    """
    step = 1 / np.sqrt(8)  # of both variables: ‖∇‖² <= 8
    inverse = np.linalg.inv(np.eye(matrix.shape[1]) + step * matrix.T @ matrix)
    pull = step * y @ matrix
    x = extrapolated = np.zeros((len(y), *shape))
    dual = np.zeros((2, *x.shape))
    for _ in range(iterations):
        dual[0, :, :-1] += step * np.diff(extrapolated, axis=1)
        dual[1, :, :, :-1] += step * np.diff(extrapolated, axis=2)
        dual /= np.maximum(1, np.sqrt(np.square(dual).sum(0)) / weight)
        divergence = np.diff(dual[0], axis=1, prepend=0) + np.diff(dual[1], axis=2, prepend=0)
        before, x = x, ((x + step * divergence).reshape(len(y), -1) + pull) @ inverse
        x = x.reshape(before.shape)
        extrapolated = 2 * x - before
    return x.reshape(len(y), -1)


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
    patches: np.ndarray, basis: np.ndarray, components: int, iterations: int, seed: int
) -> GaussianPrior:
    """A Gaussian mixture of patches (N, n) by scikit-learn's expectation maximisation from k-means.

    In standardised DCT coefficients, where its ridge of 1e-3 means the same for every frequency.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    coefficients = patches @ basis
    offset, scale = coefficients.mean(0), coefficients.std(0).clip(1e-3)
    standard = ((coefficients - offset) / scale).astype(np.float32)
    model = GaussianMixture(components, reg_covar=1e-3, max_iter=iterations, tol=1e-4, random_state=seed)
    with warnings.catch_warnings():  # that it stops before it converges is the user's choice
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(standard)
    back = basis * scale
    covariance = back @ model.covariances_.astype(np.float64) @ back.T
    return GaussianPrior(
        model.weights_.astype(np.float64), (offset + scale * model.means_.astype(np.float64)) @ basis.T, covariance
    )
