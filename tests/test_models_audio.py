"""Audio encoders: their results for sounds whose truth is known."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

import perception.devices
from perception.errors import ProfileError, WeightsError
from perception.features.logmel import log_mel
from perception.features.mfcc import mfcc
from perception.features.resample import resample
from perception.models.audio import (
    AUDIO_ENCODERS,
    Level,
    MfccStatistics,
    SileroVoice,
    VggishEncoder,
)
from perception.models.encoder import AudioInput, Encoding
from perception.models.silero import SileroNetwork, packaged_file
from perception.models.vggish import VGGish, random_vggish
from perception.units.arrays import Samples

CPU = torch.device("cpu")


def noise(level: float = 0.01, samples: int = 15_600, seed: int = 1) -> Samples:
    return (np.random.default_rng(seed).standard_normal(samples) * level).astype(np.float32)


def sine(amplitude: float = 0.5, hz: float = 1000.0) -> Samples:
    return (amplitude * np.sin(2 * np.pi * hz * (np.arange(15_600) + 0.5) / 16_000)).astype(np.float32)


def with_claps(*starts: int) -> Samples:
    waveform = noise(0.001)
    decay = np.exp(-np.arange(1600) / 200)
    for start in starts:
        waveform[start : start + 1600] += (noise(0.3, 1600) * decay)[: waveform.size - start]
    return waveform


def sound(waveform: Samples) -> AudioInput:
    return AudioInput(waveform, log_mel(waveform))


@pytest.fixture(scope="module")
def vggish() -> VGGish:
    return random_vggish(3).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vggish_state(vggish: VGGish) -> dict[str, torch.Tensor]:
    return vggish.state_dict()


@pytest.fixture(scope="module")
def encoders(vggish_state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        "vggish": VggishEncoder(VggishEncoder.Options(), device=CPU, seed=0, state=vggish_state),
        "mfcc": MfccStatistics(MfccStatistics.Options(), device=CPU, seed=0),
        "silero": SileroVoice(SileroVoice.Options(), device=CPU, seed=0),
        "level": Level(Level.Options(), device=CPU, seed=0),
    }


@pytest.mark.parametrize("kind", AUDIO_ENCODERS)
def test_every_encoder_keeps_the_protocol(encoders: dict[str, Any], kind: str) -> None:
    encoder = encoders[kind]
    first: Encoding = encoder(sound(with_claps(3000)))
    assert first.features.shape == (encoder.dim,)
    assert first.features.dtype == torch.float32
    assert len(first.branch.labels) == len(first.branch.scores)
    encoder(sound(noise()))
    again: Encoding = encoder(sound(with_claps(3000)))
    assert torch.equal(first.features, again.features)
    assert again.branch == first.branch
    assert encoder.modality == "microphone"


@pytest.mark.parametrize("kind", AUDIO_ENCODERS)
def test_sound_that_is_not_finite_is_refused(encoders: dict[str, Any], kind: str) -> None:
    waveform = noise()
    waveform[7000] = np.nan
    frames = np.full((96, 64), np.nan, np.float32)
    with pytest.raises(ValueError, match="finite"):
        encoders[kind](AudioInput(waveform, frames))


@pytest.mark.parametrize("kind", AUDIO_ENCODERS)
def test_silence_is_an_ordinary_input(encoders: dict[str, Any], kind: str) -> None:
    assert encoders[kind](sound(np.zeros(15_600, np.float32))).features.isfinite().all()


@pytest.mark.parametrize("kind", AUDIO_ENCODERS)
def test_only_what_was_trained_has_weights(encoders: dict[str, Any], kind: str) -> None:
    assert bool(encoders[kind].weights()) == (kind in ("vggish", "silero"))


def test_vggish_encodes_several_microphones_in_one_pass(encoders: dict[str, Any]) -> None:
    encoder = encoders["vggish"]
    data = sound(noise())
    broken = AudioInput(data.waveform, np.full((96, 64), np.nan, np.float32))
    first, nothing, refused, last = encoder.encode_batch([data, None, broken, data])
    assert nothing is refused is None
    alone = encoder(data).features
    torch.testing.assert_close(first.features, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last.features, alone, rtol=1e-4, atol=1e-4)


def test_vggish_encodes_the_log_mel_frames(encoders: dict[str, Any], vggish: VGGish) -> None:
    data = sound(noise())
    expected = vggish(torch.tensor(data.log_mel)[None])[0]
    torch.testing.assert_close(encoders["vggish"](data).features, expected)
    assert sum(tensor.numel() for tensor in encoders["vggish"].weights().values()) == 72_141_184
    with pytest.raises(ValueError, match=r"\(96, 64\)"):
        encoders["vggish"](AudioInput(data.waveform, data.log_mel[:95]))


def test_vggish_post_processing_comes_out_of_torchvggishs_state(
    encoders: dict[str, Any], vggish_state: dict[str, torch.Tensor]
) -> None:
    pca = {"pproc.pca_matrix": torch.eye(128) / 8, "pproc.pca_means": torch.zeros(128, 1)}
    options = VggishEncoder.Options(postprocess="pca-8bit")
    encoder = VggishEncoder(options, device=CPU, seed=0, state={**vggish_state, **pca})
    data = sound(noise())
    raw = encoders["vggish"](data).features
    quantised = ((raw / 8).clamp(-2, 2) + 2) * 63.75
    torch.testing.assert_close(encoder(data).features, quantised.floor(), atol=1, rtol=0)
    with pytest.raises(ProfileError, match="needs option pca"):
        VggishEncoder(options, device=CPU, seed=0, state=vggish_state)


def test_vggish_is_trained_on_what_it_runs_on_and_found_again(
    encoders: dict[str, Any], vggish_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    pca = tmp_path / "pca.safetensors"
    save_file({"pca_eigen_vectors": torch.eye(128) / 8, "pca_means": torch.zeros(128)}, pca)
    options = VggishEncoder.Options(postprocess="pca", pca=str(pca))
    data = sound(with_claps(3000))
    for encoder in (encoders["vggish"], VggishEncoder(options, device=CPU, seed=0, state=vggish_state)):
        trained = encoder.network(torch.stack([encoder.prepare(data), encoder.prepare(sound(noise()))]))
        torch.testing.assert_close(trained[0], encoder(data).features, atol=1e-5, rtol=1e-4)
    stored = encoder.weights()
    again = VggishEncoder(options, device=CPU, seed=0, state=stored)
    assert torch.equal(again(data).features, encoder(data).features)
    whole = VggishEncoder.Options(postprocess="pca-8bit", pca=str(pca))
    with pytest.raises(ProfileError, match="whole numbers, which cannot be trained"):
        VggishEncoder(whole, device=CPU, seed=0, state=stored).prepare(data)


def test_a_missing_vggish_file_is_one_clear_error() -> None:
    with pytest.raises(WeightsError, match=r"/nowhere/vggish.pth: no such weights file"):
        VggishEncoder(VggishEncoder.Options(), device=CPU, seed=0, weights="/nowhere/vggish.pth")


def test_mfcc_statistics_are_what_they_say(encoders: dict[str, Any]) -> None:
    data = sound(with_claps(12_000))
    frames = mfcc(data.log_mel, 20)
    features = encoders["mfcc"](data).features.numpy().reshape(6, 20)
    expected = [
        frames.mean(0),
        frames.std(0),
        frames.min(0),
        frames.max(0),
        frames[64:].mean(0),
        frames[64:].max(0),
    ]
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_mfcc_tells_an_early_clap_from_a_late_one(encoders: dict[str, Any]) -> None:
    early, late = (encoders["mfcc"](sound(with_claps(at))).features.reshape(6, 20) for at in (2000, 13_000))
    assert abs(early[3, 0] - late[3, 0]) < 6
    assert late[5, 0] - early[5, 0] > 10


def test_a_whole_window_through_silero_equals_its_own_model_chunk_by_chunk() -> None:
    """The package's TorchScript model, whose weights are of another release, is the reference."""
    with pytest.warns(FutureWarning, match="jit"):
        reference = torch.jit.load(  # type: ignore[no-untyped-call]
            str(packaged_file().parent / "silero_vad.jit")
        )
    network = SileroNetwork()
    network.load_state_dict(
        {
            _own_name(name): value
            for name, value in reference.state_dict().items()
            if name.startswith("_model.")
        }
    )
    waveform = torch.from_numpy(with_claps(4000, 9000)[:15_360] + sine(0.2, 180.0)[:15_360])
    with torch.no_grad():
        expected = torch.cat([reference(chunk[None], 16_000)[0] for chunk in waveform.reshape(-1, 512)])
        torch.testing.assert_close(network(waveform), expected, atol=1e-5, rtol=0)
        padded = torch.cat([torch.zeros(100), waveform])
        torch.testing.assert_close(network(padded), expected, atol=1e-5, rtol=0)


