"""`python -m blip_core VERB`, and `blip VERB`: the process is the programme's own (cli/main.py has what it does)."""

import signal
import sys

from blip_core.cli.main import main


def program(prog: str = "blip") -> int:
    """The exit code, of the arguments that this process was started with."""
    # here, for a caller of `main` has its own: what it forks would inherit ours, and a child that waits for a lock may miss its end by it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return main(prog=prog)


if __name__ == "__main__":
    sys.exit(program("python -m blip_core"))
