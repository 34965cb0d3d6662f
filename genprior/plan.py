"""How the energy of a view is searched."""

from dataclasses import dataclass

from genprior.files import InputError, whole_number


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
        for name, least in {"starts": 1, "iterations": 1, "pool": 0, "halve_every": 0}.items():
            whole_number(name, getattr(self, name), least)
        if 0 < self.pool < self.starts:
            raise InputError(f"pool = {self.pool}: at least the {self.starts} starts, or 0, would be right")
