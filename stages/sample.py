"""Draws from every prior, and how close they come to real patches: arrays, picture grids, measures."""

import copy

import torch
from torch import Tensor

from genprior.files import InputError
from genprior.images import save_grid
from genprior.networks import PriorNetwork, load_network
from pipeline.files import write_array, write_metrics
from pipeline.losses import kl_standard_normal
from pipeline.measures import detail_db, mmd_p_value, nearest_distance, prdc, sliced_wasserstein, squared_mmd
from pipeline.params import Sample, load_params
from pipeline.patches import draw_patches, load_splits, to_unit
from pipeline.run import run, set_up

PRIORS = ("ae", "vae", "gan")


def draws(priors: dict[str, PriorNetwork], count: int, seed: int) -> dict[tuple[str, str], Tensor]:
    """Samples (count, 1, h, w) by (method, constraint): `range` is G(z), `relaxed` is G(T(z)) and v(z)'s noise.

    `ae_raw` decodes N(0, I) without the density fitted to the autoencoder's codes: what an autoencoder lacks.
    """

    def draw(prior: PriorNetwork, residual: bool) -> Tensor:
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


def measure(real: Tensor, samples: Tensor, settings: Sample, seed: int) -> dict[str, float]:
    """Every measure of samples against as many real patches, both (N, 1, h, w)."""
    samples = samples[: len(real)]
    found = prdc(real, samples, settings.neighbours)
    draw = torch.Generator().manual_seed(seed)
    share = found["coverage"]
    return {
        **found,
        "coverage_error": (share * (1 - share) / len(real)) ** 0.5,  # binomial
        "squared_mmd": squared_mmd(real, samples),
        "mmd_p_value": mmd_p_value(real[:1000], samples[:1000], 199, draw),
        "sliced_wasserstein": sliced_wasserstein(real, samples, 500, draw),
        "detail_db": detail_db(real, samples),
    }


def code_use(prior: PriorNetwork, x: Tensor) -> dict[str, float]:
    """What a variational encoder tells of patches (N, 1, h, w): its active codes of k, and their mean KL in nats.

    A code is active where its mean's variance over the patches exceeds 0.01 (Burda et al. 2016, section 5.2); where
    none is, the posterior has collapsed onto the prior.
    """
    mean, log_variance = prior.encoder(x)
    return {
        "active_codes": int((mean.var(0) > 0.01).sum()),
        "kl_nats": kl_standard_normal(mean, log_variance).mean().item(),
    }


def images(prior: PriorNetwork, z: Tensor, residual: bool, seed: int) -> Tensor:
    """G(z), or where `residual` G(T(z)) + v(z)^½ ⊙ ξ, one standard normal ξ for all codes: (N, 1, h, w).

    What a decoder leaves to v(z) shows in the second alone.
    """
    if not residual:
        return prior.decode(z)
    mean, variance, *scales = prior.moments(z)
    draw = torch.randn(mean.shape[1], generator=torch.Generator().manual_seed(seed))
    return prior.synthesise(mean, variance.sqrt() * draw.to(mean.device), *scales)


def between(prior: PriorNetwork, pairs: int, columns: int, residual: bool, seed: int) -> Tensor:
    """Images along great circles between random codes, where the prior's codes are: (pairs · columns, 1, h, w)."""
    ends = torch.randn(2, pairs, prior.latent_size, generator=torch.Generator().manual_seed(seed))
    angle = torch.linspace(0, torch.pi / 2, columns)[:, None, None]
    z = angle.cos() * ends[0] + angle.sin() * ends[1]
    return images(prior, z.transpose(0, 1).flatten(0, 1).to(prior.code_mean), residual, seed)


def along(prior: PriorNetwork, rows: int, columns: int, residual: bool, seed: int) -> Tensor:
    """Images along the `rows` codes that move them most, from -2.5 to 2.5 around z = 0: (rows · columns, 1, h, w)."""
    k = prior.latent_size
    steps = torch.linspace(-2.5, 2.5, columns)[None, :, None] * torch.eye(k)[:, None]  # (k, columns, k)
    x = images(prior, steps.flatten(0, 1).to(prior.code_mean), residual, seed).unflatten(0, (k, columns))
    strongest = x.var(1).flatten(1).sum(1).argsort(descending=True)[:rows]
    return x[strongest].flatten(0, 1)


def with_neighbours(samples: Tensor, patches: Tensor, count: int) -> Tensor:
    """Each sample before its `count` nearest patches, all (N, 1, h, w): (N · (count + 1), 1, h, w)."""
    nearest = torch.cdist(samples.flatten(1), patches.flatten(1)).topk(count, largest=False).indices
    return torch.cat([samples[:, None], patches[nearest]], 1).flatten(0, 1)


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params)
    settings = params.sample
    train, test = load_splits("data/patches", device, ("train", "test"))
    priors = {name: load_network(f"data/models/{name}.safetensors", device, train.shape[2:]) for name in PRIORS}
    real, other = two_real_sets(train, settings, params.seed)
    # Memorisation: how near samples come to training patches, against how near patches of other photographs come.
    known = to_unit(train[:: max(1, len(train) // 20_000)])
    held_out = draw_patches(test, len(real), params.seed)
    usual = nearest_distance(held_out, known).median()

    values = {"floor": measure(real, other, settings, params.seed)}
    drawn = draws(priors, settings.count, params.seed)
    for (method, constraint), samples in drawn.items():
        found = values.setdefault(method, {})[constraint] = measure(real, samples, settings, params.seed)
        found["distance_to_train"] = (nearest_distance(samples[: len(real)], known).median() / usual).item()
        if constraint == "relaxed" and priors[method].is_variational:
            found.update(code_use(priors[method], held_out))
    write_metrics("metrics/sample.json", {"sample": values})

    def picture(name: str, patches: Tensor) -> None:
        save_grid(f"data/samples/{name}.png", patches.cpu().numpy())

    for (method, constraint), samples in drawn.items():
        if method in priors:
            picture(f"{method}_{constraint}_neighbours", with_neighbours(samples[:20], known, 4))
        write_array(f"data/samples/{method}_{constraint}.npy", samples.squeeze(1).cpu().numpy())
        picture(f"{method}_{constraint}", samples[:100])
    for name, prior in priors.items():
        for residual in (False, True) if prior.has_residual else (False,):
            constraint = "relaxed" if residual else "range"
            picture(f"{name}_{constraint}_interpolation", between(prior, 8, 10, residual, params.seed))
            picture(f"{name}_{constraint}_traversal", along(prior, 8, 10, residual, params.seed))
    picture("real", real[:100])
    write_array("data/samples/real.npy", real.squeeze(1).cpu().numpy())


if __name__ == "__main__":
    run(main)
