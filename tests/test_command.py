"""The command, against `restore_image` of what others read and formulas make of it; and where priors are found."""

import io
import unicodedata

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from scipy.signal import convolve2d
from skimage.metrics import peak_signal_noise_ratio as psnr
from skimage.transform import downscale_local_mean

import genprior
from genprior import command, files
from genprior.files import InputError, find_prior
from genprior.images import save_grid
from genprior.mixture import GaussianMixture, load_mixture, save_mixture
from genprior.networks import PriorNetwork, save_network
from genprior.operators import Identity, Inpainting

SHAPE = (8, 8)
TINT = np.array([[0.9], [0.5], [0.3]])  # of the picture in colour


@pytest.fixture(scope="module")
def priors(patches, tmp_path_factory):
    """A folder with two priors: a mixture fitted to patches, and a network that is not trained."""
    folder = tmp_path_factory.mktemp("models")
    x = patches.flatten(1).double().numpy() / 255
    mean, covariance = x.mean(0), np.cov(x.T) + 1e-5 * np.eye(64)
    mixture = GaussianMixture(np.full(2, 0.5), np.stack([mean, mean]), np.stack([covariance, covariance / 9]), SHAPE)
    save_mixture(mixture, folder / "mixture.safetensors")
    torch.manual_seed(0)
    network = PriorNetwork(SHAPE, 3, [4], "silu", "modulated", encoder="variational")
    network.coefficients.fit(patches / 255)
    save_network(network, folder / "network.safetensors")
    return folder


def read(file) -> np.ndarray:
    return np.asarray(Image.open(file)) / 255


def write(file, picture) -> None:
    Image.fromarray(np.rint(255 * np.asarray(picture).clip(0, 1)).astype(np.uint8)).save(file)


@pytest.fixture
def folder(tmp_path, priors, monkeypatch, capsys):
    """A working directory with pictures; `call` runs the command in it, and returns what it prints."""
    draw, (rows, columns) = np.random.default_rng(0), np.mgrid[0:21, 0:30]
    wave = 0.5 + 0.3 * np.sin(0.5 * rows + 0.3 * columns)
    write(tmp_path / "true.png", wave)
    write(tmp_path / "noisy.png", wave + 0.1 * draw.standard_normal(wave.shape))
    colour = wave[..., None] * TINT[:, 0] + 0.1 * np.sin(0.4 * columns)[..., None] * [1, 0, -1]
    write(tmp_path / "colour.png", colour)
    write(tmp_path / "noisy colour.png", colour + 0.1 * draw.standard_normal(colour.shape))
    seen = np.ones(wave.shape)
    seen[5:8, 4:20] = seen[12:, 22:25] = 0
    write(tmp_path / "seen.png", seen)
    kernel = np.zeros((3, 4))
    kernel[0, 0], kernel[0, 1], kernel[1, 1], kernel[2, 3] = 255, 255, 128, 60  # no symmetry
    Image.fromarray(kernel.astype(np.uint8)).save(tmp_path / "kernel.png")
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> str:
        prior = () if "--prior" in words else ("--prior", priors / "mixture.safetensors")
        command.main([*map(str, words), *map(str, prior)])
        return capsys.readouterr().out

    return tmp_path, call


def splitting(priors, picture, sigma, seen=None, **options) -> np.ndarray:
    """What the library makes of a picture (H, W)."""
    y = torch.from_numpy(picture.astype(np.float32))[None, None]
    operator = Identity() if seen is None else Inpainting(torch.from_numpy(seen))
    prior = load_mixture(priors / "mixture.safetensors")
    return genprior.restore_image(prior, operator, operator.A(y), sigma, **options).x[0, 0].numpy()


@pytest.mark.parametrize(("options", "mask"), [({}, False), ({"stride": 4, "seed": 3}, True)])
def test_a_grey_photograph_is_restored_as_the_library_does(priors, folder, options, mask):
    path, call = folder
    y, seen = read(path / "noisy.png"), read(path / "seen.png") > (0.5 if mask else -1)
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    printed = call("restore", "noisy.png", "--sigma", 0.1, *words, *(["--mask", "seen.png"] if mask else []))
    assert printed.startswith("restored.png: 21 × 30 pixels, grey\n")
    misfit = float(printed.split(" by ")[1].split(" sigma")[0])
    assert misfit == pytest.approx(np.sqrt(np.mean((read(path / "restored.png") - y)[seen] ** 2)) / 0.1, abs=0.02)
    expected = splitting(priors, y, 0.1, seen if mask else None, **options).clip(0, 1)
    np.testing.assert_allclose(read(path / "restored.png"), expected, rtol=0, atol=0.6 / 255)


