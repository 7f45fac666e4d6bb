"""Microphones: live ones through PortAudio, and sound tracks of files played as if live.

Threads of `PortAudioMicrophone`: PortAudio's own thread calls `_on_audio` only. It writes `_received_ns` (so
does `_reopen`) and `_dropped`, and puts callbacks into a bounded queue; it never waits. Everything else
belongs to the thread that calls `read`, `report` and `close`. When the queue is full, samples are dropped
there and become a gap of the next block. `FileMicrophone` has no thread.
"""

import queue
import threading
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from perception.clock.samples import LossDetector, SampleClock, device_to_host_ns
from perception.devices.backoff import Backoff
from perception.devices.device import CapturedBlock, Device, DeviceReport
from perception.errors import DeviceError, MissingPackageError, first_line
from perception.profile import MicrophoneConfig, ScriptConfig, source_kind
from perception.profile.signal import MicrophoneSignal
from perception.units import SECOND_NS, Clock
from perception.units.arrays import SAMPLE_TYPES, RawSamples
from perception.units.closing import Closing

# The first callbacks only set the clock and are not returned. Some backends start with half a second of
# constant ADC times, so eight consecutive blocks must agree, within a limit of blocks.
_SETTLE_BLOCKS: Final = 8
_SETTLE_SPREAD_NS: Final = 25_000_000
_SETTLE_LIMIT_BLOCKS: Final = 100
_BACKLOG_BLOCKS: Final = 256
_DEAD_NS: Final = 3_000_000_000  # a PulseAudio source that was suspended may take half of this to start
_MAX_ADC_AGE_S: Final = 5.0


def open_microphone(
    config: MicrophoneConfig, script: ScriptConfig, *, clock: Clock, origin_ns: int
) -> Device[CapturedBlock]:
    """Open the microphone that a profile names.

    Args:
        config: its section of the profile.
        script: what a scripted microphone plays.
        clock: host time in ns.
        origin_ns: host time at which a script or file starts.

    Raises:
        DeviceError: there is no such device or file.
        MissingPackageError: PortAudio is missing.
    """
    kind = source_kind(config.source)
    if kind == "scripted":
        from perception.devices.scripted import open_scripted_microphone

        return open_scripted_microphone(config, script, clock=clock, origin_ns=origin_ns)
    if kind == "file":
        return FileMicrophone(config, clock=clock, origin_ns=origin_ns)
    return PortAudioMicrophone(config, clock=clock)


def signal_limits(config: MicrophoneConfig) -> MicrophoneSignal:
    """Return by which limits a microphone's sound is judged: a file is judged as what it claims to be.

    A file that is played in a loop repeats as it should. One whose own rate is lower than that of the stream
    ends at half its rate, as it should.

    Raises:
        DeviceError: the file has no sound.
    """
    changes: dict[str, float] = {"loop_s": 0.0} if config.loop else {}
    if source_kind(config.source) == "file":
        from perception.devices.sound import kind_of_sound  # loads FFmpeg

        if kind_of_sound(str(config.source))[0] < config.rate_hz:
            changes["narrowest_hz"] = 0
    return config.signal.model_copy(update=changes)


@dataclass(frozen=True, slots=True)
class Callback:
    """One call by PortAudio: interleaved samples, and when the first of them was converted."""

    data: bytes
    frames: int
    adc_ns: int
    overflow: bool
    dropped: int
    """Samples dropped just before, because the queue was full."""


