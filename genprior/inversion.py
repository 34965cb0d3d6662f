"""Latent inversion: the most probable code of a measurement, for a batch of measurements and starts at once.

`search` minimises an energy of `genprior.energies` by damped Fisher scoring from the starts that it is given, or that
`screen` found; `adam` and `lbfgs` are the references behind the same signature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from genprior.energies import Energy, by_parts, cross_energies

CONVERGED, OUT_OF_ITERATIONS, NOT_FINITE = "converged", "out of iterations", "not finite"
STATUS = (OUT_OF_ITERATIONS, CONVERGED, NOT_FINITE)


@dataclass(frozen=True)
class Inversion:
    """One code for each problem: z (N, k), its image x (N, 1, h, w), its energy (N,), how its search ended."""

    z: Tensor
    x: Tensor
    energy: Tensor
    status: list[str]


@dataclass(frozen=True)
class Modes:
    """Where the searches of each problem ended: z (S, N, k), energies (S, N), indices into STATUS (S, N)."""

    z: Tensor
    energy: Tensor
    state: Tensor

    def best(self, energy: Energy, weight: Tensor | None = None) -> Inversion:
        """The search of each problem that ended at the lowest energy, or that has the greatest weight (S, N)."""
        rows = torch.arange(self.z.shape[1], device=self.z.device)
        winner = self.energy.argmin(0) if weight is None else weight.argmax(0)
        z = self.z[winner, rows]
        x = torch.cat([energy.estimate(z[part], part) for part in rows.split(energy.chunk)])
        return Inversion(z, x, self.energy[winner, rows], [STATUS[i] for i in self.state[winner, rows].tolist()])


def search(energy: Energy, starts: Tensor, iterations: int, audition: int = 8) -> Modes:
    """Damped Fisher scoring from starts (S, N, k), the worse half of each problem's dropped after each `audition`.

    Successive halving: `iterations` for the two starts that are left in the end, fewer for those dropped on the way.
    Where more than two are to be told apart, all go a third as many down the softened energy first, where there is one:
    what they find from there is deeper, as in graduated non-convexity (Blake & Zisserman 1987).
    """
    count, problems, k = starts.shape
    kept = torch.arange(count, device=starts.device)[:, None].expand(count, problems)  # starts that are left, (S', N)

    def cull(iteration: int, value: Tensor) -> Tensor | None:
        nonlocal kept
        if iteration % audition or iteration == iterations or len(kept) <= 2:
            return None
        order = value.reshape(count, problems).gather(0, kept).argsort(dim=0, stable=True)
        kept = kept.gather(0, order[: (len(kept) + 1) // 2])
        left = torch.zeros(count, problems, dtype=torch.bool, device=value.device)
        return left.scatter_(0, kept, True).flatten()

    rows = torch.arange(problems, device=starts.device).repeat(count)
    z = starts.flatten(0, 1)
    if count > 2 and (softer := energy.softened()) is not None:
        z, _, _ = fisher_scoring(softer, z, rows, iterations // 3, tolerance=1e-3)
    z, value, state = fisher_scoring(energy, z, rows, iterations, cull=cull)
    z = z.reshape(starts.shape).gather(0, kept[..., None].expand(-1, -1, k))
    return Modes(z, *(found.reshape(count, problems).gather(0, kept) for found in (value, state)))


def screen(energy: Energy, pool: Tensor, count: int, noise: float = 0.1, deepest: bool = False) -> Tensor:
    """The `count` codes of a pool (M, k) with the lowest energies for each problem, as starts: (count, N, k).

    It pays for the relaxed energy. The range's has its best minima where no draw of the prior is low. With `noise`, as
    in `Energy.value`, a code that is a little off a narrow, deep mode does not lose to one in a wide, shallow one.
    The codes of lowest energy lie near z = 0, in wide modes, which hold most of the posterior. For the `deepest` mode
    the likelihood alone chooses: a pool drawn from the prior has ½ τ ‖z‖² in its density already.
    """
    rows = torch.arange(len(energy.y), device=pool.device)
    counted = 0.5 * energy.latent_precision * pool.square().sum(1, keepdim=True) if deepest else 0.0
    energies = [cross_energies(energy, pool, part, noise) - counted for part in rows.split(1024)]
    starts = [pool[part.topk(count, dim=0, largest=False).indices] for part in energies]
    return torch.cat(starts, 1)


def fisher_scoring(
    energy: Energy,
    z: Tensor,
    rows: Tensor,
    iterations: int,
    refresh: int = 18,
    tolerance: float = 1e-6,
    cull: Callable[[int, Tensor], Tensor | None] = lambda iteration, value: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise an energy from the codes z (P, k), each with its own damping and its own end; for v = 0 this is LM.

    Step d = -ρ H g, H = (F + μ diag F)⁻¹ with the Fisher matrix F; μ follows the gain ratio (Nielsen 1999, report
    IMM-REP-1999-05, equation 2.4; Marquardt 1963 for diag F). F is computed anew after every `refresh` accepted steps
    or three refusals; between, gradients alone correct H (`_secant`), at a part of the cost, and the reach ρ, 1 after
    a new F and a quarter after a refusal, keeps them in check; refresh = 1 is plain Fisher scoring. A code has
    converged once a step promises less than `tolerance` (1 + |energy|). Returns the best codes, their energies (inf
    where even the start has none), and the index of each one's STATUS.
    """
    value, gradient = by_parts(energy.value_and_gradient, energy.chunk, z, rows)
    value = torch.where(value.isfinite(), value, torch.inf)
    found, found_value, state = z.clone(), value.clone(), torch.where(value.isfinite(), 0, 2)
    live = (state == 0).nonzero().squeeze(1)  # the codes that go on; what follows has an entry for each of them
    z, rows, value, gradient = z[live], rows[live], value[live], gradient[live]
    inverse = z.new_empty(*z.shape, z.shape[1])
    damping, growth, reach = torch.full_like(value, 1e-2), torch.full_like(value, 2.0), torch.ones_like(value)
    age = torch.full_like(live, refresh)  # accepted steps since F was computed
    for iteration in range(1, iterations + 1):
        if len(live) == 0:
            break
        wall = damping > 1e12
        old = (age >= refresh).nonzero().squeeze(1)
        if len(old):
            gradient[old], fisher = by_parts(energy.model, energy.model_chunk, z[old], rows[old])
            inverse[old] = _damped_inverse(fisher, damping[old])
            wall[old] |= ~(gradient[old].isfinite().all(1) & fisher.flatten(1).isfinite().all(1))
            age[old], reach[old] = 0, 1.0
        newton = torch.bmm(inverse, gradient.unsqueeze(2)).squeeze(2)  # H g
        step, length = -reach[:, None] * newton, (newton * gradient).sum(1)
        trial, trial_gradient = by_parts(energy.value_and_gradient, energy.chunk, z + step, rows)
        smooth = trial_gradient.isfinite().all(1)
        good = smooth & (trial < value)  # false for NaN
        _secant(inverse, step, -reach[:, None] * gradient, trial_gradient - gradient, smooth)
        gain = (value - trial) / (reach * (1 - reach / 2) * length)  # over what the step promised
        # A step that damping alone made short promises little anywhere: while such are taken, there is more to gain.
        done = (0.5 * length <= tolerance * (1 + value.abs())) & ~(good & (damping > 1))

        z = torch.where(good[:, None], z + step, z)
        value, gradient = torch.where(good, trial, value), torch.where(good[:, None], trial_gradient, gradient)
        damping = damping * torch.where(good, (1 - (2 * gain - 1) ** 3).clamp(1 / 3, 2), growth)
        growth = torch.where(good, 2.0, 2 * growth)
        reach = torch.where(good, (2 * reach).clamp_max(1.0), reach / 4)
        worn = growth >= 16  # refused again and again: perhaps H's fault
        done &= ~(worn & (age > 0))
        age = torch.where(worn, refresh, age + good)

        # A wall of values that are not finite also makes steps small: the best code is kept, under its name.
        wall |= done & ~trial.isfinite()
        state[live[done]], state[live[wall]] = 1, 2
        going = ~(done | wall)
        if (left := cull(iteration, found_value.index_copy(0, live, value))) is not None:
            going &= left[live]
        if not going.all():
            found[live], found_value[live] = z, value
            kept = going.nonzero().squeeze(1)
            live, z, rows, value, gradient, inverse, damping, growth, reach, age = (
                entries[kept] for entries in (live, z, rows, value, gradient, inverse, damping, growth, reach, age)
            )
    found[live], found_value[live] = z, value
    return found, found_value, state


