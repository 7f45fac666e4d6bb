"""The published wire format is what the code writes; other libraries can read it."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perception import messages, topics
from perception.bus import schema
from perception.bus.codec import decode
from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from tests.waiting import LONG_S

GOLDEN = Path(__file__).parent / "golden"
VECTORS = json.loads((GOLDEN / "vectors.json").read_text(encoding="utf-8"))
EARLIER = [
    vector
    for path in sorted((GOLDEN / "earlier").glob("vectors-*.json"))
    for vector in json.loads(path.read_text(encoding="utf-8"))
]

FOREIGN_READER = """
import json, sys
import msgpack, zmq

socket = zmq.Context().socket(zmq.SUB)
socket.subscribe("")
for endpoint in sys.argv[1:]:
    socket.connect(endpoint)
for _ in sys.argv[1:]:
    topic, header, *payload = socket.recv_multipart()
    fields = msgpack.unpackb(header)
    print(json.dumps([topic.decode(), fields, b"".join(payload).hex()]), flush=True)
assert not {"perception", "pydantic", "msgspec"} & set(sys.modules)
"""


def test_the_golden_files_are_what_the_code_generates(tmp_path: Path) -> None:
    written = schema.write(tmp_path)
    assert {path.name for path in written} == {path.name for path in GOLDEN.glob("*.json")}
    for path in written:
        assert path.read_bytes() == (GOLDEN / path.name).read_bytes(), f"regenerate tests/golden/{path.name}"


def test_every_topic_has_a_schema_and_a_vector() -> None:
    assert set(schema.json_schemas()) == set(topics.TOPICS)
    assert {vector["topic"].split("/")[0] for vector in VECTORS} == set(topics.TOPICS)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["topic"])
def test_a_golden_vector_reads_as_its_header_says(vector: dict[str, Any]) -> None:
    message = decode([bytes.fromhex(part) for part in vector["parts"]], received_ns=0)
    assert message.topic == vector["topic"]
    assert json.loads(msgspec.json.encode(message.header)) == vector["header"]


@pytest.mark.parametrize("vector", EARLIER, ids=lambda vector: vector["topic"])
def test_what_an_earlier_version_wrote_reads_as_it_did(vector: dict[str, Any]) -> None:
    message = decode([bytes.fromhex(part) for part in vector["parts"]], received_ns=0)
    assert_holds(json.loads(msgspec.json.encode(message.header)), vector["header"])


def assert_holds(read: Any, written: Any) -> None:
    """Fields that were added since are only in what is read."""
    if isinstance(written, dict):
        assert set(written) <= set(read)
        for name, value in written.items():
            assert_holds(read[name], value)
    elif isinstance(written, list):
        assert len(read) == len(written)
        for pair in zip(read, written, strict=True):
            assert_holds(*pair)
    else:
        assert read == written


def test_every_field_that_is_written_is_in_the_schema() -> None:
    schemas = schema.json_schemas()
    for vector in VECTORS:
        described = schemas[vector["topic"].split("/")[0]]
        assert set(vector["header"]) == set(described["properties"]) == set(described["required"])


def test_fields_that_measure_wall_time_are_marked_in_the_schema() -> None:
    properties = schema.json_schemas()["state"]["properties"]
    measured = {name for name, field in properties.items() if field.get("measured")}
    assert {"sent_ns", "latency"} <= measured
    assert not measured & {"seq", "stamp_ns", "tick", "fused", "modalities"}


def test_a_reader_with_only_zeromq_and_msgpack_reads_every_topic() -> None:
    with tempfile.TemporaryDirectory(prefix="bus") as folder:
        runtime, clock = Runtime(base=Path(folder)), HostClock(Path(folder))
        publishers = {
            vector["topic"]: Publisher(vector["topic"], source="test", runtime=runtime, clock=clock.now_ns)
            for vector in VECTORS
        }
        try:
            command = [sys.executable, "-c", FOREIGN_READER, *map(runtime.ipc_endpoint, publishers)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
                sent = {vector["topic"]: send(publishers[vector["topic"]], vector) for vector in VECTORS}
                output, _ = reader.communicate(timeout=LONG_S)
            assert reader.returncode == 0
        finally:
            for publisher in publishers.values():
                publisher.close()
    received = {topic: (fields, payload) for topic, fields, payload in map(json.loads, output.splitlines())}
    assert received == sent


def send(publisher: Publisher, vector: dict[str, Any]) -> tuple[dict[str, Any], str]:
    assert publisher.wait_for_subscriber(LONG_S)
    message: messages.Message[Any] = decode([bytes.fromhex(part) for part in vector["parts"]], received_ns=0)
    header = publisher.send(message.header, message.payload)
    return json.loads(msgspec.json.encode(header)), bytes(message.payload).hex()
