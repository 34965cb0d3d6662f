"""The command `genprior`: photographs restored with a trained prior, and samples of one.

    genprior restore noisy.jpg                                remove noise, whose σ is estimated
    genprior restore noisy.jpg --sigma 0.1                    ... or given, where black is 0 and white 1
    genprior restore holes.png --sigma 0.01 --mask seen.png   ... and fill in what the mask has black
    genprior restore blurred.png --kernel kernel.png          ... and undo the blur of which this is a picture
    genprior restore small.png --scale 2                      ... and make it twice as large
    genprior restore noisy.jpg --std map.png                  ... and say how far each pixel may be off
    genprior restore clean.png --sigma 0.1 --simulate         add the noise first, and print the PSNR
    genprior sample --prior gan                               a hundred patches that the prior makes up

Colour is restored as luminance and two chroma, each with the prior of greys. 16 bits stay 16 bits.
"""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import genprior
from genprior.files import InputError, existing, one_line_errors
from genprior.images import estimate_sigma, from_opponent, psnr_db, save_grid, to_opponent
from genprior.mixture import GaussianMixture
from genprior.operators import Convolution, Downsampling, Identity, Inpainting
from genprior.photographs import SUFFIXES, read_colours, read_mask, write_photograph
from genprior.splitting import SAMPLES
from genprior.views import View

LEAST_SIGMA = 1e-4
CHANNELS = {1: ["grey"], 3: ["luminance", "red against blue", "green against both"]}


