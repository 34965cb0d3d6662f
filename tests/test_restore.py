"""The restoration of another picture, on a prior that was trained for seconds."""

import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from genprior.networks import PriorNetwork, save_network
from pipeline.params import Network, TrainVAE
from stages.train_vae import train
from tools import restore


@pytest.fixture(scope="module")
def trained(patches, tmp_path_factory):
    """The file of a prior of 8 × 8 patches."""
    torch.manual_seed(0)
    settings = TrainVAE(
        steps=500, batch_size=128, lr=0.005, noise="dct", sigma=0.1, objective="elbo", beta=1.0, chapter_steps=1
    )
    network = Network(latent_size=4, hidden=[32], activation="silu")
    file = tmp_path_factory.mktemp("models") / "vae.safetensors"
    save_network(train(patches, patches, network, settings, 0)[0], file)
    return file


@pytest.fixture
def folder(tmp_path, values, monkeypatch, capsys):
    """A working directory with params.yaml and a picture; `call` runs the tool in it and returns what it prints."""
    values["threads"] = 1
    values["evaluate"]["relaxed"] = {"starts": 2, "iterations": 20}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    rows, columns = np.mgrid[0:21, 0:30]
    wave = 0.5 + 0.3 * np.sin(0.5 * rows + 0.3 * columns)
    Image.fromarray(np.rint(255 * wave).astype(np.uint8)).save(tmp_path / "true.png")
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["restore", *map(str, words)])
        restore.main()
        return capsys.readouterr().out

    return tmp_path, call


def read(file) -> np.ndarray:
    return np.asarray(Image.open(file)) / 255


def psnr(first, second) -> float:
    return -10 * np.log10(np.mean((first - second) ** 2))


@pytest.mark.parametrize(("size", "stride"), [((8, 8), 3), ((21, 30), 3), ((20, 9), 8), ((16, 24), 8)])
def test_cut_patches_join_to_the_picture(size, stride):
    picture = torch.rand(size, generator=torch.Generator().manual_seed(0))
    patches = restore.cut(picture, (8, 8), stride)
    torch.testing.assert_close(restore.join(patches, size, stride), picture)
    torch.testing.assert_close(patches[-1, 0], picture[-8:, -8:])


def test_a_pixel_is_the_mean_of_the_patches_that_hold_it():
    joined = restore.join(torch.tensor([1.0, 2.0, 6.0])[:, None, None, None].expand(3, 1, 4, 4), (4, 8), 2)
    expected = torch.tensor([1, 1, 1.5, 1.5, 4, 4, 6, 6])
    torch.testing.assert_close(joined, expected.expand(4, 8))


@pytest.mark.parametrize("problem", ["denoise", "inpaint", "super_resolution", "cs_25"])
def test_simulated_measurement_is_restored_and_its_psnr_told(trained, folder, problem):
    path, call = folder
    printed = call("true.png", "--prior", trained, "--problem", problem, "--out", "out/x.png")
    truth, found = read(path / "true.png"), read(path / "out/x.png")
    told = float(printed.split("PSNR ")[1].split()[0])
    # the file's grey levels are rounded, which adds an error of its own and its product with the first
    error, rounding = 10 ** (-told / 10), 1 / 12 / 255**2
    spread = 2 * (error * rounding / truth.size) ** 0.5
    assert np.mean((truth - found) ** 2) == pytest.approx(error + rounding, rel=0.002, abs=4 * spread)
    assert told > 19  # the mean grey alone has 13.5
    first = (path / "out/x.png").read_bytes()
    call("true.png", "--prior", trained, "--problem", problem, "--out", "out/x.png")
    assert (path / "out/x.png").read_bytes() == first


