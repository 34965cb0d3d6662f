"""One table of all numbers, the pictures that a reader wants, and the page that holds them together."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from genprior.files import InputError
from genprior.images import psnr_db, read_photograph, tile
from pipeline.files import read_array, write_csv, write_text
from pipeline.params import Params, load_params
from pipeline.patches import draw_patches, load_patches
from pipeline.run import run

TARGET = Path("data/report")
PRIORS = ("ae", "vae", "gan")
WALKED = ("ae_range", "vae_range", "vae_relaxed", "gan_range")  # whose images are shown from code to code
CONSTRAINTS = ("none", "range", "relaxed", "mean")  # in the order of the tables
NAMES = {
    "ae": "autoencoder",
    "ae_raw": "autoencoder, raw N(0, I) codes",
    "vae": "VAE",
    "gan": "GAN",
    "pca": "PCA, same k",
    "gaussian": "linear Gaussian",
    "tv": "total variation",
    "lasso_dct": "Lasso in the DCT",
    "discriminative": "network for this problem",
    "tikhonov": "Tikhonov",
    "minimum_norm": "minimum norm",
    "floor": "other real patches",
}


class Metrics(dict):
    """The numbers of one file of metrics/ by their keys, as in found["vae", "range", "blur", "mse"].

    Raises InputError where the file is missing or damaged, or lacks a key that is asked for.
    """

    def __init__(self, name: str):
        self.path = f"metrics/{name}.json"
        try:
            values = json.loads(Path(self.path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{self.path}: not readable metrics: {error}") from None
        super().__init__(self._leaves(values, ()))

    def _leaves(self, value: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
        if isinstance(value, dict) and len(keys) < 4:
            for key, inner in value.items():
                yield from self._leaves(inner, (*keys, key))
        elif isinstance(value, int | float) and keys:
            yield keys, value
        else:
            raise InputError(f"{self.path}: {'.'.join(keys)} holds {type(value).__name__}; a number would be right")

    def __missing__(self, keys: tuple[str, ...]) -> None:
        raise InputError(f"{self.path}: has no {'.'.join(keys)}; its stage would have to run anew")

    def rows(self) -> Iterator[tuple[str, str, str, str, float]]:
        """Numbers under method, constraint, problem and measure as rows of the long table."""
        methods = list(dict.fromkeys(keys[0] for keys in self))
        for keys in self:
            if len(keys) != 4 or keys[1] not in CONSTRAINTS:
                raise InputError(f"{self.path}: {'.'.join(keys)}: method.constraint.problem.measure would be right")
        for keys in sorted(self, key=lambda keys: (methods.index(keys[0]), CONSTRAINTS.index(keys[1]))):
            method, constraint, problem, measure = keys
            yield method, problem, constraint, measure, self[keys]


def collect_table() -> pd.DataFrame:
    """Restoration errors of every method and sample measures of every prior, long form."""
    found = [
        row
        for name in (*(f"evaluate_{name}" for name in PRIORS), "baselines", "train_discriminative")
        for row in Metrics(name).rows()
    ]
    samples = Metrics("sample")
    # sample.floor.measure first, then sample.method.constraint.measure
    for keys in sorted(samples, key=len):
        method, constraint = keys[1], keys[2] if len(keys) == 4 else "none"
        found.append((method, "samples", constraint, keys[-1], samples[keys]))
    return pd.DataFrame(found, columns=["method", "problem", "constraint", "measure", "value"])


def check_table(table: pd.DataFrame, params: Params) -> None:
    """InputError where the table lacks a restoration that the page shows."""
    known = set(zip(table.method, table.constraint, table.problem, strict=True))
    needed = [(name, constraint) for name in PRIORS for constraint in ("range", "relaxed", "mean")]
    needed += [("pca", "range"), *((name, "none") for name in ("gaussian", "lasso_dct", "minimum_norm"))]
    for method, constraint in needed:
        for problem in [*params.problems, *params.crossover_problems()]:
            if (method, constraint, problem) not in known:
                raise InputError(
                    f"metrics/: nothing of {method}, {constraint} on {problem}; its stage would have to run anew"
                )


def read_curve(name: str, columns: list[str]) -> pd.DataFrame:
    """A training curve with these columns, all numbers; InputError where the file is missing or holds anything else."""
    path = f"data/curves/{name}.csv"
    try:
        curve = pd.read_csv(path)
        return curve[["step", *columns]].astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a curve of {', '.join(columns)}: {' '.join(str(error).split())}") from None


def read_estimates(file: str, problems: list[str], x: np.ndarray) -> np.ndarray:
    """Estimates of patches x (P, h, w) for each problem, those of the representation before them dropped."""
    array = read_array(file)
    # An array under `range` begins with the representation of the truth, which the others lack.
    if array.ndim != 4 or len(array) - len(problems) not in (0, 1) or array.shape[1:] != x.shape:
        raise InputError(f"{file}: {array.shape}; {(len(problems), *x.shape)} would be right")
    return array[len(array) - len(problems) :]


def labelled(table: pd.DataFrame, columns: str, order: list[str], title: str) -> pd.DataFrame:
    """Values of the long table, a line for each method and constraint, `order` of the named column across."""
    chosen = table[table[columns].isin(order)].copy()
    chosen[title] = [label(m, c) for m, c in zip(chosen.method, chosen.constraint, strict=True)]
    lines = list(dict.fromkeys(chosen[title]))
    found = chosen.pivot(index=title, columns=columns, values="value").reindex(lines)
    return found[[name for name in order if name in found]]


def wide(table: pd.DataFrame, measure: str, problems: list[str], title: str = "method") -> pd.DataFrame:
    """One measure as methods × problems, a prior beyond its range marked so."""
    return labelled(table[table.measure == measure], "problem", problems, title)


def by_method(table: pd.DataFrame, problem: str, measures: list[str]) -> pd.DataFrame:
    """The named measures of one problem, a line for each method and constraint."""
    return labelled(table[table.problem == problem], "measure", measures, problem)


def label(method: str, constraint: str) -> str:
    """A method's name for readers."""
    name = NAMES.get(method) or f"{method.removeprefix('mixture_')} Gaussians"
    return name + {"relaxed": ", relaxed", "mean": ", posterior mean"}.get(constraint, "")


