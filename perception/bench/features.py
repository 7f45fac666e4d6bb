"""Time of streaming features per 100 ms of sound, compared with the FFTs alone and with other packages."""

import importlib.util
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from perception.bench.rounds import Values
from perception.features.audio import FRAMES, AudioFrontEnd
from perception.features.logmel import VGGISH, StreamingLogMel
from perception.features.resample import SincFilter
from perception.units import SECOND_NS

_BLOCKS_PER_S: Final = 10
_BLOCK: Final = VGGISH.rate_hz // _BLOCKS_PER_S
_WINDOW: Final = VGGISH.window + (FRAMES - 1) * VGGISH.hop
_DEVICE_HZ: Final = 48_000
_REPEATS: Final = 200
_MEL: Final[dict[str, Any]] = {
    "n_fft": VGGISH.fft,
    "win_length": VGGISH.window,
    "hop_length": VGGISH.hop,
    "n_mels": VGGISH.bands,
    "power": 1,
    "center": False,
}
"""Arguments with the same names in torchaudio and librosa."""


def cases(*, peers: bool) -> dict[str, Callable[[], Values]]:
    """Return the measurements by name; peers only where they are installed."""
    sound = np.random.default_rng(1).standard_normal(_DEVICE_HZ).astype(np.float32)
    calls: dict[str, Callable[[], object]] = {
        "limit: numpy FFT of the same hops": _fft(sound),
        "perception": _log_mel(sound[:_BLOCK]),
        "torchaudio, whole window": _torchaudio(sound[:_WINDOW]),
        "perception from 48 kHz": _front_end(sound),
        "torchaudio from 48 kHz, whole window": _torchaudio(sound, resampled=True),
    }
    if peers and importlib.util.find_spec("kaldi_native_fbank"):
        calls["kaldi-native-fbank"] = _kaldi(sound[:_BLOCK])
    if peers and importlib.util.find_spec("librosa"):
        calls["librosa, whole window"] = _librosa(sound[:_WINDOW])
    return {name: partial(_timed, call) for name, call in calls.items()}


def _timed(call: Callable[[], object]) -> Values:
    call()
    spent_us = []
    for _ in range(_REPEATS):
        begun_s = time.perf_counter()
        call()
        spent_us.append((time.perf_counter() - begun_s) * 1e6)
    return {"us": statistics.median(spent_us)}  # other load on the machine interrupts some calls, not most


def _fft(sound: Any) -> Callable[[], object]:
    span = sound[: _BLOCK - VGGISH.hop + VGGISH.window].astype(np.float64)
    hops = np.lib.stride_tricks.sliding_window_view(span, VGGISH.window)[:: VGGISH.hop]
    return lambda: np.fft.rfft(hops, VGGISH.fft)


def _log_mel(block: Any) -> Callable[[], object]:
    stream, index = StreamingLogMel(), 0

    def push() -> None:
        nonlocal index
        stream.push(index, block)
        index += block.size

    return push


def _front_end(sound: Any) -> Callable[[], object]:
    front_end = AudioFrontEnd(_DEVICE_HZ, _WINDOW * SECOND_NS // VGGISH.rate_hz)
    index = sound.size

    def update() -> None:
        nonlocal index
        index += _DEVICE_HZ // _BLOCKS_PER_S
        front_end.update(sound, index)

    return update


def _torchaudio(sound: Any, *, resampled: bool = False) -> Callable[[], object]:
    import torch
    from torchaudio.transforms import MelSpectrogram, Resample

    torch.set_num_threads(1)
    window, design = torch.from_numpy(sound), SincFilter()
    resample = Resample(
        _DEVICE_HZ,
        VGGISH.rate_hz,
        resampling_method="sinc_interp_kaiser",
        lowpass_filter_width=design.zeros,
        rolloff=design.rolloff,
        beta=design.beta,
    )
    mel = MelSpectrogram(VGGISH.rate_hz, f_min=VGGISH.low_hz, f_max=VGGISH.high_hz, **_MEL)

    def transform() -> None:
        torch.log(mel(resample(window) if resampled else window) + VGGISH.log_offset)

    return transform


def _kaldi(block: Any) -> Callable[[], object]:
    import kaldi_native_fbank as kaldi

    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = VGGISH.rate_hz
    options.mel_opts.num_bins = VGGISH.bands
    bank, done = kaldi.OnlineFbank(options), 0

    def push() -> None:
        nonlocal done
        bank.accept_waveform(VGGISH.rate_hz, block)
        for number in range(done, bank.num_frames_ready):
            bank.get_frame(number)
        done = bank.num_frames_ready

    return push


def _librosa(sound: Any) -> Callable[[], object]:
    from librosa.feature import melspectrogram

    def transform() -> None:
        mel = melspectrogram(
            y=sound,
            sr=VGGISH.rate_hz,
            fmin=VGGISH.low_hz,
            fmax=VGGISH.high_hz,
            htk=True,
            norm=None,
            **_MEL,
        )
        np.log(mel + VGGISH.log_offset)

    return transform
