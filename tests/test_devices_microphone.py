"""Microphones: the stamping of callbacks as a pure function, files, and PulseAudio for real."""

import math
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from perception.devices.microphone import (
    BlockStamper,
    Callback,
    FileMicrophone,
    PortAudioMicrophone,
    open_microphone,
    signal_limits,
)
from perception.errors import DeviceError
from perception.profile import MicrophoneConfig, ScriptConfig
from tests.media import RATE_HZ, noise, write_wav
from tests.pulse import installed, pulse_server
from tests.waiting import LONG_S

BLOCK = 512
BLOCK_NS = BLOCK * 1_000_000_000 // RATE_HZ
START_NS = 1_790_000_000_000_000_000
MS = 1_000_000


class Driver:
    """Passes callbacks to a stamper, on time unless a test sets a delay."""

    def __init__(self) -> None:
        self.stamper = BlockStamper(MicrophoneConfig())
        self.now_ns = START_NS

    def calls(self, count: int, **what: int | bool) -> list[tuple[int, int, int]]:
        """Return index, gap and stamp error (ns) of the returned blocks."""
        out = []
        for number in range(count):
            once = what if number == 0 else {}
            late_ns, dropped = int(once.get("late_ns", 0)), int(once.get("dropped", 0))
            overflow = bool(once.get("overflow", False))
            callback = Callback(bytes(2 * BLOCK), BLOCK, self.now_ns + late_ns, overflow, dropped)
            block = self.stamper.block(callback)
            if block is not None:
                out.append((block.sample_index, block.gap, block.stamp_ns - self.now_ns))
            self.now_ns += BLOCK_NS
        return out


class Mute:
    """A PortAudio whose device can always be opened, and then delivers a few blocks or nothing."""

    PortAudioError = ValueError

    def __init__(self, blocks: int) -> None:
        self.now_ns = START_NS
        self.opened_s: list[float] = []
        self._blocks = blocks

    def RawInputStream(self, callback: Any, **_: Any) -> Any:  # noqa: N802  # PortAudio's name
        self.opened_s.append((self.now_ns - START_NS) / 1e9)
        times = SimpleNamespace(inputBufferAdcTime=0.0, currentTime=math.inf)
        for _number in range(self._blocks):
            callback(bytes(2 * BLOCK), BLOCK, times, SimpleNamespace(input_overflow=False))
        return SimpleNamespace(start=lambda: None, close=lambda ignore_errors: None)

    def _terminate(self) -> None: ...

    def _initialize(self) -> None: ...


