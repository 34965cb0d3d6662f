"""Patches whose only damage is noise of a known level, at one code each: the inner step of whole photographs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.batches import by_parts, noise_like
from genprior.energies import denoising_energy
from genprior.inversion import fisher_scoring
from genprior.views import Prior

FROM_ZERO = 10  # steps of Fisher scoring without an encoder
PIECE = 64  # patches that a thread takes at a time
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

    def diagonal(self) -> Tensor:
        """The diagonals of Σ⁻¹: (P, n)."""
        return (1 / self.v) @ self.basis.square().T / self._d**2

    def whitened(self, x: Tensor) -> Tensor:
        """Wᵀx, which is white for x ~ N(0, Σ): (S, P, n) -> (S, P, n)."""
        return (x / self._d) @ self.basis / self.v.sqrt()

    def spread(self, e: Tensor) -> Tensor:
        """W e, the adjoint of `whitened`: (S, P, n) -> (S, P, n)."""
        return (e / self.v.sqrt()) @ self.basis.T / self._d


@torch.no_grad()
def codes_of(prior: Prior, patches: Tensor, level: float, guide: Tensor, steps: int) -> Tensor:
    """Codes (N, k) near the likeliest of noisy patches y = x + level · e, e ~ N(0, I).

    Some steps of Fisher scoring start at the encoder's codes of the guide, patches with little noise; at 0 without an
    encoder.
    """
    energy = denoising_energy(prior, patches, level)
    if prior.network.encoder is None:
        start, steps = patches.new_zeros(len(patches), prior.latent_size), FROM_ZERO
    else:
        start = prior.own(prior.encode(guide))

    def sought(start: Tensor, rows: Tensor) -> Tensor:
        return fisher_scoring(energy, start, rows, steps, tolerance=TOLERANCE)[0]

    rows = torch.arange(len(patches), device=patches.device)
    return by_threads(sought, start, rows) if steps else start


def by_threads(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """A function of batches of one length, `PIECE` entries at a time, in as many threads as torch has for a CPU.

    Torch's own threads wait for each other over many small matrices: two of them are 1.4 times as fast as one, two
    threads of Python 1.8 times. In pieces, so that Ctrl-C need not wait for all. Threads that begin torch meanwhile
    have one thread of its own.
    """
    threads = torch.get_num_threads()
    if batches[0].device.type != "cpu" or threads == 1:
        return function(*batches)
    try:
        with ThreadPoolExecutor(threads, initializer=_begin_thread) as pool:
            return torch.cat([*pool.map(function, *(batch.split(PIECE) for batch in batches))])
    finally:
        torch.set_num_threads(threads)  # of threads to come


def _begin_thread() -> None:
    """One thread of torch's own, and no gradients, as whoever started it has none."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)


@torch.no_grad()
def denoise(prior: Prior, patches: Tensor, level: float, z: Tensor) -> Tensor:
    """E[x | y, z] of noisy patches y = x + level · e, e ~ N(0, I), at codes (N, k): (N, 1, h, w) -> the same."""
    energy = denoising_energy(prior, patches, level)
    return by_parts(energy.estimate, energy.chunk, z, torch.arange(len(z), device=z.device))


@torch.no_grad()
def drawn_codes(prior: Prior, patches: Tensor, generator: torch.Generator) -> Tensor:
    """Codes drawn of the variational encoder's q(z | patch): (N, 1, h, w) -> (N, k)."""
    mean, log_variance = prior.network.encoder(patches)
    return prior.own(mean + (0.5 * log_variance).exp() * noise_like(mean, generator))


@torch.no_grad()
def gaussians(prior: Prior, z: Tensor) -> tuple[Tensor, Whitening]:
    """G(T(z)) (N, n) and Σ(z)'s whitening at codes (N, k)."""
    mean, v, *scales = prior.moments(z)
    return mean @ prior.basis.T, Whitening(v, prior.basis, scales[0] if scales else None, prior.scale_fields)
