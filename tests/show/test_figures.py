"""Plots: what a reader who cannot see the figure, or its colours, gets."""

import base64
import struct

import IPython.display
import matplotlib as mpl
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter

from helpers import show

mpl.use("Agg")


@pytest.fixture(autouse=True)
def house_style():
    """Each test in the house style; no figure stays open and no setting stays changed."""
    with mpl.rc_context():
        show.style()
        yield
        plt.close("all")


@pytest.fixture
def shown(monkeypatch):
    """Collect what is displayed, as the outputs of a notebook's cell."""
    outputs = []

    def display(data, *, raw, metadata=None):
        outputs.append(nbformat.v4.new_output("display_data", data=data, metadata=metadata or {}))

    monkeypatch.setattr(IPython.display, "display", display)
    return outputs


def figure():
    """Return a small figure of one line."""
    return show.line_with_band([1, 2], {"a": [1, 2]}, title="It rises", xlabel="step", ylabel="loss (nats)")


@pytest.mark.parametrize("template", ["lab", "classic", "basic"])
def test_alt_text_reaches_the_html(shown, template):
    show.figure(figure(), alt='A line that rises from 1 to 2, "steeply"')
    assert shown[0]["metadata"]["image/png"]["alt"].startswith("A line")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=shown)])
    html, _ = HTMLExporter(template_name=template).from_notebook_node(notebook)
    image = BeautifulSoup(html, "html.parser").find("img")
    assert image is not None
    assert image["alt"] == 'A line that rises from 1 to 2, "steeply"'


def test_the_table_is_folded_below_the_figure(shown):
    show.figure(figure(), alt="A line", table=pd.DataFrame({"loss": [0.123456, 2.0]}, index=["one", "two"]))
    picture, table = shown
    assert picture["data"]["text/plain"] == "A line"
    assert table["data"]["text/html"].startswith("<details><summary>")
    assert "0.1235" in table["data"]["text/html"] and "two" in table["data"]["text/plain"]


def test_the_picture_is_sharp_small_and_the_same_each_time(shown):
    show.figure(figure(), alt="A line")
    show.figure(figure(), alt="A line")
    first, second = (base64.b64decode(output["data"]["image/png"]) for output in shown)
    width, _ = struct.unpack(">II", first[16:24])
    assert first == second
    assert width >= 1.5 * shown[0]["metadata"]["image/png"]["width"]
    assert len(first) < 30_000


def test_show_closes_the_figure_and_wants_alt_text(shown):
    fig = figure()
    with pytest.raises(ValueError, match="alt is empty"):
        show.figure(fig, alt="  ")
    show.figure(fig, alt="A line")
    assert plt.get_fignums() == []


def test_repetitions_are_mean_and_range():
    values = np.array([[1.0, 4.0], [3.0, 8.0]])
    ax = show.line_with_band([0, 1], {"a": values}, title="t", xlabel="x", ylabel="y").axes[0]
    assert list(np.asarray(ax.lines[0].get_ydata())) == [2, 6]
    edges = np.asarray(ax.collections[0].get_paths()[0].vertices)
    assert {tuple(v) for v in edges.tolist()} >= {(0.0, 1.0), (0.0, 3.0), (1.0, 4.0), (1.0, 8.0)}


def test_series_differ_without_colour():
    series = {str(i): [i, i] for i in range(7)}
    ax = show.line_with_band([0, 1], series, title="t", xlabel="x", ylabel="y").axes[0]
    assert len({(line.get_marker(), str(line.get_linestyle())) for line in ax.lines}) == 7
    bars = show.bars(pd.DataFrame(1, index=["r"], columns=list(series)), title="t", xlabel="x").axes[0]
    assert len({patch.get_hatch() for patch in bars.patches}) == 7


def test_neighbouring_colours_differ_in_grey_print():
    """CIE lightness, from the sRGB standard's transfer function."""
    rgb = np.array([mpl.colors.to_rgb(colour) for colour in show.COLOURS])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    assert (np.abs(np.diff(lightness)) > 5).all()