def markdown(table: pd.DataFrame, digits: int) -> str:
    """A table as Markdown, the index first."""
    lines = ["| " + " | ".join([table.index.name or "", *map(str, table.columns)]) + " |"]
    lines.append("|" + " --- |" * (len(table.columns) + 1))
    for name, values in table.iterrows():
        cells = ["" if np.isnan(value) else f"{value:.{digits}f}" for value in values]
        lines.append("| " + " | ".join([str(name), *cells]) + " |")
    return "\n".join(lines)


def read_samples(name: str) -> np.ndarray:
    """Samples of a prior, or real patches: (N, h, w)."""
    file = f"data/samples/{name}.npy"
    array = read_array(file)
    if array.ndim != 3 or array.size == 0:
        raise InputError(f"{file}: {array.shape}; (N, height, width) would be right")
    return array


def read_reconstructions(table: pd.DataFrame, problems: list[str], x: np.ndarray) -> dict[str, np.ndarray]:
    """What the pictures show: methods' estimates of patches x (P, h, w) for each problem, by their titles.

    Of the mixtures in the table, the one of most components.
    """
    counts = [int(name.removeprefix("mixture_")) for name in set(table.method) if name.startswith("mixture_")]
    mixture = [f"mixture_{max(counts)}"] if counts else []
    classical = ("minimum_norm", "lasso_dct", "pca", "gaussian", *mixture)
    files = {label(name, ""): f"baselines/{name}" for name in classical}
    files[NAMES["discriminative"]] = "reconstructions/discriminative"
    files |= {label(name, c): f"reconstructions/{name}_{c}" for c in ("range", "relaxed", "mean") for name in PRIORS}
    return {title: read_estimates(f"data/{file}.npy", problems, x) for title, file in files.items()}


