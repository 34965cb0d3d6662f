"""Figures for people: grids of samples, training curves, reconstructions beside truth and measurement."""

import io
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter
from PIL import Image

from genprior.files import whole_file
from genprior.images import tile

matplotlib.rc("font", size=9)
matplotlib.rc("axes", titlesize=10)
matplotlib.rc("axes.spines", top=False, right=False)
matplotlib.rc("figure", dpi=120)
matplotlib.rc("legend", frameon=False)


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a matplotlib figure as PNG, grey where it is, with nothing in it that changes from run to run."""
    content = io.BytesIO()
    figure.savefig(content, bbox_inches="tight")
    with Image.open(content) as drawn, whole_file(path) as part:
        colours, grey = drawn.convert("RGB"), drawn.convert("L")
        picture = grey if grey.convert("RGB").tobytes() == colours.tobytes() else colours
        picture.save(part, "PNG", optimize=True)


def panel_figure(path: str | Path, panels: dict[str, np.ndarray], across: int) -> None:
    """Grey images (h, w) in [0, 1] by their titles, so many side by side."""
    down = -(-len(panels) // across)
    figure = Figure((3.1 * across, 3.3 * down))
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, image) in zip(axes.flat, panels.items(), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(title)
    figure.tight_layout()
    save_figure(path, figure)


def telling(x: np.ndarray, count: int) -> np.ndarray:
    """Which patches (N, h, w) are shown, by contrast from the median's to the highest: flat ones look alike."""
    order = x.std((1, 2)).argsort(kind="stable")
    order = order[-max(count, len(order) // 2) :]
    return order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]


def reconstruction_figure(path: str | Path, rows: dict[str, np.ndarray], title: str) -> None:
    """Truth, what the measurement alone says, and every method's estimate: one labelled row of patches each."""
    count = len(next(iter(rows.values())))
    figure = Figure((0.62 * count + 1.3, 0.62 * len(rows) + 0.4))
    axes = figure.subplots(len(rows), 1)
    for axis, (label, patches) in zip(axes, rows.items(), strict=True):
        axis.imshow(tile(patches, count), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_ylabel(label, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[0].set_title(title)
    figure.subplots_adjust(hspace=0.06)
    save_figure(path, figure)


def curve_figure(path: str | Path, panels: dict[str, tuple[pd.DataFrame, list[str]]], shared: bool = False) -> None:
    """Curves against steps, a panel for each title with the named columns of its table; `shared`: one axis from 0.

    The first steps fall from far away; the picture is for what comes after them.
    """
    figure = Figure((3.4 * len(panels), 2.8))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=shared)
    highest = 0.0
    for axis, (title, (table, columns)) in zip(axes.flat, panels.items(), strict=True):
        for column in columns:
            axis.plot(table["step"], table[column], label=column.replace("_", " "), linewidth=1.2)
        settled = table.loc[table["step"] >= 0.03 * table["step"].max(), columns]
        low, high = settled.min().min(), settled.max().max()
        margin, highest = 0.05 * (high - low) or 0.05, max(highest, high)
        axis.set(title=title, xlabel="step", ylim=(low - margin, high + margin))
        axis.legend()
    if shared:
        axes.flat[0].set(ylim=(0, 1.05 * highest))
    figure.tight_layout()
    save_figure(path, figure)


def bar_figure(path: str | Path, table: pd.DataFrame, ylabel: str) -> None:
    """Grouped bars from 0: one group for each row of the table, one colour for each column."""
    axis = table.plot.bar(figsize=(1.25 * len(table) + 1.5, 3.2), width=0.82, rot=20, colormap="tab20")
    axis.set(xlabel="", ylabel=ylabel)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    save_figure(path, axis.figure)


def sweep_figure(path: str | Path, table: pd.DataFrame, title: str, xlabel: str, ylabel: str) -> None:
    """A line for each row of the table, against its columns, which are numbers on a logarithmic axis."""
    axis = table.T.plot(logx=True, marker="o", markersize=3, linewidth=1.2, figsize=(5.5, 3.4))
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.legend(fontsize=8)
    save_figure(path, axis.figure)


def fixed_noise_figure(path: str | Path, table: pd.DataFrame, own: float, chapters: float) -> None:
    """KL and coordinates in use against `sigma`, with the VAE's own and the chapter's; above, β at the VAE's own."""
    figure = Figure((9.2, 3.4))
    labels = {"test_kl": "KL of held-out patches [nats]", "used_units": "coordinates above 0.1 nats"}
    for axis, (column, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        axis.plot(table["sigma"], table[column], color="black", marker="o", markersize=3, linewidth=1.2)
        axis.axvline(own, color="C0", linestyle="--", linewidth=1.2, label="the VAE's σ")
        axis.axvline(chapters, color="C1", linestyle="--", linewidth=1.2, label="the chapter's σ")
        axis.set(xscale="log", xlabel="fixed σ", ylabel=label, ylim=(0, None))
        axis.yaxis.get_major_locator().set_params(integer=True)
        above = axis.secondary_xaxis("top", functions=(lambda sigma: (sigma / own) ** 2, lambda beta: own * beta**0.5))
        above.set_xlabel("β at the VAE's σ")
        axis.legend(loc="center right")
    figure.tight_layout()
    save_figure(path, figure)


def crossover_figure(
    path: str | Path, ranges: pd.DataFrame, others: pd.DataFrame, beside: list[str], floors: dict[str, float]
) -> None:
    """PSNR against the number of measurements, a line for each row of the tables.

    Left `ranges` in dB with, dotted, the `floors` that they cannot pass, and `beside` them some rows of `others`;
    right all of these as differences to the first of `beside`, since they lie within few dB of each other, dashed what
    is `relaxed`, at one mode.
    """
    figure = Figure((12, 4))
    left, right = figure.subplots(1, 2)
    reference = beside[0]
    # A colour for each method, with a residual model or without; black for what stands in both panels.
    methods = list(dict.fromkeys(name.split(",")[0] for name in (*ranges.index, *others.index) if name not in beside))
    colours = {
        name: "black" if name in beside else f"C{methods.index(name.split(',')[0])}"
        for name in (*ranges.index, *others.index)
    }

    def draw(axis: Axes, table: pd.DataFrame) -> None:
        for name, psnr in table.iterrows():
            dashed = name in beside[1:] or name.endswith(", relaxed")
            style = {"color": colours[name], "linestyle": "--" if dashed else "-", "linewidth": 1.2, "label": name}
            axis.plot(psnr.index, psnr, marker="" if name in beside else "o", markersize=3, **style)

    draw(left, pd.concat([ranges, others.loc[beside]]))
    for name, floor in floors.items():
        left.axhline(floor, color=colours[name], linestyle=":", linewidth=1)
    draw(right, (others - others.loc[reference]).drop(index=reference))
    right.axhline(0, color="black", linewidth=1.2)
    left.set(title="confined to a range", ylabel="PSNR [dB]")
    right.set(title="with residual models, and classical", ylabel=f"PSNR over the {reference}'s [dB]")
    for axis in (left, right):
        axis.set(xscale="log", xlabel="measurements")
        axis.xaxis.set_major_locator(FixedLocator(list(others.columns)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
    left.legend(fontsize=8)
    right.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    save_figure(path, figure)
