"""Latent inversion: the most probable codes of measurements, for many measurements and starts at once.

`search` minimises an energy by damped Fisher scoring; `adam` and `lbfgs` are the references that tests and benchmark
compare it with.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from genprior.batches import by_parts
from genprior.energies import Energy, energies_of_all
from genprior.plan import Plan

CONVERGED, OUT_OF_ITERATIONS, NOT_FINITE = "converged", "out of iterations", "not finite"
STATUS = (OUT_OF_ITERATIONS, CONVERGED, NOT_FINITE)
DAMPING = 1e-2  # μ at first


@dataclass(frozen=True)
class Modes:
    """Where the searches of each problem ended: z (S, N, k), energies (S, N), indices into STATUS (S, N)."""

    z: Tensor
    energy: Tensor
    state: Tensor

    def at(self, winner: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Code (N, k), energy (N,) and status of one search of each problem (N,)."""
        rows = torch.arange(self.z.shape[1], device=self.z.device)
        return self.z[winner, rows], self.energy[winner, rows], [STATUS[i] for i in self.state[winner, rows].tolist()]

    def deepest(self) -> Tensor:
        """The search of each problem that ended at the lowest energy: (N,)."""
        return self.energy.argmin(0)


def starting_codes(
    energy: Energy, plan: Plan, latent_size: int, generator: torch.Generator, by_likelihood: bool = False
) -> Tensor:
    """Where the searches of a plan begin: (starts, N, k).

    The prior's centre and draws of it for each problem; of a pool, the codes of lowest energy, see `lowest_draws`.
    """
    count, problems = (plan.pool, 1) if plan.pool else (plan.starts, len(energy.y))
    codes = torch.randn(count, problems, latent_size, generator=generator, dtype=energy.y.dtype)
    codes[0] = 0
    codes = codes.to(energy.y.device)
    return lowest_draws(energy, codes[:, 0], plan.starts, by_likelihood=by_likelihood) if plan.pool else codes


def lowest_draws(energy: Energy, pool: Tensor, count: int, by_likelihood: bool = False) -> Tensor:
    """The `count` codes of a pool (M, k) with the lowest energies for each problem, as starts: (count, N, k).

    They lie near z = 0, in wide modes that hold most of the posterior. For the deepest mode the likelihood alone
    chooses: a pool drawn from the prior has ½ τ ‖z‖² in its density already.
    """
    rows = torch.arange(len(energy.y), device=pool.device)
    counted = 0.5 * energy.latent_precision * pool.square().sum(1, keepdim=True) if by_likelihood else 0.0
    energies = [energies_of_all(energy, pool, part) - counted for part in rows.split(1024)]
    return torch.cat([pool[part.topk(count, dim=0, largest=False).indices] for part in energies], 1)