def cropped(file: str, picture: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """The part of a picture that is asked for."""
    if args.crop:
        top, left, height, width = args.crop
        if min(top, left) < 0 or top + height > picture.shape[0] or left + width > picture.shape[1]:
            raise InputError(f"{file}: {list(picture.shape[:2])} (height, width) does not hold --crop {args.crop}")
        picture = picture[top : top + height, left : left + width]
    least = max(3, args.scale or 0)
    if min(picture.shape[:2]) < least:
        raise InputError(f"{file}: {list(picture.shape[:2])} pixels; at least {least} × {least} would be right")
    return picture


def seen_pixels(args: argparse.Namespace, size: tuple[int, int]) -> np.ndarray:
    """Which pixels of a photograph of `size` are measured: bool, (H, W)."""
    if args.missing:
        return np.random.default_rng([args.seed, 1]).random(size) >= args.missing
    if args.mask is None:
        return np.ones(size, dtype=bool)
    seen = cropped(args.mask, read_mask(args.mask), args)
    if seen.shape != size:
        raise InputError(f"{args.mask}: {list(seen.shape)} (height, width); {args.image} is {list(size)}")
    if not seen.any():
        raise InputError(f"{args.mask}: black all over --crop {args.crop}; a part that was seen would be right")
    if seen.mean() < 0.5:
        print(f"{args.mask}: {1 - seen.mean():.0%} is black, which is filled in; perhaps it is inverted")
    return seen


def kernel_of(args: argparse.Namespace, size: tuple[int, int]) -> Tensor:
    """The blur kernel, of sum 1: (a, b)."""
    kernel = read_colours(args.kernel).levels.mean(2, dtype=np.float64)
    if not kernel.any():
        raise InputError(f"{args.kernel}: black all over; bright where light is spread to would be right")
    if any(of_kernel > side for of_kernel, side in zip(kernel.shape, size, strict=True)):
        raise InputError(f"{args.kernel}: {list(kernel.shape)} (height, width); {args.image} is only {list(size)}")
    return torch.from_numpy(kernel / kernel.sum())


def operator_of(args: argparse.Namespace, seen: np.ndarray) -> object:
    """K. What is measured has the size of `seen`; with --simulate, the clean photograph has."""
    if args.kernel is not None:
        kernel = kernel_of(args, seen.shape)
        # Light from beyond the border is in the picture: what is restored reaches there.
        beyond = [0, 0] if args.simulate else [side - 1 for side in kernel.shape]
        size = [side + more for side, more in zip(seen.shape, beyond, strict=True)]
        return Convolution(size, kernel, border="cut")
    if args.scale is not None:
        return Downsampling(args.scale)
    return Identity() if seen.all() else Inpainting(torch.from_numpy(seen))


def noise_of(levels: np.ndarray, seen: np.ndarray, args: argparse.Namespace) -> tuple[float, str]:
    """The σ that counts, and a line about it: given, with what the picture says against it, or estimated."""
    if args.simulate:
        return args.sigma, f"sigma = {args.sigma:g}"
    estimated = estimate_sigma(levels, seen)
    if args.sigma is None:
        if estimated is None:
            raise InputError(f"{args.image}: too little is seen, or not clipped, to estimate the noise; give --sigma")
        sigma = min(max(float(f"{estimated:.2g}"), LEAST_SIGMA), 1.0)
        return sigma, f"sigma = {sigma:g}, estimated"
    given = f"sigma = {args.sigma:g}"
    if not (estimated is None or args.sigma / 2 <= estimated <= 3 * args.sigma):
        given += f", but the noise of the picture looks like {estimated:.2g}: without --sigma it is estimated"
    return args.sigma, given


def progress_of(channel: str, truth: np.ndarray | None) -> Callable[[int, list[float], Tensor], None]:
    """What tells the passes over one channel to a terminal, and nobody else."""

    def tell(done: int, levels: list[float], x: Tensor) -> None:
        if sys.stderr.isatty():
            line = f"{channel}: pass {done} of {len(levels)}, level {255 * levels[done - 1]:.1f} of 255"
            if truth is not None:
                line += f", {psnr_db(np.square(x[0].cpu().numpy() - truth).mean()):.2f} dB"
            print(f"\r{line:<79}", end="\n" * (done == len(levels)), file=sys.stderr, flush=True)

    return tell


def restored(
    prior: View | GaussianMixture, operator: object, y: np.ndarray, truth: np.ndarray | None, args: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray | None]:
    """A photograph (C, 1, H, W) in [0, 1] from y (C, ...), C = 1 or 3: of colours each channel by itself.

    With --std, each pixel's standard deviation too, over its colours: (H, W).
    """
    colour, found, drawn = len(y) == 3, [], []
    colours = from_opponent if colour else np.asarray
    if colour:
        y, truth = to_opponent(y), None if truth is None else to_opponent(truth)
    for i, name in enumerate(CHANNELS[len(y)]):
        channel = torch.from_numpy(y[i : i + 1]).to(prior.device)
        tell = progress_of(name, None if truth is None else truth[i])
        sigma = args.sigma / len(y) ** 0.5
        image = genprior.restore_image(prior, operator, channel, sigma, args.stride, args.seed, tell)
        found.append(image.x[0].cpu().numpy())
        if args.std:
            drawn.append(image.samples(SAMPLES, args.seed + i).cpu().numpy())
    x, std = colours(np.stack(found)), None
    if args.std:
        apart = np.stack([colours(sample) - x for sample in np.stack(drawn, 1)])
        std = np.sqrt(np.square(apart).mean((0, 1, 2)))
    return x.clip(0, 1), std


def load(args: argparse.Namespace) -> View | GaussianMixture:
    """The prior that is asked for."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no such device here; cpu is there")
    return genprior.load(args.prior, device=args.device)


def restore(args: argparse.Namespace) -> None:
    prior = load(args)
    if isinstance(prior, View) and not prior.network.has_residual:
        raise InputError(f"{args.prior}: a prior without a residual model; one with it would be right")
    photograph = read_colours(args.image, args.white)
    levels = cropped(args.image, photograph.levels, args)
    if args.simulate and args.scale:
        levels = levels[tuple(slice(side - side % args.scale) for side in levels.shape[:2])]
    seen = seen_pixels(args, levels.shape[:2])
    args.sigma, noise = noise_of(levels, seen, args)

    operator = operator_of(args, seen).to(prior.device)
    measured = lambda x: operator.A(torch.from_numpy(x).to(prior.device)).cpu().numpy()  # noqa: E731
    picture = np.moveaxis(levels, 2, 0)[:, None].copy()
    y, truth = measured(picture) if args.simulate or args.mask else picture, None
    if args.simulate:
        draw = np.random.default_rng([args.seed, 0]).standard_normal(y.shape, dtype=np.float32)
        y, truth = y + np.float32(args.sigma) * draw, picture
    x, std = restored(prior, operator, y, truth, args)
    misfit = np.sqrt(np.square(measured(x) - y).mean()) / args.sigma

    inside = (..., *getattr(operator, "kept", ()))  # of a blurred photograph, what it shows itself
    result = np.moveaxis(x[inside][:, 0], 0, 2)
    write_photograph(args.out, result, photograph)
    print(f"{args.out}: {result.shape[0]} × {result.shape[1]} pixels, {'grey' if len(x) == 1 else 'colour'}")
    print(f"{noise}; the result differs from what was seen by {misfit:.2f} sigma")
    if args.std:
        std = std[inside]
        write_photograph(args.std, (std / std.max())[:, :, None], replace(photograph, bits=8, exif=None, profile=b""))
        whole = np.sqrt(np.square(std).mean())
        print(f"{args.std}: standard deviations, {whole:.2g} on the whole, where white is {std.max():.2g}")
    if truth is not None:
        print(f"PSNR {psnr_db(np.square(x - truth)[inside].mean()):.2f} dB")


def sample(args: argparse.Namespace) -> None:
    prior = load(args)
    if isinstance(prior, GaussianMixture):
        raise InputError(f"{args.prior}: a mixture, which restores only; ae, vae, gan or svae would be right")
    if not (args.range or prior.network.has_residual):
        raise InputError(f"{args.prior}: a prior without a residual model; --range would be right")
    x = (prior.range if args.range else prior).sample(args.count, seed=args.seed)
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
    add("--prior", default="svae", help="ae, vae, gan, svae, mixture, or the file of a prior (%(default)s)")
    add("--seed", type=within(int, 0, 2**31), default=0, help="of all that is random (%(default)s)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (%(default)s)")

    sampling = commands.add_parser("sample", parents=[shared], help="draw patches from a prior")
    sampling.add_argument("--count", type=within(int, 1, 10_000), default=100, help="how many (%(default)s)")
    sampling.add_argument("--range", action="store_true", help="confine images to the range of the decoder")
    sampling.add_argument("--out", default="samples.png", help="the PNG to write (%(default)s)")
    sampling.set_defaults(work=sample, image=None, mask=None, kernel=None, missing=None, simulate=False, std=None)

    restoring = commands.add_parser("restore", parents=[shared], help="restore a photograph")
    add = restoring.add_argument
    add("image", type=existing, metavar="IMAGE", help="JPEG, PNG or TIFF, grey or in colour, of 8 or 16 bits")
    add("--sigma", type=within(float, LEAST_SIGMA, 1), help="standard deviation of its noise, white is 1 (estimated)")
    one = restoring.add_mutually_exclusive_group().add_argument
    one("--mask", type=existing, help="a picture, white where IMAGE was seen, black or transparent where it was not")
    one("--kernel", type=existing, help="a picture of the blur of IMAGE: what a point of light becomes")
    one("--scale", type=int, choices=(2, 3, 4), help="enlarge IMAGE: its pixels are means over so many × so many")
    one("--missing", type=within(float, 0, 0.99), help="with --simulate: leave out this share of the pixels")
    add("--white", type=within(float, 1e-3, 2**32), help="the number in IMAGE that is white (the largest of its bits)")
    add("--stride", type=within(int, 1, 4096), help="pixels from patch to patch (half a patch; a quarter, of mixtures)")
    add("--crop", type=int, nargs=4, metavar=("TOP", "LEFT", "HEIGHT", "WIDTH"), help="take this part")
    add("--simulate", action="store_true", help="IMAGE is clean: blur or shrink it, add noise, and print the PSNR")
    add("--out", default="restored.png", help="the PNG, TIFF or JPEG to write (%(default)s)")
    add("--std", metavar="MAP", help="write a PNG of how far each pixel may be off, too: standard deviations")
    restoring.set_defaults(work=restore)

    args = parser.parse_args(words)
    if args.simulate and args.sigma is None:
        parser.error("--simulate: the noise to add is missing; give --sigma")
    if args.missing and not args.simulate:
        parser.error("--missing goes with --simulate")
    given = [file for file in (args.image, args.mask, args.kernel) if file is not None]
    taken = {os.path.realpath(file): "what is to be restored" for file in given}
    suffixes = SUFFIXES if args.work is restore else (".png",)
    for option, path, right in (("--out", args.out, suffixes), ("--std", args.std, (".png",))):
        if path is None:
            continue
        if Path(path).suffix.lower() not in right or Path(path).is_dir():
            parser.error(f"{option} {path}: a name that ends in {' or '.join(right)} would be right")
        if os.path.realpath(path) in taken:
            parser.error(f"{option} {path}: would overwrite {taken[os.path.realpath(path)]}")
        taken[os.path.realpath(path)] = option
    return args


def main(words: list[str] | None = None) -> None:
    """Do what the command line says; what is wrong with it or its files ends the program with one line."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's deterministic kernels ask for
    torch.use_deterministic_algorithms(True)
    with one_line_errors("A smaller --crop needs less."):
        args = arguments(words)
        args.work(args)
