"""Errors over photographs: patches of one are alike, and say the same of two methods again and again."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from scipy.stats import bootstrap

from genprior.files import InputError
from genprior.images import psnr_db
from pipeline.patches import different_patches

INDEX = "data/patches/photographs.csv"


def of_split(split: str) -> pd.DataFrame:
    """The photographs of a split, in the order of their patches, and how many patches each has."""
    try:
        rows = pd.read_csv(INDEX, dtype={"split": str, "photograph": str, "patches": np.int64})
        return rows[rows["split"] == split].reset_index(drop=True)
    except (OSError, ValueError, KeyError):
        raise InputError(f"{INDEX}: not the table that extract_patches writes; `dvc repro extract_patches`") from None


def psnr_by_photograph(x: np.ndarray, estimates: Mapping[str, np.ndarray], photograph: np.ndarray) -> pd.DataFrame:
    """PSNR in dB of each method's estimates (N, h, w) of patches x, a column for each photograph.

    photograph: which one each patch is of, (N,).
    """
    found = {}
    for method, estimate in estimates.items():
        errors = np.square(estimate - x).mean((1, 2))
        found[method] = {number: psnr_db(errors[photograph == number].mean()) for number in np.unique(photograph)}
    return pd.DataFrame(found).T


def paired(psnr: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Each method's mean difference of PSNR to a reference over photographs, and its 95 % bootstrap interval, in dB.

    Photographs are drawn with replacement, all patches of one together. Efron & Tibshirani 1993, chapter 13.
    """
    rows = {}
    for method, values in psnr.sub(psnr.loc[reference]).drop(index=reference).iterrows():
        difference = values.to_numpy()
        low = high = difference.mean()
        if len(difference) > 1 and np.ptp(difference) > 0:
            low, high = bootstrap((difference,), np.mean, method="percentile", rng=0).confidence_interval
        rows[method] = {"mean": difference.mean(), "low": low, "high": high}
    return pd.DataFrame(rows).T


def comparison(x: np.ndarray, estimates: Mapping[str, np.ndarray], problems: Sequence[str], seed: int) -> dict:
    """`paired` of every problem as a table of text, methods × problems, marked where the interval lies above 0.

    x: the restored patches, as `draw_patches` drew them with the seed; estimates: (P, N, h, w) by method. The reference
    is the last mixture among them, else the linear Gaussian.
    """
    rows = of_split("test")
    owners = torch.from_numpy(np.repeat(np.arange(len(rows)), rows["patches"]))
    owners = different_patches(owners, len(x), torch.Generator().manual_seed(seed)).numpy()
    reference, rows = [title for title in estimates if "Gaussian" in title or "mixture" in title][-1], {}
    for i in range(len(problems)):
        psnr = psnr_by_photograph(x, {title: array[i] for title, array in estimates.items()}, owners)
        for method, found in paired(psnr, reference).iterrows():
            text = f"{found['mean']:+.2f} [{found.low:+.2f}, {found.high:+.2f}]".replace("-", "−")
            rows.setdefault(method, []).append((text, bool(found.low > 0)))
    return {"columns": list(problems), "rows": rows, "reference": reference}
