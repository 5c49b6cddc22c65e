"""``python -m featcache`` and the console command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from .cli import run
        from .cli.starting import leave

        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the command line itself was being loaded
        sys.stderr.write("featcache: interrupted\n")
        status = 130
        sys.exit(status)
    leave(status)


if __name__ == "__main__":
    main()
