"""What a posterior knows: samples, intervals, and the evidence for one noise level against another.

    python -m examples.intervals               # after make repro

Eight patches are drawn from the prior, so that its posterior is the right one, and 70 % of their pixels are lost. A
90 % interval then holds 90 % of the pixels. The evidence p(y) = ∫ p(y | z) p(z) dz is the largest at the true σ.
"""

import torch

import genprior


def main(model: str = "svae", sigma: float = 0.05, samples: int = 200) -> None:
    prior = genprior.load(model)
    x = prior.sample(8, seed=1)
    K = genprior.operators.Inpainting(torch.rand(prior.shape, generator=torch.Generator().manual_seed(2)) < 0.3)
    y = genprior.measure(K, x, sigma, seed=3)

    post = genprior.posterior(prior, K, y, sigma, samples, seed=4)
    low, high = post.interval(0.9)
    held = ((low <= x) & (x <= high)).float().mean().item()
    print(f"posterior mean: error {(post.mean - x).square().mean().sqrt():.3f}, deviation {post.std.mean():.3f}")
    print(f"90 % intervals hold {held:.0%} of the pixels")

    for tried in (0.5 * sigma, sigma, 2 * sigma):
        evidence = genprior.posterior(prior, K, y, tried, samples, seed=4).log_evidence.sum().item()
        print(f"sigma = {tried:.3f}: log p(y) = {evidence:.1f} nats")


if __name__ == "__main__":
    main()