@pytest.mark.parametrize("mask", [False, True])
def test_colour_is_restored_as_luminance_and_chroma(priors, folder, mask):
    path, call = folder
    r, g, b = np.moveaxis(read(path / "noisy colour.png"), 2, 0)
    seen = read(path / "seen.png") > 0.5 if mask else None
    channels = (r + g + b) / 3, 0.5 + (r - b) / 6**0.5, 0.5 + (r - 2 * g + b) / 18**0.5
    light, one, two = (splitting(priors, channel, 0.1 / 3**0.5, seen) for channel in channels)
    one, two = (one - 0.5) * 6**0.5, (two - 0.5) * 18**0.5  # R - B and R - 2 G + B
    green = light - two / 3
    red = (3 * light - green + one) / 2
    printed = call("restore", "noisy colour.png", "--sigma", 0.1, *(["--mask", "seen.png"] if mask else []))
    assert printed.startswith("restored.png: 21 × 30 pixels, colour\n")
    expected = np.stack([red, green, red - one], 2).clip(0, 1)
    np.testing.assert_allclose(read(path / "restored.png"), expected, rtol=0, atol=0.6 / 255)
    truth = read(path / "colour.png")
    assert psnr(truth, read(path / "restored.png"), data_range=1) > psnr(truth, np.dstack([r, g, b]), data_range=1) + 2


@pytest.mark.parametrize("name", ["true.png", "colour.png"])
def test_blur_is_undone_to_the_borders(folder, name):
    """A photograph of which a convolution shows the middle alone comes back in its own size and place."""
    path, call = folder
    kernel = np.asarray(Image.open("kernel.png"), dtype=float)
    truth = read(path / name).reshape(21, 30, -1)
    blurred = [convolve2d(channel, kernel / kernel.sum(), mode="valid") for channel in np.moveaxis(truth, 2, 0)]
    write(path / "blurred.png", np.stack(blurred, 2).squeeze())
    assert call("restore", "blurred.png", "--kernel", "kernel.png", "--sigma", 0.004).startswith(
        "restored.png: 19 × 27"
    )
    middle = truth[1:20, 2:29].squeeze()  # the kernel's origin, its pixel (1, 1), is there
    blurred, restored = (psnr(middle, read(path / file), data_range=1) for file in ("blurred.png", "restored.png"))
    assert restored > max(blurred + 6, 32)


@pytest.mark.parametrize("name", ["true.png", "colour.png"])
def test_a_small_photograph_is_enlarged(folder, name):
    path, call = folder
    truth = read(path / name)[:20].reshape(20, 30, -1)
    small = downscale_local_mean(truth, (2, 2, 1)).squeeze()
    write(path / "small.png", small)
    assert call("restore", "small.png", "--scale", 2, "--sigma", 0.004).startswith("restored.png: 20 × 30 pixels")
    nearest = read(path / "small.png").repeat(2, 0).repeat(2, 1)
    found, plain = (psnr(truth.squeeze(), picture, data_range=1) for picture in (read(path / "restored.png"), nearest))
    assert found > plain + 5


@pytest.mark.parametrize(
    ("options", "inside", "least"),
    [
        (["--sigma", 0.1], np.s_[:, :], 22),
        (["--sigma", 0.02, "--missing", 0.4], np.s_[:, :], 26),
        (["--sigma", 0.02, "--kernel", "kernel.png"], np.s_[1:20, 2:29], 26),
        (["--sigma", 0.02, "--scale", 2], np.s_[:20, :], 23),
        (["--sigma", 0.1, "--crop", 2, 0, 19, 28], np.s_[2:21, :28], 22),
    ],
)
@pytest.mark.parametrize("name", ["true.png", "colour.png"])
def test_what_is_simulated_is_restored_and_its_psnr_printed(folder, name, options, inside, least):
    path, call = folder
    words = ("restore", name, "--simulate", *options)
    printed = float(call(*words).split("PSNR ")[1].split()[0])
    found = psnr(read(path / name)[inside], read(path / "restored.png"), data_range=1)
    assert found == pytest.approx(printed, abs=0.05)
    assert printed > least  # σ = 0.1 alone leaves 20 dB
    call(*words, "--out", "again.png")
    assert (path / "again.png").read_bytes() == (path / "restored.png").read_bytes()
    call(*words, "--seed", 1)
    assert (read(path / "restored.png") != read(path / "again.png")).mean() > 0.5


