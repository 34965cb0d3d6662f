"""Latent inversion timed side by side: damped Fisher scoring, CSGM's recipe of restarted Adam, torch's L-BFGS.

    python -m benchmarks.inversion            # after `make repro`; about ten minutes on 2 cores
    python -m benchmarks.inversion --quick    # 32 patches, fewer steps: whether it runs, not how fast

The same decoder, problems, measurements and starts for all; two threads. CSGM's recipe (Bora et al. 2017, section 6) is
10 starts × 1000 steps of Adam, its learning rate the better of 0.1 and 0.01 by the objective reached; only the run with
that rate counts as its time. The last line is one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable

import pandas as pd
import torch

from genprior.inversion import Energy, Modes, RangeEnergy, RelaxedEnergy, adam, lbfgs, search
from genprior.operators import pose
from genprior.params import load_params
from genprior.patches import draw_patches, load_patches
from genprior.pictures import objective_figure
from genprior.prior import load_prior
from genprior.stage import set_up
from stages.evaluate import starting_codes

PROBLEMS = ("cs_50", "inpaint", "super_resolution")
OURS = "Fisher scoring"


def timed(run: Callable[[], Modes], energy: Energy) -> tuple[float, torch.Tensor]:
    """Seconds of a solver and the energy that it reached on each problem."""
    begin = time.perf_counter()
    modes = run()
    return time.perf_counter() - begin, modes.best(energy).energy


def compare_range(energy: RangeEnergy, starts: torch.Tensor, steps: int) -> list[dict]:
    """The chapter's objective: every solver at growing budgets, as rows solver, budget, seconds, objective."""
    rows = []

    def record(solver: str, budget: int, run: Callable[[], Modes]) -> float:
        seconds, reached = timed(run, energy)
        # nats back to ‖K G(z) - y‖² + λ‖z‖²
        objective = (2 * energy.sigma**2 * (reached - energy.constant)).mean().item()
        rows.append({"solver": solver, "budget": budget, "seconds": seconds, "objective": objective})
        return objective

    for budget in (5, 12, 25, 50, 100):
        record(OURS, budget, lambda budget=budget: search(energy, starts, budget, audition=12))
    rates = {lr: record(f"Adam, lr {lr}", steps, lambda lr=lr: adam(energy, starts, steps, lr)) for lr in (0.1, 0.01)}
    lr = min(rates, key=rates.get)
    for budget in (steps // 10, steps // 3):
        record(f"Adam, lr {lr}", budget, lambda budget=budget: adam(energy, starts, budget, lr))
    for budget in (steps // 20, steps // 5):
        record("L-BFGS", budget, lambda budget=budget: lbfgs(energy, starts, budget))
    return rows


def compare_relaxed(energy: RelaxedEnergy, starts: torch.Tensor, steps: int) -> list[dict]:
    """The relaxed objective in nats, ours from 2 of the starts at evaluate's settings, Adam's from 4."""
    rows = []
    runs = [(OURS, 25, lambda: search(energy, starts[:2], 25))]
    runs += [
        ("Adam, lr 0.1", budget, lambda b=budget: adam(energy, starts[:4], b, 0.1)) for budget in (steps, 3 * steps)
    ]
    for solver, budget, run in runs:
        seconds, reached = timed(run, energy)
        rows.append({"solver": solver, "budget": budget, "seconds": seconds, "objective": reached.mean().item()})
    return rows


def summary(table: pd.DataFrame) -> dict:
    """For each prior and problem: the recipe's seconds over ours, and our objective over the recipe's."""
    found = {}
    for (constraint, prior, problem), rows in table.groupby(["constraint", "prior", "problem"], sort=False):
        reference = rows[rows.solver.str.startswith("Adam") & (rows.budget == rows.recipe)]
        reference = reference.loc[reference.objective.idxmin()]
        ours = rows[(rows.solver == OURS) & (rows.budget == rows.ours)].iloc[0]
        excess = (
            ours.objective / reference.objective - 1 if constraint == "range" else ours.objective - reference.objective
        )
        found.setdefault(constraint, {}).setdefault(prior, {})[problem] = {
            "time_ratio": round(reference.seconds / ours.seconds, 2),
            "objective_excess" if constraint == "range" else "objective_excess_nats": round(excess, 6),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    patches, steps, relaxed_steps, budget = (32, 60, 20, 50) if quick else (256, 1000, 150, 50)
    params = load_params("params.yaml").model_copy(update={"threads": 2})
    device = set_up(params)
    x = draw_patches(load_patches("data/patches/test.npy", device), patches, params.seed)
    problems = [problem for problem in pose(params.problems, x, params.seed) if problem.name in PROBLEMS]
    rows = []
    for name in ("ae", "vae", "gan"):
        prior = load_prior(f"data/models/{name}.safetensors", device)
        starts = starting_codes(prior, 10, len(x), params.seed)
        for problem in problems:
            measured = (problem.operator, problem.y, problem.sigma)
            energies = {
                "range": (compare_range, RangeEnergy(prior.decode, *measured, None), steps, budget),
                "relaxed": (
                    compare_relaxed,
                    RelaxedEnergy(prior.moments, prior.coefficients.basis, prior.shape, *measured),
                    relaxed_steps,
                    25,
                ),
            }
            for constraint, (compare, energy, recipe, ours) in energies.items():
                search(energy, starts[:1, :2], 2)  # what the first call alone pays for
                for row in compare(energy, starts, recipe):
                    rows.append({"constraint": constraint, "prior": name, "problem": problem.name, **row})
                    rows[-1] |= {"recipe": recipe, "ours": ours}
                    shown = {key: rows[-1][key] for key in ("constraint", "prior", "problem", *row)}
                    print(*(f"{v:.4g}" if isinstance(v, float) else v for v in shown.values()), sep="\t", flush=True)
    table = pd.DataFrame(rows)
    if not quick:
        objective_figure("benchmarks/inversion.png", table[table.constraint == "range"])
    print(json.dumps(summary(table), sort_keys=True))


if __name__ == "__main__":
    main()
