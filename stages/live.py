"""The priors for the report's widgets: data/live.json with decoders, in whole numbers of a byte, and codes of patches.

pipeline/live.js computes with them, in a browser.
"""

import base64
import json
import zlib

import numpy as np
import torch
from torch import Tensor

from genprior.networks import PriorNetwork, load_network
from genprior.operators import Identity
from genprior.restoration import restore
from genprior.views import Prior
from pipeline.files import write_text
from pipeline.params import PRIORS, load_params
from pipeline.patches import draw_patches, load_splits
from pipeline.run import run, set_up

LEVELS = 50  # steps from 0 to the largest weight of a row: each then compresses to less than seven bits
PATCHES = 64  # that a reader can choose from
SIGMA = 0.05  # of the noise on patches, for codes that explain what can be seen of them


def drawing(network: PriorNetwork) -> dict[str, Tensor]:
    """What a prior draws images with: all weights but the encoder's, and the fields of its scales."""
    unused = ("encoder.", "coefficients.")
    weights = {name: weight for name, weight in network.state_dict().items() if not name.startswith(unused)}
    return weights if network.scale_fields is None else weights | {"decoder.fields": network.scale_fields}


def whole_numbers(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A matrix as a step for each row and whole numbers of them: (R, C) -> float32 (R,) and int8 (R, C)."""
    values = weight.numpy()
    steps = np.abs(values).max(1) / np.float32(LEVELS)
    return steps, np.rint(values / np.where(steps > 0, steps, 1)[:, None]).astype(np.int8)


@torch.no_grad()
def packed(network: PriorNetwork, x: Tensor) -> dict:
    """A prior for live.js: its numbers, and codes of patches x (N, 1, h, w).

    codes: the likeliest in the range of G; latents: the likeliest with the residual model; order: the coordinates of a
    code, those that move G most come first. tensors: name, rows, and columns or 0 for a vector. content: float32
    vectors and steps, then the matrices' whole numbers, compressed, in base64.
    """
    weights = drawing(network)
    pairs = [whole_numbers(w) if w.ndim > 1 else (w.numpy().reshape(-1), None) for w in weights.values()]
    floats = np.concatenate([steps for steps, _ in pairs]).astype("<f4")
    whole = np.concatenate([numbers.ravel() for _, numbers in pairs if numbers is not None])
    prior = Prior(network)
    codes, latents = (restore(view, Identity(), x, SIGMA).z.as_subclass(Tensor) for view in (prior.range, prior))
    moved = [network.decode(codes + step) - network.decode(codes - step) for step in torch.eye(network.latent_size)]
    return {
        "shape": network.shape,
        "k": network.latent_size,
        "activation": network.config["activation"],
        "flow": 0 if network.flow is None else network.flow.LAYERS,
        "tensors": [
            [name, len(steps), 0 if numbers is None else numbers.shape[1]]
            for name, (steps, numbers) in zip(weights, pairs, strict=True)
        ],
        "floats": len(floats),
        "content": base64.b64encode(zlib.compress(floats.tobytes() + whole.tobytes(), 9)).decode(),
        "order": np.argsort([-change.square().mean().item() for change in moved], kind="stable").tolist(),
        "codes": codes.numpy().astype(float).round(2).tolist(),
        "latents": latents.numpy().astype(float).round(2).tolist(),
    }


def main() -> None:
    params = load_params("params.yaml")
    set_up(params.model_copy(update={"device": "cpu"}))
    (test,) = load_splits("data/patches", "cpu", ("test",))
    x = draw_patches(test, PATCHES, params.seed)
    x = x[x.std((1, 2, 3)).argsort(stable=True)]
    priors = {name: packed(load_network(f"data/models/{name}.safetensors", "cpu", x.shape[2:]), x) for name in PRIORS}
    grey = (255 * x).round().to(torch.uint8).flatten(1).tolist()
    text = json.dumps({"names": PRIORS, "patches": grey, "priors": priors}, separators=(",", ":"))
    write_text("data/live.json", text + "\n")


if __name__ == "__main__":
    run(main)
