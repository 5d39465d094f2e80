"""Shared code of the model-compression course. One package per subject; import what you need from it.

`import helpers` alone loads nothing heavy: set-up, data fetching and reading packed files work without torch.
"""

__version__ = "0.1.0"
