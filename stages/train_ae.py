"""Autoencoder: minimise the mean squared error of decoder after encoder over training patches."""

import pandas as pd
import torch
from torch import Tensor

from genprior.images import psnr_db
from genprior.layers import Encoder
from genprior.networks import PriorNetwork, save_network
from pipeline import ranks
from pipeline.checkpoints import Checkpoint, resumable
from pipeline.files import write_csv, write_metrics
from pipeline.params import Network, Training, load_params
from pipeline.patches import draw_batch, draw_patches, load_splits, spread, to_unit
from pipeline.run import run, set_up
from pipeline.training import check_residual, cosine_adam, descend, fit_residual, logged


def reconstruction_error(prior: PriorNetwork, x: Tensor) -> Tensor:
    """Mean squared error of G(E(x)) over a batch (N, 1, h, w): a scalar."""
    return (prior.coefficients.synthesise(prior.decoder(prior.encoder(x))) - x).square().mean()


def train(
    patches: Tensor,
    validation: Tensor,
    network: Network,
    settings: Training,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[PriorNetwork, pd.DataFrame]:
    """Train on uint8 patches (N, 1, h, w); returns the prior, its codes' density folded in, and its curve."""
    prior = PriorNetwork(patches.shape[2:], **network.model_dump(), encoder="plain")
    prior.coefficients.fit(to_unit(spread(patches).cpu()))
    prior.to(patches.device)
    optimizer, schedule = cosine_adam(prior, settings.lr, settings.steps)
    generator = torch.Generator().manual_seed(seed)
    x_validation = draw_patches(validation, 2048, seed)

    def error_of(x: Tensor) -> dict[str, Tensor]:
        return {"loss": reconstruction_error(prior, x)}

    rows = []
    state = [prior, optimizer, schedule, generator]
    for step in (bar := resumable(settings.steps, "train_ae", checkpoint, state, rows)):
        x = draw_batch(patches, settings.batch_size, generator)
        loss = descend(error_of, (x,), prior, optimizer, schedule)["loss"]
        if logged(step, settings.steps):
            with torch.no_grad():
                error = reconstruction_error(prior, x_validation)
            rows.append({"step": step + 1, "train_mse": loss.item(), "validation_mse": error.item()})
            bar.set_postfix(mse=f"{loss.item():.5f}")
    prior.fit_codes(to_unit(spread(patches)))
    return prior, pd.DataFrame(rows)


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params)
    patches, validation, test = load_splits("data/patches", device)
    checkpoint = Checkpoint(".checkpoints/train_ae", params, __file__, patches, validation)
    prior, curve = train(patches, validation, params.network, params.train_ae, params.seed, checkpoint)
    # Its own encoder gives one code for each patch; the fit needs to know how far other codes would do as well.
    encoder = Encoder(prior.coefficients, **params.network.model_dump(), variational=True).to(device)
    residual_curve = fit_residual(prior, encoder, patches, params.residual, params.seed, checkpoint)
    prior.eval().requires_grad_(False)
    ranks.leave_to_first()

    error = reconstruction_error(prior, to_unit(spread(test)))
    draw = torch.Generator().manual_seed(params.seed)
    values = {**curve.iloc[-1].drop("step").to_dict(), "test_mse": error, "test_psnr_db": psnr_db(error)}
    values |= check_residual(prior, encoder, *(draw_batch(split, 8192, draw) for split in (patches, test)))
    write_metrics("metrics/train_ae.json", {"train_ae": values})
    save_network(prior, "data/models/ae.safetensors")
    write_csv("data/curves/ae.csv", curve)
    write_csv("data/curves/ae_residual.csv", residual_curve)
    checkpoint.remove()


if __name__ == "__main__":
    run(main, shared=True)
