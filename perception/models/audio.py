"""Audio encoders: VGGish, MFCC statistics, Silero's voice activity, level."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from perception.errors import ProfileError
from perception.features.mfcc import mfcc
from perception.io.home import expanded
from perception.messages import BranchState
from perception.models.device import Forward, upload
from perception.models.encoder import AudioInput, Encoding, Untrained
from perception.models.options import LevelOptions, MfccOptions, SileroOptions, VggishOptions
from perception.models.silero import SileroNetwork, load_silero, packaged_file
from perception.models.vggish import EMBEDDING, PRETRAINED_URL, Pca, load_pca, load_vggish, random_vggish
from perception.models.weights import State, local_state, seeded, source_of, url_state
from perception.units.arrays import Samples

SAMPLE_RATE_HZ: Final = 16_000
_RECENT: Final = 3
"""The last third of a window has features of its own: a short sound changes those of the whole too little."""


def _recent(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[-max(1, len(values) // _RECENT) :]


class VggishEncoder:
    """VGGish's embedding of the window's last 96 log-mel frames."""

    Options: TypeAlias = VggishOptions
    modality: ClassVar[str] = "microphone"
    dim = EMBEDDING

    def __init__(
        self,
        options: Options,
        *,
        device: torch.device,
        seed: int,
        weights: str | None = None,
        state: State | None = None,
    ) -> None:
        """Build it from `weights`, or from a state dict that is already loaded."""
        source, path = source_of(weights)
        if state is None and source != "random":
            state = local_state(path) if source == "local" else url_state(PRETRAINED_URL)
        if state is None:
            model = random_vggish(seed, options.activation)
        else:
            model = load_vggish(state, weights or "pretrained", options.activation)
        if options.dtype == "bfloat16":
            model.to(torch.bfloat16).to(memory_format=torch.channels_last)  # a seventh faster on a CPU
        pca = self._post_processing(options, state)
        self._model = nn.Sequential(model, *pca).eval().requires_grad_(False).to(device)
        self.network = nn.Sequential(nn.Flatten(1, 2), self._model)
        self._whole_numbers = options.postprocess == "pca-8bit"
        self._device = device
        self.forward = Forward("vggish", lambda log_mel: (self._model(log_mel).float(),), device=device)

    def __call__(self, data: AudioInput, /) -> Encoding:
        """Encode the log-mel frames. With `pca-8bit` the features are 0 to 255, as in AudioSet's release."""
        (features,) = self.forward(upload(_frames(data)[None], self._device))
        return Encoding(features[0])

    def prepare(self, data: AudioInput, /) -> torch.Tensor:
        """Return the network's input for training: (1, 96, 64) float32."""
        if self._whole_numbers:
            raise ProfileError("postprocess = 'pca-8bit' gives whole numbers, which cannot be trained")
        return torch.from_numpy(_frames(data))[None]

    def encode_batch(self, batch: Sequence[AudioInput | None]) -> list[Encoding | None]:
        """Encode the windows of several microphones in one pass, always as large as the batch."""
        rows = np.zeros((len(batch), 96, 64), np.float32)
        usable = [False] * len(batch)
        for at, data in enumerate(batch):
            with suppress(ValueError):
                if data is not None:
                    rows[at], usable[at] = _frames(data), True
        (features,) = self.forward(upload(rows, self._device))
        return [Encoding(row) if known else None for row, known in zip(features, usable, strict=True)]

    def weights(self) -> State:
        """Return the weights of the network, and of the post-processing if there is one."""
        return dict(self._model.state_dict())

    @staticmethod
    def _post_processing(options: Options, state: State | None) -> list[Pca]:
        if options.postprocess == "none":
            return []
        quantise = options.postprocess == "pca-8bit"
        if options.pca is not None:
            return [load_pca(expanded(options.pca), quantise=quantise)]
        if state is not None and "pproc.pca_matrix" in state:
            return [load_pca(state, quantise=quantise)]
        raise ProfileError(f"postprocess = '{options.postprocess}' needs option pca: vggish_pca_params.npz")


def _frames(data: AudioInput) -> Samples:
    if data.log_mel.shape != (96, 64) or not np.isfinite(data.log_mel).all():
        raise ValueError(f"VGGish takes (96, 64) finite log-mel frames, not {data.log_mel.shape}")
    return np.asarray(data.log_mel, np.float32)


class MfccStatistics(Untrained[MfccOptions]):
    """Statistics of the window's mel-frequency cepstral coefficients.

    Features: mean, standard deviation, minimum and maximum per coefficient, then mean and maximum of the
    last third of the window.
    """

    Options: TypeAlias = MfccOptions
    modality: ClassVar[str] = "microphone"

    def __init__(self, options: Options, **others: Any) -> None:
        super().__init__(options, **others)
        self.dim = 6 * options.coefficients

    def __call__(self, data: AudioInput, /) -> Encoding:
        """Compute the statistics of the log-mel frames."""
        if not np.isfinite(data.log_mel).all():
            raise ValueError("log-mel frames are not finite")
        frames = mfcc(data.log_mel, self._options.coefficients)
        recent = _recent(frames)
        whole = [of(frames, axis=0) for of in (np.mean, np.std, np.min, np.max)]
        features = np.concatenate([*whole, recent.mean(axis=0), recent.max(axis=0)]).astype(np.float32)
        return Encoding(torch.from_numpy(features))


