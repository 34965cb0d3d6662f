"""Structured variational autoencoder: Σ(z), what the decoder leaves out, is trained within the ELBO."""

import pandas as pd
import torch
from torch import Tensor

from genprior.networks import PriorNetwork, save_network
from pipeline import ranks, vae
from pipeline.checkpoints import Checkpoint
from pipeline.files import write_csv, write_metrics
from pipeline.params import Network, TrainSVAE, load_params
from pipeline.patches import draw_batch, load_splits, spread, to_unit
from pipeline.run import run, set_up


def train(
    patches: Tensor,
    validation: Tensor,
    network: Network,
    settings: TrainSVAE,
    seed: int,
    checkpoint: Checkpoint | None = None,
) -> tuple[PriorNetwork, pd.DataFrame]:
    """Train on uint8 patches (N, 1, h, w); returns the prior and its curve on training batches and validation."""
    prior = PriorNetwork(patches.shape[2:], **network.model_dump(), noise=settings.noise, encoder="variational")
    prior.coefficients.fit(to_unit(spread(patches).cpu()))
    prior.to(patches.device)

    def negative_elbo(terms: vae.Terms) -> Tensor:
        return (terms["kl"] - terms["log_likelihood"]).mean() / patches[0].numel()

    curve = vae.train(prior, negative_elbo, (patches, validation), settings, seed, checkpoint)
    return prior.eval().requires_grad_(False), curve


def main() -> None:
    params = load_params("params.yaml")
    device = set_up(params)
    patches, validation, test = load_splits("data/patches", device)
    checkpoint = Checkpoint(".checkpoints/train_svae", params, __file__, patches, validation)
    prior, curve = train(patches, validation, params.network, params.train_svae, params.seed, checkpoint)
    ranks.leave_to_first()
    x_test = draw_batch(spread(test), None, torch.Generator().manual_seed(params.seed))
    values = {**curve.iloc[-1].drop("step").to_dict(), **vae.held_out(prior, x_test, params.seed)}
    write_metrics("metrics/train_svae.json", {"train_svae": values})
    save_network(prior, "data/models/svae.safetensors")
    write_csv("data/curves/svae.csv", curve)
    checkpoint.remove()


if __name__ == "__main__":
    run(main, shared=True)
