"""The command, on a prior that is Gaussian, so that every restoration has a closed form; and where priors are found."""

import io
import math
import unicodedata
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

import genprior
from genprior import command, files
from genprior.files import InputError, find_prior
from genprior.images import dct_basis, save_grid
from genprior.networks import PriorNetwork, save_network

SHAPE = (8, 8)


@pytest.fixture(scope="module")
def prior(patches, tmp_path_factory):
    """The file of a prior with x = m + W z + U v^½ ξ, and (m, W Wᵀ, U diag(v) Uᵀ)."""
    network = PriorNetwork(SHAPE, 3, [4], "silu", "dct")
    network.coefficients.fit(patches / 255)
    for weights in network.decoder.parameters():
        weights.data.zero_()
    network.decoder.log_variance[-1].bias.data.fill_(1.25)  # v about the variance of patches
    draw = torch.Generator().manual_seed(0)
    network.decoder.linear.weight.data.copy_(torch.randn(64, 3, generator=draw) / 2)
    file = tmp_path_factory.mktemp("models") / "gaussian.safetensors"
    save_network(network, file)
    with torch.no_grad():
        mean, columns = network.decode(torch.zeros(1, 3)), network.decode(torch.eye(3))
        v = network.moments(torch.zeros(1, 3))[1].numpy()[0].astype(float)
    m, w = mean.numpy().astype(float).ravel(), (columns - mean).numpy().astype(float).reshape(3, -1).T
    basis = dct_basis(*SHAPE)
    return file, (m, w @ w.T, basis * v @ basis.T)


def closed_form(y, seen, sigma, stride, mean, covariance):
    """The mean of all patches' E[x | y], x ~ N(mean, covariance), where they overlap."""
    total, count = np.zeros((2, *y.shape))
    places = [[*range(0, side - 8, stride), side - 8] for side in y.shape]
    for i, j in product(*places):
        window = np.s_[i : i + 8, j : j + 8]
        rows = np.flatnonzero(seen[window])
        gain = np.linalg.solve(covariance[np.ix_(rows, rows)] + sigma**2 * np.eye(len(rows)), covariance[rows]).T
        total[window] += (mean + gain @ (y[window].ravel()[rows] - mean[rows])).reshape(SHAPE)
        count[window] += 1
    return (total / count).clip(0, 1)


def read(file) -> np.ndarray:
    return np.asarray(Image.open(file)) / 255


def write(file, picture) -> None:
    Image.fromarray(np.rint(255 * np.asarray(picture).clip(0, 1)).astype(np.uint8)).save(file)


@pytest.fixture
def folder(tmp_path, prior, monkeypatch, capsys):
    """A working directory with pictures; `call` runs the command in it, and returns what it prints."""
    rows, columns = np.mgrid[0:21, 0:30]
    wave = 0.5 + 0.3 * np.sin(0.5 * rows + 0.3 * columns)
    write(tmp_path / "true.png", wave)
    write(tmp_path / "noisy.png", wave + 0.1 * np.random.default_rng(0).standard_normal(wave.shape))
    seen = np.ones(wave.shape)
    seen[5:8, 4:20] = seen[12:, 22:25] = 0
    write(tmp_path / "seen.png", seen)
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> str:
        command.main([*map(str, words), *(() if "--prior" in words else ("--prior", str(prior[0])))])
        return capsys.readouterr().out

    return tmp_path, call


@pytest.mark.parametrize(
    ("options", "stride", "atol", "mask"),
    [
        ([], 4, 1e-4, False),
        (["--stride", 3], 3, 1e-4, True),
        (["--range"], 4, 1e-4, True),
        (["--samples", 100], 4, 0.02, False),
    ],
)
def test_restoration_is_the_closed_form(prior, folder, options, stride, atol, mask):
    path, call = folder
    _, (m, range_covariance, residual_covariance) = prior
    covariance = range_covariance + (0 if "--range" in options else residual_covariance)
    seen = read(path / "seen.png") > 0.5 if mask else np.ones((21, 30), dtype=bool)
    y = read(path / "noisy.png")
    printed = call("restore", "noisy.png", "--sigma", 0.1, *options, *(["--mask", "seen.png"] if mask else []))
    assert printed.startswith("restored.png: 21 × 30 pixels")
    misfit = float(printed.split(" by ")[1].split(" sigma")[0])
    assert misfit == pytest.approx(np.sqrt(np.mean((read(path / "restored.png") - y)[seen] ** 2)) / 0.1, abs=0.02)
    expected = closed_form(y, seen, 0.1, stride, m, covariance)
    np.testing.assert_allclose(read(path / "restored.png"), expected, rtol=0, atol=0.5 / 255 + atol)


