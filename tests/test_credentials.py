"""No password of a camera is shown: all forms of URLs, and all places where one could be shown."""

import json
import logging
import os
import re
import subprocess
from pathlib import Path

import pytest

from perception.cli.device_checks import check_cameras
from perception.cli.main import run
from perception.errors import DeviceError, ProfileError
from perception.errors.credentials import CleanFormatter, without_credentials
from perception.graph.plan import plan
from perception.messages import Header, Health, Message
from perception.profile import OVERRIDES_VARIABLE, load, parse
from perception.session import Session, SessionWriter, read
from perception.session.edit import repair, trim
from perception.session.info import info
from perception.session.recorder import describe

SHAPES = {
    "rtsp://admin:s3cret@10.0.0.5:554/live": "rtsp://10.0.0.5:554/live",
    "RTSP://admin:s3cret@CAM/live": "RTSP://CAM/live",
    "http://s3cret@cam/live": "http://cam/live",
    "http://:s3cret@cam/live": "http://cam/live",
    "http://admin:s3c%40%2Fret@cam/live": "http://cam/live",
    "http://admin:p@s3cret@cam:80/live": "http://cam:80/live",
    "http://admin:a/s3cret@127.0.0.1:80/live": "http://127.0.0.1:80/live",
    "http://admin:p@s/s3cret@cam/live": "http://cam/live",
    "http://admin:12/s3cret@cam.local/live": "http://cam.local/live",
    "rtsp://admin:a?s3cret@cam/live": "rtsp://cam/live",
    "rtsp://admin:a?b=s3cret@cam/live": "rtsp://cam/live",
    "rtsp://admin:p@s?s3cret@cam/live": "rtsp://cam/live",
    "rtsp://admin:a#s3cret@cam/live": "rtsp://cam/live",
    "rtsp://admin:s3 cret@cam/live": "rtsp://cam/live",
    "rtsp://admin:s3'c\"ret@cam/live": "rtsp://cam/live",
    "rtsp://admin:s3cret@[fe80::1]:554/live": "rtsp://[fe80::1]:554/live",
    "http://[2001:db8::1]/live?token=s3cret": "http://[2001:db8::1]/live?token=***",
    "http://cam/cgi?user=admin&pwd=s3cret&channel=1": "http://cam/cgi?user=***&pwd=***&channel=1",
    "http://cam/cgi?p%61ssword=s3c#ret": "http://cam/cgi?p%61ssword=***",
    "http://cam/cgi?fps=5&auth=Basic%20s3cret==&key=s3cret/+": "http://cam/cgi?fps=5&auth=***&key=***",
    "http://cam/cgi?channel=1&s3cret": "http://cam/cgi?channel=***",
    "http://cam/cgi?s3cret": "http://cam/cgi?***",
    "http://cam/cgi#access_token=s3cret": "http://cam/cgi#access_token=***",
    "http://u:s3cret@cam/cgi?mail=a@b.c": "http://cam/cgi?mail=***",
    "rtsp://cam/user=admin_password=s3_cret_channel=1.sdp": "rtsp://cam/user=***_password=***_channel=1.sdp",
    "srt://cam:9000?passphrase=s3cret&mode=caller": "srt://cam:9000?passphrase=***&mode=caller",
    "http://nas/api?src=rtsp://u:s3cret@cam/live": "http://nas/api?src=***rtsp://cam/live",
    "tcp://admin:s3cret@10.0.0.7:5601": "tcp://10.0.0.7:5601",
    "admin:s3cret@10.0.0.5/live": "10.0.0.5/live",
    "admin:s3cret@cam:8080/live": "cam:8080/live",
    "//admin:s3cret@cam/live": "//cam/live",
    "rtsp:/admin:s3cret@cam/live": "rtsp:/cam/live",
    'http://admin:12"s3cret@cam/live': "http://cam/live",
    "http://cam/api/token/s3cret/live": "http://cam/api/token/***/live",
    "rtsp://admin:s3cr": "rtsp://***",
    "rtsps://nvr:7441/aB3ds3cretfG7hI9?enableSrtp": "rtsps://nvr:7441/***?***",
    "https://nas/live/s3cretA-b_C1d2E3f4/index.m3u8": "https://nas/live/***/index.m3u8",
    "http://cam/admin:s3cret/stream": "http://cam/***/stream",
    "http://cam:8080/live/admin:s3cret": "http://cam:8080/live/***",
    "http://127.0.0.1:80/admin:s3:cret/live?fps=5": "http://127.0.0.1:80/***/live?fps=5",
    "rtsp://[fe80::1]:554/admin:s3cret/live": "rtsp://[fe80::1]:554/***/live",
    "http://cam/admin:12s3cret45/stream": "http://cam/***/stream",
    "http://cam/auth/s3cret/live": "http://cam/auth/***/live",
    "http://cam/api-key/s3cret/live": "http://cam/api-key/***/live",
    "rtmp://cam/stream_key/s3cret": "rtmp://cam/stream_key/***",
    "http://cam/user/viewer/passwd/s3cret/live": "http://cam/user/viewer/passwd/***/live",
    "rtsp://cam/user=admin&password=s3cret&channel=1": "rtsp://cam/user=***&password=***&channel=1",
    "rtsp://cam/user=admin_password=s3cret_channel=1": "rtsp://cam/user=***_password=***_channel=1",
    "rtsp://10.0.0.5:554/user=admin&password=&channel=1&stream=0": (
        "rtsp://10.0.0.5:554/user=***&password=***&channel=1&stream=0"
    ),
    "http://cam/live/9f86d081s3c884c7d659a2feaa0c".replace("s3c", "53c"): "http://cam/live/***",
    "http://cam/6f1c2d3e-aaaa-4bbb-8ccc-0123456789ab/live": "http://cam/***/live",
    "http://cam/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzM2NyZXQifQ.s3cretSignature0123456/live": "http://cam/***/live",
}
HARMLESS = (
    "rtsp://10.0.0.5:554/live",
    "http://cam/a@b",
    "http://10.0.0.5:80/a@b.jpg",
    "http://cam/cgi?channel=1&subtype=0&stream=main",
    "http://cam: cannot be opened",
    "http://cam:80/live: cannot be opened: Connection refused",
    "http://cam/live: cannot be opened",
    "http://cam/live:",
    "see http://cam/live, http://cam/a.b: both",
    "http://cam/users/2/live",
    "http://cam/Streaming/Channels/101",
    "file:///C:/films/a.mp4",
    "tcp://*:5601",
    "tcp://[::1]:5601",
    "ipc:///run/user/1000/perception/demo",
    "/dev/v4l/by-id/usb-Cam_0",
    "/data/key/a.mp4",
    "C:/films/a.mp4",
    "file:///data/a.mp4",
    "scripted",
    "a@b.c said 12:30",
    "see https://example.com/docs, then go on",
)
SECRET = re.compile("s3.?c|admin")
URL = "http://admin:s3cret@127.0.0.1:9/live?token=s3cret"
SHOWN = "http://127.0.0.1:9/live?token=***"


