"""Shared by all node processes: arguments, stop signals, one-line errors."""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from perception.errors import MissingPackageError, PerceptionError
from perception.errors.credentials import CleanFormatter, harmless
from perception.graph.processes import StopEvent, end_with_supervisor, show_stacks_on_signal
from perception.profile import OVERRIDES_VARIABLE, Profile, load


def main(kind: str, run: Callable[[Profile, str, threading.Event], None], *, named: bool = True) -> None:
    """Parse `PROFILE [--name NAME] [--set key=value]...` and run the node until a stop signal.

    The supervisor passes overrides by `OVERRIDES_VARIABLE`: every user of the host can read a command line.
    Exits with 0 at the end or when stopped, else with the error's exit code after one line on stderr.
    """
    end_with_supervisor()
    show_stacks_on_signal()
    parser = argparse.ArgumentParser(prog=f"python -m perception.nodes.{kind}")
    parser.add_argument("profile", help="TOML file, or name of a shipped profile")
    parser.add_argument("--name", required=named, default=kind, help="which of the profile's tables to run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    overrides = (*json.loads(os.environ.get(OVERRIDES_VARIABLE, "[]")), *arguments.overrides)
    handler = logging.StreamHandler()
    handler.setFormatter(CleanFormatter("perception: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    stopped = _stop_on_signals()
    try:
        run(load(arguments.profile, overrides), arguments.name, stopped)
    except PerceptionError as error:
        sys.stderr.write(f"perception: {harmless(str(error))}\n")
        sys.exit(error.exit_code)
    except ImportError as error:
        sys.stderr.write(f"perception: {harmless(_explained(error))}\n")
        sys.exit(MissingPackageError.exit_code)


def _explained(error: ImportError) -> str:
    """Return one line: why a package cannot be imported, and what to do."""
    from perception.cli.package_checks import explain

    package = (error.name or "").partition(".")[0]
    problem, advice = explain(package, f"{type(error).__name__}: {error}")
    return f"{package or 'a package'} cannot be imported: {problem}; {advice}"


def _stop_on_signals() -> StopEvent:
    stopped = StopEvent()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, stop)
    return stopped
