"""Text files as other programs save them, and file names as other people choose them."""

import codecs
import json
import os
from datetime import datetime
from pathlib import Path
from threading import Thread

import pytest

from perception.bench.report import against
from perception.devices.text import open_text
from perception.io.text_file import read_text
from perception.profile import RecorderConfig, ScriptConfig, TextConfig, as_override, load
from perception.session import Session, labels, read
from perception.session.convert import import_media
from perception.training.plan import load_plan
from tests.media import grey, noise, write_clip, write_wav

MARKS = {
    "utf-8-sig": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
}


@pytest.fixture(params=["utf-8", *MARKS])
def encoding(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def save(path: Path, text: str, encoding: str) -> Path:
    mark = MARKS.get(encoding, b"")
    path.write_bytes(mark + text.encode(encoding.removesuffix("-sig")))
    return path


def test_a_byte_order_mark_says_what_follows_and_is_no_text(tmp_path: Path, encoding: str) -> None:
    assert read_text(save(tmp_path / "a.txt", "grüße 😀\r\nzwei", encoding)) == "grüße 😀\nzwei"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"gr\xfc\xdfe")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "a.txt")


def test_what_comes_through_a_pipe_is_read_whole(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_text, args=("domain and more",))
    writer.start()
    assert read_text(tmp_path / "pipe") == "domain and more"
    writer.join()


def test_what_never_ends_is_refused(tmp_path: Path) -> None:
    assert read_text(save(tmp_path / "a.txt", "1234", "utf-8"), most_bytes=4) == "1234"
    with pytest.raises(OSError, match="File too large"):
        read_text(Path("/dev/zero"), most_bytes=1 << 20)


def test_profiles_plans_labels_lines_and_baselines_may_begin_with_a_mark(
    tmp_path: Path, encoding: str
) -> None:
    profile = save(tmp_path / "p.toml", 'domain = "rbom"\n[text.t]\nsource = "lines.txt"\n', encoding)
    assert load(str(profile)).domain == "rbom"
    assert load_plan(save(tmp_path / "plan.toml", 'profile = "demo"\n', encoding)).profile == "demo"
    track = save(tmp_path / "a.txt", "0.5\t1.5\tclap\n", encoding)
    assert [span.name for span in labels.read(track)] == ["clap"]
    lines = save(tmp_path / "lines.txt", "0.5\thello\n", encoding)
    with open_text(TextConfig(source=str(lines)), ScriptConfig(), clock=lambda: 0, origin_ns=0) as text:
        assert text.report().counts == {"passed": 0}
    baseline = save(tmp_path / "b.json", json.dumps({"tick": {}}), encoding)
    assert against("tick", {}, baseline) == []


def test_what_is_typed_may_begin_with_a_mark() -> None:
    from perception.devices.text import TerminalText

    terminal = TerminalText(0, clock=lambda: 0)
    terminal._split(codecs.BOM_UTF8 + b"come here\n")
    line = terminal.read(0)
    assert line is not None
    assert line.text == "come here"


SRT = "1\n00:00:00,100 --> 00:00:00,300\nGrüße\n\n2\n00:00:00,300 --> 00:00:00,390\nhalt 😀\n"


@pytest.mark.parametrize("suffix", [".srt", ".vtt"])
def test_subtitles_may_begin_with_a_mark(tmp_path: Path, encoding: str, suffix: str) -> None:
    film = write_clip(tmp_path / "film.mkv", [grey(9)] * 10)
    text = "WEBVTT\n\n" + SRT.replace(",", ".") if suffix == ".vtt" else SRT
    save(film.with_suffix(suffix), text, encoding)
    list(import_media.read(film, tmp_path / "s.mcap"))
    words = [message.header.text for message in read(tmp_path / "s.mcap", ["text/*"])]  # type: ignore[attr-defined]
    assert words == ["Grüße", "halt 😀"]


def test_subtitles_of_an_older_time_are_read_and_that_is_said(tmp_path: Path) -> None:
    film = write_clip(tmp_path / "film.mkv", [grey(9)] * 10)
    film.with_suffix(".srt").write_bytes(SRT.replace("😀", "").encode("cp1252"))
    lines = list(import_media.read(film, tmp_path / "s.mcap"))
    assert f"{film.with_suffix('.srt')}: not UTF-8, read as Windows-1252" in lines
    words = [message.header.text for message in read(tmp_path / "s.mcap", ["text/*"])]  # type: ignore[attr-defined]
    assert words == ["Grüße", "halt"]


NAMES = ["😀.mcap", 'a "b" \\ c.mcap', "50%.mcap", "{domain}.mcap", "\x7f.mcap", "ü\u2028.mcap"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recording_has_the_very_name_that_was_asked_for(name: str) -> None:
    override = as_override("recorder.out", RecorderConfig.literally(name))
    recorder = load("demo", (override,)).recorder
    assert recorder is not None
    assert recorder.file("demo", datetime(2026, 1, 1)) == Path(name)


@pytest.mark.parametrize("name", ["😀", "\udcff"])
def test_a_film_of_any_name_is_imported(tmp_path: Path, name: str) -> None:
    sound = write_wav(tmp_path / f"{name}.wav", noise(4000))
    list(import_media.read(sound, tmp_path / f"{name}.mcap"))
    with Session(tmp_path / f"{name}.mcap") as session:
        assert session.metadata["imported"]["from"] == str(sound)
