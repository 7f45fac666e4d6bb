"""What the judge of pictures reads of a frame: few rows, sums of blocks, measures of the whole. Pure."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from perception.units.arrays import Image

ROWS: Final = 60
"""Rows that are read of a picture, at least: the cost is bounded for any size."""
GRID: Final = (12, 16)
"""Blocks of a picture, down and across."""
_COLUMNS: Final = 160
_BAR_BELOW: Final = 20
"""Borders that were never brighter are bars of another aspect ratio."""

Sums = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Thin:
    """Every n-th row of a picture.

    Attributes:
        rows: (rows, width, channels), contiguous.
        sums: (blocks,) sums of the values of each block of `GRID`.
        area: (blocks,) number of values in each block.
    """

    rows: Image
    sums: Sums
    area: Sums

    @classmethod
    def of(cls, image: Image) -> "Thin":
        """Return the rows of a picture, (height, width, 3) BGR or (height, width) grey."""
        step = max(image.shape[0] // ROWS, 1)
        rows = np.ascontiguousarray(image[step // 2 :: step])
        rows = rows.reshape(rows.shape[0], rows.shape[1], -1)
        down = borders(rows.shape[0], GRID[0])
        across = borders(rows.shape[1], GRID[1]) * rows.shape[2]
        area = np.outer(np.diff(down), np.diff(across)).ravel()
        sums = block_sums(rows.reshape(rows.shape[0], -1), down, across)
        return cls(rows, sums.astype(np.int32), area.astype(np.int32))

    @property
    def means(self) -> Floats:
        """(blocks,) mean of each block."""
        return np.asarray(self.sums / np.maximum(self.area, 1))


def borders(size: int, blocks: int) -> npt.NDArray[np.int64]:
    """Return the positions at which `size` pixels are divided into blocks: (blocks + 1,)."""
    return np.arange(blocks + 1) * size // blocks


def block_sums(
    values: Image | npt.NDArray[np.float32], down: npt.NDArray[np.int64], across: npt.NDArray[np.int64]
) -> Floats:
    """Return the sums of blocks of a (rows, columns) array, row by row."""
    corners = cv2.integral(values)[down][:, across]
    tall = corners[1:] - corners[:-1]
    return np.asarray((tall[:, 1:] - tall[:, :-1]).ravel())


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of one picture without its bars. Powers are mean squares of differences, levels of 255.

    Attributes:
        level: mean brightness.
        spread: standard deviation of brightness.
        white: share of pixels that are saturated in every channel.
        means: (blocks,) mean of each block.
        inside: (blocks,) whether a block is inside the bars.
        detail: (blocks,) power of the curvature over five pixels less that over three: noise cancels.
        grain: power of differences of neighbours where the picture is smooth: twice the power of noise.
        near: power of differences of pixels 4 columns apart.
        far: power of differences of pixels 32 columns apart.
        fine: power of differences of neighbours.
        down: power of differences of successive rows that were read.
        moved: power of differences to the picture measured before; 0 for the first.
        channels: (channels, 2) mean and standard deviation of each channel.
        pixels: number of pixels that were read of a block.
    """

    level: float
    spread: float
    white: float
    means: Floats
    inside: Flags
    detail: Floats
    grain: float
    fine: float
    near: float
    far: float
    down: float
    moved: float
    channels: Floats
    pixels: int

    @property
    def error(self) -> float:
        """What noise adds to the detail of a block, about one standard deviation."""
        return 0.5 + self.grain * 6 / float(np.sqrt(self.pixels))

    @property
    def rich(self) -> int:
        """Number of blocks with detail."""
        return int((self.inside & (self.detail > 3 * self.error)).sum())


