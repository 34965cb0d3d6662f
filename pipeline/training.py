"""What the training stages share: Adam and its schedule, one step, a curve's rows, the fit of a residual model."""

from collections.abc import Callable
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from genprior.files import InputError
from genprior.layers import Encoder
from genprior.networks import PriorNetwork
from pipeline import ranks
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.losses import elbo_terms
from pipeline.params import Residual
from pipeline.patches import draw_batch

Schedule = torch.optim.lr_scheduler.LRScheduler


def cosine_adam(network: nn.Module, lr: float, count: int, **options) -> tuple[torch.optim.Optimizer, Schedule]:
    """Adam and a learning rate that falls from `lr` to 0 along half a cosine over `count` steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True, **options)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)


def descend(
    means_of: Callable[..., dict[str, Tensor]],
    batch: tuple[Tensor, ...],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | None = None,
    clip: float = 1.0,
) -> dict[str, Tensor]:
    """One training step down a loss: of this network alone, its gradient's norm at most `clip`.

    means_of: the mean "loss" of a part of the batch, of each of its tensors, and means of what else a curve shows. The
    batch is cut into shards, which ranks share. Gradients are added in the shards' order, whoever computed them.
    Returns the means over the batch.
    """
    size = len(batch[0])
    shards, parameters = min(ranks.SHARDS, size), [own for own in network.parameters() if own.requires_grad]
    if shards < ranks.count():
        raise InputError(f"a batch of {size}: fewer patches than {ranks.count()} ranks; a larger batch_size is right")
    rows = []
    for shard in range(ranks.rank(), shards, ranks.count()):
        part = slice(size * shard // shards, size * (shard + 1) // shards)
        means = means_of(*(tensor[part] for tensor in batch))
        found = torch.autograd.grad(means["loss"], parameters, allow_unused=True)
        numbers = [gradient.flatten() for gradient in found if gradient is not None]
        rows.append(torch.cat([*numbers, *(mean.detach()[None] for mean in means.values())]))
        rows[-1] *= (part.stop - part.start) / size
    rows += [torch.zeros_like(rows[0])] * (-(-shards // ranks.count()) - len(rows))  # every rank gathers as many
    total, *others = ranks.rows_of_all(torch.stack(rows))
    for row in others:
        total = total + row

    moved = [own for own, gradient in zip(parameters, found, strict=True) if gradient is not None]
    *gradients, last = total.split([*(own.numel() for own in moved), len(means)])
    optimizer.zero_grad()
    for own, gradient in zip(moved, gradients, strict=True):
        own.grad = gradient.view_as(own)
    nn.utils.clip_grad_norm_(moved, clip)
    optimizer.step()
    if schedule is not None:
        schedule.step()
    return dict(zip(means, last, strict=True))


def logged(step: int, count: int, rows: int = 100) -> bool:
    """Whether a training curve of about `rows` rows has one for this step (counted from 0); the last always."""
    return step % max(1, count // rows) == 0 or step == count - 1


def fit_residual(
    prior: PriorNetwork,
    encoder: Encoder,
    patches: Tensor,
    settings: Residual,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Fit where a trained decoder's codes lie, T, and what it leaves out, v(z), with G as it is; returns the curve.

    Maximised: the ELBO over T, v and the encoder, + code_weight · log p_T(t), the density of G's own codes t. The ELBO
    alone would leave all to v and draw T to one point; the density alone gives codes whose posterior is all spikes.
    While warm_up lasts, the KL counts for less: a code that v does not use yet would else be given up for good
    (Bowman et al. 2016, section 3.1).

    patches: uint8 (N, 1, h, w); encoder: variational, in terms of z ~ N(0, I). code_weight None: T is the identity.
    """
    prior.requires_grad_(False).add_residual(settings.noise)
    fitted = nn.ModuleList([encoder.requires_grad_(True), prior.decoder.log_variance])
    if settings.noise == "modulated":
        fitted.append(prior.decoder.log_scale)
    if settings.code_weight is not None and prior.latent_size > 1:  # a flow moves one half of the codes by the other
        prior.add_flow()
        fitted.append(prior.flow)
    optimizer, schedule = cosine_adam(fitted, settings.lr, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    n, k, rows = patches[0].numel(), prior.latent_size, []

    def normal(count: int) -> Tensor:
        return torch.randn(count, k, generator=generator).to(patches.device)

    def means_of(kl_weight: float, x: Tensor, noise: Tensor, codes: Tensor | None = None) -> dict[str, Tensor]:
        terms = elbo_terms(prior, encoder, x, noise)
        loss = (kl_weight * terms["kl"] - terms["log_likelihood"]).mean() / n
        if codes is not None:
            loss = loss - settings.code_weight * prior.flow.log_density(codes).mean() / n
        elbo = (terms["log_likelihood"] - terms["kl"]).mean() / n
        return {"loss": loss, "elbo": elbo, "kl": terms["kl"].mean()}

    state = [fitted, optimizer, schedule, generator]
    for step in (bar := resumable(settings.steps, "residual", checkpoint, state, rows)):
        x = draw_batch(patches, settings.batch_size, generator)
        batch = x, normal(len(x))
        if prior.flow is not None and settings.code_weight:
            # G's own codes: of patches by a plain encoder; N(0, I) where z has that law by construction
            batch += (normal(len(x)) if prior.is_variational else prior.encode(x),)
        means = descend(partial(means_of, kl_weight(step, settings)), batch, fitted, optimizer, schedule)
        if logged(step, settings.steps):
            rows.append({"step": step + 1, "elbo": means["elbo"].item(), "kl": means["kl"].item()})
            bar.set_postfix(elbo=f"{rows[-1]['elbo']:.3f}")
    return pd.DataFrame(rows)


def kl_weight(step: int, settings: Residual, least: float = 0.25) -> float:
    """What the KL counts in a step (from 0): it rises in a line from `least` to 1 in the first warm_up · steps."""
    count = settings.warm_up * settings.steps
    return least + (1 - least) * step / count if step < count else 1.0


@torch.no_grad()
def check_residual(prior: PriorNetwork, encoder: Encoder, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Log-likelihood of held-out residuals x - G(E(x)) under v(z), and under one full covariance for all, nats a pixel.

    train, held_out: x in [0, 1], (N, 1, h, w); the covariance is that of the training patches' residuals.
    """

    def residuals(x: Tensor) -> tuple[Tensor, ...]:
        mean, *spread = prior.moments(encoder(x)[0])
        return x.flatten(1) @ prior.basis - mean, *spread

    known, *_ = residuals(train)
    covariance = (known.T @ known / len(known)).double()
    if not covariance.isfinite().all() or torch.linalg.cholesky_ex(covariance).info:
        raise InputError("the residuals' covariance came out as no such matrix: training diverged; try a smaller lr")
    residual, *spread = residuals(held_out)
    constant = torch.distributions.MultivariateNormal(torch.zeros_like(covariance[0]), covariance)
    n = residual.shape[1]
    return {
        "residual_log_likelihood": prior.residual_log_likelihood(residual, *spread).mean().item() / n,
        "residual_log_likelihood_constant": constant.log_prob(residual.double()).mean().item() / n,
    }
