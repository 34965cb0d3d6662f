"""How the energy of a view is searched."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How the energy of a view is searched.

    starts: searches of each problem; iterations: of each; pool: so many draws of the prior of which those of lowest
    energy start, 0: z = 0 and plain draws; halve_every: iterations after which the worse half of a problem's starts is
    dropped, 0: never; widened: whether all starts first go down the energy of twice the noise; dominant: whether the
    image is taken at the mode that holds most of the posterior, and not at the deepest.
    """

    starts: int
    iterations: int
    pool: int = 0
    halve_every: int = 0
    widened: bool = False
    dominant: bool = False
