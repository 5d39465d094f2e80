"""Other people's tools on the course's networks, each in an environment of its own."""

from helpers.tools.catalogue import TOOLS
from helpers.tools.records import read, variants

__all__ = ["TOOLS", "read", "variants"]
