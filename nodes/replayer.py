"""Publishes the recorded session of a profile: `python -P -m perception.nodes.replayer PROFILE`."""

import threading

from perception.errors import ProfileError
from perception.profile import Profile
from perception.session.player import Playback, play
from perception.session.readers import expected_readers

from .node import main


def run(profile: Profile, name: str, stopped: threading.Event) -> None:
    """Wait for the readers, then publish until the session ends or the node is stopped."""
    config = profile.replay
    if config is None:
        raise ProfileError("the profile has no [replay] table")
    playback = Playback(
        rate=config.rate,
        loop=config.loop,
        start_s=config.start_s,
        end_s=config.end_s,
        topics=config.topics,
    )
    play(
        config.file,
        playback,
        domain=profile.domain,
        stopped=stopped,
        nodes=expected_readers(profile),
        wait=config.wait,
    )


if __name__ == "__main__":
    main("replayer", run, named=False)
