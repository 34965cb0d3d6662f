"""The command `genprior`: pictures restored with a trained prior, and samples of one.

    genprior restore noisy.png                                remove noise, whose σ is estimated
    genprior restore noisy.png --sigma 0.1                    ... or given, where black is 0 and white 1
    genprior restore holes.png --sigma 0.01 --mask seen.png   ... and fill in what the mask has black
    genprior restore clean.png --sigma 0.1 --simulate         add the noise first, and print the PSNR
    genprior sample --prior gan                               a hundred patches that the prior makes up

Each patch is E[x | y, z] at its dominant mode, or, with --samples, its posterior mean. Where patches overlap, pixels
are averaged.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import genprior
from genprior.files import InputError, existing, one_line_errors, whole_file
from genprior.images import corners, cut_patches, estimate_sigma, join_patches, psnr_db, save_grid
from genprior.operators import Identity, Inpainting
from genprior.photographs import read_mask, read_photograph
from genprior.views import View

TOGETHER = 512  # patches restored at a time
LEAST_SIGMA = 1e-4
MOST_NUMBERS = 2**28  # in the patches of a picture: 1 GB


def cropped(file: str, picture: np.ndarray, args: argparse.Namespace, shape: tuple[int, int]) -> np.ndarray:
    """The part of a picture that is asked for."""
    if args.crop:
        top, left, height, width = args.crop
        if min(args.crop) < 0 or top + height > picture.shape[0] or left + width > picture.shape[1]:
            raise InputError(f"{file}: {list(picture.shape)} (height, width) does not hold --crop {args.crop}")
        picture = picture[top : top + height, left : left + width]
    if any(side < patch for side, patch in zip(picture.shape, shape, strict=True)):
        raise InputError(f"{file}: {list(picture.shape)} (height, width) is smaller than the prior's patches {shape}")
    return picture


def seen_pixels(args: argparse.Namespace, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Which pixels of a picture of `size` are measured: bool, (H, W)."""
    if args.mask is not None:
        seen = cropped(args.mask, read_mask(args.mask), args, shape)
        if seen.shape != size:
            raise InputError(f"{args.mask}: {list(seen.shape)} (height, width); {args.image} is {list(size)}")
    else:
        # One patch's mask, over and over: patches with equal masks are restored together.
        mask = np.random.default_rng([args.seed, 1]).random(shape) >= (args.missing or 0)
        seen = np.pad(mask, [(0, side - patch) for side, patch in zip(size, shape, strict=True)], "wrap")
    if not cut_patches(seen, shape, args.stride, to_end=True).any((1, 2)).all():
        culprit = f"{args.mask}: black" if args.mask else f"--missing {args.missing}: nothing seen"
        inverted = "; more than half is black, perhaps it is inverted" if args.mask and seen.mean() < 0.5 else ""
        raise InputError(f"{culprit} over whole patches of {shape}; smaller holes would be right{inverted}")
    return seen


