"""Draws from every prior, and how close they come to real patches: arrays, picture grids, measures."""

import copy

import torch
from torch import Tensor

from genprior.params import InputError, Sample, load_params
from genprior.patches import load_patches, to_unit
from genprior.pictures import save_grid
from genprior.prior import Prior, load_prior
from genprior.quality import prdc, squared_mmd
from genprior.stage import run, set_up, write_array, write_metrics

PRIORS = ("ae", "vae", "gan")


def draws(priors: dict[str, Prior], count: int, seed: int) -> dict[tuple[str, str], Tensor]:
    """Samples (count, 1, h, w) by (method, constraint): `range` is G(z), `relaxed` adds the residual model's noise.

    `ae_raw` decodes N(0, I) without the density fitted to the autoencoder's codes: what an autoencoder lacks.
    """

    def draw(prior: Prior, residual: bool) -> Tensor:
        return prior.sample(count, torch.Generator().manual_seed(seed), residual)

    found = {}
    for name, prior in priors.items():
        found[name, "range"] = draw(prior, residual=False)
        if prior.has_residual:
            found[name, "relaxed"] = draw(prior, residual=True)
    raw = copy.deepcopy(priors["ae"])
    raw.code_mean.zero_()
    raw.code_factor.copy_(torch.eye(raw.latent_size))
    found["ae_raw", "range"] = draw(raw, residual=False)
    return found


def two_real_sets(patches: Tensor, settings: Sample, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint random sets of real patches in [0, 1]: `count` each, or half of all where there are fewer."""
    count = min(settings.count, len(patches) // 2)
    if count <= settings.neighbours:
        raise InputError(
            f"data/patches/train.npy: {len(patches)} patches are too few for sample.neighbours = {settings.neighbours}"
        )
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(seed))[: 2 * count].to(patches.device)
    return tuple(to_unit(patches[order]).split(count))


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params)
    settings = params.sample
    priors = {name: load_prior(f"data/models/{name}.safetensors", device) for name in PRIORS}
    real, other = two_real_sets(load_patches("data/patches/train.npy", device), settings, params.seed)

    def measure(samples: Tensor) -> dict[str, float]:
        samples = samples[: len(real)]
        return {**prdc(real, samples, settings.neighbours), "squared_mmd": squared_mmd(real, samples)}

    values = {"floor": measure(other)}
    for (method, constraint), samples in draws(priors, settings.count, params.seed).items():
        values.setdefault(method, {})[constraint] = measure(samples)
        write_array(f"data/samples/{method}_{constraint}.npy", samples.squeeze(1).cpu().numpy())
        save_grid(f"data/samples/{method}_{constraint}.png", samples[:100])
    save_grid("data/samples/real.png", real[:100])
    write_array("data/samples/real.npy", real.squeeze(1).cpu().numpy())
    write_metrics("metrics/sample.json", {"sample": values})


if __name__ == "__main__":
    run(main)
