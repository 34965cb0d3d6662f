"""Variational autoencoder with the chapter's Gaussian decoder, N(G(z), σ² I): maximise the ELBO over training patches.

Its residual model is fitted afterwards, as the autoencoder's and the GAN's are.
"""

import math
from functools import partial

import pandas as pd
import torch
from torch import Tensor

from genprior.networks import PriorNetwork, save_network
from pipeline import vae
from pipeline.checkpoints import Checkpoint
from pipeline.files import write_csv, write_metrics
from pipeline.params import Network, TrainVAE, load_params
from pipeline.patches import draw_batch, load_splits, to_unit
from pipeline.run import run, set_up
from pipeline.training import check_residual, fit_residual

CHAPTER_BETA = 0.05  # of the chapter's cell: mean squared error + 0.05 · mean KL


def objective(terms: vae.Terms, settings: TrainVAE, n: int, k: int) -> Tensor:
    """What training minimises: the negative ELBO, beta on its KL, in nats per pixel; or the chapter's own weighting."""
    if settings.objective == "chapter":
        return terms["squared_error"].mean() / n + settings.beta * terms["kl"].mean() / k
    return (settings.beta * terms["kl"] - terms["log_likelihood"]).mean() / n


def decoder_sigma(settings: TrainVAE, n: int, k: int) -> float:
    """The decoder's sigma at the start: the chapter's weighting implies one, sigma² = n beta / (2 k)."""
    return math.sqrt(n * settings.beta / (2 * k)) if settings.objective == "chapter" else settings.sigma


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
    prior.coefficients.fit(to_unit(patches.cpu()))
    prior.decoder.log_sigma.data.fill_(math.log(decoder_sigma(settings, n, k)))
    prior.decoder.log_sigma.requires_grad_(settings.noise == "learned")
    prior.to(patches.device)
    loss_of = partial(objective, settings=settings, n=n, k=k)
    curve = vae.train(prior, loss_of, (patches, validation), settings, seed, checkpoint)
    return prior.eval().requires_grad_(False), curve


def main() -> None:
    params = load_params("params.yaml")
    device, settings, seed = set_up(params), params.train_vae, params.seed
    patches, validation, test = load_splits("data/patches", device)
    checkpoint = Checkpoint(".checkpoints/train_vae", params, __file__, patches, validation)
    prior, curve = train(patches, validation, params.network, settings, seed, checkpoint)
    as_printed = {"noise": "fixed", "objective": "chapter", "beta": CHAPTER_BETA, "steps": settings.chapter_steps}
    settings = settings.model_copy(update=as_printed)
    chapters, chapter_curve = train(patches, validation, params.network, settings, seed, checkpoint)
    draw = torch.Generator().manual_seed(seed)
    x_test, values = draw_batch(test, None, draw), curve.iloc[-1].drop("step").to_dict()
    values |= {**vae.held_out(prior, x_test, seed), "sigma": prior.decoder.log_sigma.exp()}
    values["chapter"] = {**vae.held_out(chapters, x_test, seed), "sigma": chapters.decoder.log_sigma.exp()}

    residual_curve = fit_residual(prior, prior.encoder, patches, params.residual, seed, checkpoint)
    prior.eval().requires_grad_(False)
    values |= check_residual(prior, prior.encoder, *(draw_batch(split, 8192, draw) for split in (patches, test)))
    write_metrics("metrics/train_vae.json", {"train_vae": values})
    save_network(prior, "data/models/vae.safetensors")
    for name, rows in {"vae": curve, "vae_chapter": chapter_curve, "vae_residual": residual_curve}.items():
        write_csv(f"data/curves/{name}.csv", rows)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
