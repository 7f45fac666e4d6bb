"""A contact sheet: one tile per result; frames as pictures, sounds as spectrograms, texts as words."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perception.errors import PerceptionError
from perception.features.logmel import VGGISH, log_mel
from perception.features.resample import resample
from perception.features.window import decode_samples
from perception.io.beside import replace_file, written
from perception.messages import AudioBlock, CameraFrame
from perception.retrieval.search import Hit, SearchIndex, clock
from perception.session.convert.media_tracks import image
from perception.session.file.reader import Session
from perception.units import SECOND_NS
from perception.units.arrays import Image, Samples

COLUMNS: Final = 5
_WIDTH_INCHES: Final = 3.0
_TILE_INCHES: Final = {"frames": 2.4, "sounds": 2.0, "commands": 1.1, "states": 1.1}
"""Height of a tile with its caption."""
_HEADING_INCHES: Final = 0.4
_WIDEST: Final = 480
_DPI: Final = 100
_LEVELS: Final = (-4.6, 2.0)
"""Log-mel values drawn darkest and brightest, silence and loud speech: the same in every tile."""
_SLACK_NS: Final = SECOND_NS


def write(file: Path, title: str, results: Mapping[SearchIndex, Sequence[Hit]], sound_s: float) -> None:
    """Draw results by kind into a .png, .svg or .pdf file.

    Raises:
        PerceptionError: the file has another suffix.
        SessionError: the file cannot be written.
    """
    sections = [(index, hits, -(-len(hits) // COLUMNS)) for index, hits in results.items() if hits]
    heights = [count * _TILE_INCHES[index.kind] + _HEADING_INCHES for index, _, count in sections]
    size = (COLUMNS * _WIDTH_INCHES, sum(heights) + _HEADING_INCHES)
    figure = Figure(size, dpi=_DPI, layout="constrained")
    figure.suptitle(title, fontweight="bold")
    parts = figure.subfigures(max(len(sections), 1), 1, height_ratios=heights or None, squeeze=False)
    for row, (index, hits, count) in enumerate(sections):
        part = parts[row, 0]
        part.suptitle(str(index), x=0.01, ha="left")
        tiles = part.subplots(count, COLUMNS, squeeze=False).ravel()
        for rank, (axes, hit) in enumerate(zip(tiles, hits, strict=False), 1):
            _draw(axes, hit, sound_s)
            caption = f"{rank}   {hit.score:.3f}   {clock(hit.at_s)}\n{hit.path.stem}  {hit.topic}"
            axes.set_title(caption, fontsize=8)
        for axes in tiles[len(hits) :]:
            axes.set_axis_off()
    drawn = io.BytesIO()
    try:
        figure.savefig(drawn, format=file.suffix[1:] or None)
    except ValueError as error:
        raise PerceptionError(f"{file}: the contact sheet cannot be written: {error}") from error
    with written(file):
        replace_file(file, drawn.getvalue())


def _draw(axes: Axes, hit: Hit, sound_s: float) -> None:
    axes.set(xticks=[], yticks=[], facecolor="0.95")
    axes.spines[:].set_visible(False)
    if hit.text:
        words = textwrap.fill(textwrap.shorten(hit.text, 160), 24)
        axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=12, transform=axes.transAxes)
    elif (picture := picture_of(hit)) is not None:
        axes.imshow(cv2.cvtColor(_shrunk(picture), cv2.COLOR_BGR2RGB))
    elif (sound := sound_of(hit, sound_s)) is not None:
        axes.imshow(log_mel(sound).T, origin="lower", aspect="auto", cmap="magma", clim=_LEVELS)


def picture_of(hit: Hit) -> Image | None:
    """Return the frame of a result, read from its session; None if it is not found."""
    with Session(hit.path) as session:
        for message in session.messages([hit.topic], hit.received_ns, hit.received_ns + 1):
            if isinstance(message.header, CameraFrame) and message.header.stamp_ns == hit.stamp_ns:
                return image(message)  # type: ignore[arg-type]
    return None


def sound_of(hit: Hit, sound_s: float) -> Samples | None:
    """Return the sound of a result, read from its session, (samples,) mono at 16 kHz; gaps are silence."""
    start_ns, length_ns = hit.stamp_ns - round(sound_s * 5e8), round(sound_s * 1e9)
    found: Samples | None = None
    rate_hz = VGGISH.rate_hz
    with Session(hit.path) as session:
        first_ns = hit.received_ns - length_ns - _SLACK_NS
        for message in session.messages([hit.topic], first_ns, hit.received_ns + 1):
            header = message.header
            if not isinstance(header, AudioBlock):
                continue
            rate_hz = header.rate_hz
            found = np.zeros(round(sound_s * rate_hz), np.float32) if found is None else found
            samples = decode_samples(header, message.payload)
            at = round((header.stamp_ns - start_ns) * rate_hz / 1e9)
            begin, end = max(at, 0), min(at + len(samples), len(found))
            if begin < end:
                found[begin:end] = samples[begin - at : end - at]
    return None if found is None else resample(found, rate_hz, VGGISH.rate_hz)


def _shrunk(picture: Image) -> Image:
    height, width = picture.shape[:2]
    scale = min(1.0, _WIDEST / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
