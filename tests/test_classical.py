import warnings

import numpy as np
import pytest
import sklearn.mixture
import torch
import yaml
from conftest import tiny
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from skimage.restoration import denoise_tv_chambolle

from genprior.files import InputError
from genprior.images import dct_basis
from genprior.mixture import GaussianMixture
from pipeline import classical
from pipeline.files import write_array
from stages import baselines


@pytest.fixture
def problem():
    draw = np.random.default_rng(0)
    return draw.normal(size=(20, 36)), draw.normal(size=(5, 20))


def test_minimum_norm_is_lstsq(problem):
    matrix, y = problem
    expected = np.linalg.lstsq(matrix, y.T, rcond=None)[0].T
    np.testing.assert_allclose(classical.minimum_norm(matrix, y), expected, atol=1e-10)


def test_tikhonov_is_stacked_least_squares(problem):
    matrix, y = problem
    weights = [1e-3, 1.0, 100.0]
    for weight, found in zip(weights, classical.tikhonov(matrix, y, weights), strict=True):
        stacked = np.vstack([matrix, weight**0.5 * np.eye(36)])
        expected = np.linalg.lstsq(stacked, np.hstack([y, np.zeros((5, 36))]).T, rcond=None)[0].T
        np.testing.assert_allclose(found, expected, atol=1e-8)


def test_lasso_meets_its_optimality_conditions(problem):
    matrix, y = problem
    basis, weights = dct_basis(6, 6), [1e-4, 0.003, 0.05, 10.0]
    for weight, found in zip(weights, classical.lasso(matrix, basis, y, weights), strict=True):
        coefficients = found @ basis
        gradient = (found @ matrix.T - y) @ (matrix @ basis) / len(matrix)
        np.testing.assert_allclose(gradient[:, 0], 0, atol=1e-10)  # the mean is free
        coefficients, gradient = coefficients[:, 1:], gradient[:, 1:]
        zero = np.abs(coefficients) < 1e-10
        assert 0.1 < zero.mean() < 0.95 or (weight == 10 and zero.all())
        assert np.abs(gradient[zero]).max() <= weight * (1 + 1e-6)
        np.testing.assert_allclose(gradient[~zero], -weight * np.sign(coefficients[~zero]), atol=1e-6 * weight)


@pytest.mark.parametrize("latent_weight", [0.0, 0.1])
def test_linear_prior_is_stacked_least_squares(problem, latent_weight):
    matrix, y = problem
    draw = np.random.default_rng(1)
    mean, components = draw.normal(size=36), draw.normal(size=(36, 4))
    stacked = np.vstack([matrix @ components, latent_weight**0.5 * np.eye(4)])
    z = np.linalg.lstsq(stacked, np.hstack([y - mean @ matrix.T, np.zeros((5, 4))]).T, rcond=None)[0].T
    found = classical.linear_prior(matrix, mean, components, y, latent_weight)
    np.testing.assert_allclose(found, mean + z @ components.T, atol=1e-8)


def test_total_variation_of_denoising_is_scikit_images():
    clean = np.kron(np.random.default_rng(1).random((3, 2, 2)), np.ones((4, 4)))
    noisy = clean + 0.1 * np.random.default_rng(0).normal(size=clean.shape)
    weights = [0.01, 0.2]
    found = classical.total_variation(np.eye(64), (8, 8), noisy.reshape(3, 64), weights)
    for weight, estimates in zip(weights, found, strict=True):
        for one, picture in zip(estimates, noisy, strict=True):
            expected = denoise_tv_chambolle(picture, weight=weight, eps=0, max_num_iter=10_000)
            np.testing.assert_allclose(one.reshape(8, 8), expected, atol=1e-3)


@pytest.mark.parametrize("weight", [1e-4, 1e-3])
def test_total_variation_is_at_its_minimum_where_little_is_measured(weight):
    """Rounding off |∇x| to (|∇x|² + ε²)^½ raises the least objective by at most weight · ε for each pixel."""
    draw, epsilon = np.random.default_rng(0), 1e-5
    matrix = draw.normal(size=(16, 64)) / 4
    y = matrix @ np.kron(draw.random((2, 2)), np.ones((4, 4))).flatten()

    def objective(x, epsilon):
        picture = torch.tensor(x.reshape(8, 8), requires_grad=True)
        rows, columns = (torch.diff(picture, dim=d, append=picture.narrow(d, -1, 1)) for d in (0, 1))
        misfit = (torch.from_numpy(matrix) @ picture.flatten() - torch.from_numpy(y)).square().sum() / 2
        value = misfit + weight * (rows**2 + columns**2 + epsilon**2).sqrt().sum()
        return value.item(), torch.autograd.grad(value, picture)[0].flatten().numpy()

    rounded = minimize(objective, np.full(64, 0.5), (epsilon,), jac=True, options={"maxiter": 20_000, "gtol": 1e-9}).fun
    found = objective(classical.total_variation(matrix, (8, 8), y[None], [weight])[0, 0], 1e-12)[0]
    assert rounded - weight * epsilon * 64 < found < 1.002 * rounded


