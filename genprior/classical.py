"""Classical reconstructions, which a learned prior has to beat: all from a matrix K (m, n), y (N, m), in float64."""

import numpy as np
from sklearn.linear_model import Lasso


def minimum_norm(matrix: np.ndarray, y: np.ndarray) -> np.ndarray:
    """argmin ‖x‖ among the least-squares solutions of K x = y, by the pseudo-inverse: (N, m) -> (N, n)."""
    return y @ np.linalg.pinv(matrix).T


def tikhonov(matrix: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    """argmin ‖K x - y‖² + weight ‖x‖², weight > 0: (N, m) -> (N, n)."""
    gram = matrix @ matrix.T + weight * np.eye(len(matrix))
    return np.linalg.solve(gram, y.T).T @ matrix


def lasso(matrix: np.ndarray, basis: np.ndarray, y: np.ndarray, weight: float) -> np.ndarray:
    """x = U c with argmin_c ‖K U c - y‖² / (2 m) + weight ‖c‖₁, by scikit-learn: (N, m) -> (N, n)."""
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
