"""A session opens in viewers that are not ours: they find picture, sound, text, boxes and state in it."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader

from perception.bus import codec
from perception.bus.schema import golden_vectors
from perception.messages import CameraFrame, Message
from perception.session import SessionWriter

JPEG = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


def rerun(folder: Path, *arguments: object) -> str:
    command = [str(Path(sys.executable).parent / "rerun"), *map(str, arguments)]
    environment = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "NO_COLOR": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewer")
    with SessionWriter(folder / "s.mcap") as writer:
        writer.add_metadata("profile", {"domain": "x"})
        for number, vector in enumerate(golden_vectors(), start=1):
            parts = [bytes.fromhex(part) for part in vector["parts"]]
            writer.write(codec.decode(parts, received_ns=number * 1_000_000_000))
        frame = CameraFrame(stamp_ns=5, width=8, height=8, encoding="jpeg")
        writer.write(Message("camera/jpeg", frame, JPEG, 20_000_000_000))
    rerun(folder, "analytics", "disable")
    return folder


def test_it_finds_nothing_wrong_with_the_file(folder: Path) -> None:
    rows = [line.split() for line in rerun(folder, "mcap", "check", "--full", folder / "s.mcap").splitlines()]
    states = {row[-2]: row[0] for row in rows if len(row) == 5 and row[-2].startswith("/")}
    assert len(states) == len(golden_vectors()) + 2
    assert set(states.values()) == {"ok"}


def test_it_sees_each_message_as_what_it_is(folder: Path) -> None:
    rerun(folder, "mcap", "convert", folder / "s.mcap", "-o", folder / "s.rrd")
    shown = rerun(folder, "rrd", "print", folder / "s.rrd")
    for entity, column in (
        ("/camera/front", "Image:buffer"),
        ("/camera/jpeg", "EncodedImage:blob"),
        ("/microphone/desk", "foxglove.RawAudio:message"),
        ("/text/say", "TextLog:text"),
        ("/state/fused", "perception.FusedState:message"),
        ("/annotations/camera/front", "foxglove.ImageAnnotations:message"),
        ("/label/truth", "perception.Label:message"),
        ("/health/fusion", "perception.Health:message"),
        ("/__mcap_metadata", "profile"),
    ):
        lines = [line for line in shown.splitlines() if f" - {entity} - " in line]
        assert any(column in line for line in lines), (entity, lines)


def test_foxglove_s_published_schemas_decode_what_goes_by_their_names(folder: Path) -> None:
    pytest.importorskip("foxglove_schemas_protobuf")
    descriptors = import_module("google.protobuf.descriptor_pb2").FileDescriptorSet
    pools = import_module("google.protobuf.descriptor_pool").DescriptorPool
    found = set()
    with (folder / "s.mcap").open("rb") as file:
        for schema, channel, message in make_reader(file, validate_crcs=True).iter_messages():
            assert schema is not None
            pool = pools()
            for described in descriptors.FromString(schema.data).file:
                pool.Add(described)
            ours = {field.name: field for field in pool.FindMessageTypeByName(schema.name).fields}
            package, _, name = schema.name.partition(".")
            if package != "foxglove":
                continue
            found.add(name)
            published = getattr(import_module(f"foxglove_schemas_protobuf.{name}_pb2"), name)
            theirs = {field.name: field for field in published.DESCRIPTOR.fields}
            for field in ours.keys() & theirs.keys():
                assert (ours[field].number, ours[field].type) == (theirs[field].number, theirs[field].type)
            decoded = published.FromString(message.data)
            assert decoded.timestamp.seconds or name == "CompressedImage", channel.topic
    assert found == {"CompressedImage", "RawImage", "RawAudio", "Log", "ImageAnnotations"}