class BlockStamper:
    """Converts callbacks to blocks: counts samples, fits the clock, detects losses. Pure."""

    def __init__(self, config: MicrophoneConfig) -> None:
        self.clock = SampleClock(config.rate_hz)
        self.counts: Counter[str] = Counter()
        self._losses = LossDetector(config.rate_hz)
        self._channels = config.channels
        self._dtype = SAMPLE_TYPES[config.format]
        self._index = 0
        self._settling: deque[tuple[int, int]] | None = deque(maxlen=_SETTLE_BLOCKS)
        self._settled_after = 0
        self._reopened = False

    def reopened(self) -> None:
        """Record that the device was reopened: the samples missed meanwhile are a gap."""
        self._reopened = True

    def block(self, callback: Callback) -> CapturedBlock | None:
        """Return the callback's block; None while the clock settles."""
        gap = callback.dropped
        self._index += gap
        if self._settling is not None:
            self._settle(self._settling, callback.adc_ns)
            self._index += callback.frames
            return None
        late_ns = self.clock.late_ns(self._index, callback.adc_ns)
        lost = self._losses.lost(late_ns, overflow=callback.overflow or self._reopened)
        if self._reopened:
            self.clock.restart()
            self._reopened = False
        gap += lost
        self._index += lost
        self.counts.update(gaps=gap > 0, samples_lost=gap, overflows=callback.overflow)
        self.clock.observe(self._index, callback.adc_ns)
        samples: RawSamples = np.frombuffer(callback.data, self._dtype).reshape(-1, self._channels)
        block = CapturedBlock(samples, self.clock.stamp_ns(self._index), self._index, gap)
        self._index += callback.frames
        return block

    def _settle(self, observed: deque[tuple[int, int]], adc_ns: int) -> None:
        observed.append((self._index, adc_ns))
        starts_ns = [adc_ns - round(index * 1e9 / self.clock.rate_hz) for index, adc_ns in observed]
        agreed = len(observed) == _SETTLE_BLOCKS and max(starts_ns) - min(starts_ns) < _SETTLE_SPREAD_NS
        self._settled_after += 1
        if agreed or self._settled_after >= _SETTLE_LIMIT_BLOCKS:
            for observation in observed:
                self.clock.observe(*observation)
            self._settling = None


class PortAudioMicrophone(Closing):
    """A live microphone. If it stops delivering it is opened again; the missing samples are a gap."""

    def __init__(self, config: MicrophoneConfig, *, clock: Clock, audio: Any = None) -> None:
        """Open it; `audio` replaces the module `sounddevice` in tests."""
        self._config = config
        self._clock = clock
        self._audio = audio or _portaudio()
        self._callbacks: queue.Queue[Callback] = queue.Queue(_BACKLOG_BLOCKS)
        self._dropped = 0
        self._stamper = BlockStamper(config)
        self._received_ns = clock()
        self._reason = ""
        self._retry_ns = 0
        """Host time at which to open it next; 0 while it is open."""
        self._backoff = Backoff()
        self._opened_ns = self._received_ns
        self._stream: Any = self._open()

    def read(self, timeout_s: float) -> CapturedBlock | None:
        """Return the next block, None after `timeout_s`."""
        try:
            callback = self._callbacks.get(timeout=timeout_s)
        except queue.Empty:
            if self._clock() - self._received_ns > _DEAD_NS:
                self._reopen()
            return None
        self._reason = ""
        return self._stamper.block(callback)

    def report(self) -> DeviceReport:
        """Return losses, and the drift of the device's clock in ppm, positive when it runs fast."""
        facts: dict[str, str | float] = {
            "source": str(self._config.source),
            "drift_ppm": round(self._stamper.clock.drift_ppm, 1) + 0.0,
        }
        status: Literal["ok", "lost"] = "lost" if self._reason else "ok"
        return DeviceReport(dict(self._stamper.counts), facts, status, self._reason)

    def close(self) -> None:
        """Stop and release the device."""
        if self._stream is not None:
            self._stream.close(ignore_errors=True)
            self._stream = None

    def _open(self) -> Any:
        config = self._config
        device = None if config.source == "default" else config.source
        try:
            stream = self._audio.RawInputStream(
                samplerate=config.rate_hz,
                blocksize=round(config.block_ms * config.rate_hz / 1000),
                device=device,
                channels=config.channels,
                dtype="int16" if config.format == "s16" else "float32",
                callback=self._on_audio,
            )
            stream.start()
            return stream
        except (ValueError, self._audio.PortAudioError) as error:
            raise DeviceError(f"microphone '{config.source}': {self._explain(device, error)}") from error

    def _explain(self, device: int | str | None, error: Exception) -> str:
        inputs = [entry for entry in self._audio.query_devices() if entry["max_input_channels"]]
        found = ", ".join(f"{entry['index']} '{entry['name']}'" for entry in inputs) or "none"
        if device is None and not inputs:
            return "this machine has no input device"
        try:
            entry = self._audio.query_devices(device, "input")
        except (ValueError, self._audio.PortAudioError) as unknown:
            return f"{first_line(unknown)}; found: {found}"
        offers = f"{entry['default_samplerate']:.0f} Hz and up to {entry['max_input_channels']} channels"
        return f"cannot be opened: {error.args[0]}; '{entry['name']}' offers {offers}"

    def _on_audio(self, data: Any, frames: int, times: Any, status: Any) -> None:
        # PortAudio's thread: copy and return.
        host_ns = self._clock()
        self._received_ns = host_ns
        adc_s, now_s = times.inputBufferAdcTime, times.currentTime
        if not 0 <= now_s - adc_s <= _MAX_ADC_AGE_S:
            # Some backends set no ADC time: the block ended at the time of the call.
            adc_s, now_s = 0.0, frames / self._config.rate_hz
        adc_ns = device_to_host_ns(adc_s, now_s, host_ns)
        callback = Callback(bytes(data), frames, adc_ns, bool(status.input_overflow), self._dropped)
        try:
            self._callbacks.put_nowait(callback)
            self._dropped = 0
        except queue.Full:
            self._dropped += frames

    def _reopen(self) -> None:
        now_ns = self._clock()
        if not self._retry_ns:  # it was open, and stopped delivering
            self._stamper.counts["lost"] += not self._reason
            self._reason = self._reason or f"microphone '{self._config.source}': stopped delivering sound"
            self._schedule_retry(now_ns, worked_s=max(0, self._received_ns - self._opened_ns) / 1e9)
            if self._backoff.failures == 1:
                self._retry_ns = now_ns
        if now_ns < self._retry_ns:
            return
        try:
            self.close()
            # PortAudio lists devices only when it is initialised.
            self._audio._terminate()
            self._audio._initialize()
            self._stream = self._open()
        except (DeviceError, self._audio.PortAudioError) as error:
            self._reason = str(error)
            self._schedule_retry(now_ns, worked_s=0.0)
            return
        self._received_ns = self._opened_ns = now_ns
        self._retry_ns = 0
        self._stamper.reopened()
        self._stamper.counts["reopened"] += 1

    def _schedule_retry(self, now_ns: int, worked_s: float) -> None:
        self._retry_ns = now_ns + round(self._backoff.failed(worked_s) * 1e9)


