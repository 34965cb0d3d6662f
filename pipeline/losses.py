"""Training losses: the ELBO's two terms, reparameterisation, adversarial losses and their penalties."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from genprior.layers import Encoder
from genprior.networks import PriorNetwork


def kl_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of N(mean, diag e^log_variance) from N(0, I), in nats.

    ½ Σ_j (e^{l_j} + μ_j² - 1 - l_j) over the last axis: (..., k) -> (...). Kingma & Welling 2014, appendix B.
    """
    return 0.5 * (log_variance.exp() + mean**2 - 1.0 - log_variance).sum(-1)


def reparameterise(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """A latent draw that gradients pass through: z = μ + σ ⊙ ε. Kingma & Welling 2014, section 2.4."""
    return mean + std * noise


def elbo_terms(prior: PriorNetwork, encoder: Encoder, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """The ELBO's terms for patches (N, 1, h, w) at one latent draw each, z = μ(x) + σ(x) ⊙ noise: all (N,).

    log_likelihood log p(x | z) and kl KL(q(z | x) ‖ N(0, I)) in nats, squared_error ‖x - G(z)‖².
    """
    mean, log_variance = encoder(x)
    z = reparameterise(mean, (0.5 * log_variance).exp(), noise)
    predicted, *spread = prior.moments(z)
    residual = x.flatten(1) @ prior.basis - predicted
    return {
        "log_likelihood": prior.residual_log_likelihood(residual, *spread),
        "kl": kl_standard_normal(mean, log_variance),
        "squared_error": residual.square().sum(1),
    }


def minimax_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))) from logits. Goodfellow et al. 2014, equation 1."""
    return softplus(-real).mean() + softplus(fake).mean()


def non_saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-E log D(G(z)) from logits. Goodfellow et al. 2014, section 3."""
    return softplus(-fake).mean()


ADVERSARIAL = {  # the discriminator's loss and the generator's, from logits of real and generated patches
    # E softplus(-(D(x) - D(G(z)))) over pairs; then with roles swapped. Jolicoeur-Martineau 2019, section 3
    "relativistic": (lambda real, fake: softplus(fake - real).mean(), lambda real, fake: softplus(real - fake).mean()),
    "non_saturating": (minimax_discriminator, non_saturating_generator),
    # E log(1 - D(G(z))): the other side of the same game. Goodfellow et al. 2014, equation 1
    "minimax": (minimax_discriminator, lambda real, fake: -softplus(fake).mean()),
    # E max(0, 1 - D(x)) + E max(0, 1 + D(G(z))), and -E D(G(z)). Miyato et al. 2018, equations 16 and 17
    "hinge": (lambda real, fake: relu(1 - real).mean() + relu(1 + fake).mean(), lambda real, fake: -fake.mean()),
    # E D(G(z)) - E D(x): minus the Kantorovich dual, for a D of Lipschitz constant 1. Arjovsky et al. 2017
    "wasserstein": (lambda real, fake: fake.mean() - real.mean(), lambda real, fake: -fake.mean()),
}


def gradient_penalty(logits: Tensor, samples: Tensor) -> Tensor:
    """½ E ‖∇D‖² over a batch (N, n) that requires gradients, of its logits D (N, 1): a scalar.

    R1 on real samples (Mescheder et al. 2018, equation 9), R2 on generated ones.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), samples, create_graph=True)
    return 0.5 * gradient.square().sum(1).mean()


def lipschitz_penalty(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, weight: Tensor) -> Tensor:
    """E (‖∇D‖ - 1)² at weight · real + (1 - weight) · fake, both (N, n), weight (N, 1) in [0, 1]: a scalar.

    Gulrajani et al. 2017, equation 3.
    """
    between = torch.lerp(fake.detach(), real.detach(), weight).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()


def curvature_penalty(generator: Callable[[Tensor], Tensor], z: Tensor, generated: Tensor, step: Tensor) -> Tensor:
    """E ‖G(z + d) - 2 G(z) + G(z - d)‖² / (n ‖d‖²) at codes z (N, k), steps d (N, k), G(z) = `generated` (N, n).

    0 for an affine generator. One that folds its range has many codes for one measurement.
    """
    ahead, behind = generator(torch.cat([z + step, z - step])).chunk(2)
    bend = (ahead - 2 * generated + behind).square().mean(1)
    return (bend / step.square().sum(1)).mean()