@pytest.mark.parametrize("url", SHAPES)
def test_credentials_are_removed_alone_in_a_sentence_and_twice(url: str) -> None:
    shown = without_credentials(url)
    assert shown == SHAPES[url]
    assert not SECRET.search(shown)
    assert without_credentials(shown) == shown
    assert not SECRET.search(without_credentials(f"cannot open '{url}': refused; {url} is down"))


@pytest.mark.parametrize("text", HARMLESS)
def test_what_holds_none_stays_as_it_is(text: str) -> None:
    assert without_credentials(text) == text


def test_errors_and_log_lines_are_clean_whoever_worded_them() -> None:
    assert str(DeviceError(f"{URL}: refused")) == f"{SHOWN}: refused"
    record = logging.LogRecord("av", logging.ERROR, "", 0, "cannot open %s", (URL,), None)
    assert CleanFormatter("%(message)s").format(record) == f"cannot open {SHOWN}"


def test_errors_of_a_profile_and_of_the_command_line_are_clean(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'[camera.x]\nsource = ["{URL}"]\n[connect]\n"camera/y" = "{URL}"\n')
    assert run(["up", str(file)]) == 2
    assert run(["up", "demo", "--set", URL]) == 2
    assert run(["up", "demo", "--set", f"camera.front.width={URL}"]) == 2
    assert run(["up", "demo", URL]) == 2
    shown = "".join(capfd.readouterr())
    assert shown.count("perception: ") == 3
    assert not SECRET.search(shown)


