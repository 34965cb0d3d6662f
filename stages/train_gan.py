"""Generative adversarial network: generator against discriminator over training patches."""

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from genprior.layers import mlp
from genprior.networks import PriorNetwork, save_network
from pipeline.files import write_csv, write_metrics
from pipeline.losses import ADVERSARIAL, curvature_penalty, gradient_penalty, lipschitz_penalty
from pipeline.measures import prdc
from pipeline.params import Network, TrainGAN, load_params
from pipeline.patches import draw_batch, load_splits, to_unit
from pipeline.run import run, set_up
from pipeline.training import Checkpoint, check_residual, cosine_adam, fit_residual, logged, resumable

MONITORED = 1000  # patches and samples behind each row's coverage, recall and spread


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
) -> tuple[PriorNetwork, pd.DataFrame]:
    """Train on uint8 patches (N, 1, h, w); returns the averaged generator and the curve of the game.

    Each step is one of the discriminator with its penalty, then one of the generator with its own. The default is
    R3GAN's game: Huang et al. 2024, section 2.
    """
    generator = PriorNetwork(patches.shape[2:], **network.model_dump(), noise="dct", encoder="variational")
    coefficients = generator.coefficients.fit(to_unit(patches.cpu()))
    discriminator = Discriminator(coefficients.scale.clone(), settings)
    generator.to(patches.device), discriminator.to(patches.device)
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    # No momentum and a short memory of the second moment: the opponent moves (R3GAN, appendix).
    g_optimizer, g_schedule = cosine_adam(generator, settings.lr, settings.steps, betas=(0.0, 0.99))
    d_optimizer, d_schedule = cosine_adam(discriminator, settings.lr, settings.steps, betas=(0.0, 0.99))
    d_loss_of, g_loss_of = ADVERSARIAL[settings.loss]
    draw = torch.Generator().manual_seed(seed)
    monitored = to_unit(patches[torch.randperm(len(patches), generator=draw)[:MONITORED].to(patches.device)])

    def latent(count: int) -> Tensor:
        return torch.randn(count, network.latent_size, generator=draw).to(patches.device)

    def penalty_of(real: Tensor, fake: Tensor, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        if settings.loss == "wasserstein":
            return lipschitz_penalty(discriminator, real, fake, torch.rand(len(real), 1, generator=draw).to(real))
        return gradient_penalty(real_logits, real) + gradient_penalty(fake_logits, fake)

    rows = []
    state = [generator, discriminator, average, g_optimizer, d_optimizer, g_schedule, d_schedule, draw]
    for step in (bar := resumable(settings.steps, "train_gan", checkpoint, state, rows)):
        real = coefficients.analyse(draw_batch(patches, settings.batch_size, draw)).requires_grad_()
        with torch.no_grad():
            fake = generator.decoder(latent(len(real)))
        real_logits, fake_logits = discriminator(real), discriminator(fake.requires_grad_())
        d_loss, penalty = d_loss_of(real_logits, fake_logits), torch.zeros(())
        if settings.gradient_penalty:
            penalty = penalty_of(real, fake, real_logits, fake_logits)
        d_optimizer.zero_grad()
        (d_loss + settings.gradient_penalty * penalty).backward(inputs=list(discriminator.parameters()))
        d_optimizer.step()
        d_schedule.step()

        z = latent(len(real))
        fake = generator.decoder(z)
        g_loss = g_loss_of(discriminator(real), discriminator(fake))
        bend = torch.zeros(())
        if settings.curvature:
            direction = 0.5 * torch.nn.functional.normalize(latent(len(real)))
            bend = curvature_penalty(generator.decoder, z, fake, direction)
        g_optimizer.zero_grad()
        (g_loss + settings.curvature * bend).backward(inputs=list(generator.parameters()))
        g_optimizer.step()
        g_schedule.step()
        average.update_parameters(generator)
        if logged(step, settings.steps, rows=20):
            row = {"step": step + 1, "d_loss": d_loss.item(), "g_loss": g_loss.item(), "penalty": penalty.item()}
            row |= {"curvature": bend.item(), **collapse(average.module, monitored, seed)}
            rows.append(row)
            bar.set_postfix(d=f"{row['d_loss']:.3f}", g=f"{row['g_loss']:.3f}", coverage=f"{row['coverage']:.2f}")
    return average.module, pd.DataFrame(rows)


@torch.no_grad()
def collapse(generator: PriorNetwork, real: Tensor, seed: int, neighbours: int = 5) -> dict[str, float]:
    """What shows mode collapse: coverage and recall of real patches (N, 1, h, w); the samples' spread over theirs."""
    fake = generator.sample(len(real), torch.Generator().manual_seed(seed), residual=False)
    found = prdc(real, fake, min(neighbours, len(real) - 1))
    spread = fake.flatten(1).var(0).sum() / real.flatten(1).var(0).sum()
    return {"coverage": found["coverage"], "recall": found["recall"], "spread": spread.sqrt().item()}


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params)
    settings = params.train_gan
    patches, test = load_splits("data/patches", device, ("train", "test"))
    checkpoint = Checkpoint(".checkpoints/train_gan", params, __file__, patches)
    prior, curve = train(patches, params.network, settings, params.seed, checkpoint)
    residual_curve = fit_residual(prior, prior.encoder, patches, params.residual, params.seed, checkpoint)
    prior.eval().requires_grad_(False)
    as_printed = {"loss": "minimax", "gradient_penalty": 0.0, "spectral_norm": False, "curvature": 0.0, "average": 0.0}
    chapters = settings.model_copy(update={**as_printed, "steps": settings.chapter_steps})
    _, chapter_curve = train(patches, params.network, chapters, params.seed, checkpoint)
    draw = torch.Generator().manual_seed(params.seed)
    values = curve.iloc[-1].drop("step").to_dict()
    values |= check_residual(prior, prior.encoder, *(draw_batch(split, 8192, draw) for split in (patches, test)))
    write_metrics("metrics/train_gan.json", {"train_gan": values})
    save_network(prior, "data/models/gan.safetensors")
    write_csv("data/curves/gan.csv", curve)
    write_csv("data/curves/gan_chapter.csv", chapter_curve)
    write_csv("data/curves/gan_residual.csv", residual_curve)
    checkpoint.remove()


if __name__ == "__main__":
    run(main)
