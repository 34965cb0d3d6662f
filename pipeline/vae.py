"""The training of a VAE: of the chapter's, in `train_vae`, and of one with a Σ(z) of its own, in `train_svae`."""

from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from genprior.images import psnr_db
from genprior.networks import PriorNetwork
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.losses import elbo_terms, kl_standard_normal
from pipeline.params import Training
from pipeline.patches import TOGETHER, draw_batch
from pipeline.training import cosine_adam, descend, logged

Terms = dict[str, Tensor]  # of `elbo_terms`


def train(
    prior: PriorNetwork,
    loss_of: Callable[[Terms], Tensor],
    patches: tuple[Tensor, Tensor],
    settings: Training,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train encoder and decoder on uint8 patches (N, 1, h, w), to train on and to validate; returns the curve.

    loss_of: what is minimised, a scalar, of the ELBO's terms of a batch.
    """
    known, validation = patches
    n, k = known[0].numel(), prior.latent_size
    optimizer, schedule = cosine_adam(prior, settings.lr, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    x_validation = draw_batch(validation, 2048, torch.Generator().manual_seed(seed))

    def means_of(x: Tensor, noise: Tensor) -> Terms:
        terms = elbo_terms(prior, prior.encoder, x, noise)
        return {"loss": loss_of(terms), **{name: term.mean() for name, term in terms.items()}}

    rows = []
    state = [prior, optimizer, schedule, generator]
    for step in (bar := resumable(settings.steps, "VAE", checkpoint, state, rows)):
        x = draw_batch(known, settings.batch_size, generator)
        noise = torch.randn(len(x), k, generator=generator).to(x.device)
        means = descend(means_of, (x, noise), prior, optimizer, schedule)
        if logged(step, settings.steps):
            rows.append({"step": step + 1, **summary("train", means, n)})
            rows[-1] |= summary("validation", measure(prior, x_validation, seed), n)
            bar.set_postfix(elbo=f"{rows[-1]['train_elbo']:.3f}")
    return pd.DataFrame(rows)


@torch.no_grad()
def measure(prior: PriorNetwork, x: Tensor, seed: int) -> Terms:
    """The ELBO's terms with one latent draw, the same for every call with this seed."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(x), prior.latent_size, generator=generator).to(x.device)
    parts = zip(x.split(TOGETHER), noise.split(TOGETHER), strict=True)  # which bounds memory
    terms = [elbo_terms(prior, prior.encoder, *part) for part in parts]
    return {name: torch.cat([part[name] for part in terms]) for name in terms[0]}


def summary(split: str, terms: Terms, n: int) -> dict[str, float]:
    """Means of the terms as the curve shows them; the ELBO in nats per pixel, the KL in nats per patch."""
    return {
        f"{split}_elbo": (terms["log_likelihood"] - terms["kl"]).mean().item() / n,
        f"{split}_kl": terms["kl"].mean().item(),
        f"{split}_mse": terms["squared_error"].mean().item() / n,
    }


@torch.no_grad()
def held_out(prior: PriorNetwork, x: Tensor, seed: int) -> dict[str, float]:
    """The ELBO's terms on patches (N, 1, h, w), the codes in use, and the PSNR of G(E(x))."""
    parts = x.split(TOGETHER)
    mean, log_variance = map(torch.cat, zip(*(prior.encoder(part) for part in parts), strict=True))
    errors = [(prior.decode(prior.encode(part)) - part).square().flatten(1).mean(1) for part in parts]
    kl = kl_standard_normal(mean[..., None], log_variance[..., None]).mean(0)  # of each coordinate
    return {
        **summary("test", measure(prior, x, seed), x[0].numel()),
        # A latent unit is active when its posterior mean moves with the patch (Burda et al. 2016, section 5.2).
        "active_units": int((mean.var(0) > 0.01).sum()),
        "used_units": int((kl > 0.1).sum()),
        "test_psnr_db": psnr_db(torch.cat(errors).mean()),
    }
