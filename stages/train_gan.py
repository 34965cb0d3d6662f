"""Generative adversarial network: generator against discriminator over training patches."""

import pandas as pd
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from genprior.losses import ADVERSARIAL, gradient_penalty
from genprior.networks import mlp
from genprior.params import Network, TrainGAN, load_params
from genprior.patches import draw_batch, load_patches, to_unit
from genprior.prior import Prior, save_prior
from genprior.stage import run, set_up, steps, write_csv, write_metrics
from genprior.training import cosine_adam, fit_residual, logged


def train(patches: Tensor, network: Network, settings: TrainGAN, seed: int) -> tuple[Prior, pd.DataFrame]:
    """Train on uint8 patches (N, 1, h, w); returns the averaged generator and the curve of both losses.

    Each step is one of the discriminator, with R1 + R2 penalties of weight `gradient_penalty`, then one of the
    generator. Both players see standardised DCT coefficients. R3GAN's loss: Huang et al. 2024, section 2.
    """
    generator = Prior(patches.shape[2:], **network.model_dump(), noise="dct", encoder="variational")
    coefficients = generator.coefficients.fit(to_unit(patches.cpu()))
    discriminator = mlp([len(coefficients.mean), *settings.discriminator_hidden, 1], "leaky_relu")
    generator.to(patches.device), discriminator.to(patches.device)
    average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(settings.average))
    # No momentum and a short memory of the second moment: the opponent moves (R3GAN, appendix).
    g_optimizer, g_schedule = cosine_adam(generator, settings.lr, settings.steps, betas=(0.0, 0.99))
    d_optimizer, d_schedule = cosine_adam(discriminator, settings.lr, settings.steps, betas=(0.0, 0.99))
    d_loss_of, g_loss_of = ADVERSARIAL[settings.loss]
    draw = torch.Generator().manual_seed(seed)

    def generate(count: int) -> Tensor:
        z = torch.randn(count, network.latent_size, generator=draw).to(patches.device)
        return generator.decoder(z)

    rows = []
    for step in (bar := steps(settings.steps, "train_gan")):
        real = coefficients.analyse(draw_batch(patches, settings.batch_size, draw))
        fake = generate(len(real)).detach()
        d_loss = d_loss_of(discriminator(real), discriminator(fake))
        penalty = torch.zeros(())
        if settings.gradient_penalty:
            penalty = gradient_penalty(discriminator, real) + gradient_penalty(discriminator, fake)
        d_optimizer.zero_grad()
        (d_loss + settings.gradient_penalty * penalty).backward()
        d_optimizer.step()
        d_schedule.step()

        g_loss = g_loss_of(discriminator(real), discriminator(generate(len(real))))
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        g_schedule.step()
        average.update_parameters(generator)
        if logged(step, settings.steps):
            rows.append({"step": step + 1, "d_loss": d_loss.item(), "g_loss": g_loss.item(), "penalty": penalty.item()})
            bar.set_postfix(d=f"{d_loss.item():.3f}", g=f"{g_loss.item():.3f}")
    return average.module, pd.DataFrame(rows)


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params)
    patches = load_patches("data/patches/train.npy", device)
    prior, curve = train(patches, params.network, params.train_gan, params.seed)
    residual_curve = fit_residual(prior, prior.encoder, patches, params.residual, params.seed)
    prior.eval().requires_grad_(False)
    write_metrics("metrics/train_gan.json", {"train_gan": curve.iloc[-1].drop("step").to_dict()})
    save_prior(prior, "data/models/gan.safetensors")
    write_csv("data/curves/gan.csv", curve)
    write_csv("data/curves/gan_residual.csv", residual_curve)


if __name__ == "__main__":
    run(main)
