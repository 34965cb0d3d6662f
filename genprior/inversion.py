"""Latent inversion: the chapter's argmin_z ‖K G(z) - y‖² + λ‖z‖², for a batch of measurements at once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

CONVERGED, OUT_OF_ITERATIONS, NOT_FINITE = "converged", "out of iterations", "not finite"
STATUS = (OUT_OF_ITERATIONS, CONVERGED, NOT_FINITE)


@dataclass(frozen=True)
class Inversion:
    """The best code found for each problem: z (N, k), its objective (N,), and how its search ended (N strings)."""

    z: Tensor
    objective: Tensor
    status: list[str]


def objective(forward: Callable[[Tensor], Tensor], y: Tensor, latent_weight: float, z: Tensor) -> Tensor:
    """‖K G(z) - y‖² + λ‖z‖² for forward = K∘G: z (N, k), y (N, m) -> (N,)."""
    return (forward(z) - y).square().sum(1) + latent_weight * z.square().sum(1)


def invert(
    forward: Callable[[Tensor], Tensor],
    y: Tensor,
    latent_weight: float,
    starts: Tensor,
    iterations: int,
    audition: int = 4,
) -> Inversion:
    """Minimise ‖K G(z) - y‖² + λ‖z‖² by Levenberg-Marquardt from several starts, the best kept for each problem.

    forward: K∘G, differentiable, codes (N, k) -> measurements (N, m), row by row; y: (N, m);
    starts: codes (S, N, k). All starts run for `audition` iterations, the better half of them to the end.
    A problem all of whose starts fail has the objective inf and its start as z.
    """
    count, problems, k = starts.shape
    rows = torch.arange(problems, device=y.device).repeat(count)
    first = levenberg_marquardt(forward, y[rows], latent_weight, starts.reshape(-1, k), min(audition, iterations))
    if iterations <= audition:
        return _best(first, count)
    kept = (count + 1) // 2
    order = first.objective.reshape(count, problems).argsort(dim=0, stable=True)[:kept].reshape(-1)
    index = order * problems + torch.arange(problems, device=y.device).repeat(kept)
    rest = levenberg_marquardt(forward, y[index % problems], latent_weight, first.z[index], iterations - audition)
    return _best(rest, kept)


def _best(runs: Inversion, count: int) -> Inversion:
    """The best of `count` runs stacked one after another, for each problem."""
    problems = len(runs.objective) // count
    winner = runs.objective.reshape(count, problems).argmin(0)
    index = winner * problems + torch.arange(problems, device=winner.device)
    return Inversion(runs.z[index], runs.objective[index], [runs.status[i] for i in index.tolist()])


def levenberg_marquardt(
    forward: Callable[[Tensor], Tensor],
    y: Tensor,
    latent_weight: float,
    z: Tensor,
    iterations: int,
    tolerance: float = 1e-5,
) -> Inversion:
    """Minimise ‖K G(z) - y‖² + λ‖z‖² from the codes z (N, k), each problem with its own damping and its own end.

    Step d: (JᵀJ + λ I + μ D) d = -(Jᵀr + λ z) with J the forward-mode Jacobian of K∘G, r = K G(z) - y and
    D = diag(JᵀJ) + λ + its mean; μ follows the gain ratio. A problem has converged once a step promises less than
    `tolerance` of its objective. Marquardt 1963; damping by Nielsen 1999 (report IMM-REP-1999-05), equation 2.4.
    """
    z = z.clone()
    value = objective(forward, y, latent_weight, z).nan_to_num(torch.inf, torch.inf)
    damping, growth = torch.full_like(value, 1e-2), torch.full_like(value, 2.0)
    state = torch.where(value.isfinite(), 0, 2)  # index into STATUS
    active = (state == 0).nonzero().squeeze(1)
    gradient, curvature = z.new_empty(*z.shape), z.new_empty(*z.shape, z.shape[1])
    stale = torch.ones_like(state, dtype=torch.bool)  # the Jacobian's place has moved since it was taken
    for _ in range(iterations):
        if len(active) == 0:
            break
        fresh = active[stale[active]]
        if len(fresh):
            gradient[fresh], curvature[fresh] = _normal_equations(forward, y[fresh], latent_weight, z[fresh])
            stale[fresh] = False
        g, h = gradient[active], curvature[active]
        diagonal = h.diagonal(dim1=1, dim2=2)
        scale = diagonal + diagonal.mean(1, keepdim=True) + torch.finfo(z.dtype).tiny
        factor, failed = torch.linalg.cholesky_ex(h + torch.diag_embed(damping[active, None] * scale))
        step = -torch.cholesky_solve(g.unsqueeze(2), factor).squeeze(2)
        promised = -(2 * (g * step).sum(1) + torch.einsum("ni,nij,nj->n", step, h, step))
        trial = objective(forward, y[active], latent_weight, z[active] + step)
        gain = (value[active] - trial) / promised
        good = (failed == 0) & step.isfinite().all(1) & trial.isfinite() & (trial < value[active])

        taken = active[good]
        z[taken] += step[good]
        value[taken] = trial[good]
        stale[taken] = True
        damping[taken] *= (1 - (2 * gain[good] - 1) ** 3).clamp(1 / 3, 2)
        growth[taken] = 2.0
        refused = active[~good]
        damping[refused] *= growth[refused]
        growth[refused] *= 2
        # `promised` is small at a minimum, or where the damping has grown past all steps that float32 can tell apart.
        done = (failed == 0) & (promised <= tolerance * value[active])
        lost = ~(g.isfinite().all(1) & h.flatten(1).isfinite().all(1)) | (damping[active] > 1e12)
        state[active[done]] = 1
        state[active[lost & ~done]] = 2
        active = active[~(done | lost)]
    return Inversion(z, value, [STATUS[i] for i in state.tolist()])


def _normal_equations(
    forward: Callable[[Tensor], Tensor], y: Tensor, latent_weight: float, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Half the gradient and half the Gauss-Newton matrix of the objective: (N, k) and (N, k, k)."""
    k = z.shape[1]

    def column(direction: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(forward, (z,), (direction.expand_as(z),))

    predicted, jacobian = torch.func.vmap(column, out_dims=(None, 2))(torch.eye(k, dtype=z.dtype, device=z.device))
    gradient = torch.einsum("nmk,nm->nk", jacobian, predicted - y) + latent_weight * z
    curvature = jacobian.transpose(1, 2) @ jacobian + latent_weight * torch.eye(k, dtype=z.dtype, device=z.device)
    return gradient, curvature


def adam(
    forward: Callable[[Tensor], Tensor],
    y: Tensor,
    latent_weight: float,
    starts: Tensor,
    iterations: int,
    lr: float = 0.1,
) -> Inversion:
    """The same minimum by Adam from all starts (S, N, k), the best iterate kept: CSGM's recipe (Bora et al. 2017)."""
    count, problems, k = starts.shape
    rows = torch.arange(problems, device=y.device).repeat(count)
    z = starts.reshape(-1, k).clone().requires_grad_()
    optimizer = torch.optim.Adam([z], lr=lr)
    best, best_value = z.detach().clone(), torch.full((len(z),), torch.inf, device=y.device, dtype=z.dtype)
    for iteration in range(iterations + 1):
        value = objective(forward, y[rows], latent_weight, z)
        better = value.detach() < best_value
        best[better], best_value[better] = z.detach()[better], value.detach()[better]
        if iteration < iterations:
            optimizer.zero_grad()
            value.sum().backward()
            optimizer.step()
    status = [OUT_OF_ITERATIONS if finite else NOT_FINITE for finite in best_value.isfinite().tolist()]
    return _best(Inversion(best, best_value, status), count)
