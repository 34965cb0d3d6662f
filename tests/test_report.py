"""The report of a run of random numbers: its tables against the metrics, its page by itself."""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
from functools import reduce
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import PARAMS, ROOT, tiny
from PIL import Image

from genprior.networks import PriorNetwork
from pipeline import page, pictures, tables
from pipeline.files import write_array, write_csv, write_metrics
from pipeline.params import PRIORS as NAMES
from pipeline.params import Params
from pipeline.run import run
from pipeline.statements import STATEMENTS
from stages import live, report

SUFFIXES = {"range": "", "relaxed": ", relaxed", "mean": ", posterior mean"}
RESTORED = ["mse", "psnr_db", "relative_error", "residual_over_sigma"]
CLASSICAL = ["minimum_norm", "lasso_dct", "gaussian", "mixture_2", "mixture_3", "epll", "tikhonov", "tv"]
WHOLE, PHOTOGRAPHED = ["vae", "mixture", "tv"], ["denoise_20", "double"]
SAMPLES = ["coverage", "recall", "squared_mmd", "detail_db"]
TRAINED = ["test_kl", "active_units", "used_units", "test_psnr_db"]
POSTERIOR = ["coverage_50", "coverage_90", "in_range_coverage_50", "in_range_coverage_90"]


def metrics_keys(problems: list[str], counts: list[str], weights: list[str]) -> list[tuple[str, ...]]:
    """The keys of all metrics that the page shows."""
    every = [*problems, *counts]
    return [
        *product(NAMES, SUFFIXES, every, RESTORED),
        *product([*NAMES, "pca"], ["range"], ["representation"], RESTORED),
        *product(NAMES, ["range"], weights, ["psnr_db"]),
        *product(CLASSICAL, ["none"], every, RESTORED),
        *product(["pca"], ["range"], every, RESTORED),
        *product(["discriminative"], ["none"], problems, RESTORED),
        *product(WHOLE, ["whole"], PHOTOGRAPHED, ["psnr_db", "ssim", "psnr_db_camera"]),
        *product(WHOLE[:1], ["whole"], PHOTOGRAPHED, ["coverage_90"]),
        *product(
            NAMES, ["relaxed"], ["likelihood"], ["log_likelihood", "monte_carlo_error", "elbo", "importance_bound"]
        ),
        *product(NAMES, ["range"], problems, ["added_mse", "solver_gap", "in_range_psnr_db"]),
        *product(NAMES, ["relaxed"], problems, POSTERIOR),
        *product(["sample"], NAMES, ["range", "relaxed"], [*SAMPLES, "distance_to_train"]),
        *product(["sample"], NAMES, ["relaxed"], ["active_codes", "kl_nats"]),
        *product(["sample"], ["floor"], SAMPLES),
        *product(["sample"], ["ae_raw"], ["range"], [*SAMPLES, "distance_to_train"]),
        *product(
            ["train_ae", "train_vae", "train_gan"], ["residual_log_likelihood", "residual_log_likelihood_constant"]
        ),
        *product(["train_vae", "train_svae"], [*TRAINED, "test_elbo"]),
        *product(["train_vae"], ["chapter"], [*TRAINED, "sigma"]),
        *[("train_vae", "sigma"), ("train_ae", "test_psnr_db")],
        *product(["patches"], ["train", "test"], ["patches", "photographs"]),
        *[("chapter", "vae", "epoch_001", "kl"), ("chapter", "elbo", "kl")],
        *product(["chapter"], ["reparameterisation"], ["draw_1"], ["z1", "z2"]),
        *product(["chapter"], ["gan_1d"], ["step_050", "step_100", "step_200"], ["fake_mean"]),
    ]


