"""Every interval, rank and difference of the course."""

from helpers.statistics.intervals import (
    Interval,
    Summary,
    cluster_interval,
    difference,
    differences,
    effective_size,
    holm,
    image_interval,
    mean_std,
    paired_interval,
    paired_p,
    seed_interval,
)
from helpers.statistics.medians import MedianInterval, median_interval, needed
from helpers.statistics.ranks import Correlation, rank, rank_correlation, ranking, shared_ranks

__all__ = [
    "Correlation",
    "Interval",
    "MedianInterval",
    "Summary",
    "cluster_interval",
    "difference",
    "differences",
    "holm",
    "effective_size",
    "image_interval",
    "mean_std",
    "median_interval",
    "needed",
    "paired_interval",
    "paired_p",
    "rank",
    "rank_correlation",
    "ranking",
    "seed_interval",
    "shared_ranks",
]
