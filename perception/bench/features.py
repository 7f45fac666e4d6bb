"""What streaming features cost per 100 ms of sound, beside the FFTs alone and what others do instead."""

import importlib.util
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from perception.bench.rounds import Values
from perception.features.logmel import VGGISH, StreamingLogMel

_BLOCK: Final = VGGISH.rate_hz // 10
_WINDOW: Final = 15_600
_REPEATS: Final = 200


def cases(*, peers: bool) -> dict[str, Callable[[], Values]]:
    """Return what to measure, by name; peers only where they are installed."""
    sound = np.random.default_rng(1).standard_normal(_WINDOW).astype(np.float32)
    found: dict[str, Callable[[], Values]] = {
        "limit: numpy FFT of the same hops": partial(_timed, _fft(sound)),
        "perception": partial(_timed, _perception(sound[:_BLOCK])),
        "torchaudio, whole window": partial(_timed, _torchaudio(sound)),
    }
    if peers and importlib.util.find_spec("kaldi_native_fbank"):
        found["kaldi-native-fbank"] = partial(_timed, _kaldi(sound[:_BLOCK]))
    return found


def _timed(call: Callable[[], object]) -> Values:
    call()
    begun_s = time.perf_counter()
    for _ in range(_REPEATS):
        call()
    return {"us": (time.perf_counter() - begun_s) / _REPEATS * 1e6}


def _fft(sound: Any) -> Callable[[], object]:
    span = sound[: _BLOCK - VGGISH.hop + VGGISH.window].astype(np.float64)
    hops = np.lib.stride_tricks.sliding_window_view(span, VGGISH.window)[:: VGGISH.hop]
    return lambda: np.fft.rfft(hops, VGGISH.fft)


def _perception(block: Any) -> Callable[[], object]:
    stream = StreamingLogMel()

    def push() -> None:
        stream.push(stream.end * VGGISH.hop + VGGISH.window - VGGISH.hop if stream.end else 0, block)

    stream.push(0, np.zeros(VGGISH.window, np.float32))
    return push


def _torchaudio(sound: Any) -> Callable[[], object]:
    import torch
    from torchaudio.transforms import MelSpectrogram

    torch.set_num_threads(1)
    window = torch.from_numpy(sound)
    mel = MelSpectrogram(
        VGGISH.rate_hz,
        n_fft=VGGISH.fft,
        win_length=VGGISH.window,
        hop_length=VGGISH.hop,
        n_mels=VGGISH.bands,
        f_min=VGGISH.low_hz,
        f_max=VGGISH.high_hz,
        power=1,
        center=False,
    )
    return lambda: torch.log(mel(window) + VGGISH.log_offset)


def _kaldi(block: Any) -> Callable[[], object]:
    import kaldi_native_fbank as kaldi

    options = kaldi.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.samp_freq = VGGISH.rate_hz
    options.mel_opts.num_bins = VGGISH.bands
    bank, done = kaldi.OnlineFbank(options), [0]

    def push() -> None:
        bank.accept_waveform(VGGISH.rate_hz, block)
        for number in range(done[0], bank.num_frames_ready):
            bank.get_frame(number)
        done[0] = bank.num_frames_ready

    return push