@pytest.fixture
def mixture():
    draw = np.random.default_rng(2)
    factors = draw.normal(size=(3, 6, 6))
    return GaussianMixture(np.array([0.5, 0.2, 0.3]), draw.normal(size=(3, 6)), factors @ factors.swapaxes(1, 2))


def test_conditioning_a_gaussian_is_conditioning_the_joint(mixture):
    draw = np.random.default_rng(3)
    matrix, y = draw.normal(size=(4, 6)), draw.normal(size=(5, 4))
    mean, covariance = mixture.mean[0], mixture.covariance[0]
    alone = GaussianMixture(np.ones(1), mean[None], covariance[None])
    # precision form, which inverts other matrices
    precision = np.linalg.inv(covariance) + matrix.T @ matrix / 0.3**2
    expected = np.linalg.solve(precision, (np.linalg.solve(covariance, mean) + y @ matrix / 0.3**2).T).T
    estimate, evidence = alone.condition(matrix, y, 0.3)
    np.testing.assert_allclose(estimate, expected, atol=1e-8)
    law = multivariate_normal(matrix @ mean, matrix @ covariance @ matrix.T + 0.09 * np.eye(4))
    np.testing.assert_allclose(evidence, law.logpdf(y))


def test_conditioning_a_mixture_is_importance_sampling(mixture):
    draw = np.random.default_rng(4)
    matrix, sigma = draw.normal(size=(2, 6)), 1.0
    component = draw.choice(3, size=400_000, p=mixture.weight)
    factors = np.linalg.cholesky(mixture.covariance)
    x = mixture.mean[component] + np.einsum("sij,sj->si", factors[component], draw.normal(size=(len(component), 6)))
    y = np.array([[0.5, -1.0]])
    likelihood = multivariate_normal(np.zeros(2), sigma**2 * np.eye(2)).pdf(y - x @ matrix.T)
    estimate, evidence = mixture.condition(matrix, y, sigma)
    assert evidence[0] == pytest.approx(np.log(likelihood.mean()), abs=0.03)
    np.testing.assert_allclose(estimate[0], likelihood @ x / likelihood.sum(), atol=0.05)


def test_shrinking_keeps_the_pooled_covariance(mixture):
    pooled = np.einsum("j,jab->ab", mixture.weight, mixture.covariance)
    shrunk = mixture.shrunk(0.3)
    np.testing.assert_allclose(np.einsum("j,jab->ab", shrunk.weight, shrunk.covariance), pooled)
    np.testing.assert_allclose(mixture.shrunk(1.0).covariance, np.broadcast_to(pooled, (3, 6, 6)))


def test_density_of_a_mixture_is_scipys(mixture):
    x = np.random.default_rng(6).normal(size=(7, 6))
    laws = [multivariate_normal(*law).pdf(x) for law in zip(mixture.mean, mixture.covariance, strict=True)]
    np.testing.assert_allclose(mixture.log_prob(x), np.log(mixture.weight @ laws))


def test_one_component_has_the_moments_and_a_ridge_in_standardised_coefficients():
    draw, basis = np.random.default_rng(7), dct_basis(3, 3)
    coefficients = draw.normal(size=(500, 9)) @ draw.normal(size=(9, 9)) + 1
    fitted = classical.fit_gaussian_prior(coefficients @ basis.T, basis)
    np.testing.assert_allclose(fitted.mean[0] @ basis, coefficients.mean(0), atol=1e-6)
    expected = np.cov(coefficients.T, bias=True) + 1e-3 * np.diag(coefficients.var(0))
    np.testing.assert_allclose(basis.T @ fitted.covariance[0] @ basis, expected, atol=1e-5)


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.5, 0.5)])
def test_fitted_mixture_finds_faint_and_strong_patches(weights):
    draw, basis, scales = np.random.default_rng(5), dct_basis(3, 3), np.array([0.5, 3.0])
    chosen = draw.choice(2, size=8000, p=weights)
    spread = np.linspace(0.5, 1, 9) * scales[chosen][:, None]
    x = (2 + draw.normal(size=(8000, 9)) * spread) @ basis.T
    fitted = classical.fit_gaussian_prior(x[:4000], basis, 2, 50)
    order = np.trace(fitted.covariance, axis1=1, axis2=2).argsort()
    np.testing.assert_allclose(fitted.weight[order], weights, atol=0.03)
    np.testing.assert_allclose(fitted.mean[order][0] @ basis, 2, atol=0.05)
    for scale, covariance in zip(scales, fitted.covariance[order], strict=True):
        expected = np.diag(np.linspace(0.5, 1, 9) ** 2)
        np.testing.assert_allclose(basis.T @ covariance @ basis / scale**2, expected, atol=0.1)
    truth = np.diag(np.linspace(0.5, 1, 9) ** 2) * scales[:, None, None] ** 2
    law = GaussianMixture(np.array(weights), np.full((2, 9), 2.0), truth)
    excess = law.log_prob(x[4000:] @ basis) - fitted.log_prob(x[4000:])
    assert excess.mean() == pytest.approx(0, abs=0.05)


