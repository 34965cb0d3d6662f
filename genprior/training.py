"""What the training stages share: the optimiser's schedule, when a curve gets a row, the fit of a residual model."""

import pandas as pd
import torch
from torch import Tensor, nn

from genprior.losses import gaussian_log_likelihood
from genprior.networks import Encoder
from genprior.params import InputError, Residual
from genprior.patches import draw_batch
from genprior.prior import Prior, elbo_terms
from genprior.stage import steps


def cosine_adam(
    network: nn.Module, lr: float, count: int, **options
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam and a learning rate that falls from `lr` to 0 along half a cosine over `count` steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, **options)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)


def logged(step: int, count: int, rows: int = 100) -> bool:
    """Whether a training curve of about `rows` rows has one for this step (counted from 0); the last always."""
    return step % max(1, count // rows) == 0 or step == count - 1


def fit_residual(prior: Prior, encoder: Encoder, patches: Tensor, settings: Residual, seed: int) -> pd.DataFrame:
    """Fit what a trained decoder leaves out: maximise the ELBO over v(z) and an encoder, with G as it is.

    patches: uint8 (N, 1, h, w); encoder: variational, in terms of z ~ N(0, I). Returns the curve.
    """
    prior.requires_grad_(False)
    fitted = torch.nn.ModuleList([encoder.requires_grad_(True), prior.decoder.log_variance.requires_grad_(True)])
    optimizer, schedule = cosine_adam(fitted, settings.lr, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for step in (bar := steps(settings.steps, "residual")):
        x = draw_batch(patches, settings.batch_size, generator)
        terms = elbo_terms(prior, encoder, x, torch.randn(len(x), prior.latent_size, generator=generator).to(x.device))
        elbo = (terms["log_likelihood"] - terms["kl"]).mean() / x[0].numel()
        optimizer.zero_grad()
        (-elbo).backward()
        torch.nn.utils.clip_grad_norm_(fitted.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if logged(step, settings.steps):
            rows.append({"step": step + 1, "elbo": elbo.item(), "kl": terms["kl"].mean().item()})
            bar.set_postfix(elbo=f"{elbo.item():.3f}")
    return pd.DataFrame(rows)


@torch.no_grad()
def check_residual(prior: Prior, encoder: Encoder, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Log-likelihood of held-out residuals x - G(E(x)) under v(z), and under one full covariance for all, nats a pixel.

    train, held_out: x in [0, 1], (N, 1, h, w); the covariance is that of the training patches' residuals.
    """

    def residuals(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = prior.moments(encoder(x)[0])
        return x.flatten(1) @ prior.basis - mean, variance

    known, _ = residuals(train)
    covariance = (known.T @ known / len(known)).double()
    if not covariance.isfinite().all() or torch.linalg.cholesky_ex(covariance).info:
        raise InputError("the residuals' covariance came out as no such matrix: training diverged; try a smaller lr")
    residual, variance = residuals(held_out)
    constant = torch.distributions.MultivariateNormal(torch.zeros_like(covariance[0]), covariance)
    n = residual.shape[1]
    return {
        "residual_log_likelihood": gaussian_log_likelihood(residual, variance).mean().item() / n,
        "residual_log_likelihood_constant": constant.log_prob(residual.double()).mean().item() / n,
    }
