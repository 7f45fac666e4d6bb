"""How the judge of pictures names faults, and that it is silent on good pictures: tables and CPU per frame.

    python -m tests.benchmarks.signal_camera --data FOLDER [--hours 1] [--seconds 4] [--json FILE]

FOLDER holds films (.mp4, .mpg, .mkv), in folders too. Each fault of `tests/camera_faults.py` begins after
`--seconds` of a film; it is named rightly if its condition is reported within 2.5 s. Then the films are
played as they are, dim, coded again, and rooms with the noise of a sensor through MJPEG and H.264, until
`--hours` of pictures have been judged: every other condition than ok is a false alarm. Without --data, only
rooms are used.
"""

import argparse
import json
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np
import numpy.typing as npt

from perception.devices.device import CapturedFrame
from perception.devices.pixels import FilmPixels, Layout
from perception.devices.signal.frames import FrameJudge
from perception.units import SECOND_NS
from tests.camera_faults import FAULTS, Picture, Pictures, clipped, jpeg
from tests.media import write_coded

NOTICED_S: Final = 2.5
SIZE: Final = (640, 480)
SMALL: Final = (320, 240)
Levels = npt.NDArray[np.float64]
LIGHTS: Final[dict[str, Callable[[Levels], Levels]]] = {
    "as it is": lambda light: light,
    "-30 dB": lambda light: light * 10 ** (-30 / 20),
    "6 %": lambda light: light * 0.06,
    "gamma 3": lambda light: light**3,
    "gamma 6": lambda light: light**6 * 0.8,
}


def film(path: Path, size: tuple[int, int] = SIZE, limit: int = 1000) -> tuple[list[Picture], float]:
    """Return the pictures of a film as a camera publishes them, and their rate."""
    pixels = FilmPixels(Layout(size))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate_hz = float(stream.average_rate or 25)
        pictures = [pixels(frame) for frame, _ in zip(container.decode(stream), range(limit), strict=False)]
    return pictures, rate_hz


def recoded(pictures: Pictures, rate_hz: float, crf: int) -> list[Picture]:
    """Return pictures after H.264."""
    options = {"preset": "veryfast", "crf": str(crf), "g": "75"}
    with tempfile.TemporaryDirectory() as folder:
        path = write_coded(
            Path(folder) / "film.mkv", "libx264", pictures, rate_hz=round(rate_hz), options=options
        )
        return film(path, SMALL, len(pictures))[0]


def room(seed: int, light: float, noise: float, count: int) -> list[Picture]:
    """Return a room in which nothing moves, with the noise of a sensor."""
    rng = np.random.default_rng(seed)
    width, height = SMALL
    walls = cv2.GaussianBlur(rng.integers(0, 255, (height, width, 3), np.uint8), (0, 0), 20).astype(float)
    scene = clipped((walls - walls.min()) * 200 / np.ptp(walls) + 20)
    for _ in range(14):
        x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 40))
        corner = (x + int(rng.integers(10, 80)), y + int(rng.integers(10, 80)))
        cv2.rectangle(scene, (x, y), corner, rng.integers(20, 236, 3).tolist(), -1)
    grain = [rng.normal(0, noise, scene.shape).astype(np.float32) for _ in range(8)]
    offsets = rng.integers(0, width, count)
    return [clipped(scene * light + np.roll(grain[n % 8], offsets[n], axis=1)) for n in range(count)]


def conditions(pictures: Pictures, rate_hz: float, raw: bool = False) -> tuple[list[str], list[str], float]:
    """Return condition and reason after each picture, and the CPU seconds of the judge."""
    judge, names, reasons = FrameJudge(), [], []
    before = time.process_time()
    for number, picture in enumerate(pictures):
        judge.update(CapturedFrame(picture, round(number * SECOND_NS / rate_hz) + 1, raw=raw))
        names.append(str(judge.condition))
        reasons.append(judge.reason)
    return names, reasons, time.process_time() - before


