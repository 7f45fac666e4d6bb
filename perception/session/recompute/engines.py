"""Recompute the states of a recording, without process, socket or clock: `replay`.

Rules. The caller's thread cuts the windows, runs the heads in their order and owns everything here except the
engines' encoders. Each engine has a thread of its own, which encodes batches of windows; the caller's thread
runs the head of the first engine. What an engine encodes depends on the window alone, so the number of
engines changes no state. `close` waits for the threads.
"""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import torch
from msgspec import structs

from perception.errors import SessionError, WeightsError, located
from perception.fusion.build import build_engine, cores, use_threads
from perception.fusion.core import FusionCore
from perception.fusion.engine import Encoded, Engine
from perception.messages import FusedState, Journal
from perception.models.checkpoint import Head, head_hash, load_head
from perception.models.device import exists
from perception.models.precision import as_published
from perception.profile import FusionConfig, Profile, load
from perception.session.recompute.arrivals import near
from perception.session.recompute.compare import without_measured
from perception.session.recompute.cutting import Cut, account, cut_as_arrived, cut_as_journaled
from perception.session.recompute.foreign import MAX_THREADS, without_names
from perception.session.recompute.journal import INPUT_KINDS, Begin, End, Missed, Survey, steps, survey
from perception.session.recompute.source import Recording, Source
from perception.units import MILLISECOND_NS, Counts
from perception.units.closing import Closing

_LOG: Final = logging.getLogger(__name__)
CutStep = Cut | Begin | Missed | End
INPUTS: Final = tuple(f"{kind}/*" for kind in INPUT_KINDS)
_MAX_WORKERS: Final = 2
_BATCH: Final = 8
"""Consecutive windows per engine: it transforms a second of sound before the first, as another engine did."""


def replay(
    source: Source,
    profile: Profile | str | None = None,
    *,
    workers: int | None = None,
    counts: Counts | None = None,
) -> Iterator[FusedState]:
    """Yield the recomputed states of a recording, their measured fields at the defaults.

    If the recording contains the journals of a fusion with the same configuration, its inputs come in the
    order of the live run, and the same windows are shed: the states equal those of the live run, byte for
    byte. States whose inputs are not all recorded are left out, such as the first second of a recording that
    began in the middle, and states whose head is not found. Without journals every window is computed.

    Args:
        source: a session file, or messages in recorded order.
        profile: the one to fuse with, or its name, with its own head for every window; None: the one it was
            recorded with, and the heads that were swapped in.
        workers: how many engines share the work, each in a thread of its own; the states do not depend on it.
        counts: counters of what did not enter the windows, or was late; None: that is logged at the end.

    Raises:
        SessionError: the file cannot be read, or there is not one state.
        ProfileError: the profile has no [fusion] table, or its models cannot be built.
        WeightsError: weights are missing.
    """
    with located(profile if isinstance(profile, str) else None), Recording(source) as recording:
        known = load(profile) if isinstance(profile, str) else profile or recording.profile
        config = known.required_fusion()
        counted: Counts = defaultdict(Counter) if counts is None else counts
        yield from states(recording, config, counted, workers=workers, swapped=profile is None)
        for line in account(counted) if counts is None else ():
            _LOG.warning("%s: %s", recording.name, line)


def states(
    recording: Recording,
    config: FusionConfig,
    counts: Counts,
    *,
    workers: int | None = None,
    swapped: bool = False,
) -> Iterator[FusedState]:
    """Yield the recomputed states of a recording, as `replay` does.

    Args:
        recording: opened.
        config: the fusion.
        counts: counters of what did not enter the windows, or was late.
        workers: as for `replay`.
        swapped: whether heads that were swapped in while it was recorded are used.

    Raises:
        SessionError: there is not one state.
        ProfileError, WeightsError: see `replay`.
    """
    known = survey_of(recording, config)
    with EnginePool(config, known, workers, heads=() if swapped else None) as pool:
        seq = number = 0
        for step, state in pool.infer(cuts(recording, config, known, counts)):
            if isinstance(step, Begin):
                seq = 0
            elif isinstance(step, Cut):
                if state is not None:
                    number += 1
                    yield structs.replace(state, seq=seq)
                seq += 1
    if not number:
        raise SessionError(f"{recording.name}: no state computed: {_why_none(config, known, counts)}")


def _why_none(config: FusionConfig, known: Survey, counts: Counts) -> str:
    if lines := account(counts, unread=True):
        return "; ".join(lines)
    if known.runs:
        return "the inputs of every state are recorded in part only"
    topics = ", ".join(item.topic for item in config.inputs.values())
    return f"the recording of {topics} is shorter than a tick of {config.hop_ms:g} ms"


def journals_of(config: FusionConfig) -> Callable[[Journal], bool]:
    """Return a function: is a journal of a fusion with the same windows and state topic as this one?"""
    topic, config_hash = f"state/{config.name}", FusionCore(config).config_hash
    return lambda journal: (
        journal.state_topic == topic
        and journal.before is not None
        and journal.before.config_hash == config_hash
    )


def survey_of(recording: Recording, config: FusionConfig) -> Survey:
    """Return a summary of the journals of this fusion."""
    known = survey(recording.messages("journal/*", "health/*"), journals_of(config))
    return known if recording.trust else without_names(known)


def cuts(
    recording: Recording, config: FusionConfig, known: Survey, counts: Counts | None = None
) -> Iterator[CutStep]:
    """Cut the windows of a recording: as journaled, or by arrival without journals; count what is refused."""
    if known.runs:
        journaled = steps(recording.messages(*INPUTS, "journal/*"), journals_of(config))
        return cut_as_journaled(journaled, config, lambda source: known.shed[source], counts)
    tick = next(recording.messages("clock/*"), None)
    live = tick is not None and near(tick, round(config.max_leap_ms * MILLISECOND_NS))
    return cut_as_arrived(recording.messages("*"), config, counts, on_clock=live)


