"""Labels that stand beside their points and do not overlap."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from helpers.core import checks

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes


def label_points(
    ax: "Axes", x: Sequence[float], y: Sequence[float], names: Sequence[str], *, size: int = 9
) -> list[str]:
    """Write each name beside its point, where it hides no point, line or other name; return those that found no place.

    Names further away get a thin line. Call it last: the limits and the layout of the figure are fixed by it. Raises
    ValueError unless there is a name for each point and all points are finite.
    """
    import numpy as np
    from matplotlib.patheffects import withStroke

    if not len(x) == len(y) == len(names):
        raise ValueError(f"x, y and names have {len(x)}, {len(y)} and {len(names)} entries; allowed: equally many")
    checks.positive("size", size)
    for axis, values in {"x": x, "y": y}.items():
        checks.finite(axis, np.asarray(values, dtype=float))

    figure = ax.get_figure()
    assert figure is not None
    figure.draw_without_rendering()  # type: ignore[union-attr]
    figure.set_layout_engine("none")  # type: ignore[union-attr]
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    points = ax.transData.transform(np.column_stack([x, y]))
    scale = figure.dpi / 72
    taken = [_box(px - 4 * scale, py - 4 * scale, 8 * scale, 8 * scale) for px, py in points]
    drawn = [line for line in ax.get_lines() if line.get_linestyle() != "None"]
    taken += [box for line in drawn for box in _along(ax.transData.transform(line.get_xydata()))]
    inside, homeless = ax.get_window_extent(), []
    for (px, py), name, place in sorted(
        zip(points, names, zip(x, y, strict=True), strict=True), key=lambda p: -p[0][1]
    ):
        text = ax.annotate(name, place, (0, 0), textcoords="offset points", fontsize=size, va="center", zorder=4)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        extent = text.get_window_extent()
        for dx, dy in _offsets():
            left = px + dx * scale - (extent.width if dx < 0 else extent.width / 2 if dx == 0 else 0)
            box = _box(left, py + dy * scale - extent.height / 2, extent.width, extent.height)
            if _fits(box, (inside.x0, inside.y0, inside.x1, inside.y1)) and not any(_overlap(box, t) for t in taken):
                text.set(position=(dx, dy), ha="right" if dx < 0 else "center" if dx == 0 else "left")
                if math.hypot(dx, dy) > 12:
                    ax.annotate("", place, (dx, dy), textcoords="offset points", arrowprops=LINE, zorder=2)
                taken.append(box)
                break
        else:
            text.remove()
            homeless.append(name)
    return homeless


LINE = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
Box = tuple[float, float, float, float]


def _along(path: "np.ndarray") -> list[Box]:
    """Return small boxes along a path of (vertices, 2) pixels; none for a single point."""
    import numpy as np

    boxes = []
    for start, end in pairwise(path):
        steps = max(2, math.ceil(math.dist(start, end) / 5))
        boxes += [_box(x - 1, y - 1, 2, 2) for x, y in np.linspace(start, end, steps).tolist()]
    return boxes


def _offsets() -> list[tuple[float, float]]:
    """Return where a name may stand, in points from its own, the nearest first."""
    steps = [(dx, dy) for dx in (-90, -60, -36, -18, -8, 0, 8, 18, 36, 60, 90) for dy in range(-84, 85, 6)]
    return sorted((s for s in steps if max(abs(s[0]), abs(s[1])) >= 8), key=lambda s: (math.hypot(s[0], 1.5 * s[1]), s))


def _box(left: float, bottom: float, width: float, height: float) -> Box:
    return left, bottom, left + width, bottom + height


def _fits(box: Box, inside: Box) -> bool:
    return box[0] >= inside[0] and box[1] >= inside[1] and box[2] <= inside[2] and box[3] <= inside[3]


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
