"""A video file, its sound track and its subtitles become a session."""

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.audio.stream import AudioStream
from av.subtitles.subtitle import AssSubtitle
from av.video.frame import VideoFrame
from msgspec import structs

from perception.devices import media
from perception.devices.device import CapturedBlock, CapturedFrame, CapturedText
from perception.devices.wire import block_message, frame_message, text_message
from perception.errors import DeviceError, MalformedMessageError, SessionError
from perception.messages import Header, Message, Payload
from perception.profile import CameraConfig, MicrophoneConfig
from perception.session.convert.selection import EVERYTHING, Selection
from perception.session.writer import whole
from perception.session.zero import Zero

_SECOND_NS: Final = 1_000_000_000
_SOURCE: Final = "video#import"
_BLOCK_S: Final = 0.032
_SUFFIXES: Final = (".srt", ".vtt", ".ass", ".ssa")
_MARKUP: Final = re.compile(r"\{[^}]*\}|<[^>]*>")
_TOPICS: Final = {"video": "camera/video", "audio": "microphone/video", "subtitle": "text/subtitles"}
_Arrival = tuple[int, str, Header, Payload]


def read(
    source: Path, target: Path, subtitles: Path | None = None, selection: Selection = EVERYTHING
) -> Iterator[str]:
    """Make the session `target` of a video; yield what came of it, in lines.

    Frames go to `camera/video` as JPEG, sound to `microphone/video` at its own rate, subtitles to
    `text/subtitles`. Stamps begin at the file's creation time, or its date.

    Args:
        source: a file that FFmpeg opens.
        target: file to write.
        subtitles: SRT, WebVTT or ASS; without it a file of the video's name and such a suffix, else the
            subtitles within the video.
        selection: what to take, and under which topics.

    Raises:
        DeviceError: `source` or `subtitles` cannot be opened or holds nothing.
        SessionError: `target` exists, or nothing is selected.
    """
    if not source.is_file():
        raise DeviceError(f"{source}: no such file")
    with media.open_container(str(source)) as container:
        kinds = {stream.type for stream in container.streams}
        origin_ns = _origin_ns(source, container.metadata)
        last_ns = origin_ns + (container.duration or 0) * 1000
    words = subtitles or next(filter(Path.is_file, map(source.with_suffix, _SUFFIXES)), None)
    if words is not None:
        kinds.add("subtitle")
    found = [kind for kind in _TOPICS if kind in kinds]
    if not found:
        raise DeviceError(f"{source}: has neither picture nor sound")
    chosen = dict(zip(found, selection.choose([(kind, _TOPICS[kind]) for kind in found]), strict=True))
    streams: list[Iterator[_Arrival]] = []
    if topic := chosen.get("video"):
        streams.append(_frames(source, origin_ns, topic))
    if topic := chosen.get("audio"):
        streams.append(_blocks(source, origin_ns, topic))
    if topic := chosen.get("subtitle"):
        streams.append(_lines(words or source, origin_ns, topic))
    begin_ns, end_ns = selection.span_ns(origin_ns, last_ns)
    sent: Counter[str] = Counter()
    with whole(target) as writer:
        zero_ns = max(begin_ns, origin_ns)  # labels made on the film are right in the session
        writer.set_zero(Zero(zero_ns, zero_ns))
        writer.add_metadata(
            "imported", {"from": str(source), "kind": "video", "subtitles": words and str(words)}
        )
        for due_ns, topic, header, payload in heapq.merge(*streams, key=lambda arrival: arrival[0]):
            if not begin_ns <= header.stamp_ns < end_ns:
                continue
            fields = {"seq": sent[topic], "sent_ns": due_ns, "source": _SOURCE}
            writer.write(Message(topic, structs.replace(header, **fields), payload, due_ns))
            sent[topic] += 1
        if not sent:
            raise SessionError(f"{source}: nothing lies in the time asked for")
    yield from (f"{topic}: {number} messages" for topic, number in sorted(sent.items()))


def _origin_ns(source: Path, metadata: dict[str, str]) -> int:
    try:
        return round(datetime.fromisoformat(metadata["creation_time"]).timestamp() * _SECOND_NS)
    except (KeyError, ValueError, OverflowError):
        return source.stat().st_mtime_ns


def _frames(source: Path, origin_ns: int, topic: str) -> Iterator[_Arrival]:
    config = CameraConfig(source=str(source), jpeg_quality=90)
    track: media.Track[VideoFrame] = media.Track(str(source), "video", loop=False)
    for _, lap in track.laps():
        for seconds, frame in lap:
            stamp_ns = origin_ns + round(seconds * _SECOND_NS)
            image = frame.to_ndarray(format="bgr24").astype(np.uint8, copy=False)
            yield stamp_ns, topic, *frame_message(CapturedFrame(image, stamp_ns), config)


def _blocks(source: Path, origin_ns: int, topic: str) -> Iterator[_Arrival]:
    with media.open_container(str(source)) as container:
        stream = next(stream for stream in container.streams if isinstance(stream, AudioStream))
        rate_hz, channels = stream.rate, stream.channels
    config = MicrophoneConfig(source=str(source), rate_hz=rate_hz, channels=channels)
    sound = media.Sound(
        str(source), rate_hz=rate_hz, channels=channels, sample_format="s16", loop=False, start=0
    )
    size = round(rate_hz * _BLOCK_S)
    for number, samples in enumerate(sound.blocks(size)):
        index = number * size
        stamp_ns = origin_ns + index * _SECOND_NS // rate_hz
        # A block is there once its last sample has been heard.
        due_ns = stamp_ns + len(samples) * _SECOND_NS // rate_hz
        block = CapturedBlock(samples, stamp_ns, index)
        yield due_ns, topic, *block_message(block, config)


def _lines(source: Path, origin_ns: int, topic: str) -> Iterator[_Arrival]:
    with media.open_container(str(source)) as container:
        streams = [stream for stream in container.streams if stream.type == "subtitle"]
        if not streams:
            raise DeviceError(f"{source}: holds no subtitles")
        language = streams[0].language or ""
        for packet in container.demux(streams[0]):
            if packet.pts is None or packet.time_base is None:
                continue
            stamp_ns = origin_ns + round(packet.pts * packet.time_base * _SECOND_NS)
            try:
                shown = [line for line in packet.decode() if isinstance(line, AssSubtitle)]
                words = " ".join(_plain(line.dialogue) for line in shown).strip()
                if words:
                    yield (
                        stamp_ns,
                        topic,
                        text_message(CapturedText(words, stamp_ns), language),
                        b"",
                    )
            except (av.FFmpegError, UnicodeDecodeError, MalformedMessageError):
                continue


def _plain(dialogue: bytes) -> str:
    return " ".join(_MARKUP.sub("", dialogue.decode("utf-8", "replace")).replace("\\N", " ").split())
