"""PriorNetwork: what every trained model is handed on as, and its file."""

import copy
import json
import math
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from genprior.files import InputError, whole_file
from genprior.flow import CouplingFlow
from genprior.images import dct_basis
from genprior.layers import Coefficients, Decoder, Encoder, with_columns

MOST_PIXELS = 4096  # of a patch: what knows all of its pixels has n² numbers


class PriorNetwork(nn.Module):
    """x | z ~ N(G(T(z)), U diag(v(z)) Uᵀ) with z ~ N(0, I): one footing for autoencoder, VAE and GAN.

    T is the identity or a `CouplingFlow`, which belongs to the residual model: it says at which codes of G images lie.
    Without a residual model the images are G(z) alone, z ~ N(0, I), as the chapter has it (`decode`).

    G's code z is standard normal by construction for VAE and GAN. For an autoencoder the network's code is
    `code_mean + code_factor z`, after the Gaussian fitted to its codes. v is None for a prior without a residual model.

    U is the DCT. Where noise is "modulated", the covariance is D U diag(v) Uᵀ D with D = diag(d(z)): the scales of
    `fields`, smooth over the patch.

    shape: (h, w) of a patch; noise: None, "constant", "dct" or "modulated", see `Decoder`; encoder: "none", "plain" (a
    code) or "variational" (its mean and log-variance of z); flow: whether T is one.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        latent_size: int,
        hidden: list[int],
        activation: str,
        noise: str | None = None,
        encoder: str = "none",
        flow: bool = False,
    ):
        super().__init__()
        self.config = {"shape": list(shape), "latent_size": latent_size, "hidden": list(hidden)}
        self.config |= {"activation": activation, "noise": noise, "encoder": encoder, "flow": False}
        self.shape, self.latent_size = tuple(shape), latent_size
        self.coefficients = Coefficients(shape)
        self.encoder = None
        if encoder != "none":
            self.encoder = Encoder(self.coefficients, latent_size, hidden, activation, encoder == "variational")
        self.decoder = Decoder(self.coefficients, latent_size, hidden, activation, noise)
        self.register_buffer("code_mean", torch.zeros(latent_size))
        self.register_buffer("code_factor", torch.eye(latent_size))
        self.flow = None
        if flow:
            self.add_flow()

    def add_flow(self) -> None:
        """Make T a flow, the identity until it is trained."""
        with torch.random.fork_rng(devices=[]):  # what is drawn after it is the same with and without it
            self.flow = CouplingFlow(self.latent_size).to(self.code_mean)
        self.config["flow"] = True

    def add_residual(self, noise: str) -> None:
        """Give it a residual model of this kind, yet to be trained, in place of the noise that it has."""
        self.decoder.set_noise(noise, self.latent_size, self.config["hidden"], self.config["activation"])
        self.decoder.to(self.code_mean)
        self.config["noise"] = noise

    @property
    def has_residual(self) -> bool:
        """Whether v(z) is modelled."""
        return self.config["noise"] is not None

    @property
    def basis(self) -> Tensor:
        """U of the residual covariance U diag(v) Uᵀ, the DCT: (n, n)."""
        return self.coefficients.basis

    @property
    def basis_axes(self) -> tuple[Tensor, Tensor]:
        """U_h (h, h) and U_w (w, w) with U = U_h ⊗ U_w."""
        like = self.coefficients.basis
        return tuple(torch.from_numpy(dct_basis(side, 1)).to(like) for side in self.shape)

    @property
    def scale_fields(self) -> Tensor | None:
        """Of which the pixel scales d(z) are made, d = scales @ scale_fields: (B, n); None where there are none."""
        return None if self.decoder.log_scale is None else self.decoder.fields

    @property
    def is_variational(self) -> bool:
        """Whether its encoder gives q(z | x): mean and log-variance of z."""
        return self.config["encoder"] == "variational"

    def in_double(self) -> "PriorNetwork":
        """A copy in float64, its DCT computed in it."""
        network = copy.deepcopy(self).double()
        network.coefficients.basis = torch.from_numpy(dct_basis(*self.shape)).to(self.code_mean.device)
        return network

    def code(self, z: Tensor) -> Tensor:
        """The network's code of a standard normal latent: (N, k) -> (N, k)."""
        return self.code_mean + z @ self.code_factor.T

    def moments(self, z: Tensor) -> tuple[Tensor, ...]:
        """Mean and variance v of Uᵀx given z: (N, k) -> (N, n), (N, n) or None; scales (N, B) if any."""
        code = self.code(z if self.flow is None else self.flow(z))
        mean = self.coefficients.restore(self.decoder(code))
        scales = () if self.scale_fields is None else (self.decoder.scales(code),)
        return mean, self.decoder.variance(code), *scales

    def moments_with_columns(self, z: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """`moments` and their Jacobians: two (N, n), then two (N, n, k); of scales (N, B) and (N, B, k)."""
        columns = self.code_factor
        if self.flow is not None:
            z, flow_columns = self.flow.with_columns(z)
            columns = columns @ flow_columns
        code = self.code(z)
        mean, mean_columns = self.decoder.forward_with_columns(code, columns)
        variance, variance_columns = self.decoder.variance_with_columns(code, columns)
        mean, mean_columns = self.coefficients.restore(mean), self.coefficients.scale[:, None] * mean_columns
        if self.scale_fields is None:
            return (mean, variance), (mean_columns, variance_columns)
        scales, scales_columns = self.decoder.scales_with_columns(code, columns)
        return (mean, variance, scales), (mean_columns, variance_columns, scales_columns)

    def residual_log_likelihood(self, residual: Tensor, variance: Tensor, scales: Tensor | None = None) -> Tensor:
        """log N(Uᵀx - mean; 0, its covariance) of what `moments` gave: residual (N, n) -> (N,), in nats."""
        log_scale = 0.0
        if scales is not None:
            d = scales @ self.scale_fields
            residual, log_scale = (residual @ self.basis.T / d) @ self.basis, d.log().sum(1)
        return -0.5 * (residual**2 / variance + variance.log() + math.log(2 * math.pi)).sum(1) - log_scale

    def decode(self, z: Tensor) -> Tensor:
        """G(z): (N, k) -> (N, 1, h, w)."""
        return self.coefficients.synthesise(self.decoder(self.code(z)))

    def encode(self, x: Tensor) -> Tensor:
        """The encoder's (mean) code of patches, as standard normal latent of G: (N, 1, h, w) -> (N, k)."""
        if self.is_variational:
            mean, _ = self.encoder(x)
            code = mean if self.flow is None else self.flow(mean)
        else:
            code = self.encoder(x)
        return torch.linalg.solve_triangular(self.code_factor, (code - self.code_mean).T, upper=False).T

    def encode_residual(self, x: Tensor) -> Tensor:
        """The encoder's (mean) code in front of T: (N, 1, h, w) -> (N, k)."""
        if self.is_variational:
            return self.encoder(x)[0]
        code = self.encode(x)
        return code if self.flow is None else self.flow.inverse(code)[0]

    @torch.no_grad()
    def fit_codes(self, x: Tensor) -> None:
        """Fit its density to the codes of patches (N, 1, h, w) and fold it into the decoder, so that z ~ N(0, I)."""
        codes = self.encoder(x)
        if not codes.isfinite().all():
            raise InputError("the codes came out as no finite numbers: training diverged; a smaller lr would be right")
        self.code_mean.copy_(codes.mean(0))
        # A code that never moves has no variance; the ridge keeps the factor invertible.
        covariance = torch.cov(codes.T).reshape(self.latent_size, self.latent_size)
        ridge = 1e-6 * covariance.diagonal().mean().clamp_min(1e-6)
        self.code_factor.copy_(torch.linalg.cholesky(covariance + ridge * torch.eye(self.latent_size, device=x.device)))

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, residual: bool) -> Tensor:
        """Draws x: G(z) with z ~ N(0, I), or G(T(z)) plus N(0, Σ(z)) where `residual`: (count, 1, h, w)."""
        device = self.code_mean.device
        z = torch.randn(count, self.latent_size, generator=generator, dtype=self.code_mean.dtype).to(device)
        if not residual:
            return self.decode(z)
        mean, variance, *scales = self.moments(z)
        drawn = variance.sqrt() * torch.randn(mean.shape, generator=generator, dtype=self.code_mean.dtype).to(device)
        return self.synthesise(mean, drawn, *scales)

    def synthesise(self, mean: Tensor, residual: Tensor, scales: Tensor | None = None) -> Tensor:
        """U mean + D U residual, of what `moments` gave and a draw of N(0, diag v): (N, n) twice -> (N, 1, h, w)."""
        if scales is None:
            x = (mean + residual) @ self.basis.T
        else:
            x = mean @ self.basis.T + (scales @ self.scale_fields) * (residual @ self.basis.T)
        return x.reshape(-1, 1, *self.shape)


