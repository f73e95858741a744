"""The command `agentkit`. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failure, 2 bad input, 3 some documents failed, 130 interrupted.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit."""
    from agentkit.cli.app import run

    sys.exit(run(sys.argv[1:]))


__all__ = ["main"]
