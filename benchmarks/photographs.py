"""The four priors and Gaussian mixtures on folders of grey photographs, paired by photograph, over several seeds.

python -m benchmarks.photographs --train FOLDER --test FOLDER    # --quick: few of all, to see whether it runs
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from genprior.images import cut_patches, symmetries_of, symmetry
from genprior.layers import Encoder
from genprior.networks import save_network
from genprior.operators import as_matrix
from genprior.photographs import read_photograph
from genprior.views import load
from pipeline.checkpoints import Checkpoint
from pipeline.evaluation import log_likelihood, restored
from pipeline.files import markdown, write_csv, write_text
from pipeline.params import PRIORS, Params, load_params
from pipeline.patches import different_patches, draw_batch, to_unit
from pipeline.photographs import paired, psnr_by_photograph
from pipeline.problems import pose
from pipeline.processes import side_by_side
from pipeline.run import run, set_up
from pipeline.training import fit_residual
from stages import baselines, train_ae, train_gan, train_svae, train_vae
from tools.quick import small_params

PROBLEMS = ("denoise", "inpaint", "blur", "cs_50", "cs_100")
STAGES = {"ae": train_ae, "vae": train_vae, "gan": train_gan, "svae": train_svae}
Pair = tuple[torch.Tensor, torch.Tensor]  # training, validation patches, uint8; or test ones, in [0, 1], dequantised
PAGE = """# The priors on folders of photographs

`python -m benchmarks.photographs --train {a.train.name} --test {a.test.name} --validation {a.validation} --patches
{a.patches} --seeds {a.seeds}` writes this page. Of {} photographs the last {a.validation} validate. The others train,
by {} patches a seed; mixtures see {p.baselines.mixture_patches}. {} photographs test, by {a.patches} patches each. Test
patches, operators and noise are the same for all. PSNR (of posterior means, in dB) and `nats` (log p(x) a pixel, one
patch of each) are means over photographs; `seconds` train on {p.threads} threads. ±: standard deviation over seeds.

{tables[0]}

Differences of PSNR in dB: means over photographs with 95 % bootstrap intervals, of each photograph's mean over seeds.
`epll` is the largest mixture with the patch's mean apart. The best mixture is the best on these patches.

{tables[1]}
"""


def draw_split(pictures: list[np.ndarray], params: Params, number: int) -> torch.Tensor:
    """Patches as the stage extract_patches draws them, to train (0) or validate on (1): uint8 (N, 1, h, w)."""
    settings, draw = params.extract_patches, np.random.default_rng([params.seed, number])
    found = np.concatenate([cut_patches(picture, settings.patch_size, settings.stride) for picture in pictures])
    if number == 0 and settings.symmetries:
        found = np.concatenate([symmetry(found, copy) for copy in range(symmetries_of(settings.patch_size))])
    return torch.from_numpy(found[draw.permutation(len(found))[: settings.max_patches], None])


def trained(name: str, splits: Pair, params: Params, path: Path) -> np.ndarray:
    """Train a prior as its stage does, and save it, where it is not kept; the seconds that took."""
    if not path.is_file():
        set_up(params)
        print(f"seed {params.seed}: training {name}", flush=True)
        begin, known = time.perf_counter(), splits[:1] if name == "gan" else splits
        prior, _ = STAGES[name].train(*known, params.network, getattr(params, f"train_{name}"), params.seed)
        if name != "svae":
            of_codes = Encoder(prior.coefficients, **params.network.model_dump(), variational=True)
            fit_residual(prior, of_codes if name == "ae" else prior.encoder, splits[0], params.residual, params.seed)
        write_text(path.with_suffix(".seconds"), str(time.perf_counter() - begin))
        save_network(prior.eval().requires_grad_(False), path)
    return np.array(float(path.with_suffix(".seconds").read_text()))


def work(paths: dict[str, Path], test: Pair, params: Params, task: tuple[str, str]) -> np.ndarray:
    """A prior's posterior means for one problem, or its log p(x); with one thread."""
    set_up(params.model_copy(update={"threads": 1}))
    (name, what), (x, dequantised) = task, test
    if what == "nats":
        return np.array(log_likelihood(load(paths[name]), dequantised, params.evaluate, params.seed)["log_likelihood"])
    (problem,) = pose({what: params.problems[what]}, x, 0)
    found = restored(load(paths[name]), problem, params.evaluate, params.seed)
    return found.mean(params.evaluate.mean_samples, params.seed).squeeze(1).numpy()