def _portaudio() -> Any:
    try:
        import sounddevice
    except OSError as error:
        raise MissingPackageError("PortAudio is not installed: apt-get install libportaudio2") from error
    return sounddevice


class FileMicrophone(Closing):
    """A file's sound, played from `origin_ns` on by its sample counter: no drift, no gap."""

    def __init__(self, config: MicrophoneConfig, *, clock: Clock, origin_ns: int) -> None:
        from perception.devices.sound import Sound  # loads FFmpeg, which a live microphone does not need

        self._config = config
        self._clock = clock
        self._origin_ns = origin_ns
        self._closed = threading.Event()
        self._index = max(clock() - origin_ns, 0) * config.rate_hz // SECOND_NS
        self._sound = Sound(
            str(config.source),
            rate_hz=config.rate_hz,
            channels=config.channels,
            sample_format=config.format,
            loop=config.loop,
            start=self._index,
        )
        self._blocks = self._sound.blocks(round(config.block_ms * config.rate_hz / 1000))
        # Decode the first block here, so that a damaged file is refused at the start.
        self._next_block: RawSamples | None = next(self._blocks, None)

    def read(self, timeout_s: float) -> CapturedBlock | None:
        """Return the next block when its last sample is due, None after `timeout_s`; EOFError at the end."""
        if self._next_block is None:
            raise EOFError("end of file")
        wait_s = (self._stamp_ns(self._index + len(self._next_block)) - self._clock()) / 1e9
        if wait_s > timeout_s:
            self._closed.wait(timeout_s)
            return None
        self._closed.wait(max(wait_s, 0))
        block = CapturedBlock(self._next_block, self._stamp_ns(self._index), self._index)
        self._index += len(self._next_block)
        self._next_block = next(self._blocks, None)
        return block

    def report(self) -> DeviceReport:
        """Return the number of undecodable packets, of gaps and of overlaps of sound."""
        sound = self._sound
        counts = {"corrupt": sound.corrupt, "holes": sound.holes, "overlaps": sound.overlaps}
        return DeviceReport(counts, {"source": str(self._config.source)})

    def close(self) -> None:
        """End a wait in `read` and close the file."""
        self._closed.set()
        self._blocks.close()

    def _stamp_ns(self, sample_index: int) -> int:
        return self._origin_ns + sample_index * SECOND_NS // self._config.rate_hz