def write_run(folder: Path, params: Params) -> None:
    """Everything that the stage `report` reads, of random numbers; metrics/ has a file for each first key."""
    draw, sides = np.random.default_rng(0), params.extract_patches.patch_size
    problems, x = list(params.problems), params.evaluate.patches
    files = {}
    for *keys, measure in metrics_keys(problems, list(params.crossover_problems()), list(params.weighed())):
        reduce(lambda block, key: block.setdefault(key, {}), keys, files)[measure] = draw.normal(scale=9)
    files["train_vae"] |= {"sigma": 0.06}  # above 0, as every σ
    files["train_vae"]["chapter"] |= {"sigma": 0.6}
    for name, values in files.items():
        write_metrics(folder / f"metrics/{name}.json", {name: values})

    def array(name: str, *shape: int) -> None:
        write_array(folder / f"data/{name}.npy", draw.random((*shape, *sides), dtype=np.float32))

    write_array(folder / "data/patches/test.npy", draw.integers(0, 256, (30, *sides), dtype=np.uint8))
    rows = {"split": ["test"] * 3, "photograph": [*"abc"], "patches": [10] * 3}
    write_csv(folder / "data/patches/photographs.csv", pd.DataFrame(rows))
    for name in (*(f"baselines/{name}" for name in [*CLASSICAL, "pca"]), "reconstructions/discriminative"):
        array(name, len(problems), x)
    array("samples/real", 20)
    array("samples/ae_raw_range", 20)
    for name in NAMES:
        array(f"reconstructions/{name}_posterior", len(problems), 2, 6)
        for constraint in SUFFIXES:
            array(f"reconstructions/{name}_{constraint}", len(problems) + (constraint == "range"), x)
            array(f"samples/{name}_{constraint}", 20)
            for kind in ("interpolation", "traversal", "neighbours"):
                grey = draw.integers(0, 256, (40, 40), dtype=np.uint8)
                Image.fromarray(grey).save(folder / f"data/samples/{name}_{constraint}_{kind}.png")
    for problem, name in product(PHOTOGRAPHED, ["truth", "measured", "std", *WHOLE]):
        write_array(folder / f"data/photographs/{problem}_{name}.npy", draw.integers(0, 256, (40, 48), dtype=np.uint8))
    curves = {}
    for name, columns in (curve for panels in report.CURVES.values() for curve in panels.values()):
        curves[name] = curves.get(name, {"step": range(8)}) | {column: draw.random(8) for column in columns}
    columns = {"test_kl": draw.random(3), "used_units": range(3)}
    curves["vae_collapse"] = {"sigma": [0.03, 0.3, 3.0], **columns}
    for name, columns in curves.items():
        write_csv(folder / f"data/curves/{name}.csv", pd.DataFrame(columns))
    network = PriorNetwork(sides, params.network.latent_size, [4], "silu", "dct", "variational", flow=True)
    packed = live.packed(network, torch.rand(9, 1, *sides))
    text = {"patches": [[128] * 128] * 9, "priors": dict.fromkeys(NAMES, packed)}
    (folder / "data/live.json").write_text(json.dumps(text))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder in which the stage `report` has run, with no data but what it reads."""
    folder = tmp_path_factory.mktemp("run")
    values = tiny(yaml.safe_load(PARAMS.read_text()))
    values["extract_patches"] |= {"patch_size": [8, 16], "test": ["imgs/<b>&amp;.png"]}
    values["problems"] = {name: values["problems"][name] for name in ("denoise", "super_resolution", "cs_50")}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    write_run(folder, Params.model_validate(values))
    with contextlib.chdir(folder):
        report.main()
    return folder


VOID = {"meta", "link", "img", "input"}


class Reader(HTMLParser):
    """Tables by the id of their caption, and every element's attributes; an AssertionError where tags do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.tables, self.open, self.cell = [], {}, [], None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attributes["aria-labelledby"].removeprefix("table-"), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "strong":
            self.rows[-1][-1] += "*"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"th", "td"} & {*self.open}:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def text(ran):
    return (ran / "data/report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def read(text):
    return Reader(text)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not there")
def test_the_widgets_live_in_a_browser_without_a_complaint_or_a_request(ran, tmp_path):
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    options = ["--headless", "--no-sandbox", f"--user-data-dir={tmp_path}", *(f"--disable-{name}" for name in quiet)]
    asked = ["--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom", (ran / "data/report.html").as_uri()]
    done = subprocess.run(["chromium", *options, *asked], text=True, capture_output=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert re.search(r'<p class="live-failed" hidden', done.stdout)
    for name in ("codes", "inverse", "elbo", "gan"):
        assert f'<div class="live" id="try-{name}">' in done.stdout
    assert "spread 0." in done.stdout or "spread 1." in done.stdout
    assert not re.search(r'(src|href)="(?!data:|#|https://)', done.stdout)


def test_psnr_is_that_of_the_metrics_and_the_best_is_marked(ran, read):
    head, *rows = read.tables["psnr"]
    shown = {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}
    index = (ran / "data/report/README.md").read_text()
    for prior, name in NAMES.items():
        values = json.loads((ran / f"metrics/{prior}.json").read_text())[prior]
        for constraint, suffix in SUFFIXES.items():
            for problem, measures in values[constraint].items():
                if not problem.startswith(("m_", "weight_")) and problem != "likelihood":
                    cell = shown[name + suffix, problem.replace("_", " ")]
                    assert cell.strip("*").replace("−", "-") == f"{measures['psnr_db']:.2f}"
    for problem in head[1:]:
        values = {m: float(c.strip("*").replace("−", "-")) for (m, p), c in shown.items() if p == problem and c}
        best = {m for m, value in values.items() if value == max(values.values())}
        assert {m for (m, p), cell in shown.items() if p == problem and cell.startswith("*")} == best
    # the index has the same cells, those of posterior means and classical methods first
    line = "| VAE | " + " | ".join(re.sub(r"^\*(.*)", r"**\1**", shown["VAE", p]) for p in head[1:]) + " |"
    short, *folded = index.split("<details>")
    assert line in folded[0]
    assert re.findall(r"^\| (?:VAE|PCA|linear|minimum).*?(?= \|)", short, re.MULTILINE) == [
        "| VAE, posterior mean",
        "| linear Gaussian",
    ]
    assert len(folded) == index.count("</summary>\n\n") == index.count("\n\n</details>")  # as GitHub wants it


def test_every_table_is_whole_and_every_parameter_stands_as_text(ran, text, read):
    assert len(read.tables) > 15
    for name, rows in read.tables.items():
        assert len(rows) > (1 if name == "whole_coverage_90" else 2)  # of one prior alone
        assert len({len(row) for row in rows}) == 1
        assert all(row[0] and (any(row[1:]) or name == "fewer") for row in rows)
    part, values = text.split('id="run"')[1], yaml.safe_load((ran / "params.yaml").read_text())
    assert "imgs/&lt;b&gt;&amp;amp;.png" in part
    for key, value in page.leaves({name: values[name] for name in ("seed", "train_vae", "problems")}).items():
        assert f"<dt>{key.partition('.')[2] or key}</dt><dd>{value}</dd>" in part


def test_the_chapters_statements_have_the_runs_numbers(ran, read):
    _, *rows = read.tables["statements"]
    assert len(rows) == len(STATEMENTS)
    index = (ran / "data/report/README.md").read_text()
    for says, shows, command in rows:
        assert not re.search(r"[{}<>\[\]]|PRIOR|NAME|PROBLEM|FEWEST|MOST", shows)
        assert f"| {says} | ".replace("z | x", "z \\| x") in index
        assert f" | `{command}` |" in index
    values = {name: json.loads((ran / f"metrics/{name}.json").read_text())[name] for name in ("sample", "train_vae")}
    shown = {says: shows.replace("−", "-") for says, shows, _ in rows}
    smooth = shown["VAEs are often smooth, GANs are sharp."]
    assert f"VAE {values['sample']['vae']['range']['detail_db']:.2f}, GAN" in smooth
    (exercise,) = [shows for says, shows in shown.items() if says.startswith("Exercise 1")]
    assert f"{values['train_vae']['chapter']['test_kl']:.2f} and " in exercise
    (exercise,) = [shows for says, shows in shown.items() if says.startswith("Exercise 3")]
    last = pd.read_csv(ran / "data/curves/gan_chapter_collapse.csv").iloc[-1]
    assert f"minimax {last.coverage:.3f} and {last.spread:.3f}" in exercise


def test_the_page_needs_nothing_else(ran, text, read):
    said = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)  # where any four letters may stand by chance
    assert "http" not in said
    assert not re.search(r"url\(|@import", said)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    shown = set()
    for tag, attributes in read.elements:
        for name in ("aria-controls", "aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
        for name in ("href", "src"):
            target = attributes.get(name, "data:,")
            assert target.startswith("data:") or target.removeprefix("#") in ids
        if tag == "img":
            shown.add(base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True))
            with Image.open(io.BytesIO(list(shown)[-1])) as opened:
                opened.load()
            assert attributes["alt"]
    # psnr.png is the one that the page draws itself
    files = {f.read_bytes() for f in ran.glob("data/report/*.png") if f.name != "psnr.png"}
    assert files <= shown
    assert len(shown - files) == 2 * len(PHOTOGRAPHED)  # what the slider compares
    index = (ran / "data/report/README.md").read_text()
    assert set(re.findall(r"\]\((\S+?)\)", index)) == {file.name for file in ran.glob("data/report/*")} - {"README.md"}


@pytest.mark.parametrize(
    ("file", "harm", "named"),
    [
        ("metrics/vae.json", None, "nothing of vae, range: "),
        ("metrics/train_ae.json", None, "nothing of train_ae.test_psnr_db, which the report shows"),
        ("data/curves/vae_collapse.csv", b"step,test_kl\n", "data/curves/vae_collapse.csv: not a curve of test_kl"),
        ("metrics/sample.json", b'{"sample": {"vae": "x"}}', "metrics/sample.json: sample.vae holds str"),
        ("data/curves/gan_collapse.csv", b"step,coverage\n", "data/curves/gan_collapse.csv: not a curve of coverage"),
        ("data/reconstructions/vae_mean.npy", "(1, 2)", "data/reconstructions/vae_mean.npy: (1, 2); ("),
    ],
)
def test_a_missing_or_damaged_file_is_named_in_one_line(file, harm, named, ran, tmp_path, monkeypatch):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if harm is None:
        Path(file).unlink()
    elif harm == "(1, 2)":
        write_array(file, np.zeros((1, 2)))
    else:
        Path(file).write_bytes(harm)
    Path("data/report.html").write_text("old")
    with pytest.raises(SystemExit) as stopped:
        run(report.main)
    assert stopped.value.code.startswith("error: ")
    assert named in stopped.value.code
    assert "\n" not in stopped.value.code
    assert Path("data/report.html").read_text() == "old"


# The long table, its pivots and the registry


def test_metrics_of_the_last_run_are_in_the_registry():
    table = tables.read_table(ROOT / "metrics")
    assert {name for name in table.measure if tables.measure_of(name) is None} == set()
    for measure in tables.MEASURES.values():
        assert re.fullmatch(r"(higher|lower|→ \S+|)", measure.better), measure
        assert measure.own_noise(1.0) >= 0


def test_table_holds_each_number_once_in_its_place(ran):
    table = tables.read_table(ran / "metrics").set_index(["method", "problem", "constraint", "measure"]).value
    assert table.index.is_unique
    values = {
        name: json.loads((ran / f"metrics/{name}.json").read_text())[name] for name in ("vae", "sample", "chapter")
    }
    assert table["vae", "denoise", "mean", "mse"] == values["vae"]["mean"]["denoise"]["mse"]
    assert table["floor", "samples", "none", "recall"] == values["sample"]["floor"]["recall"]
    assert table["gan", "samples", "range", "recall"] == values["sample"]["gan"]["range"]["recall"]
    assert table["vae", "chapter", "epoch_001", "kl"] == values["chapter"]["vae"]["epoch_001"]["kl"]
    assert ("vae", "training", "chapter", "test_kl") in table.index
    assert len(table) == len(
        metrics_keys(["denoise", "super_resolution", "cs_50"], ["m_3", "m_6"], ["weight_1", "weight_10"])
    )


def test_fewer_measurements_is_the_shift_between_curves():
    counts = np.array([5, 10, 20, 40, 80, 160])
    psnr = lambda m: 10 + 4 * np.log2(m)  # noqa: E731
    curves = pd.DataFrame([psnr(counts), psnr(4 * counts)], index=["lasso", "prior"], columns=counts)
    ratio = tables.fewer_measurements(curves, "lasso")
    assert list(ratio.index) == ["prior"]
    np.testing.assert_allclose(ratio.loc["prior", [5, 10, 20, 40]], 4)
    assert ratio.loc["prior", [80, 160]].isna().all()  # Lasso never gets there


def test_pictures_show_patches_from_median_contrast_to_the_highest():
    contrasts = np.array([3, 9, 0, 5, 7, 1, 8, 2, 6, 4])
    x = contrasts[:, None, None] * np.array([[0.0, 0.01], [0.02, 0.03]])
    assert contrasts[pictures.telling(x, 3)].tolist() == [5, 7, 9]
    assert contrasts[pictures.telling(x, 20)].tolist() == list(range(10))
