"""What the training stages share: the optimiser's schedule, a curve's rows, checkpoints, fitting a residual model."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

import genprior.files
from genprior.files import InputError, whole_file
from genprior.layers import Encoder
from genprior.networks import PriorNetwork
from pipeline.losses import elbo_terms
from pipeline.params import Params, Residual
from pipeline.patches import draw_batch
from pipeline.run import steps


def cosine_adam(
    network: nn.Module, lr: float, count: int, **options
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam and a learning rate that falls from `lr` to 0 along half a cosine over `count` steps."""
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, fused=True, **options)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count)


def logged(step: int, count: int, rows: int = 100) -> bool:
    """Whether a training curve of about `rows` rows has one for this step (counted from 0); the last always."""
    return step % max(1, count // rows) == 0 or step == count - 1


class Checkpoint:
    """Where a stage's trainings stand, so that a killed stage goes on from there, to the bytes of an undisturbed run.

    `folder` gets one file for each training that is given this, in their order: written every `every` seconds, and when
    that training ends. Only the same run finds them again: same parameters, code (`script` and this package), `data`
    and its device, torch and instruction set. Any other file, damaged or of another run, is passed over and
    overwritten.
    """

    def __init__(self, folder: str | Path, params: Params, script: str, *data: Tensor, every: float = 15.0):
        self.folder, self.every, self.trainings, self.written = Path(folder), every, 0, time.monotonic()
        self.run = hashlib.sha256(params.model_dump_json().encode())
        self.run.update(f"{data[0].device} {torch.__version__} {torch.backends.cpu.get_cpu_capability()}".encode())
        library = Path(genprior.files.__file__).parent
        for file in (Path(script), *sorted(library.glob("*.py")), *sorted(Path(__file__).parent.glob("*.py"))):
            self.run.update(file.read_bytes())
        for tensor in data:
            self.run.update(tensor.cpu().numpy().tobytes())

    def due(self) -> bool:
        """Whether the last writing is long enough ago; asked after every step."""
        return time.monotonic() - self.written > self.every

    def save(self, path: Path, parts: list, rows: list[dict], step: int) -> None:
        """Write a training's state after `step` steps."""
        tensors = []
        state = _without_tensors([_state(part) for part in parts], tensors)
        text = json.dumps({"step": step, "rows": rows, "state": state})
        named = {str(i): tensor for i, tensor in enumerate(tensors)}
        content = save(named, metadata={"training": json.dumps([text, self._digest(text, tensors)])})
        with whole_file(path) as part:
            part.write_bytes(content)
        self.written = time.monotonic()

    def restore(self, path: Path, parts: list, rows: list[dict]) -> int:
        """Set `parts` and `rows` to what the file holds; returns its number of steps, 0 where it is not of this run."""
        try:
            with safe_open(path, framework="pt") as file:
                text, digest = json.loads(file.metadata()["training"])
                tensors = [file.get_tensor(str(i)).clone() for i in range(len(file.keys()))]
            if digest != self._digest(text, tensors):
                return 0
        except (OSError, SafetensorError, ValueError, TypeError, KeyError):
            return 0
        found = json.loads(text)
        for part, state in zip(parts, _with_tensors(found["state"], tensors), strict=True):
            part.set_state(state) if isinstance(part, torch.Generator) else part.load_state_dict(state)
        rows[:] = found["rows"]
        return found["step"]

    def _digest(self, text: str, tensors: list[Tensor]) -> str:
        digest = self.run.copy()
        digest.update(str(text).encode())
        for tensor in tensors:
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()

    def remove(self) -> None:
        """Leave nothing behind, once the stage has written its outputs."""
        shutil.rmtree(self.folder, ignore_errors=True)


def resumable(count: int, what: str, checkpoint: Checkpoint | None, parts: list, rows: list[dict]) -> tqdm:
    """`stage.steps`, from where a killed run of this training was last saved.

    parts: all that a step changes, networks, optimisers, schedules, generators, in their state at step 0; rows: the
    curve so far, []. Both are set to the state of the first step that is left. None for a checkpoint: all steps.
    """
    if checkpoint is None:
        return steps(count, what)
    checkpoint.trainings += 1
    path = checkpoint.folder / f"{checkpoint.trainings}.safetensors"
    parts = [*parts, torch.default_generator]
    done = checkpoint.restore(path, parts, rows)

    def saved() -> Iterator[int]:
        for step in range(done, count):
            yield step
            if checkpoint.due() or step == count - 1:
                checkpoint.save(path, parts, rows, step + 1)

    return steps(count, what, saved(), done)


def _state(part: nn.Module | torch.Generator) -> dict | Tensor:
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def _without_tensors(value: object, tensors: list[Tensor]) -> object:
    """A nested state as JSON can hold it: each tensor moves to the list and leaves its number."""
    if isinstance(value, Tensor):
        tensors.append(value.detach().cpu().clone(memory_format=torch.contiguous_format))
        return {"tensor": len(tensors) - 1}
    if isinstance(value, dict):  # as pairs, for JSON would make text of an optimiser's numbered keys
        return {"pairs": [[key, _without_tensors(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return [_without_tensors(inner, tensors) for inner in value]
    return value


def _with_tensors(value: object, tensors: list[Tensor]) -> object:
    """The state that `_without_tensors` took apart."""
    if isinstance(value, list):
        return [_with_tensors(inner, tensors) for inner in value]
    if isinstance(value, dict):
        return tensors[value["tensor"]] if "tensor" in value else dict(_with_tensors(value["pairs"], tensors))
    return value


def fit_residual(
    prior: PriorNetwork,
    encoder: Encoder,
    patches: Tensor,
    settings: Residual,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Fit where a trained decoder's codes lie, T, and what it leaves out, v(z), with G as it is; returns the curve.

    Maximised are the ELBO, over T, v and an encoder, and code_weight · log p_T(t), the density of G's own codes t: of
    the training patches' where it has a plain encoder, of N(0, I) where z has that law by construction. The first alone
    would leave all to v and draw T to one point; the second alone, codes whose posterior is all spikes.

    While warm_up lasts, the ELBO's KL counts for less: a code that v does not use yet would else be given up for good.
    Bowman et al. 2016, section 3.1.

    patches: uint8 (N, 1, h, w); encoder: variational, in terms of z ~ N(0, I). code_weight None: T is the identity.
    """
    prior.requires_grad_(False)
    fitted = torch.nn.ModuleList([encoder.requires_grad_(True), prior.decoder.log_variance.requires_grad_(True)])
    if settings.noise == "modulated":
        prior.add_scales()
        fitted.append(prior.decoder.log_scale)
    if settings.code_weight is not None and prior.latent_size > 1:  # a flow moves one half of the codes by the other
        prior.add_flow()
        fitted.append(prior.flow)
    optimizer, schedule = cosine_adam(fitted, settings.lr, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    state = [fitted, optimizer, schedule, generator]
    for step in (bar := resumable(settings.steps, "residual", checkpoint, state, rows)):
        x = draw_batch(patches, settings.batch_size, generator)
        terms = elbo_terms(prior, encoder, x, torch.randn(len(x), prior.latent_size, generator=generator).to(x.device))
        loss = (kl_weight(step, settings) * terms["kl"] - terms["log_likelihood"]).mean() / x[0].numel()
        if prior.flow is not None and settings.code_weight:
            if prior.is_variational:
                codes = torch.randn(len(x), prior.latent_size, generator=generator).to(x.device)
            else:
                codes = prior.encode(x)
            loss = loss - settings.code_weight * prior.flow.log_density(codes).mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(fitted.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if logged(step, settings.steps):
            elbo = (terms["log_likelihood"] - terms["kl"]).mean().item() / x[0].numel()
            rows.append({"step": step + 1, "elbo": elbo, "kl": terms["kl"].mean().item()})
            bar.set_postfix(elbo=f"{elbo:.3f}")
    return pd.DataFrame(rows)


def kl_weight(step: int, settings: Residual, least: float = 0.25) -> float:
    """What the KL counts in a step (from 0): it rises in a line from `least` to 1 in the first warm_up · steps."""
    count = settings.warm_up * settings.steps
    return least + (1 - least) * step / count if step < count else 1.0


@torch.no_grad()
def check_residual(prior: PriorNetwork, encoder: Encoder, train: Tensor, held_out: Tensor) -> dict[str, float]:
    """Log-likelihood of held-out residuals x - G(E(x)) under v(z), and under one full covariance for all, nats a pixel.

    train, held_out: x in [0, 1], (N, 1, h, w); the covariance is that of the training patches' residuals.
    """

    def residuals(x: Tensor) -> tuple[Tensor, ...]:
        mean, *spread = prior.moments(encoder(x)[0])
        return x.flatten(1) @ prior.basis - mean, *spread

    known, *_ = residuals(train)
    covariance = (known.T @ known / len(known)).double()
    if not covariance.isfinite().all() or torch.linalg.cholesky_ex(covariance).info:
        raise InputError("the residuals' covariance came out as no such matrix: training diverged; try a smaller lr")
    residual, *spread = residuals(held_out)
    constant = torch.distributions.MultivariateNormal(torch.zeros_like(covariance[0]), covariance)
    n = residual.shape[1]
    return {
        "residual_log_likelihood": prior.residual_log_likelihood(residual, *spread).mean().item() / n,
        "residual_log_likelihood_constant": constant.log_prob(residual.double()).mean().item() / n,
    }
