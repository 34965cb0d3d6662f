"""Pictures cut into patches, their noise and colours, and the DCT."""

import numpy as np
import pytest
import scipy.fft
from PIL import Image

from genprior import images

GREY = np.arange(12 * 10, dtype=np.uint8).reshape(12, 10) * 2


def test_resize():
    assert images.resize(GREY, None) is GREY
    assert images.resize(GREY, [6, 5]).shape == (6, 5)
    assert images.resize(GREY, 5).shape == (6, 5)
    reference = np.asarray(Image.fromarray(GREY).resize((5, 6), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(images.resize(GREY, 5), reference)


def test_patches_are_cut_row_by_row():
    found = images.cut_patches(GREY, [4, 3], 2)
    expected = [GREY[i : i + 4, j : j + 3] for i in range(0, 9, 2) for j in range(0, 8, 2)]
    np.testing.assert_array_equal(found, expected)


def test_grid_is_row_by_row_on_white():
    found = images.tile(np.arange(3)[:, None, None, None] / 4 * np.ones((1, 2, 1)), 2)
    np.testing.assert_array_equal(found, [[0, 1, 0.25], [0, 1, 0.25], [1, 1, 1], [0.5, 1, 1], [0.5, 1, 1]])


def test_symmetries_are_the_eight_of_the_square():
    square = np.arange(9, dtype=np.uint8).reshape(1, 3, 3)
    found = {
        patch.tobytes()
        for patch in np.concatenate([images.symmetry(square, n) for n in range(images.symmetries_of((3, 3)))])
    }
    turned = [np.rot90(side, turns) for side in (square[0], square[0].T) for turns in range(4)]
    assert found == {np.ascontiguousarray(patch).tobytes() for patch in turned}
    assert images.symmetries_of((2, 3)) == 4


def test_dct_basis_is_scipys_and_orthonormal():
    basis = images.dct_basis(4, 6)
    x = np.random.default_rng(0).random((4, 6))
    np.testing.assert_allclose(x.ravel() @ basis, scipy.fft.dctn(x, norm="ortho").ravel(), atol=1e-12)
    np.testing.assert_allclose(basis @ basis.T, np.eye(24), atol=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.1])
def test_white_noise_is_estimated_on_a_smooth_picture_and_beside_holes(sigma):
    draw, (i, j) = np.random.default_rng(0), np.mgrid[:200, :300] / 300
    picture = 0.5 + 0.3 * np.sin(5 * i + 3 * j) + sigma * draw.standard_normal((200, 300))
    seen = draw.random(picture.shape) > 0.02
    for where in (np.ones_like(seen), seen):
        found = images.estimate_sigma(np.where(where, picture, 1.0), where)
        assert found == pytest.approx(sigma, rel=0.03)
    assert images.estimate_sigma(picture, draw.random(picture.shape) > 0.5) is None


@pytest.mark.parametrize("shared", [False, True])
def test_noise_of_colours_is_that_of_their_mean(shared):
    """Independent in the channels, or, as JPEG leaves it, one grey noise in all; beside a channel that is clipped."""
    draw, shape = np.random.default_rng(0), (96, 128)
    picture = 0.5 + 0.05 * draw.standard_normal((*shape, 1 if shared else 3)) * np.ones(3)
    picture[:, :70, 0] += 1
    found = images.estimate_sigma(picture.clip(0, 1), np.ones(shape, dtype=bool))
    assert found == pytest.approx(0.05 * (3**0.5 if shared else 1), rel=0.06)
    assert images.estimate_sigma(np.ones((*shape, 3)), np.ones(shape, dtype=bool)) is None


def test_opponent_channels():
    """Against the formula, written out: greys and pure colours, the way back, and what becomes of noise."""
    draw = np.random.default_rng(0)
    rgb = draw.random((3, 5, 4))
    r, g, b = rgb
    expected = [(r + g + b) / 3, 0.5 + (r - b) / 6**0.5, 0.5 + (r - 2 * g + b) / 18**0.5]
    channels = images.to_opponent(rgb)
    np.testing.assert_allclose(channels, expected, atol=1e-12)
    np.testing.assert_allclose(images.from_opponent(channels), rgb, atol=1e-12)
    corners = images.to_opponent(np.indices((2, 2, 2)).reshape(3, 8).astype(np.float32))
    assert corners.dtype == np.float32
    assert corners.min() >= 0
    assert corners.max() <= 1
    noise = images.to_opponent(0.1 * draw.standard_normal((3, 200_000)))
    np.testing.assert_allclose(np.cov(noise), 0.01 / 3 * np.eye(3), atol=5e-5)


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.2])
def test_what_is_clipped_says_nothing_of_the_noise(sigma):
    """A black frame and an overexposed sky."""
    draw, (i, j) = np.random.default_rng(0), np.mgrid[:200, :300] / 300
    picture = 0.5 + 0.2 * np.sin(5 * i + 3 * j) + sigma * draw.standard_normal((200, 300))
    picture[:70] += 1.0
    picture[-40:] = picture[:, :40] = 0
    everywhere = np.ones(picture.shape, dtype=bool)
    assert images.estimate_sigma(picture.clip(0, 1), everywhere) == pytest.approx(sigma, rel=0.06)
    assert images.estimate_sigma(np.ones((40, 40)), everywhere[:40, :40]) is None
