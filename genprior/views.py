"""A trained prior as users hold it: `Prior` with its residual model, and `Prior.range`, the same confined to G."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import genprior
from genprior.files import InputError, find_prior, whole_number
from genprior.mixture import GaussianMixture, load_mixture
from genprior.networks import Observed, PriorNetwork, load_network
from genprior.plan import Plan
from genprior.streams import generator_of


class Code(Tensor):
    """Codes (..., k) of one view. What is computed from them stays one; with codes of the other view it is refused.

    NumPy knows of no view: what comes back from there is a plain tensor, which both views take.
    """

    view = ""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if len({kind for kind in types if issubclass(kind, Code)}) > 1:
            raise InputError("a code of prior and a code of prior.range: they are of different laws; encode the image")
        return super().__torch_function__(function, types, args, kwargs or {})

    def __deepcopy__(self, memo: dict) -> "Code":
        return self.clone()


class PriorCode(Code):
    """Codes of `Prior`: images lie at G(T(z))."""

    view = "prior"


class RangeCode(Code):
    """Codes of `Prior.range`: images are G(z)."""

    view = "prior.range"


class View:
    """What both views share: codes z ~ N(0, I) and the images that go with them.

    shape: (h, w) of a patch; latent_size: k; basis: U (n, n), of the coefficients Uᵀx that `moments` speaks of.
    """

    code: type[Code]
    covariance: str

    def __init__(self, network: PriorNetwork):
        self.network, self.shape, self.latent_size = network, network.shape, network.latent_size

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.network.code_mean.device

    @property
    def basis(self) -> Tensor:
        """U of the coefficients Uᵀx: (n, n)."""
        return self.network.basis

    def in_double(self) -> "View":
        """The same in float64."""
        return type(self)(self.network.in_double())

    def own(self, z: Tensor) -> Tensor:
        """Codes as a plain tensor, in the network's precision; InputError for those of the other view."""
        if isinstance(z, Code) and type(z) is not self.code:
            raise InputError(f"a code of {z.view} was given where one of {self.code.view} is right; encode the image")
        return (z.as_subclass(Tensor) if isinstance(z, Code) else z).to(self.network.code_mean.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of each code, E[x | z]: (..., k) -> (..., 1, h, w)."""
        x = self.moments(z.reshape(-1, self.latent_size))[0] @ self.basis.T
        return x.reshape(*z.shape[:-1], 1, *self.shape)

    @torch.no_grad()
    def sample(self, count: int, seed: int | torch.Generator = 0) -> Tensor:
        """Images of codes z ~ N(0, I), G(z) of a range, else x ~ N(G(T(z)), Σ(z)): (count, 1, h, w)."""
        residual = self.covariance != "none"
        return self.network.sample(whole_number("count", count), generator_of(seed, "sample"), residual)

    def encode(self, x: Tensor) -> Tensor:
        """The encoder's (mean) codes of patches in [0, 1]: (N, 1, h, w) -> (N, k); InputError without an encoder."""
        if self.network.encoder is None:
            raise InputError("this prior has no encoder: it was trained without one")
        encode = self.network.encode if self.code is RangeCode else self.network.encode_residual
        return encode(x).as_subclass(self.code)

    def log_prob(self, x: Tensor, samples: int = 100, seed: int = 0) -> Tensor:
        """log p(x) of dequantised patches (N, 1, h, w) in nats: (N,); InputError of a range, which has no density.

        The evidence of y = x, K = I and no noise, by importance sampling of the posterior of z. Grey
        values are steps of 1/255: noise of that width dequantises them.
        """
        return genprior.posterior(self, genprior.operators.Identity(), x, 0.0, samples, seed).log_evidence


class Range(View):
    """Images confined to the range of G, x = G(z) with z ~ N(0, I): Σ = 0, as the chapter has it."""

    code, covariance = RangeCode, "none"
    # Its best minima lie in folds of G, where no draw of the prior is low: many plain starts, dropped on the way.
    plan = Plan(starts=10, iterations=60, halve_every=8, widened=True)

    def moments(self, z: Tensor) -> tuple[Tensor]:
        """The coefficients Uᵀ G(z): (N, k) -> (N, n)."""
        return (self.network.decode(self.own(z)).flatten(1) @ self.basis,)

    def decode(self, z: Tensor) -> Tensor:
        """G(z): (..., k) -> (..., 1, h, w)."""
        x = self.network.decode(self.own(z).reshape(-1, self.latent_size))
        return x.reshape(*z.shape[:-1], 1, *self.shape)

    def through(self, matrix: Tensor) -> "object":
        """K G for a linear operator's matrix K (m, n), as one network with its own derivatives."""
        return Observed(self.network, matrix)


class Prior(View):
    """x | z ~ N(G(T(z)), Σ(z)), Σ(z) = D(z) U diag(v(z)) Uᵀ D(z), with z ~ N(0, I)."""

    code = PriorCode
    # What looks poor early may hold most of the posterior: no start is dropped.
    plan = Plan(starts=2, iterations=40, pool=2048, dominant=True)

    @cached_property
    def range(self) -> Range:
        """The same prior confined to the range of G."""
        return Range(self.network)

    @property
    def covariance(self) -> str:
        """What Σ(z) is made of: "diagonal" in the basis U, or "scaled", with pixel scales D(z) beside it."""
        if not self.network.has_residual:
            raise InputError("this prior has no residual model, Σ = 0: prior.range would be right")
        return "diagonal" if self.network.scale_fields is None else "scaled"

    @property
    def scale_fields(self) -> Tensor | None:
        """Fields (B, n) of which the pixel scales are made, D = diag(scales @ scale_fields); None without scales."""
        return self.network.scale_fields

    basis_kind = "dct"

    @property
    def basis_axes(self) -> Sequence[Tensor] | None:
        """U_h (h, h) and U_w (w, w) with U = U_h ⊗ U_w."""
        return self.network.basis_axes

    def moments(self, z: Tensor) -> tuple[Tensor, ...]:
        """Mean and variances v(z) of the coefficients Uᵀx: (N, n) each; scales (N, B) where there are any."""
        return self.network.moments(self.own(z))

    def moments_with_columns(self, z: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """`moments` and their Jacobians: (N, n, k) each; of scales (N, B, k)."""
        return self.network.moments_with_columns(self.own(z))


def load(
    name: str | Path, device: torch.device | str = "cpu", shape: tuple[int, int] | torch.Size | None = None
) -> Prior | GaussianMixture:
    """A trained prior by the name under which the wheel carries it, or by the path of its file.

    The file of a mixture gives a `GaussianMixture`, which restores photographs. shape: (h, w) of the patches that a
    prior is for, where another one is to be refused. InputError where there is no such prior, or the file is damaged
    or none of a prior.
    """
    path = find_prior(name)
    return load_mixture(path) or Prior(load_network(path, device, shape))
