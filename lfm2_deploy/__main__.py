"""Where the program starts: as `lfm2-deploy`, and as `python -m lfm2_deploy`.

What it needs takes a moment to import. Ctrl-C in that moment ends it as silently as later, so
nothing is imported before that is settled.
"""

from __future__ import annotations


def main() -> int:
    """Run the command line of this process; return its exit code."""
    try:
        import os
        import signal

        interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if interruptible:
            # Not an exception, which some modules turn into another while they are imported.
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
        from lfm2_deploy.cli import main as run

        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
        if interruptible:
            # All is written. While Python takes itself apart, an exception would be one more line,
            # and Python would end as by the signal.
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
        return code
    except KeyboardInterrupt:  # before the first of these lines, or after the last
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
