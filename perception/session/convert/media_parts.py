"""The tracks of a media file as messages, with notes on what was left out or inserted."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Final, Protocol

import av
import numpy as np
from av.packet import Packet
from av.stream import Stream
from av.subtitles.subtitle import AssSubtitle
from av.video.frame import VideoFrame

from perception.devices import media
from perception.devices.device import CapturedBlock, CapturedFrame, CapturedText
from perception.devices.pixels import FilmPixels
from perception.devices.sound import Sound, kind_of_sound
from perception.devices.wire import block_message, frame_message, text_message
from perception.errors import DeviceError, MalformedMessageError
from perception.messages import Header, Payload
from perception.profile import CameraConfig, MicrophoneConfig
from perception.units import SECOND_NS

Arrival = tuple[int, str, Header, Payload]
"""Time of arrival, topic, header, payload."""
_BLOCK_S: Final = 0.032
_RATES_HZ: Final = (1000, 768_000)
_MOST_CHANNELS: Final = 64
"""Limits of an `AudioBlock`."""
_MARKUP: Final = re.compile(r"\{[^}]*\}|<[^>]*>")
_NOTHING: Final[Mapping[str, int]] = {}
_HOLE_S: Final = 1.0
_HOLE_PERIODS: Final = 4
"""An interval of pictures above both limits, in seconds and in median intervals, is a hole."""


class Part(Protocol):
    """One track of a file."""

    own: str
    """Name in the file: `video`, `audio-2`."""
    topic: str
    end_s: float
    """Its end, in seconds from the start of the file."""
    failure: str
    """Reason why it ended early or could not begin."""

    def arrivals(self, begin_ns: int) -> Iterator[Arrival]:
        """Yield its messages; those before `begin_ns` may be left out. DeviceError if there are none."""

    def notes(self) -> Iterator[str]:
        """Yield lines about what was left out or inserted."""


class Pictures:
    """A video track as JPEG frames, in its own size, rotated as the file states."""

    def __init__(self, source: str, origin_ns: int, number: int) -> None:
        self._source = source
        self._origin_ns = origin_ns
        self._number = number
        self._track: media.Track[VideoFrame] | None = None
        self.own, self.topic = f"video{_suffix(number)}", f"camera/video{_suffix(number)}"
        self.end_s = 0.0
        self.failure = ""
        self._times_s: list[float] = []
        self._refused: Counter[str] = Counter()

    def arrivals(self, begin_ns: int) -> Iterator[Arrival]:
        """Yield its frames."""
        config = CameraConfig(source="import", jpeg_quality=90)
        start_s = max((begin_ns - self._origin_ns) / SECOND_NS, 0.0)
        track = media.Track[VideoFrame](
            self._source, "video", loop=False, start_s=start_s, number=self._number
        )
        self._track = track
        pixels = FilmPixels(pixel_aspect=track.pixel_aspect)
        for _, lap in track.laps():
            for seconds, frame in lap:
                # Not every container states the duration of the last picture.
                gap_s = seconds - self._times_s[-1] if self._times_s else 0.0
                self.end_s = max(self.end_s, seconds + max(media.picture_s(frame), gap_s))
                self._times_s.append(seconds)
                stamp_ns = self._origin_ns + round(seconds * SECOND_NS)
                try:
                    message = frame_message(CapturedFrame(pixels(frame), stamp_ns), config)
                except MalformedMessageError as error:
                    self._refused[str(error)] += 1
                    continue
                yield stamp_ns, self.topic, *message

    def notes(self) -> Iterator[str]:
        """Yield lines about what was left out."""
        yield from _losses(self.failure, self._track, self._refused)
        if self._track and self._track.untimed:
            yield f"{self._track.untimed} pictures have no time of their own: each follows the one before it"
        apart_s = np.diff(self._times_s)
        if len(apart_s):
            holes = apart_s[apart_s > max(_HOLE_S, _HOLE_PERIODS * float(np.median(apart_s)))]
            if len(holes):
                yield f"{len(holes)} holes between pictures, the longest {max(holes):.2f} s"
            if backwards := np.count_nonzero(apart_s <= 0):
                yield f"{backwards} pictures are not later than the one before them"


class Sounds:
    """A sound track as blocks of 16-bit samples, at its own rate and with its own channels."""

    def __init__(self, source: str, origin_ns: int, number: int) -> None:
        """DeviceError if its sample rate and channels are unknown."""
        self._source = source
        self._origin_ns = origin_ns
        self._number = number
        self._own_rate_hz, self._channels = kind_of_sound(source, number)
        if self._channels > _MOST_CHANNELS:
            raise DeviceError(f"{self._channels} channels, more than {_MOST_CHANNELS}")
        self._sound: Sound | None = None
        self._rate_hz = min(max(self._own_rate_hz, _RATES_HZ[0]), _RATES_HZ[1])
        self.own, self.topic = f"audio{_suffix(number)}", f"microphone/video{_suffix(number)}"
        self.end_s = 0.0
        self.failure = ""

    def arrivals(self, begin_ns: int) -> Iterator[Arrival]:
        """Yield its blocks."""
        rate_hz = self._rate_hz
        config = MicrophoneConfig(rate_hz=rate_hz)
        start = max(begin_ns - self._origin_ns, 0) * rate_hz // SECOND_NS
        sound = self._sound = Sound(
            self._source,
            rate_hz=rate_hz,
            channels=self._channels,
            sample_format="s16",
            loop=False,
            start=start,
            number=self._number,
        )
        size = round(rate_hz * _BLOCK_S)
        for number, samples in enumerate(sound.blocks(size)):
            index = start + number * size
            stamp_ns = self._origin_ns + index * SECOND_NS // rate_hz
            # A block arrives at its last sample.
            due_ns = stamp_ns + len(samples) * SECOND_NS // rate_hz
            self.end_s = (index + len(samples)) / rate_hz
            yield due_ns, self.topic, *block_message(CapturedBlock(samples, stamp_ns, index), config)

    def notes(self) -> Iterator[str]:
        """Yield lines about what was left out or inserted."""
        sound = self._sound
        yield from _losses(self.failure, sound)
        if self._rate_hz != self._own_rate_hz:
            yield f"resampled from {self._own_rate_hz} Hz to {self._rate_hz} Hz"
        if sound and sound.holes:
            yield f"{sound.holes} holes, {sound.silence_s:.2f} s in all, are filled with silence"
        if sound and sound.overlaps:
            yield f"{sound.overlaps} overlaps with earlier sound are left out"


class Words:
    """A subtitle track as lines of text.

    Args:
        source: the file, for messages.
        origin_ns: stamp of its beginning.
        number: which of its subtitle tracks, from 0.
        beside: a subtitle file; its times count from the beginning of the film.
    """

    def __init__(self, source: str, origin_ns: int, number: int, beside: BinaryIO | None = None) -> None:
        self._source = source
        self._origin_ns = origin_ns
        self._number = number
        self._beside = beside
        self.own, self.topic = f"subtitle{_suffix(number)}", f"text/subtitles{_suffix(number)}"
        self.end_s = 0.0
        self.failure = ""
        self._refused: Counter[str] = Counter()

    def arrivals(self, begin_ns: int) -> Iterator[Arrival]:
        """Yield its lines."""
        with media.open_container(self._beside or self._source, name=self._source) as container:
            streams = media.streams_of(container, "subtitle")
            if not streams:
                raise DeviceError(f"{self._source}: holds no subtitles")
            stream = streams[self._number]
            origin_s = 0.0 if self._beside else media.origin_of(container)
            for packet in container.demux(stream):
                if packet.pts is None or packet.time_base is None:
                    continue
                stamp_ns = self._origin_ns + round((packet.pts * packet.time_base - origin_s) * SECOND_NS)
                words = self._words(packet)
                if not words:
                    continue
                try:
                    header = text_message(CapturedText(words, stamp_ns), stream.language or "")
                except MalformedMessageError as error:
                    self._refused[str(error)] += 1
                    continue
                yield stamp_ns, self.topic, header, b""

    def notes(self) -> Iterator[str]:
        """Yield lines about what was left out."""
        yield from _losses(self.failure, None, self._refused)

    def _words(self, packet: "Packet[Stream]") -> str:
        try:
            shown = packet.decode()
        except (av.FFmpegError, ValueError) as error:
            self._refused[media.cause(error)] += 1
            return ""
        lines = [line for line in shown if isinstance(line, AssSubtitle)]
        self._refused["a picture, not text"] += len(shown) - len(lines)
        return " ".join(_plain(line.dialogue) for line in lines).strip()


def _suffix(number: int) -> str:
    return f"-{number + 1}" if number else ""


def _losses(
    failure: str, source: media.Track[VideoFrame] | Sound | None, refused: Mapping[str, int] = _NOTHING
) -> Iterator[str]:
    if failure:
        yield failure
    if source is not None and source.corrupt:
        yield f"{source.corrupt} packets or frames left out: damaged, or dependent on a damaged one"
    yield from (f"{number} left out: {why}" for why, number in refused.items() if number)


def _plain(dialogue: bytes) -> str:
    return " ".join(_MARKUP.sub("", dialogue.decode("utf-8", "replace")).replace("\\N", " ").split())
