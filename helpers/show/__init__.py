"""Figures in the house style."""

from helpers.show.figures import COLOURS, bars, dots, figure, in_words, line_with_band, style
from helpers.show.labels import label_points

__all__ = [
    "COLOURS",
    "bars",
    "dots",
    "figure",
    "in_words",
    "label_points",
    "line_with_band",
    "style",
]
