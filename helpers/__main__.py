"""`python -m helpers`: run one command, and answer Ctrl-C with one sentence, whenever it comes.

Only this small module is imported before the answer is ready; the commands are in `helpers.cli.commands`.
"""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a failure, 2 for a bad argument, 130 for Ctrl-C."""
    try:
        from helpers.cli import commands

        return commands.main(argv)
    except KeyboardInterrupt:
        print("\nInterrupted. Nothing is half-written; run the same command again.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