def _damped_inverse(fisher: Tensor, damping: Tensor) -> Tensor:
    """(F + μ diag F)⁻¹ of Fisher matrices (P, k, k) and dampings (P,); without the rest of F where that is not > 0."""
    diagonal = fisher.diagonal(dim1=1, dim2=2)
    scale = diagonal + 1e-6 * diagonal.mean(1, keepdim=True) + torch.finfo(fisher.dtype).tiny
    damped = fisher.clone()
    damped.diagonal(dim1=1, dim2=2).add_(damping[:, None] * scale)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if failed.any():
        alone = ((1 + damping)[:, None] * scale).sqrt().diag_embed()
        factor = torch.where((failed > 0)[:, None, None], alone, factor)
    return torch.cholesky_inverse(factor)


def _secant(inverse: Tensor, step: Tensor, curved: Tensor, change: Tensor, usable: Tensor) -> None:
    """The BFGS update, in place, of inverses H from the gradient's change y along steps d, `curved` = H⁻¹ d.

    (I - d yᵀ / yᵀd) H (I - y dᵀ / yᵀd) + d dᵀ / yᵀd, Powell-damped, which keeps it positive: y is moved towards H⁻¹ d
    where yᵀd < 0.2 dᵀH⁻¹d. Where not `usable`, H stays. (P, k, k), then (P, k) thrice, (P,).
    Nocedal & Wright 2006, equation 6.17 and procedure 18.2.
    """
    along, expected = (step * change).sum(1), (step * curved).sum(1)
    theta = torch.where(along < 0.2 * expected, 0.8 * expected / (expected - along), 1.0)
    change = curved + theta[:, None] * (change - curved)
    along = (step * change).sum(1)
    usable = (usable & (along > 0))[:, None]
    moved = torch.bmm(inverse, change.unsqueeze(2)).squeeze(2)  # H y
    along = along[:, None]
    other = 0.5 * (1 + (moved * change).sum(1, keepdim=True) / along) / along * step - moved / along
    step, other = torch.where(usable, step, 0.0), torch.where(usable, other, 0.0)
    inverse.baddbmm_(torch.stack([step, other], 2), torch.stack([other, step], 1))