class SileroVoice:
    """Silero's voice activity over the window, started from silence each time, so it keeps no state.

    Features: mean and maximum probability of speech, its last value, mean and maximum of the last third.
    The branch scores "speech" with the last of these.
    """

    Options: TypeAlias = SileroOptions
    modality: ClassVar[str] = "microphone"
    dim = 5

    def __init__(
        self, options: Options, *, device: torch.device, seed: int, weights: str | None = None
    ) -> None:
        source, path = source_of(weights)
        if source == "random":
            with seeded(seed):
                network = SileroNetwork()
        else:
            network = load_silero(path if source == "local" else packaged_file())
        self._network = network.eval().requires_grad_(False).to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, data: AudioInput, /) -> Encoding:
        """Score the whole chunks of 512 samples that end with the window."""
        if data.waveform.size < SileroNetwork.CHUNK or not np.isfinite(data.waveform).all():
            raise ValueError(f"voice activity takes {SileroNetwork.CHUNK} or more finite samples")
        speech = self._network(upload(np.asarray(data.waveform, np.float32), self._device))
        recent = speech[-max(1, len(speech) // _RECENT) :]
        features = torch.stack([speech.mean(), speech.max(), speech[-1], recent.mean(), recent.max()])
        return Encoding(features, lambda: BranchState(labels=("speech",), scores=(float(features[4]),)))

    def weights(self) -> State:
        """Return the network's weights."""
        return dict(self._network.state_dict())


class Level(Untrained[LevelOptions]):
    """Loudness, shape and onsets of the sound, computed without a model.

    Features: level, peak, zero crossings and crest factor of the whole window, the same of its last third,
    then onsets in the window and in its last third, and the time since the last one. Scaled to about 1:
    dBFS / 60 + 1 and clipped at -1, crossings per sample, dB / 20, onsets / 4, fraction of the window.
    """

    Options: TypeAlias = LevelOptions
    modality: ClassVar[str] = "microphone"
    dim = 11

    def __call__(self, data: AudioInput, /) -> Encoding:
        """Measure the waveform."""
        if not data.waveform.size or not np.isfinite(data.waveform).all():
            raise ValueError("level takes finite samples, at least one")
        waveform = data.waveform.astype(np.float64)
        features = [*_loudness(waveform), *_loudness(_recent(waveform)), *self._onset_features(waveform)]
        return Encoding(torch.tensor(features, dtype=torch.float32))

    def _onset_features(self, waveform: npt.NDArray[np.float64]) -> list[float]:
        levels = _levels(waveform)
        found = onsets(levels, self._options.onset_db, self._options.floor_dbfs)
        recent = sum(at >= len(levels) - len(levels) // _RECENT for at in found)
        age = (len(levels) - found[-1]) / len(levels) if found else 1.0
        return [len(found) / 4, recent / 4, age]


_SILENCE_DBFS: Final = -120.0
_FRAME: Final = SAMPLE_RATE_HZ // 100
_BEFORE: Final = 5
_REFRACTORY: Final = 10
"""Frames of 10 ms: those before an onset that it is compared with, and the least distance of two onsets."""


def onsets(levels: npt.NDArray[np.float64], rise_db: float, floor_dbfs: float) -> list[int]:
    """Return the 10 ms frames in which the level rises `rise_db` over each of the five before."""
    if levels.size <= _BEFORE:
        return []
    before = np.lib.stride_tricks.sliding_window_view(levels, _BEFORE)[:-1].max(axis=1)
    now = levels[_BEFORE:]
    found: list[int] = []
    for at in np.flatnonzero((now >= before + rise_db) & (now >= floor_dbfs)) + _BEFORE:
        if not found or at - found[-1] >= _REFRACTORY:
            found.append(int(at))
    return found


def _levels(waveform: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the level of each 10 ms frame in dBFS; the frames end with the waveform."""
    count = waveform.size // _FRAME
    frames = waveform[waveform.size - count * _FRAME :].reshape(count, _FRAME)
    return _decibels(np.sqrt(np.square(frames).mean(axis=1)))


def _loudness(waveform: npt.NDArray[np.float64]) -> list[float]:
    level, peak = _decibels(np.array([np.sqrt(np.square(waveform).mean()), np.abs(waveform).max()]))
    negative = np.signbit(waveform)
    crossings = np.count_nonzero(negative[1:] != negative[:-1]) / waveform.size
    return [level / 60 + 1, peak / 60 + 1, crossings, (peak - level) / 20]


def _decibels(amplitude: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 20 * np.log10(np.maximum(amplitude, 10 ** (_SILENCE_DBFS / 20)))


AUDIO_ENCODERS: Final[dict[str, type]] = {
    "vggish": VggishEncoder,
    "mfcc": MfccStatistics,
    "silero": SileroVoice,
    "level": Level,
}