def test_the_doctor_shows_no_credentials() -> None:
    profile = parse({"camera": {"x": {"source": URL}}}, where="test")
    details = [finding.detail for finding in check_cameras(profile, Path("/nowhere"))]
    assert f"{SHOWN}: not tried" in details
    assert not any(map(SECRET.search, details))


def test_nodes_get_the_real_url_but_not_on_their_command_line(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('domain = "t"\n[camera.x]\nsource = "scripted"\n')
    override = f"camera.x.source={URL}"
    profile = load(str(file), (override,))
    assert profile.camera["x"].source == URL
    (node,) = plan(profile, str(file), (override,), origin_ns=0)
    assert not SECRET.search(" ".join(node.command))
    assert json.loads(node.environment[OVERRIDES_VARIABLE]) == [override]
    environment = os.environ | dict(node.environment)
    ended = subprocess.run(node.command, env=environment, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (3, "")
    assert ended.stderr == f"perception: {SHOWN}: cannot be opened: Connection refused\n"


def test_a_new_session_notes_no_credentials_and_its_profile_still_loads() -> None:
    profile = parse({"camera": {"x": {"source": URL}}, "connect": {"camera/y": "tcp://h:1"}}, where="test")
    noted = describe(profile, 0)
    assert not SECRET.search(json.dumps(noted))
    assert parse(noted["profile"], where="noted").camera["x"].source == SHOWN


@pytest.fixture
def early(tmp_path: Path) -> Path:
    """A session as early recorders wrote it, with a password in metadata and health."""
    with SessionWriter(path := tmp_path / "early.mcap") as writer:
        writer.add_metadata("profile", {"domain": "d", "camera": {"x": {"source": URL}}})
        writer.add_metadata("device camera-x", {"source": URL})
        for seq in range(3):
            device: dict[str, str | float] = {"source": URL if seq else "scripted"}
            reason = f"{URL}: stopped delivering"
            health = Health(stamp_ns=seq, seq=seq, node="camera-x", reason=reason, device=device)
            writer.write(Message("health/camera-x", health, received_ns=seq + 1))
    assert b"s3cret" in path.read_bytes()
    return path


def test_an_early_session_does_not_pass_its_password_on(early: Path, tmp_path: Path) -> None:
    trim(early, trimmed := tmp_path / "trimmed.mcap")
    repair(early, repaired := tmp_path / "repaired.mcap")
    for path in (early, trimmed, repaired):
        messages = list(read(path))
        assert [message.header.seq for message in messages] == [0, 1, 2]
        assert all(isinstance(message.header, Header) for message in messages)
        assert not SECRET.search("\n".join([*info(path).lines(), *map(str, messages)]))
        with Session(path) as session:
            assert session.metadata["device camera-x"] == {"source": SHOWN}
    for path in (trimmed, repaired):
        with Session(path) as session:
            assert not any(b"s3cret" in bytes(record.data) for record in session.records())


def test_an_early_session_is_exported_and_shown_without_its_password(
    early: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["session", "cat", str(early)]) == 0
    assert run(["session", "info", str(early), "--json"]) == 0
    shown = "".join(capfd.readouterr())
    assert SHOWN in shown
    assert not SECRET.search(shown)
    run(["session", "export", str(early), "--to", "files", "--out", str(tmp_path / "out")])
    assert not any(b"s3cret" in file.read_bytes() for file in tmp_path.glob("out/**/*") if file.is_file())


def test_the_refusal_of_an_override_names_the_key_only(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("camera = 3\n")
    with pytest.raises(ProfileError) as refused:
        load(str(file), (f"camera.x.source={URL}",))
    assert not SECRET.search(str(refused.value))


@pytest.mark.parametrize("unit", ["a/", "a@", "a:b/", "a=b&", "a:", "%", "a:b@", "http://h:x y ", "p "])
@pytest.mark.parametrize("start", ["", "http://", "rtsp://user:"])
def test_long_texts_are_cleaned(start: str, unit: str) -> None:
    text = start + unit * (50_000 // len(unit)) + " http://u:secret@camera/live"
    cleaned = without_credentials(text)
    assert "secret" not in cleaned
    assert cleaned.endswith("camera/live")


def test_a_url_longer_than_any_is_hidden_as_a_whole_and_the_text_around_it_is_not() -> None:
    text = f"opening rtsp://u:secret@camera/{'a' * 3000} failed: timeout"
    assert without_credentials(text) == "opening rtsp://*** failed: timeout"
