"""The VAE's decoder noise on equal terms: the chapter's weighting, a fixed or learned σ, v(z) of three kinds.

    python -m benchmarks.decoder_noise            # after `dvc repro extract_patches`; about nine minutes on 2 cores
    python -m benchmarks.decoder_noise --quick    # 30 steps, 8 patches: whether it runs

The same network, data, seed and half the pipeline's steps for all. Held-out log p(x) and its ELBO in nats per pixel,
codes in use, best G(z) and relaxed restorations in dB, as the pipeline's stages measure them.
"""

import argparse

import pandas as pd
import torch

from pipeline.files import write_text
from pipeline.params import load_params
from pipeline.patches import draw_batch, draw_patches, load_patches
from pipeline.problems import pose, reconstruction_measures
from pipeline.run import set_up
from stages.evaluate import energy_of, log_likelihood, represent, restore
from stages.sample import code_use
from stages.train_vae import CHAPTER_BETA, decoder_sigma, train

NOISES = {
    "the chapter's weighting": {"noise": "fixed", "objective": "chapter", "beta": CHAPTER_BETA},
    "fixed σ = 0.1": {"noise": "fixed", "sigma": 0.1},
    "fixed σ = 0.03": {"noise": "fixed", "sigma": 0.03},
    "one learned σ": {"noise": "learned"},
    "v(z) per pixel": {"noise": "pixel"},
    "v(z) in the DCT": {"noise": "dct"},
    "with scales": {"noise": "modulated"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    params = load_params("params.yaml").model_copy(update={"threads": 2})
    device, seed, settings = set_up(params), params.seed, params.evaluate
    train_patches, validation, test = (
        load_patches(f"data/patches/{split}.npy", device) for split in ("train", "validation", "test")
    )
    count = 8 if quick else settings.patches
    x = draw_patches(test, count, seed)
    dequantised = draw_batch(test, 8 if quick else settings.likelihood_patches, torch.Generator().manual_seed(seed))
    problems = [p for p in pose(params.problems, x, seed) if p.name in ("denoise", "inpaint", "cs_10", "cs_50")]
    rows = []
    for name, changed in NOISES.items():
        vae = params.train_vae.model_copy(update={**changed, "steps": 30 if quick else params.train_vae.steps // 2})
        torch.manual_seed(seed)
        prior, _ = train(train_patches, validation, params.network, vae, seed)
        with torch.no_grad():
            likelihood = log_likelihood(prior, dequantised, settings, seed)
            row = {"noise": name, "log p(x)": likelihood["log_likelihood"], "ELBO": likelihood["elbo"]}
            row |= code_use(prior, x)
            row["best G(z)"] = reconstruction_measures(x, represent(prior, x, settings, seed).x)["psnr_db"]
            for problem in problems:
                energy = energy_of(prior, problem, "relaxed", settings)
                restored = restore(prior, energy, settings.relaxed, seed).chosen.x
                row[problem.name] = reconstruction_measures(x, restored)["psnr_db"]
        rows.append(row)
        print(*(v if isinstance(v, str) else f"{v:.4g}" for v in row.values()), sep="\t", flush=True)
    table = pd.DataFrame(rows).set_index("noise").round(3)
    n = x[0].numel()
    implied = decoder_sigma(
        params.train_vae.model_copy(update=NOISES["the chapter's weighting"]), n, params.network.latent_size
    )
    if not quick:
        parts = [
            "# The VAE's decoder noise",
            "Written by `python -m benchmarks.decoder_noise`; see its docstring for what is measured.",
            f"```\n{table.to_string()}\n```",
            f"The chapter's weighting, mean squared error + 0.05 · mean KL, is the ELBO of a decoder with σ = "
            f"{implied:.2f} for images in [0, 1] (σ² = n β / 2k): to such noise little that a code could say is worth "
            "its nats, so most coordinates collapse onto the prior.",
        ]
        write_text("benchmarks/decoder_noise.md", "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
