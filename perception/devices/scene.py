"""Pictures of the scripted camera: drawn from sprites for any time of a script."""

from functools import lru_cache
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from perception.devices.script import ASSETS, ROOMS, Card, MovingObject, Person, Script, Segment
from perception.errors import DeviceError
from perception.units.arrays import Image

# People and cards enter and leave around the border of a segment, half before and half after it.
BORDER_NS: Final = 150_000_000
LIGHT_NS: Final = 300_000_000
# Of the face photographs, as fractions of their side: the head's ellipse (centre, half axes).
HEADS: Final = (((0.52, 0.42), (0.375, 0.42)), ((0.505, 0.45), (0.25, 0.34)))
# Both photographs are cut to twice the width of the face box.
PHOTO_PER_FACE: Final = 2.0
_POSTERS: Final = ("poster-0.jpg", "poster-1.jpg", "face-0.jpg")
_BLURRED_POSTER: Final = 2
_GRAIN_SIGMA: Final = 24.0
_GRAIN_MARGIN: Final = 64


class Scene:
    """The script as pictures of `width` x `height` pixels; `at` is a pure function of time."""

    def __init__(self, script: Script, width: int, height: int) -> None:
        self.script = script
        self.size = (width, height)
        self._faces = [_photo(f"face-{number}.jpg") for number in range(len(HEADS))]
        self._room = lru_cache(maxsize=ROOMS)(self._draw_room)
        self._person = lru_cache(maxsize=4)(self._draw_person)
        self._card = lru_cache(maxsize=2)(self._draw_card)
        # Larger than the picture: a new offset per frame moves the grain.
        shape = (height + _GRAIN_MARGIN, width + _GRAIN_MARGIN, 3)
        grain = script.random(1).standard_normal(shape, dtype=np.float32) * _GRAIN_SIGMA + 128
        self._grain = np.clip(grain, 0, 255).astype(np.uint8)

    def at(self, t_ns: int) -> Image:
        """Return the picture at `t_ns` of script time: (height, width, 3) BGR, a new array."""
        segment = self.script.at(t_ns)
        image = self._room(segment.room).copy()
        shown = self._shown(segment, t_ns)
        for item in segment.objects:
            if not item.in_front:
                self._paint_object(image, item, segment, t_ns)
        for actor, presence in shown:
            self._paint_actor(image, actor, presence, t_ns)
        for item in segment.objects:
            if item.in_front:
                self._paint_object(image, item, segment, t_ns)
        return self._expose(image, segment, t_ns)

    def _shown(self, segment: Segment, t_ns: int) -> list[tuple[Person | Card, float]]:
        """Return people, then cards in view, each with its presence from 0 (outside) to 1."""
        after = self.script.segment(segment.index + 1)
        before = self.script.segment(segment.index - 1) if segment.index else None
        begun = _ramp(t_ns - segment.start_ns, BORDER_NS) if before else 1.0
        ended = _ramp(t_ns - segment.end_ns, BORDER_NS)
        shown: list[tuple[Person | Card, float]] = []
        for kind in ("person", "card"):
            now = getattr(segment, kind)
            last = getattr(before, kind, None)
            following = getattr(after, kind)
            if last and last != now:
                shown.append((last, 1 - begun))
            if now:
                entered = 1.0 if now == last else begun
                shown.append((now, entered if now == following else min(entered, 1 - ended)))
            if following and following != now:
                shown.append((following, ended))
        return [(actor, presence) for actor, presence in shown if presence > 0]

    def _paint_actor(self, image: Image, actor: Person | Card, presence: float, t_ns: int) -> None:
        width, height = self.size
        sprite, keep = self._person(actor) if isinstance(actor, Person) else self._card(actor)
        sway = (actor.sway if isinstance(actor, Person) else 0.005) * height
        x = actor.x * width + sway * np.sin(t_ns * 1.9e-9 + actor.x * 50)
        y = actor.y * height + sway * np.sin(t_ns * 2.7e-9 + actor.y * 50)
        left, top = x - sprite.shape[1] / 2, y - (actor.size * height if isinstance(actor, Person) else 0)
        if isinstance(actor, Card):
            top -= sprite.shape[0] / 2
        # Moves in from outside, on its side of the picture.
        outside = 1 - presence
        if actor.side == 0:
            top += outside * (height - top)
        else:
            left += outside * ((width - left) if actor.side > 0 else -(left + sprite.shape[1]))
        _paste(image, sprite, keep, round(left), round(top))

    def _paint_object(self, image: Image, item: MovingObject, segment: Segment, t_ns: int) -> None:
        width, height = self.size
        radius = max(int(item.size * height), 1)
        way = (t_ns - segment.start_ns) / (segment.end_ns - segment.start_ns) * item.laps % 1.0
        x, y = int(way * (width + 2 * radius)) - radius, int(item.y * height)
        if item.round:
            cv2.circle(image, (x, y), radius, item.colour, -1)
        else:
            cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), item.colour, -1)

    def _expose(self, image: Image, segment: Segment, t_ns: int) -> Image:
        """Apply the light and the sensor's grain in one pass."""
        last = self.script.segment(segment.index - 1).gain if segment.index else segment.gain
        turned = min((t_ns - segment.start_ns) / LIGHT_NS, 1.0)
        gain = last + (segment.gain - last) * turned
        width, height = self.size
        mixed = t_ns // 1_000_000 * 2_654_435_761
        down, right = (mixed >> 8) % _GRAIN_MARGIN, (mixed >> 16) % _GRAIN_MARGIN
        grain = self._grain[down : down + height, right : right + width]
        weight = segment.grain / _GRAIN_SIGMA
        return cv2.addWeighted(image, gain, grain, weight, -128 * weight, dst=image).astype(
            np.uint8, copy=False
        )

    def _draw_room(self, number: int) -> Image:
        width, height = self.size
        rng = self.script.random(2, number)
        top, bottom = rng.uniform(70, 220, (2, 3))
        shade = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
        image = np.repeat(top + (bottom - top) * shade, width, axis=1).astype(np.uint8)
        for _ in range(7):
            x, y = rng.integers(0, (width, height))
            wide, high = rng.integers(np.array([width, height]) // 20, np.array([width, height]) // 4)
            colour = tuple(int(value) for value in rng.integers(30, 220, 3))
            cv2.rectangle(image, (int(x), int(y)), (int(x + wide), int(y + high)), colour, -1)
        side = height // 4
        for poster in rng.permutation(len(_POSTERS))[:2]:
            photo = cv2.resize(_photo(_POSTERS[poster]), (side, side), interpolation=cv2.INTER_AREA)
            if poster == _BLURRED_POSTER:
                photo = cv2.GaussianBlur(photo, (0, 0), side / 20)
            x, y = rng.integers(0, (width - side, height - side))
            image[y : y + side, x : x + side] = photo
        texture = rng.normal(0, 3, image.shape)
        return np.clip(cv2.GaussianBlur(image, (0, 0), 1.2) + texture, 0, 255).astype(np.uint8)

    def _draw_person(self, person: Person) -> tuple[Image, Image]:
        """Return the sprite of head and torso; the face box is centred at (width / 2, face)."""
        face = person.size * self.size[1]
        photo = self._faces[person.face]
        side = photo.shape[0]
        # Reaches the bottom of the picture at every sway.
        wide, high = round(PHOTO_PER_FACE * face), round((1 - person.y + person.size + 0.05) * self.size[1])
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), person.tilt_deg, PHOTO_PER_FACE * face / side)
        turn[:, 2] += np.array([wide / 2, face]) - side / 2
        alpha = cv2.warpAffine(_head(person.face, side), turn, (wide, high))[..., None]
        body = np.zeros((high, wide, 1), np.float32)
        shoulders, waist = round(1.55 * face), round(2.6 * face)
        cv2.ellipse(body, (wide // 2, waist), (wide // 2, waist - shoulders), 0, 180, 360, 1.0, -1)
        body[waist:] = 1.0
        canvas = np.full((high, wide, 3), person.clothes, np.float32)
        canvas += alpha * (cv2.warpAffine(photo, turn, (wide, high)) - canvas)
        canvas, cover = canvas * person.gain, np.maximum(alpha, body)
        if person.mirrored:
            canvas, cover = canvas[:, ::-1], cover[:, ::-1]
        return _sprite(canvas, cover, person.blur * self.size[1] / 480)

    def _draw_card(self, card: Card) -> tuple[Image, Image]:
        if card.marker is None:
            pattern = np.kron(np.indices((6, 6)).sum(axis=0) % 2 * 255, np.ones((10, 10))).astype(np.uint8)
        else:
            dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
            pattern = cv2.aruco.generateImageMarker(dictionary, card.marker, 60).astype(np.uint8)
        printed = cv2.copyMakeBorder(pattern, 12, 12, 12, 12, cv2.BORDER_CONSTANT, value=(255,))
        side = printed.shape[0]
        box = round(1.5 * card.size * self.size[1])
        turn = cv2.getRotationMatrix2D((side / 2, side / 2), card.angle_deg, card.size * self.size[1] / side)
        turn[:, 2] += box / 2 - side / 2
        canvas = cv2.warpAffine(cv2.cvtColor(printed, cv2.COLOR_GRAY2BGR), turn, (box, box))
        cover = cv2.warpAffine(np.ones((side, side), np.float32), turn, (box, box))[..., None]
        return _sprite(canvas, cover, 0.7 * self.size[1] / 480)


def _ramp(since_ns: int, half_ns: int) -> float:
    """Return a smooth step from 0 at `-half_ns` to 1 at `half_ns`."""
    way = min(max((since_ns + half_ns) / (2 * half_ns), 0.0), 1.0)
    return way * way * (3 - 2 * way)


def _head(face: int, side: int) -> npt.NDArray[np.float32]:
    """Return the soft mask of the head in its photograph of `side` x `side` pixels."""
    (x, y), (wide, high) = ((round(a * side), round(b * side)) for a, b in HEADS[face])
    mask = np.zeros((side, side), np.float32)
    cv2.ellipse(mask, (x, y), (wide, high), 0, 0, 360, 1.0, -1)
    return np.asarray(cv2.GaussianBlur(mask, (0, 0), side / 80), np.float32)


def _sprite(canvas: npt.NDArray[Any], cover: npt.NDArray[Any], blur: float) -> tuple[Image, Image]:
    """Return the premultiplied picture and, per channel, the background's share from 0 to 255."""
    picture = canvas * cover
    if blur > 0.3:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), blur))
        cover = np.asarray(cv2.GaussianBlur(cover, (0, 0), blur))[..., None]
    keep = np.rint((1 - np.repeat(cover, 3, axis=2)) * 255)
    return np.clip(picture, 0, 255).astype(np.uint8), keep.astype(np.uint8)


def _paste(image: Image, sprite: Image, keep: Image, left: int, top: int) -> None:
    rows = slice(max(top, 0), min(top + sprite.shape[0], image.shape[0]))
    columns = slice(max(left, 0), min(left + sprite.shape[1], image.shape[1]))
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    inner = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
    under = cv2.multiply(image[rows, columns], keep[inner], scale=1 / 255)
    image[rows, columns] = cv2.add(under, sprite[inner])


def _photo(name: str) -> Image:
    image = cv2.imread(str(ASSETS / name))
    if image is None:
        raise DeviceError(f"{ASSETS / name}: cannot be read; install the package again")
    return image.astype(np.uint8, copy=False)
