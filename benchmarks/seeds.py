"""The VAE against the better Gaussian mixture over seeds: PSNR of both and, paired seed by seed, their difference.

    dvc exp run --queue -S 'seed=0,1,2' evaluate@vae baselines && dvc exp run --run-all   # about five minutes a seed
    python -m benchmarks.seeds                                                            # writes benchmarks/seeds.md

A seed moves everything: the patches drawn, the network's start, the measurements and their noise, the mixtures' start.
The better mixture is picked for each seed and problem by the truth, in the mixture's favour.
"""

import json
import sys

import pandas as pd

from genprior.params import load_params
from genprior.stage import run, write_text
from tools.seed_table import experiments, output, spread, values


def main() -> None:
    found = experiments(json.loads(output(sys.executable, "-m", "dvc", "exp", "show", "--json")), [])
    rows = []
    for told in found.values():
        seed, metrics = values(told["data"]["params"])["seed"], values(told["data"]["metrics"])
        for problem in load_params("params.yaml").problems:
            psnr = {
                name: metrics[f"{key}.{problem}.psnr_db"]
                for name, key in (("VAE", "vae.relaxed"), ("10", "mixture_10.none"), ("50", "mixture_50.none"))
            }
            mixture = max(psnr["10"], psnr["50"])
            rows.append({"problem": problem, "seed": seed, "VAE, relaxed": psnr["VAE"], "better mixture": mixture})
    table = pd.DataFrame(rows)
    table["difference"] = table["VAE, relaxed"] - table["better mixture"]
    count = table.seed.nunique()
    lines = [
        f"| {problem} | {' | '.join(spread(same[column], count) for column in same.columns[2:])} |"
        for problem, same in table.groupby("problem", sort=False)
    ]
    head = f"# Over {count} seeds\n\nPSNR in dB, mean ± standard error. Written by `python -m benchmarks.seeds`.\n\n"
    head += f"| problem | {' | '.join(table.columns[2:])} |\n| --- | --- | --- | --- |\n"
    write_text("benchmarks/seeds.md", head + "\n".join(lines) + "\n")


if __name__ == "__main__":
    run(main)