class Heads:
    """The heads that were active in a recording, as far as they are found."""

    def __init__(self, own: Head, known: Survey, folders: Iterable[Path | str] = ()) -> None:
        """Load them from the folders that the recording names, and `folders`; `own` is the profile's head."""
        self._known = known
        self._by_hash = {head_hash(own): own}
        self._own = own
        swapped = [use for uses in known.heads.values() for use in uses if use.from_tick is not None]
        for folder in [*folders, *(use.folder for use in swapped if use.folder)]:
            with suppress(WeightsError):
                head = load_head(folder).requires_grad_(False)
                self._by_hash.setdefault(head_hash(head), head)
        self.missing = [use for use in swapped if use.head_hash not in self._by_hash]
        """Heads swapped in while it was recorded that are not found."""

    def at(self, source: str, tick: int) -> Head | None:
        """Return the head that computed a window, None if it is not found.

        For the head that a fusion began with this is the profile's, even with other weights.
        """
        use = self._known.head_at(source, tick)
        begun = use is None or use.from_tick is None
        return self._by_hash.get(use.head_hash, self._own if begun else None) if use else self._own


class EnginePool(Closing):
    """Engines that share the windows of a recording; see the rules of this module.

    They have the live run's device and threads where this machine has them.

    Args:
        config: the fusion.
        known: summary of the journals.
        workers: how many engines, each with a thread; 0: one, in the caller's thread.
        build: builds an engine, as `build_engine`.
        heads: folders of heads that were swapped in, besides those that the recording names. None: the
            profile's head computes every window.

    Raises:
        ProfileError, WeightsError: see `build_engine`.
    """

    def __init__(
        self,
        config: FusionConfig,
        known: Survey,
        workers: int | None = None,
        *,
        heads: Iterable[Path | str] | None = (),
        build: Callable[..., Engine] = build_engine,
    ) -> None:
        named = known.facts.get("threads", config.threads)
        threads = min(int(named), MAX_THREADS) if isinstance(named, int | float) else config.threads
        device = str(known.facts.get("device", config.device))
        if not exists(device):
            device = config.device
        use_threads(threads)
        like = as_published(config, known.facts).model_copy(update={"device": device})
        self.engines = [build(like, clock=lambda: 0)]
        """Each one's thread owns its encoders; the caller's thread owns head and `recent` of the first."""
        if workers is None:
            spare = cores() // torch.get_num_threads()
            workers = 1 if self.engines[0].device.type != "cpu" else max(1, min(_MAX_WORKERS, spare))
        like = self.engines[0].config  # number formats that were measured there apply to all
        self.engines += [build(like, clock=lambda: 0) for _ in range(workers - 1)]
        if self.engines[0].device.type == "cuda":
            self.engines[0].warm_up()  # so that it uses CUDA graphs, as the live engine did
        # torch stores its number of threads per thread
        self._executors = [
            ThreadPoolExecutor(1, "engine", use_threads, (threads,)) for _ in self.engines if workers
        ]
        self._threads = threads
        self._last_tick: int | None = None
        self._incomplete_tick: int | None = None
        """The last tick that the live run computed and whose inputs are not all recorded."""
        engine = self.engines[0]
        self.heads = Heads(engine.head, known if heads is not None else Survey(), heads or ())

    def infer(self, steps: Iterable[CutStep]) -> Iterator[tuple[CutStep, FusedState | None]]:
        """Yield all steps in their order, each window that can be computed with its state, seq 0."""
        use_threads(self._threads)
        if not self._executors:
            for one in steps:
                yield one, self._infer(one, _encode(self.engines[0], [one])[0][1])
            return
        iterator = iter(steps)
        at_work: deque[Future[list[tuple[CutStep, Encoded | None]]]] = deque()
        for engine, pool in cycle(zip(self.engines, self._executors, strict=True)):
            batch = list(islice(iterator, _BATCH))
            if batch:
                at_work.append(pool.submit(_encode, engine, batch))
            if not batch or len(at_work) > 2 * len(self.engines):
                if not at_work:
                    return
                for one, encoded in at_work.popleft().result():
                    yield one, self._infer(one, encoded)

    def _infer(self, one: CutStep, encoded: Encoded | None) -> FusedState | None:
        """Run the head on the encodings of a window; called in the order of the windows."""
        engine = self.engines[0]
        if isinstance(one, Begin):
            engine.recent.clear()
            self._incomplete_tick = self._last_tick = None
        if not isinstance(one, Cut):
            return None
        tick, last = one.window.tick, self._last_tick
        self._last_tick = tick
        if last is None or tick > last + 1:
            self._incomplete_tick = None  # a head's memory ends at a gap
        if encoded is None:
            self._incomplete_tick = tick
            return None
        head = self.heads.at(one.source, tick)
        if head is not None and head is not engine.head:
            engine.use(head.to(engine.device))
        state = without_measured(engine.infer(one.window, encoded, shed=one.shed))
        blind = self._incomplete_tick is not None and self._incomplete_tick > tick - engine.head.ticks
        return None if head is None or blind else state

    def close(self) -> None:
        """Drop work not yet begun and wait until the threads have ended."""
        for pool in self._executors:
            pool.shutdown(cancel_futures=True)


def _encode(engine: Engine, batch: list[CutStep]) -> list[tuple[CutStep, Encoded | None]]:
    return [(one, engine.encode(one.window) if isinstance(one, Cut) and one.whole else None) for one in batch]