class Observed(nn.Module):
    """K G(z), codes (N, k) -> (N, m), for a matrix K: the decoder's last layer and K become one matrix."""

    def __init__(self, prior: PriorNetwork, matrix: Tensor):
        super().__init__()
        coefficients, decoder = prior.coefficients, prior.decoder
        last = matrix @ coefficients.basis * coefficients.scale  # standardised coefficients -> measurements
        self.prior, self.network = prior, nn.Sequential(*decoder.body, _linear(last))
        self.network[-1].weight = nn.Parameter(last @ decoder.mean.weight, requires_grad=False)
        offset = last @ decoder.mean.bias + matrix @ (coefficients.basis @ coefficients.mean)
        self.network[-1].bias = nn.Parameter(offset, requires_grad=False)
        self.register_buffer("linear", last @ decoder.linear.weight)

    def moments(self, z: Tensor) -> tuple[Tensor]:
        """K G(z): (N, m)."""
        code = self.prior.code(z)
        return (self.network(code) + code @ self.linear.T,)

    def moments_with_columns(self, z: Tensor) -> tuple[tuple[Tensor], tuple[Tensor]]:
        """K G(z) and its Jacobian: (N, m) and (N, m, k)."""
        code, code_columns = self.prior.code(z), self.prior.code_factor
        predicted, columns = with_columns(self.network, code, code_columns)
        return (predicted + code @ self.linear.T,), (columns + self.linear @ code_columns,)