def adam(energy: Energy, starts: Tensor, iterations: int, lr: float = 0.1) -> Modes:
    """Adam from all starts (S, N, k), the best iterate of each kept: CSGM's recipe (Bora et al. 2017, section 6)."""
    return _first_order(energy, starts, iterations, lambda z: torch.optim.Adam([z], lr=lr))


def lbfgs(energy: Energy, starts: Tensor, iterations: int) -> Modes:
    """torch's L-BFGS with a strong Wolfe search on the sum over all starts (S, N, k), the best iterate of each kept."""
    return _first_order(
        energy, starts, iterations, lambda z: torch.optim.LBFGS([z], max_iter=1, line_search_fn="strong_wolfe")
    )


def _first_order(energy: Energy, starts: Tensor, iterations: int, optimizer_of: Callable) -> Modes:
    count, problems, k = starts.shape
    rows = torch.arange(problems, device=starts.device).repeat(count)
    z = starts.reshape(-1, k).clone().requires_grad_()
    optimizer = optimizer_of(z)
    best, best_value = z.detach().clone(), z.new_full((len(z),), torch.inf)

    def closure() -> Tensor:
        codes = z.detach()
        value, gradient = by_parts(energy.value_and_gradient, energy.chunk, codes, rows)
        better = value < best_value
        best[better], best_value[better] = codes[better], value[better]
        finite = value.isfinite()
        z.grad = torch.where(finite[:, None], gradient, 0.0)
        return torch.where(finite, value, 0.0).sum()

    for _ in range(iterations):
        optimizer.step(closure)
    closure()
    state = torch.where(best_value.isfinite(), 0, 2)
    return Modes(best.reshape(starts.shape), best_value.reshape(count, problems), state.reshape(count, problems))
