"""Dictionaries keyed by names from elsewhere: bounded, and what leaves them is counted."""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping
from typing import Final, TypeVar

MAX_NAMES: Final = 1024
"""Topics, nodes or reasons that are remembered: more than any graph has, and a flood of them takes little."""
REST: Final = "*"
"""Key of the sum over names that are no longer remembered one by one."""

KeyT = TypeVar("KeyT", bound=Hashable)
ValueT = TypeVar("ValueT")


class Recent(OrderedDict[KeyT, ValueT]):
    """A dictionary of the `MAX_NAMES` keys that were set last."""

    forgotten = 0
    """How many others were removed."""

    def __setitem__(self, key: KeyT, value: ValueT) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > MAX_NAMES:
            self.popitem(last=False)
            self.forgotten += 1

    def renewed(self, key: KeyT, default: ValueT) -> ValueT:
        """Return the value of a key, `default` if it is new; it counts as set now."""
        value = self[key] = self.get(key, default)
        return value


def add_counts(total: Counter[str], more: Mapping[str, int]) -> None:
    """Add counts by reason; reasons beyond `MAX_NAMES` are added under `REST`."""
    for reason, count in more.items():
        total[reason if reason in total or len(total) < MAX_NAMES else REST] += count