def reconstructions(estimates: dict[str, np.ndarray], problems: list[str], x: np.ndarray, count: int) -> list[str]:
    """A picture for each problem: the truth, and each method's estimates below; returns the files' names."""
    from pipeline import pictures  # Matplotlib takes a third of a second: not at the stage's start

    written = []
    for i, problem in enumerate(problems):
        found = {"truth": x[:count]} | {title: array[i][:count] for title, array in estimates.items()}
        written.append(f"reconstructions_{problem}.png")
        pictures.reconstruction_figure(TARGET / written[-1], found, problem)
    return written


def read_posteriors(problems: list[str], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """What each prior's posterior shows, its four samples, mean and standard deviation: (problems, N, 6, h, w)."""
    found = {}
    for name in PRIORS:
        file = f"data/reconstructions/{name}_posterior.npy"
        found[name] = read_array(file)
        if found[name].ndim != 5 or len(found[name]) != len(problems) or found[name].shape[2:] != (6, *shape):
            raise InputError(f"{file}: {found[name].shape}; {(len(problems), 'N', 6, *shape)} would be right")
    return found


def posterior_pictures(
    posteriors: dict[str, np.ndarray],
    measured: np.ndarray,
    problems: list[str],
    problem: str,
    x: np.ndarray,
    count: int,
) -> list[str]:
    """For each prior: truth, minimum norm, four posterior samples, their mean and standard deviation."""
    from pipeline import pictures

    written, i = [], problems.index(problem)
    for name in PRIORS:
        drawn = posteriors[name][i][:count]
        found = {"truth": x[: len(drawn)], NAMES["minimum_norm"]: measured[i][: len(drawn)]}
        found |= {f"sample {i + 1}": drawn[:, i] for i in range(4)}
        found |= {"posterior mean": drawn[:, 4], "standard deviation × 5": 5 * drawn[:, 5]}
        written.append(f"posterior_{name}.png")
        pictures.reconstruction_figure(TARGET / written[-1], found, f"{NAMES[name]}, {problem}")
    return written


def crossover(table: pd.DataFrame, counts: list[int]) -> pd.DataFrame:
    """PSNR of compressed sensing, methods × numbers of measurements."""
    found = wide(table, "psnr_db", [f"m_{m}" for m in counts], "measurements")
    return found.set_axis([int(name.removeprefix("m_")) for name in found], axis=1)


def fewer_measurements(curves: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How many times as many measurements the reference needs for a method's PSNR, interpolated in log m.

    NaN where its whole curve lies above or below.
    """
    counts = np.log(curves.columns.to_numpy(dtype=float))
    known = np.maximum.accumulate(curves.loc[reference].to_numpy())
    needed = curves.apply(lambda row: np.interp(row, known, counts, left=np.nan, right=np.nan), axis=1, raw=True)
    ratio = np.exp(needed - counts)
    return ratio.drop(index=reference).rename_axis("times fewer")


def weightings(vae: Metrics) -> pd.DataFrame:
    """What the VAE's default weighting and the chapter's make of held-out patches, of metrics/train_vae.json."""
    measured = {"KL [nats]": "test_kl", "active coordinates": "active_units", "PSNR of G(E(x)) [dB]": "test_psnr_db"}
    blocks = {"default": (), "the chapter's": ("chapter",)}
    found = {
        title: {column: vae["train_vae", *block, key] for column, key in measured.items()}
        for title, block in blocks.items()
    }
    return pd.DataFrame(found).T.rename_axis("weighting")


def trained(params: Params) -> list[str]:
    """What training itself measured on held-out patches: residual models, and the chapter's weighting of the VAE."""
    residual = pd.DataFrame(
        {
            NAMES[name]: {
                "v(z)": found[f"train_{name}", "residual_log_likelihood"],
                "one full covariance": found[f"train_{name}", "residual_log_likelihood_constant"],
            }
            for name in ("ae", "gan")
            for found in [Metrics(f"train_{name}")]
        }
    ).T.rename_axis("residuals")
    vae = Metrics("train_vae")
    sigma = vae["train_vae", "chapter", "sigma"]
    return [
        "Posterior collapse: the chapter's weighting, mean squared error + 0.05 · mean KL, is the ELBO of a decoder "
        f"with σ = {sigma:.2f} here (σ² = n β / 2k; 0.89 for its cell's k = 8), images in [0, 1]. To "
        "such noise little that a code could say is worth its nats: coordinates of the code, of "
        f"k = {params.network.latent_size}, fall back onto the prior. With v(z) a code tells which contrasts and "
        "textures to expect, and may leave the mean to y: its G(E(x)) alone is then no reconstruction:",
        markdown(weightings(vae), 2),
        "![KL of the VAE and of the chapter's weighting against steps](posterior_collapse.png)",
        "Residual models: log-likelihood of held-out patches' residuals x - G(T(E(x))) in nats per pixel, E their "
        "encoder's mean, under v(z) and under one full covariance for all patches:",
        markdown(residual, 3),
    ]


def write_page(
    table: pd.DataFrame,
    curves: pd.DataFrame,
    params: Params,
    reconstructed: list[str],
    posteriors: list[str],
    training: list[str],
) -> None:
    """The Markdown page."""
    problems = list(params.problems)
    n = math.prod(params.extract_patches.patch_size)

    def of_priors(measure: str, digits: int, constraint: str) -> str:
        chosen = table[table.method.isin(PRIORS) & (table.constraint == constraint)]
        return markdown(wide(chosen, measure, problems), digits)

    parts = [
        "# Report",
        f"Written by `python -m stages.report` from the pipeline's numbers (seed {params.seed}). "
        "The long table with everything is [table.csv](table.csv).",
        "## Samples",
        "![Samples of every prior beside real patches](samples.png)",
        "Each set against real training patches; the first line is what another set of real patches gets. "
        "It is the aim: precision or density above it, with low recall, means that samples crowd where patches are "
        "dense; coverage has its standard error. A prior's plain line is its range, G(z) alone; `relaxed` draws from "
        "the residual model too: noise of variance v(z), for autoencoder and GAN at the codes where photographs lie.",
        markdown(by_method(table, "samples", ["coverage", "coverage_error", "density", "precision", "recall"]), 4),
        "Squared MMD (0 on average for two sets of one distribution) with the p-value of a permutation test, sliced "
        "Wasserstein distance, power above half of all spatial frequencies against real patches' in dB (0: as sharp; "
        "below: smooth; above: noisy), and the median distance in shape to the nearest training patch over that of "
        "patches of the test photographs (near 1: as new as those; near 0: memorised; smooth ones lie close together).",
        markdown(
            by_method(
                table,
                "samples",
                ["squared_mmd", "mmd_p_value", "sliced_wasserstein", "detail_db", "distance_to_train"],
            ),
            4,
        ),
        "How many of the code's k coordinates a variational encoder uses for held-out patches (variance of its mean "
        "above 0.01; none: posterior collapse), and its KL from N(0, I), on as many held-out patches as there are "
        "samples; for the GAN the encoder of its residual model:",
        markdown(by_method(table, "samples", ["active_codes", "kl_nats"]).dropna(), 2),
        "From one random code to another along a great circle, and along the eight coordinates that move images most, "
        "each panel's own, from -2.5 to 2.5; `VAE, relaxed` adds to G(z) one draw of what its residual model says, the "
        "same for all codes:",
        "![From code to code](interpolation.png)",
        "![Along single coordinates](traversal.png)",
        "A sample of each in the first and sixth column, before its four nearest training patches:",
        "![Samples and their nearest training patches](neighbours.png)",
        "## Restoration",
        "![PSNR of posterior means and classical methods over the linear Gaussian's](psnr.png)",
        f"PSNR in dB of the mean squared error over at most {params.evaluate.patches} held-out patches. "
        "`representation` is the best G(z) for the true patch: no measurement can take a method that is confined to "
        "the range of G beyond it. `relaxed` is the prior with its residual model at its posterior's dominant mode, "
        "`posterior mean` the average over all codes.",
        markdown(wide(table, "psnr_db", ["representation", *problems], "PSNR [dB]"), 2),
        "Relative error:",
        markdown(wide(table, "relative_error", ["representation", *problems], "relative error"), 3),
        "Root mean square of K x̂ - y in units of the noise's sigma: 1 explains the measurement, more does not.",
        markdown(wide(table, "residual_over_sigma", problems, "residual / sigma"), 2),
        *(f"![{name}]({name})" for name in reconstructed),
        "## The crossover",
        "![PSNR against the number of measurements](crossover.png)",
        f"Compressed sensing with m of {n} measurements, at most {params.crossover.patches} patches, PSNR in dB, one "
        "matrix K for each m (another one may move a point at small m by 1 dB). Confined to its range, a generator can "
        "beat Lasso where measurements are few, and never its representation error, dotted. "
        "Right, dashed: a prior at its posterior's dominant mode; beside it its posterior mean.",
        markdown(curves, 2),
        "How many times as many measurements Lasso needs for the same error; empty where it has no such error within "
        "these m:",
        markdown(fewer_measurements(curves, NAMES["lasso_dct"]), 2),
        "## Where the errors come from",
        "Confined to the range, mean squared error × 1000 on top of the representation's: what measurement, noise and "
        "the latent prior add.",
        markdown(1000 * wide(table, "added_mse", problems, "added error × 1000"), 3),
        "What the deepest mode found leaves, in nats, against the best of a far longer search with 16 starts, on "
        f"{params.evaluate.solver_patches} patches; first confined to the range, then relaxed. A relaxed restoration "
        "is taken at the mode that holds most, not at the deepest:",
        of_priors("solver_gap", 3, "range"),
        of_priors("solver_gap", 3, "relaxed"),
        "The control, PSNR in dB for truths that the prior itself drew; first from its range, then relaxed:",
        of_priors("in_range_psnr_db", 2, "range"),
        of_priors("in_range_psnr_db", 2, "relaxed"),
        "## What the priors know",
        "log p(x) of held-out patches in nats per pixel and its standard error over patches; for the learned priors "
        "the error of the Monte Carlo estimate, and the median effective sample size of the weighed draws as a "
        "share of the samples, 1 at most. That error knows nothing of modes that no draw found:",
        markdown(
            by_method(
                table, "likelihood", ["log_likelihood", "standard_error", "monte_carlo_error", "effective_share"]
            ),
            5,
        ),
        "What a variational encoder alone says of it: the ELBO, and the importance-weighted bound of "
        f"{params.evaluate.posterior_samples} draws. For the GAN it is the encoder that its residual model was fitted "
        "with. The bounds' distance to the figure above is what the encoder's Gaussian misses of the posterior:",
        markdown(by_method(table, "likelihood", ["elbo", "importance_bound", "log_likelihood"]).dropna(), 4),
        "How many pixels lie in their 90 % credible interval, on at most "
        f"{params.evaluate.posterior_patches} held-out patches (what the prior is worth) and on as many drawn from the "
        "prior (whether the sampler is right):",
        of_priors("coverage_90", 3, "relaxed"),
        of_priors("in_range_coverage_90", 3, "relaxed"),
        "The same for the 50 % interval:",
        of_priors("coverage_50", 3, "relaxed"),
        of_priors("in_range_coverage_50", 3, "relaxed"),
        *(f"![{name}]({name})" for name in posteriors),
        "## Training",
        "Where the validation photographs are smoother than those that train, their curves lie on the better side.",
        "![Training curves](curves.png)",
        "Mode collapse: how many real patches have a sample near them (coverage), how many lie in some sample's "
        "neighbourhood (recall), and the samples' standard deviation over theirs (spread), along the default game and "
        "along the chapter's own, minimax without penalties or averaging. With at most 1000 patches and as many "
        "samples; coverage reads the higher, the fewer they are, since neighbourhoods widen:",
        "![Coverage, recall and spread of a GAN's samples against steps](collapse.png)",
        *training,
    ]
    write_text(TARGET / "README.md", "\n\n".join(parts) + "\n")


def main() -> None:
    params = load_params("params.yaml")
    problems = list(params.problems)
    table = collect_table()
    check_table(table, params)
    training = trained(params)
    x = draw_patches(load_patches("data/patches/test.npy", "cpu"), params.evaluate.patches, params.seed)

    grids = {"real patches": read_samples("real")}
    grids |= {
        label(m, c): read_samples(f"{m}_{c}")
        for m, c in table[table.problem == "samples"][["method", "constraint"]].drop_duplicates().values
        if m != "floor"
    }
    x = x.squeeze(1).numpy()
    shown = {
        "ae": ["train_mse", "validation_mse"],
        "vae": ["train_elbo", "validation_elbo", "train_kl", "validation_kl"],
        "gan": ["d_loss", "g_loss", "coverage", "recall", "spread"],
    }
    curves = {name: read_curve(name, columns) for name, columns in shown.items()}
    panels = {
        "autoencoder: mean squared error": (curves["ae"], ["train_mse", "validation_mse"]),
        "VAE: ELBO, nats per pixel": (curves["vae"], ["train_elbo", "validation_elbo"]),
        "VAE: KL, nats per patch": (curves["vae"], ["train_kl", "validation_kl"]),
        "GAN: losses": (curves["gan"], ["d_loss", "g_loss"]),
    }
    estimates, posteriors = read_reconstructions(table, problems, x), read_posteriors(problems, x.shape[1:])
    chapters = {"gan": read_curve("gan_chapter", shown["gan"][2:]), "vae": read_curve("vae_chapter", shown["vae"][2:])}

    from pipeline import pictures

    reconstructed = reconstructions(estimates, problems, x, params.report.pictures)
    pictured = posterior_pictures(
        posteriors,
        estimates[NAMES["minimum_norm"]],
        problems,
        params.report.posterior,
        x,
        params.report.pictures,
    )
    pictures.panel_figure(TARGET / "samples.png", {title: tile(grid[:100], 10) for title, grid in grids.items()}, 3)
    games = {"default": curves["gan"], "the chapter's": chapters["gan"]}
    pictures.curve_figure(
        TARGET / "collapse.png",
        {f"GAN, {n}": (t, ["coverage", "recall", "spread"]) for n, t in games.items()},
        (0, 1.2),
    )
    weightings = {"default": curves["vae"], "the chapter's weighting": chapters["vae"]}
    pictures.curve_figure(
        TARGET / "posterior_collapse.png",
        {f"VAE, {n}: KL, nats per patch": (t, ["train_kl", "validation_kl"]) for n, t in weightings.items()},
        (0, 1.05 * weightings["default"]["validation_kl"].max()),
    )
    for kind in ("interpolation", "traversal", "neighbours"):
        parts = {label(*n.split("_")): read_photograph(f"data/samples/{n}_{kind}.png") / 255 for n in WALKED}
        pictures.panel_figure(TARGET / f"{kind}.png", parts, len(parts))
    pictures.curve_figure(TARGET / "curves.png", panels)
    compared = table[~table.method.isin(["minimum_norm", "tikhonov"]) & ~table.constraint.isin(["relaxed", "range"])]
    compared = wide(compared, "psnr_db", problems).T
    gain = compared.sub(compared.pop(NAMES["gaussian"]), axis=0)
    pictures.bar_figure(TARGET / "psnr.png", gain, f"PSNR over the {NAMES['gaussian']}'s [dB]")
    by_count = crossover(table[~table.method.isin(["minimum_norm", "tikhonov"])], params.crossover.measurements)
    few = x[: params.crossover.patches]  # the floors on the very patches of the curves
    ranged = {name: read_array(f"data/reconstructions/{name}_range.npy") for name in PRIORS}  # the representation first
    floors = {NAMES[name]: psnr_db(np.square(array[0, : len(few)] - few).mean()) for name, array in ranged.items()}
    ranges = [label(name, "range") for name in (*PRIORS, "pca")]
    confined, others = by_count.loc[ranges], by_count.drop(index=ranges)
    pictures.crossover_figure(
        TARGET / "crossover.png", confined, others, [NAMES["gaussian"], NAMES["lasso_dct"]], floors
    )
    write_csv(TARGET / "table.csv", table)
    write_page(table, by_count, params, reconstructed, pictured, training)


if __name__ == "__main__":
    run(main)