def test_bars_show_their_numbers_in_order():
    ax = show.bars({"first": 1234.5, "second": 2.0}, title="t", xlabel="bytes", label="{:,.0f}").axes[0]
    assert [text.get_text() for text in ax.texts] == ["1,234", "2"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "second"]
    assert ax.yaxis_inverted()
    assert ax.get_legend() is None


def test_grouped_bars_have_one_legend_that_hides_no_bar():
    table = pd.DataFrame({"weights": [1, 2], "MACs": [3, 4]}, index=["conv", "fc"])
    fig, axes = plt.subplots(2)
    for ax in axes:
        show.bars(table, title="t", xlabel="%", ax=ax)
        assert [[bar.get_width() for bar in group] for group in ax.containers] == [[1, 2], [3, 4]]
        middles = np.array([[bar.get_y() + bar.get_height() / 2 for bar in group] for group in ax.containers])
        assert middles.mean(axis=0) == pytest.approx(ax.get_yticks()), "a group is centred on its name"
        assert (middles[1] > middles[0]).all() and ax.yaxis_inverted(), "the first column on top"
    fig.canvas.draw()
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["weights", "MACs"]
    assert not any(legend.get_window_extent().overlaps(ax.get_tightbbox()) for ax in axes)


def test_dots_show_each_run_its_mean_and_its_number():
    values = {"first": [1.0, 2.0, 6.0], "second": (4.5,)}
    ax = show.dots(values, title="t", xlabel="%", label="{:.1f}").axes[0]
    runs, means = ax.lines[::2], ax.lines[1::2]
    assert [list(line.get_xdata()) for line in runs] == [[1, 2, 6], [4.5]]
    assert [list(line.get_ydata()) for line in runs] == [[0, 0, 0], [1]]
    assert [set(line.get_xdata()) for line in means] == [{3}, {4.5}]
    assert [text.get_text() for text in ax.texts] == ["3.0", "4.5"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["first", "second"]
    assert ax.yaxis_inverted() and len({line.get_marker() for line in runs}) == 2
    given = plt.subplots()[1]
    assert show.dots(values, title="t", xlabel="%", ax=given) is given.get_figure() and given.get_title("left") == "t"


def test_the_title_of_dots_is_not_cut_beside_long_names():
    fig = show.dots(
        {"a very long name of a row, as they come": [1, 2]},
        title="A sentence of sixty characters, as titles are, is whole",
        xlabel="x",
    )
    fig.canvas.draw()
    (title,) = [text for text in fig.texts if text.get_text().startswith("A sentence")]
    assert title.get_window_extent().x1 <= fig.bbox.x1


def test_a_table_in_words():
    table = pd.DataFrame({"weights": [1000.4, 2], "MACs": [3, 4]}, index=["conv", "fc"])
    assert show.in_words(table) == "weights: conv 1,000, fc 2; MACs: conv 3, fc 4."


def test_bad_input():
    for values, shape in [
        ([1, 2, 3], r"\(1, 3\)"),
        (np.zeros((0, 2)), r"\(0, 2\)"),
        (np.zeros((1, 2, 2)), r"\(1, 2, 2\)"),
    ]:
        with pytest.raises(ValueError, match=rf"series\['a'\] has the shape {shape}; allowed: 2 points"):
            show.line_with_band([0, 1], {"a": values}, title="t", xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="x has 2 dimensions; allowed: one"):
        show.line_with_band([[0, 1]], {"a": [1, 2]}, title="t", xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="values is empty"):
        show.bars(pd.DataFrame(index=["a"]), title="t", xlabel="x")
    with pytest.raises(ValueError, match="series is empty"):
        show.line_with_band([0, 1], {}, title="t", xlabel="x", ylabel="y")
    with pytest.raises(ValueError, match="values is empty"):
        show.bars({}, title="t", xlabel="x")
    with pytest.raises(ValueError, match="values is empty"):
        show.dots({}, title="t", xlabel="x")
    with pytest.raises(ValueError, match=r"values\['a'\] is empty"):
        show.dots({"a": []}, title="t", xlabel="x")
