"""Ordinary media files as sources: the messages that a camera and a microphone playing them would publish."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
from av.video.frame import VideoFrame

from perception.devices.device import CapturedBlock, CapturedFrame
from perception.devices.media import Kind, Track, length_s, open_container, streams_of
from perception.devices.pictures import read_picture
from perception.devices.pixels import FilmPixels
from perception.devices.sound import Sound
from perception.devices.wire import Numbering, block_message, frame_message
from perception.errors import SessionError
from perception.messages import Header, Message
from perception.models.feature_cache import file_hash
from perception.profile import CameraConfig, FusionConfig, MicrophoneConfig
from perception.session import labels as label_files
from perception.session.labels import Span
from perception.topics import kind_of
from perception.units import SECOND_NS
from perception.units.arrays import Image

ORIGIN_NS: Final = SECOND_NS
"""Time at which every file begins; arbitrary, but the same in every run."""
STILL_S: Final = 0.2
"""How long a still picture is shown."""
MEDIA: Final = frozenset(
    [".wav", ".flac", ".ogg", ".mp3", ".m4a", ".mp4", ".mpg", ".mkv", ".avi", ".mov", ".webm"]
)
STILLS: Final = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))
_SOURCE: Final = "media#0"
_RATE_HZ: Final = 16_000
_BLOCK_MS: Final = 32.0


@dataclass(frozen=True, slots=True)
class MediaSource:
    """A video, sound or picture file, with a label file beside it, or a class in its name or folder.

    Sound shorter than the window of the fusion is preceded by silence, so that it fills one window.
    """

    path: Path
    root: Path
    """The folder whose sub-folders name classes."""
    camera: str | None
    """Topic of its pictures; None if they are not used."""
    microphone: str | None
    lead_s: float
    """Sound shorter than this is preceded by silence."""

    @property
    def name(self) -> str:
        """The path under the root."""
        return str(self.path.relative_to(self.root))

    def fingerprint(self) -> str:
        """Return the hash of the file, and how it is played."""
        return f"{file_hash(self.path)} {self.camera} {self.microphone} {self.lead_s}"

    def origin(self) -> str:
        """Return its fingerprint: no other file is a part of it."""
        return self.fingerprint()

    def recording(self) -> Iterator[Message[Header]]:
        """Return its messages."""
        return self.messages()

    def messages(self) -> Iterator[Message[Header]]:
        """Yield its frames and blocks in the order of their stamps.

        Raises:
            DeviceError: it cannot be decoded.
        """
        kinds = _tracks(self.path)
        streams = []
        if self.camera is not None and "video" in kinds:
            streams.append(self._frames(self.camera))
        if self.microphone is not None and "audio" in kinds:
            streams.append(self._blocks(self.microphone))
        # If a frame and a block end at the same time, the topic decides, so that every run has one order.
        yield from heapq.merge(*streams, key=lambda message: (message.received_ns, message.topic))

    def spans(self) -> list[Span]:
        """Return the labels of the file beside it, else one label over the whole file."""
        if (beside := label_files.file_beside(self.path)) is not None:
            return [span.at(ORIGIN_NS) for span in label_files.read(beside)]
        name = label_files.class_of_path(self.path, self.root)
        return [Span(0, 1 << 62, name)]

    def _frames(self, topic: str) -> Iterator[Message[Header]]:
        config = CameraConfig(source="media", encoding="bgr8")
        numbering = Numbering(_SOURCE)
        for seconds, image in _images(self.path):
            stamp_ns = ORIGIN_NS + round(seconds * SECOND_NS)
            header, payload = frame_message(CapturedFrame(image, stamp_ns), config)
            yield numbering.message(topic, header, payload, stamp_ns)

    def _blocks(self, topic: str) -> Iterator[Message[Header]]:
        config = MicrophoneConfig(rate_hz=_RATE_HZ, block_ms=_BLOCK_MS)
        sound = Sound(str(self.path), rate_hz=_RATE_HZ, channels=1, sample_format="s16", loop=False, start=0)
        index = -max(0, round((self.lead_s - length_s(str(self.path))) * _RATE_HZ))
        size = round(_BLOCK_MS * _RATE_HZ / 1000)
        silence = np.zeros((-index, 1), np.int16)
        blocks = [silence[at : at + size] for at in range(0, len(silence), size)]
        first = index
        numbering = Numbering(_SOURCE)
        for samples in chain(blocks, sound.blocks(size)):
            stamp_ns = ORIGIN_NS + index * SECOND_NS // _RATE_HZ
            header, payload = block_message(CapturedBlock(samples, stamp_ns, index - first), config)
            index += len(samples)
            yield numbering.message(topic, header, payload, ORIGIN_NS + index * SECOND_NS // _RATE_HZ)


def _tracks(path: Path) -> set[str]:
    if path.suffix.lower() in STILLS:
        return {"video"}
    with open_container(str(path)) as container:
        kinds: tuple[Kind, ...] = ("video", "audio")
        return {kind for kind in kinds if streams_of(container, kind)}


def _images(path: Path) -> Iterator[tuple[float, Image]]:
    if path.suffix.lower() in STILLS:
        image = read_picture(path)
        yield 0.0, image
        yield STILL_S, image
        return
    track: Track[VideoFrame] = Track(str(path), "video", loop=False)
    pixels = FilmPixels(pixel_aspect=track.pixel_aspect)
    for _, frames in track.laps():
        for seconds, frame in frames:
            yield seconds, pixels(frame)


def media_sources(root: Path, config: FusionConfig) -> list[MediaSource]:
    """Return every media file under a folder, for the fusion's first camera and its first microphone.

    Raises:
        SessionError: there is none.
    """
    topics = [item.topic for item in config.inputs.values()]
    camera = next((topic for topic in topics if kind_of(topic) == "camera"), None)
    microphone = next((topic for topic in topics if kind_of(topic) == "microphone"), None)
    lengths = [item.length_ms for item in config.inputs.values() if item.topic == microphone]
    # one hop more: a window ends on the grid, not at the end of the sound
    lead_s = (max(lengths, default=0) + config.hop_ms + 20) / 1000
    files = sorted(f for f in root.rglob("*") if f.suffix.lower() in MEDIA | STILLS and f.is_file())
    if not files:
        raise SessionError(f"{root}: no media files there")
    return [MediaSource(file, root, camera, microphone, lead_s) for file in files]
