"""Generative adversarial network: generator against discriminator over training patches."""

import math

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from genprior.layers import mlp
from genprior.networks import PriorNetwork, save_network
from pipeline import ranks
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.files import write_array, write_csv, write_metrics
from pipeline.losses import ADVERSARIAL, curvature_penalty, gradient_penalty, lipschitz_penalty
from pipeline.params import Network, TrainGAN, load_params
from pipeline.patches import different_patches, draw_batch, load_splits, spread, to_unit
from pipeline.run import run, set_up
from pipeline.training import check_residual, cosine_adam, descend, fit_residual, logged

MONITORED = 1000  # samples in a snapshot of the generator


class Discriminator(nn.Sequential):
    """D: standardised coefficients (N, n) -> logits (N, 1), each coefficient seen at the size that it has in patches.

    Standardised, the faintest of them would count as much as the mean, and a generator of k numbers cannot please all.
    """

    def __init__(self, scale: Tensor, settings: TrainGAN):
        layers = mlp([len(scale), *settings.discriminator_hidden, 1], "leaky_relu")
        if settings.spectral_norm:
            layers = [spectral_norm(layer) if isinstance(layer, nn.Linear) else layer for layer in layers]
        super().__init__(*layers)
        self.register_buffer("size", scale / scale.square().mean().sqrt())

    def forward(self, c: Tensor) -> Tensor:
        return super().forward(self.size * c)


def train(
    patches: Tensor, network: Network, settings: TrainGAN, seed: int, checkpoint: Checkpoint | None = None
) -> tuple[PriorNetwork, list[dict]]:
    """Train on uint8 patches (N, 1, h, w); returns the averaged generator and the game's rows, each with samples.

    A step is one of each player, with its penalty. The default is R3GAN's game: Huang et al. 2024, section 2.
    """
    generator = PriorNetwork(patches.shape[2:], **network.model_dump(), encoder="variational")
    coefficients = generator.coefficients.fit(to_unit(spread(patches).cpu()))
    discriminator = Discriminator(coefficients.scale.clone(), settings)
    generator.to(patches.device), discriminator.to(patches.device)
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    # No momentum and a short memory of the second moment: the opponent moves (R3GAN, appendix).
    g_optimizer, g_schedule = cosine_adam(generator, settings.lr, settings.steps, betas=(0.0, 0.99))
    d_optimizer, d_schedule = cosine_adam(discriminator, settings.lr, settings.steps, betas=(0.0, 0.99))
    d_loss_of, g_loss_of = ADVERSARIAL[settings.loss]
    draw = torch.Generator().manual_seed(seed)
    monitored = different_patches(patches, MONITORED, draw)  # the stage `sample` holds the samples against these

    def latent(count: int) -> Tensor:
        return torch.randn(count, network.latent_size, generator=draw).to(patches.device)

    def of_discriminator(real: Tensor, fake: Tensor, weight: Tensor) -> dict[str, Tensor]:
        real, fake = real.requires_grad_(), fake.requires_grad_()
        real_logits, fake_logits = discriminator(real), discriminator(fake)
        d_loss, penalty = d_loss_of(real_logits, fake_logits), torch.zeros((), device=real.device)
        if settings.gradient_penalty and settings.loss == "wasserstein":
            penalty = lipschitz_penalty(discriminator, real, fake, weight)
        elif settings.gradient_penalty:
            penalty = gradient_penalty(real_logits, real) + gradient_penalty(fake_logits, fake)
        return {"loss": d_loss + settings.gradient_penalty * penalty, "d_loss": d_loss, "penalty": penalty}

    def of_generator(real: Tensor, z: Tensor, direction: Tensor) -> dict[str, Tensor]:
        fake, bend = generator.decoder(z), torch.zeros((), device=z.device)
        g_loss = g_loss_of(discriminator(real), discriminator(fake))
        if settings.curvature:
            reach = 0.5 * nn.functional.normalize(direction)
            bend = curvature_penalty(generator.decoder, z, fake, reach)
        return {"loss": g_loss + settings.curvature * bend, "g_loss": g_loss, "curvature": bend}

    rows = []
    state = [generator, discriminator, average, g_optimizer, d_optimizer, g_schedule, d_schedule, draw]
    for step in (bar := resumable(settings.steps, "train_gan", checkpoint, state, rows)):
        real = coefficients.analyse(draw_batch(patches, settings.batch_size, draw))
        with torch.no_grad():
            fake = generator.decoder(latent(len(real)))
        weight = torch.rand(len(real), 1, generator=draw).to(real)
        if settings.spectral_norm:  # one power iteration for all shards
            discriminator.train()(fake[:1])
            discriminator.eval()
        row = descend(of_discriminator, (real, fake, weight), discriminator, d_optimizer, d_schedule, clip=math.inf)
        z, direction = latent(len(real)), latent(len(real))
        row |= descend(of_generator, (real, z, direction), generator, g_optimizer, g_schedule, clip=math.inf)
        average.update_parameters(generator)
        if logged(step, settings.steps, rows=20):
            samples = average.module.sample(len(monitored), torch.Generator().manual_seed(seed), residual=False)
            row = {name: row[name].item() for name in ("d_loss", "g_loss", "penalty", "curvature")}
            rows.append({"step": step + 1, **row, "samples": samples.squeeze(1).half().cpu()})
            bar.set_postfix(row)
    return average.module, rows


def main() -> None:
    params = load_params("params.yaml")
    device, settings = set_up(params), params.train_gan
    patches, test = load_splits("data/patches", device, ("train", "test"))
    checkpoint = Checkpoint(".checkpoints/train_gan", params, __file__, patches)
    prior, rows = train(patches, params.network, settings, params.seed, checkpoint)
    residual_curve = fit_residual(prior, prior.encoder, patches, params.residual, params.seed, checkpoint)
    prior.eval().requires_grad_(False)
    as_printed = {"loss": "minimax", "gradient_penalty": 0.0, "spectral_norm": False, "curvature": 0.0, "average": 0.0}
    settings = settings.model_copy(update={**as_printed, "steps": settings.chapter_steps})
    _, chapter_rows = train(patches, params.network, settings, params.seed, checkpoint)
    ranks.leave_to_first()

    draw = torch.Generator().manual_seed(params.seed)
    values = {name: rows[-1][name] for name in ("d_loss", "g_loss", "penalty", "curvature")}
    values |= check_residual(prior, prior.encoder, *(draw_batch(split, 8192, draw) for split in (patches, test)))
    write_metrics("metrics/train_gan.json", {"train_gan": values})
    save_network(prior, "data/models/gan.safetensors")
    for name, game in {"gan": rows, "gan_chapter": chapter_rows}.items():
        snapshots = [(row["step"], row.pop("samples").numpy()) for row in game]
        kind = [("step", np.int64), ("samples", np.float16, snapshots[0][1].shape)]
        write_array(f"data/snapshots/{name}.npy", np.array(snapshots, kind))
        write_csv(f"data/curves/{name}.csv", pd.DataFrame(game))
    write_csv("data/curves/gan_residual.csv", residual_curve)
    checkpoint.remove()


if __name__ == "__main__":
    run(main, shared=True)
