"""Priors given by functions, for tests of the engine: 4 × 5 patches in the DCT, without a network."""

from types import SimpleNamespace

import torch

from genprior.batches import by_forward_mode
from genprior.covariances import Isotropic
from genprior.energies import ByForwardMode, Energy, energy_of
from genprior.images import dct_basis
from genprior.inversion import search
from genprior.plan import Plan

SHAPE, N = (4, 5), 20
BASIS = torch.from_numpy(dct_basis(*SHAPE))
BASIS_AXES = tuple(torch.from_numpy(dct_basis(side, 1)) for side in SHAPE)


class Analytic:
    """A view of a prior whose moments are a function of codes; fields: of its pixel scales, where it has them."""

    basis_kind, basis_axes, shape, latent_size = "dct", BASIS_AXES, SHAPE, 3

    def __init__(self, moments, covariance="diagonal", fields=None, basis=BASIS):
        self.moments, self.covariance, self.scale_fields, self.basis = moments, covariance, fields, basis

    def moments_with_columns(self, z):
        return by_forward_mode(self.moments, z)

    def decode(self, z):
        return (self.moments(z)[0] @ self.basis.T).reshape(-1, 1, *self.shape)

    def through(self, matrix):
        return ByForwardMode(lambda z: (self.decode(z).flatten(1) @ matrix.T,))


class Both:
    """An A and its adjoint, with what else an operator states."""

    def __init__(self, A, A_adjoint=None, **others):
        self.A = A
        if A_adjoint is not None:
            self.A_adjoint = A_adjoint
        self.__dict__.update(others)


def curved(draw, k=3, m=20, slope=0.25):
    """A decoder that is linear in the middle, and flat far from it: (P, k) -> (P, m)."""
    inner, outer = torch.randn(16, k, generator=draw), torch.randn(m, 16, generator=draw) * slope
    return lambda z: torch.tanh(z @ inner.T) @ outer.T


def curved_moments(draw, k=3, size=0.1):
    """The same in DCT coefficients, its variances from size / e to size · e."""
    mean, spread = curved(draw, k, N, 1 / 3), torch.randn(N, k, generator=draw)
    return lambda z: (mean(z), size * torch.exp(torch.tanh(z @ spread.T)))


def range_energy(decode, y, latent_weight, sigma=0.5):
    """That of any decoder of vectors with K = I."""
    precision = 1.0 if latent_weight is None else latent_weight / sigma**2
    return Energy(ByForwardMode(lambda z: (decode(z),)), Isotropic(y, sigma), lambda z, *_: decode(z), precision)


def plain_energy(moments, operator, y, sigma, basis=BASIS):
    """Of the structure that K asks for: diagonal where K U has orthogonal columns."""
    return energy_of(Analytic(moments, basis=basis), operator, y, sigma)


def scaled_energy(moments, operator, y, sigma, fields):
    """Of the structure that K asks for: separable or white where K is."""
    return energy_of(Analytic(moments, "scaled", fields), operator, y, sigma)


def find(energy, starts, iterations, **plan):
    """The modes that a search from these starts ends at."""
    return search(energy, starts, Plan(len(starts), iterations, **plan))


def best(energy, modes):
    """The deepest mode of each problem, after a check that its energy is its own, and no other iterate's."""
    z, value, status = modes.at(modes.deepest())
    rows = torch.arange(len(z))
    finite = value.isfinite()
    torch.testing.assert_close(energy.value(z, rows)[finite], value[finite])
    return SimpleNamespace(z=z, energy=value, status=status, x=energy.estimate(z, rows))
