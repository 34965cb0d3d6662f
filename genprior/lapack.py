"""Cholesky factors and their inverses of many small matrices at once, on a CPU by LAPACK in the matrices' own place.

torch copies such matrices and zeroes half of each factor column by column, which takes as long as LAPACK itself.
"""

import math
from functools import cache

import torch
from scipy.linalg import get_lapack_funcs
from torch import Tensor

LEAF = 64  # rows of a matrix up to which LAPACK alone is faster than halves and matrix products


def cholesky(covariance: Tensor) -> Tensor:
    """The lower factor L of each matrix (P, m, m); NaN where there is none, which no solver accepts as an energy.

    On a CPU it may overwrite its argument, and leaves what stood above the diagonal. By torch where the matrices are to
    be differentiated, or lie on another device.
    """
    if covariance.device.type != "cpu" or covariance.requires_grad:
        factor, failed = torch.linalg.cholesky_ex(covariance)
        return torch.where((failed > 0)[:, None, None], torch.nan, factor) if failed.any() else factor
    factor = covariance.contiguous()
    _in_place("potrf", factor, overwrite_a=True, clean=False)
    return factor


def inverse(factor: Tensor) -> Tensor:
    """L⁻¹ of lower factors (P, m, m), contiguous, whatever they hold above the diagonal.

    By halves above `LEAF` rows, so that matrix products do most of the work.
    """
    m = factor.shape[1]
    if m <= LEAF:
        return _leaf_inverse(factor)
    found, half = factor.new_zeros(factor.shape), m // 2
    corner = found[:, :half, :half] = inverse(factor[:, :half, :half])
    rest = found[:, half:, half:] = inverse(factor[:, half:, half:])
    found[:, half:, :half] = -(rest @ (factor[:, half:, :half] @ corner))
    return found


def inverse_root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """L⁻¹ of matrices S = L Lᵀ (P, m, m), and log det S (P,), NaN where there is no L; S may be overwritten.

    Factor and inverse by the same halves, in less time than one after the other.
    """
    m = covariance.shape[1]
    if m <= LEAF:
        factor = cholesky(covariance)
        return inverse(factor), log_determinant(factor)
    half = m // 2
    found = torch.zeros_like(covariance)
    corner, log_det = inverse_root(covariance[:, :half, :half])
    below = covariance[:, half:, :half] @ corner.mT
    rest, further = inverse_root(torch.baddbmm(covariance[:, half:, half:], below, below.mT, alpha=-1))
    found[:, :half, :half], found[:, half:, half:] = corner, rest
    found[:, half:, :half] = -(rest @ (below @ corner))
    return found, log_det + further


def solve(factor: Tensor, y: Tensor) -> Tensor:
    """(L Lᵀ)⁻¹ y for lower factors (P, m, m) and vectors (P, m).

    By the upper factor: LAPACK goes by columns, and its columns are rows here, so that torch copies them as they lie.
    """
    return torch.cholesky_solve(y.unsqueeze(2), factor.mT, upper=True).squeeze(2)


def log_determinant(factor: Tensor) -> Tensor:
    """log det L Lᵀ: (P, m, m) -> (P,)."""
    return 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)


def _leaf_inverse(factor: Tensor) -> Tensor:
    if factor.device.type != "cpu" or factor.requires_grad:
        identity = torch.eye(factor.shape[1], dtype=factor.dtype, device=factor.device).expand_as(factor)
        return torch.linalg.solve_triangular(factor, identity, upper=False).contiguous()
    found = factor.tril().contiguous()
    _in_place("trtri", found, overwrite_c=True)
    return found


def _in_place(routine: str, matrices: Tensor, **options: bool) -> None:
    """A LAPACK routine on the lower triangles of contiguous matrices (P, m, m); NaN where it fails."""
    array = matrices.numpy()
    (function,) = get_lapack_funcs((routine,), dtype=array.dtype)
    with _blas().limit(limits=1):
        for matrix in array:
            _, failed = function(matrix.T, lower=False, **options)  # LAPACK's columns are rows here
            if failed:
                matrix[:] = math.nan


@cache
def _blas() -> object:
    """SciPy's BLAS, among others: its threads and torch's, waiting for each other, take longer than one alone."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")
