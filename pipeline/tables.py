"""All numbers of a run as one long table, its pivots, and the registry that says what each measure is.

A new measure is one line here beside the code that computes it: `python -m pipeline.tables > docs/metrics.md`.
"""

import json
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from genprior.files import InputError
from pipeline.params import Params

WITHOUT_PRIOR = ["minimum_norm", "tikhonov"]  # whose error is of another order
PRIORS = ("ae", "vae", "gan")
CONSTRAINTS = ("none", "range", "relaxed", "mean")  # in the order of the tables
NAMES = {  # in the order of the tables
    "floor": "other real patches",
    "ae": "autoencoder",
    "ae_raw": "autoencoder, raw N(0, I) codes",
    "vae": "VAE",
    "gan": "GAN",
    "pca": "PCA, same k",
    "gaussian": "linear Gaussian",  # after it the mixtures
    "lasso_dct": "Lasso in the DCT",
    "tv": "total variation",
    "tikhonov": "Tikhonov",
    "minimum_norm": "minimum norm",
    "discriminative": "network for this problem",
}
SUFFIXES = {"relaxed": ", relaxed", "mean": ", posterior mean", "chapter": ", the chapter's weighting"}
COLUMNS = ["method", "problem", "constraint", "measure", "value"]

REGISTRY = """
# Photographs and patches: `patches.json`
photographs | photographs | count | | 0 | | of the split
patches | patches | count | | 0 | | of the split
mean | mean | grey | | 3 | | of the split
std | standard deviation | grey | | 3 | | of the split; splits that differ much are no fair test

# Training: `train_*.json`
train_mse | training error | 1 | lower | 5 | 1 % | mean squared error of G(E(x)); VAE: of G(z), z drawn from q
validation_mse | validation error | 1 | lower | 5 | 1 % | the same on validation patches
test_mse | test error | 1 | lower | 5 | 1 % | the same on test patches
test_psnr_db | PSNR of G(E(x)) | dB | higher | 2 | 0.03 | on test patches; E is the mean of q
train_elbo | training ELBO | nats per pixel | higher | 4 | 0.005 | evidence lower bound, last training batch
validation_elbo | validation ELBO | nats per pixel | higher | 4 | 0.005 | on validation patches
test_elbo | test ELBO | nats per pixel | higher | 4 | 0.005 | on test patches
train_kl | training KL | nats per patch | | 2 | 0.1 | of q(z given x) from N(0, I); near 0 is posterior collapse
validation_kl | validation KL | nats per patch | | 2 | 0.1 | on validation patches
test_kl | KL | nats per patch | | 2 | 0.1 | on test patches
active_units | active coordinates | count of k | | 0 | 1 | variance of E(x) above 0.01, held-out patches, dequantised
sigma | σ | grey | | 3 | 1 % | the decoder's noise that the chapter's weighting implies
residual_log_likelihood | residuals under v(z) | nats per pixel | higher | 3 | 0.005 | of held-out x - G(T(E(x)))
residual_log_likelihood_constant | under one covariance | nats per pixel | higher | 3 | 0.005 | what v(z) has to beat
d_loss | discriminator's loss | nats | | 3 | 0.02 | last step; hinge and Wasserstein: in units of its output
g_loss | generator's loss | nats | | 3 | 0.02 | last step
penalty | gradient penalty | 1 | | 3 | 0.02 | of the discriminator, before its weight
curvature | curvature penalty | 1 | | 4 | 0.001 | of the generator, before its weight

# Samples: `sample.json`
coverage | coverage | share | higher | 3 | 0.01 | real patches with a sample in their neighbourhood
coverage_error | its standard error | share | | 3 | 0.001 | of the coverage
density | density | 1 | → 1 | 3 | 0.03 | real neighbourhoods that hold a sample, over their usual number; above: crowded
precision | precision | share | → floor | 3 | 0.01 | samples in a real patch's neighbourhood; above the floor: crowded
recall | recall | share | higher | 3 | 0.02 | real patches in a sample's neighbourhood
spread | spread | ratio | → 1 | 3 | 0.02 | the samples' standard deviation over the patches'; below 1 is mode collapse
squared_mmd | squared MMD | 1 | lower | 4 | 0.0005 | unbiased: 0 on average for one distribution, below 0 by chance
mmd_p_value | MMD p-value | share | higher | 3 | 0.05 | how often a random split differs as much; small: the two differ
sliced_wasserstein | sliced Wasserstein | grey | lower | 4 | 0.002 | root mean square over random projections
detail_db | detail | dB | → 0 | 2 | 0.1 | power above half of all frequencies over real patches'; below 0: smooth
distance_to_train | distance to training | ratio | → 1 | 2 | 0.01 | nearest one, over test patches'; 0: memorised
active_codes | active codes | count of k | | 0 | 1 | as `active_units`, on patches as they are; GAN: of T's argument
kl_nats | KL | nats per patch | | 2 | 0.1 | of the variational encoder from N(0, I)

# Restoration: `evaluate_*.json`, `baselines.json`, `train_discriminative.json`
mse | error | 1 | lower | 5 | 1 % | mean squared error over all patches
psnr_db | PSNR | dB | higher | 2 | 0.03 | -10 log₁₀ of it
relative_error | relative error | ratio | lower | 3 | 0.5 % | norm of the errors over norm of the patches
residual_over_sigma | residual / σ | σ | → 1 | 2 | 1 % | of K x̂ - y; above 1: y is not explained; m small: below 1
added_mse | added error | 1 | lower | 5 | 5 % | `range`: mean squared error beyond the representation's
converged | converged | share | higher | 2 | 0.02 | searches that ended by themselves
solver_gap | search's gap | nats | lower | 2 | 0.5 | energy that the deepest mode leaves against a far longer search
in_range_psnr_db | PSNR of own draws | dB | higher | 2 | 0.05 | for truths that the prior itself drew
weight | weight | 1 | | 6 | | of the regulariser, chosen on validation patches

# Posterior: `evaluate_*.json`
coverage_50 | in the 50 % interval | share | → 0.5 | 2 | 0.01 | pixels whose truth lies in the central credible interval
coverage_90 | in the 90 % interval | share | → 0.9 | 2 | 0.01 | what the prior's uncertainty is worth
effective_share | effective share | share | higher | 2 | 0.06 | median effective sample size over samples; ½ is enough
annealed | annealed | share | lower | 2 | 0.1 | patches that went through sequential Monte Carlo
in_range_coverage_50 | own draws in 50 % | share | → 0.5 | 2 | 0.01 | for truths that the prior itself drew
in_range_coverage_90 | own draws in 90 % | share | → 0.9 | 2 | 0.01 | is the sampler right?
in_range_effective_share | effective share of own draws | share | higher | 2 | 0.06 | for those truths
in_range_annealed | own draws annealed | share | lower | 2 | 0.1 | for those truths

# Likelihood: `evaluate_*.json`, `baselines.json`
log_likelihood | log p(x) | nats per pixel | higher | 4 | 0.0005 | dequantised patches; exact for Gaussians and mixtures
standard_error | standard error | nats per pixel | | 4 | 0.0005 | of it over patches
monte_carlo_error | Monte Carlo error | nats per pixel | | 4 | 0.0005 | of sampling; knows no mode that no draw found
elbo | ELBO | nats per pixel | higher | 4 | 0.0005 | lower bound of it by the variational encoder alone
importance_bound | importance bound | nats per pixel | higher | 4 | 0.0005 | the tighter bound of many of its draws

# The chapter's cells: `chapter.json`
epoch_* | reconstruction loss | 1 | lower | 6 | 1 % | of the tiny autoencoder at that epoch
recon | reconstruction error | 1 | lower | 6 | 1 % | of the tiny VAE
kl | KL | nats | | 6 | 1 % | of the tiny VAE, mean over coordinates; under `elbo` the toy's, their sum
reconstruction | reconstruction term | nats | lower | 6 | | of the toy ELBO, given
discriminator | discriminator's loss | nats | | 4 | | the toy's
generator | generator's loss | nats | | 4 | | the toy's
fake_mean | samples' mean | 1 | → 1.5 | 4 | 1 % | of the 1-D GAN; the target is N(1.5, 0.2²)
fake_std | samples' standard deviation | 1 | → 0.2 | 4 | 1 % | which the chapter does not print
x? | output on a sample | probability | | 4 | | of the toy discriminator
z? | coordinate | 1 | | 4 | | of the reparameterised draws

# The report alone
times_fewer | times fewer | ratio | higher | 2 | | times as many measurements that Lasso needs for the same error
"""

