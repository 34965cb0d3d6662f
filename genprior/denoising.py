"""Patches whose only damage is noise of a known level, at one code each: the inner step of whole photographs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.batches import by_parts
from genprior.energies import Energy, denoising_energy
from genprior.inversion import fisher_scoring
from genprior.problem import noise_like
from genprior.views import Prior

FROM_ZERO = 10  # steps of Fisher scoring without an encoder
TOLERANCE = 1e-2  # Fisher scoring ends where a step gains a hundredth of the energy


@dataclass(frozen=True)
class Whitening:
    """Patches' covariances Σ = W⁻ᵀ W⁻¹ at their codes, W = D⁻¹ U diag(v)^{-½}.

    v: (P, n); basis: U (n, n); scales (P, B) and fields (B, n), D = diag(scales @ fields), where Σ has any.
    """

    v: Tensor
    basis: Tensor
    scales: Tensor | None
    fields: Tensor | None

    @property
    def _d(self) -> Tensor | float:
        return 1.0 if self.scales is None else self.scales @ self.fields

    def whitened(self, x: Tensor) -> Tensor:
        """Wᵀx, which is white for x ~ N(0, Σ): (S, P, n) -> (S, P, n)."""
        return (x / self._d) @ self.basis / self.v.sqrt()

    def spread(self, e: Tensor) -> Tensor:
        """W e, the adjoint of `whitened`: (S, P, n) -> (S, P, n)."""
        return (e / self.v.sqrt()) @ self.basis.T / self._d


def codes_of(prior: Prior, patches: Tensor, level: float, guide: Tensor, steps: int) -> tuple[Energy, Tensor]:
    """The energy of noisy patches y = x + level · e, e ~ N(0, I), and codes (N, k) near the likeliest.

    Some steps of Fisher scoring start at the encoder's codes of the guide, patches with little noise; at 0 without an
    encoder.
    """
    if prior.network.encoder is None:
        start, steps = patches.new_zeros(len(patches), prior.latent_size), FROM_ZERO
    else:
        start = prior.own(prior.encode(guide))

    @torch.no_grad()
    def sought(patches: Tensor, start: Tensor) -> Tensor:
        energy, rows = denoising_energy(prior, patches, level), torch.arange(len(patches), device=patches.device)
        return fisher_scoring(energy, start, rows, steps, tolerance=TOLERANCE)[0]

    return denoising_energy(prior, patches, level), by_threads(sought, patches, start) if steps else start


def by_threads(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """A function of batches of one length, a part of each to every thread that torch has for a CPU.

    Many small matrices keep torch's own threads waiting for each other: two took three quarters of the time of one.
    """
    threads = torch.get_num_threads()
    count = min(threads, len(batches[0]))
    if batches[0].device.type != "cpu" or count < 2:
        return function(*batches)
    with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = [*pool.map(function, *(batch.tensor_split(count) for batch in batches))]
    torch.set_num_threads(threads)  # of threads to come
    return torch.cat(found)


@torch.no_grad()
def denoise(prior: Prior, patches: Tensor, level: float, guide: Tensor, steps: int) -> Tensor:
    """E[x | y, z] of noisy patches y = x + level · e, e ~ N(0, I), at codes of `codes_of`: (N, 1, h, w) -> the same."""
    energy, z = codes_of(prior, patches, level, guide, steps)
    return by_parts(energy.estimate, energy.chunk, z, torch.arange(len(z), device=z.device))


@torch.no_grad()
def gaussians(prior: Prior, patches: Tensor, level: float, guide: Tensor, steps: int) -> tuple[Tensor, Whitening]:
    """G(T(z)) (N, n) and Σ(z)'s whitening for noisy patches (N, 1, h, w), at codes of `codes_of`."""
    return _laws(prior, codes_of(prior, patches, level, guide, steps)[1])


@torch.no_grad()
def drawn_gaussians(prior: Prior, patches: Tensor, generator: torch.Generator) -> tuple[Tensor, Whitening]:
    """`gaussians` at codes drawn of the variational encoder's q(z | patch)."""
    mean, log_variance = prior.network.encoder(patches)
    return _laws(prior, prior.own(mean + (0.5 * log_variance).exp() * noise_like(mean, generator)))


def _laws(prior: Prior, z: Tensor) -> tuple[Tensor, Whitening]:
    mean, v, *scales = prior.moments(z)
    return mean @ prior.basis.T, Whitening(v, prior.basis, scales[0] if scales else None, prior.scale_fields)
