"""The chapter's own worked examples, with the library's pieces, into metrics/chapter.json.

On the chapter's photograph the numbers are the chapter's to every digit that it prints.
"""

import torch
from torch import Tensor

from genprior import images
from genprior.layers import mlp
from pipeline.files import write_metrics
from pipeline.losses import kl_standard_normal, minimax_discriminator, non_saturating_generator, reparameterise
from pipeline.params import load_params
from pipeline.run import run, set_up

SEED = 0  # the chapter's, whatever params.yaml says


def chapter_patches(file: str) -> Tensor:
    """The chapter's 16 patches of 16 × 16 from a photograph resized to 48 × 48: (16, 256) in [0, 1]."""
    image = images.resize(images.read_photograph(file), [48, 48])[:40, :40]  # offsets 0, 8, 16, 24
    return torch.from_numpy(images.cut_patches(image, [16, 16], 8)).flatten(1).float() / 255


def autoencoder(data: Tensor) -> dict[str, float]:
    """Reconstruction loss of the tiny autoencoder, k = 16, full batch."""
    torch.manual_seed(SEED)
    encoder = mlp([256, 64, 16])
    decoder = torch.nn.Sequential(mlp([16, 64, 256]), torch.nn.Sigmoid())
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    printed = {}
    for epoch in range(1, 201):
        loss = torch.mean((decoder(encoder(data)) - data) ** 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch in (1, 20, 100, 200):
            printed[f"epoch_{epoch:03d}"] = round(loss.item(), 6)
    return printed


def variational_autoencoder(data: Tensor) -> dict[str, dict[str, float]]:
    """Reconstruction and KL of the tiny VAE, k = 8: mean squared error + 0.05 · KL per latent unit."""
    torch.manual_seed(SEED)
    encoder = torch.nn.Sequential(mlp([256, 64]), torch.nn.ReLU())
    mean_head, log_variance_head = torch.nn.Linear(64, 8), torch.nn.Linear(64, 8)
    decoder = torch.nn.Sequential(mlp([8, 64, 256]), torch.nn.Sigmoid())
    network = torch.nn.ModuleList([encoder, mean_head, log_variance_head, decoder])
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    printed = {}
    for epoch in range(1, 251):
        features = encoder(data)
        mean, log_variance = mean_head(features), log_variance_head(features)
        z = reparameterise(mean, torch.exp(0.5 * log_variance), torch.randn_like(mean))
        reconstruction = torch.mean((decoder(z) - data) ** 2)
        kl = kl_standard_normal(mean, log_variance).mean() / 8
        loss = reconstruction + 0.05 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
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
    torch.manual_seed(SEED)
    mean, std = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.25])
    draws = [reparameterise(mean, std, torch.randn_like(std)) for _ in range(5)]
    return {
        f"draw_{i}": {f"z{j}": round(value, 4) for j, value in enumerate(draw.tolist(), 1)}
        for i, draw in enumerate(draws, 1)
    }


def gan_1d() -> dict[str, dict[str, float]]:
    """Losses of the 1-D GAN whose target is N(1.5, 0.2²), the mean of its samples, and their spread."""
    torch.manual_seed(SEED)
    generator, discriminator = mlp([1, 16, 1]), mlp([1, 16, 1])
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    printed = {}
    for step in range(1, 201):
        real = torch.randn(64, 1) * 0.2 + 1.5
        fake = generator(torch.randn(64, 1)).detach()
        d_loss = minimax_discriminator(discriminator(real), discriminator(fake))
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()

        g_loss = non_saturating_generator(None, discriminator(generator(torch.randn(64, 1))))
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        if step in (1, 50, 100, 200):
            with torch.no_grad():
                samples = generator(torch.randn(256, 1))
            printed[f"step_{step:03d}"] = {
                "d_loss": round(d_loss.item(), 4),
                "g_loss": round(g_loss.item(), 4),
                "fake_mean": round(samples.mean().item(), 4),
                "fake_std": round(samples.std().item(), 4),  # not printed there: the spread collapses
            }
    return printed


def gan_losses() -> dict[str, float | dict[str, float]]:
    """The toy GAN losses of three real and three fake logits, and the probabilities behind them."""
    real, fake = torch.tensor([2.5, 1.8, 3.2]).sigmoid(), torch.tensor([-1.2, -0.7, 0.1]).sigmoid()
    # From probabilities, as the chapter does it: the library's form from logits is safe for large ones, and differs
    # from this in the last bit of the 16 digits that the chapter prints.
    return {
        "discriminator": -(real.log().mean() + (1 - fake).log().mean()).item(),
        "generator": -fake.log().mean().item(),
        "d_real": {f"x{i}": round(p, 4) for i, p in enumerate(real.tolist(), 1)},
        "d_fake": {f"x{i}": round(p, 4) for i, p in enumerate(fake.tolist(), 1)},
    }


def main() -> None:
    params = load_params("params.yaml")
    set_up(params.model_copy(update={"device": "cpu"}))  # seconds of work, and the chapter's numbers are a CPU's
    data = chapter_patches(params.chapter.image)
    printed = {
        "autoencoder": autoencoder(data),
        "vae": variational_autoencoder(data),
        "elbo": elbo(),
        "reparameterisation": reparameterisation(),
        "gan_1d": gan_1d(),
        "gan_losses": gan_losses(),
    }
    # 17 digits: what is to be rounded is rounded above, as the chapter prints it.
    write_metrics("metrics/chapter.json", {"chapter": printed}, digits=17)


if __name__ == "__main__":
    run(main)
