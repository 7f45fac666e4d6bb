"""Recomputes the states of a recording and compares them with the recorded ones, every byte: `verify`.

Rules. One thread; the engines' threads belong to `EnginePool`. Recorded states and cuts both come in the
order of ticks, one live run after the other, so one pass compares them. Each recorded state is counted once:
equal, different, or skipped with its reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from msgspec import structs

from perception.errors import PerceptionError
from perception.fusion.build import build_engine
from perception.fusion.engine import Engine
from perception.io.progress import progress
from perception.messages import FusedState, ModelInfo, as_published
from perception.models.device import exists
from perception.profile import FusionConfig, Profile
from perception.session.file.reader import matches
from perception.session.recompute.compare import (
    MISSING,
    Difference,
    first_difference,
    unmeasured_bytes,
    unmeasured_fields,
)
from perception.session.recompute.cutting import Cut
from perception.session.recompute.engines import CutStep, EnginePool, Heads, cuts, survey_of
from perception.session.recompute.journal import Begin, End, Missed, Survey
from perception.session.recompute.source import Recording, Source
from perception.session.recorder import MODEL

SAME: Final = 0
DIFFERENT: Final = 1
CANNOT_VERIFY: Final = 2
_MAX_NAMED: Final = 20


class Divergence(NamedTuple):
    """A recomputed state that differs from the recorded one."""

    topic: str
    seq: int
    tick: int
    difference: Difference

    def __str__(self) -> str:
        return f"{self.topic} seq {self.seq} (tick {self.tick}): {self.difference}"

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**self._asdict(), "difference": asdict(self.difference), "text": str(self)}


@dataclass(slots=True)
class Verdict:
    """The result of a verification."""

    states: int = 0
    """States in the recording."""
    equal: int = 0
    different: int = 0
    first: Divergence | None = None
    models: Counter[str] = field(default_factory=Counter)
    """States in the recording by the hash of the weights that computed them."""
    skipped: Counter[str] = field(default_factory=Counter)
    """States that could not be compared, by reason."""
    missed: list[Missed] = field(default_factory=list)
    """The first messages that the recorder missed."""
    obstacles: list[str] = field(default_factory=list)
    """Why it cannot be verified, or in part only."""
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 the same, 1 different, 2 cannot verify."""
        if self.different:
            return DIFFERENT
        return CANNOT_VERIFY if self.obstacles else SAME

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        first = None if self.first is None else self.first.as_dict()
        counts = {"models": dict(self.models), "skipped": dict(self.skipped)}  # asdict spoils a Counter
        return {**asdict(self), **counts, "first": first, "exit_code": self.exit_code}

    def lines(self) -> Iterator[str]:
        """Yield the verdict as lines of text."""
        word = ("same", "different", "cannot verify")[self.exit_code]
        compared = self.equal + self.different
        yield f"{word}: {self.equal} of {compared} states compared are equal, {self.states} recorded"
        if self.first is not None:
            yield f"first divergence: {self.first}"
        for reason, count in self.skipped.items():
            yield f"not compared: {count} states: {reason}"
        yield from self.obstacles
        for missed in self.missed:
            last = f"..{missed.seq + missed.count - 1}" if missed.count > 1 else ""
            yield f"the recorder missed {missed.topic} seq {missed.seq}{last} of {missed.source}"
        yield from self.notes


def verify(
    source: Source,
    profile: Profile | None = None,
    *,
    workers: int | None = None,
    heads: Iterable[Path | str] = (),
    build: Callable[..., Engine] = build_engine,
    hidden: bool = False,
    trust: bool = True,
) -> Verdict:
    """Recompute the states of a recording and compare them with the recorded ones.

    Args:
        source: a session file, or messages in recorded order.
        profile: the one it was recorded with, if the file does not contain it.
        workers: as for `replay`; 0: one engine, without a thread.
        heads: folders of heads that were swapped in, besides those that the recording names.
        build: builds an engine.
        hidden: show no progress.
        trust: whether to open files and models that the recording names; False: only what ships.

    Raises:
        SessionError: the file cannot be read, or does not contain its profile.
        ProfileError: the profile has no [fusion] table, or its models cannot be built.
        WeightsError: weights are missing.
    """
    with Recording(source, trust=trust) as recording:
        config = (profile or recording.profile).required_fusion()
        known = survey_of(recording, config)
        verdict = Verdict()
        if not known.runs:
            verdict.obstacles.append(_no_journal(recording, config))
        elif (problem := _missing_device(known)) is not None:
            verdict.obstacles.append(problem)
        else:
            with EnginePool(config, known, workers, heads=heads, build=build) as pool:
                _compare(recording, config, known, pool, verdict, hidden=hidden)
        if not (verdict.equal or verdict.different or verdict.obstacles):
            verdict.obstacles.append(f"it contains no state/{config.name} that could be compared")
        verdict.notes += _models(recording, verdict)
        verdict.notes += recording.damage
        return verdict


