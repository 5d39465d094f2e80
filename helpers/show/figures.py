"""The house style of figures and the three figures that recur.

Colours are those of Okabe and Ito (Color Universal Design, 2008); markers, line styles and hatches tell the
series apart in a grey print as well. Each figure is shown by `figure`, with alt text and, folded away, the
table of its numbers.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from helpers.core import checks

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#000000")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "----")
DPI = 160  # sharp on a retina screen


def style() -> None:
    """Switch matplotlib to the house style, for the rest of the notebook."""
    plt.close("all")
    mpl.rcdefaults()
    mpl.rcParams.update(
        {
            "figure.figsize": (8.0, 4.0),
            "figure.constrained_layout.use": True,
            "font.size": 12,
            "axes.titlesize": 14,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 12,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.8,
            "lines.linewidth": 2.0,
            "lines.markersize": 6,
            "legend.frameon": False,
            "hatch.linewidth": 0.8,
            "axes.prop_cycle": cycler(color=COLOURS),
        }
    )


def figure(fig: Figure, *, alt: str, table: pd.DataFrame | None = None) -> None:
    """Show `fig` as a PNG with the text `alt` for those who cannot see it, `table` folded below; close it.

    Raises ValueError if `alt` is blank.
    """
    from IPython.display import display

    checks.not_empty("alt", alt.strip())
    png = base64.b64encode(_png(fig)).decode()
    width = round(fig.get_size_inches()[0] * 90)
    plt.close(fig)
    # JupyterLab and nbconvert's default template ignore alt text in the metadata; an HTML image carries it.
    image = f'<img alt="{html.escape(alt)}" width="{width}" src="data:image/png;base64,{png}">'
    metadata = {"image/png": {"alt": alt, "width": width}}
    display({"text/html": image, "image/png": png, "text/plain": alt}, metadata=metadata, raw=True)
    if table is not None:
        rows = table.to_html(border=0, float_format="{:,.4g}".format)
        folded = f"<details><summary>The same numbers as a table</summary>{rows}</details>"
        display({"text/html": folded, "text/plain": table.to_string()}, raw=True)


def _png(fig: Figure) -> bytes:
    """Return the figure as a PNG of 128 colours: a third of the bytes, and no eye sees the difference."""
    full, small = io.BytesIO(), io.BytesIO()
    fig.savefig(full, format="png", dpi=DPI)
    Image.open(full).convert("RGB").quantize(128).save(small, format="png", optimize=True)
    return small.getvalue()


def in_words(table: pd.DataFrame, form: str = "{:,.0f}") -> str:
    """Return the numbers of a table in words for alt text: "column: row number, row number; column: …"."""
    columns = [
        f"{column}: {', '.join(f'{row} {form.format(value)}' for row, value in table[column].items())}"
        for column in table.columns
    ]
    return "; ".join(columns) + "."


def line_with_band(
    x: ArrayLike,
    series: Mapping[str, ArrayLike],
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
) -> Figure:
    """Draw one line for each entry of `series`, of shape (len(x),), or (repetitions, len(x)).

    Repetitions are drawn as their mean within a band from the lowest to the highest; where a value is NaN, there is a
    gap. Returns the figure. Raises ValueError without series, and for one of another shape.
    """
    checks.not_empty("series", series)
    x = np.asarray(x)
    if x.ndim != 1:
        raise ValueError(f"x has {x.ndim} dimensions; allowed: one")
    ax = plt.subplots()[1] if ax is None else ax
    for i, (label, values) in enumerate(series.items()):
        y = np.atleast_2d(np.asarray(values, dtype=float))
        if y.ndim > 2 or len(y) == 0 or y.shape[1] != len(x):
            raise ValueError(f"series[{label!r}] has the shape {y.shape}; allowed: {len(x)} points, one for each x")
        colour, line, marker = COLOURS[i % 7], LINES[i % 7], MARKERS[i % 7]
        ax.plot(x, y.mean(axis=0), label=label, color=colour, linestyle=line, marker=marker)
        if len(y) > 1:
            ax.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if len(series) > 1:
        ax.legend()
    return ax.get_figure()  # type: ignore[return-value]


def bars(
    values: pd.DataFrame | Mapping[str, float],
    *,
    title: str,
    xlabel: str,
    label: str = "{:,.4g}",
    ax: Axes | None = None,
) -> Figure:
    """Draw horizontal bars, one for each name, the first on top, with its number (format `label`) at its end.

    A DataFrame draws one group for each row with one bar for each column, and a legend below the figure.
    Returns the figure.
    """
    table = values if isinstance(values, pd.DataFrame) else pd.DataFrame({xlabel: pd.Series(values)})
    checks.not_empty("values", table)
    groups, columns = table.shape[0], len(checks.not_empty("values", table.columns))
    if ax is None:
        ax = plt.subplots(figsize=(8.0, 1.4 + 0.34 * groups * max(columns, 1.4)))[1]
    height = 0.8 / columns
    for i, column in enumerate(table.columns):
        places = np.arange(groups) + (i - (columns - 1) / 2) * height
        drawn = ax.barh(
            places, table[column], height * 0.92, label=str(column), color=COLOURS[i % 7], edgecolor="white"
        )
        for bar in drawn:
            bar.set_hatch(HATCHES[i % 7])
        ax.bar_label(drawn, [label.format(v) for v in table[column]], padding=4, fontsize=10)
    ax.set_yticks(np.arange(groups), [str(name) for name in table.index])
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.margins(x=0.12)
    ax.set(title=title, xlabel=xlabel)
    fig = ax.get_figure()
    assert isinstance(fig, Figure)
    if columns > 1 and not fig.legends:  # one for all panels, where it hides no bar
        fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return fig


def dots(
    values: Mapping[str, Sequence[float]],
    *,
    title: str,
    xlabel: str,
    label: str = "{:,.4g}",
    ax: Axes | None = None,
) -> Figure:
    """Draw a row for each name, the first on top: a dot for each run, a bar at their mean, and its number (`label`).

    The axis need not begin at zero, since places are compared and not lengths. Returns the figure. Raises ValueError
    without names, and for one without values.
    """
    checks.not_empty("values", values)
    is_alone = ax is None
    if ax is None:
        ax = plt.subplots(figsize=(8.0, 1.6 + 0.42 * len(values)))[1]
    for row, (name, runs) in enumerate(values.items()):
        found = np.asarray(checks.not_empty(f"values[{name!r}]", list(runs)), dtype=float)
        colour = COLOURS[row % 7]
        ax.plot(found, np.full(len(found), row), linestyle="", marker=MARKERS[row % 7], color=colour, alpha=0.6)
        ax.plot([found.mean()] * 2, [row - 0.28, row + 0.28], color=colour, linewidth=3)
        ax.annotate(label.format(found.mean()), (1, row), xycoords=("axes fraction", "data"), xytext=(6, 0),
                    textcoords="offset points", va="center", fontsize=11, annotation_clip=False)  # fmt: skip
    ax.set_yticks(range(len(values)), list(values))
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.grid(False, axis="y")
    ax.margins(x=0.08)
    ax.set_xlabel(xlabel)
    fig = ax.get_figure()
    assert isinstance(fig, Figure)
    if is_alone:  # over the whole figure: beside long names the axes are narrow
        fig.suptitle(title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    else:
        ax.set_title(title)
    return fig
