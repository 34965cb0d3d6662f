import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from genprior import losses

DRAW = torch.Generator().manual_seed(0)


def test_kl_is_torchs():
    mean, log_variance = torch.randn(2, 5, 3, generator=DRAW)
    posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    prior = Independent(Normal(torch.zeros(5, 3), torch.ones(5, 3)), 1)
    torch.testing.assert_close(losses.kl_standard_normal(mean, log_variance), kl_divergence(posterior, prior))


def test_gaussian_log_likelihood_is_torchs():
    residual = torch.randn(5, 3, generator=DRAW)
    variance = torch.rand(5, 3, generator=DRAW) + 0.1
    expected = MultivariateNormal(torch.zeros(3), torch.diag_embed(variance)).log_prob(residual)
    torch.testing.assert_close(losses.gaussian_log_likelihood(residual, variance), expected)


def test_reparameterised_draws_have_the_asked_moments():
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    z = losses.reparameterise(mean, std, torch.randn(100_000, 2, generator=DRAW))
    assert ((z.mean(0) - mean).abs() < 5 * std / 100_000**0.5).all()
    torch.testing.assert_close(z.std(0), std, rtol=0.02, atol=0)


def test_adversarial_losses_are_cross_entropies():
    real, fake = torch.randn(2, 7, generator=DRAW)
    one, zero = torch.ones(7), torch.zeros(7)
    pairs = [
        (losses.minimax_discriminator, cross_entropy(real, one) + cross_entropy(fake, zero)),
        (losses.minimax_generator, -cross_entropy(fake, zero)),
        (losses.non_saturating_generator, cross_entropy(fake, one)),
        (losses.relativistic_discriminator, cross_entropy(real - fake, one)),
        (losses.relativistic_generator, cross_entropy(fake - real, one)),
    ]
    for loss, expected in pairs:
        torch.testing.assert_close(loss(real, fake), expected)


def test_gradient_penalty_of_a_quadratic_discriminator():
    samples = torch.randn(9, 4, generator=DRAW)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], requires_grad=True)
    penalty = losses.gradient_penalty(lambda x: (weights * x.square()).sum(1), samples)
    torch.testing.assert_close(penalty, 0.5 * (2 * weights * samples).square().sum(1).mean())
    penalty.backward()  # training differentiates through it
    torch.testing.assert_close(weights.grad, 4 * weights.detach() * samples.square().mean(0))


def test_chapters_logits_give_its_losses():
    real, fake = torch.tensor([[2.5], [1.8], [3.2]]), torch.tensor([[-1.2], [-0.7], [0.1]])
    assert losses.minimax_discriminator(real, fake).item() == pytest.approx(0.5608953, abs=1e-7)
    assert losses.non_saturating_generator(real, fake).item() == pytest.approx(1.0702883, abs=1e-7)
