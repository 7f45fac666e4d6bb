"""Perturbations of the inputs of a recording, each alone and combined."""

from collections import Counter

import numpy as np
import pytest
from msgspec import structs

from perception.errors import SessionError
from perception.features.window import decode_samples
from perception.messages import AudioBlock, CameraFrame, Message, TextCommand
from perception.session.recompute.perturb import (
    Perturbation,
    Perturbed,
    delay,
    drift,
    drop,
    freeze,
    gain,
    noise,
    shift,
    stamp_leap,
    typos,
    without,
)
from perception.units import SECOND_NS
from tests.streams import CAMERA, MICROPHONE, MS, START_NS, TEXT, Stream, clock_tick, of, scripted_room, text


@pytest.fixture(scope="module")
def recording() -> Stream:
    return scripted_room()


def apply(stream: Stream, *perturbations: Perturbation) -> Stream:
    result = list(Perturbed(stream, *perturbations))
    assert result == list(Perturbed(stream, *perturbations))
    arrivals = [one.received_ns for one in result]
    assert arrivals == sorted(arrivals)
    return result


def test_without_loses_a_stream_for_a_while(recording: Stream) -> None:
    left = of(apply(recording, without("camera", from_s=1.0, to_s=2.0)), CAMERA)
    assert {one.header.stamp_ns for one in of(recording, CAMERA)} - {one.header.stamp_ns for one in left} == {
        START_NS + SECOND_NS + k * 50 * MS for k in range(20)
    }
    assert not of(apply(recording, without("camera")), CAMERA)


def test_delay_moves_arrivals_and_not_stamps(recording: Stream) -> None:
    result = apply(recording, delay("microphone", ms=150))
    before, after = of(recording, MICROPHONE), of(result, MICROPHONE)
    assert [one.header for one in before] == [one.header for one in after]
    assert {b.received_ns - a.received_ns for a, b in zip(before, after, strict=True)} == {150 * MS}
    assert of(result, CAMERA) == of(recording, CAMERA)
    with pytest.raises(ValueError, match="nothing arrives before"):
        delay("microphone", ms=-1)


def test_drop_loses_single_messages_and_each_topic_for_itself(recording: Stream) -> None:
    both = apply(recording, drop(rate=0.1, seed=1))
    alone = apply(recording, drop(rate=0.1, seed=1, topic="camera"))
    assert of(both, CAMERA) == of(alone, CAMERA)
    assert 0.02 < 1 - len(of(both, MICROPHONE)) / len(of(recording, MICROPHONE)) < 0.25
    assert both != apply(recording, drop(rate=0.1, seed=2))


def test_drift_lets_the_same_samples_take_less_time(recording: Stream) -> None:
    result = of(apply(recording, drift(ppm=10_000)), MICROPHONE)
    stamps = [one.header.stamp_ns for one in result]
    assert (stamps[-1] - stamps[0]) * 1.01 == pytest.approx(
        of(recording, MICROPHONE)[-1].header.stamp_ns - stamps[0], abs=2
    )
    indices = [one.header.sample_index for one in result if isinstance(one.header, AudioBlock)]
    assert indices == [512 * k for k in range(len(result))]
    apply(recording, drift(ppm=-10_000))


@pytest.mark.parametrize("form", ["s16", "f32"])
def test_noise_has_the_power_asked_for(form: str) -> None:
    rng = np.random.default_rng(0)
    stream: Stream = []
    for k in range(40):
        samples = 0.05 * rng.standard_normal((512, 2))
        scaled = samples * 32768 if form == "s16" else samples
        header = AudioBlock(
            stamp_ns=k * 32 * MS, sample_index=512 * k, samples=512, rate_hz=16_000, channels=2,
            format="s16" if form == "s16" else "f32",
        )  # fmt: skip
        data = scaled.astype("<i2" if form == "s16" else "<f4").tobytes()
        stream.append(Message(MICROPHONE, header, data, k * 32 * MS))

    def sound(of: Stream) -> "np.ndarray[tuple[int], np.dtype[np.float32]]":
        return np.concatenate(
            [decode_samples(m.header, m.payload) for m in of if isinstance(m.header, AudioBlock)]
        )

    added = sound(apply(stream, noise(snr_db=5))) - sound(stream)
    # both channels are averaged here, signal and noise alike
    assert 10 * np.log10(np.square(sound(stream)).mean() / np.square(added).mean()) == pytest.approx(
        5, abs=0.2
    )
    half = apply([one for one in stream if one.header.seq % 2 == 0], noise(snr_db=5))
    assert [one.header for one in half] == [one.header for one in stream]


def test_gain_scales_sound_and_clips_at_full_scale() -> None:
    loud = np.array([-20_000, -100, 0, 100, 20_000], "<i2")
    header = AudioBlock(stamp_ns=0, sample_index=0, samples=5, rate_hz=16_000, channels=1, format="s16")
    (louder,) = apply([Message(MICROPHONE, header, loud.tobytes(), 0)], gain(db=20))
    assert np.frombuffer(louder.payload, "<i2").tolist() == [-32768, -1000, 0, 1000, 32767]
    assert louder.header == header


@pytest.mark.parametrize("ms", [-120, 120])
def test_shift_moves_stamps_and_arrivals(recording: Stream, ms: int) -> None:
    result = apply(recording, shift(ms))
    before, after = of(recording, MICROPHONE), of(result, MICROPHONE)
    moves = {
        (b.header.stamp_ns - a.header.stamp_ns, b.received_ns - a.received_ns)
        for a, b in zip(before, after, strict=True)
    }
    assert moves == {(ms * MS, ms * MS)}
    assert of(result, CAMERA) == of(recording, CAMERA)