INTRODUCTION = """\
# Metrics

Written by `python -m pipeline.tables > docs/metrics.md` from the registry in
[pipeline/tables.py](../pipeline/tables.py). `dvc metrics show` prints all numbers, `dvc metrics diff main` what moved.
They have six significant digits. Images are in [0, 1], log-likelihoods are of a density over [0, 1]. A code has k
coordinates; patches are held out unless said otherwise.

*Better*: higher, lower, or towards a value (→). Empty: a description, or a number to read beside others. *Own noise*:
what another kind of CPU or other Monte Carlo draws move it by, in its unit or in per cent of it, from
[reruns](reproducibility.md#another-kind-of-cpu). Less than that is no finding.

Keys are `METHOD.CONSTRAINT.PROBLEM.MEASURE`, say `vae.relaxed.cs_50.psnr_db`. Constraint `range`: confined to the range
of G; `relaxed`: with the residual covariance, at the posterior's dominant mode; `mean`: the posterior mean; `none`: a
method without a generator. Beside the problems of params.yaml stand `representation` (the best G(z) for the true
patch), `m_10` and so on (the crossover) and `likelihood`. `floor` among the samples is another set of real patches, the
aim of every measure there. Under `chapter` in `train_vae.json` is the training with the chapter's weighting.
"""


