import numpy as np
import pytest
import torch
import yaml
from conftest import tiny
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from skimage.restoration import denoise_tv_chambolle
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from genprior.files import InputError
from genprior.images import dct_basis
from pipeline import classical
from pipeline.files import write_array
from pipeline.params import load_params
from stages import baselines


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


def test_lasso_does_not_depend_on_the_order_of_its_coefficients(problem):
    matrix, y = problem
    basis = dct_basis(6, 6)
    shuffled = basis[:, [0, *(1 + np.random.default_rng(0).permutation(35))]]
    found = [classical.lasso(matrix, order, y, [1e-5, 0.01]) for order in (basis, shuffled)]
    np.testing.assert_allclose(*found, atol=1e-8)


@pytest.mark.parametrize("latent_weight", [0.0, 0.1])
def test_linear_prior_is_stacked_least_squares(problem, latent_weight):
    matrix, y = problem
    draw = np.random.default_rng(1)
    mean, components = draw.normal(size=36), draw.normal(size=(36, 4))
    stacked = np.vstack([matrix @ components, latent_weight**0.5 * np.eye(4)])
    z = np.linalg.lstsq(stacked, np.hstack([y - mean @ matrix.T, np.zeros((5, 4))]).T, rcond=None)[0].T
    found = classical.linear_prior(matrix, mean, components, y, latent_weight)
    np.testing.assert_allclose(found, mean + z @ components.T, atol=1e-8)


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.3])
def test_total_variation_of_denoising_is_scikit_images(weight):
    clean = np.kron(np.random.default_rng(1).random((3, 2, 2)), np.ones((4, 4)))
    noisy = clean + 0.1 * np.random.default_rng(0).normal(size=clean.shape)
    found = classical.total_variation(np.eye(64), (8, 8), noisy.reshape(3, 64), weight)
    for one, picture in zip(found, noisy, strict=True):
        expected = denoise_tv_chambolle(picture, weight=weight, eps=0, max_num_iter=20_000)
        np.testing.assert_allclose(one.reshape(8, 8), expected, atol=1e-3)


def test_total_variation_of_a_rotation_is_denoising():
    """‖Q x - y‖ = ‖x - Qᵀ y‖ for an orthogonal Q."""
    draw = np.random.default_rng(0)
    rotation, y = dct_basis(6, 6), draw.random(size=(4, 36))
    found = classical.total_variation(rotation, (6, 6), y, 0.2)
    expected = classical.total_variation(np.eye(36), (6, 6), y @ rotation, 0.2)
    np.testing.assert_allclose(found, expected, atol=1e-8)


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
    found = objective(classical.total_variation(matrix, (8, 8), y[None], weight)[0], 1e-12)[0]
    assert rounded - weight * epsilon * 64 < found < 1.002 * rounded


@pytest.fixture
def mixture():
    draw = np.random.default_rng(2)
    factors = draw.normal(size=(3, 6, 6))
    return classical.GaussianPrior(
        np.array([0.5, 0.2, 0.3]), draw.normal(size=(3, 6)), factors @ factors.swapaxes(1, 2)
    )


def test_conditioning_a_gaussian_is_conditioning_the_joint(mixture):
    draw = np.random.default_rng(3)
    matrix, y = draw.normal(size=(4, 6)), draw.normal(size=(5, 4))
    mean, covariance = mixture.mean[0], mixture.covariance[0]
    alone = classical.GaussianPrior(np.ones(1), mean[None], covariance[None])
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


@pytest.fixture
def shared(mixture):
    """Draws of a mixture, and shares in them to begin with, many of them zero."""
    draw = np.random.default_rng(6)
    count = 5000  # more than are taken at once
    component = draw.choice(3, size=count, p=mixture.weight)
    factors = np.linalg.cholesky(mixture.covariance)
    x = mixture.mean[component] + np.einsum("sij,sj->si", factors[component], draw.normal(size=(count, 6)))
    share = draw.dirichlet(np.ones(3), size=count)
    share[:, 1] *= x[:, 0] > 0
    return x, share / share.sum(1, keepdims=True)


@pytest.mark.parametrize(("iterations", "dtype", "atol"), [(1, float, 1e-6), (6, float, 1e-6), (6, np.float32, 1e-4)])
def test_maximum_likelihood_is_scikit_learns(shared, iterations, dtype, atol):
    x, share = shared
    start = classical.maximise_likelihood(x, share, 0, 1e-3)
    found = classical.maximise_likelihood(x.astype(dtype), share, iterations, 1e-3, -np.inf)
    begun = {"weights_init": start.weight, "means_init": start.mean, "precisions_init": np.linalg.inv(start.covariance)}
    expected = GaussianMixture(3, reg_covar=1e-3, max_iter=iterations, tol=0, **begun)
    with pytest.warns(ConvergenceWarning):
        expected.fit(x)
    np.testing.assert_allclose(found.weight, expected.weights_, atol=atol)
    np.testing.assert_allclose(found.mean, expected.means_, atol=atol)
    np.testing.assert_allclose(found.covariance, expected.covariances_, atol=atol)
    assert np.abs(found.mean - start.mean).max() > 0.05


def test_moments_are_weighed_by_the_shares(shared):
    x, share = shared
    found = classical.maximise_likelihood(x, share, 0, 1e-3)
    np.testing.assert_allclose(found.weight, share.mean(0))
    mean = share.T @ x / share.sum(0)[:, None]
    np.testing.assert_allclose(found.mean, mean)
    offset = x - mean[1]
    covariance = (share[:, 1, None] * offset).T @ offset / share[:, 1].sum()
    np.testing.assert_allclose(found.covariance[1], covariance + 1e-3 * np.eye(6))