def _own_name(name: str) -> str:
    name = name.removeprefix("_model.")
    for index in range(4):
        name = name.replace(f"encoder.{index}.reparam_conv", f"conv{index + 1}")
    name = name.replace("stft.forward_basis_buffer", "stft_conv.weight").replace(
        "decoder.decoder.2", "final_conv"
    )
    return f"lstm.{name.removeprefix('decoder.rnn.')}_l0" if name.startswith("decoder.rnn.") else name


@pytest.mark.parametrize("voice", range(8))
def test_silero_hears_the_scripted_voices(encoders: dict[str, Any], voice: int) -> None:
    file = Path(perception.devices.__file__).parent / "assets" / f"voice-{voice}.ogg"
    samples, rate_hz = soundfile.read(file, dtype="float32")
    encoding = encoders["silero"](sound(resample(samples, rate_hz, 16_000)[:15_600]))
    assert encoding.branch.labels == ("speech",)
    assert encoding.branch.scores[0] > 0.6


def test_silero_takes_neither_noise_nor_claps_for_speech(encoders: dict[str, Any]) -> None:
    for waveform in (noise(0.05), with_claps(13_000), np.zeros(15_600, np.float32)):
        assert encoders["silero"](sound(waveform)).branch.scores[0] < 0.4


def test_silero_refuses_less_than_a_chunk(encoders: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="512"):
        encoders["silero"](sound(noise(samples=511)))


