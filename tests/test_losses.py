import pytest
import torch
from scipy.stats import wasserstein_distance
from torch.distributions import Independent, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy
from torch.nn.functional import hinge_embedding_loss

from pipeline import losses

DRAW = torch.Generator().manual_seed(0)


def test_kl_is_torchs():
    mean, log_variance = torch.randn(2, 5, 3, generator=DRAW)
    posterior = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    prior = Independent(Normal(torch.zeros(5, 3), torch.ones(5, 3)), 1)
    torch.testing.assert_close(losses.kl_standard_normal(mean, log_variance), kl_divergence(posterior, prior))


def test_adversarial_losses_are_cross_entropies():
    real, fake = torch.randn(2, 7, generator=DRAW)
    one, zero = torch.ones(7), torch.zeros(7)
    pairs = [
        (losses.minimax_discriminator, cross_entropy(real, one) + cross_entropy(fake, zero)),
        (losses.ADVERSARIAL["minimax"][1], -cross_entropy(fake, zero)),
        (losses.non_saturating_generator, cross_entropy(fake, one)),
        (losses.ADVERSARIAL["relativistic"][0], cross_entropy(real - fake, one)),
        (losses.ADVERSARIAL["relativistic"][1], cross_entropy(fake - real, one)),
    ]
    for loss, expected in pairs:
        torch.testing.assert_close(loss(real, fake), expected)


def test_gradient_penalty_of_a_quadratic_discriminator():
    samples = torch.randn(9, 4, generator=DRAW).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], requires_grad=True)
    penalty = losses.gradient_penalty((weights * samples.square()).sum(1), samples)
    torch.testing.assert_close(penalty, 0.5 * (2 * weights * samples).square().sum(1).mean())
    penalty.backward()  # training differentiates through it
    torch.testing.assert_close(weights.grad, 4 * weights.detach() * samples.square().mean(0))


def test_hinge_is_torchs():
    real, fake = torch.randn(2, 50, generator=DRAW)
    target = torch.ones(50)
    discriminator, generator = losses.ADVERSARIAL["hinge"]
    # torch's hinge embedding loss for targets of -1 is max(0, margin - x)
    expected = hinge_embedding_loss(real, -target) + hinge_embedding_loss(-fake, -target)
    torch.testing.assert_close(discriminator(real, fake), expected)
    torch.testing.assert_close(generator(real, fake), -fake.mean())


def test_wasserstein_loss_of_the_best_slope_is_the_distance():
    real, fake = torch.randn(2, 50, generator=DRAW, dtype=torch.float64)
    fake = fake - 5  # apart, so that D(x) = x is the dual's best
    distance = wasserstein_distance(real.numpy(), fake.numpy())
    assert -losses.ADVERSARIAL["wasserstein"][0](real, fake).item() == pytest.approx(distance)


def test_lipschitz_penalty_of_a_linear_discriminator():
    real, fake = torch.randn(2, 9, 4, generator=DRAW)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], requires_grad=True)
    penalty = losses.lipschitz_penalty(lambda x: x @ weights, real, fake, torch.rand(9, 1, generator=DRAW))
    torch.testing.assert_close(penalty, (weights.norm() - 1).square())
    penalty.backward()
    assert weights.grad.abs().sum() > 0


def test_curvature_penalty_of_a_quadratic_generator():
    z, step = torch.randn(2, 9, 3, generator=DRAW, dtype=torch.float64)
    bend, slope = torch.randn(2, 5, 3, generator=DRAW, dtype=torch.float64)

    def generator(z):
        return 1 + z @ slope.T + z.square() @ bend.T

    found = losses.curvature_penalty(generator, z, generator(z), step)
    expected = (2 * step.square() @ bend.T).square().mean(1) / step.square().sum(1)
    torch.testing.assert_close(found, expected.mean())


def test_chapters_logits_give_its_losses():
    real, fake = torch.tensor([[2.5], [1.8], [3.2]]), torch.tensor([[-1.2], [-0.7], [0.1]])
    assert losses.minimax_discriminator(real, fake).item() == pytest.approx(0.5608953, abs=1e-7)
    assert losses.non_saturating_generator(real, fake).item() == pytest.approx(1.0702883, abs=1e-7)