def search(energy: Energy, starts: Tensor, plan: Plan) -> Modes:
    """Damped Fisher scoring from starts (S, N, k), as the plan says.

    Successive halving leaves two starts of each problem. The energy of twice the noise is searched for a third of the
    iterations; where it leads, minima are deeper than after as many iterations of the energy itself.
    """
    count, problems, k = starts.shape
    kept = torch.arange(count, device=starts.device)[:, None].expand(count, problems)  # starts that are left, (S', N)

    def halve(iteration: int, value: Tensor) -> Tensor | None:
        nonlocal kept
        if not plan.halve_every or iteration % plan.halve_every or iteration == plan.iterations or len(kept) <= 2:
            return None
        order = value.reshape(count, problems).gather(0, kept).argsort(dim=0, stable=True)
        kept = kept.gather(0, order[: (len(kept) + 1) // 2])
        left = torch.zeros(count, problems, dtype=torch.bool, device=value.device)
        return left.scatter_(0, kept, True).flatten()

    rows = torch.arange(problems, device=starts.device).repeat(count)
    z = starts.flatten(0, 1)
    if plan.widened and count > 2 and (wider := energy.with_wider_noise()) is not None:
        z, _, _ = fisher_scoring(wider, z, rows, plan.iterations // 3, tolerance=1e-3)
    z, value, state = fisher_scoring(energy, z, rows, plan.iterations, halve=halve)
    z = z.reshape(starts.shape).gather(0, kept[..., None].expand(-1, -1, k))
    return Modes(z, *(entries.reshape(count, problems).gather(0, kept) for entries in (value, state)))


@dataclass
class _Searches:
    """The searches that go on, an entry of each tensor for each of them.

    place: among all searches; z, rows, value, gradient: the best code so far, its problem, energy and slope; inverse:
    H, about the inverse of the damped Hessian; damping: μ; growth: the factor of the next increase of μ; reach: ρ;
    age: accepted steps since F was computed.
    """

    place: Tensor
    z: Tensor
    rows: Tensor
    value: Tensor
    gradient: Tensor
    inverse: Tensor
    damping: Tensor
    growth: Tensor
    reach: Tensor
    age: Tensor

    def keep(self, going: Tensor) -> "_Searches":
        """Those of a mask (P,)."""
        return _Searches(*(getattr(self, field.name)[going] for field in fields(self)))


def fisher_scoring(
    energy: Energy,
    z: Tensor,
    rows: Tensor,
    iterations: int,
    refresh: int = 18,
    tolerance: float = 1e-6,
    halve: Callable[[int, Tensor], Tensor | None] = lambda iteration, value: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise an energy from the codes z (P, k), each with its own damping and its own end; for Σ = 0 this is LM.

    Step d = -ρ H g, H = (F + μ diag F)⁻¹ with the Fisher matrix F; μ follows the gain ratio (Nielsen 1999, report
    IMM-REP-1999-05, equation 2.4; Marquardt 1963 for diag F). F is computed anew after every `refresh` accepted steps
    or three refusals; between, gradients alone correct H (`_secant`), at a part of the cost, and the reach ρ, 1 after
    a new F and a quarter after a refusal, keeps them in check; refresh = 1 is plain Fisher scoring. A code has
    converged once a step promises less than `tolerance` (1 + |energy|). Returns the best codes, their energies (inf
    where even the start has none), and the index of each one's STATUS.
    """
    value, gradient, fisher = by_parts(energy.derivatives, energy.fisher_chunk, z, rows)
    value = torch.where(value.isfinite(), value, torch.inf)
    usable = value.isfinite() & gradient.isfinite().all(1) & fisher.isfinite().all((1, 2))
    best, best_value, state = z.clone(), value.clone(), torch.where(usable, 0, 2)
    live = usable.nonzero().squeeze(1)
    ones = torch.ones_like(value[live])
    searches = _Searches(
        place=live,
        z=z[live],
        rows=rows[live],
        value=value[live],
        gradient=gradient[live],
        inverse=_damped_inverse(fisher[live], DAMPING * ones),
        damping=DAMPING * ones,
        growth=2 * ones,
        reach=ones,
        age=torch.zeros_like(live),
    )
    for iteration in range(1, iterations + 1):
        if len(searches.place) == 0:
            break
        done, wall = _step(energy, searches, refresh, tolerance)
        state[searches.place[done]], state[searches.place[wall]] = 1, 2
        best[searches.place], best_value[searches.place] = searches.z, searches.value
        going = ~(done | wall)
        if (left := halve(iteration, best_value)) is not None:
            going &= left[searches.place]
        if not going.all():
            searches = searches.keep(going)
    return best, best_value, state


def _step(energy: Energy, s: _Searches, refresh: int, tolerance: float) -> tuple[Tensor, Tensor]:
    """One iteration of `fisher_scoring`, in place: which searches have converged, and which ended at a wall (P,)."""
    wall = s.damping > 1e12
    old = (s.age >= refresh).nonzero().squeeze(1)
    if len(old):
        _, s.gradient[old], fisher = by_parts(energy.derivatives, energy.fisher_chunk, s.z[old], s.rows[old])
        s.inverse[old] = _damped_inverse(fisher, s.damping[old])
        wall[old] |= ~(s.gradient[old].isfinite().all(1) & fisher.flatten(1).isfinite().all(1))
        s.age[old], s.reach = 0, s.reach.index_fill(0, old, 1.0)
    newton = torch.bmm(s.inverse, s.gradient.unsqueeze(2)).squeeze(2)  # H g
    step, length = -s.reach[:, None] * newton, (newton * s.gradient).sum(1)
    trial, trial_gradient = by_parts(energy.value_and_gradient, energy.chunk, s.z + step, s.rows)
    smooth = trial_gradient.isfinite().all(1)
    good = smooth & (trial < s.value)  # false for NaN
    _secant(s.inverse, step, -s.reach[:, None] * s.gradient, trial_gradient - s.gradient, smooth)
    ratio = (s.value - trial) / (s.reach * (1 - s.reach / 2) * length)  # over what the step promised
    # A step that damping alone made short promises little anywhere: while such are taken, there is more to gain.
    done = (0.5 * length <= tolerance * (1 + s.value.abs())) & ~(good & (s.damping > 1))

    s.z = torch.where(good[:, None], s.z + step, s.z)
    s.value, s.gradient = torch.where(good, trial, s.value), torch.where(good[:, None], trial_gradient, s.gradient)
    s.damping = s.damping * torch.where(good, (1 - (2 * ratio - 1) ** 3).clamp(1 / 3, 2), s.growth)
    s.growth = torch.where(good, 2.0, 2 * s.growth)
    s.reach = torch.where(good, (2 * s.reach).clamp_max(1.0), s.reach / 4)
    worn = s.growth >= 16  # refused again and again: perhaps H's fault
    done &= ~(worn & (s.age > 0))
    s.age = torch.where(worn, refresh, s.age + good)
    # A wall of values that are not finite also makes steps small: the best code is kept, under its name.
    return done, wall | (done & ~trial.isfinite())


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
