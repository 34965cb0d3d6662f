"""Whole photographs from noise, blur, too few pixels: a mixture and a structured VAE of patches, the field's methods.

    python -m benchmarks.photographs_whole --train FOLDER --test FOLDER                      # those of scikit-image
    python -m benchmarks.photographs_whole ... --methods mixture svae --every 8              # some, a photograph in 8
    python -m benchmarks.photographs_whole ... --problems blur_1 inpaint_80 --kernels FILE   # other problems

Priors are trained on patches of all training photographs: the mixture of 200 components without the patch's mean, on
8 × 8 pixels by at most 30 steps of EM on 200,000 patches, as EPLL's; the structured VAE as params.yaml says, on 16 × 16
pixels for noise and missing pixels, on 8 × 8 for blur and × 2: these did best on photographs of train400 that training
left out. The folder --keep keeps them, and what each method made of each photograph; a stopped run goes on, unless you
remove it. Every method gets the same measurement and the true σ, in a process of one thread, two side by side. Total
variation has its usual weight for noise, and else that which restores two training photographs best. BM3D is PyPI's
`bm3d`, which is no dependency: its licence allows no commercial use. DnCNN is KAIR's dncnn_25, for σ = 25 alone.
Kernels are Levin et al.'s (2009), an array each of an .npz file. Blurs keep what lies within the borders, and errors
are of that.
"""

import argparse
import json
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
from genprior.operators import Convolution, Downsampling, Identity, Inpainting
from genprior.photographs import read_photograph
from genprior.splitting import RestoredImage, restore_image
from genprior.views import load
from pipeline import classical
from pipeline.files import markdown, write_text
from pipeline.params import Params, load_params
from pipeline.photographs import paired
from pipeline.processes import side_by_side
from pipeline.run import run, set_up
from stages import restore, train_svae

WIDE = ("noise", "inpaint")  # problems for which the structured VAE has 16 × 16 pixels
# each with what the names of the problems that it knows begin with
METHODS = {"mixture": "", "svae": "", "tv": "", "nlm": "noise", "bm3d": "noise", "dncnn": "noise_25"}
NOISE = ("noise_15", "noise_25", "noise_50")
PROBLEMS = (*NOISE, "blur_1", "blur_5", "double", "inpaint_80")
MAPPED = "noise_25"  # where the intervals of the structured VAE are compared with the truth
PUBLISHED = {  # means over BSD68, as Zhang et al. 2017 print them, table II
    "BM3D": (31.07, 28.57, 25.62),
    "EPLL": (31.21, 28.68, 25.67),
    "WNNM": (31.37, 28.83, 25.87),
    "DnCNN-S": (31.73, 29.23, 26.23),
}


def prior_of(method: str, problem: str) -> str:
    """The file of a prior: its patches have so many pixels to a side."""
    return f"{method}_{16 if method == 'svae' and problem.startswith(WIDE) else 8}.safetensors"


def train(path: Path, folder: Path, params: Params) -> None:
    """Train a prior on the patches of a folder's photographs, and keep it, where that is not done."""
    if path.is_file():
        return
    set_up(params)
    what, side = path.stem.split("_")
    shape, files = (int(side), int(side)), sorted(folder.glob("[!.]*"))
    begin, draw = time.perf_counter(), np.random.default_rng(0)
    patches = np.concatenate([cut_patches(read_photograph(file), shape, 2) for file in files])
    patches = patches[draw.permutation(len(patches))[:600_000]]
    if what == "mixture":
        x = (patches[:200_000].reshape(-1, 64) + draw.random((200_000, 64)) - 0.5) / 255
        found = classical.fit_gaussian_prior(
            x, dct_basis(*shape), 200, 30, params.baselines.mixture_strength, params.seed, apart=True
        )
        save_mixture(GaussianMixture(found.weight, found.mean, found.covariance, shape), path)
    else:
        patches = torch.from_numpy(patches)[:, None]
        network, _ = train_svae.train(patches[2000:], patches[:2000], params.network, params.train_svae, params.seed)
        save_network(network, path)
    print(f"{path.stem}: trained in {time.perf_counter() - begin:.0f} s", flush=True)


