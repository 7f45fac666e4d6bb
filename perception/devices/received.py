"""Judges received frames and blocks that carry no condition, as their capture node would have. Pure.

Rules. One thread owns a `ReceivedSignals` and calls all of it. The same messages in the same order give the
same conditions. Messages that carry a condition are left as they are: it is the judgement of their capture
node, which receives the signal before it is coded.
"""

from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeVar

from perception.devices.device import CapturedBlock, CapturedFrame
from perception.devices.signal.blocks import BlockJudge
from perception.devices.signal.frames import FrameJudge
from perception.features.image import decode_frame
from perception.features.window import is_finite, is_whole, raw_samples
from perception.messages import AudioBlock, CameraFrame, Header, Message
from perception.profile import Profile
from perception.profile.signal import CameraSignal, MicrophoneSignal
from perception.units import MILLISECOND_NS
from perception.units.arrays import Image

FRAME_PERIOD_NS: Final = 95 * MILLISECOND_NS
"""Frames that follow the last judged one sooner are not decoded; judges decide over seconds."""
Thresholds = Mapping[str, CameraSignal | MicrophoneSignal]
"""Sections `[camera.NAME.signal]` and `[microphone.NAME.signal]` of a profile, by topic."""
ItemT = TypeVar("ItemT", contravariant=True)


class Judge(Protocol[ItemT]):
    """See `perception.devices.signal`."""

    @property
    def condition(self) -> str:
        """The condition now."""

    def update(self, item: ItemT) -> None:
        """Judge the next item."""


class ReceivedSignals:
    """One judge per stream that carries no condition.

    Args:
        thresholds: of the profile; topics without any are judged by the defaults.
    """

    def __init__(self, thresholds: Thresholds | None = None) -> None:
        self._thresholds = dict(thresholds or {})
        self._streams: dict[str, _Frames | _Blocks] = {}

    def judge(self, message: Message[Header]) -> str:
        """Return the condition of a frame or block that carries none; empty for other messages.

        Data that cannot be decoded is not judged: the condition stays that of the data before it.
        """
        if not is_unjudged(message):
            return ""
        stream = self._streams.get(message.topic)
        identity = _identity(message.header)
        if stream is None or stream.identity != identity:
            stream = self._streams[message.topic] = self._open(message)
        stream.update(message)
        return stream.judge.condition

    def _open(self, message: Message[Any]) -> "_Frames | _Blocks":
        header, limits = message.header, self._thresholds.get(message.topic)
        if isinstance(header, CameraFrame):
            return _Frames(
                _identity(header), FrameJudge(limits if isinstance(limits, CameraSignal) else None)
            )
        sound = limits if isinstance(limits, MicrophoneSignal) else MicrophoneSignal()
        return _Blocks(_identity(header), BlockJudge(sound, header.rate_hz))


def thresholds_of(profile: Profile) -> Thresholds:
    """Return the thresholds of the cameras and microphones of a profile, by topic."""
    cameras: dict[str, CameraSignal | MicrophoneSignal] = {
        f"camera/{name}": item.signal for name, item in profile.camera.items()
    }
    return cameras | {f"microphone/{name}": item.signal for name, item in profile.microphone.items()}


def is_unjudged(message: Message[Header]) -> bool:
    """Return whether a message is a frame or block without a condition."""
    return isinstance(message.header, CameraFrame | AudioBlock) and not message.header.condition


def _identity(header: Header) -> tuple[object, ...]:
    """Return what a judge's statistics belong to: another publisher or format begins new ones."""
    if isinstance(header, CameraFrame):
        return header.source, header.width, header.height, header.encoding
    assert isinstance(header, AudioBlock)
    return header.source, header.rate_hz, header.channels, header.format


class _Frames:
    """The judge of a camera. It receives some of the frames: decoding each would cost more than judging."""

    def __init__(self, identity: tuple[object, ...], judge: Judge[CapturedFrame]) -> None:
        self.identity = identity
        self.judge = judge
        self._judged_ns: int | None = None

    def update(self, message: Message[Any]) -> None:
        stamp_ns = message.header.stamp_ns
        if self._judged_ns is not None and stamp_ns < self._judged_ns + FRAME_PERIOD_NS:
            return
        try:
            image: Image = decode_frame(message.header, message.payload)
        except ValueError:
            return
        self._judged_ns = stamp_ns
        # raw pixels may be those of a decoded film, whose still room is equal bit for bit
        self.judge.update(CapturedFrame(image, stamp_ns, raw=False))


class _Blocks:
    """The judge of a microphone."""

    def __init__(self, identity: tuple[object, ...], judge: Judge[CapturedBlock]) -> None:
        self.identity = identity
        self.judge = judge
        self._end = 0

    def update(self, message: Message[Any]) -> None:
        header, payload = message.header, message.payload
        if header.stamp_ns < self._end or not is_whole(header, payload):
            return
        if header.format != "s16" and not is_finite(header, payload):
            return
        self._end = header.stamp_ns
        samples = raw_samples(header, payload)
        self.judge.update(CapturedBlock(samples, header.stamp_ns, header.sample_index, header.gap))
