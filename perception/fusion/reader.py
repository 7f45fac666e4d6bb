"""Turns slices of windows into inputs of encoders: decodes pixels and transforms sound, each only once.

Rules. The compute thread owns an `InputReader`; only `expect` is for the receiving thread (see `decoder`).
"""

from collections.abc import Hashable

import msgspec

from perception.features.audio import AudioFrontEnd
from perception.fusion.decoder import FrameDecoder, identity
from perception.fusion.window import AudioSlice, CameraSlice, Slice, TextSlice
from perception.messages import CameraFrame, Message
from perception.models.encoder import AudioInput, EncoderInput, ImageInput, TextInput
from perception.profile import InputConfig
from perception.units.arrays import Image


class Reading(msgspec.Struct, frozen=True):
    """Input of the encoders, and keys that change with it."""

    data: EncoderInput
    key: Hashable
    """Of the newest data: enough for encoders that do not use the previous frame."""
    previous_key: Hashable = None


class InputReader:
    """Reads the successive slices of one input."""

    def __init__(self, config: InputConfig) -> None:
        self._length_ns = round(config.length_ms * 1e6)
        self._front_end: AudioFrontEnd | None = None
        self._front_end_of: tuple[int, bool] | None = None
        """Rate in Hz, and whether its filters are exact."""
        self._decoder = FrameDecoder()
        self._images: dict[Hashable, Image] = {}

    def expect(self, message: Message[CameraFrame]) -> None:
        """Start to decode a frame that a window will use. Receiving thread only."""
        self._decoder.expect(message)

    def read(self, data: Slice) -> Reading:
        """Decode or transform a slice. A previous frame that cannot be decoded is left out.

        Raises:
            ValueError: the newest data cannot be decoded.
        """
        match data:
            case CameraSlice(frame, previous):
                return self._read_camera(frame, previous)
            case AudioSlice():
                kind = data.rate_hz, data.exact
                if self._front_end is None or self._front_end_of != kind:
                    self._front_end = AudioFrontEnd(data.rate_hz, self._length_ns, exact=data.exact)
                    self._front_end_of = kind
                waveform, log_mel = self._front_end.update(data.samples, data.end_index, data.missing)
                return Reading(AudioInput(waveform, log_mel), (*kind, data.end_index))
            case TextSlice(command):
                header = command.header
                return Reading(TextInput(header.text, header.language), (header.text, header.language))

    def _read_camera(self, frame: Message[CameraFrame], previous: Message[CameraFrame] | None) -> Reading:
        decoded: dict[Hashable, Image] = {}
        for message in (previous, frame):
            if message is None:
                continue
            try:
                decoded[identity(message)] = self._image(message)
            except ValueError:
                if message is frame:
                    raise
        self._images = decoded
        before = None if previous is None else identity(previous)
        image = ImageInput(decoded[identity(frame)], decoded.get(before))
        return Reading(image, identity(frame), before)

    def _image(self, message: Message[CameraFrame]) -> Image:
        cached = self._images.get(identity(message))
        return self._decoder.decode(message) if cached is None else cached
