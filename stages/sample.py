"""Draws from every prior, and how close they come to real patches: arrays, picture grids, measures."""

import copy

import pandas as pd
import torch
from torch import Tensor

from genprior.images import save_grid
from genprior.networks import PriorNetwork, load_network
from genprior.views import Prior, View
from pipeline.files import read_array, write_array, write_csv, write_metrics
from pipeline.losses import kl_standard_normal
from pipeline.measures import collapse, nearest_distance, sample_measures, two_real_sets
from pipeline.params import PRIORS, load_params
from pipeline.patches import draw_patches, load_splits, to_unit
from pipeline.run import run, set_up


def views_of(networks: dict[str, PriorNetwork]) -> dict[tuple[str, str], View]:
    """What is sampled: `range` G(z), `relaxed` G(T(z)) and Σ(z), `ae_raw` G without the density fitted to its codes."""
    raw = copy.deepcopy(networks["ae"])
    raw.code_mean.zero_()
    raw.code_factor.copy_(torch.eye(raw.latent_size))
    ranges = {(name, "range"): Prior(network).range for name, network in {**networks, "ae_raw": raw}.items()}
    return ranges | {(name, "relaxed"): Prior(network) for name, network in networks.items()}


def code_use(network: PriorNetwork, x: Tensor) -> dict[str, float]:
    """What a variational encoder tells of patches (N, 1, h, w): its active codes of k, and their mean KL in nats.

    A code is active where its mean's variance over the patches exceeds 0.01. Burda et al. 2016, section 5.2.
    """
    mean, log_variance = network.encoder(x)
    kl = kl_standard_normal(mean, log_variance).mean().item()
    return {"active_codes": int((mean.var(0) > 0.01).sum()), "kl_nats": kl}


def images(view: View, z: Tensor, seed: int) -> Tensor:
    """Images at codes z (N, k), with one draw of Σ(z)'s standard normal for all: (N, 1, h, w)."""
    if view.covariance == "none":
        return view.decode(z.to(view.device))
    mean, variance, *scales = view.moments(z.to(view.device))
    draw = torch.randn(mean.shape[1], generator=torch.Generator().manual_seed(seed))
    return view.network.synthesise(mean, variance.sqrt() * draw.to(mean.device), *scales)


def between(view: View, pairs: int, columns: int, seed: int) -> Tensor:
    """Images along great circles between random codes, where a prior's codes are: (pairs · columns, 1, h, w)."""
    ends = torch.randn(2, pairs, view.latent_size, generator=torch.Generator().manual_seed(seed))
    angle = torch.linspace(0, torch.pi / 2, columns)[:, None, None]
    return images(view, (angle.cos() * ends[0] + angle.sin() * ends[1]).transpose(0, 1).flatten(0, 1), seed)


def along(view: View, rows: int, columns: int, seed: int) -> Tensor:
    """Images along the `rows` codes that move them most, from -2.5 to 2.5 around z = 0: (rows · columns, 1, h, w)."""
    k = view.latent_size
    steps = torch.linspace(-2.5, 2.5, columns)[None, :, None] * torch.eye(k)[:, None]  # (k, columns, k)
    x = images(view, steps.flatten(0, 1), seed).unflatten(0, (k, columns))
    return x[x.var(1).flatten(1).sum(1).argsort(descending=True)[:rows]].flatten(0, 1)


def with_neighbours(samples: Tensor, patches: Tensor, count: int) -> Tensor:
    """Each sample before its `count` nearest patches, all (N, 1, h, w): (N · (count + 1), 1, h, w)."""
    nearest = torch.cdist(samples.flatten(1), patches.flatten(1)).topk(count, largest=False).indices
    return torch.cat([samples[:, None], patches[nearest]], 1).flatten(0, 1)


def collapse_curve(path: str, train: Tensor, neighbours: int, seed: int) -> pd.DataFrame:
    """What a training's snapshots show of mode collapse, against the patches that it set apart: a row for each."""
    snapshots = read_array(path)
    real = draw_patches(train, snapshots["samples"].shape[1], seed)
    fakes = torch.from_numpy(snapshots["samples"]).float().unsqueeze(2).to(train.device)
    found = [collapse(real, fake, neighbours) for fake in fakes]
    return pd.DataFrame(found).assign(step=snapshots["step"])[["step", *found[0]]]


def main() -> None:
    params = load_params("params.yaml")
    device, settings, seed = set_up(params), params.sample, params.seed
    train, test = load_splits("data/patches", device, ("train", "test"))
    networks = {name: load_network(f"data/models/{name}.safetensors", device, train.shape[2:]) for name in PRIORS}
    real, other = two_real_sets(train, settings, seed)
    # Memorisation: how near samples come to training patches, against how near patches of other photographs come.
    known = to_unit(train[:: max(1, len(train) // 20_000)])
    held_out = draw_patches(test, len(real), seed)
    usual = nearest_distance(held_out, known).median()

    def picture(name: str, patches: Tensor) -> None:
        save_grid(f"data/samples/{name}.png", patches.cpu().numpy())

    values = {"floor": sample_measures(real, other, settings, seed)}
    for (name, constraint), view in views_of(networks).items():
        samples = view.sample(settings.count, torch.Generator().manual_seed(seed))
        found = sample_measures(real, samples, settings, seed)
        found["distance_to_train"] = (nearest_distance(samples[: len(real)], known).median() / usual).item()
        if constraint == "relaxed" and view.network.is_variational:
            found |= code_use(view.network, held_out)
        values.setdefault(name, {})[constraint] = found
        write_array(f"data/samples/{name}_{constraint}.npy", samples.squeeze(1).cpu().numpy())
        picture(f"{name}_{constraint}", samples[:100])
        if name in PRIORS:
            picture(f"{name}_{constraint}_neighbours", with_neighbours(samples[:20], known, 4))
            picture(f"{name}_{constraint}_interpolation", between(view, 8, 10, seed))
            picture(f"{name}_{constraint}_traversal", along(view, 8, 10, seed))
    picture("real", real[:100])
    write_array("data/samples/real.npy", real.squeeze(1).cpu().numpy())
    for game in ("gan", "gan_chapter"):
        curve = collapse_curve(f"data/snapshots/{game}.npy", train, settings.neighbours, seed)
        write_csv(f"data/curves/{game}_collapse.csv", curve)
    write_metrics("metrics/sample.json", {"sample": values})


if __name__ == "__main__":
    run(main)
