"""Sets `held` where a window uses the same frame or command as the last computed window. Pure.

Rules. Owned by the thread that computes. It receives only windows that are computed, in their order: a shed
window is in no state, so no state may be `held` because of it.
"""

from collections.abc import Mapping
from typing import Final

from msgspec import structs

from perception.fusion.window import CameraSlice, TextSlice, Window, WindowInput
from perception.messages import CoreMark

_REASONS: Final[dict[type, str]] = {CameraSlice: "unchanged", TextSlice: "in force"}
"""Sound is different in every window."""


class Presence:
    """Compares each window with the last one that it received."""

    def __init__(self, mark: CoreMark | None = None) -> None:
        """Start with no window, or with what the mark records of the last one."""
        used = {} if mark is None else {name: item.used for name, item in mark.inputs.items()}
        self._used = {name: (item.topic, item.stamp_ns) for name, item in used.items() if item is not None}

    def mark_held(self, window: Window) -> Window:
        """Return the window with `held` where the last one used the same frame or command."""
        inputs: Mapping[str, WindowInput] = {
            name: self._mark(name, item) for name, item in window.inputs.items()
        }
        return structs.replace(window, inputs=inputs)

    def _mark(self, name: str, item: WindowInput) -> WindowInput:
        if item.happened_ns is None or (reason := _REASONS.get(type(item.data))) is None:
            return item
        used = item.topic, item.happened_ns  # stamps of one topic rise
        held = used == self._used.get(name)
        self._used[name] = used
        return structs.replace(item, presence="held", reason=reason) if held else item
