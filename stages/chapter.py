"""The chapter's own worked examples, with the library's pieces, into metrics/chapter.json; the seed is always 0.

On the chapter's photograph the numbers are the chapter's to every digit that it prints, but for the last three of the
autoencoder: its 200 steps amplify how a CPU rounds."""

import torch
from torch import Tensor
from torch.nn import Linear, ModuleList, ReLU, Sequential, Sigmoid

from genprior import images
from genprior.layers import mlp
from genprior.photographs import read_photograph
from pipeline.files import photograph, write_metrics
from pipeline.losses import kl_standard_normal, minimax_discriminator, non_saturating_generator, reparameterise
from pipeline.params import load_params
from pipeline.run import run, set_up


def chapter_patches(file: str) -> Tensor:
    """The chapter's 16 patches of 16 × 16 from a photograph resized to 48 × 48: (16, 256) in [0, 1]."""
    image = images.resize(read_photograph(file), [48, 48])[:40, :40]  # offsets 0, 8, 16, 24
    return torch.from_numpy(images.cut_patches(image, [16, 16], 8)).flatten(1).float() / 255


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One training step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def autoencoder(data: Tensor) -> dict[str, float]:
    """Reconstruction loss of the tiny autoencoder, k = 16, full batch."""
    torch.manual_seed(0)
    encoder, decoder = mlp([256, 64, 16]), Sequential(mlp([16, 64, 256]), Sigmoid())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    printed = {}
    for epoch in range(1, 201):
        loss = torch.mean((decoder(encoder(data)) - data) ** 2)
        descend(loss, optimizer)
        if epoch in (1, 20, 100, 200):
            printed[f"epoch_{epoch:03d}"] = round(loss.item(), 6)
    return printed


def variational_autoencoder(data: Tensor) -> dict[str, dict[str, float]]:
    """Reconstruction and KL of the tiny VAE, k = 8: mean squared error + 0.05 · KL per latent unit."""
    torch.manual_seed(0)
    encoder, mean_head, log_variance_head = Sequential(mlp([256, 64]), ReLU()), Linear(64, 8), Linear(64, 8)
    decoder = Sequential(mlp([8, 64, 256]), Sigmoid())
    optimizer = torch.optim.Adam(ModuleList([encoder, mean_head, log_variance_head, decoder]).parameters(), lr=5e-3)
    printed = {}
    for epoch in range(1, 251):
        features = encoder(data)
        mean, log_variance = mean_head(features), log_variance_head(features)
        z = reparameterise(mean, torch.exp(0.5 * log_variance), torch.randn_like(mean))
        reconstruction = torch.mean((decoder(z) - data) ** 2)
        kl = kl_standard_normal(mean, log_variance).mean() / 8
        descend(reconstruction + 0.05 * kl, optimizer)
        if epoch in (1, 25, 100, 250):
            printed[f"epoch_{epoch:03d}"] = {"recon": round(reconstruction.item(), 6), "kl": round(kl.item(), 6)}
    return printed


def elbo() -> dict[str, float]:
    """The toy ELBO: a reconstruction term of 0.85 and the KL of a three-dimensional encoder distribution."""
    reconstruction = torch.tensor(0.85)
    kl = kl_standard_normal(torch.tensor([0.2, -0.4, 0.1]), torch.tensor([-0.7, 0.0, 0.3]))
    return {"reconstruction": reconstruction.item(), "kl": kl.item(), "elbo": -(reconstruction + kl).item()}


def reparameterisation() -> dict[str, dict[str, float]]:
    """Five latent draws z = μ + σ ⊙ ε."""
    torch.manual_seed(0)
    mean, std = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.25])
    draws = [reparameterise(mean, std, torch.randn_like(std)) for _ in range(5)]
    return {f"draw_{i}": {f"z{j}": round(draw[j - 1].item(), 4) for j in (1, 2)} for i, draw in enumerate(draws, 1)}


def gan_1d() -> dict[str, dict[str, float]]:
    """Losses of the 1-D GAN whose target is N(1.5, 0.2²), its samples' mean and, not in the chapter, their spread."""
    torch.manual_seed(0)
    generator, discriminator = mlp([1, 16, 1]), mlp([1, 16, 1])
    g_optimizer, d_optimizer = (torch.optim.Adam(net.parameters(), lr=1e-2) for net in (generator, discriminator))
    printed = {}
    for step in range(1, 201):
        real = torch.randn(64, 1) * 0.2 + 1.5
        d_loss = minimax_discriminator(discriminator(real), discriminator(generator(torch.randn(64, 1)).detach()))
        descend(d_loss, d_optimizer)
        g_loss = non_saturating_generator(None, discriminator(generator(torch.randn(64, 1))))
        descend(g_loss, g_optimizer)
        if step in (1, 50, 100, 200):
            samples = generator(torch.randn(256, 1))
            shown = {"d_loss": d_loss, "g_loss": g_loss, "fake_mean": samples.mean(), "fake_std": samples.std()}
            printed[f"step_{step:03d}"] = {name: round(value.item(), 4) for name, value in shown.items()}
    return printed


def gan_losses() -> dict[str, float | dict[str, float]]:
    """The toy GAN losses of three real and three fake logits, and the probabilities behind them."""
    real, fake = torch.tensor([2.5, 1.8, 3.2]).sigmoid(), torch.tensor([-1.2, -0.7, 0.1]).sigmoid()
    # From probabilities, as there: `minimax_discriminator`, from logits, differs in the last of the 16 printed digits.
    return {
        "discriminator": -(real.log().mean() + (1 - fake).log().mean()).item(),
        "generator": -fake.log().mean().item(),
        "d_real": {f"x{i}": round(p, 4) for i, p in enumerate(real.tolist(), 1)},
        "d_fake": {f"x{i}": round(p, 4) for i, p in enumerate(fake.tolist(), 1)},
    }


def main() -> None:
    params = load_params("params.yaml")
    set_up(params.model_copy(update={"device": "cpu"}))  # seconds of work, and the chapter's numbers are a CPU's
    data = chapter_patches(str(photograph(params.chapter.image)))
    printed = {"autoencoder": autoencoder(data), "vae": variational_autoencoder(data)}
    printed |= {cell.__name__: cell() for cell in (elbo, reparameterisation, gan_1d, gan_losses)}
    write_metrics("metrics/chapter.json", {"chapter": printed}, digits=17)  # rounded above, as the chapter prints it


if __name__ == "__main__":
    run(main)