def test_sixteen_bits_and_what_the_camera_told_are_kept(folder):
    path, call = folder
    numbers = np.rint(4095 * read(path / "noisy colour.png")).astype(np.uint16)
    tifffile.imwrite("deep.tif", numbers, photometric="rgb", extratags=[(271, "s", 0, "Camera Works", True)])
    call("restore", "noisy colour.png", "--sigma", 0.1)
    for out in ("deep out.tif", "deep out.png"):
        call("restore", "deep.tif", "--sigma", 0.1, "--white", 4095, "--out", out)
        with Image.open(out) as picture:
            assert picture.getexif()[271] == "Camera Works"
    found = tifffile.imread("deep out.tif")
    assert found.dtype == np.uint16
    np.testing.assert_allclose(found / 65535, read(path / "restored.png"), atol=1.01 / 255)


def test_passes_are_told_to_a_terminal_alone(folder, priors, capsys, monkeypatch):
    words = f"restore colour.png --sigma 0.1 --simulate --prior {priors}/mixture.safetensors".split()
    command.main(words)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    command.main(words)
    told = capsys.readouterr().err
    assert told.count("\r") == 3 * 5
    assert told.count("\n") == 3
    assert "\rluminance: pass 1 of 5, level 14.7 of 255, " in told  # 255 · 0.1 / √3
    assert " dB" in told


@pytest.mark.parametrize("name", ["noisy.png", "noisy colour.png"])
def test_a_map_says_how_far_each_pixel_may_be_off(folder, priors, name):
    path, call = folder
    printed = call("restore", name, "--sigma", 0.1, "--std", "map.png")
    told = printed.split("standard deviations, ")[1].split(" on the whole, where white is ")
    whole, white = map(float, told)
    found = np.asarray(Image.open(path / "map.png")) * white / 255
    assert found.shape == (21, 30)
    assert np.sqrt(np.square(found).mean()) == pytest.approx(whole, rel=0.05)
    if name == "noisy.png":
        y = torch.from_numpy(read(path / name)[None, None]).float()
        image = genprior.restore_image(genprior.load(priors / "mixture.safetensors"), Identity(), y, 0.1)
        np.testing.assert_allclose(found, image.std()[0, 0].numpy(), atol=0.06 * white)


def test_networks_restore_too(folder, priors):
    _, call = folder
    printed = call("restore", "true.png", "--sigma", 0.1, "--simulate", "--prior", priors / "network.safetensors")
    assert float(printed.split("PSNR ")[1].split()[0]) > 15


def test_noise_is_estimated_or_what_was_given_is_doubted(folder):
    path, call = folder
    rows, columns = np.mgrid[0:64, 0:80]
    wave = 0.5 + 0.3 * np.sin(0.1 * rows + 0.07 * columns)
    write(path / "wave.png", wave + 0.05 * np.random.default_rng(0).standard_normal(wave.shape))
    estimated = call("restore", "wave.png").split("sigma = ")[1]
    sigma = float(estimated.split(", estimated; ")[0])
    assert sigma == pytest.approx(0.05, rel=0.1)
    call("restore", "wave.png", "--sigma", sigma, "--out", "given.png")
    assert (path / "given.png").read_bytes() == (path / "restored.png").read_bytes()
    for given, doubted in ((0.5, True), (0.04, False), (0.07, False), (0.005, True)):
        assert (
            f"but the noise of the picture looks like {sigma:.2g}" in call("restore", "wave.png", "--sigma", given)
        ) == doubted


def test_names_in_the_other_form_of_unicode_are_found(folder):
    path, call = folder
    written, named = (unicodedata.normalize(form, "Fotos für später") for form in ("NFD", "NFC"))
    (path / written).mkdir()
    for name in ("noisy.png", "seen.png"):
        (path / name).rename(path / written / f"{written} {name}")
    words = ("restore", f"{named}/{named} noisy.png", "--sigma", 0.1, "--mask", f"{named}/{named} seen.png")
    assert call(*words).startswith("restored.png: 21 × 30 pixels")


