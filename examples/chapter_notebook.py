# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Variational autoencoders and GANs as priors for imaging
#
# The chapter with the library's pieces, on one photograph. `jupytext --to notebook examples/chapter_notebook.py` makes
# a notebook of this file, and Jupyter with jupytext opens it as one. It runs in a minute.

# %%
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch

import genprior
from genprior.images import cut_patches, psnr_db, tile
from genprior.layers import mlp
from genprior.networks import PriorNetwork
from genprior.views import Prior
from pipeline.losses import (
    elbo_terms,
    kl_standard_normal,
    minimax_discriminator,
    non_saturating_generator,
    reparameterise,
)

torch.manual_seed(0)
grey = skimage.data.camera()[::2, ::2].copy()
train, test = (torch.from_numpy(cut_patches(half, (8, 8), 2))[:, None] / 255 for half in (grey[:128], grey[128:]))
print(f"{len(train)} patches of 8 × 8 pixels to train on, {len(test)} others")

# %% [markdown]
# ## The reparameterization trick
#
# z = μ + σ ⊙ ε has the law N(μ, σ²), and gradients in μ and σ: the chance is in ε.

# %%
mean, std = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([0.5, 0.25], requires_grad=True)
z = reparameterise(mean.expand(10_000, 2), std, torch.randn(10_000, 2))
z.square().mean(0).sum().backward()
print("mean and deviation of the draws:", z.mean(0).tolist(), z.std(0).tolist())
print("gradient of E|z|² in the mean, 2 μ:", mean.grad.tolist())

# %% [markdown]
# ## A VAE
#
# Encoder and decoder maximise the ELBO, E_q log p(x | z) − KL(q(z | x) ‖ N(0, I)). The decoder is N(G(z), σ² I) with
# one learned σ.

# %%
vae = PriorNetwork((8, 8), 8, [64, 64], "silu", noise="constant", encoder="variational")
vae.coefficients.fit(train)
optimizer, curve = torch.optim.Adam(vae.parameters(), lr=3e-3), []
for _ in range(1500):
    x = train[torch.randint(len(train), (256,))]
    terms = elbo_terms(vae, vae.encoder, x, torch.randn(256, 8))
    loss = (terms["kl"] - terms["log_likelihood"]).mean() / 64
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    curve.append(-loss.item())
prior = Prior(vae.eval().requires_grad_(False))

with torch.no_grad():
    mean, log_variance = vae.encoder(test)
    kl = kl_standard_normal(mean, log_variance).mean().item()
    error = (vae.decode(vae.encode(test)) - test).square().mean()
print(
    f"ELBO {np.mean(curve[-100:]):.2f} nats a pixel; on other patches KL {kl:.1f} nats, G(E(x)) {psnr_db(error):.1f} dB"
)
plt.plot(curve)
plt.ylabel("ELBO, nats a pixel")

# %% [markdown]
# ## Samples
#
# Real patches, and G(z) with z ~ N(0, I): smooth, as the chapter says.

# %%
_, panels = plt.subplots(1, 2)
for panel, images in zip(panels, (test[:: len(test) // 64][:64], prior.range.sample(64, seed=1)), strict=True):
    panel.imshow(tile(images.squeeze(1).numpy(), 8), cmap="gray", vmin=0, vmax=1)
    panel.axis("off")

# %% [markdown]
# ## A GAN in one dimension
#
# The chapter's game: the generator is to draw N(1.5, 0.2²). Look at the mean, and at the spread.

# %%
generator, discriminator = mlp([1, 16, 1]), mlp([1, 16, 1])
g_optimizer, d_optimizer = (torch.optim.Adam(net.parameters(), lr=1e-2) for net in (generator, discriminator))
for step in range(1, 401):
    real = 1.5 + 0.2 * torch.randn(64, 1)
    d_loss = minimax_discriminator(discriminator(real), discriminator(generator(torch.randn(64, 1)).detach()))
    d_optimizer.zero_grad()
    d_loss.backward()
    d_optimizer.step()
    g_loss = non_saturating_generator(None, discriminator(generator(torch.randn(64, 1))))
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()
    if step % 100 == 0:
        fake = generator(torch.randn(1000, 1))
        print(f"step {step}: mean {fake.mean():.2f}, spread {fake.std():.3f}")

# %% [markdown]
# ## An inverse problem
#
# y = K x + e with 70 % of the pixels missing. The chapter's reconstruction is the argmin of ‖K G(z) − y‖² + λ‖z‖², in
# the range of G. The posterior mean may leave it, by what σ says of G's residuals.

# %%
x = test[torch.randperm(len(test))[:64]]
K = genprior.operators.Inpainting(torch.rand(8, 8) < 0.3)
y = genprior.measure(K, x, sigma=0.02, seed=1)
confined = genprior.restore(prior.range, K, y, sigma=0.02)
post = genprior.posterior(prior, K, y, sigma=0.02, samples=100, seed=2)
low, high = post.interval(0.9)
for name, found in {"in the range": confined.x, "posterior mean": post.mean}.items():
    print(f"{name}: {psnr_db((found - x).square().mean()):.1f} dB")
print(f"90 % intervals hold {((low <= x) & (x <= high)).float().mean():.0%} of the pixels")

_, panels = plt.subplots(1, 4)
shown = {"x": x, "y": K.A_adjoint(y), "range": confined.x, "posterior mean": post.mean}
for panel, (name, images) in zip(panels, shown.items(), strict=True):
    panel.imshow(tile(images[:16].squeeze(1).numpy(), 4), cmap="gray", vmin=0, vmax=1)
    panel.set_title(name)
    panel.axis("off")
plt.show()
