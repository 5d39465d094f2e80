"""What a network costs: parameters, multiplications, time, memory."""

from helpers.measure.latency import Verdict, compare, latency_records, time_interleaved, verdict_table
from helpers.measure.memory import peak_memory_mb
from helpers.measure.operations import count_macs, layer_table
from helpers.measure.parameters import count_nonzero, count_parameters, count_weights

__all__ = [
    "Verdict",
    "compare",
    "count_macs",
    "count_nonzero",
    "count_parameters",
    "count_weights",
    "latency_records",
    "layer_table",
    "peak_memory_mb",
    "time_interleaved",
    "verdict_table",
]
