"""One table of all numbers, the pictures that a reader wants, and the page that holds them together."""

from pathlib import Path

import numpy as np
import pandas as pd

from genprior.images import psnr_db, tile
from genprior.photographs import read_photograph
from pipeline import page, pictures, tables
from pipeline.files import read_array, write_csv, write_text
from pipeline.params import Params, load_params
from pipeline.patches import draw_patches, load_patches
from pipeline.photographs import comparison
from pipeline.run import run
from pipeline.tables import NAMES, PRIORS, crossover, label, wide, with_prior

TARGET = Path("data/report")
CONSTRAINTS = ("range", "relaxed", "mean")
WALKED = ("ae_range", "vae_range", "gan_range", "svae_relaxed")  # whose images are shown from code to code
COLLAPSE = ["coverage", "recall", "spread"]
CURVES = {  # picture: panel: a file of data/curves/, and its columns
    "curves": {
        "autoencoder: mean squared error": ("ae", ["train_mse", "validation_mse"]),
        "VAE: ELBO, nats per pixel": ("vae", ["train_elbo", "validation_elbo"]),
        "VAE: KL, nats per patch": ("vae", ["train_kl", "validation_kl"]),
        "structured VAE: ELBO, nats per pixel": ("svae", ["train_elbo", "validation_elbo"]),
        "GAN: losses": ("gan", ["d_loss", "g_loss"]),
    },
    "collapse": {"GAN, default": ("gan_collapse", COLLAPSE), "GAN, the chapter's": ("gan_chapter_collapse", COLLAPSE)},
}