class Measuring:
    """Measures pictures of one size."""

    def __init__(self) -> None:
        self._rows_max: Image | None = None
        self._columns_max: Image | None = None
        self._green: Image | None = None

    def __call__(self, thin: Thin) -> Measures:
        """Return the measures of a picture."""
        rows = thin.rows
        across = max(rows.shape[1] // _COLUMNS, 1)
        few = np.ascontiguousarray(rows[:, ::across])
        grey = cv2.cvtColor(few, cv2.COLOR_BGR2GRAY) if few.shape[2] == 3 else few[..., 0]
        top, bottom, left, right = self._without_bars(np.asarray(grey, np.uint8))
        few, grey = few[top:bottom, left:right], np.ascontiguousarray(grey[top:bottom, left:right])
        columns = slice(left * across, min(right * across, rows.shape[1]))
        green = np.ascontiguousarray(rows[top:bottom:2, columns, rows.shape[2] // 2])
        before, self._green = self._green, green
        detail, grain = _detail(green, (top, columns.start), thin)
        inside = _inside(thin, (top, bottom), (columns.start, columns.stop))
        mean, spread = cv2.meanStdDev(grey)
        channels = np.hstack(cv2.meanStdDev(few)).astype(np.float64)
        lag = min(32, green.shape[1] // 2)
        return Measures(
            level=float(mean[0, 0]),
            spread=float(spread[0, 0]),
            white=float(np.count_nonzero(grey >= 250) / grey.size),
            means=thin.means,
            inside=inside,
            detail=detail,
            grain=grain,
            fine=_power(green[:, 1:], green[:, :-1]),
            near=_power(green[:, 4:], green[:, :-4]),
            far=_power(green[:, lag:], green[:, :-lag]),
            down=_power(green[1:], green[:-1]),
            moved=0.0 if before is None or before.shape != green.shape else _power(green, before),
            channels=channels,
            pixels=max(green.size // max(int(inside.sum()), 1), 1),
        )

    def _without_bars(self, grey: Image) -> tuple[int, int, int, int]:
        """Return the first and last row and column that were ever brighter than a bar."""
        down, across = grey.max(axis=1), grey.max(axis=0)
        if self._rows_max is None or self._columns_max is None:
            self._rows_max, self._columns_max = down, across
        else:
            self._rows_max = np.maximum(self._rows_max, down)
            self._columns_max = np.maximum(self._columns_max, across)
        rows = np.flatnonzero(self._rows_max > _BAR_BELOW)
        columns = np.flatnonzero(self._columns_max > _BAR_BELOW)
        if rows.size < 12 or columns.size < 16:
            return 0, grey.shape[0], 0, grey.shape[1]
        return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _power(one: Image, other: Image) -> float:
    if not one.size:
        return 0.0
    return cv2.norm(one, other, cv2.NORM_L2SQR) / one.size


def _detail(green: Image, origin: tuple[int, int], thin: Thin) -> tuple[Floats, float]:
    """Return detail of each block, and grain."""
    signed = green.astype(np.float32)
    first = signed[:, 1:] - signed[:, :-1]
    one = first[:, 1:] - first[:, :-1]
    two = one[:, :-2] + 2 * one[:, 1:-1] + one[:, 2:]
    one, first = one[:, 1:-1] ** 2, first[:, 1:-2] ** 2
    two *= two
    two -= one
    down = np.clip((borders(thin.rows.shape[0], GRID[0]) - origin[0] + 1) // 2, 0, two.shape[0])
    across = np.clip(borders(thin.rows.shape[1], GRID[1]) - origin[1], 0, two.shape[1])
    size = np.outer(np.diff(down), np.diff(across)).ravel()
    whole = np.maximum(size, 1)
    ones = block_sums(first, down, across) / whole
    smooth = np.sort(ones[size > 0])
    grain = float(smooth[smooth.size // 5]) if smooth.size else 0.0
    return block_sums(two, down, across) / whole, grain


def _inside(thin: Thin, rows: tuple[int, int], columns: tuple[int, int]) -> Flags:
    down, across = borders(thin.rows.shape[0], GRID[0]), borders(thin.rows.shape[1], GRID[1])
    tall = (down[:-1] >= rows[0]) & (down[1:] <= rows[1])
    wide = (across[:-1] >= columns[0]) & (across[1:] <= columns[1])
    return np.outer(tall, wide).ravel()