def test_typos_misspell_letters_and_lose_words() -> None:
    original = "put the red cup on the table and come here"
    stream: Stream = [
        Message(TEXT, TextCommand(stamp_ns=k, source="t#1", text=original), received_ns=k) for k in range(200)
    ]

    def texts(*perturbations: Perturbation) -> list[str]:
        return [m.header.text for m in apply(stream, *perturbations) if isinstance(m.header, TextCommand)]

    lost = texts(typos(rate=0.0, drops=0.2))
    assert all(set(text.split()) <= set(original.split()) for text in lost)
    assert sum(len(text.split()) for text in lost) / (200 * 10) == pytest.approx(0.8, abs=0.04)
    wrong = texts(typos(rate=0.1))
    assert len(set(wrong)) > 190, "each command is misspelt in its own way"
    assert np.mean([text == original for text in wrong]) < 0.1
    assert {len(text.split()) for text in wrong} <= {9, 10}
    assert wrong != texts(typos(rate=0.1, seed=1))


def test_freeze_repeats_the_picture_while_time_goes_on(recording: Stream) -> None:
    result = of(apply(recording, freeze("camera", from_s=1.0)), CAMERA)
    assert [one.header.stamp_ns for one in result] == [one.header.stamp_ns for one in of(recording, CAMERA)]
    assert len({bytes(one.payload) for one in result[20:]}) == 1
    assert all(isinstance(one.header, CameraFrame) for one in result)


def test_a_stamp_leaps_and_the_next_is_right_again(recording: Stream) -> None:
    result = of(apply(recording, stamp_leap("camera", ms=5000, at_s=1.0, count=2)), CAMERA)
    off = [b.header.stamp_ns - a.header.stamp_ns for a, b in zip(of(recording, CAMERA), result, strict=True)]
    assert Counter(off) == {0: len(off) - 2, 5 * SECOND_NS: 2}


def test_perturbations_combine_and_leave_out_what_was_concluded(recording: Stream) -> None:
    both = apply(recording, delay("microphone", ms=50), drop(rate=0.5, seed=3, topic="microphone"))
    assert 0 < len(of(both, MICROPHONE)) < len(of(recording, MICROPHONE))
    state = structs.replace(clock_tick(START_NS), topic="state/fused")
    assert apply([state, *recording]) == recording
    assert delay("microphone", ms=5) == delay("microphone", ms=5) != delay("microphone", ms=6)
    assert str(drop(rate=0.1, seed=1)) == "drop(rate=0.1, seed=1, topic='*')"


TYPED = structs.replace(text(0, START_NS, "come here"), received_ns=START_NS + 9 * SECOND_NS)


@pytest.mark.parametrize(
    "mistaken",
    [
        without("camera/rear"),
        without("nose"),
        without("state/fused"),
        delay("microphone/*x", ms=5),
        drop(rate=1, seed=1, topic="text/typed"),
        drift(ppm=9, topic="camera"),
        noise(snr_db=5, topic="text/*"),
        gain(db=3, topic="camera/front"),
        shift(ms=5, topic="microphon"),
        typos(rate=0.5, topic="microphone"),
        freeze("text"),
        stamp_leap("camera/Front", ms=9),
    ],
    ids=str,
)
def test_what_meets_no_topic_is_an_error_that_names_those_there_are(
    recording: Stream, mistaken: Perturbation
) -> None:
    recording = [*recording, TYPED]
    for perturbations in ((mistaken,), (delay("camera", ms=1), mistaken)):
        with pytest.raises(SessionError) as error:
            next(iter(Perturbed(recording, *perturbations)))
        there = f"{CAMERA}, {MICROPHONE}, {TEXT}"
        assert str(error.value) == f"{mistaken} changes nothing; inputs there are {there}"


@pytest.mark.parametrize(
    "outside",
    [
        without("camera", from_s=100),
        without("camera", to_s=-1),
        without("camera", from_s=2, to_s=1),
        freeze("microphone", from_s=3600.0, to_s=3601),
        stamp_leap("camera", ms=5, at_s=1e6),
        without(CAMERA, from_s=float("nan")),
    ],
)
def test_a_span_outside_the_recording_is_an_error_with_that_of_the_recording(
    recording: Stream, outside: Perturbation
) -> None:
    end_s = (recording[-1].received_ns - recording[0].received_ns) / 1e9
    with pytest.raises(SessionError) as error:
        list(Perturbed(recording, gain(-1), outside))
    assert str(error.value) == (f"{outside} changes nothing; the recording is from 0.000 to {end_s:.3f} s")


def test_what_is_moved_into_a_span_is_perturbed_there(recording: Stream) -> None:
    late = shift(100_000, topic="camera")
    moved = of(apply(recording, late), CAMERA)
    assert len(of(apply(recording, late, without("camera", from_s=101)), CAMERA)) < len(moved)


def test_what_one_takes_away_another_may_still_be_for(recording: Stream) -> None:
    assert apply(recording, without("camera"), freeze("camera")) == apply(recording, without("camera"))
    assert not of(apply([*recording, TYPED], without("text"), typos(rate=1.0)), TEXT)
    mine = Perturbation("mine", lambda messages: iter(messages))
    assert apply(recording, mine) == recording
    with pytest.raises(SessionError, match="inputs there are none"):
        list(Perturbed([], drop(rate=0.5, seed=1)))
