"""Fuse a recording again, without process, socket or clock: `replay`."""

from collections.abc import Callable, Iterator
from typing import Final

import torch

from perception.errors import ProfileError
from perception.fusion.core import FusionCore
from perception.fusion.engine import Engine, build_engine, use_threads
from perception.messages import FusedState, Journal
from perception.profile import FusionConfig, Profile, load
from perception.session.compare import concluded
from perception.session.cutting import Cut, cut_as_arrived, cut_as_journaled
from perception.session.journal import INPUT_KINDS, Begin, End, Missed, Survey, steps, survey
from perception.session.recording import Recording, Source

INPUTS: Final = tuple(f"{kind}/*" for kind in INPUT_KINDS)
_EVERYTHING: Final = ("*",)


def replay(source: Source, profile: Profile | str | None = None) -> Iterator[FusedState]:
    """Yield the states that a recording leads to, their measured fields at the defaults.

    Where the recording holds the journals of a fusion that was configured alike, its inputs are taken in
    the order of the live run, and what it shed is shed again: the states are those of the live run, byte
    for byte. States which the recording does not hold everything for are left out, such as the first
    second of a recording that began in the middle. Without journals every window is concluded.

    Args:
        source: a session file, or messages in recorded order.
        profile: the one to fuse with, or its name; without it the one it was recorded with.

    Raises:
        SessionError: the file cannot be read.
        ProfileError: the profile has no [fusion] table, or its models cannot be built.
        WeightsError: weights are missing.
    """
    with Recording(source) as recording:
        config = fusion_of(load(profile) if isinstance(profile, str) else profile or recording.profile)
        known = survey_of(recording, config)
        engine = engine_like(config, known)
        seq = 0
        for step in cuts(recording, config, known):
            if isinstance(step, Begin):
                seq = 0
            elif isinstance(step, Cut):
                if step.whole:
                    yield conclude(engine, step, seq)
                seq += 1


def fusion_of(profile: Profile) -> FusionConfig:
    """Return the `[fusion]` table; ProfileError if there is none."""
    if profile.fusion is None:
        raise ProfileError("the profile has no [fusion] table, so there is nothing to replay")
    return profile.fusion


def journals_of(config: FusionConfig) -> Callable[[Journal], bool]:
    """Return what tells the journals of a fusion that cuts and publishes as this one."""
    topic, config_hash = f"state/{config.name}", FusionCore(config).config_hash
    return lambda journal: (
        journal.state_topic == topic
        and journal.before is not None
        and journal.before.config_hash == config_hash
    )


def survey_of(recording: Recording, config: FusionConfig) -> Survey:
    """Go through the journals of the fusion in question."""
    return survey(recording.messages("journal/*", "health/*"), journals_of(config))


def cuts(recording: Recording, config: FusionConfig, known: Survey) -> Iterator[Cut | Begin | Missed | End]:
    """Cut the windows of a recording: as journaled where it was, else as they came."""
    if known.runs:
        told = steps(recording.messages(*INPUTS, "journal/*"), journals_of(config))
        return cut_as_journaled(told, config, lambda source: known.shed[source])
    on_clock = next(recording.messages("clock/*"), None) is not None
    return cut_as_arrived(recording.messages(*_EVERYTHING), config, on_clock=on_clock)


def engine_like(config: FusionConfig, known: Survey) -> Engine:
    """Build the engine, with the live run's device and threads where this machine has them."""
    use_threads(int(known.facts.get("threads", config.threads)))
    device = str(known.facts.get("device", config.device))
    if device.startswith("cuda") and not torch.cuda.is_available():
        device = config.device
    return build_engine(config.model_copy(update={"device": device}), clock=lambda: 0)


def conclude(engine: Engine, cut: Cut, seq: int) -> FusedState:
    """Run the models on a window; what is measured stands at its default."""
    state = engine.run(cut.window, shed=cut.shed)
    return concluded(state.model_copy(update={"seq": seq}))
