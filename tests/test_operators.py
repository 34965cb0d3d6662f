import numpy as np
import pytest
import scipy.ndimage
import skimage.transform
import torch
from torch.nn.functional import avg_pool2d

from examples.operators import PhaselessFourier, Saturation, fourier_samples, motion_blur, tomography
from genprior.images import dct_basis
from genprior.operators import (
    Downsampling,
    GaussianBlur,
    Identity,
    Inpainting,
    as_matrix,
    gaussian_sensing,
)
from pipeline.problems import pose

SHAPE = (8, 12)


@pytest.fixture
def draw():
    torch.set_default_dtype(torch.float64)
    return torch.Generator().manual_seed(0)


def operators(draw):
    return [
        Identity(),
        Inpainting(torch.rand(SHAPE, generator=draw) < 0.3),
        GaussianBlur(SHAPE, 1.3),
        Downsampling(4),
        gaussian_sensing(SHAPE, 17, draw),
        motion_blur(SHAPE, 4.5, 30.0),
        fourier_samples(torch.rand(SHAPE, generator=draw) < 0.4),
        tomography((8, 8), np.arange(0.0, 180.0, 30.0)),
    ]


def shape_of(operator):
    return getattr(operator, "shape", SHAPE)


@pytest.mark.parametrize("which", range(8))
def test_linear_adjoint_and_matrix(draw, which):
    operator = operators(draw)[which]
    x, other = torch.randn(2, 3, 1, *shape_of(operator), generator=draw)
    torch.testing.assert_close(operator.A(2 * x - other), 2 * operator.A(x) - operator.A(other), rtol=1e-12, atol=1e-12)
    y = torch.randn(operator.A(x).shape, generator=draw)
    assert operator.A_adjoint(y).shape == x.shape
    left, right = (operator.A(x) * y).sum(), (x * operator.A_adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    matrix = as_matrix(operator, shape_of(operator))
    torch.testing.assert_close(x.flatten(1) @ matrix.T, operator.A(x).flatten(1))
    if axes := getattr(operator, "axes", None):
        torch.testing.assert_close(torch.kron(*axes), matrix)
    for basis in getattr(operator, "orthogonal_in", ()):
        columns = matrix @ torch.from_numpy(dct_basis(*SHAPE)) if basis == "dct" else matrix
        gram = columns.T @ columns
        torch.testing.assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-12)


def test_motion_blur_is_a_streak(draw):
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    level = motion_blur((9, 9), 4.0, 0.0).A(x).reshape(9, 9)
    torch.testing.assert_close(level.sum(), torch.tensor(1.0))
    assert level[4].sum() == pytest.approx(1.0)  # along the row
    assert (level[4] > 0.01).sum() in (5, 6, 7)
    torch.testing.assert_close(motion_blur((9, 9), 4.0, 90.0).A(x).reshape(9, 9), level.T)
    torch.testing.assert_close(motion_blur(SHAPE, 4.5, 30.0).A(torch.ones(1, 1, *SHAPE)), torch.ones(1, 96))


def test_fourier_is_numpys(draw):
    x = torch.randn(2, 1, *SHAPE, generator=draw)
    mask = torch.rand(SHAPE, generator=draw) < 0.4
    expected = np.fft.fft2(x[:, 0].numpy(), norm="ortho")[:, mask.numpy()]
    found = fourier_samples(mask).A(x).numpy()
    np.testing.assert_allclose(found, np.concatenate([expected.real, expected.imag], 1), atol=1e-12)


def test_radon_is_scikit_images(draw):
    angles, x = np.arange(0.0, 180.0, 30.0), torch.rand(2, 1, 8, 8, generator=draw)
    expected = skimage.transform.radon(x[1, 0].numpy(), angles, circle=False)
    np.testing.assert_allclose(tomography((8, 8), angles).A(x)[1].numpy(), expected.ravel(), atol=1e-10)


def test_magnitudes_forget_the_phase(draw):
    x = torch.rand(2, 1, *SHAPE, generator=draw)
    operator = PhaselessFourier(SHAPE)
    expected = np.abs(np.fft.fft2(x[:, 0].numpy(), s=(16, 24), norm="ortho"))
    np.testing.assert_allclose(operator.A(x)[:, 0].numpy(), expected, atol=1e-6)
    torch.testing.assert_close(operator.A(x.flip(2, 3)), operator.A(x))  # the twin image
    torch.testing.assert_close(Saturation(0.0, 1.0).A(x - 1), torch.zeros_like(x))


def test_blur_is_scipys(draw):
    x = torch.randn(1, 1, *SHAPE, generator=draw)
    expected = scipy.ndimage.gaussian_filter(x[0, 0].numpy(), 1.3, mode="reflect")
    np.testing.assert_allclose(GaussianBlur(SHAPE, 1.3).A(x)[0, 0].numpy(), expected, atol=1e-12)


def test_inpainting_and_downsampling_by_hand(draw):
    x = torch.randn(2, 1, *SHAPE, generator=draw)
    mask = torch.rand(SHAPE, generator=draw) < 0.3
    torch.testing.assert_close(Inpainting(mask).A(x), x[:, 0, mask])
    blocks = x.reshape(2, 1, 2, 4, 3, 4).mean((3, 5))
    torch.testing.assert_close(Downsampling(4).A(x), blocks)
    torch.testing.assert_close(avg_pool2d(x, 4), blocks)


def test_sensing_entries_have_variance_one_over_m(draw):
    matrix = gaussian_sensing((40, 40), 200, draw).matrix
    assert matrix.mean().abs() < 5 * (1 / 200 / matrix.numel()) ** 0.5
    torch.testing.assert_close(matrix.var(), torch.tensor(1 / 200), rtol=0.01, atol=0)


def test_posed_problems_are_the_same_for_whoever_asks(params):
    x = torch.rand(20, 1, 16, 16)
    first, again = pose(params.problems, x, 0), pose(dict(reversed(params.problems.items())), x, 0)[::-1]
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.y, two.y)
    other = pose(params.problems, x, 1)
    assert not any(torch.equal(one.y, two.y) for one, two in zip(first, other, strict=True))


def test_posed_noise_has_the_stated_sigma(params):
    x = torch.rand(500, 1, 16, 16)
    for problem in pose(params.problems, x, 0):
        noise = problem.y - problem.operator.A(x)
        assert noise.std().item() == pytest.approx(problem.sigma, rel=0.05)