@pytest.mark.parametrize("blocks", [0, 3])
def test_a_device_that_opens_and_falls_silent_is_opened_ever_more_seldom(blocks: int) -> None:
    audio = Mute(blocks)
    with PortAudioMicrophone(MicrophoneConfig(), clock=lambda: audio.now_ns, audio=audio) as microphone:
        while len(audio.opened_s) < 9:
            microphone.read(0.0)
            audio.now_ns += 100 * MS
    pauses = [round(after - before, 1) for before, after in pairwise(audio.opened_s)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 3.2, "the first time at once, when it has been silent for 3 s"
    assert 12.9 < pauses[-1] < 13.3, "10 s more in the end"


@pytest.fixture
def driver() -> Driver:
    driver = Driver()
    driver.calls(50)
    return driver


def test_the_first_callbacks_place_the_clock_and_are_not_given_out() -> None:
    blocks = Driver().calls(20)
    assert blocks[0] == (8 * BLOCK, 0, 0)
    assert [index for index, _, _ in blocks] == list(range(8 * BLOCK, 20 * BLOCK, BLOCK))


def test_adc_times_that_stand_still_at_first_are_waited_out() -> None:
    driver = Driver()
    for number in range(20):
        driver.calls(1, late_ns=-(20 - number) * 35 * MS)
    blocks = driver.calls(30)
    assert blocks
    assert all(gap == 0 and abs(error) < MS for _, gap, error in blocks)


def test_a_reported_overflow_becomes_a_gap_of_the_samples_lost(driver: Driver) -> None:
    driver.now_ns += 3 * BLOCK_NS
    (index, gap, error_ns), (following, no_gap, _) = driver.calls(2, overflow=True)
    assert (index, gap, no_gap) == (53 * BLOCK, 3 * BLOCK, 0)
    assert following == index + BLOCK
    assert abs(error_ns) < MS
    assert driver.stamper.counts["samples_lost"] == 3 * BLOCK
    assert driver.stamper.counts["overflows"] == 1


def test_a_loss_nobody_reports_is_found_and_counted(driver: Driver) -> None:
    driver.now_ns += 100 * MS
    blocks = driver.calls(60)
    assert sum(gap for _, gap, _ in blocks) == pytest.approx(1600, abs=40)
    assert abs(blocks[-1][2]) < 2 * MS


def test_a_late_callback_is_neither_a_loss_nor_a_step(driver: Driver) -> None:
    ((_, gap, error_ns), *_) = driver.calls(5, late_ns=80 * MS)
    assert gap == 0
    assert abs(error_ns) < MS


def test_samples_left_out_for_a_slow_reader_are_a_gap(driver: Driver) -> None:
    driver.now_ns += 2 * BLOCK_NS
    ((index, gap, error_ns), *_) = driver.calls(2, dropped=2 * BLOCK)
    assert (index, gap) == (52 * BLOCK, 2 * BLOCK)
    assert abs(error_ns) < MS


def test_what_a_device_missed_while_it_was_away_is_one_gap(driver: Driver) -> None:
    driver.now_ns += 7_000 * MS
    driver.stamper.reopened()
    blocks = driver.calls(40)
    assert blocks[0][1] == 7 * RATE_HZ
    assert all(abs(error) < MS for _, _, error in blocks)


def test_a_file_is_given_out_by_its_own_counter(tmp_path: Path) -> None:
    samples = noise(1200)
    path = write_wav(tmp_path / "a.wav", samples)
    time_ns = [START_NS]
    config = MicrophoneConfig(source=str(path))
    with FileMicrophone(config, clock=lambda: time_ns[0], origin_ns=START_NS) as microphone:
        assert microphone.read(0.0) is None
        time_ns[0] += 1_000 * MS
        blocks = [block for _ in range(3) if (block := microphone.read(0.0)) is not None]
        with pytest.raises(EOFError):
            microphone.read(0.0)
    assert np.array_equal(np.concatenate([block.samples[:, 0] for block in blocks]), samples)
    assert [block.sample_index for block in blocks] == [0, 512, 1024]
    assert [block.stamp_ns - START_NS for block in blocks] == [0, 32 * MS, 64 * MS]


def test_a_microphone_that_joins_a_file_late_hears_the_present(tmp_path: Path) -> None:
    samples = noise(16_000)
    path = write_wav(tmp_path / "a.wav", samples)
    time_ns = [START_NS + 500 * MS]
    config = MicrophoneConfig(source=str(path), loop=True)
    with FileMicrophone(config, clock=lambda: time_ns[0], origin_ns=START_NS) as microphone:
        time_ns[0] += 1_000 * MS
        block = microphone.read(0.0)
    assert block is not None
    assert (block.sample_index, block.stamp_ns) == (8000, START_NS + 500 * MS)
    assert np.array_equal(block.samples[:, 0], samples[8000:8512])


def open_source(source: int | str) -> object:
    config = MicrophoneConfig(source=source)
    return open_microphone(config, ScriptConfig(), clock=time.monotonic_ns, origin_ns=time.monotonic_ns())


def test_what_cannot_be_opened_is_one_clear_line(tmp_path: Path) -> None:
    garbage = tmp_path / "noise.wav"
    garbage.write_bytes(b"no sound " * 100)
    with pytest.raises(DeviceError, match=r"none\.flac: no such file"):
        open_source(str(tmp_path / "none.flac"))
    with pytest.raises(DeviceError, match=r"noise\.wav: cannot be opened: Invalid data"):
        open_source(str(garbage))


@pytest.mark.pulse
@pytest.mark.skipif(not installed(), reason="PulseAudio is not installed")
def test_what_is_played_to_pulseaudio_is_heard_whole_and_stamped_truly(tmp_path: Path) -> None:
    # Below 2 kHz, because the player starts at a random time between two samples.
    played = np.convolve(noise(RATE_HZ), np.hanning(17) / 4, "same").astype(np.int16)
    wav = write_wav(tmp_path / "noise.wav", played)
    with pulse_server(tmp_path) as environment:
        recorded = subprocess.run(
            (sys.executable, "-m", "tests.hear", str(wav)),
            env=os.environ | environment,
            capture_output=True,
            check=False,
            timeout=LONG_S,
        )
    assert recorded.returncode == 0, recorded.stderr.decode()
    record = np.load(tmp_path / "recorded.npz")
    assert not record["gaps"].any()
    assert all(later - earlier == BLOCK for earlier, later in pairwise(record["indices"].tolist()))
    samples = record["samples"].astype(np.float64)
    best = int(np.correlate(samples, played.astype(np.float64), "valid").argmax())
    assert np.corrcoef(samples[best : best + RATE_HZ], played)[0, 1] >= 0.99
    ages_ms = record["ages_ms"]
    assert -5 < np.median(ages_ms) < 150


@pytest.mark.parametrize(
    ("stored_hz", "loop", "narrowest_hz", "loop_s"),
    [(8000, False, 0, 1.5), (16_000, False, 4200, 1.5), (44_100, True, 4200, 0.0)],
)
def test_a_file_is_judged_as_what_it_claims_to_be(
    tmp_path: Path, stored_hz: int, loop: bool, narrowest_hz: int, loop_s: float
) -> None:
    path = write_wav(tmp_path / "sound.wav", noise(stored_hz), stored_hz)
    limits = signal_limits(MicrophoneConfig(source=str(path), loop=loop))
    assert (limits.narrowest_hz, limits.loop_s) == (narrowest_hz, loop_s)
    assert signal_limits(MicrophoneConfig(source="scripted")) == MicrophoneConfig().signal
