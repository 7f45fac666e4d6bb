"""A session that an earlier version recorded opens, decodes and verifies.

`golden/demo.mcap`: three seconds of `demo` at 160x120 and 10 Hz, recorded by the first version, whose
files had no zero. It is never written again; another version adds a file of its own.
"""

from pathlib import Path

import pytest

from perception.messages import FusedState
from perception.session import Session, read
from perception.session.recompute.engines import replay
from perception.session.recompute.verify import verify

SESSION = Path(__file__).parent / "golden" / "demo.mcap"
COMPARED = 15
"""States whose inputs are all in the file: it begins and ends in the middle of a run."""


def test_it_opens_and_every_message_decodes() -> None:
    with Session(SESSION) as session:
        assert session.damage == []
        assert session.metadata["profile"]["domain"] == "demo"
        counts = dict(session.counts)
    assert counts["camera/front"] == counts["state/fused"] == 30
    assert len(list(read(SESSION))) == sum(counts.values()) == 181


def test_it_verifies() -> None:
    """Every byte, with the same processor and packages; else the differences are named."""
    verdict = verify(SESSION)
    assert verdict.obstacles == [] or verdict.notes, verdict.obstacles
    assert verdict.equal + verdict.different == COMPARED
    assert verdict.equal == COMPARED or verdict.notes, str(verdict.first)


def test_its_states_come_out_alike_on_any_machine() -> None:
    recorded = {one.header.tick: one.header for one in read(SESSION) if isinstance(one.header, FusedState)}
    computed = list(replay(SESSION))
    assert len(computed) >= COMPARED
    for state in computed:
        expected = recorded[state.tick]
        assert state.fused.label == expected.fused.label
        assert state.fused.probabilities == pytest.approx(expected.fused.probabilities, abs=1e-3)
        assert {name: item.presence for name, item in state.modalities.items()} == {
            name: item.presence for name, item in expected.modalities.items()
        }
