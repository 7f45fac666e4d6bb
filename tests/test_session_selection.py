"""What an import takes of a source, and how it is named: the same for every kind of source."""

import pytest

from perception.errors import SessionError
from perception.session.convert.selection import EVERYTHING, Selection

CAMERAS = [("/left/image_raw", "camera/left"), ("/right/image_raw", "camera/right")]
BAG = [*CAMERAS, ("/mic/audio", "microphone/mic")]


def test_everything_keeps_its_default_topic() -> None:
    assert EVERYTHING.choose(BAG) == ["camera/left", "camera/right", "microphone/mic"]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (("/left/*",), ["camera/left", None, None]),
        (("camera/*",), ["camera/left", "camera/right", None]),
        (("microphone/*", "text/*"), [None, None, "microphone/mic"]),
    ],
)
def test_patterns_match_the_name_in_the_source_and_the_topic(
    patterns: tuple[str, ...], chosen: list[str | None]
) -> None:
    assert Selection(topics=patterns).choose(BAG) == chosen


def test_a_name_alone_goes_to_the_next_stream_and_one_with_its_stream_to_that() -> None:
    front = {"camera": ("front", "back"), "microphone": ("main",)}
    assert Selection(names=front).choose(BAG) == ["camera/front", "camera/back", "microphone/main"]
    second = {"camera": ("/right/image_raw=front", "back")}
    assert Selection(names=second).choose(BAG)[:2] == ["camera/back", "camera/front"]


def test_patterns_may_name_the_topic_asked_for_or_say_which_stream_is_named() -> None:
    named = {"camera": ("front",)}
    assert Selection(topics=("camera/front",), names=named).choose(BAG) == ["camera/front", None, None]
    assert Selection(topics=("/right/*",), names=named).choose(BAG) == [None, "camera/front", None]


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        (
            Selection(topics=("text/*",)),
            r"--topics text/\*: matches none of: /left/image_raw \(camera/left\)",
        ),
        (
            Selection(names={"camera": ("a", "b", "c")}),
            "--camera c: no such stream; .* no other camera",
        ),
        (Selection(names={"microphone": ("/x=a",)}), "--microphone /x: no such stream; there is /mic/audio"),
        (Selection(names={"camera": ("front left",)}), "--camera front left: 'camera/front left' is not"),
        (Selection(names={"camera": ("camera/right=left",)}), "2 streams would become camera/left"),
    ],
)
def test_what_fits_nothing_is_one_clear_line(selection: Selection, says: str) -> None:
    with pytest.raises(SessionError, match=says):
        selection.choose(BAG)


def test_time_counts_from_either_end() -> None:
    assert Selection(start_s=1.5, end_s=-1).span_ns(10_000_000_000, 20_000_000_000) == (
        11_500_000_000,
        19_000_000_000,
    )
    begin_ns, end_ns = EVERYTHING.span_ns(10, 20)
    assert begin_ns < 10 < 20 < end_ns
    with pytest.raises(SessionError, match=r"--from 3 --to 2: the first is not before"):
        Selection(start_s=3, end_s=2).span_ns(0, 10)
