"""Large payloads between processes of one host: slots of shared memory, their place sent to the readers.

The memory has no name (`memfd_create`): a reader is given its file, and the kernel frees it with the last
process that has it, however that ended. Slots are locked and used anew in groups, which costs a system call
for several messages. A reader locks a group, together with other readers, for as long as anything refers to a
payload in it, and then until it comes to another group: a payload never changes while it can be seen. The
kernel holds these locks too, and drops those of the dead.

A reader locks first and then looks at the slot's generation; a writer makes those of a group nought and then
asks for locks, before it fills its slots. The kernel serves one of them after the other, and so one sees the
other. What a reader locks may be in the middle of being filled: only what is used anew must be unlocked.
"""

import fcntl
import mmap
import os
import struct
import sys
import weakref
from collections.abc import Callable
from sys import getrefcount
from typing import Final

import msgspec

from perception.errors import BusError

LANE_BYTES: Final = 16 * 1024
"""Payloads from this size on take a slot: below it a copy through the socket is as cheap, and it has room."""
SUPPORTED: Final = sys.platform.startswith("linux") and sys.maxsize > 1 << 32
_SLOTS: Final = 32
_GROUP: Final = 4
_GROUPS: Final = _SLOTS // _GROUP
_FIRST_GROUPS: Final = 2
"""At 60 Hz a message may wait 0.07 s for its reader; more are used where readers hold many or miss none."""
_HELD: Final = 6
"""Groups that readers may hold. What lies in the others they copy, so that holding cannot use up the ring."""
_PINNED: Final = 5
"""Groups one reader may hold, enough to look back 0.25 s at 60 Hz; beyond them it copies."""
_OWN: Final = 2
"""What `getrefcount` says of what only a list refers to."""


def references_are_counted(count: Callable[[object], int] = getrefcount, *, gil: bool | None = None) -> bool:
    """Return whether `count` tells that something refers to an object besides a list, as the lane needs it.

    Builds without a GIL count in parts, and an interpreter may borrow references. Payloads are copied there.
    """
    if not (getattr(sys, "_is_gil_enabled", lambda: True)() if gil is None else gil):
        return False
    raw, lent = 0, 1
    listed: list[msgspec.Raw | memoryview] = [msgspec.Raw(b"read"), memoryview(bytearray(b"lent"))]

    def unused() -> bool:
        return all(count(listed[at]) == _OWN for at in range(len(listed)))

    before = unused()
    users = memoryview(listed[raw]), listed[lent]
    used = all(count(listed[at]) > _OWN for at in range(len(listed)))
    del users
    return before and used and unused()


COUNTED: Final = references_are_counted()
_PAGE: Final = mmap.PAGESIZE
_WORDS: Final = 8
"""Eight-byte words between the generations of two groups, which so lie on lines of the cache of their own."""
_WORD: Final = tuple(slot // _GROUP * _WORDS + slot % _GROUP for slot in range(_SLOTS))
"""By slot, where its generation stands."""
_NONE: Final = memoryview(bytes(8 * _GROUP)).cast("Q")
"""Generations of a group that holds nothing."""


def _locks(kind: int) -> tuple[bytes, ...]:
    # struct flock of fcntl(2) on 64-bit Linux, a byte per group and one that is no group's
    return tuple(struct.pack("hhqqi4x", kind, os.SEEK_SET, group, 1, 0) for group in range(_GROUPS + 1))


# Of the open file, not of the process: two subscribers of one process are two readers.
_SET_LOCK: Final = fcntl.F_OFD_SETLK if SUPPORTED else 0
_ASK_LOCK: Final = fcntl.F_OFD_GETLK if SUPPORTED else 0
_WRITE: Final = _locks(fcntl.F_WRLCK)
_READ: Final = _locks(fcntl.F_RDLCK)
_UNLOCK: Final = _locks(fcntl.F_UNLCK)
_UNLOCKED: Final = _UNLOCK[0][:2]
_SEALS: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW: a mapping never loses its pages


class Ring:
    """The writer's side: slots of `stride` bytes, the oldest group of them that nobody reads is used next."""

    def __init__(self, size: int, *, counted: bool = COUNTED) -> None:
        """Make room for payloads of `size` bytes; OSError if the system refuses.

        Where references are not `counted`, a slot that was lent and never committed is not used again.
        """
        self.counted = counted
        # Memory is taken up page by page when it is first used: a generous stride costs nothing.
        self.stride = max(_PAGE, 1 << (size - 1).bit_length())
        total = _PAGE + _SLOTS * self.stride
        self.file = os.memfd_create("perception", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.file)  # not before the last loan is given back
        os.ftruncate(self.file, total)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, _SEALS)
        # Asked about a file without any lock, the kernel would answer without waiting for its turn.
        fcntl.fcntl(self.file, _SET_LOCK, _WRITE[_GROUPS])
        self._memory = memoryview(mmap.mmap(self.file, total))
        self._generations = self._memory[:_PAGE].cast("Q")
        self._allocated = [0] * _SLOTS
        self._lent: list[memoryview | None] = [None] * _SLOTS
        """By slot, the bytes of its loan, which is in use as long as it refers to them."""
        self._free: list[int] = []
        """Slots of the group in use that have not been lent yet, the next one last."""
        self._active = _FIRST_GROUPS
        self._next = self._spare = 0
        self._generation = 0

    def lend(self, size: int) -> "Loan | None":
        """Return a slot that nobody reads or fills, with room for `size` bytes; None if there is none."""
        if not self._free and not any(self._seize(self._candidate(tried)) for tried in range(_GROUPS)):
            return None
        slot = self._free.pop()
        if size > self._allocated[slot] and not self._back(slot, size):
            return None
        start = _PAGE + slot * self.stride
        self._lent[slot] = data = self._memory[start : start + size]
        return Loan(data, self, slot)

    def widen(self) -> None:
        """Use slots anew as late as can be, for readers that are to miss nothing."""
        self._active = _HELD

    def commit(self, slot: int) -> int:
        """Let readers have a slot that has been filled; return its generation, counted from 1."""
        self._generation = generation = self._generation + 1
        self._generations[_WORD[slot]] = generation
        self._lent[slot] = None
        return generation

    def _seize(self, group: int) -> bool:
        """Let nobody read what a group holds any more; return whether nobody does, nor fills it."""
        slots = _slots(group)
        for slot in slots:
            if self._lent[slot] is not None and not (self.counted and getrefcount(self._lent[slot]) == _OWN):
                return False
            self._lent[slot] = None
        word = _WORD[slots[0]]
        generations = self._generations[word : word + _GROUP]
        before = generations.tolist()
        generations[:] = _NONE
        if fcntl.fcntl(self.file, _ASK_LOCK, _WRITE[group])[:2] == _UNLOCKED:
            self._free.extend(reversed(slots))
            return True
        for place, generation in enumerate(before):
            generations[place] = generation
        return False

    def _candidate(self, tried: int) -> int:
        """Return the oldest group; one not used before if many are in use; at last one to copy from."""
        if tried >= _HELD:
            self._spare = (self._spare + 1) % (_GROUPS - _HELD)
            return _HELD + self._spare
        if tried >= self._active // 2 and self._active < _HELD:
            self._next, self._active = self._active, self._active + 1
        group, self._next = self._next, (self._next + 1) % self._active
        return group

    def _back(self, slot: int, size: int) -> bool:
        """Have real memory behind the slot: writing where there is none would end the process."""
        try:
            os.posix_fallocate(self.file, _PAGE + slot * self.stride, size)
        except OSError:
            return False
        self._allocated[slot] = size
        return True


