"""What the report makes of the long table."""

import numpy as np
import pandas as pd

from pipeline import pictures
from stages import report


def test_fewer_measurements_is_the_shift_between_curves():
    counts = np.array([5, 10, 20, 40, 80, 160])
    psnr = lambda m: 10 + 4 * np.log2(m)  # noqa: E731
    curves = pd.DataFrame([psnr(counts), psnr(4 * counts)], index=["lasso", "prior"], columns=counts)
    ratio = report.fewer_measurements(curves, "lasso")
    assert list(ratio.index) == ["prior"]
    np.testing.assert_allclose(ratio.loc["prior", [5, 10, 20, 40]], 4)
    assert ratio.loc["prior", [80, 160]].isna().all()  # Lasso never gets there


def test_lines_are_named_and_keep_their_order():
    table = pd.DataFrame(
        [
            ("vae", "a", "mean", "psnr_db", 1.0),
            ("vae", "a", "range", "psnr_db", 2.0),
            ("mixture_7", "b", "none", "psnr_db", 3.0),
            ("mixture_7", "b", "none", "mse", 4.0),
        ],
        columns=["method", "problem", "constraint", "measure", "value"],
    )
    found = report.wide(table, "psnr_db", ["b", "a"], "PSNR")
    assert list(found.index) == ["VAE, posterior mean", "VAE", "7 Gaussians"]
    assert list(found.columns) == ["b", "a"]
    assert report.markdown(found, 1).splitlines()[:3] == [
        "| PSNR | b | a |",
        "| --- | --- | --- |",
        "| VAE, posterior mean |  | 1.0 |",
    ]


def test_a_solver_has_one_colour_in_every_panel(monkeypatch):
    """Whichever is first in a panel's time."""
    drawn = []
    times = [("blur", "ours", 1.0), ("blur", "Adam", 2.0), ("denoise", "ours", 2.0), ("denoise", "Adam", 1.0)]
    monkeypatch.setattr(pictures, "save_figure", lambda path, figure: drawn.append(figure))
    rows = [("vae", problem, solver, seconds + t, 1.0 + t) for problem, solver, seconds in times for t in (0, 1)]
    table = pd.DataFrame(rows, columns=["prior", "problem", "solver", "seconds", "objective"])
    pictures.objective_figure("nowhere.png", table)
    colours = [{line.get_label(): line.get_color() for line in axis.lines} for axis in drawn[0].axes]
    assert len(colours) == 2
    assert colours[0] == colours[1]
    assert len(set(colours[0].values())) == 2


def test_one_mode_of_a_prior_is_dashed_and_its_mean_has_the_same_colour(monkeypatch):
    drawn, counts = [], [10, 25]
    monkeypatch.setattr(pictures, "save_figure", lambda path, figure: drawn.append(figure))
    ranges = pd.DataFrame([[20.0, 21], [22, 23]], index=["autoencoder", "VAE"], columns=counts)
    names = ["VAE, relaxed", "VAE, posterior mean", "linear Gaussian", "Lasso", "10 Gaussians"]
    others = pd.DataFrame([[25.0 + i, 30 + i] for i in range(5)], index=names, columns=counts)
    pictures.crossover_figure("nowhere.png", ranges, others, names[2:4], {"VAE": 24.0})
    left, right = ({line.get_label(): line for line in axis.lines} for axis in drawn[0].axes)
    mode, mean = (right[f"VAE, {kind}"] for kind in ("relaxed", "posterior mean"))
    assert (mode.get_linestyle(), mean.get_linestyle()) == ("--", "-")
    assert mode.get_color() == mean.get_color() == left["VAE"].get_color()
    assert len({line.get_color() for line in (mean, left["autoencoder"], right["10 Gaussians"])}) == 3
    np.testing.assert_allclose(mean.get_ydata(), -1)  # to the linear Gaussian
    assert "linear Gaussian" in left