def restore_picture(view: View, y: np.ndarray, seen: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """A picture (H, W) from its pixels y where `seen`: its patches' restorations, averaged where they overlap."""
    patches, masks = (cut_patches(picture, view.shape, args.stride, to_end=True) for picture in (y, seen))
    x = torch.from_numpy(patches)[:, None].to(args.device)
    kinds, kind = np.unique(masks, axis=0, return_inverse=True)
    done = 0
    for number, mask in enumerate(kinds):
        K = (Identity() if mask.all() else Inpainting(torch.from_numpy(mask))).to(args.device)
        for rows in torch.from_numpy(np.flatnonzero(kind == number)).split(TOGETHER):
            found = genprior.restore(view, K, K.A(x[rows]), args.sigma, seed=args.seed)
            x[rows] = found.mean(args.samples, args.seed) if args.samples else found.x
            done += len(rows)
            if sys.stderr.isatty():
                print(f"\r{done} of {len(x)} patches", end="\n" * (done == len(x)), file=sys.stderr, flush=True)
    return join_patches(x[:, 0].cpu().numpy(), y.shape, args.stride).clip(0, 1)


def noise_of(y: np.ndarray, seen: np.ndarray, args: argparse.Namespace) -> tuple[float, str]:
    """The σ that counts, and a line about it: given, with what the picture says against it, or estimated."""
    estimated = estimate_sigma(y, seen)
    if args.sigma is None:
        if estimated is None:
            raise InputError(f"{args.image}: too little is seen, or not clipped, to estimate the noise; give --sigma")
        sigma = min(max(float(f"{estimated:.2g}"), LEAST_SIGMA), 1.0)
        return sigma, f"sigma = {sigma:g}, estimated"
    given = f"sigma = {args.sigma:g}"
    if not (args.simulate or estimated is None or args.sigma / 2 <= estimated <= 3 * args.sigma):
        given += f", but the noise of the picture looks like {estimated:.2g}: without --sigma it is estimated"
    return args.sigma, given


def load(args: argparse.Namespace) -> View:
    """The prior that is asked for, or its range."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no such device here; cpu is there")
    prior = genprior.load(args.prior, device=args.device)
    if not (args.range or prior.network.has_residual):
        raise InputError(f"{args.prior}: a prior without a residual model; --range would be right")
    return prior.range if args.range else prior


def restore(args: argparse.Namespace) -> None:
    view = load(args)
    args.stride = args.stride or min(view.shape) // 2 or 1
    if args.stride > min(view.shape):
        raise InputError(f"--stride {args.stride}: 1 to {min(view.shape)}, the prior's patch, would be right")
    picture = cropped(args.image, read_photograph(args.image, args.white), args, view.shape) / np.float32(255)
    count = math.prod(len(corners(*sides, args.stride)) for sides in zip(picture.shape, view.shape, strict=True))
    if count * math.prod(view.shape) > MOST_NUMBERS:
        raise InputError(f"--stride {args.stride}: {count} patches are too many at a time; a larger stride is right")
    y = picture
    if args.simulate:
        noise = np.random.default_rng([args.seed, 0]).standard_normal(picture.shape, dtype=np.float32)
        y = picture + args.sigma * noise
    seen = seen_pixels(args, picture.shape, view.shape)
    args.sigma, noise = noise_of(y, seen, args)
    estimate = restore_picture(view, y, seen, args)
    misfit = np.sqrt(np.square(estimate - y)[seen].mean()) / args.sigma
    with whole_file(args.out) as part:
        Image.fromarray(np.rint(estimate * 255).astype(np.uint8)).save(part)
    print(f"{args.out}: {picture.shape[0]} × {picture.shape[1]} pixels, {count} patches")
    print(f"{noise}; the result differs from what was seen by {misfit:.2f} sigma")
    if args.simulate:
        print(f"PSNR {psnr_db(np.square(estimate - picture).mean()):.2f} dB")


def sample(args: argparse.Namespace) -> None:
    x = load(args).sample(args.count, seed=args.seed)
    save_grid(args.out, x.cpu().numpy())
    print(f"{args.out}: {len(x)} patches of {x.shape[2]} × {x.shape[3]} pixels")


def within(kind: type, low: float, high: float) -> Callable[[str], float]:
    """What argparse reads a number in [low, high] with."""

    def number(text: str) -> float:
        if not low <= (value := kind(text)) <= high:
            raise argparse.ArgumentTypeError(f"{text}: {low} to {high} would be right")
        return value

    return number


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"error: {InputError(message)}; {self.prog} --help tells more\n")


def arguments(words: list[str] | None) -> argparse.Namespace:
    """The command line; where it is wrong, the program ends."""
    head, examples = __doc__.split("\n\n", 1)
    parser = Parser("genprior", description=head, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter)
    with suppress(PackageNotFoundError):  # a checkout that is not installed has no version
        parser.add_argument("--version", action="version", version=f"genprior {version('genprior')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    shared = Parser(add_help=False)
    add = shared.add_argument
    add("--prior", default="svae", help="ae, vae, gan, svae, or the file of a prior (%(default)s)")
    add("--range", action="store_true", help="confine images to the range of the decoder, as the chapter does")
    add("--seed", type=within(int, 0, 2**31), default=0, help="of all that is random (%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (%(default)s)")

    sampling = commands.add_parser("sample", parents=[shared], help="draw patches from a prior")
    sampling.add_argument("--count", type=within(int, 1, 10_000), default=100, help="how many (%(default)s)")
    sampling.add_argument("--out", default="samples.png", help="the PNG to write (%(default)s)")
    sampling.set_defaults(work=sample, image=None, mask=None, missing=None, simulate=False)

    restoring = commands.add_parser("restore", parents=[shared], help="restore a picture")
    add = restoring.add_argument
    add("image", type=existing, metavar="IMAGE", help="JPEG, PNG or TIFF; colour becomes grey")
    add(
        "--sigma",
        type=within(float, LEAST_SIGMA, 1),
        help="standard deviation of its noise, grey in [0, 1] (estimated)",
    )
    add("--mask", type=existing, help="a picture, white where IMAGE was seen, black or transparent where it was not")
    add("--white", type=within(float, 1e-3, 2**32), help="the number in IMAGE that is white (the largest of its bits)")
    add("--samples", type=within(int, 20, 10_000), default=0, help="take the posterior mean, over so many samples")
    add("--stride", type=within(int, 1, 4096), help="pixels from patch to patch (half a patch)")
    add("--crop", type=int, nargs=4, metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"), help="take this part")
    add("--simulate", action="store_true", help="IMAGE is clean: add the noise first, and print the PSNR")
    add("--missing", type=within(float, 0, 0.99), help="with --simulate: leave out this share of the pixels")
    add("--out", default="restored.png", help="the PNG to write (%(default)s)")
    restoring.set_defaults(work=restore)

    args = parser.parse_args(words)
    if args.simulate and args.sigma is None:
        parser.error("--simulate: the noise to add is missing; give --sigma")
    if args.missing and (args.mask is not None or not args.simulate):
        parser.error("--missing goes with --simulate, and without --mask")
    if Path(args.out).suffix.lower() != ".png" or Path(args.out).is_dir():
        parser.error(f"--out {args.out}: a name that ends in .png would be right")
    if any(
        file is not None and os.path.realpath(file) == os.path.realpath(args.out) for file in (args.image, args.mask)
    ):
        parser.error(f"--out {args.out}: would overwrite what is to be restored")
    return args


def main(words: list[str] | None = None) -> None:
    """Do what the command line says; what is wrong with it or its files ends the program with one line."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's deterministic kernels ask for
    torch.use_deterministic_algorithms(True)
    with one_line_errors("A smaller --crop or a larger --stride needs less."):
        args = arguments(words)
        args.work(args)
