"""The picture of the published results that README and the landing page begin with."""

import io
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
from PIL import Image

from helpers import evidence, show
from helpers.core import paths

if TYPE_CHECKING:
    import pandas as pd

FILE = paths.ROOT / "book" / "static" / "headline.png"
SHOWN = {  # the recipes that are drawn: one for each idea and task
    "lenet5-8-bit": "LeNet-5, 8 bits",
    "lenet5-2bit": "2 bits, learned steps",
    "lenet5-sparse-110x": "pruned while it trains",
    "lenet5-coded": "pruned, rounded, coded",
    "lenet5-thin-coded": "thin, coded: it fits into a QR code",
    "cifar_base-int8": "int8",
    "cifar_base-4bit": "4 bits",
    "cifar_base-combined": "filters out, 4 bits, coded",
    "imdb-bag-2000x1": "fewer words, low rank",
    "imdb-bag-3000x1": "fewer words, low rank",
    "resnet18-pruned": "transferred, pruned",
}
TASKS = {
    "mnist": "digits (MNIST)",
    "cifar10": "photographs (CIFAR-10)",
    "imdb": "reviews (IMDB)",
    "cat-or-dog": "cat or dog",
}


def points() -> "pd.DataFrame":
    """Return task, label, factor (times smaller file) and lost (points of test accuracy) of the recipes drawn."""
    import pandas as pd

    board = evidence.leaderboard(build=False)
    accuracy = dict(zip(board["model"], board["accuracy"], strict=True))
    rows = []
    for row in board[board["profile"] == "full"].to_dict("records"):
        if row["recipe"] in SHOWN and row["base"] in accuracy:
            lost = 100 * (accuracy[row["base"]] - row["accuracy"])
            label = SHOWN[row["recipe"]]
            rows.append({"task": row["task"], "label": label, "factor": row["file_ratio"], "lost": lost})
    return pd.DataFrame(rows)


def png() -> bytes:
    """Return the picture: each recipe by how many times smaller its file is, and what that does to accuracy."""
    show.style()
    found = points()
    fig, ax = plt.subplots(figsize=(9, 4.6))
    ax.axhline(0, color="#555555", linewidth=1)
    for place, (task, title) in enumerate(TASKS.items()):
        mine = found[found["task"] == task]
        ax.plot(mine["factor"], -mine["lost"], "os^D"[place], markersize=9, label=title)
    ax.set(xscale="log", title="How much smaller, and what it costs", xlabel="times smaller file")
    ax.set_ylabel("change of test accuracy (points)")
    ax.set_xticks([3, 10, 30, 100, 300, 1000], ["3", "10", "30", "100", "300", "1,000"])
    ax.set_xlim(2.5, 2500)
    ax.margins(y=0.12)
    fig.legend(loc="outside lower center", ncols=4)
    named = found.drop_duplicates("label", keep="last")
    show.label_points(ax, named["factor"].tolist(), (-named["lost"]).tolist(), named["label"].tolist(), size=10)
    content = io.BytesIO()
    fig.savefig(content, format="png", dpi=150)
    plt.close(fig)
    smaller = io.BytesIO()
    Image.open(content).convert("RGB").quantize(128).save(smaller, format="png", optimize=True)
    return smaller.getvalue()


def alt() -> str:
    """Return the picture in words."""
    rows = points().sort_values("factor").itertuples()
    lines = [f"{row.label} ({TASKS[row.task]}) {_factor(row.factor)} times, {-row.lost:+.2f} points" for row in rows]
    text = "; ".join(lines)
    return f"Published recipes by how many times smaller their file is and by their change of test accuracy: {text}."


def _factor(factor: float) -> str:
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.3g}"


def write() -> None:
    """Bring the picture up to date."""
    paths.write_atomically(FILE, png())