def _compare(
    recording: Recording,
    config: FusionConfig,
    known: Survey,
    pool: EnginePool,
    verdict: Verdict,
    *,
    hidden: bool,
) -> None:
    """Compare the states that a pool of engines computes with the recorded ones."""
    verdict.obstacles += [
        f"cannot verify from tick {use.from_tick}: head {use.head_hash[:12]} not found, "
        f"neither in {use.folder or 'a folder that the file names (see --trust)'} nor in one given by --head"
        for use in pool.heads.missing
    ]
    comparison = _Comparison(recording, config, known, pool.heads, verdict)
    with progress("verifying states", hidden=hidden) as advance:
        for step, state in pool.infer(cuts(recording, config, known)):
            comparison.take(step, state)
            advance()
    comparison.finish()
    verdict.notes += _environment_differences(known, pool.engines[0]) if verdict.different else []


class _Comparison:
    """Compares cuts with recorded states; both come in the order of ticks, one live run after the other."""

    def __init__(
        self,
        recording: Recording,
        config: FusionConfig,
        known: Survey,
        heads: Heads,
        verdict: Verdict,
    ) -> None:
        self._topic = f"state/{config.name}"
        self._known = known
        self._heads = heads
        self._verdict = verdict
        self._states = recording.messages(self._topic)
        self._next = self._read()
        self._source = ""
        self._sources: set[str] = set()
        self._reason = "the beginning of the fusion is not recorded"
        self._from_tick: int | None = None
        """First tick of the part that is journaled without a gap; None outside of one."""
        self._settled_ns = 0
        self._cut_count = 0
        self._first_seq: int | None = None

    def take(self, step: CutStep, state: FusedState | None) -> None:
        """Add one cut and its recomputed state, or another step."""
        if isinstance(step, Begin):
            self._begin(step)
        elif isinstance(step, Missed):
            self._add_missed(step)
        elif isinstance(step, End):
            self._from_tick, self._reason = None, "the recording ends before all of their inputs"
        else:
            self._compare_cut(step, state)

    def finish(self) -> None:
        """Count the recorded states that are left."""
        if self._from_tick is not None:
            self._reason = "the recording ends before all of their inputs"
        while self._next is not None:
            self._skip(self._reason)

    def _begin(self, step: Begin) -> None:
        source = step.journal.state_source
        if source != self._source:
            while self._next is not None and self._next.source in self._sources:
                self._skip("the fusion ended before it journaled their inputs")
        self._source = source
        self._sources.add(source)
        mark = step.mark
        self._reason = step.reason
        self._from_tick = 0 if mark is None else mark.next_tick
        self._settled_ns = self._known.settled_ns(step.journal)
        self._cut_count, self._first_seq = 0, None

    def _add_missed(self, step: Missed) -> None:
        if not self._verdict.obstacles:
            self._verdict.obstacles.append("not all that decided the states was recorded")
        if len(self._verdict.missed) < _MAX_NAMED:
            self._verdict.missed.append(step)
        self._from_tick, self._reason = None, "something before them was not recorded"

    def _compare_cut(self, cut: Cut, actual: FusedState | None) -> None:
        tick = cut.window.tick
        while (state := self._state_of(cut.source)) is not None and state.tick < tick:
            if self._from_tick is not None and state.tick >= self._from_tick:
                self._differ(state, Difference("tick", state.tick, MISSING))
                self._next = self._read()
            else:
                self._skip(self._reason)
        if state is not None and state.tick == tick:
            if self._first_seq is None:
                self._first_seq = 0 if self._from_tick == 0 else state.seq - self._cut_count
            if actual is None:
                absent = cut.whole and not self._heads.at(cut.source, tick)
                self._skip("their head is not found" if absent else self._reason)
            elif (reason := self._obstacle(state, actual.model)) is not None:
                self._skip(reason)
            else:
                self._compare_state(state, structs.replace(actual, seq=self._first_seq + self._cut_count))
                self._next = self._read()
        # a state that was published and not recorded has a number too
        self._cut_count += 1

    def _obstacle(self, state: FusedState, model: ModelInfo) -> str | None:
        """Return why a recorded state cannot be compared, None if it can."""
        if state.sent_ns > self._settled_ns:
            return "no journal names what was shed for them"
        return None if self._is_comparable(state.model, model) else "another model computed them"

    def _compare_state(self, state: FusedState, actual: FusedState) -> None:
        same = unmeasured_bytes(state) == unmeasured_bytes(actual)
        difference = None if same else first_difference(unmeasured_fields(state), unmeasured_fields(actual))
        if difference is None:
            self._verdict.equal += 1
        else:
            self._differ(state, difference)

    def _differ(self, state: FusedState, difference: Difference) -> None:
        self._verdict.different += 1
        if self._verdict.first is None:
            self._verdict.first = Divergence(self._topic, state.seq, state.tick, difference)

    def _is_comparable(self, recorded: ModelInfo, model: ModelInfo) -> bool:
        if recorded == model:
            return True
        for name in ModelInfo.__struct_fields__:
            was, here = getattr(recorded, name), getattr(model, name)
            text = f"the model's {name.replace('_', ' ')} was {was[:12]}…, here it is {here[:12]}…"
            if was != here and text not in self._verdict.obstacles:
                self._verdict.obstacles.append(text)
        return False

    def _state_of(self, source: str) -> FusedState | None:
        while self._next is not None and self._next.source not in self._known.runs:
            self._skip("no journal names their inputs")
        return self._next if self._next is not None and self._next.source == source else None

    def _skip(self, reason: str) -> None:
        self._verdict.skipped[reason] += 1
        self._next = self._read()

    def _read(self) -> FusedState | None:
        message = next(self._states, None)
        if message is None or not isinstance(message.header, FusedState):
            return None
        self._verdict.states += 1
        self._verdict.models[message.header.model.weights_hash] += 1
        return as_published(message.header)


