"""What a fusion does with data of each condition: absent, present but suspect, or present. Pure.

Capture nodes judge their signals; the fusion itself infers a condition only from what it did not receive.
"""

from collections.abc import Iterable
from typing import Final, get_args

from msgspec import structs

from perception.fusion.window import WindowInput
from perception.messages import ConditionName
from perception.profile import InputConfig
from perception.units import SECOND_NS

STARTING_NS: Final = 5 * SECOND_NS
"""A stream of which nothing was received for longer than this is lost; before, it is starting."""
_INFERRED: Final = {"never": "starting", "filling": "starting", "late": "lagging", "dead": "lost"}
"""Condition by the reason why an input is absent."""
_KNOWN: Final = frozenset(get_args(ConditionName))


class Conditions:
    """The conditions of one input, by its `absent_when` and `suspect_when`."""

    def __init__(self, config: InputConfig | None = None) -> None:
        """Read `absent_when` and `suspect_when`; None: no condition is read, as by rules 0 and 1."""
        self._are_read = config is not None
        self._absent = frozenset(() if config is None else config.absent_when)
        self._suspect = frozenset(() if config is None else config.suspect_when) - self._absent

    def is_absent(self, condition: str) -> bool:
        """Return whether data of this condition is not used."""
        return condition in self._absent

    def is_suspect(self, condition: str) -> bool:
        """Return whether data of this condition is used and marked; so is that of an unknown condition."""
        return condition in self._suspect or bool(condition and condition not in _KNOWN)

    def worst(self, conditions: Iterable[str]) -> str:
        """Return the first of the most serious conditions, empty if there is none or none is read."""
        if not self._are_read:
            return ""
        return max(conditions, key=self._seriousness, default="")

    def _seriousness(self, condition: str) -> int:
        if self.is_absent(condition):
            return 3
        return 2 if self.is_suspect(condition) else int(condition not in ("", "ok"))


def with_inferred(item: WindowInput, since_start_ns: int) -> WindowInput:
    """Return an input of a window with the condition that follows from its age, where it has none.

    Args:
        item: the input.
        since_start_ns: event time since the first message of the fusion.
    """
    if item.condition or not (inferred := _INFERRED.get(item.reason, "")):
        return item
    lost = item.reason == "never" and since_start_ns > STARTING_NS
    return structs.replace(item, condition="lost" if lost else inferred)
