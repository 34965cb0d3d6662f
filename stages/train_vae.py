"""Variational autoencoder: maximise the ELBO of a Gaussian decoder over training patches."""

import math

import pandas as pd
import torch
from torch import Tensor

from genprior.images import psnr_db
from genprior.networks import PriorNetwork, save_network
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.files import write_csv, write_metrics
from pipeline.losses import elbo_terms
from pipeline.params import Network, TrainVAE, load_params
from pipeline.patches import draw_batch, load_splits, to_unit
from pipeline.run import run, set_up
from pipeline.training import cosine_adam, descend, logged

CHAPTER_BETA = 0.05  # of the chapter's cell: mean squared error + 0.05 · mean KL


def objective(terms: dict[str, Tensor], settings: TrainVAE, n: int, k: int) -> Tensor:
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
    shape, k = patches.shape[2:], network.latent_size
    n = shape[0] * shape[1]
    noise = settings.noise if settings.noise in ("dct", "modulated", "pixel") else "constant"
    prior = PriorNetwork(shape, **network.model_dump(), noise=noise, encoder="variational")
    prior.coefficients.fit(to_unit(patches.cpu()))
    if noise == "constant":
        prior.decoder.log_sigma.data.fill_(math.log(decoder_sigma(settings, n, k)))
        prior.decoder.log_sigma.requires_grad_(settings.noise == "learned")
    prior.to(patches.device)
    optimizer, schedule = cosine_adam(prior, settings.lr, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    x_validation = draw_batch(validation, 2048, torch.Generator().manual_seed(seed))

    rows = []
    state = [prior, optimizer, schedule, generator]
    for step in (bar := resumable(settings.steps, "train_vae", checkpoint, state, rows)):
        x = draw_batch(patches, settings.batch_size, generator)
        terms = elbo_terms(prior, prior.encoder, x, torch.randn(len(x), k, generator=generator).to(x.device))
        loss = objective(terms, settings, n, k)
        descend(loss, prior, optimizer, schedule)
        if logged(step, settings.steps):
            rows.append({"step": step + 1, **summary("train", terms, n)})
            rows[-1] |= summary("validation", measure(prior, x_validation, seed), n)
            bar.set_postfix(elbo=f"{rows[-1]['train_elbo']:.3f}")
    return prior.eval().requires_grad_(False), pd.DataFrame(rows)


@torch.no_grad()
def measure(prior: PriorNetwork, x: Tensor, seed: int) -> dict[str, Tensor]:
    """The ELBO's terms with one latent draw, the same for every call with this seed."""
    generator = torch.Generator().manual_seed(seed)
    return elbo_terms(prior, prior.encoder, x, torch.randn(len(x), prior.latent_size, generator=generator).to(x.device))


def summary(split: str, terms: dict[str, Tensor], n: int) -> dict[str, float]:
    """Means of the terms as the curve shows them; the ELBO in nats per pixel, the KL in nats per patch."""
    return {
        f"{split}_elbo": (terms["log_likelihood"] - terms["kl"]).mean().item() / n,
        f"{split}_kl": terms["kl"].mean().item(),
        f"{split}_mse": terms["squared_error"].mean().item() / n,
    }


@torch.no_grad()
def held_out(prior: PriorNetwork, x: Tensor, seed: int) -> dict[str, float]:
    """The ELBO's terms on patches (N, 1, h, w), the codes in use, and the PSNR of G(E(x))."""
    mean, _ = prior.encoder(x)
    return {
        **summary("test", measure(prior, x, seed), x[0].numel()),
        # A latent unit is active when its posterior mean moves with the patch (Burda et al. 2016, section 5.2).
        "active_units": int((mean.var(0) > 0.01).sum()),
        "test_psnr_db": psnr_db((prior.decode(prior.encode(x)) - x).square().mean()),
    }


def main() -> None:
    params = load_params("params.yaml")
    device, settings = set_up(params), params.train_vae
    patches, validation, test = load_splits("data/patches", device)
    checkpoint = Checkpoint(".checkpoints/train_vae", params, __file__, patches, validation)
    prior, curve = train(patches, validation, params.network, settings, params.seed, checkpoint)
    as_printed = {"noise": "fixed", "objective": "chapter", "beta": CHAPTER_BETA, "steps": settings.chapter_steps}
    settings = settings.model_copy(update=as_printed)
    chapters, chapter_curve = train(patches, validation, params.network, settings, params.seed, checkpoint)

    x_test = draw_batch(test, None, torch.Generator().manual_seed(params.seed))
    values = {**curve.iloc[-1].drop("step").to_dict(), **held_out(prior, x_test, params.seed)}
    values["chapter"] = {**held_out(chapters, x_test, params.seed), "sigma": chapters.decoder.log_sigma.exp()}
    write_metrics("metrics/train_vae.json", {"train_vae": values})
    save_network(prior, "data/models/vae.safetensors")
    write_csv("data/curves/vae.csv", curve)
    write_csv("data/curves/vae_chapter.csv", chapter_curve)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
