"""Every prior against the Gaussians over seeds: PSNR and, paired seed by seed, what each prior has over them.

    dvc exp run --queue -S 'seed=0,1,2' -S baselines.mixture_starts=3 evaluate@ae evaluate@vae evaluate@gan baselines
    dvc exp run --run-all          # ten minutes a seed
    python -m benchmarks.seeds     # writes benchmarks/seeds.md; --rev COMMIT where Git has moved on from the sweep's

A seed moves everything: the patches drawn, the networks' start, the measurements and their noise, the mixtures' starts,
of which the validation patches choose one of three.
The better mixture is picked for each seed and problem by the truth, in the mixture's favour.
"""

import sys

import pandas as pd

from pipeline.files import markdown, write_text
from pipeline.params import load_params
from pipeline.run import run
from tools.seed_table import experiments, spread, values

METHODS = {
    "autoencoder, relaxed": "ae.relaxed",
    "autoencoder, posterior mean": "ae.mean",
    "VAE, relaxed": "vae.relaxed",
    "VAE, posterior mean": "vae.mean",
    "GAN, relaxed": "gan.relaxed",
    "GAN, posterior mean": "gan.mean",
    "linear Gaussian": "gaussian.none",
}
MIXTURES = ("mixture_10.none", "mixture_50.none")


def measured() -> tuple[pd.DataFrame, int]:
    """PSNR in dB of every method, a row for each problem and seed; how many starts the mixtures had at least."""
    rows, starts = [], []
    for experiment in experiments([], *sys.argv[1:]).values():
        params, metrics = values(experiment["data"]["params"]), values(experiment["data"]["metrics"])
        starts.append(params["baselines.mixture_starts"])
        for problem in load_params("params.yaml").problems:
            psnr = {name: metrics[f"{key}.{problem}.psnr_db"] for name, key in METHODS.items()}
            psnr["better mixture"] = max(metrics[f"{key}.{problem}.psnr_db"] for key in MIXTURES)
            rows.append({"problem": problem, "seed": params["seed"], **psnr})
    return pd.DataFrame(rows).set_index(["problem", "seed"]), min(starts)


def over_seeds(table: pd.DataFrame) -> str:
    """Mean ± standard error over seeds: a row for each problem, a column for each method."""
    found = table.groupby("problem", sort=False).agg(spread, of=table.index.unique("seed").size)
    return markdown(
        ["problem", *found], ([problem, *row] for problem, row in zip(found.index, found.values, strict=True))
    )


def main() -> None:
    table, starts = measured()
    parts = [
        f"# Over {table.index.unique('seed').size} seeds",
        f"PSNR in dB, mean ± standard error; each mixture the best of {starts} on validation patches. Written by "
        "`python -m benchmarks.seeds`.",
        over_seeds(table),
    ]
    for rival in ("better mixture", "linear Gaussian"):
        over = table.drop(columns=["better mixture", "linear Gaussian"]).sub(table[rival], axis=0)
        parts += [f"Over the {rival}, paired:", over_seeds(over)]
    write_text("benchmarks/seeds.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    run(main)
