"""Whole photographs: the splitting against closed forms and loops, mixtures against `condition`."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_tv_chambolle

import genprior
from genprior import grids
from genprior.denoising import by_threads, codes_of, denoise, gaussians
from genprior.files import InputError
from genprior.mixture import GaussianMixture, load_mixture, save_mixture
from genprior.networks import PriorNetwork
from genprior.operators import Convolution, Downsampling, FourierSampling, Identity, Inpainting
from genprior.splitting import ByPatches, conjugate_gradients, restore_image, smooth_guess, total_variation
from genprior.streams import stream
from genprior.views import Prior

SHAPE = (4, 6)


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def mixture():
    draw = np.random.default_rng(1)
    factors = draw.normal(size=(3, 24, 24)) * np.array([0.005, 0.02, 0.06])[:, None, None]
    means = 0.5 + 0.1 * draw.normal(size=(3, 24))
    return GaussianMixture(np.array([0.5, 0.3, 0.2]), means, factors @ factors.swapaxes(1, 2), SHAPE)


@pytest.mark.parametrize("size", [(4, 6), (11, 9), (30, 41)])
@pytest.mark.parametrize(("stride", "seed"), [(1, 0), (2, 1), (3, 2), (4, 3), (4, 4)])
def test_patches_left_as_they_are_give_the_photograph_back(draw, size, stride, seed, monkeypatch):
    x = torch.rand(1, 1, *size, generator=draw)
    monkeypatch.setattr(grids, "TOGETHER", 40)  # several strips
    unchanged = SimpleNamespace(shape=SHAPE, denoise=lambda patches, level: patches, gaussians=None)
    torch.testing.assert_close(ByPatches(unchanged, stride, seed, Identity(), 0.1)(x, 0.1), x)


@pytest.mark.parametrize(("iterations", "level"), [(5, 0.1), (50, 0.2), (300, 0.1)])
def test_total_variation_is_scikit_images(draw, iterations, level):
    x = torch.rand(1, 1, 40, 53, generator=draw)
    expected = denoise_tv_chambolle(x[0, 0].numpy(), level, eps=0, max_num_iter=iterations + 1)
    np.testing.assert_allclose(total_variation(x, level, iterations)[0, 0].numpy(), expected, atol=1e-6)


def by_hand(x: torch.Tensor, offset: list[int], stride: int) -> np.ndarray:
    """P of all patches of a photograph continued by its mirror images, as one matrix (P 24, H W)."""
    height, width = x.shape[2:]
    index, rows = np.pad(np.arange(height * width).reshape(height, width), 12, "symmetric"), []
    corners = [
        [at for at in range(1 - patch, side) if at % stride == begin]
        for side, patch, begin in zip((height, width), SHAPE, offset, strict=True)
    ]
    for i in corners[0]:
        for j in corners[1]:
            patch = index[12 + i : 16 + i, 12 + j : 18 + j].ravel()
            rows.append(np.eye(height * width)[patch])
    return np.concatenate(rows)


@pytest.mark.parametrize("pixels", [1, 3])
def test_denoised_is_the_mean_over_all_patches_of_the_mirrored_photograph(draw, mixture, pixels):
    x = torch.rand(1, 1, 9, 10, generator=draw)
    mean, covariance = mixture.mean[0], mixture.covariance[0]
    one = GaussianMixture(np.ones(1), mean[None], covariance[None], SHAPE)
    gain = np.linalg.solve(covariance + 0.1**2 * np.eye(24), covariance)  # Wiener's, transposed
    patches = by_hand(x, torch.randint(pixels, (2,), generator=stream(0, "grid")).tolist(), pixels)
    restored = mean + ((patches @ x.double().numpy().ravel()).reshape(-1, 24) - mean) @ gain
    found = ByPatches(one, pixels, 0, Identity(), 0.1)(x, 0.1)
    np.testing.assert_allclose(found.numpy().ravel(), patches.T @ restored.ravel() / patches.sum(0), atol=1e-5)


@pytest.mark.parametrize("size", [(7, 9), (3, 4)])  # the second smaller than a patch
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_weights_count_each_pixel_once(size, stride):
    """On the mean over all places where a grid begins, its mirror images counted."""
    total = torch.zeros(1, 1, *size)
    for offset in product(range(stride), range(stride)):
        for strip in grids.strips(total, SHAPE, stride, list(offset)):
            strip.add(strip.weights.expand(-1, 24)[None], total)
    torch.testing.assert_close(total / stride**2, torch.ones_like(total))


def test_strips_do_not_show(draw, mixture, monkeypatch):
    x = torch.rand(1, 1, 40, 30, generator=draw)
    y, found = Downsampling(2).A(x), []
    for together in (grids.TOGETHER, 50):
        monkeypatch.setattr(grids, "TOGETHER", together)
        found.append(restore_image(mixture, Downsampling(2), y, 0.1, 2))
    torch.testing.assert_close(*(image.x for image in found))
    torch.testing.assert_close(*(image.posterior.precision(x) for image in found), atol=0, rtol=1e-3)


def test_the_smooth_guess_is_the_gaussians_posterior_mean(draw):
    seen = torch.rand(7, 8, generator=draw) < 0.4
    y = torch.rand(1, int(seen.sum()), generator=draw)
    found = smooth_guess(Inpainting(seen), Inpainting(seen).A_adjoint(y), 0.02)
    rows = [np.kron(np.diff(np.eye(7), axis=0), np.eye(8)), np.kron(np.eye(7), np.diff(np.eye(8), axis=0))]
    precision = sum(row.T @ row for row in rows) / 0.05**2 + np.diag(seen.flatten().double().numpy()) / 0.02**2
    expected = np.linalg.solve(precision, Inpainting(seen).A_adjoint(y).double().numpy().ravel() / 0.02**2)
    np.testing.assert_allclose(found.numpy().ravel(), expected, atol=2e-3)


def test_the_mixtures_denoiser_is_its_likeliest_components_mean(draw, mixture):
    y = torch.rand(50, 1, *SHAPE, generator=draw)
    for j in range(3):
        one = GaussianMixture(np.ones(1), mixture.mean[j : j + 1], mixture.covariance[j : j + 1], SHAPE)
        expected, _ = one.condition(np.eye(24), y.flatten(1).double().numpy(), 0.2)
        np.testing.assert_allclose(one.denoise(y, 0.2).flatten(1).numpy(), expected, atol=1e-5)
    # A component that is likelier than the others by far gives the mixture's mean.
    apart = GaussianMixture(mixture.weight, mixture.mean + np.arange(3)[:, None] * 10, mixture.covariance, SHAPE)
    expected, _ = apart.condition(np.eye(24), y.flatten(1).double().numpy() + 10, 0.2)
    np.testing.assert_allclose(apart.denoise(y + 10, 0.2).flatten(1).numpy(), expected, atol=1e-4)


def test_a_mixtures_file_holds_it(mixture, tmp_path):
    save_mixture(mixture, tmp_path / "mixture.safetensors")
    again = genprior.load(tmp_path / "mixture.safetensors")
    assert again.shape == SHAPE
    for name in ("weight", "mean", "covariance"):
        np.testing.assert_allclose(getattr(again, name), getattr(mixture, name), rtol=1e-6)
    torch.save({}, tmp_path / "other.safetensors")
    assert load_mixture(tmp_path / "other.safetensors") is None
    with pytest.raises(InputError, match="not a readable safetensors file"):
        genprior.load(tmp_path / "other.safetensors")


WITHIN = np.pad(np.ones((7, 9)), ((3, 3), (5, 5)))  # a photograph, and all pixels of patches that hold one of it
WEIGHTS = np.lib.stride_tricks.sliding_window_view(WITHIN, SHAPE).mean((2, 3)).ravel() / 24  # at stride 1
SEEN = torch.rand(7, 9, generator=torch.Generator().manual_seed(3)) < 0.6


@pytest.mark.parametrize("operator", [Inpainting(SEEN), FourierSampling(SEEN), Identity()], ids=type)
def test_the_posterior_of_a_photograph_is_the_gaussian_of_all_its_patches(draw, mixture, operator):
    mean, covariance = mixture.mean[0], mixture.covariance[0] + 1e-3 * np.eye(24)
    one = GaussianMixture(np.ones(1), mean[None], covariance[None], SHAPE)
    x = torch.rand(1, 1, 7, 9, generator=draw)
    found = restore_image(one, operator, genprior.measure(operator, x, 0.1), 0.1, stride=1)
    a = operator.A(torch.eye(63).reshape(63, 1, 7, 9)).flatten(1).T.numpy()  # complex, where y is
    patches = by_hand(x, [0, 0], 1).reshape(-1, 24, 63)
    precision = (a.conj().T @ a).real / 0.1**2
    precision += np.einsum("p,pni,nm,pmj->ij", WEIGHTS, patches, np.linalg.inv(covariance), patches)
    y = genprior.measure(operator, x, 0.1).flatten().numpy()
    pulled = np.einsum("p,pni,n->i", WEIGHTS, patches, np.linalg.solve(covariance, mean))
    expected = np.linalg.solve(precision, (a.conj().T @ y).real / 0.1**2 + pulled)
    check_preconditioner(found.posterior)
    np.testing.assert_allclose(found.posterior.mean(x).numpy().ravel(), expected, atol=2e-3)
    samples = (found.samples(2000) - found.x).flatten(1).numpy()
    true = np.linalg.inv(precision)
    scale = np.sqrt(np.diag(true))
    np.testing.assert_allclose(np.cov(samples.T) / np.outer(scale, scale), true / np.outer(scale, scale), atol=0.12)
    np.testing.assert_allclose(found.std(2000)[0, 0].numpy().ravel(), scale, rtol=0.08)
    assert torch.equal(found.samples(3, seed=1), found.samples(3, seed=1))


def test_a_networks_photograph_is_half_its_posterior_mean_half_its_patches_denoised_twice(draw):
    """Against the equations of the Gaussians at the codes of y, and means over patches."""
    torch.manual_seed(0)
    network = PriorNetwork(SHAPE, 3, [5], "silu", "modulated", encoder="variational")
    network.coefficients.fit(torch.rand(500, 1, *SHAPE, generator=draw))
    prior = Prior(network.eval().requires_grad_(False))
    y = torch.rand(1, 1, 7, 9, generator=draw)
    with pytest.raises(InputError, match="range leaves no residual covariance"):
        restore_image(prior.range, Identity(), y, 0.2)
    found = restore_image(prior, Identity(), y, 0.2, stride=1)
    assert found.levels == [0.2, pytest.approx(0.2 / 3**0.5)]
    patches = by_hand(y, [0, 0], 1)

    def cut(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(patches @ x.double().numpy().ravel()).float().reshape(-1, 1, *SHAPE)

    def denoised(x: torch.Tensor, level: float, guide: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        z = codes_of(prior, cut(x), level, cut(guide), steps)
        restored = denoise(prior, cut(x), level, z).double().numpy().ravel()
        return z, torch.from_numpy(patches.T @ restored / patches.sum(0)).float().reshape(y.shape)

    z, once = denoised(y, 0.2, total_variation(y, 0.2), 3)
    x = (y + once) / 2  # as σ and the first level are the same
    _, twice = denoised(x, found.levels[1], total_variation(x, found.levels[1]), 3)

    mean, whitening = gaussians(prior, z)
    v, d = (part.double().numpy() for part in (whitening.v, whitening.scales @ prior.scale_fields))
    root = prior.basis.double().numpy() / np.sqrt(v)[:, None] / d[:, :, None]  # D⁻¹ U diag(v)^{-½}, (P, 24, 24)
    local = root.swapaxes(1, 2) @ patches.reshape(-1, 24, 63)
    precision = np.eye(63) / 0.2**2 + np.einsum("p,pni,pnj->ij", WEIGHTS, local, local)
    white = np.einsum("pnm,pn->pm", root, mean.double().numpy())
    pulled = np.einsum("p,pni,pn->i", WEIGHTS, local, white)
    expected = np.linalg.solve(precision, y.numpy().ravel() / 0.2**2 + pulled)
    np.testing.assert_allclose(whitening.diagonal().numpy(), np.square(root).sum(2), rtol=1e-4)
    check_preconditioner(found.posterior)
    np.testing.assert_allclose(found.mean.numpy().ravel(), expected, atol=2e-3)
    np.testing.assert_allclose(found.x.numpy(), (found.mean + twice) / 2, atol=1e-4)
    off, variance = found.x.double().numpy().ravel() - expected, np.diag(np.linalg.inv(precision))
    assert np.abs(off).max() > 0.3 * variance.max() ** 0.5  # so that it counts
    np.testing.assert_allclose(found.std(2000).numpy().ravel(), np.sqrt(variance + off**2), rtol=0.08)


def check_preconditioner(posterior) -> None:
    """It is symmetric and positive."""
    columns = posterior.about_inverse(torch.eye(63).reshape(63, 1, 7, 9)).flatten(1).double().numpy()
    np.testing.assert_allclose(columns, columns.T, atol=1e-6 * np.abs(columns).max())
    assert np.linalg.eigvalsh(columns).min() > 0


def test_conjugate_gradients_find_a_photographs_posterior_in_few_steps(draw):
    """Where nine of ten pixels are missing, and patches are surer of some waves than of others by five digits."""
    rows, columns = np.mgrid[:4, :6]
    waves = np.linalg.qr(
        np.cos(np.pi * (rows.ravel()[:, None] + 0.5) * rows.ravel() / 4)
        * np.cos(np.pi * (columns.ravel()[:, None] + 0.5) * columns.ravel() / 6)
    )[0]
    covariance = (waves * 10.0 ** -(1 + 0.7 * (rows + columns).ravel())) @ waves.T
    one = GaussianMixture(np.ones(1), np.full((1, 24), 0.5), covariance[None], SHAPE)
    operator = Inpainting(torch.rand(48, 60, generator=draw) < 0.1)
    y = genprior.measure(operator, torch.rand(1, 1, 48, 60, generator=draw), 0.01)
    law, steps = restore_image(one, operator, y, 0.01).posterior, []
    b, start = law.noise(law.pull, draw), torch.zeros_like(law.pull)
    for inverse in (law.about_inverse, lambda residual: residual):
        told = []
        found = conjugate_gradients(
            lambda x, told=told: told.append(1) or law.precision(x), b, start, 3000, 1e-4, inverse
        )
        assert (law.precision(found) - b).norm() < 0.02 * b.norm()
        steps.append(len(told))
    assert steps[0] < steps[1] / 3


def test_a_mixtures_components_are_those_of_the_noisy_patches(draw, mixture):
    y = 0.5 + 0.2 * torch.randn(1, 1, 7, 9, generator=draw)
    found = restore_image(mixture, Identity(), y, 0.1, stride=1)
    patches = by_hand(y, [0, 0], 1)
    noisy = torch.from_numpy(patches @ y.double().numpy().ravel()).float().reshape(-1, 1, *SHAPE)
    values, vectors = np.linalg.eigh(mixture.covariance)
    inverses = (vectors / values.clip(1e-9)[:, None]) @ vectors.swapaxes(1, 2)
    own, local = inverses[mixture.likeliest(noisy, 0.1)], patches.reshape(-1, 24, 63)
    diagonals = mixture.gaussians(noisy, 0.1)[1].diagonal().numpy()
    np.testing.assert_allclose(diagonals, own.diagonal(axis1=1, axis2=2), rtol=1e-3)
    expected = np.eye(63) / 0.1**2 + np.einsum("p,pni,pnm,pmj->ij", WEIGHTS, local, own, local)
    columns = found.posterior.precision(torch.eye(63).reshape(63, 1, 7, 9)).flatten(1).numpy()
    np.testing.assert_allclose(columns, expected, atol=1e-4 * np.abs(expected).max())
    assert len({*mixture.likeliest(noisy, 0.1).tolist()}) > 1


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_threads_share_a_batch_and_leave_their_number_as_it_was(three_threads):
    seen, x = [], torch.arange(200.0)

    def squares(x, y):
        seen.append((len(x), torch.get_num_threads(), torch.is_grad_enabled()))
        return x * y

    torch.testing.assert_close(by_threads(squares, x, x), x.square())
    assert sorted(seen) == [(8, 1, False), *[(64, 1, False)] * 3]
    with pytest.raises(ZeroDivisionError):
        by_threads(lambda x: x + 1 // 0, x)
    with ThreadPoolExecutor(1) as pool:
        assert (torch.get_num_threads(), pool.submit(torch.get_num_threads).result()) == (3, 3)


def test_codes_do_not_depend_on_threads(draw, three_threads):
    torch.manual_seed(0)
    prior = Prior(PriorNetwork(SHAPE, 3, [5], "silu", "modulated", encoder="variational"))
    patches = torch.rand(150, 1, *SHAPE, generator=draw)
    with torch.no_grad():
        found = codes_of(prior, patches, 0.2, patches, 3)
        torch.set_num_threads(1)
        expected = codes_of(prior, patches, 0.2, patches, 3)
    torch.testing.assert_close(found, expected)


def test_codes_that_say_nothing_leave_samples_of_one_gaussian(draw):
    """Drawn in turn with codes, photographs then are as they are without: those of the dense equations."""
    network = PriorNetwork(SHAPE, 2, [4], "silu", "dct", "variational")
    for layer in (network.decoder.mean, network.decoder.linear, network.decoder.log_variance[-1]):
        torch.nn.init.zeros_(layer.weight)
    network.coefficients.fit(0.5 + 0.1 * torch.randn(500, 1, *SHAPE, generator=draw))
    prior, x, operator = (
        Prior(network.eval().requires_grad_(False)),
        torch.rand(1, 1, 7, 9, generator=draw),
        Inpainting(SEEN),
    )
    y = genprior.measure(operator, x, 0.1)
    found = restore_image(prior, operator, y, 0.1, stride=1)
    mean, v = (part.double().numpy()[0] for part in network.moments(torch.zeros(1, 2)))
    basis = prior.basis.double().numpy()
    patches, seen = by_hand(x, [0, 0], 1).reshape(-1, 24, 63), np.diag(SEEN.flatten().double().numpy())
    local = basis.T @ patches
    precision = seen / 0.1**2 + np.einsum("pni,n,pnj->ij", local, 1 / v, local) / 24
    pulled = np.einsum("pni,n->i", local, mean / v) / 24
    expected = np.linalg.solve(precision, operator.A_adjoint(y).double().numpy().ravel() / 0.1**2 + pulled)
    samples, true = found.samples(2000).flatten(1).numpy(), np.linalg.inv(precision)
    scale = np.sqrt(np.diag(true))
    np.testing.assert_allclose(samples.mean(0), expected, atol=5 * scale.max() / 2000**0.5)
    np.testing.assert_allclose(np.cov(samples.T) / np.outer(scale, scale), true / np.outer(scale, scale), atol=0.12)
    assert torch.equal(found.samples(3, seed=1), found.samples(3, seed=1))


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_samples_know_that_codes_are_in_doubt(draw, told):
    """A code that moves whole patches, half of them hidden: its doubt is in the samples, unless it moves nothing."""
    network = PriorNetwork(SHAPE, 1, [4], "silu", "dct", "variational")
    torch.manual_seed(0)
    network.coefficients.fit(0.5 + 0.1 * torch.randn(500, 1, *SHAPE, generator=draw))
    with torch.no_grad():
        for layer in (network.decoder.mean, network.decoder.log_variance[-1]):
            layer.weight.zero_()
        network.decoder.log_variance[-1].bias.fill_(-1.0)
        network.decoder.linear.weight.copy_(3 * told * torch.eye(24)[:, :1])
        network.encoder.log_variance.weight.zero_(), network.encoder.log_variance.bias.zero_()
        network.encoder.contrast.weight.zero_()
    prior, hidden = Prior(network.eval().requires_grad_(False)), torch.ones(12, 14, dtype=torch.bool)
    hidden[:, 5:] = False
    operator = Inpainting(hidden)
    y = genprior.measure(operator, torch.full((1, 1, 12, 14), 0.5), 0.05)
    found = restore_image(prior, operator, y, 0.05, stride=1)
    fixed = found.redraw(found.x, draw).deviations(400, draw).std(0)[0, :, 6:].mean()  # at codes of one draw
    ratio = found.samples(400).std(0)[0, :, 6:].mean() / fixed
    assert ratio > 1.3 if told else ratio == pytest.approx(1, abs=0.1)


FREQUENCIES = (np.pi * 6 / 40, np.pi * 4 / 44)  # of whole halves of a wave, which mirrors continue


def waves() -> torch.Tensor:
    rows, columns = (torch.cos(f * (torch.arange(side) + 0.5)) for f, side in zip(FREQUENCIES, (40, 44), strict=True))
    return (0.5 + 0.4 * torch.outer(rows, columns))[None, None].float()


@pytest.fixture(scope="module")
def learned():
    """The Gaussian of such waves of every phase."""
    phases = 2 * np.pi * np.arange(16) / 16
    rows, columns = (np.cos(f * np.arange(8) + phases[:, None]) for f in FREQUENCIES)
    patches = 0.4 * np.einsum("ai,bj->abij", rows, columns).reshape(256, 64)
    covariance = patches.T @ patches / 256 + 1e-4 * np.eye(64)
    return GaussianMixture(np.ones(1), np.full((1, 64), 0.5), covariance[None], (8, 8))


@pytest.mark.parametrize(
    "operator",
    [
        Identity(),
        Inpainting(torch.rand(40, 44, generator=torch.Generator().manual_seed(0)) < 0.3),
        Convolution((40, 44), torch.ones(5, 5) / 25),
        Convolution((40, 44), torch.ones(2, 2) / 4, 2),
        FourierSampling(torch.rand(40, 44, generator=torch.Generator().manual_seed(0)) < 0.3),
    ],
    ids=["denoise", "inpaint", "blur", "double", "fourier"],
)
def test_every_operator_is_restored_beyond_the_smooth_guess(learned, operator):
    x, told = waves(), []
    y = genprior.measure(operator, x, 0.05, seed=1)
    adjoint = operator.A_adjoint(y)
    found = restore_image(learned, operator, y, 0.05, progress=lambda done, levels, x: told.append(done))
    errors = [(image - x).square().mean().sqrt().item() for image in (smooth_guess(operator, adjoint, 0.05), found.x)]
    assert errors[1] < 0.6 * errors[0]
    assert told == list(range(1, len(found.levels) + 1))
    assert found.levels == sorted(found.levels, reverse=True)
    assert torch.equal(found.x, restore_image(learned, operator, y, 0.05).x)


def test_any_denoiser_is_taken(learned):
    x = waves()
    y = genprior.measure(Identity(), x, 0.05, seed=1)
    levels = []
    found = restore_image(lambda z, level: levels.append(level) or z, Identity(), y, 0.05)
    torch.testing.assert_close(found.x, y)
    assert levels == found.levels
    grey = restore_image(torch.full_like, Identity(), y, 0.05)
    assert torch.equal(grey.x, torch.full_like(y, levels[-1]))  # the last z, not mixed with y
    with pytest.raises(InputError, match="a denoiser without a prior"):
        found.std()


@pytest.mark.parametrize("scratched", [False, True])
def test_noise_of_unknown_size_is_estimated(scratched):
    x, mask = torch.full((1, 1, 100, 120), 0.5), torch.ones(100, 120, dtype=torch.bool)
    mask[30:60, 10:] = not scratched
    operator = Inpainting(mask) if scratched else Identity()
    y = genprior.measure(operator, x, 0.05, seed=1)
    denoiser = lambda z, level: z.mean().expand_as(z)  # noqa: E731
    assert restore_image(denoiser, operator, y).sigma == pytest.approx(0.05, rel=0.15)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma = 0: above 0"),
        ({"sigma": float("nan")}, "sigma = nan"),
        ({"sigma": None, "y": waves()[:, :, ::2, ::2], "operator": Downsampling(2)}, "sigma = None: y does not tell"),
        ({"stride": 9}, "stride = 9: a whole number from 1 to 8"),
        ({"operator": torch.nn.Identity()}, "no A_adjoint"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(learned, change, message):
    given = {"operator": Identity(), "y": waves(), "sigma": 0.1} | change
    with pytest.raises(InputError, match=message):
        restore_image(learned, **given)