class Loan(msgspec.Struct, eq=False):
    """Memory for a payload, which is then published without a copy, once; dropped, it is given back."""

    data: memoryview
    """Writable bytes, not to be written to once published."""
    ring: Ring | None = None
    """None if the memory is this process's own."""
    slot: int = 0
    spent: bool = False

    def spend(self) -> None:
        """Take it for publishing; BusError if it has been published."""
        if self.spent:
            raise BusError("a loan can be published only once")
        self.spent = True


class Reader:
    """One subscriber's side of one publisher's ring."""

    def __init__(self, file: int, *, counted: bool = COUNTED) -> None:
        """Open a ring, given its file; OSError or ValueError if that cannot be done.

        Where references are not `counted`, every payload is copied.
        """
        self._pinned = _PINNED if counted else 0
        # Opened anew, for reading: locks belong to the opening, and the publisher's own would not count.
        self._file = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        total = os.fstat(self._file).st_size
        self._stride, odd = divmod(total - _PAGE, _SLOTS)
        if odd or self._stride < _PAGE or self._stride % _PAGE:
            raise ValueError("no file of a ring")
        if fcntl.fcntl(self._file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("the ring could shrink while it is read")
        self._memory = memoryview(mmap.mmap(self._file, total, prot=mmap.PROT_READ))
        self._generations = self._memory[:_PAGE].cast("Q")
        self._sizes = [0] * _SLOTS
        self._read = [msgspec.Raw() for _ in range(_SLOTS)]
        """By slot, what it was last read through: views refer to this, one per payload that is used."""
        self._locked: list[int] = []

    def payload(self, slot: int, size: int, generation: int) -> memoryview | None:
        """Return the payload, unchanging while anything refers to it; None if its slot is used anew."""
        if slot >= _SLOTS or size > self._stride:
            return None
        group = slot // _GROUP
        if group not in self._locked and not self._lock(group):
            return None
        if self._generations[_WORD[slot]] != generation:
            return None
        if size != self._sizes[slot]:
            start = _PAGE + slot * self._stride
            self._read[slot] = msgspec.Raw(self._memory[start : start + size])
            self._sizes[slot] = size
        payload = memoryview(self._read[slot])
        if group < _HELD and len(self._locked) <= self._pinned:
            return payload
        copy = memoryview(payload.tobytes())
        self._unlock(group)
        return copy

    def _lock(self, group: int) -> bool:
        """Lock a group, having unlocked those that nothing refers to; return whether that succeeded."""
        for locked in self._locked[:]:
            if all(getrefcount(self._read[slot]) == _OWN for slot in _slots(locked)):
                self._unlock(locked)
        if not _ask(self._file, _READ[group]):
            return False
        self._locked.append(group)
        return True

    def _unlock(self, group: int) -> None:
        self._locked.remove(group)
        _ask(self._file, _UNLOCK[group])


def _slots(group: int) -> range:
    return range(group * _GROUP, (group + 1) * _GROUP)


def _ask(file: int, request: bytes) -> bool:
    """Lock or unlock a group without waiting; return whether that succeeded."""
    try:
        fcntl.fcntl(file, _SET_LOCK, request)
    except OSError:
        return False
    return True
