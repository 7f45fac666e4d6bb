"""The wire format for readers in any language: JSON Schemas and golden byte vectors, from the code."""

import json
from pathlib import Path
from typing import Any, Final

import msgpack
import msgspec

from perception import messages, topics
from perception.bus import codec
from perception.units import SECOND_NS

_STAMP_NS: Final = 1_700_000_000_123_456_789  # needs 64 bits: reveals readers that convert to double


def json_schemas() -> dict[str, dict[str, Any]]:
    """Return the JSON Schema of every header as written, by topic prefix."""
    return {prefix: _schema(row.message) for prefix, row in topics.TOPICS.items()}


def golden_vectors() -> list[dict[str, Any]]:
    """Return one message of every topic: `topic`, `header` as JSON, and `parts`, its bytes in hex.

    The header is what any MessagePack decoder returns, without knowledge of this project.
    """
    wires = [(topic, codec.encode(topic, header, payload)) for topic, header, payload in _examples()]
    return [
        {
            "topic": topic,
            "header": msgpack.unpackb(parts[1]),
            "parts": [bytes(part).hex() for part in parts],
        }
        for topic, parts in wires
    ]


def write(directory: Path | str) -> list[Path]:
    """Write `<prefix>.schema.json` for every topic and `vectors.json`; return the files."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    contents: dict[str, Any] = {f"{prefix}.schema.json": schema for prefix, schema in json_schemas().items()}
    contents["vectors.json"] = golden_vectors()
    for name, content in contents.items():
        (directory / name).write_text(
            json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return [directory / name for name in contents]


def _schema(message: type[messages.Header]) -> dict[str, Any]:
    (_,), models = msgspec.json.schema_components([message], ref_template="#/$defs/{name}")
    for model in models.values():
        # publishers write every field, also those with defaults
        model["required"] = list(model["properties"])
    return {**models.pop(message.__name__), "$defs": models}


_Example = tuple[str, messages.Header, bytes]


def _examples() -> list[_Example]:
    common: dict[str, Any] = {
        "seq": 7,
        "stamp_ns": _STAMP_NS,
        "sent_ns": _STAMP_NS + 250_000,
        "source": "example#0a1b2c3d",
    }
    return [*_captured(common), *_computed(common), *_decided(common)]


def _captured(common: dict[str, Any]) -> list[_Example]:
    """Return frames, sound, text and a label."""
    camera = messages.CameraFrame(
        **common, width=2, height=1, encoding="bgr8", exposure_ns=8_000_000, condition="ok"
    )
    grey = messages.CameraFrame(**common, width=3, height=2, encoding="mono8")
    sound = messages.AudioBlock(
        **common, sample_index=512, samples=2, rate_hz=16_000, channels=2, gap=3, condition="clipped"
    )
    text = messages.TextCommand(**common, text="Komm näher, 来て", language="de")
    label = messages.Label(**common, start_ns=_STAMP_NS, end_ns=_STAMP_NS + SECOND_NS, name="clap")
    return [
        ("camera/front", camera, bytes.fromhex("0000ff00ff00")),
        ("camera/grey", grey, bytes(range(6))),
        ("microphone/desk", sound, bytes.fromhex("0100ffff0080ff7f")),
        ("text/say", text, b""),
        ("label/truth", label, b""),
    ]


def _computed(common: dict[str, Any]) -> list[_Example]:
    """Return a state, the health of its node and a clock tick."""
    account = messages.InputHealth(
        received=9, consumed=7, queued=1, lost=2, dropped={"superseded": 1}, age_ms=12.5
    )
    health = messages.Health(
        **common,
        node="fusion",
        status="degraded",
        reason="camera/front is silent",
        inputs={"camera/front": account},
        outputs={"state/fused": 300},
        counts={"shed": 1},
        device={"name": "cpu", "rate_hz": 10.0},
        condition="frozen",
    )
    return [
        ("state/fused", _state(common), bytes.fromhex("003c00c0")),
        ("health/fusion", health, b""),
        ("clock/fusion", messages.ClockTick(**common), b""),
    ]


def _decided(common: dict[str, Any]) -> list[_Example]:
    """Return a journal, a request for another head and the answer to it."""
    head = messages.HeadUse(head_hash="fade", folder="/srv/heads/8", from_tick=17_000_000_002)
    journal = messages.Journal(
        **common,
        entries=(
            messages.JournalEntry(kind="input", topic="camera/front", source="camera#1", seq=41),
            messages.JournalEntry(kind="shed", seq=17_000_000_001),
        ),
        heads=(messages.HeadUse(head_hash="bead", folder="/srv/heads/7"), head),
    )
    request = messages.SwapRequest(
        **common, action="shadow", folder="/srv/heads/8", head_hash="fade", ticks=50
    )
    answer = messages.HeadStatus(
        **common,
        asked_by="swap#00112233",
        phase="live",
        in_force=head,
        agreement=messages.Agreement(ticks=50, equal=0.96, variation=0.0625),
    )
    return [("journal/fusion", journal, b""), ("control/fusion", request, b""), ("head/fusion", answer, b"")]


def _state(common: dict[str, Any]) -> messages.FusedState:
    box = messages.Box(x=1.5, y=2.0, width=30.0, height=40.0, label="face", score=0.875)
    seen = messages.ModalityState(
        topic="camera/front",
        presence="present",
        age_ms=16.5,
        seqs=(40, 41),
        branches={"faces": messages.BranchState(labels=("face",), scores=(0.875,), boxes=(box,))},
        condition="blurred",
    )
    silent = messages.ModalityState(topic="microphone/desk", presence="absent", reason="no data yet")
    return messages.FusedState(
        **common,
        tick=17_000_000_001,
        fused=messages.Fused(
            classes=("idle", "wave"),
            probabilities=(0.25, 0.75),
            label="wave",
            confidence=0.75,
            entropy=0.5623,
        ),
        modalities={"camera": seen, "microphone": silent},
        shed=1,
        model=messages.ModelInfo(config_hash="c0ffee", weights_hash="5eed"),
        latency=messages.Latency(receive_ms=1.5, encoders_ms={"faces": 12.25}, total_ms=20.0),
    )
