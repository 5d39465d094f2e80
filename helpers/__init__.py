"""Shared code of the model-compression course. One module per idea; import the module that you need.

`import helpers` alone loads nothing heavy: set-up, data fetching and reading packed files work without torch.
"""

__version__ = "0.1.0"
