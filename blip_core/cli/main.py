"""What `blip VERB` does: read the command line, act, and say in plain words what went wrong.

Every verb checks the whole of params.yaml first. What a user can mend is said in one message, without a traceback.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import traceback
from pathlib import Path

from blip_core.cli.chain import leave_out, named_stage
from blip_core.cli.parser import make_parser
from blip_core.files.atomic import disk_full
from blip_core.runtime.cores import limit_threads
from blip_core.runtime.times import Meter

QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}


def main(argv: list[str] | None = None, *, prog: str = "blip") -> int:
    """The exit code: 0 done, 1 something the user can mend, 2 wrong usage, 130 stopped by Ctrl-C. `prog`: what the user typed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):  # the name of a file may be no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("blip_core").setLevel(logging.INFO)
    meter = Meter()
    argv = sys.argv[1:] if argv is None else argv
    if leave_out(argv):
        return 0
    try:
        limit_threads()  # before a library is imported that starts some
    except ValueError as e:
        print(e, file=sys.stderr)
        return 1
    args = make_parser(prog, stages=filter(None, [named_stage(argv)])).parse_args(argv)
    args.meter = meter
    try:
        args.act(args)
        sys.stdout.flush()
    except (ValueError, FloatingPointError) as e:
        return _say(args, str(e))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"{args.verb}: stopped; nothing half-written is left, and running it again goes on", file=sys.stderr)
        return 130
    except Exception as e:
        if isinstance(e, PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError) and e.filename:
            return _say(args, f"{e.filename2 or e.filename}: {e.strerror}; name another place, or mend what stands there")
        if disk_full(e):
            return _say(args, f"the disk is full ({e}); free some space and run it again: what was finished is kept")
        _leave_reason("crash", f"{type(e).__name__}: {e}")
        raise
    return 0


def _say(args: argparse.Namespace, message: str) -> int:
    """Tell what a user can mend; the exit code."""
    _leave_reason("input", message)
    print(f"{args.verb}: {message}", file=sys.stderr)
    _keep_traceback(args.work / "errors" / f"{args.verb}.log")
    return 1


def _keep_traceback(path: Path) -> None:
    """For whoever doubts that the input is to blame."""
    with contextlib.suppress(OSError):  # of a full disk
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())


def _leave_reason(kind: str, message: str) -> None:
    """Keep the reason where an orchestrator asked for it: DVC passes no exit code on."""
    if path := os.environ.get("BLIP_ERROR_FILE"):
        from blip_core.files.content import write_json

        with contextlib.suppress(OSError):  # of a full disk
            write_json({"kind": kind, "message": message}, Path(path))
