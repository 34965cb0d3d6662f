"""An inverse problem as it is stated, y = K x + e: its promises are checked here, once, and it becomes real rows.

Complex numbers become their real and imaginary parts, several instruments one stack of rows, and what a linear
operator makes of 0 is taken off y.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from genprior.batches import noise_like
from genprior.files import InputError, nonnegative
from genprior.operators import as_matrix

ONE_K = "one K for a batch: restore the problems of each K apart"


@dataclass(frozen=True)
class Problem:
    """y = K x + e, e ~ N(0, σ² I), as real rows, with what the operator states of itself.

    A: images (P, 1, h, w) -> (P, m); y: (N, m), less A(0) where K is linear; matrix: K (m, n) where it is, else None.
    """

    A: Callable[[Tensor], Tensor]
    y: Tensor
    sigma: float
    matrix: Tensor | None
    orthogonal_in: tuple[str, ...]
    axes: tuple[Tensor, ...] | None

    def in_double(self) -> "Problem":
        """The same linear problem in float64; K from its axes, where it has them, so that both are one K."""
        axes = None if self.axes is None else tuple(axis.double() for axis in self.axes)
        return replace(self, matrix=torch.kron(*axes) if axes else self.matrix.double(), axes=axes)


def stated(view: object, operator: object, y: object, sigma: object) -> Problem:
    """The problem of measurements y (N, ...) = K x + e, y and A(x) of one structure; see `Problem`.

    K is linear where the operator has A_adjoint. InputError, in one line, for all that does not hold.
    """
    sigma, basis, name = nonnegative("sigma", sigma), view.basis, type(operator).__name__
    if sigma == 0 and view.covariance == "none":
        raise InputError("sigma = 0: images confined to a range explain no measurement exactly; above 0 would be right")
    parts = _measurements(y)
    draw = torch.Generator().manual_seed(0)
    x = torch.rand(1, 1, *view.shape, generator=draw, dtype=basis.dtype).to(basis)
    with refused(operator, "A", x):
        none, measured = operator.A(torch.zeros_like(x)), operator.A(x)
        _check_measurements(parts, parts_of(measured), name)
        none, one = rows_of(none).to(basis), rows_of(measured).to(basis)
        copies = rows_of(operator.A(x.repeat(len(parts[0]), 1, 1, 1))).to(basis)
    if not one.isfinite().all():
        raise InputError(f"operator: {name}.A of a picture in [0, 1] is not finite; a K that takes it would be right")
    if copies.shape != (len(parts[0]), one.shape[1]) or not _close(copies, one.expand_as(copies), one):
        raise InputError(f"operator: {name}.A takes copies of one picture to different rows; {ONE_K}")
    linear = hasattr(operator, "A_adjoint")
    offset = none if linear and none.any() else None

    def A(x: Tensor) -> Tensor:
        rows = rows_of(operator.A(x)).to(basis)
        return rows if offset is None else rows - offset

    rows = torch.cat([_real(part.to(basis.device)).flatten(1) for part in parts], 1)
    rows = rows.to(torch.promote_types(rows.dtype, basis.dtype), copy=True)  # the caller may change y
    problem = Problem(A, rows if offset is None else rows - offset, sigma, None, (), None)
    if not linear:
        return problem
    with refused(operator, "A", x):
        matrix = as_matrix(problem, view.shape, basis)
    axes = getattr(operator, "axes", None)
    problem = replace(problem, matrix=matrix, orthogonal_in=getattr(operator, "orthogonal_in", ()), axes=axes)
    _check_linear(problem, x, one, none, name)
    _check_adjoint(problem, operator, measured, draw)
    return problem


def each(function: Callable[[Tensor], Tensor], measured: object) -> object:
    """A function of every tensor of what operators measure, in the same structure: a tensor, a tuple or a list of
    them, or an object with a list `x` whose class takes one, as deepinv's TensorList."""
    if isinstance(measured, Tensor | np.ndarray):
        return function(measured if isinstance(measured, Tensor) else torch.as_tensor(np.ascontiguousarray(measured)))
    inner = getattr(measured, "x", measured)
    if not isinstance(inner, tuple | list) or not inner:
        raise InputError(f"{type(measured).__name__}: a tensor of measurements, or a list of them, would be right")
    return type(measured)([each(function, part) for part in inner])


def parts_of(measured: object) -> list[Tensor]:
    """The tensors of what operators measure."""
    parts = []
    each(lambda part: parts.append(part) or part, measured)
    return parts


