"""Learned priors for imaging inverse problems: autoencoder, VAE, GAN and structured VAE on one footing.

Notation, here and in every module:

    x   image or patch with n pixels in [0, 1]; tensors (batch, 1, height, width)
    z   latent code, k numbers, z ~ N(0, I) under every prior
    G   decoder or generator, R^k -> R^n;  E  encoder;  T  flow in front of G, absent in `prior.range`
    Σ   residual covariance D(z) U diag(v(z)) Uᵀ D(z), U the orthonormal DCT, D pixel scales
    K   forward operator;  y = K x + e,  e ~ N(0, σ² I)  measurement
    λ   weight of the latent prior in  argmin_z |K G(z) - y|^2 + λ |z|^2;  λ = σ² is Bayes'

    >>> import genprior, torch
    >>> prior = genprior.load("svae")
    >>> class EveryOtherRow:  # K; one that is not linear has no A_adjoint, and torch differentiates its A
    ...     def A(self, x): return x[:, :, ::2]
    ...     def A_adjoint(self, y): return torch.stack([y, 0 * y], 3).flatten(2, 3)
    >>> y = genprior.measure(EveryOtherRow(), prior.sample(4), sigma=0.01)
    >>> genprior.restore(prior, EveryOtherRow(), y, sigma=0.01).x.shape
    torch.Size([4, 1, 16, 16])
    >>> genprior.posterior(prior, EveryOtherRow(), y, sigma=0.01, samples=200).x.shape
    torch.Size([4, 200, 1, 16, 16])
"""

from importlib import import_module

_PLACES = {
    "InputError": "files",
    "Plan": "plan",
    "Prior": "views",
    "load": "views",
    "measure": "restoration",
    "posterior": "restoration",
    "restore": "restoration",
    "restore_image": "splitting",
}
__all__ = [*_PLACES, "operators"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> object:
    """What is asked for, imported then: torch takes a second that not every stage needs."""
    if name in _PLACES:
        return getattr(import_module(f"genprior.{_PLACES[name]}"), name)
    if name == "operators":
        return import_module("genprior.operators")
    raise AttributeError(f"module 'genprior' has no attribute '{name}'")
