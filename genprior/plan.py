"""How the energy of a view is searched."""

from dataclasses import dataclass

from genprior.files import InputError


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

    def __post_init__(self):
        if self.starts < 1 or self.iterations < 0 or self.pool < 0:
            raise InputError(f"{self}: starts of at least 1, iterations and pool of at least 0 would be right")
