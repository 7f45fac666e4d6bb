"""What every node process shares: its arguments, its stop signals, its errors in one line."""

import argparse
import ctypes
import logging
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Final

from perception.errors import PerceptionError
from perception.profile import Profile, load

PR_SET_PDEATHSIG: Final = 1
"""Linux prctl(2): the signal this process gets when its parent dies."""


def main(kind: str, run: Callable[[Profile, str, threading.Event], None], *, named: bool = True) -> None:
    """Parse `PROFILE [--name NAME] [--set key=value]...` and run the node until it is told to stop.

    Exits with 0 at the end or when stopped, else with the error's own exit code after one line on stderr.
    """
    parser = argparse.ArgumentParser(prog=f"python -m perception.nodes.{kind}")
    parser.add_argument("profile", help="TOML file, or name of a shipped profile")
    parser.add_argument("--name", required=named, default=kind, help="which of the profile's tables to run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    stopped = _stop_on_signals()
    try:
        run(load(arguments.profile, tuple(arguments.overrides)), arguments.name, stopped)
    except PerceptionError as error:
        print(f"perception: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


def _stop_on_signals() -> threading.Event:
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with suppress(OSError, AttributeError):  # elsewhere than on Linux an orphan runs on until stopped
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return stopped
