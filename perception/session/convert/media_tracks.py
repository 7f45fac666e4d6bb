"""Recorded frames as pictures, and blocks as one continuous run of samples, for the exports."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import soundfile

from perception.errors import SessionError
from perception.features.image import decode_frame
from perception.features.window import raw_samples
from perception.messages import AudioBlock, CameraFrame, Message
from perception.session.file.zero import Zero
from perception.units import SECOND_NS
from perception.units.arrays import Image, RawSamples


def image(message: Message[CameraFrame]) -> Image | None:
    """Return a frame as (height, width, 3) BGR, None if its JPEG cannot be decoded."""
    try:
        return decode_frame(message.header, message.payload)
    except ValueError:
        return None


_MAX_SILENCE_NS: Final = 86_400 * SECOND_NS
"""A longer silence would fill the disk; it comes from a clock that was set."""


class Timeline:
    """Places the blocks of one microphone on a timeline, with silence where samples are missing.

    Positions follow the sample counter; after a restart of the device or its node, the stamps. At most as
    much silence is inserted as time has passed in the recording. The timeline begins at the zero of the
    session: silence up to the first block, while sound from before the zero is left out. If the zero is not
    plausible for this sound, more than a second after it or before the recording, it begins at the first
    block.
    """

    def __init__(self, first: Message[AudioBlock], zero: Zero) -> None:
        self.start_ns = zero.stamp_ns
        """Stamp of the first sample."""
        self.left_out = 0
        """Samples from before the zero."""
        self.rate_hz = first.header.rate_hz
        self.channels = first.header.channels
        self.format = first.header.format
        self.position = 0
        """Samples so far."""
        self._begun_ns = zero.log_ns
        self._source: str | None = None
        self._next_index = 0

    def fits(self, header: AudioBlock) -> bool:
        """Return whether a block has the format of the first."""
        return (header.rate_hz, header.channels, header.format) == (self.rate_hz, self.channels, self.format)

    def place(self, message: Message[AudioBlock]) -> Iterator[RawSamples]:
        """Yield silence for missing samples, then the block, each (samples, channels)."""
        header = message.header
        counted = self.position and header.source == self._source and header.sample_index >= self._next_index
        if counted:
            missing = header.sample_index - self._next_index
        else:
            missing = self._samples_in(header.stamp_ns - self.start_ns) - self.position
        passed = self._samples_in(message.received_ns - self._begun_ns) + self.rate_hz - self.position
        block = raw_samples(message.header, message.payload)
        if self._source is None and not -self.rate_hz <= missing <= passed:
            self.start_ns, missing = header.stamp_ns, 0
        elif not self.position and missing < 0:
            self.left_out += min(-missing, len(block))
            block = block[-missing:]
        missing = min(missing, passed)
        if missing > self._samples_in(_MAX_SILENCE_NS):
            days = missing / self._samples_in(_MAX_SILENCE_NS)
            raise SessionError(
                f"{message.topic}: {days:.0f} days without sound inside the recording, so a clock was set;"
                " cut each side of the leap with `perception session trim --from --to`, then export it"
            )
        for start in range(0, missing, self.rate_hz):
            silence = min(self.rate_hz, missing - start)
            self.position += silence
            yield np.zeros((silence, self.channels), block.dtype)
        self._source, self._next_index = header.source, header.sample_index + header.samples
        self.position += len(block)
        yield block

    def _samples_in(self, time_ns: int) -> int:
        return round(time_ns * self.rate_hz / SECOND_NS)


class SoundFile:
    """A FLAC file (or WAV, for float samples) of one microphone.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, stem: Path, first: Message[AudioBlock], zero: Zero) -> None:
        self.timeline = Timeline(first, zero)
        whole = self.timeline.format == "s16"
        self.path = stem.with_name(f"{stem.name}.{'flac' if whole else 'wav'}")
        subtype = "PCM_16" if whole else "FLOAT"
        with self._as_os_error():
            self._file = soundfile.SoundFile(
                self.path, "w", self.timeline.rate_hz, self.timeline.channels, subtype
            )

    def write(self, message: Message[AudioBlock], also: Callable[[RawSamples], object] | None = None) -> bool:
        """Append a block; return False if it has another format than the first.

        Args:
            message: the block.
            also: called with all that is appended, silence included.
        """
        if not self.timeline.fits(message.header):
            return False
        for piece in self.timeline.place(message):
            with self._as_os_error():
                self._file.write(piece)
            if also is not None:
                also(piece)
        return True

    def close(self) -> None:
        """Write the rest and close the file."""
        with self._as_os_error():
            self._file.close()
            # The library reports no error if it cannot write the rest while closing.
            if soundfile.info(self.path).frames != self.timeline.position:
                raise OSError(errno.EIO, "not all of the sound could be written")

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.SoundFileError, AssertionError) as error:
            raise OSError(errno.EIO, f"{self.path.name}: {error}") from error
