"""Variational autoencoder with the chapter's Gaussian decoder, N(G(z), σ² I): maximise the ELBO over training patches.

Its residual model is fitted afterwards, as the autoencoder's and the GAN's are.
"""

import math
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from genprior.networks import PriorNetwork, save_network
from pipeline import ranks, vae
from pipeline.checkpoints import Checkpoint
from pipeline.files import write_csv, write_metrics
from pipeline.params import Network, TrainVAE, load_params
from pipeline.patches import draw_batch, load_splits, spread, to_unit
from pipeline.run import run, set_up
from pipeline.training import check_residual, fit_residual

CHAPTER_BETA = 0.05  # of the chapter's cell: mean squared error + 0.05 · mean KL


def objective(terms: vae.Terms, settings: TrainVAE, n: int, k: int) -> Tensor:
    """What training minimises: the negative ELBO, beta on its KL, in nats per pixel; or the chapter's own weighting."""
    if settings.objective == "chapter":
        return terms["squared_error"].mean() / n + settings.beta * terms["kl"].mean() / k
    return (settings.beta * terms["kl"] - terms["log_likelihood"]).mean() / n


def implied_sigma(beta: float, n: int, k: int) -> float:
    """The decoder's sigma whose ELBO is the chapter's weighting, up to a factor: sigma² = n beta / (2 k)."""
    return math.sqrt(n * beta / (2 * k))


def train(
    patches: Tensor,
    validation: Tensor,
    network: Network,
    settings: TrainVAE,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[PriorNetwork, pd.DataFrame]:
    """Train on uint8 patches (N, 1, h, w); returns the prior and its curve on training batches and validation."""
    n, k = patches[0].numel(), network.latent_size
    prior = PriorNetwork(patches.shape[2:], **network.model_dump(), noise="constant", encoder="variational")
    prior.coefficients.fit(to_unit(spread(patches).cpu()))
    sigma = implied_sigma(settings.beta, n, k) if settings.objective == "chapter" else settings.sigma
    prior.decoder.log_sigma.data.fill_(math.log(sigma))
    prior.decoder.log_sigma.requires_grad_(settings.noise == "learned")
    prior.to(patches.device)
    loss_of = partial(objective, settings=settings, n=n, k=k)
    curve = vae.train(prior, loss_of, (patches, validation), settings, seed, checkpoint)
    return prior.eval().requires_grad_(False), curve


def collapse(
    patches: Tensor,
    x: Tensor,
    network: Network,
    settings: TrainVAE,
    sigmas: set[float],
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """What short trainings with the ELBO leave of the codes of held-out patches x, a row for each fixed sigma."""
    rows, short = [], {"steps": settings.collapse.steps, "batch_size": settings.collapse.batch_size}
    for sigma in sorted(sigmas):
        fixed = {"noise": "fixed", "sigma": sigma, "objective": "elbo", "beta": 1.0}
        changed = settings.model_copy(update=fixed | short)
        prior, _ = train(
            patches, patches[:1], network, changed, seed, checkpoint
        )  # validates on little: no curve is kept
        rows.append({"sigma": sigma, **vae.held_out(prior, x, seed)})
    return pd.DataFrame(rows)[["sigma", "test_kl", "active_units", "used_units", "test_psnr_db"]]


def main() -> None:
    params = load_params("params.yaml")
    device, settings, seed = set_up(params), params.train_vae, params.seed
    patches, validation, test = load_splits("data/patches", device)
    checkpoint = Checkpoint(".checkpoints/train_vae", params, __file__, patches, validation)
    prior, curve = train(patches, validation, params.network, settings, seed, checkpoint)
    draw = torch.Generator().manual_seed(seed)
    x_test, values = draw_batch(spread(test), None, draw), curve.iloc[-1].drop("step").to_dict()
    values |= {**vae.held_out(prior, x_test, seed), "sigma": prior.decoder.log_sigma.exp().item()}

    residual_curve = fit_residual(prior, prior.encoder, patches, params.residual, seed, checkpoint)
    prior.eval().requires_grad_(False)
    values |= check_residual(prior, prior.encoder, *(draw_batch(split, 8192, draw) for split in (patches, test)))

    chapters = implied_sigma(CHAPTER_BETA, patches[0].numel(), params.network.latent_size)
    sigmas = {*settings.collapse.sigmas, chapters}
    swept = collapse(patches, x_test, params.network, settings, sigmas, seed, checkpoint)
    values["chapter"] = swept[swept.sigma == chapters].to_dict("records")[0]
    ranks.leave_to_first()
    # beta at the learned sigma, if that is kept fixed, is up to a factor the ELBO at sigma √beta
    swept.insert(1, "beta", (swept.sigma / values["sigma"]) ** 2)
    write_metrics("metrics/train_vae.json", {"train_vae": values})
    save_network(prior, "data/models/vae.safetensors")
    for name, rows in {"vae": curve, "vae_collapse": swept, "vae_residual": residual_curve}.items():
        write_csv(f"data/curves/{name}.csv", rows)
    checkpoint.remove()


if __name__ == "__main__":
    run(main, shared=True)