def by_mixtures(splits: Pair, test: Pair, params: Params) -> dict[tuple[str, str], np.ndarray]:
    """The mixtures, fitted as in the stage baselines: images of each and each problem, log p(x), seconds."""
    set_up(params)
    counts, draw = (params.baselines.mixture_patches, 2000), torch.Generator().manual_seed(params.seed)
    few = (different_patches(split, count, draw) for split, count in zip(splits, counts, strict=True))
    drawn = [draw_batch(split, None, draw).squeeze(1).double().numpy() for split in few]
    begin, (x, dequantised) = time.perf_counter(), test
    mixtures, _ = baselines.fit_mixtures(*drawn, params)
    found = {("mixtures", "seconds"): np.array(time.perf_counter() - begin)}
    for name, prior in mixtures.items():
        found[name, "nats"] = prior.log_prob(dequantised.flatten(1).double().numpy()).mean() / x[0].numel()
        for problem in pose({problem: params.problems[problem] for problem in PROBLEMS}, x, 0):
            matrix = as_matrix(problem.operator, tuple(x.shape[2:]), x).double().numpy()
            estimate, _ = prior.condition(matrix, problem.y.flatten(1).double().numpy(), problem.sigma)
            found[name, problem.name] = estimate.reshape(x.squeeze(1).shape)
    return found


def of_seed(splits: Pair, test: Pair, params: Params, keep: Path) -> pd.DataFrame:
    """All measures, kept or new; a file's name stands for parameters, code and patches."""
    digest = Checkpoint(keep, params, baselines.__file__, *splits).run
    digest.update(b"".join(Path(stage.__file__).read_bytes() for stage in STAGES.values()))
    paths = {name: keep / f"{name}-{digest.hexdigest()[:16]}.safetensors" for name in STAGES}
    digest.update(test[0].numpy().tobytes() + repr(PROBLEMS).encode())
    if not (results := keep / f"results-{digest.hexdigest()[:16]}.csv").is_file():
        found = {(name, "seconds"): trained(name, splits, params, path) for name, path in paths.items()}
        tasks = [(name, what) for what in ("nats", *PROBLEMS) for name in paths]
        found |= side_by_side(partial(work, paths, test, params), tasks, params.threads, "priors")
        found |= by_mixtures(splits, test, params)
        x, owners = test[0].squeeze(1).numpy(), np.arange(len(test[1])).repeat(len(test[0]) // len(test[1]))
        for key, it in found.items():
            found[key] = psnr_by_photograph(x, {"": it}, owners).iloc[0] if it.ndim else pd.Series(it.reshape(1))
        write_csv(results, pd.concat(found, names=["method", "measure", "photograph"]).rename("value").reset_index())
    return pd.read_csv(results).assign(seed=params.seed)


def tables(found: pd.DataFrame) -> list[str]:
    """Every measure by method; differences to `epll`, and to each problem's best mixture."""
    each, differences = found.groupby(["method", "measure", "seed"]).value.mean(), pd.DataFrame()
    each = each.groupby(["method", "measure"])
    scores = (each.mean().map("{:.2f}".format) + each.std().map(" ± {:.2f}".format)).unstack()
    for problem in PROBLEMS:
        psnr = found[found.measure == problem].pivot_table("value", "method", "photograph", sort=False)
        best = psnr.drop(index=list(PRIORS)).mean(axis=1).idxmax()
        differences.loc["best mixture", problem] = best
        for title, reference in (("epll", "epll"), ("best mixture", best)):
            for method, row in paired(psnr, reference).iterrows():
                differences.loc[f"{method} − {title}", problem] = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row)
    scores = scores.loc[found.method.unique(), [*PROBLEMS, "nats", "seconds"]]
    return [markdown(["", *table], table.fillna("").reset_index().to_numpy()) for table in (scores, differences)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options = {"train": None, "test": None, "keep": Path(".checkpoints/photographs")}
    for name, default in (options | {"validation": 40, "patches": 4, "seeds": 3}).items():
        parser.add_argument(f"--{name}", type=type(default or Path()), default=default, required=default is None)
    parser.add_argument("--quick", action="store_true")
    args, draw, seeds, begin = parser.parse_args(), np.random.default_rng(0), [], time.perf_counter()
    params = small_params() if args.quick else load_params("params.yaml")
    files = [sorted(folder.glob("[!.]*")) for folder in (args.train, args.test)]
    if args.quick:
        files, args.validation, args.seeds = [files[0][:12], files[1][:3]], 4, 1
    known, test = ([read_photograph(file) for file in split] for split in files)
    windows = (cut_patches(picture, params.extract_patches.patch_size, 1) for picture in test)
    cut = [draw.choice(every, args.patches, replace=False) for every in windows]
    x = torch.from_numpy(np.concatenate(cut)).unsqueeze(1)
    pair = to_unit(x), draw_batch(x[:: args.patches], None, torch.Generator().manual_seed(0))
    for seed in range(args.seeds):
        own = params.model_copy(update={"seed": seed, "device": "cpu"})
        splits = draw_split(known[: -args.validation], own, 0), draw_split(known[-args.validation :], own, 1)
        seeds.append(of_seed(splits, pair, own, args.keep))
        minutes = (time.perf_counter() - begin) / (seed + 1) / 60
        print(f"{minutes:.1f} minutes a seed, some {minutes * (args.seeds - seed - 1):.0f} to go", flush=True)
    shown, sizes = tables(pd.concat(seeds)), (len(known), len(splits[0]), len(test))
    print(page := PAGE.format(*sizes, a=args, p=params, tables=shown))
    if not args.quick:
        write_text("benchmarks/photographs.md", page)


if __name__ == "__main__":
    run(main)
