"""Whole photographs with noise, by a mixture and a structured VAE of patches and by the field's methods.

    python -m benchmarks.photographs_whole --train FOLDER --test FOLDER --dncnn FILE    # all but the structured VAE
    python -m benchmarks.photographs_whole ... --methods mixture svae --every 8         # some methods, some photographs

Both priors are trained on 8 × 8 patches of all training photographs, and kept: the mixture of 200 components without
the patch's mean by at most 30 steps of EM on 200,000 patches, as EPLL's; what else there is as params.yaml says. Every
method gets the same noise and the true σ, in a process of one thread, two side by side. BM3D is PyPI's `bm3d`, which is
no dependency: its licence allows no commercial use. DnCNN is KAIR's dncnn_25, for σ = 25 alone.
"""

import argparse
import resource
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

from genprior.images import cut_patches, dct_basis, psnr_db
from genprior.mixture import GaussianMixture, save_mixture
from genprior.networks import save_network
from genprior.operators import Identity
from genprior.photographs import read_photograph
from genprior.splitting import restore_image
from genprior.views import load
from pipeline import classical
from pipeline.files import markdown, write_text
from pipeline.params import Params, load_params
from pipeline.photographs import paired
from pipeline.processes import side_by_side
from pipeline.run import run, set_up
from stages import train_svae

SIDE, STRIDE = (8, 8), {"mixture": 2, "svae": 4}
METHODS = ("mixture", "svae", "tv", "nlm", "bm3d", "dncnn")
PUBLISHED = {  # means over BSD68, as Zhang et al. 2017 print them, table II
    "BM3D": (31.07, 28.57, 25.62),
    "EPLL": (31.21, 28.68, 25.67),
    "WNNM": (31.37, 28.83, 25.87),
    "DnCNN-S": (31.73, 29.23, 26.23),
}


def train(what: str, folder: Path, params: Params, path: Path) -> None:
    """Train a prior on the patches of a folder's photographs, and keep it, where that is not done."""
    if path.is_file():
        return
    set_up(params)
    begin, draw = time.perf_counter(), np.random.default_rng(0)
    patches = np.concatenate([cut_patches(read_photograph(file), SIDE, 2) for file in sorted(folder.glob("[!.]*"))])
    patches = patches[draw.permutation(len(patches))[:600_000]]
    if what == "mixture":
        x = (patches[:200_000].reshape(-1, 64) + draw.random((200_000, 64)) - 0.5) / 255
        found = classical.fit_gaussian_prior(
            x, dct_basis(*SIDE), 200, 30, params.baselines.mixture_strength, params.seed, apart=True
        )
        save_mixture(GaussianMixture(found.weight, found.mean, found.covariance, SIDE), path)
    else:
        patches = torch.from_numpy(patches)[:, None]
        network, _ = train_svae.train(patches[2000:], patches[:2000], params.network, params.train_svae, params.seed)
        save_network(network, path)
    print(f"{what}: trained in {time.perf_counter() - begin:.0f} s", flush=True)


def dncnn(y: torch.Tensor, file: Path) -> torch.Tensor:
    """y minus the network's output: 17 convolutions, ReLU between them. Zhang et al. 2017, figure 1."""
    weights, found = load_file(file), y
    layers = sorted({name.split(".")[0] for name in weights}, key=int)
    for layer in layers:
        found = torch.nn.functional.conv2d(found, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)
        found = found if layer == layers[-1] else found.relu()
    return y - found


@torch.no_grad()
def restored(method: str, y: torch.Tensor, sigma: float, args: argparse.Namespace) -> torch.Tensor | np.ndarray:
    """A photograph (1, 1, H, W) from its noisy one."""
    picture = y[0, 0].numpy()
    match method:
        case "tv":  # its usual weight
            return denoise_tv_chambolle(picture, sigma)
        case "nlm":
            return denoise_nl_means(picture, 5, 10, 0.8 * sigma, sigma=sigma)
        case "bm3d":
            import bm3d

            return bm3d.bm3d(picture, sigma)
        case "dncnn":
            return dncnn(y, args.dncnn)
    prior = load(args.keep / f"{method}.safetensors")
    return restore_image(prior, Identity(), y, sigma, STRIDE[method]).x


