"""Label files as annotation programs write them, and what is wrong with them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perception.errors import SessionError
from perception.messages import Label, TextCommand
from perception.session import labels
from perception.session.labels import Span, from_commands
from perception.units import SECOND_NS


def spans(tmp_path: Path, name: str, text: str) -> list[tuple[float, float, str, str]]:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    return [(s.start_ns / 1e9, s.end_ns / 1e9, s.name, s.track) for s in labels.read(file)]


def test_audacity_tracks_with_spectral_lines(tmp_path: Path) -> None:
    text = "0.500000\t1.250000\twave\n\\\t100.0\t200.0\n2,5\t3\tcome here\n"
    assert spans(tmp_path, "a.txt", text) == [(0.5, 1.25, "wave", "truth"), (2.5, 3.0, "come here", "truth")]


def test_csv_with_a_header_in_any_order(tmp_path: Path) -> None:
    text = "class,end,start,track\nleft,2,1,hand\nright,4,3,\n"
    assert spans(tmp_path, "a.csv", text) == [(1, 2, "left", "hand"), (3, 4, "right", "truth")]


@pytest.mark.parametrize(
    "text",
    [
        "Tier\tBegin Time - ss.msec\tEnd Time - ss.msec\tAnnotation\nhand\t1.5\t2.5\tleft\n",
        "hand\t\t00:00:01.500\t00:00:02.500\t00:00:01.000\tleft\n",
        "hand\t\t00:00:01.500\t1.5\t00:00:02.500\t2.5\tleft\n",
    ],
)
def test_elan_exports(tmp_path: Path, text: str) -> None:
    assert spans(tmp_path, "a.tsv", text) == [(1.5, 2.5, "left", "hand")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1.0\t2.0\n", "line 1.*has no class"),
        ("1\t2\ta\n3\t2\tb\n", "line 2.*ends before it starts"),
        ("1\t2\ta\nx\t2\tb\n", "line 2: not a span"),
        ("1\t2\ta\n\\\t100\t200\n\n3\t2\tb\n", "line 4.*ends before it starts"),
        ("what is this\n", "line 1: expected"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(SessionError, match=problem):
        spans(tmp_path, "a.txt", text)


times = st.integers(0, 10**6).map(lambda ms: ms * 1_000_000)


@given(st.lists(st.tuples(times, times, st.sampled_from(["a", "b c", "d"])), max_size=8))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:  # type: ignore[type-arg]
    given_spans = sorted(Span(min(a, b), max(a, b), name) for a, b, name in rows)
    file = tmp_path_factory.mktemp("labels") / "a.txt"
    lines = [f"{span.start_ns / 1e9:.6f}\t{span.end_ns / 1e9:.6f}\t{span.name}\n" for span in given_spans]
    file.write_text("".join(lines))
    assert labels.read(file) == given_spans


def test_messages_marks_and_paths_become_spans() -> None:
    published = [Label(stamp_ns=5, start_ns=5, end_ns=end, name="a", track="t") for end in (7, 9)]
    assert labels.from_messages(published) == [Span(5, 9, "a", "t")]
    assert labels.from_marks([(3, "b"), (1, "a"), (5, "")], 9) == [Span(1, 3, "a"), Span(3, 5, "b")]
    root = Path("/data")
    assert labels.class_of_path(root / "Dog_bark" / "1.ogg", root) == "Dog_bark"
    assert labels.class_of_path(root / "7_theo_3.wav", root) == "7"


def test_overlaps_empty_spans_and_imbalance_are_told() -> None:
    second = SECOND_NS
    long = labels.check([Span(0, 9, "a"), Span(1, 2, "b"), Span(5, 6, "c")]).problems
    assert [problem.split("'")[3] for problem in long if "overlaps" in problem] == ["b", "c"]
    found = labels.check(
        [Span(0, 60 * second, "a"), Span(59 * second, 61 * second, "b"), Span(70, 80, "c", "other")]
    )
    assert found.counts["truth"] == {"a": 1, "b": 1}
    assert any("overlaps" in problem for problem in found.problems)
    assert any("'b' has 2.0 s" in problem for problem in found.problems)
    assert not any("other" in problem for problem in found.problems)


def test_the_class_in_force() -> None:
    track = [Span(0, 10, "a"), Span(5, 8, "b"), Span(0, 99, "x", "other")]
    times_ns = np.array([0, 5, 8, 10])
    assert labels.indices_at(track, times_ns, ("a", "b")).tolist() == [0, 1, 0, -1]
    assert labels.indices_at(track, times_ns, ("b",)).tolist() == [-1, 0, -1, -1]
    assert labels.indices_at([], times_ns, ("b",)).tolist() == [-1] * 4


def test_text_commands_are_labels_until_the_next_one() -> None:
    said = [
        TextCommand(stamp_ns=5, text="come here"),
        TextCommand(stamp_ns=9, text="come h", final=False),
        TextCommand(stamp_ns=20, text="stop "),
    ]
    assert from_commands(said, 50) == [
        Span(5, 20, "come here", "commands"),
        Span(20, 50, "stop", "commands"),
    ]