def clips(paths: list[Path], needed_s: float) -> Iterator[tuple[str, list[Picture], float]]:
    """Yield name, pictures and rate of clips of at least `needed_s`; short films of one folder are joined."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        folders[path.parent].append(path)
    for folder, members in folders.items():
        joined: list[Picture] = []
        for path in members:
            pictures, rate_hz = film(path)
            if len(pictures) >= needed_s * rate_hz:
                yield path.stem, pictures, rate_hz
                continue
            joined += pictures
            if len(joined) >= needed_s * rate_hz:
                yield f"{folder.name}/{path.stem}", joined, rate_hz
                joined = []


def name_faults(paths: list[Path], good_s: float, most: int) -> dict[str, Any]:
    """Print and return what each fault is named, by fault and by film."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    by_film: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for clip, (film_name, pictures, rate_hz) in enumerate(clips(paths, good_s + NOTICED_S)):
        if clip >= most:
            break
        start, end = round(good_s * rate_hz), round((good_s + NOTICED_S) * rate_hz)
        for name, (rightly, make) in FAULTS.items():
            faulty = make(pictures[:end], start, np.random.default_rng(clip))
            named = conditions([*pictures[:start], *faulty], rate_hz)[0][-1]
            table[name][named] += 1
            by_film[film_name][0] += named in rightly
            by_film[film_name][1] += 1
    for name, (rightly, _) in FAULTS.items():
        right = sum(table[name][condition] for condition in rightly)
        print(f"{name:26} {right:3} of {table[name].total():3}  {dict(table[name])}")
    for film_name, (right, total) in by_film.items():
        print(f"{film_name:26} {right:3} of {total:3}")
    kinds = sum(
        2 * sum(table[name][condition] for condition in rightly) >= table[name].total()
        for name, (rightly, _) in FAULTS.items()
    )
    print(f"{kinds} of {len(FAULTS)} kinds are named rightly in most films")
    return {"faults": {name: dict(counts) for name, counts in table.items()}, "kinds": kinds}


def good_clips(paths: list[Path]) -> Iterator[tuple[str, list[Picture], float, bool]]:
    """Yield harmless material: name, pictures, rate, and whether it is raw."""
    for name, pictures, rate_hz in clips(paths, 6.0):
        for light, curve in LIGHTS.items():
            levels = clipped(curve(np.arange(256) / 255) * 255)
            dim = [np.asarray(cv2.LUT(picture, levels), np.uint8) for picture in pictures]
            yield f"{name}, {light}", dim, rate_hz, False
        small = [np.asarray(cv2.resize(picture, SMALL), np.uint8) for picture in pictures]
        yield f"{name}, JPEG 60", [jpeg(picture, 60) for picture in small], rate_hz, False
        yield f"{name}, H.264 crf 28", recoded(small, rate_hz, 28), rate_hz, False
    for seed in range(1000):
        share, noise = (1.0, 0.3, 0.06)[seed % 3], (0.7, 2.0, 6.0)[seed // 3 % 3]
        rate_hz = (5.0, 15.0, 30.0)[seed // 9 % 3]
        still = room(seed, share, noise, round(24 * rate_hz))
        name = f"room {seed}, light {share}, noise {noise}, {rate_hz:.0f} Hz"
        yield f"{name}, raw", still, rate_hz, True
        yield f"{name}, MJPEG", [jpeg(picture, 80) for picture in still], rate_hz, False
        for crf in (23, 28, 32):
            yield f"{name}, H.264 crf {crf}", recoded(still, rate_hz, crf), rate_hz, False


def false_alarms(paths: list[Path], hours: float) -> dict[str, Any]:
    """Print and return the false alarms in `hours` of good pictures."""
    judged_s = cpu_s = 0.0
    frames = 0
    alarms: dict[str, str] = {}
    for name, pictures, rate_hz, raw in good_clips(paths):
        if judged_s >= hours * 3600:
            break
        names, reasons, used_s = conditions(pictures, rate_hz, raw)
        judged_s += len(pictures) / rate_hz
        cpu_s += used_s
        frames += len(pictures)
        if set(names) != {"ok"}:
            alarms[name] = next(filter(None, chain(reasons)))
            print(f"false alarm: {name}: {alarms[name]}, in {len(names) - names.count('ok')} of {len(names)}")
    cpu_ms = 1000 * cpu_s / max(frames, 1)
    print(
        f"{len(alarms)} clips with false alarms in {judged_s / 3600:.2f} h; {cpu_ms:.2f} ms of CPU per frame"
    )
    return {"alarms": alarms, "hours": judged_s / 3600, "cpu_ms": cpu_ms}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of films")
    parser.add_argument("--seconds", type=float, default=4.0, help="good pictures before each fault")
    parser.add_argument("--clips", type=int, default=8, help="films in which faults are played, at most")
    parser.add_argument("--hours", type=float, default=1.0, help="good pictures that are judged")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    found = arguments.data.rglob("*") if arguments.data else ()
    paths = sorted((path for path in found if path.suffix in {".mp4", ".mpg", ".mkv"}), reverse=True)
    report = name_faults(paths, arguments.seconds, arguments.clips)
    report |= false_alarms(paths, arguments.hours)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