@pytest.mark.parametrize("options", [[], ["--range"]])
def test_samples_are_the_priors(priors, folder, options):
    path, call = folder
    words = ("--prior", priors / "network.safetensors", "--count", 12, "--seed", 5)
    assert call("sample", *words, *options) == "samples.png: 12 patches of 8 × 8 pixels\n"
    loaded = genprior.load(priors / "network.safetensors")
    save_grid("expected.png", (loaded.range if options else loaded).sample(12, seed=5).numpy())
    assert (path / "samples.png").read_bytes() == (path / "expected.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "COMMAND"),
        ("restore true.png --simulate", "--sigma"),
        ("restore true.png --mask holes.png", "to estimate the noise; give --sigma"),
        ("restore true.png --sigma 0.1 --mask=", ".: not a file"),
        ("restore true.png --sigma 0.1 --out folder.png", "--out folder.png"),
        ("restore true.png --sigma 0", "--sigma: 0: 0.0001 to 1"),
        ("restore true.png --sigma 0.1 --missing 0.5", "--missing goes with --simulate"),
        ("restore true.png --sigma 0.1 --mask seen.png --scale 2", "--scale: not allowed with argument --mask"),
        ("restore true.png --sigma 0.1 --scale 5", "--scale: invalid choice: 5"),
        ("restore true.png --sigma 0.1 --kernel black.png", "black.png: black all over"),
        ("restore small.png --sigma 0.1 --kernel true.png", "true.png: [21, 30] (height, width); small.png is only"),
        ("restore true.png --sigma 0.1 --out kernel.png --kernel kernel.png", "--out kernel.png: would overwrite"),
        ("restore true.png --sigma 0.1 --std a.png --out a.png", "--std a.png: would overwrite --out"),
        ("restore true.png --sigma 0.1 --std a.jpg", "--std a.jpg: a name that ends in .png"),
        ("restore true.png --sigma 0.1 --out a.gif", "--out a.gif: a name that ends in .png or .tif or"),
        ("restore true.png --sigma 0.1 --mask seen.png --crop 5 4 3 9", "seen.png: black all over --crop"),
        ("restore true.png --sigma 0.1 --simulate --scale 4 --crop 0 0 3 9", "[3, 9] pixels; at least 4 × 4"),
        ("restore true.png --sigma 0.1 --crop 0 0 2 9", "true.png: [2, 9] pixels; at least 3 × 3"),
        ("restore true.png --sigma 0.1 --crop 0 0 22 10", "--crop"),
        ("restore true.png --sigma 0.1 --out true.png", "true.png"),
        ("restore true.png --sigma 0.1 --prior nobody", "nobody: no such prior"),
        ("restore true.png --sigma 0.1 --prior plain.safetensors", "plain.safetensors: a prior without"),
        ("sample --prior plain.safetensors", "--range"),
        ("restore true.png --sigma 0.1 --mask small.png", "small.png"),
        ("sample", "a mixture, which restores only; ae, vae"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(folder, capsys, words, said):
    path, call = folder
    Image.fromarray(255 * np.eye(20, 30, dtype=np.uint8)).save(path / "small.png")
    Image.new("L", (30, 21), 0).save(path / "black.png")
    write(path / "holes.png", np.random.default_rng(0).random((21, 30)) > 0.5)
    (path / "folder.png").mkdir()
    save_network(PriorNetwork(SHAPE, 2, [4], "silu", None), path / "plain.safetensors")
    before = {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}
    with pytest.raises(SystemExit) as caught:
        call(*words.split())
    code = caught.value.code
    message = capsys.readouterr().err if code == 2 else f"{code}\n"
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert said in message
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()} == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_is_printed_where_there_is_no_sigma(monkeypatch, encoding):
    monkeypatch.setattr("sys.stdout", printed := io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(SystemExit) as caught:
        command.main(["--help"])
    printed.flush()
    assert caught.value.code == 0
    assert b"remove noise, whose ? is estimated" in printed.buffer.getvalue()


def test_priors_are_found_by_name_in_the_package_then_in_the_checkout_or_by_path(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "genprior/files.py"))
    with pytest.raises(InputError, match="vae: no such prior; `make repro` trains the priors"):
        find_prior("vae")
    shipped, trained, own = (tmp_path / name for name in ("genprior/models", "data/models", "own"))
    for folder, name in ((shipped, "vae"), (trained, "vae"), (trained, "gan"), (own, "vae")):
        folder.mkdir(exist_ok=True, parents=True)
        (folder / f"{name}.safetensors").touch()
    assert find_prior("vae") == shipped / "vae.safetensors"
    assert find_prior("gan") == trained / "gan.safetensors"
    assert find_prior(own / "vae.safetensors") == find_prior(f"{own}/vae.safetensors") == own / "vae.safetensors"
    (own / "._vae.safetensors").touch()  # as macOS leaves it beside a file
    (trained / "._ae.safetensors").touch()
    for absent in ("ae", own / "ae.safetensors", own):
        with pytest.raises(InputError, match="no such prior; there is gan, vae, or the path of a file"):
            find_prior(absent)