def mixed(count: int) -> np.ndarray:
    """Points of two Gaussians of different spread: (count, 5)."""
    draw = np.random.default_rng(8)
    factors = draw.normal(size=(2, 5, 5)) * np.array([0.2, 0.6])[:, None, None]
    return np.einsum("ia,iab->ib", draw.normal(size=(count, 5)), factors[draw.integers(0, 2, count)])


def test_expectation_maximisation_is_scikit_learns():
    x, labels = torch.from_numpy(mixed(600)), np.arange(600) % 3
    share = torch.from_numpy(np.eye(3)[labels]) + 0.1 * torch.rand(600, 3, generator=torch.Generator().manual_seed(0))
    share = share / share.sum(1, keepdim=True)
    torch.set_default_dtype(torch.float32)
    start = classical.expectation_maximisation(x, share, 1, 0.0)
    model = sklearn.mixture.GaussianMixture(
        3, reg_covar=1e-3, max_iter=4, tol=0, weights_init=start[0], means_init=start[1]
    )
    model.precisions_init = np.linalg.inv(start[2])
    with warnings.catch_warnings(action="ignore"):
        model.fit(x.numpy())
    found = classical.expectation_maximisation(x, share, 5, 0.0)
    for ours, theirs in zip(found, (model.weights_, model.means_, model.covariances_), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_strength_shrinks_towards_own_variances_and_all_correlations():
    x, chosen = mixed(300), np.arange(300) < 40
    share = torch.from_numpy(np.stack([chosen, ~chosen], 1)).double()
    torch.set_default_dtype(torch.float32)
    _, _, found = classical.expectation_maximisation(torch.from_numpy(x), share, 1, 100.0)
    own = [np.cov(part.T, bias=True) for part in (x[chosen], x[~chosen])]
    pooled = 40 / 300 * own[0] + 260 / 300 * own[1] + 1e-3 * np.eye(5)
    correlation = pooled / np.sqrt(np.outer(np.diag(pooled), np.diag(pooled)))
    for count, covariance, shrunk in zip((40, 260), own, found, strict=True):
        target = correlation * np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
        expected = (count * covariance + 100 * target) / (count + 100) + 1e-3 * np.eye(5)
        np.testing.assert_allclose(shrunk, expected, atol=1e-10)


def test_a_mixture_with_the_mean_apart_is_a_product_of_two_laws():
    draw, basis = np.random.default_rng(9), dct_basis(3, 3)
    c = draw.normal(size=(3000, 9)) * np.where(draw.random((3000, 1)) < 0.5, 0.3, 1.5) + np.eye(9)[0]
    fitted = classical.fit_gaussian_prior(c @ basis.T, basis, 2, 30, 0.0, 0, apart=True)
    mean, covariance = fitted.mean @ basis, basis.T @ fitted.covariance @ basis
    np.testing.assert_allclose(mean[:, 0], c[:, 0].mean(), atol=1e-5)
    np.testing.assert_allclose(covariance[:, 0, 0], c[:, 0].var(), rtol=1e-5)
    np.testing.assert_allclose(covariance[:, 0, 1:], 0, atol=1e-9)
    assert sorted(covariance[:, 1, 1]) == pytest.approx([0.09, 2.25], rel=0.15)


def test_a_mixture_of_more_components_than_there_are_patches_is_refused(values, tmp_path, monkeypatch):
    tiny(values)["baselines"]["mixture_components"] = [40]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    draw = np.random.default_rng(0)
    for split, count in (("train", 30), ("validation", 10), ("test", 10)):
        write_array(tmp_path / f"data/patches/{split}.npy", draw.integers(0, 256, (count, 12, 12), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"30 patches .* baselines\.mixture_components = 40"):
        baselines.main()
