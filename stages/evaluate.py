"""One prior through all inverse problems: held-out patches restored by argmin_z ‖K G(z) - y‖² + λ‖z‖²."""

import sys

import torch
from torch import Tensor

from genprior.inversion import CONVERGED, Inversion, invert
from genprior.operators import Identity, Measured, pose
from genprior.params import Evaluate, InputError, load_params
from genprior.patches import draw_patches, load_patches
from genprior.prior import Prior, load_prior
from genprior.quality import reconstruction_measures
from genprior.stage import run, set_up, steps, write_array, write_metrics


def starting_codes(prior: Prior, count: int, patches: int, seed: int) -> Tensor:
    """Where the search begins: the prior's centre, then draws from it: (count, patches, k)."""
    starts = torch.randn(count, patches, prior.latent_size, generator=torch.Generator().manual_seed(seed))
    starts[0] = 0
    return starts.to(prior.code_mean.device)


def restore(prior: Prior, problem: Measured, settings: Evaluate, starts: Tensor) -> Inversion:
    """The chapter's reconstruction for a batch of measurements; λ defaults to the noise variance, as Bayes has it."""
    latent_weight = problem.sigma**2 if settings.latent_weight is None else settings.latent_weight
    return invert(
        lambda z: problem.operator.A(prior.decode(z)).flatten(1),
        problem.y.flatten(1),
        latent_weight,
        starts,
        settings.iterations,
    )


def represent(prior: Prior, x: Tensor, settings: Evaluate, starts: Tensor) -> Inversion:
    """The best G(z) for the true patches: what the range of G cannot reach is the chapter's bias."""
    if prior.encoder is not None:
        starts = torch.cat([starts, prior.encode(x)[None]])
    return invert(lambda z: prior.decode(z).flatten(1), x.flatten(1), 0.0, starts, settings.iterations)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) == 2 else ""
    if name not in ("ae", "vae", "gan"):
        raise InputError("usage: python -m stages.evaluate ae|vae|gan")
    params = load_params("params.yaml")
    device = set_up(params)
    settings = params.evaluate
    prior = load_prior(f"data/models/{name}.safetensors", device)
    x = draw_patches(load_patches("data/patches/test.npy", device), settings.patches, params.seed)
    starts = starting_codes(prior, settings.starts, len(x), params.seed)

    measured = [Measured("representation", Identity(), 1.0, x), *pose(params.problems, x, params.seed)]
    values, restored = {}, []
    for i in (bar := steps(len(measured), f"evaluate {name}")):
        problem = measured[i]
        bar.set_postfix(problem=problem.name)
        if problem.name == "representation":
            found = represent(prior, x, settings, starts)
        else:
            found = restore(prior, problem, settings, starts)
        estimate = prior.decode(found.z)
        values[problem.name] = reconstruction_measures(x, estimate)
        values[problem.name]["converged"] = found.status.count(CONVERGED) / len(x)
        if problem.name != "representation":
            misfit = problem.operator.A(estimate) - problem.y
            values[problem.name]["residual_over_sigma"] = misfit.square().mean().sqrt().item() / problem.sigma
        restored.append(estimate.squeeze(1))
    write_array(f"data/reconstructions/{name}_range.npy", torch.stack(restored).cpu().numpy())
    write_metrics(f"metrics/evaluate_{name}.json", {name: {"range": values}})


if __name__ == "__main__":
    run(main)