def dncnn(y: torch.Tensor, file: Path) -> torch.Tensor:
    """y minus the network's output: 17 convolutions, ReLU between them. Zhang et al. 2017, figure 1."""
    weights, found = load_file(file), y
    layers = sorted({name.split(".")[0] for name in weights}, key=int)
    for layer in layers:
        found = torch.nn.functional.conv2d(found, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)
        found = found if layer == layers[-1] else found.relu()
    return y - found


def posed(problem: str, x: torch.Tensor, args: argparse.Namespace) -> tuple[object, float, torch.Tensor]:
    """What a photograph (1, 1, H, W) is seen through, σ, and what is measured: the same for all methods."""
    draw, shape = torch.Generator().manual_seed(0), x.shape[2:]
    kind, _, number = problem.partition("_")
    match kind:
        case "noise":
            operator = Identity()
        case "blur":
            kernel = np.load(args.kernels)[np.load(args.kernels).files[int(number) - 1]]
            operator = Convolution(shape, torch.from_numpy(kernel), border="cut")
        case "double":
            operator = Downsampling(2)
        case "inpaint":
            operator = Inpainting(torch.rand(shape, generator=draw) >= int(number) / 100)
    sigma = int(number) / 255 if kind == "noise" else 0.01
    clean = operator.A(x)
    return operator, sigma, clean + sigma * torch.randn(clean.shape, generator=draw)


@torch.no_grad()
def restored(
    method: str, problem: str, operator: object, y: torch.Tensor, sigma: float, weight: float, args: argparse.Namespace
) -> RestoredImage | np.ndarray:
    """A photograph (1, 1, H, W) from what was measured."""
    picture = y.squeeze().numpy()
    match method:
        case "tv" if isinstance(operator, Identity):
            return denoise_tv_chambolle(picture, sigma)
        case "tv":
            return restore_image(partial(restore.shrunk, weight=weight), operator, y, sigma)
        case "nlm":
            return denoise_nl_means(picture, 5, 10, 0.8 * sigma, sigma=sigma)
        case "bm3d":
            import bm3d

            return bm3d.bm3d(picture, sigma)
        case "dncnn":
            return dncnn(y, args.dncnn).numpy()
    return restore_image(load(args.keep / prior_of(method, problem)), operator, y, sigma)