def test_random_silero_weights_follow_their_seed() -> None:
    first, same, other = (
        SileroVoice(SileroVoice.Options(), device=CPU, seed=seed, weights="random").weights()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_the_level_of_a_sine_is_known(encoders: dict[str, Any]) -> None:
    level, peak, crossings, crest = encoders["level"](sound(sine())).features[:4].tolist()
    assert level == pytest.approx(20 * math.log10(0.5 / math.sqrt(2)) / 60 + 1, abs=1e-3)
    assert peak == pytest.approx(20 * math.log10(0.5) / 60 + 1, abs=4e-3)
    assert crossings == pytest.approx(2 * 1000 / 16_000, rel=0.01)
    assert crest == pytest.approx(20 * math.log10(math.sqrt(2)) / 20, abs=1e-2)


def test_level_counts_claps_and_tells_how_long_ago_the_last_was(encoders: dict[str, Any]) -> None:
    onsets, recent, age = encoders["level"](sound(with_claps(3200, 8000, 13_600))).features[8:].tolist()
    assert (onsets * 4, recent * 4) == (3, 1)
    assert age == pytest.approx((15_600 - 13_600) / 15_600, abs=0.02)
    assert encoders["level"](sound(noise())).features[8:].tolist() == [0, 0, 1]


def test_digital_silence_is_the_lowest_level(encoders: dict[str, Any]) -> None:
    assert encoders["level"](sound(np.zeros(15_600, np.float32))).features[:2].tolist() == [-1, -1]


def test_a_recent_sound_shows_in_the_last_third(encoders: dict[str, Any]) -> None:
    features = encoders["level"](sound(with_claps(13_000))).features
    assert features[4] > features[0]


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        Level.Options.model_validate({"onset": 3})
    with pytest.raises(ValidationError):
        MfccStatistics.Options.model_validate({"coefficients": 65})
