"""Figures of the scripted devices: `python tests/benchmarks/scripted_devices.py [--minutes N] [--seed N]`.

Prints class shares, cost of picture and sound, and what OpenCV's face and marker detectors find in the
scene. What memory a camera process needs: `perception bench startup`.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from perception.devices.scene import BORDER_NS, Scene
from perception.devices.script import CLASSES, Script, Segment
from perception.devices.soundtrack import Soundtrack
from perception.profile import ScriptConfig
from perception.units import SECOND_NS

HOP_NS = 100_000_000
CASCADE = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"


def shares(script: Script, seconds: int) -> None:
    span = Counter[str]()
    for segment in script.segments(0, seconds * SECOND_NS):
        span[segment.name] += segment.end_ns - segment.start_ns
    total = sum(span.values())
    print("class shares     ", ", ".join(f"{name} {span[name] / total:.1%}" for name in CLASSES))


def cost(call: Callable[[int], object], count: int) -> str:
    spent = []
    for number in range(count):
        begun = time.perf_counter()
        call(number)
        spent.append((time.perf_counter() - begun) * 1e3)
    p50, p99 = np.percentile(spent, (50, 99))
    return f"mean {np.mean(spent):.3f} ms, p50 {p50:.3f}, p99 {p99:.3f}, max {max(spent):.2f}"


def block_of(track: Soundtrack, size: int, number: int) -> object:
    return track.samples(number * size, size)


def unhidden(segment: Segment) -> bool:
    return not any(item.in_front for item in segment.objects)


def detections(script: Script, scene: Scene, seconds: int) -> None:
    cascade = cv2.CascadeClassifier(str(CASCADE))
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    markers = cv2.aruco.ArucoDetector(dictionary)
    tally = Counter[str]()
    for t_ns in range(0, seconds * SECOND_NS, HOP_NS):
        segment = script.at(t_ns)
        if min(t_ns - segment.start_ns, segment.end_ns - t_ns) < BORDER_NS:
            continue
        image = scene.at(t_ns)
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        face = len(cascade.detectMultiScale(grey, 1.1, 5, minSize=(60, 60))) > 0
        view = "nobody" if segment.person is None else "face" if unhidden(segment) else "passed face"
        tally[view] += 1
        tally[f"{view} found"] += face
        card = "marker" if segment.name == "marker" else "no marker"
        tally[card] += 1
        tally[f"{card} found"] += markers.detectMarkers(grey)[1] is not None
    for view in ("face", "passed face", "nobody", "marker", "no marker"):
        print(
            f"found in {view:12}",
            f"{tally[f'{view} found'] / max(tally[view], 1):.1%} of {tally[view]} frames",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--noise", type=float, default=1.0)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    seconds = options.minutes * 60
    script = Script(ScriptConfig(seed=options.seed, noise=options.noise))
    scene = Scene(script, 640, 480)
    shares(script, 3600)
    print("picture 640x480  ", cost(lambda k: scene.at(k * SECOND_NS // 30), seconds * 30))
    for rate_hz in (16_000, 48_000):
        track, block = Soundtrack(script, rate_hz), rate_hz * 32 // 1000
        begun = time.process_time()
        figures = cost(partial(block_of, track, block), seconds * 125 // 4)
        load = (time.process_time() - begun) / seconds
        print(f"sound {rate_hz:6} Hz  ", f"{figures}; {load:.2%} of a core")
    detections(script, scene, seconds)


if __name__ == "__main__":
    main()