class Measure(NamedTuple):
    """A line of the registry."""

    key: str
    title: str
    unit: str
    better: str  # higher | lower | → the value to aim at | nothing
    digits: int  # after the point, in tables
    noise: str  # in its unit, or in per cent of the value
    note: str

    def own_noise(self, value: float) -> float:
        """By how much another CPU or Monte Carlo moves such a value."""
        if self.noise.endswith("%"):
            return float(self.noise[:-1]) / 100 * abs(value)
        return float(self.noise or 0)


def _registry() -> dict[str, dict[str, Measure]]:
    """The registry's lines by heading and key."""
    found = {}
    for line in filter(None, REGISTRY.splitlines()):
        if line.startswith("# "):
            group = found[line[2:]] = {}
        else:
            key, title, unit, better, digits, noise, note = (cell.strip() for cell in line.split(" |"))
            group[key] = Measure(key, title, unit, better, int(digits), noise, note)
    return found


GROUPS = _registry()
MEASURES = {key: measure for group in GROUPS.values() for key, measure in group.items()}


def measure_of(key: str) -> Measure | None:
    """What the registry says of a measure; None where it knows none of that name."""
    return MEASURES.get(key) or next((m for pattern, m in MEASURES.items() if fnmatchcase(key, pattern)), None)


def title(key: object) -> str:
    """A measure's or a problem's name for readers."""
    known = MEASURES.get(str(key))
    if known is None:
        return str(key).replace("_", " ")
    return known.title + (" [dB]" if known.unit == "dB" else "")


def label(method: str, constraint: str = "none") -> str:
    """A method's name for readers."""
    name = NAMES.get(method) or f"{method.removeprefix('mixture_')} Gaussians"
    return name + SUFFIXES.get(constraint, "")


def documentation() -> str:
    """The page docs/metrics.md."""
    head = "| measure | title | unit | better | own noise | what it is |\n| --- | --- | --- | --- | --- | --- |\n"
    parts = [INTRODUCTION]
    for heading, group in GROUPS.items():
        lines = [f"| `{m.key}` | {m.title} | {m.unit} | {m.better} | {m.noise} | {m.note} |\n" for m in group.values()]
        parts.append(f"## {heading}\n\n{head}{''.join(lines)}")
    return "\n".join(parts)