def _no_journal(recording: Recording, config: FusionConfig) -> str:
    topics = sorted({message.topic for message in recording.messages("journal/*")})
    if topics:
        return (
            f"it contains no journal of a fusion with this grid, these inputs and the name '{config.name}': "
            f"give the profile that {', '.join(topics)} had"
        )
    if _was_to_be_recorded(recording, ("journal/fusion", "clock/fusion")) and not any(
        recording.messages(f"state/{config.name}")
    ):
        return (
            f"it contains no state/{config.name}: the fusion published none while it was recorded, it may "
            "still have been loading its models; record again, --seconds counts from the first state"
        )
    return "no journal: record journal/* and clock/* too, then it can be verified"


def _models(recording: Recording, verdict: Verdict) -> Iterator[str]:
    """Yield which weights computed the states, if there were several or the metadata does not name them."""
    noted = [value for name, value in recording.metadata.items() if name.startswith(f"{MODEL} ")]
    named = {value.get("weights_hash") for value in noted if isinstance(value, dict)}
    for weights, count in verdict.models.items() if named else ():
        unnamed = "" if weights in named else ", which the metadata does not name"
        if unnamed or len(verdict.models) > 1:
            yield f"{count} states are of weights {weights[:12]}{unnamed}"


def _was_to_be_recorded(recording: Recording, topics: Iterable[str]) -> bool:
    """Return whether the profile in the file records all of these topics."""
    try:
        requested = recording.profile.recording
    except PerceptionError:
        return False
    return requested is not None and all(matches(topic, requested.topics) for topic in topics)


def _missing_device(known: Survey) -> str | None:
    device = str(known.facts.get("device", "cpu"))
    if not exists(device):
        return f"it was computed on {device}, which this machine does not have"
    return None


def _environment_differences(known: Survey, engine: Engine) -> list[str]:
    """Return what differs here from the live run, besides the code."""
    here = engine.facts()
    return [
        f"{name} was {was}, here it is {here[name]}"
        for name, was in known.facts.items()
        if name in here and was != here[name]
    ]
