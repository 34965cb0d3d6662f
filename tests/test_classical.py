import numpy as np
import pytest

from genprior import classical
from genprior.images import dct_basis


@pytest.fixture
def problem():
    draw = np.random.default_rng(0)
    return draw.normal(size=(20, 36)), draw.normal(size=(5, 20))


def test_minimum_norm_is_lstsq(problem):
    matrix, y = problem
    expected = np.linalg.lstsq(matrix, y.T, rcond=None)[0].T
    np.testing.assert_allclose(classical.minimum_norm(matrix, y), expected, atol=1e-10)


@pytest.mark.parametrize("weight", [1e-3, 1.0, 100.0])
def test_tikhonov_is_stacked_least_squares(problem, weight):
    matrix, y = problem
    stacked = np.vstack([matrix, weight**0.5 * np.eye(36)])
    expected = np.linalg.lstsq(stacked, np.hstack([y, np.zeros((5, 36))]).T, rcond=None)[0].T
    np.testing.assert_allclose(classical.tikhonov(matrix, y, weight), expected, atol=1e-8)


def test_lasso_meets_its_optimality_conditions(problem):
    matrix, y = problem
    basis, weight = dct_basis(6, 6), 0.05
    coefficients = classical.lasso(matrix, basis, y, weight) @ basis
    gradient = (coefficients @ (matrix @ basis).T - y) @ (matrix @ basis) / len(matrix)
    zero = np.abs(coefficients) < 1e-10
    assert 0.1 < zero.mean() < 0.95
    assert np.abs(gradient[zero]).max() <= weight * 1.05
    np.testing.assert_allclose(gradient[~zero], -weight * np.sign(coefficients[~zero]), atol=0.05 * weight)


@pytest.mark.parametrize("latent_weight", [0.0, 0.1])
def test_linear_prior_is_stacked_least_squares(problem, latent_weight):
    matrix, y = problem
    draw = np.random.default_rng(1)
    mean, components = draw.normal(size=36), draw.normal(size=(36, 4))
    stacked = np.vstack([matrix @ components, latent_weight**0.5 * np.eye(4)])
    z = np.linalg.lstsq(stacked, np.hstack([y - mean @ matrix.T, np.zeros((5, 4))]).T, rcond=None)[0].T
    found = classical.linear_prior(matrix, mean, components, y, latent_weight)
    np.testing.assert_allclose(found, mean + z @ components.T, atol=1e-8)