def read_estimates(table: pd.DataFrame, problems: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """Methods' estimates (P, N, h, w) of patches x by their titles; of mixtures, that of most components."""
    files = {label(name): f"baselines/{name}" for name in ("minimum_norm", "lasso_dct", "pca", "gaussian")}
    counts = [int(name.removeprefix("mixture_")) for name in set(table.method) if name.startswith("mixture_")]
    files |= {
        label(name): f"baselines/{name}" for count in sorted(counts)[-1:] for name in (f"mixture_{count}", "epll")
    }
    files[NAMES["discriminative"]] = "reconstructions/discriminative"
    files |= {label(name, c): f"reconstructions/{name}_{c}" for c in CONSTRAINTS for name in PRIORS}
    # Under `range` the representation of the truth comes before the problems.
    ahead = {title: int(file.endswith("_range")) for title, file in files.items()}
    read = {title: tables.read_images(file, len(problems) + ahead[title], *x.shape) for title, file in files.items()}
    return {title: array[ahead[title] :] for title, array in read.items()}


def draw_reconstructions(
    estimates: dict[str, np.ndarray], posteriors: dict[str, np.ndarray], x: np.ndarray, params: Params
) -> None:
    """For each problem every method's estimates below the truth; for each prior its posterior of one problem."""
    problems, shown = list(params.problems), pictures.telling(x, params.report.pictures)
    for i, problem in enumerate(problems):
        rows = {"truth": x[shown]} | {title: array[i, shown] for title, array in estimates.items()}
        pictures.reconstruction_figure(TARGET / f"reconstructions_{problem}.png", rows, problem)
    at, blind = problems.index(params.report.posterior), NAMES["minimum_norm"]
    for name, array in posteriors.items():
        shown = pictures.telling(x[: array.shape[1]], params.report.pictures)
        drawn = array[at, shown]
        rows = {"truth": x[shown], blind: estimates[blind][at, shown]}
        rows |= {f"sample {i + 1}": drawn[:, i] for i in range(4)}
        rows |= {"posterior mean": drawn[:, 4], "standard deviation × 5": 5 * drawn[:, 5]}
        pictures.reconstruction_figure(TARGET / f"posterior_{name}.png", rows, f"{NAMES[name]}, {problems[at]}")


def draw_errors(table: pd.DataFrame, x: np.ndarray, params: Params) -> None:
    """PSNR of every problem as bars over the linear Gaussian's, and against the number of measurements."""
    compared, gaussian = with_prior(table), NAMES["gaussian"]
    bars = wide(compared[~compared.constraint.isin(["relaxed", "range"])], "psnr_db", list(params.problems)).T
    over = bars.sub(bars.pop(gaussian), axis=0)
    pictures.bar_figure(TARGET / "psnr.png", over, f"PSNR over the {gaussian}'s [dB]")
    weighed = params.weighed()
    swept = wide(compared[compared.constraint == "range"], "psnr_db", list(weighed)).rename(columns=weighed)
    title = f"confined to a range: {params.latent_weights.problem.replace('_', ' ')}"
    pictures.sweep_figure(TARGET / "latent_weight.png", swept, title, "λ / σ²", "PSNR [dB]")
    curves, few = crossover(compared, params.crossover.measurements), x[: params.crossover.patches]
    best = {name: read_array(f"data/reconstructions/{name}_range.npy")[0, : len(few)] for name in PRIORS}
    floors = {NAMES[name]: psnr_db(np.square(images - few).mean()) for name, images in best.items()}
    ranges = [label(name, "range") for name in (*PRIORS, "pca")]
    others, beside = curves.drop(index=ranges), [gaussian, NAMES["lasso_dct"]]
    pictures.crossover_figure(TARGET / "crossover.png", curves.loc[ranges], others, beside, floors)


def draw_photographs(table: pd.DataFrame, params: Params) -> dict[str, list[np.ndarray]]:
    """The first held-out photograph by all methods, a picture for each problem; what was measured, and the first's."""
    compared = {}
    for problem in params.restore.problems:
        of_problem = table[(table.constraint == "whole") & (table.problem == problem)]
        titles = {"truth": "truth", "measured": "measured"} | {m: label(m) for m in of_problem.method.unique()}
        titles["std"] = f"{label(params.restore.priors[0])}: standard deviation × 5"
        panels = {title: tables.read_images(f"photographs/{problem}_{m}", None, None) for m, title in titles.items()}
        compared[problem] = [panels["measured"], panels[label(params.restore.priors[0])]]
        shown = {title: image / 255 for title, image in panels.items()}
        pictures.panel_figure(TARGET / f"photograph_{problem}.png", shown, -(-len(shown) // 2))
    return compared


def main() -> None:
    params = load_params("params.yaml")
    problems, table = list(params.problems), tables.read_table()
    tables.check_table(table, params)
    x = draw_patches(load_patches("data/patches/test.npy", "cpu"), params.evaluate.patches, params.seed)
    x = x.squeeze(1).numpy()
    drawn = table.loc[(table.problem == "samples") & (table.method != "floor"), ["method", "constraint"]]
    files = {"real patches": "real"} | {label(m, c): f"{m}_{c}" for m, c in drawn.drop_duplicates().values}
    samples = {title: tables.read_images(f"samples/{file}", None, *x.shape[1:]) for title, file in files.items()}
    curves = {
        name: {title: (tables.read_curve(*curve), curve[1]) for title, curve in panels.items()}
        for name, panels in CURVES.items()
    }
    swept = tables.read_curve("vae_collapse", ["test_kl", "used_units"], against="sigma")
    own, chapters = (tables.value(table, f"train_vae.{key}") for key in ("sigma", "chapter.sigma"))
    estimates = read_estimates(table, problems, x)
    shape = (len(problems), None, 6, *x.shape[1:])  # four samples, their mean, their standard deviation
    posteriors = {name: tables.read_images(f"reconstructions/{name}_posterior", *shape) for name in PRIORS}

    pictures.panel_figure(TARGET / "samples.png", {title: tile(grid[:100], 10) for title, grid in samples.items()}, 3)
    for kind in ("interpolation", "traversal", "neighbours"):
        panels = {label(*n.split("_")): read_photograph(f"data/samples/{n}_{kind}.png") / 255 for n in WALKED}
        pictures.panel_figure(TARGET / f"{kind}.png", panels, len(panels))
    draw_reconstructions(estimates, posteriors, x, params)
    for name, panels in curves.items():
        pictures.curve_figure(TARGET / f"{name}.png", panels, shared=name != "curves")
    pictures.fixed_noise_figure(TARGET / "posterior_collapse.png", swept, own, chapters)
    draw_errors(table, x, params)
    write_csv(TARGET / "table.csv", table)
    paired, compared = comparison(x, estimates, problems, params.seed), draw_photographs(table, params)
    live = Path("data/live.json").read_text(encoding="utf-8")
    for file, template in ((TARGET / "README.md", "index.md.j2"), ("data/report.html", "page.html.j2")):
        write_text(file, page.render(template, table, params, TARGET, paired, compared, live))


if __name__ == "__main__":
    run(main)