def photograph(file: str) -> torch.Tensor:
    """(1, 1, H, W) in [0, 1], of even sides."""
    levels = read_photograph(file)
    return torch.from_numpy(levels[: len(levels) // 2 * 2, : levels.shape[1] // 2 * 2] / np.float32(255))[None, None]


def error(found: RestoredImage | np.ndarray, operator: object, x: torch.Tensor) -> np.ndarray:
    image = found.x.numpy() if isinstance(found, RestoredImage) else found
    return (image.clip(0, 1) - x.numpy())[(..., *getattr(operator, "kept", ()))]


def weigh(args: argparse.Namespace, params: Params, problem: str) -> float:
    """The weight of total variation that restores the first two training photographs best."""
    set_up(params.model_copy(update={"device": "cpu", "threads": 1}))
    tried = params.restore.tv_weights
    errors = np.zeros(len(tried))
    for file in sorted(args.train.glob("[!.]*"))[:2]:
        x = photograph(str(file))
        operator, sigma, y = posed(problem, x, args)
        found = (error(restored("tv", problem, operator, y, sigma, weight, args), operator, x) for weight in tried)
        errors += [np.log(np.square(off).mean()) for off in found]
    return tried[int(errors.argmin())]


def work(
    args: argparse.Namespace, params: Params, weights: dict[str, float], task: tuple[str, str, str]
) -> dict[str, float]:
    """PSNR in dB of one photograph, seconds, the process's peak memory in MiB, and the share within 90 % intervals."""
    method, problem, file = task
    kept = args.keep / "rows" / f"{method} {problem} {Path(file).stem}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    set_up(params.model_copy(update={"device": "cpu", "threads": 1}))
    x = photograph(file)
    operator, sigma, y = posed(problem, x, args)
    begin = time.perf_counter()
    found = restored(method, problem, operator, y, sigma, weights.get(problem), args)
    seconds, off = time.perf_counter() - begin, error(found, operator, x)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    row = {"psnr": psnr_db(np.square(off).mean()), "seconds": seconds, "memory": memory, "held": np.nan}
    if method == "svae" and problem == MAPPED:
        row["held"] = np.mean(np.abs(off) <= restore.NINE_TENTHS * found.std(restore.SAMPLES).numpy())
    write_text(kept, json.dumps({name: float(value) for name, value in row.items()}))
    return row


def page(found: pd.DataFrame, count: int, args: argparse.Namespace) -> str:
    """What was measured, as Markdown."""
    by, problems = found.groupby(["method", "problem"], sort=False), list(args.problems)
    psnr = by.psnr.mean().map("{:.2f}".format).unstack().reindex(columns=problems)
    published = pd.DataFrame(PUBLISHED, index=NOISE).T.map("{:.2f}".format).reindex(columns=problems)
    psnr = pd.concat([psnr, published.dropna(how="all").rename(index="{}, published".format)]).fillna("")
    seconds = by.seconds.mean().map("{:.1f}".format).unstack().reindex(columns=problems).fillna("")
    seconds["MiB"] = found.groupby("method").memory.max().map("{:.0f}".format)
    pairs = {}
    for problem, rows in found.groupby("problem"):
        table = rows.pivot(index="method", columns="photograph", values="psnr").dropna()
        for method, row in paired(table, "mixture").iterrows() if "mixture" in table.index else ():
            pairs.setdefault(method, {})[problem] = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row)
    folders = {"--train": args.train, "--test": args.test, "--dncnn": args.dncnn, "--kernels": args.kernels}
    words = [word for option, path in folders.items() if path is not None for word in (option, path.name)]
    words += ["--methods", *args.methods, "--problems", *problems, "--every", str(args.every)]
    parts = [
        "# Whole photographs",
        f"Written by `python -m benchmarks.photographs_whole {' '.join(words)}`: {count} photographs. "
        "PSNR in dB, means over photographs; published means are over all 68 of BSD68. Patches of the mixture have "
        "8 × 8 pixels, of the structured VAE 16 × 16 for noise and missing pixels, else 8 × 8:",
        markdown(["", *problems], psnr.reset_index().to_numpy()),
        "Differences to the mixture, with 95 % bootstrap intervals over photographs:",
        markdown(["", *problems], ([name, *(row.get(at, "") for at in problems)] for name, row in pairs.items())),
        "Seconds for a photograph on one thread of two busy ones, and the process's peak memory, which tasks share:",
        markdown(["", *seconds], seconds.reset_index().to_numpy()),
    ]
    if found.held.notna().any():
        parts.append(f"Of the structured VAE's 90 % intervals at {MAPPED}, {found.held.mean():.1%} hold their pixel.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--dncnn", type=Path)
    parser.add_argument("--kernels", type=Path)
    parser.add_argument("--keep", type=Path, default=Path(".checkpoints/photographs_whole"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["mixture", "tv", "nlm"])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=NOISE)
    parser.add_argument("--every", type=int, default=1)
    args, params = parser.parse_args(), load_params("params.yaml")
    methods = [method for method in ("mixture", "svae") if method in args.methods]
    for name in sorted({prior_of(method, problem) for method in methods for problem in args.problems}):
        train(args.keep / name, args.train, params)
    blurred = [problem for problem in args.problems if problem not in NOISE] if "tv" in args.methods else []
    weights = side_by_side(partial(weigh, args, params), blurred, params.threads, "total variation") if blurred else {}
    files = [str(file) for file in sorted(args.test.glob("[!.]*"))[:: args.every]]
    tasks = [
        (method, problem, file)
        for file in files
        for problem in args.problems
        for method in args.methods
        if problem.startswith(METHODS[method])
    ]
    found = side_by_side(partial(work, args, params, weights), tasks, params.threads, "photographs")
    rows = [dict(zip(("method", "problem", "photograph"), task, strict=True)) | row for task, row in found.items()]
    text = page(pd.DataFrame(rows), len(files), args)
    print(text)
    write_text(Path("benchmarks/photographs_whole.md"), text)


if __name__ == "__main__":
    run(main)
