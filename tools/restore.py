"""Another picture restored with a trained prior: its overlapping patches, averaged where they overlap.

    python -m tools.restore IMAGE --problem cs_50                   measure IMAGE as params.yaml says, and restore it
    python -m tools.restore IMAGE --sigma 0.1                       IMAGE is the measurement: remove its noise
    python -m tools.restore IMAGE --sigma 0.01 --mask seen.png      ... and fill in what the mask has black

With --problem the PSNR is printed too. Noise and missing pixels are then those of one picture. A problem that mixes
pixels (blur, downsample, gaussian) is measured patch by patch: where they overlap, a pixel is measured more than once.

Each patch is E[x | y, z] at its dominant mode by evaluate.relaxed in params.yaml, or, with --samples, the mean of
that over samples of its posterior.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genprior import images
from genprior.energies import relaxed_energy
from genprior.files import InputError, whole_file
from genprior.images import psnr_db
from genprior.inversion import screen, search
from genprior.networks import PriorNetwork, load_network
from genprior.operators import Identity, Inpainting
from genprior.posterior import dominant, sample_posterior
from pipeline.params import Params, Search, load_params
from pipeline.problems import Measured, pose
from pipeline.run import run, set_up, steps

SCREENED = 128  # draws from the prior for each patch, 2048 at most, among which the searches find their starts
TOGETHER = 512  # patches restored at a time
MOST_NUMBERS = 2**28  # in the patches of a picture: 1 GB


def corners(side: int, patch: int, stride: int) -> list[int]:
    """Where patches begin along a side, the last one at its end."""
    return [*range(0, side - patch, stride), side - patch]


def cut(picture: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
    """Overlapping patches of a picture (H, W), row by row: (N, 1, h, w)."""
    places = [corners(*sides, stride) for sides in zip(picture.shape, shape, strict=True)]
    found = [picture[i : i + shape[0], j : j + shape[1]] for i in places[0] for j in places[1]]
    return torch.stack(found).unsqueeze(1)


def join(patches: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """The picture of `size` (H, W) that `cut` gave, each pixel the mean of the patches (N, 1, h, w) that hold it."""
    height, width = patches.shape[2:]
    total, count = patches.new_zeros(2, *size)
    places = [corners(*sides, stride) for sides in zip(size, (height, width), strict=True)]
    for patch, (i, j) in zip(patches, ((i, j) for i in places[0] for j in places[1]), strict=True):
        total[i : i + height, j : j + width] += patch[0]
        count[i : i + height, j : j + width] += 1
    return total / count


def measured_picture(y: Tensor, seen: Tensor, sigma: float, shape: tuple, stride: int) -> Iterator[tuple]:
    """A picture (H, W) that is its own measurement where `seen`: problems and the rows of `cut` that they are for."""
    patches, masks = cut(y, shape, stride), cut(seen, shape, stride)
    kinds, kind = masks.flatten(1).unique(dim=0, return_inverse=True)
    for number, mask in enumerate(kinds):
        operator = Identity() if mask.all() else Inpainting(mask.reshape(shape))
        rows = (kind == number).nonzero().squeeze(1)
        yield Measured("picture", operator.to(y.device), sigma, operator.A(patches[rows])), rows


def simulated(x: Tensor, name: str, params: Params, shape: tuple, stride: int) -> Iterator[tuple]:
    """A true picture (H, W) measured by a problem of params.yaml: problems and the rows of `cut` that they are for."""
    patches = cut(x, shape, stride)
    (posed,) = pose({name: params.problems[name]}, patches, params.seed)
    if not isinstance(posed.operator, Identity | Inpainting):
        return iter([(posed, torch.arange(len(patches), device=x.device))])
    # Patches measured one by one would see a pixel again and again, each time with new noise or another mask.
    draw = torch.Generator().manual_seed(params.seed)
    y = x + posed.sigma * torch.randn(x.shape, generator=draw).to(x.device)
    mask = getattr(posed.operator, "mask", torch.ones(shape, dtype=torch.bool, device=x.device))
    times = [-(-whole // part) for whole, part in zip(x.shape, shape, strict=True)]
    return measured_picture(y, mask.repeat(times)[: x.shape[0], : x.shape[1]], posed.sigma, shape, stride)


def restore(prior: PriorNetwork, problem: Measured, solver: Search, samples: int, draw: torch.Generator) -> Tensor:
    """The patches of a problem at their dominant modes, or the mean over posterior samples: (N, 1, h, w)."""
    energy = relaxed_energy(prior, problem.operator, problem.y, problem.sigma)
    count = min(2048, SCREENED * len(problem.y))
    pool = torch.randn(count, prior.latent_size, generator=draw).to(problem.y.device)
    modes = search(energy, screen(energy, pool, solver.starts), solver.iterations, audition=solver.iterations)
    if not samples:
        return dominant(energy, modes).x
    posterior = sample_posterior(energy, modes, samples, draw)
    return posterior.images(energy.estimate).mean(1).unsqueeze(1)


def read(file: str, args: argparse.Namespace, shape: tuple[int, int]) -> Tensor:
    """A picture as grey, resized and cropped as asked: (H, W) in [0, 1]."""
    picture = images.read_photograph(file)
    if args.size and args.size**2 * max(picture.shape) / min(picture.shape) > images.MOST_PIXELS:
        raise InputError(
            f"{file}: with --size {args.size} more than {images.MOST_PIXELS} pixels; a smaller one is right"
        )
    picture = images.resize(picture, args.size)
    if args.crop:
        top, left, height, width = args.crop
        if min(args.crop) < 0 or top + height > picture.shape[0] or left + width > picture.shape[1]:
            raise InputError(f"{file}: {list(picture.shape)} (height, width) does not hold --crop {args.crop}")
        picture = picture[top : top + height, left : left + width]
    if any(side < patch for side, patch in zip(picture.shape, shape, strict=True)):
        raise InputError(f"{file}: {list(picture.shape)} (height, width) is smaller than the prior's patches {shape}")
    return torch.from_numpy(picture.copy()).float() / 255


def posed(args: argparse.Namespace, prior: PriorNetwork, params: Params) -> tuple[Tensor, Iterator[tuple]]:
    """The picture, and the problems that its patches pose."""
    picture = read(args.image, args, prior.shape).to(prior.code_mean.device)
    if args.problem:
        return picture, simulated(picture, args.problem, params, prior.shape, args.stride)
    seen = torch.ones_like(picture, dtype=torch.bool)
    if args.mask:
        seen = read(args.mask, args, prior.shape).to(picture.device) >= 0.5
        if seen.shape != picture.shape:
            raise InputError(f"{args.mask}: {list(seen.shape)} (height, width); {args.image} is {list(picture.shape)}")
        if not cut(seen, prior.shape, args.stride).flatten(1).any(1).all():
            raise InputError(f"{args.mask}: black over whole patches of {prior.shape}; smaller holes would be right")
    return picture, measured_picture(picture, seen, args.sigma, prior.shape, args.stride)


def arguments() -> argparse.Namespace:
    """The command line; InputError in one line where it is wrong."""

    def fail(message: str) -> None:
        raise InputError(f"{message}; python -m tools.restore --help tells more")

    parser = argparse.ArgumentParser("python -m tools.restore", description=__doc__.splitlines()[0])
    parser.error = fail
    parser.add_argument("image", metavar="IMAGE", help="JPEG, PNG or TIFF; colour becomes grey")
    parser.add_argument("--prior", default="data/models/vae.safetensors", help="a trained prior (%(default)s)")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--problem", help="simulate this one of params.yaml's problems")
    given.add_argument("--sigma", type=float, help="IMAGE is the measurement, with noise of this size, grey in [0, 1]")
    parser.add_argument("--mask", help="with --sigma: a picture, white where IMAGE was seen, black where it was not")
    parser.add_argument("--stride", type=int, help="pixels from patch to patch (half a patch)")
    parser.add_argument("--size", type=int, help="with --problem: resize the shorter side to this many pixels first")
    parser.add_argument("--crop", type=int, nargs=4, metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"), help="take this part")
    parser.add_argument("--samples", type=int, default=0, help="mean of so many posterior samples, 20 or more")
    parser.add_argument("--out", default="restored.png", help="the PNG to write (%(default)s)")
    args = parser.parse_args()
    if args.sigma is not None and not 0 < args.sigma <= 1:
        fail(f"--sigma {args.sigma}: above 0 and at most 1 would be right")
    if args.problem and args.mask:
        fail("--mask goes with --sigma")
    if args.sigma is not None and args.size:
        fail("--size goes with --problem: resizing would change the noise")
    if args.size is not None and not 0 < args.size <= 16384:
        fail(f"--size {args.size}: 1 to 16384 would be right")
    if args.samples and not 20 <= args.samples <= 100_000:
        fail(f"--samples {args.samples}: 20 to 100000 would be right")
    if Path(args.out).suffix.lower() != ".png":
        fail(f"--out {args.out}: a name that ends in .png would be right")
    if any(file and Path(file).resolve() == Path(args.out).resolve() for file in (args.image, args.mask)):
        fail(f"--out {args.out}: would overwrite what is to be restored")
    return args


def main() -> None:
    args = arguments()
    params = load_params("params.yaml")
    device = set_up(params)
    if not Path(args.prior).exists():
        raise InputError(f"--prior {args.prior}: no such file; `make repro` trains the priors in data/models")
    prior = load_network(args.prior, device)
    if not prior.has_residual:
        raise InputError(f"{args.prior}: a prior without a residual model; one of data/models would be right")
    if args.problem and args.problem not in params.problems:
        raise InputError(f"--problem {args.problem}: params.yaml has {', '.join(params.problems)}")
    factor = getattr(params.problems[args.problem], "factor", 1) if args.problem else 1
    if any(side % factor for side in prior.shape):
        raise InputError(
            f"--problem {args.problem}: its factor {factor} does not divide the prior's patches {prior.shape}"
        )
    args.stride = min(prior.shape) // 2 if args.stride is None else args.stride
    if not 0 < args.stride <= min(prior.shape):
        raise InputError(f"--stride {args.stride}: 1 to {min(prior.shape)}, the prior's patch, would be right")
    picture, problems = posed(args, prior, params)
    count = math.prod(len(corners(*sides, args.stride)) for sides in zip(picture.shape, prior.shape, strict=True))
    if count * math.prod(prior.shape) > MOST_NUMBERS:
        raise InputError(f"--stride {args.stride}: {count} patches are too many at a time; a larger stride is right")

    parts = [
        (Measured(problem.name, problem.operator, problem.sigma, problem.y[part]), rows[part])
        for problem, rows in problems
        for part in torch.arange(len(rows), device=device).split(TOGETHER)
    ]
    restored = torch.empty(sum(len(rows) for _, rows in parts), 1, *prior.shape, device=device)
    draw = torch.Generator().manual_seed(params.seed)
    for i in steps(len(parts), "restore"):
        problem, rows = parts[i]
        restored[rows] = restore(prior, problem, params.evaluate.relaxed, args.samples, draw)
    estimate = join(restored, picture.shape, args.stride).clamp(0, 1)

    with whole_file(args.out) as part:
        Image.fromarray(np.rint(estimate.cpu().numpy() * 255).astype(np.uint8)).save(part)
    height, width = picture.shape
    print(f"{args.out}: {height} × {width} pixels, {len(restored)} patches")
    if args.problem:
        print(f"PSNR {psnr_db((estimate - picture).square().mean()):.2f} dB")


if __name__ == "__main__":
    run(main)
