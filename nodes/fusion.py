"""Runs the fusion of a profile: `python -P -m perception.nodes.fusion PROFILE`."""

import threading

from perception.graph.fusion_process import FusionProcess
from perception.profile import Profile

from .node import main


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Fuse until stopped, at once or after a takeover."""
    FusionProcess(profile, name, stopped).run()


if __name__ == "__main__":
    main("fusion", run, named=False)