def test_simulated_measurement_is_restored_and_its_psnr_printed(folder):
    path, call = folder
    truth, improved = read(path / "true.png"), {}
    for missing, out in ((0, "noise.png"), (0.4, "missing.png"), (0.4, "again.png")):
        printed = call("restore", "true.png", "--sigma", 0.1, "--simulate", "--missing", missing, "--out", out)
        improved[out] = float(printed.split("PSNR ")[1].split()[0])
        error = np.mean((truth - read(path / out)) ** 2)  # that of rounding adds to it
        assert -10 * math.log10(error) == pytest.approx(improved[out], abs=0.05)
    assert (path / "again.png").read_bytes() == (path / "missing.png").read_bytes()
    assert improved["noise.png"] > 20 + 2  # what the noise leaves, in dB
    assert improved["noise.png"] > improved["missing.png"] > 15
    call("restore", "true.png", "--sigma", 0.1, "--simulate", "--seed", 1, "--crop", 2, 0, 19, 28)
    assert read(path / "restored.png").shape == (19, 28)
    assert (read(path / "restored.png") != read(path / "noise.png")[2:21, :28]).mean() > 0.5


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


def test_a_white_level_scales_the_picture(folder):
    path, call = folder
    numbers = np.rint(4095 * read(path / "noisy.png")).astype(np.uint16)
    Image.fromarray(numbers).save(path / "detector.png")
    call("restore", "noisy.png", "--sigma", 0.1)
    expected = read(path / "restored.png")
    call("restore", "detector.png", "--sigma", 0.1, "--white", 4095)
    np.testing.assert_allclose(read(path / "restored.png"), expected, atol=1.01 / 255)


def test_names_in_the_other_form_of_unicode_are_found(folder):
    path, call = folder
    written, named = (unicodedata.normalize(form, "Fotos für später") for form in ("NFD", "NFC"))
    (path / written).mkdir()
    for name in ("noisy.png", "seen.png"):
        (path / name).rename(path / written / f"{written} {name}")
    words = ("restore", f"{named}/{named} noisy.png", "--sigma", 0.1, "--mask", f"{named}/{named} seen.png")
    assert call(*words).startswith("restored.png: 21 × 30 pixels")


@pytest.mark.parametrize("options", [[], ["--range"]])
def test_samples_are_the_priors(prior, folder, options):
    path, call = folder
    assert call("sample", "--count", 12, "--seed", 5, *options) == "samples.png: 12 patches of 8 × 8 pixels\n"
    loaded = genprior.load(prior[0])
    save_grid("expected.png", (loaded.range if options else loaded).sample(12, seed=5).numpy())
    assert (path / "samples.png").read_bytes() == (path / "expected.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "COMMAND"),
        ("restore true.png --simulate", "--sigma"),
        ("restore true.png --mask holes.png", "to estimate the noise; give --sigma"),
        ("restore true.png --sigma 0.1 --mask inverted.png", "more than half is black, perhaps it is inverted"),
        ("restore true.png --sigma 0.1 --white 0", "--white: 0"),
        ("restore true.png --sigma 0.1 --mask=", ".: not a file"),
        ("restore true.png --sigma 0.1 --out folder.png", "--out folder.png"),
        ("restore true.png --sigma 0", "--sigma: 0: 0.0001 to 1"),
        ("restore true.png --sigma 0.1 --simulate --missing 0.5 --mask seen.png", "--missing"),
        ("restore true.png --sigma 0.1 --crop 0 0 22 10", "--crop"),
        ("restore true.png --sigma 0.1 --out true.png", "true.png"),
        ("restore true.png --sigma 0.1 --prior nobody", "nobody: no such prior"),
        ("restore true.png --sigma 0.1 --prior plain.safetensors", "--range"),
        ("restore text.txt --sigma 0.1", "text.txt"),
        ("restore true.png --sigma 0.1 --mask small.png", "small.png"),
        ("restore true.png --sigma 0.1 --mask black.png", "black.png"),
        ("sample --count 0", "--count: 0"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(folder, capsys, words, said):
    path, call = folder
    Image.fromarray(255 * np.eye(20, 30, dtype=np.uint8)).save(path / "small.png")
    Image.new("L", (30, 21), 0).save(path / "black.png")
    write(path / "inverted.png", 1 - read(path / "seen.png"))
    write(path / "holes.png", np.random.default_rng(0).random((21, 30)) > 0.5)
    (path / "text.txt").write_text("no picture")
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