def work(args: argparse.Namespace, params: Params, task: tuple[str, int, str]) -> dict[str, float]:
    """PSNR in dB of one photograph, seconds, and the process's peak memory in MiB."""
    set_up(params.model_copy(update={"device": "cpu", "threads": 1}))
    method, level, file = task
    x = torch.from_numpy(read_photograph(file) / np.float32(255))[None, None]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    y, begin = x + level / 255 * noise, time.perf_counter()
    found = np.asarray(restored(method, y, level / 255, args)).clip(0, 1)
    seconds = time.perf_counter() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"psnr": psnr_db(np.square(found - x.numpy()).mean()), "seconds": seconds, "memory": memory}


def page(found: pd.DataFrame, count: int, args: argparse.Namespace) -> str:
    """What was measured, as Markdown."""
    by = found.groupby(["method", "level"], sort=False)
    psnr = by.psnr.mean().map("{:.2f}".format).unstack()
    published = pd.DataFrame(PUBLISHED, index=[15, 25, 50]).T.map("{:.2f}".format)
    psnr = pd.concat([psnr, published.rename(index="{}, published".format)[psnr.columns]]).fillna("")
    cost = pd.DataFrame({"seconds": by.seconds.mean().groupby("method", sort=False).mean().map("{:.1f}".format)})
    cost["MiB"] = found.groupby("method", sort=False).memory.max().map("{:.0f}".format)
    pairs, levels = {}, args.sigmas
    for level, rows in found.groupby("level"):
        table = rows.pivot(index="method", columns="photograph", values="psnr").dropna()
        for method, row in paired(table, "mixture").iterrows() if "mixture" in table.index else ():
            pairs.setdefault(method, {})[level] = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row)
    options = f"--methods {' '.join(args.methods)} --sigmas {' '.join(map(str, args.sigmas))} --every {args.every}"
    folders = f"--train {args.train.name} --test {args.test.name} --dncnn {args.dncnn and args.dncnn.name}"
    parts = [
        "# Whole photographs with noise",
        f"Written by `python -m benchmarks.photographs_whole {folders} {options}`: {count} photographs, PSNR in dB for "
        "σ of 255, means over photographs.",
        markdown(["", *map(str, psnr)], psnr.reset_index().to_numpy()),
        "Differences to the mixture, with 95 % bootstrap intervals over photographs:",
        markdown(["", *map(str, levels)], ([name, *(row.get(at, "") for at in levels)] for name, row in pairs.items())),
        "Seconds for a photograph on one thread of two busy ones, and the process's peak memory:",
        markdown(["", *cost], cost.reset_index().to_numpy()),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--dncnn", type=Path)
    parser.add_argument("--keep", type=Path, default=Path(".checkpoints/photographs_whole"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["mixture", "tv", "nlm"])
    parser.add_argument("--sigmas", nargs="+", type=int, choices=(15, 25, 50), default=[15, 25, 50])
    parser.add_argument("--every", type=int, default=1)
    args, params = parser.parse_args(), load_params("params.yaml")
    for what in {"mixture", "svae"} & {*args.methods}:
        train(what, args.train, params, args.keep / f"{what}.safetensors")
    files = [str(file) for file in sorted(args.test.glob("[!.]*"))[:: args.every]]
    tasks = [(method, level, file) for method in args.methods for level in args.sigmas for file in files]
    tasks = [task for task in tasks if task[0] != "dncnn" or task[1] == 25]
    found = side_by_side(partial(work, args, params), tasks, params.threads, "photographs")
    rows = [dict(zip(("method", "level", "photograph"), task, strict=True)) | row for task, row in found.items()]
    text = page(pd.DataFrame(rows), len(files), args)
    print(text)
    write_text("benchmarks/photographs_whole.md", text)


if __name__ == "__main__":
    run(main)