def test_iterations_end_with_the_first_that_gains_less_than_enough():
    x = np.random.default_rng(7).normal(size=(500, 3))
    share = np.eye(2)[(x[:, 0] > 0).astype(int)]
    fits = [classical.maximise_likelihood(x, share, count, 1e-3, -np.inf) for count in range(30)]
    scales = np.diff([fitted.condition(np.eye(3), x, 0.0)[1].mean() for fitted in fits])
    last = int(np.argmax(np.abs(scales) < 1e-4)) + 2  # by one iteration more, which sees the likelihood of the last
    assert 1 < last < 29
    found = classical.maximise_likelihood(x, share, 500, 1e-3, 1e-4)
    np.testing.assert_array_equal(found.mean, fits[last].mean)


def test_a_component_that_nothing_is_near_to_leaves_the_others_alone():
    x = np.random.default_rng(8).normal(size=(300, 4)).astype(np.float32)
    found = classical.maximise_likelihood(x, np.eye(2)[np.zeros(300, int)], 0, 1e-3)
    alone = classical.maximise_likelihood(x, np.ones((300, 1)), 0, 1e-3)
    np.testing.assert_allclose(found.weight, [1, 0], atol=1e-9)
    np.testing.assert_allclose(found.covariance[:1], alone.covariance)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.covariance).all()
    same = np.zeros((20, 4))  # fewer different patches than components
    assert np.isfinite(classical.fit_gaussian_prior(same, np.eye(4), 3, 10, 0).covariance).all()


def test_a_component_without_a_share_stays_out_of_many_dimensions():
    x = np.random.default_rng(10).normal(size=(2000, 64)).astype(np.float32)
    share = np.zeros((2000, 3))
    share[:, :2] = np.eye(2)[(x[:, 0] > 0).astype(int)]
    found = classical.maximise_likelihood(x, share, 5, 1e-3, -np.inf)
    assert found.weight[2] < 1e-9
    whole = np.cov(x, rowvar=False, bias=True) + 1e-3 * np.eye(64)
    first = classical.maximise_likelihood(x, share, 0, 1e-3)
    np.testing.assert_allclose(first.covariance[2], whole, atol=1e-5)
    alone = classical.maximise_likelihood(x, share[:, :2], 5, 1e-3, -np.inf)
    np.testing.assert_allclose(found.covariance[:2], alone.covariance, atol=1e-5)


def test_patches_of_high_contrast_begin_no_component_alone():
    """Each of ten far from all others: k-means on the coefficients themselves would make clusters of them."""
    draw = np.random.default_rng(11)
    x = draw.normal(size=(3000, 16))
    x[:10] *= 30
    share = classical.clusters(classical.contrast(x), 12, 0)
    np.testing.assert_array_equal(share.sum(1), 1)
    plain = KMeans(12, n_init=1, random_state=0).fit_predict(x)
    assert np.bincount(plain, minlength=12).min() == 1
    assert share.sum(0).min() > 1


@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.5, 0.5)])
def test_fitted_mixture_finds_the_clusters(weights):
    draw = np.random.default_rng(5)
    centres = np.outer([3, -3], dct_basis(3, 3).sum(1))  # every coefficient is 3 or -3
    chosen = draw.choice(2, size=4000, p=weights)
    x = centres[chosen] + draw.normal(size=(4000, 9)) * np.linspace(0.2, 1, 9)
    fitted = classical.fit_gaussian_prior(x, dct_basis(3, 3), 2, 50, 0)
    order = (fitted.mean @ centres[0]).argsort()[::-1]
    np.testing.assert_allclose(fitted.weight[order], weights, atol=0.03)
    np.testing.assert_allclose(fitted.mean[order], centres, atol=0.15)
    np.testing.assert_allclose(fitted.covariance[0], np.diag(np.linspace(0.2, 1, 9) ** 2), atol=0.1)


def test_validation_patches_choose_among_starts_and_shrinkages(values, tmp_path, monkeypatch):
    tiny(values)["baselines"] |= {"mixture_components": [2], "mixture_starts": 3, "mixture_shrinkages": [0.0, 0.5]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    def fitted(patches, basis, components, iterations, seed, features):
        """Each seed's components lie around another number, too narrowly around it."""
        mean = np.array([[seed - 1.0], [seed + 1.0]])[:components]
        covariance = np.array([[[0.1]], [[3.0]]])[:components]
        return classical.GaussianPrior(np.full(components, 1 / components), mean, covariance)

    monkeypatch.setattr(classical, "fit_gaussian_prior", fitted)
    validation = np.random.default_rng(9).normal(1, 1.5, (400, 1))  # as the middle start has it, shrunk
    found = baselines.fit_mixtures(validation, validation, np.eye(1), load_params(tmp_path / "params.yaml"))
    np.testing.assert_allclose(found["mixture_2"].mean.mean(), 1)
    np.testing.assert_allclose(found["mixture_2"].covariance[0], 0.5 * 0.1 + 0.5 * 1.55)
    np.testing.assert_allclose(found["gaussian"].covariance[0], 0.1)  # nothing to choose


def test_a_mixture_of_more_components_than_there_are_patches_is_refused(values, tmp_path, monkeypatch):
    tiny(values)["baselines"]["mixture_components"] = [40]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    draw = np.random.default_rng(0)
    for split, count in (("train", 30), ("validation", 10), ("test", 10)):
        write_array(tmp_path / f"data/patches/{split}.npy", draw.integers(0, 256, (count, 12, 12), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"30 training patches .* baselines\.mixture_components = 40"):
        baselines.main()
