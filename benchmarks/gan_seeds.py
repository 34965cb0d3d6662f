"""The default GAN trained with ten seeds: does it collapse, and how much does it cover?

    python -m benchmarks.gan_seeds            # after `dvc repro extract_patches`; about twelve minutes on 2 cores
    python -m benchmarks.gan_seeds --quick    # two seeds of 50 steps: whether it runs

The generator's samples against real training patches, as in the pipeline's stage `sample`; `coverage_over_floor` is
the coverage over what another set of real patches gets. The last line is one JSON object.
"""

import argparse
import json

import pandas as pd
import torch

from pipeline.files import write_text
from pipeline.measures import detail_db, prdc, squared_mmd
from pipeline.params import load_params
from pipeline.patches import draw_patches, load_patches
from pipeline.run import set_up
from stages.train_gan import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    params = load_params("params.yaml").model_copy(update={"threads": 2})
    settings = params.train_gan.model_copy(update={"steps": 50}) if quick else params.train_gan
    device = set_up(params)
    patches = load_patches("data/patches/train.npy", device)
    real, other = draw_patches(patches, 2 * params.sample.count, params.seed).split(params.sample.count)
    floor = prdc(real, other, params.sample.neighbours)["coverage"]
    rows = []
    for seed in range(2 if quick else 10):
        torch.manual_seed(seed)
        prior, _ = train(patches, params.network, settings, seed)
        samples = prior.sample(len(real), torch.Generator().manual_seed(seed), residual=False).detach()
        found = prdc(real, samples, params.sample.neighbours)
        found |= {"squared_mmd": squared_mmd(real, samples), "detail_db": detail_db(real, samples)}
        rows.append({"seed": seed, **found, "coverage_over_floor": found["coverage"] / floor})
        print(*(f"{v:.4g}" for v in rows[-1].values()), sep="\t", flush=True)
    table = pd.DataFrame(rows)
    ratio = table.coverage_over_floor
    result = {"floor": floor, "median": ratio.median(), "smallest": ratio.min(), "seeds": len(table)}
    result = {name: round(value, 4) for name, value in result.items()}
    if not quick:
        parts = [
            "# The default GAN with ten seeds",
            "Written by `python -m benchmarks.gan_seeds`; see its docstring for what is measured.",
            f"```\n{table.round(4).to_string(index=False)}\n```",
            f"```\n{json.dumps(result, sort_keys=True)}\n```",
        ]
        write_text("benchmarks/gan_seeds.md", "\n\n".join(parts) + "\n")
    print(json.dumps(result, sort_keys=True))


if __name__ == "__main__":
    main()