def _linear(weight: Tensor) -> nn.Linear:
    """A layer for this weight, without torch's first draw of one."""
    return nn.utils.skip_init(nn.Linear, *weight.shape[::-1], dtype=weight.dtype, device=weight.device)


def save_network(prior: PriorNetwork, path: str | Path) -> None:
    """Write the weights as safetensors, with what rebuilds the network in the metadata."""
    # One metadata key: safetensors does not keep the order of several, and the bytes would change from run to run.
    weights = {name: tensor.contiguous().cpu() for name, tensor in prior.state_dict().items()}
    shared = {name: tensor for name, tensor in weights.items() if ".coefficients." not in name}
    content = save(shared, metadata={"prior": json.dumps(prior.config, sort_keys=True)})
    with whole_file(path) as part:
        part.write_bytes(content)


def load_network(
    path: str | Path, device: torch.device | str = "cpu", shape: tuple[int, int] | torch.Size | None = None
) -> PriorNetwork:
    """Rebuild a prior from its file; InputError names a file that is missing, damaged or of another kind.

    shape: (h, w) of the patches that it is for, where another one is to be refused.
    """
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["prior"])
            # Copied out of the mapped file: its alignment would reach the last bits of sums.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; `dvc repro` trains the priors") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: not a readable safetensors file: {' '.join(str(error).split())}") from None
    except Exception:  # whatever json says of what is none
        raise InputError(f"{path}: not the file of a prior: it has no settings of one") from None
    try:
        sizes = {"coefficients.mean": math.prod(config["shape"]), "code_mean": config["latent_size"]}
        if min(config["hidden"]) < 1:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: not the file of a prior: its settings are not those of a network") from None
    for name, size in sizes.items():
        if name not in weights or weights[name].shape != (size,) or size > MOST_PIXELS:
            raise InputError(f"{path}: not the file of a prior: {name} is not the {size} numbers of its settings")
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32:
            raise InputError(f"{path}: {name} is {tensor.dtype}; torch.float32 would be right")
        if not tensor.isfinite().all():
            raise InputError(f"{path}: {name} is not finite; train the prior anew, with a smaller lr where it diverged")
    side = config["shape"]
    if shape is not None and side != list(shape):
        raise InputError(
            f"{path}: a prior of {side[0]} × {side[1]} patches, and these are {shape[0]} × {shape[1]}; "
            "train it anew on them"
        )
    try:
        with torch.device("meta"):  # no memory for what the settings claim before the weights are known to be there
            prior = PriorNetwork(**config)
        lacking, unknown = prior.load_state_dict(weights, strict=False, assign=True)
    except (RuntimeError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not the file of a prior: {' '.join(str(error).split())[:400]}") from None
    lacking = [name for name in lacking if ".coefficients." not in name]
    if lacking or unknown:
        raise InputError(f"{path}: not the file of a prior: {[*lacking, *unknown][0]} is lacking or unknown")
    return prior.to(device).eval().requires_grad_(False)
