import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import skimage.transform
import torch

from examples.operators import PhaselessFourier, Saturation, motion_blur, tomography
from genprior.images import dct_basis
from genprior.operators import (
    Convolution,
    Downsampling,
    FourierSampling,
    GaussianBlur,
    Identity,
    Inpainting,
    as_matrix,
    gaussian_sensing,
)
from pipeline.problems import pose

SHAPE = (8, 12)


def operators(draw):
    return [
        Identity(),
        Inpainting(torch.rand(SHAPE, generator=draw) < 0.3),
        GaussianBlur(SHAPE, 1.3),
        Downsampling(4),
        gaussian_sensing(SHAPE, 17, draw),
        motion_blur(SHAPE, 4.5, 30.0),
        Convolution(SHAPE, torch.rand(3, 5, generator=draw), 2),
        Convolution(SHAPE, torch.rand(4, 3, generator=draw), 1, "cut"),
        tomography((8, 8), np.arange(0.0, 180.0, 30.0)),
    ]


def shape_of(operator):
    return getattr(operator, "shape", SHAPE)


@pytest.mark.parametrize("which", range(9))
def test_linear_adjoint_and_matrix(draw, which):
    operator = operators(draw)[which]
    x, other = torch.randn(2, 3, 1, *shape_of(operator), generator=draw)
    torch.testing.assert_close(operator.A(2 * x - other), 2 * operator.A(x) - operator.A(other), rtol=1e-12, atol=1e-12)
    y = torch.randn(operator.A(x).shape, generator=draw)
    assert operator.A_adjoint(y).shape == x.shape
    left, right = (operator.A(x) * y).sum(), (x * operator.A_adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)
    matrix = as_matrix(operator, shape_of(operator), torch.zeros(1))
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
    operator = FourierSampling(mask)
    np.testing.assert_allclose(operator.A(x).numpy(), expected, atol=1e-12)
    y = torch.view_as_complex(torch.randn(2, int(mask.sum()), 2, generator=draw))
    left, right = (operator.A(x).conj() * y).real.sum(), (x * operator.A_adjoint(y)).sum()
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sides", [(3, 5), (4, 6)])
def test_convolution_is_scipys(draw, sides):
    x, kernel = torch.randn(1, 1, *SHAPE, generator=draw), torch.rand(sides, generator=draw)
    inside = scipy.signal.convolve2d(x[0, 0].numpy(), kernel.numpy(), "valid")
    np.testing.assert_allclose(Convolution(SHAPE, kernel, border="cut").A(x)[0, 0].numpy(), inside, atol=1e-12)
    around = scipy.signal.convolve2d(np.tile(x[0, 0].numpy(), (3, 3)), kernel.numpy(), "same")[8:16, 12:24]
    np.testing.assert_allclose(Convolution(SHAPE, kernel, 2).A(x)[0, 0].numpy(), around[::2, ::2], atol=1e-12)


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
