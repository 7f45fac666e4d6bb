"""Presence is true to what was published: `held` says that the state before was made of the same. Pure."""

from collections.abc import Mapping
from typing import Final

from msgspec import structs

from perception.fusion.window import CameraSlice, TextSlice, Window, WindowInput
from perception.messages import CoreMark

_REASONS: Final[dict[type, str]] = {CameraSlice: "unchanged", TextSlice: "in force"}
"""Sound moves on with every window."""


class Presence:
    """Compares every window with the one before it that was given here.

    Who computes windows gives those that it computes; a window that was shed is in no state.
    """

    def __init__(self, mark: CoreMark | None = None) -> None:
        """Begin with nothing, or with what the mark says that the window before took."""
        used = {} if mark is None else {name: item.used for name, item in mark.inputs.items()}
        self._used = {name: (item.topic, item.stamp_ns) for name, item in used.items() if item is not None}

    def since(self, window: Window) -> Window:
        """Return the window with `held` where the one before took the same frame or command."""
        inputs: Mapping[str, WindowInput] = {
            name: self._since(name, item) for name, item in window.inputs.items()
        }
        return structs.replace(window, inputs=inputs)

    def _since(self, name: str, item: WindowInput) -> WindowInput:
        if item.happened_ns is None or (reason := _REASONS.get(type(item.data))) is None:
            return item
        used = item.topic, item.happened_ns  # stamps of one topic rise
        held = used == self._used.get(name)
        self._used[name] = used
        return structs.replace(item, presence="held", reason=reason) if held else item