def read_table(folder: str | Path = "metrics") -> pd.DataFrame:
    """Every number of metrics/*.json as a row; InputError names a file that is damaged or holds anything else."""
    rows = []
    for file in sorted(Path(folder).glob("*.json")):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{file}: not readable metrics: {error}") from None
        rows += [(*_place(keys, file), value) for keys, value in _leaves(values, (), file)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    order = {name: rank for rank, name in enumerate(NAMES)}

    def rank(method: str) -> float:
        components = re.fullmatch(r"mixture_(\d+)", method)
        return order["gaussian"] + 1 - 1 / int(components[1]) if components else order.get(method, len(order))

    table["rank"] = table.method.map(rank)
    table["after"] = table.constraint.map(lambda name: CONSTRAINTS.index(name) if name in CONSTRAINTS else 0)
    return table.sort_values(["rank", "after"], kind="stable", ignore_index=True)[COLUMNS]


def _leaves(value: object, keys: tuple[str, ...], file: Path) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(value, dict) and len(keys) < 4:
        for key, inner in value.items():
            yield from _leaves(inner, (*keys, key), file)
    elif isinstance(value, int | float) and keys:
        yield keys, float(value)
    else:
        raise InputError(f"{file}: {'.'.join(keys)} holds {type(value).__name__}; a number would be right")


def _place(keys: tuple[str, ...], file: Path) -> tuple[str, str, str, str]:
    """Method, problem, constraint and measure of a number, by its keys."""
    match keys:
        case (method, constraint, problem, measure) if constraint in CONSTRAINTS:
            return method, problem, constraint, measure
        case ("sample" | "patches" | "chapter" as block, method, *constraint, measure) if len(constraint) < 2:
            problem = "samples" if block == "sample" else block
            return method, problem, *(constraint or ["none"]), measure
        case (stage, *constraint, measure) if stage.startswith("train_") and len(constraint) < 2:
            return stage.removeprefix("train_"), "training", *(constraint or ["none"]), measure
    raise InputError(f"{file}: {'.'.join(keys)}: method.constraint.problem.measure would be right")


def read_curve(name: str, columns: list[str]) -> pd.DataFrame:
    """A curve with these columns, all numbers; InputError where the file is missing or holds anything else."""
    path = f"data/curves/{name}.csv"
    try:
        return pd.read_csv(path)[["step", *columns]].astype(float)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: not a curve of {', '.join(columns)}: {' '.join(str(error).split())}") from None


def check_table(table: pd.DataFrame, params: Params) -> None:
    """InputError where the table lacks a part that the page shows."""
    known = set(zip(table.method, table.constraint, table.problem, strict=True))
    restored = [(name, constraint) for name in PRIORS for constraint in ("range", "relaxed", "mean")]
    restored += [("pca", "range"), *((name, "none") for name in ("gaussian", "lasso_dct", "minimum_norm"))]
    needed = [(*pair, problem) for pair in restored for problem in [*params.problems, *params.crossover_problems()]]
    needed += [(name, "range", problem) for name in PRIORS for problem in ("representation", "samples")]
    needed += [(name, "relaxed", "likelihood") for name in PRIORS] + [("floor", "none", "samples")]
    needed += [(split, "none", "patches") for split in ("train", "test")] + [("vae", "none", "training")]
    for method, constraint, problem in needed:
        if (method, constraint, problem) not in known:
            raise InputError(f"metrics/: nothing of {method}, {constraint}: {problem}; its stage would have to run")


def with_prior(table: pd.DataFrame) -> pd.DataFrame:
    """The table without those methods whose error is of another order."""
    return table[~table.method.isin(WITHOUT_PRIOR)]


def labelled(table: pd.DataFrame, columns: str, order: list[str], corner: str) -> pd.DataFrame:
    """Values of the long table, a line for each method and constraint, `order` of the named column across."""
    chosen = table[table[columns].isin(order)].copy()
    chosen[corner] = [label(m, c) for m, c in zip(chosen.method, chosen.constraint, strict=True)]
    found = chosen.pivot(index=corner, columns=columns, values="value").reindex(chosen[corner].unique())
    return found[[name for name in order if name in found]]


def wide(table: pd.DataFrame, measure: str, problems: list[str], corner: str = "method") -> pd.DataFrame:
    """One measure as methods × problems."""
    return labelled(table[table.measure == measure], "problem", problems, corner)


def by_method(table: pd.DataFrame, problem: str, measures: list[str]) -> pd.DataFrame:
    """The named measures of one problem, a line for each method and constraint."""
    return labelled(table[table.problem == problem], "measure", measures, problem)


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
    return np.exp(needed - counts).drop(index=reference).rename_axis("times fewer")


if __name__ == "__main__":
    print(documentation(), end="")
