"""Decoding ahead: which frames a window is expected to take, and that it changes no pixel."""

import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from msgspec import structs

from perception.devices.scripted import messages
from perception.features.image import decode_frame
from perception.fusion.core import FusionCore
from perception.fusion.decoder import FrameDecoder
from perception.fusion.window import CameraSlice
from perception.messages import CameraFrame, Message
from perception.profile import CameraConfig, MicrophoneConfig, ScriptConfig
from tests import streams
from tests.waiting import LONG_S, eventually


def jpegs(count: int) -> list[Message[CameraFrame]]:
    camera = CameraConfig(source="scripted", width=160, height=120, rate_hz=20)
    play = messages(ScriptConfig(), camera, MicrophoneConfig(source="scripted"), count / 20)
    frames = (structs.replace(m, header=m.header) for m in play if isinstance(m.header, CameraFrame))
    return list(frames)  # type: ignore[arg-type]


def expected_and_taken(rate_hz: int, hop_ms: float) -> Iterator[tuple[list[int], list[int]]]:
    core = FusionCore(streams.config(hop_ms=hop_ms))
    expected, taken = [], []
    core.push(streams.clock_tick(streams.START_NS))
    for message in streams.camera_stream(3.0, rate_hz):
        windows = core.push(message)
        if core.expects(message):
            expected.append(message.header.seq)
        slices = [window.inputs["camera"].data for window in windows]
        taken += [item.frame.header.seq for item in slices if isinstance(item, CameraSlice)]
    yield expected, taken


@pytest.mark.parametrize("hop_ms", [50.0, 100.0, 200.0])
@pytest.mark.parametrize("rate_hz", [5, 15, 20, 30, 60])
def test_the_frames_expected_are_those_that_windows_take(rate_hz: int, hop_ms: float) -> None:
    ((expected, taken),) = expected_and_taken(rate_hz, hop_ms)
    # the rate is unknown after the first two
    assert set(taken) <= {0, 1} | set(expected)
    waste = len(set(expected)) - len(set(taken))
    assert waste <= len(expected) / 3 + 2


def test_a_frame_decoded_ahead_is_the_frame_decoded_when_asked_for() -> None:
    early, late = FrameDecoder(), FrameDecoder()
    for message in jpegs(5):
        early.expect(message)
        np.testing.assert_array_equal(early.decode(message), late.decode(message))
        np.testing.assert_array_equal(late.decode(message), decode_frame(message.header, message.payload))


def test_frames_expected_and_never_asked_for_are_let_go() -> None:
    decoder = FrameDecoder()
    frames = jpegs(20)
    for message in frames:
        decoder.expect(message)
    assert all(np.array_equal(decoder.decode(m), decode_frame(m.header, m.payload)) for m in frames)


def test_a_corrupt_frame_is_refused_when_it_is_asked_for() -> None:
    decoder = FrameDecoder()
    message = structs.replace(jpegs(1)[0], payload=b"\xff\xd8 not a jpeg")
    decoder.expect(message)
    with pytest.raises(ValueError, match="no whole JPEG"):
        decoder.decode(message)


def test_neither_a_frame_nor_a_thread_outlives_its_use() -> None:
    before = set(threading.enumerate())
    decoder = FrameDecoder()
    (message,) = (structs.replace(m, payload=memoryview(m.payload)) for m in jpegs(1))
    assert isinstance(message.payload, memoryview)
    payload = weakref.ref(message.payload)
    decoder.expect(message)
    decoder.decode(message)
    del message
    eventually(lambda: payload() is None)
    (thread,) = set(threading.enumerate()) - before
    del decoder
    thread.join(LONG_S)
    assert not thread.is_alive()