def test_simulated_noise_is_that_of_one_picture(params):
    """Overlapping patches see the same measured pixels, and of the missing ones none."""
    x = torch.rand(24, 24, generator=torch.Generator().manual_seed(0))
    values = {"problems": {"inpaint": params.problems["inpaint"], "denoise": params.problems["denoise"]}}
    params = params.model_copy(update=values)
    for name, share in (("inpaint", 0.2), ("denoise", 1.0)):
        measured = torch.full((24, 24), torch.nan)
        places = [(i, j) for i in restore.corners(24, 16, 4) for j in restore.corners(24, 16, 4)]
        for problem, rows in restore.simulated(x, name, params, (16, 16), 4):
            spread = problem.operator.A_adjoint(problem.y)
            seen = problem.operator.A_adjoint(torch.ones_like(problem.y)) > 0
            for patch, mask, row in zip(spread, seen, rows.tolist(), strict=True):
                i, j = places[row]
                window = measured[i : i + 16, j : j + 16]
                known = mask[0] & window.isfinite()
                torch.testing.assert_close(patch[0][known], window[known], rtol=0, atol=0)
                window[mask[0]] = patch[0][mask[0]]
        assert measured.isfinite().double().mean() == pytest.approx(share, abs=0.03)
        error = (measured - x)[measured.isfinite()]
        assert error.std() == pytest.approx(params.problems[name].sigma, rel=0.15)


def test_noise_of_a_measured_picture_is_removed(trained, folder):
    path, call = folder
    truth = read(path / "true.png")
    noisy = truth + 0.1 * np.random.default_rng(0).standard_normal(truth.shape)
    Image.fromarray(np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)).save(path / "noisy.png")
    call("noisy.png", "--prior", trained, "--sigma", 0.1)
    assert psnr(truth, read(path / "restored.png")) > psnr(truth, read(path / "noisy.png")) + 4
    call("noisy.png", "--prior", trained, "--sigma", 0.1, "--samples", 40, "--out", "mean.png")
    assert psnr(truth, read(path / "mean.png")) > psnr(truth, read(path / "noisy.png")) + 4
    assert (path / "mean.png").read_bytes() != (path / "restored.png").read_bytes()


def test_what_the_mask_has_black_is_filled_in_whatever_stands_there(trained, folder):
    path, call = folder
    seen = np.ones((21, 30), dtype=bool)
    seen[5:8, 4:20] = seen[12:, 22:25] = False
    Image.fromarray((255 * seen).astype(np.uint8)).save(path / "seen.png")
    truth, written = read(path / "true.png"), set()
    for grey in (0, 255):
        Image.fromarray(np.where(seen, np.rint(255 * truth), grey).astype(np.uint8)).save(path / "holes.png")
        call("holes.png", "--prior", trained, "--sigma", 0.01, "--mask", "seen.png", "--stride", 5)
        written.add((path / "restored.png").read_bytes())
    assert len(written) == 1
    assert psnr(truth[~seen], read(path / "restored.png")[~seen]) > 20
    assert psnr(truth[seen], read(path / "restored.png")[seen]) > 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("true.png", "--problem --sigma"),
        ("true.png --problem nonsense", "nonsense"),
        ("true.png --sigma 0", "--sigma 0.0"),
        ("true.png --sigma much", "--sigma"),
        ("true.png --problem denoise --sigma 1", "--sigma"),
        ("true.png --problem denoise --mask true.png", "--mask"),
        ("true.png --sigma 0.1 --size 10", "--size"),
        ("true.png --problem denoise --size 0", "--size 0"),
        ("true.png --problem denoise --size 5", "true.png"),
        ("true.png --problem denoise --stride 9", "--stride 9"),
        ("true.png --problem denoise --crop 0 0 22 10", "--crop"),
        ("true.png --problem denoise --samples 3", "--samples 3"),
        ("true.png --problem denoise --out x.jpg", "x.jpg"),
        ("true.png --problem denoise --out true.png", "true.png"),
        ("true.png --problem denoise --prior true.png", "true.png"),
        ("params.yaml --problem denoise", "params.yaml"),
        ("nowhere.png --problem denoise", "nowhere.png"),
        ("true.png --sigma 0.1 --mask small.png", "small.png"),
        ("true.png --sigma 0.1 --mask black.png", "black.png"),
        ("true.png --problem denoise --prior plain.safetensors", "plain.safetensors"),
        ("true.png --problem super_resolution --prior odd.safetensors", "factor 4"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_written(trained, folder, words, said):
    path, call = folder
    Image.new("L", (30, 20), 255).save(path / "small.png")
    Image.new("L", (30, 21), 0).save(path / "black.png")
    save_network(PriorNetwork((8, 8), 2, [4], "silu", None), path / "plain.safetensors")
    save_network(PriorNetwork((6, 6), 2, [4], "silu", "dct"), path / "odd.safetensors")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    words = words.split()
    if "--prior" not in words:
        words += ["--prior", trained]
    with pytest.raises(restore.InputError) as caught:
        call(*words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