def rows_of(measured: object) -> Tensor:
    """What operators measure, (N, ...), as rows of real numbers: (N, m)."""
    parts = [_real(part).flatten(1) for part in parts_of(measured)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _real(part: Tensor) -> Tensor:
    return torch.view_as_real(part.resolve_conj()) if part.is_complex() else part


@contextmanager
def refused(operator: object, method: str, of: object) -> Iterator[None]:
    """InputError in one line where an operator has no such method, or raises."""
    name, taken = type(operator).__name__, " and ".join(f"{tuple(p.shape)} of {p.dtype}" for p in parts_of(of))
    if not hasattr(operator, method):
        raise InputError(f"operator: {name} has no {method}(x); one of genprior.operators would be right")
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever an operator of the user's raises
        text = " ".join(str(error).split())[:300]
        raise InputError(f"operator: {name}.{method} fails on {taken}: {type(error).__name__}: {text}") from error


def _close(found: Tensor, expected: Tensor, scale: Tensor) -> bool:
    """Whether they differ by no more than float32 makes of numbers as large as `scale`; false for NaN."""
    return bool((found - expected).abs().max() <= 1e-3 * scale.abs().max())


def _measurements(y: object) -> list[Tensor]:
    """The tensors of y, finite and of as many problems each."""
    try:
        parts = [part.detach() for part in parts_of(y)]
    except (TypeError, ValueError) as error:
        raise InputError(f"y: {error}") from None
    for part in parts:
        if not (part.is_floating_point() or part.is_complex()):
            raise InputError(f"y: {part.dtype}; floats in the units of K x would be right, 0 to 255 divided by 255")
        if not part.isfinite().all():
            raise InputError("y: not finite; finite numbers would be right")
    return parts


def _check_measurements(parts: list[Tensor], measured: list[Tensor], name: str) -> None:
    """InputError where y is not (N, ...) for A of one picture, (1, ...)."""
    if any(part.ndim == 0 or len(part) != 1 for part in measured):
        rows = ", ".join(str(tuple(part.shape)) for part in measured)
        raise InputError(f"operator: {name}.A takes one picture to {rows}; (1, ...) would be right, and {ONE_K}")
    shapes, own = ([tuple(part.shape) for part in kind] for kind in (parts, measured))
    counts = {shape[0] for shape in shapes if shape}
    if counts == {0} or len(counts) != 1 or [shape[1:] for shape in shapes] != [shape[1:] for shape in own]:
        batched = len(counts) == 1 and counts != {0} and [*map(len, shapes)] == [*map(len, own)]
        count = counts.pop() if batched else "N"
        right = ", ".join(f"({', '.join(map(str, (count, *shape[1:])))})" for shape in own)
        raise InputError(f"y: {', '.join(map(str, shapes))}; {right} would be right")
    for part, twin in zip(parts, measured, strict=True):
        if part.is_complex() != twin.is_complex():
            kinds = ("complex", "real") if part.is_complex() else ("real", "complex")
            raise InputError(f"y: {kinds[0]}, and {name}.A is {kinds[1]}; both of one kind would be right")


def _check_linear(problem: Problem, x: Tensor, one: Tensor, none: Tensor, name: str) -> None:
    """InputError where A(x) - A(0), `one` less `none`, is not its matrix times x, or that not what its axes state."""
    matrix, axes = problem.matrix, problem.axes
    found, expected = (one - none)[0], matrix @ x.flatten()
    if not _close(found, expected, one):
        raise InputError(
            f"operator: {name} has A_adjoint, and its A is not linear: ‖A(x) - A(0)‖ = {found.norm():.6g}, and "
            f"{expected.norm():.6g} from its columns; without A_adjoint it is taken as it is"
        )
    if axes is not None:
        kron = (torch.kron(*axes) if axes else torch.eye(matrix.shape[1])).to(matrix)
        if kron.shape != matrix.shape or not _close(kron, matrix, matrix):
            raise InputError(f"operator: {name}.axes: its A is not K_h ⊗ K_w; without axes it is taken as it is")


def _check_adjoint(problem: Problem, operator: object, measured: object, draw: torch.Generator) -> None:
    """InputError where ⟨A x, y⟩ = ⟨x, A_adjoint y⟩ fails for a drawn y and x = Kᵀ y, at which both are large."""
    y, name = each(lambda part: noise_like(part, draw), measured), type(operator).__name__
    with refused(operator, "A_adjoint", y):
        (image,) = parts_of(operator.A_adjoint(y))
    x, image = problem.matrix.T @ rows_of(y)[0].to(problem.matrix), image.real.flatten().to(problem.matrix)
    if image.shape != x.shape:
        raise InputError(f"operator: {name}.A_adjoint gives {len(image)} numbers; {len(x)} would be right")
    if not _close(image, x, x):
        raise InputError(
            f"operator: {name}.A_adjoint is not A's: ⟨A x, y⟩ = {x @ x:.6g}, and ⟨x, A_adjoint y⟩ = {x @ image:.6g}"
        )
