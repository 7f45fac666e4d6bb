"""Fuse a recording again, without process, socket or clock: `replay`."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import cycle, islice
from typing import Final, Self

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

Told = Cut | Begin | Missed | End
INPUTS: Final = tuple(f"{kind}/*" for kind in INPUT_KINDS)
_MAX_WORKERS: Final = 2
_BATCH: Final = 8
"""Windows in a row for one worker: each begins with a second of sound that another has just transformed."""


def replay(
    source: Source, profile: Profile | str | None = None, *, workers: int | None = None
) -> Iterator[FusedState]:
    """Yield the states that a recording leads to, their measured fields at the defaults.

    Where the recording holds the journals of a fusion that was configured alike, its inputs are taken in
    the order of the live run, and what it shed is shed again: the states are those of the live run, byte
    for byte. States which the recording does not hold everything for are left out, such as the first
    second of a recording that began in the middle. Without journals every window is concluded.

    Args:
        source: a session file, or messages in recorded order.
        profile: the one to fuse with, or its name; without it the one it was recorded with.
        workers: how many engines share the work, each in a thread of its own; the states do not depend on it.

    Raises:
        SessionError: the file cannot be read.
        ProfileError: the profile has no [fusion] table, or its models cannot be built.
        WeightsError: weights are missing.
    """
    with Recording(source) as recording:
        config = fusion_of(load(profile) if isinstance(profile, str) else profile or recording.profile)
        known = survey_of(recording, config)
        with Crew(config, known, workers) as crew:
            seq = 0
            for step, state in crew.conclude(cuts(recording, config, known)):
                if isinstance(step, Begin):
                    seq = 0
                elif isinstance(step, Cut):
                    if state is not None:
                        yield state.model_copy(update={"seq": seq})
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


def cuts(recording: Recording, config: FusionConfig, known: Survey) -> Iterator[Told]:
    """Cut the windows of a recording: as journaled where it was, else as they came."""
    if known.runs:
        told = steps(recording.messages(*INPUTS, "journal/*"), journals_of(config))
        return cut_as_journaled(told, config, lambda source: known.shed[source])
    on_clock = next(recording.messages("clock/*"), None) is not None
    return cut_as_arrived(recording.messages("*"), config, on_clock=on_clock)


class Crew:
    """Engines that share the windows of a recording; what they conclude depends on the windows alone."""

    def __init__(self, config: FusionConfig, known: Survey, workers: int | None = None) -> None:
        """Build the engines, with the live run's device and threads where this machine has them.

        Raises:
            ProfileError, WeightsError: see `build_engine`.
        """
        threads = int(known.facts.get("threads", config.threads))
        device = str(known.facts.get("device", config.device))
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = config.device
        use_threads(threads)
        like = config.model_copy(update={"device": device})
        self.engines = [build_engine(like, clock=lambda: 0)]
        if workers is None:
            spare = (os.cpu_count() or 1) // torch.get_num_threads()
            workers = 1 if self.engines[0].device.type != "cpu" else max(1, min(_MAX_WORKERS, spare))
        self.engines += [build_engine(like, clock=lambda: 0) for _ in range(workers - 1)]
        # torch keeps its number of threads by thread
        self._pools = [ThreadPoolExecutor(1, "engine", use_threads, (threads,)) for _ in self.engines]

    def conclude(self, told: Iterable[Told]) -> Iterator[tuple[Told, FusedState | None]]:
        """Yield everything in its order, each window that can be concluded with its state, seq 0."""
        iterator = iter(told)
        at_work: deque[Future[list[tuple[Told, FusedState | None]]]] = deque()
        for engine, pool in cycle(zip(self.engines, self._pools, strict=True)):
            batch = list(islice(iterator, _BATCH))
            if batch:
                at_work.append(pool.submit(_conclude, engine, batch))
            if not batch or len(at_work) > 2 * len(self.engines):
                if not at_work:
                    return
                yield from at_work.popleft().result()

    def close(self) -> None:
        """End the threads."""
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _conclude(engine: Engine, batch: list[Told]) -> list[tuple[Told, FusedState | None]]:
    return [
        (
            one,
            concluded(engine.run(one.window, shed=one.shed)) if isinstance(one, Cut) and one.whole else None,
        )
        for one in batch
    ]
