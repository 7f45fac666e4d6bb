"""Large payloads between processes of one host: slots in shared memory; messages carry the slot number.

Memory: the file has no name (`memfd_create`). A reader receives its descriptor (`perception.bus.packet`). The
kernel frees it when the last process that has it ends, in whatever way. The first page holds one generation
per slot, 0 for an empty slot; the slots follow.

Locks: slots are reused and locked in groups of four: one system call for several messages. All locks are
open-file-description locks (`F_OFD_*` of fcntl(2)) on one byte per group. Readers share the lock of a group.
A reader keeps it while any payload in the group is referenced, and after that until it reads from another
group. So a payload never changes while it is referenced. The kernel drops the locks of a process that ends.

Protocol:
- The writer sets the generations of the group to 0, then tests whether any reader holds the group's lock. If
  none does, it fills the slots and writes a new generation into each (`Ring.lend`, `Ring.commit`). If one
  does, it restores the generations and tries another group.
- A reader locks the group, then compares the slot's generation with the one in the message. If they differ,
  the payload was overwritten and counts as dropped.
- The kernel orders the two system calls. If the reader's lock comes first, the writer finds it; else the
  reader finds generation 0. A reader may lock a group while the writer fills other slots of it: the
  lock only prevents that the group is emptied.

Threads: `Ring` and `Reader` are not thread-safe. `Publisher._lock` guards a `Ring`, `Drain._socket_lock` a
`Reader`. A `Loan` belongs to the thread that fills it until it is passed to `Publisher.send`.
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
"""Payloads from this size on are placed in a slot; smaller ones are copied through the socket as cheaply."""
SUPPORTED: Final = sys.platform.startswith("linux") and sys.maxsize > 1 << 32
_SLOTS: Final = 32
_GROUP: Final = 4
_GROUPS: Final = _SLOTS // _GROUP
_FIRST_GROUPS: Final = 2
"""Groups in use at first: at 60 Hz a message may wait 0.07 s for its reader. More follow when needed."""
_LOCKABLE: Final = 6
"""Groups that readers may keep locked. Payloads in the others are copied, so the ring is never used up."""
_MAX_LOCKED: Final = 5
"""Groups that one reader may keep locked: 0.25 s at 60 Hz. Beyond them it copies payloads."""
_UNREFERENCED: Final = 2
"""What `getrefcount` returns for an object that only a list refers to."""


def references_are_counted(count: Callable[[object], int] = getrefcount, *, gil: bool | None = None) -> bool:
    """Return whether `count` shows that an object has references besides the one of a list.

    Builds without a GIL split the count, and an interpreter may borrow references. Payloads are copied there.

    Args:
        count: `sys.getrefcount`, or a replacement in tests.
        gil: whether the GIL is enabled; None asks the interpreter.
    """
    if not (getattr(sys, "_is_gil_enabled", lambda: True)() if gil is None else gil):
        return False
    raw, lent = 0, 1
    listed: list[msgspec.Raw | memoryview] = [msgspec.Raw(b"read"), memoryview(bytearray(b"lent"))]

    def unused() -> bool:
        return all(count(listed[at]) == _UNREFERENCED for at in range(len(listed)))

    before = unused()
    users = memoryview(listed[raw]), listed[lent]
    used = all(count(listed[at]) > _UNREFERENCED for at in range(len(listed)))
    del users
    return before and used and unused()


COUNTED: Final = references_are_counted()
_PAGE: Final = mmap.PAGESIZE
_WORDS: Final = 8
"""Eight-byte words from one group's generations to the next: each group has its own cache line."""
_WORD: Final = tuple(slot // _GROUP * _WORDS + slot % _GROUP for slot in range(_SLOTS))
"""Index of the generation of each slot."""
_NONE: Final = memoryview(bytes(8 * _GROUP)).cast("Q")
"""Generations of an empty group."""


def _locks(kind: int) -> tuple[bytes, ...]:
    # struct flock of fcntl(2) on 64-bit Linux: one byte per group, and one more that belongs to no group
    return tuple(struct.pack("hhqqi4x", kind, os.SEEK_SET, group, 1, 0) for group in range(_GROUPS + 1))


# Locks of the open file, not of the process: two subscribers in one process are two readers.
_SET_LOCK: Final = fcntl.F_OFD_SETLK if SUPPORTED else 0
_GET_LOCK: Final = fcntl.F_OFD_GETLK if SUPPORTED else 0
_WRITE: Final = _locks(fcntl.F_WRLCK)
_READ: Final = _locks(fcntl.F_RDLCK)
_UNLOCK: Final = _locks(fcntl.F_UNLCK)
_UNLOCKED: Final = _UNLOCK[0][:2]
_SEALS: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW: a mapping never loses its pages


class Ring:
    """The writer's side: slots of `stride` bytes. The oldest unlocked group is reused first."""

    def __init__(self, size: int, *, counted: bool = COUNTED) -> None:
        """Create slots for payloads of `size` bytes; OSError if the system refuses.

        Without `counted` references, a slot that was lent and never committed is not reused.
        """
        self.counted = counted
        # Pages are allocated when first written: a large stride costs no memory.
        self.stride = max(_PAGE, 1 << (size - 1).bit_length())
        total = _PAGE + _SLOTS * self.stride
        self.file = os.memfd_create("perception", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, self.file)  # not before the last loan is dropped
        os.ftruncate(self.file, total)
        fcntl.fcntl(self.file, fcntl.F_ADD_SEALS, _SEALS)
        # Without any lock on the file, F_OFD_GETLK returns without synchronising with other lock calls.
        fcntl.fcntl(self.file, _SET_LOCK, _WRITE[_GROUPS])
        self._memory = memoryview(mmap.mmap(self.file, total))
        self._generations = self._memory[:_PAGE].cast("Q")
        self._allocated = [0] * _SLOTS
        self._lent: list[memoryview | None] = [None] * _SLOTS
        """By slot: the bytes of its loan; in use while the loan refers to them."""
        self._free: list[int] = []
        """Slots of the current group that are not lent yet; the next one is last."""
        self._active = _FIRST_GROUPS
        self._next = self._next_copy = 0
        self._generation = 0

    def lend(self, size: int) -> "Loan | None":
        """Return a slot of at least `size` bytes that is not read or filled; None if there is none."""
        if not self._free and not any(self._clear(self._candidate(tried)) for tried in range(_GROUPS)):
            return None
        slot = self._free.pop()
        if size > self._allocated[slot] and not self._allocate(slot, size):
            return None
        start = _PAGE + slot * self.stride
        self._lent[slot] = data = self._memory[start : start + size]
        return Loan(data, self, slot)

    def use_more_groups(self) -> None:
        """Use all lockable groups, so that slots are reused as late as possible: for lossless readers."""
        self._active = _LOCKABLE

    def commit(self, slot: int) -> int:
        """Mark a filled slot as readable; return its generation, counted from 1."""
        self._generation = generation = self._generation + 1
        self._generations[_WORD[slot]] = generation
        self._lent[slot] = None
        return generation

    def _clear(self, group: int) -> bool:
        """Empty a group for reuse; return False, with the group unchanged, if it is being read or filled."""
        slots = _slots(group)
        for slot in slots:
            if self._lent[slot] is not None and not (
                self.counted and getrefcount(self._lent[slot]) == _UNREFERENCED
            ):
                return False
            self._lent[slot] = None
        word = _WORD[slots[0]]
        generations = self._generations[word : word + _GROUP]
        before = generations.tolist()
        generations[:] = _NONE
        if fcntl.fcntl(self.file, _GET_LOCK, _WRITE[group])[:2] == _UNLOCKED:
            self._free.extend(reversed(slots))
            return True
        for place, generation in enumerate(before):
            generations[place] = generation
        return False

    def _candidate(self, tried: int) -> int:
        """Return the group to try: the oldest, then an unused one, finally one that readers copy from."""
        if tried >= _LOCKABLE:
            self._next_copy = (self._next_copy + 1) % (_GROUPS - _LOCKABLE)
            return _LOCKABLE + self._next_copy
        if tried >= self._active // 2 and self._active < _LOCKABLE:
            self._next, self._active = self._active, self._active + 1
        group, self._next = self._next, (self._next + 1) % self._active
        return group

    def _allocate(self, slot: int, size: int) -> bool:
        """Allocate memory for the slot: without it, a write on a full system ends the process (SIGBUS)."""
        try:
            os.posix_fallocate(self.file, _PAGE + slot * self.stride, size)
        except OSError:
            return False
        self._allocated[slot] = size
        return True


class Loan(msgspec.Struct, eq=False):
    """Memory for one payload, published once without a copy; free again when dropped."""

    data: memoryview
    """Writable bytes; do not write to them after publishing."""
    ring: Ring | None = None
    """None if the memory is private to this process."""
    slot: int = 0
    published: bool = False

    def mark_published(self) -> None:
        """Mark it as published; BusError if it already is."""
        if self.published:
            raise BusError("a loan can be published only once")
        self.published = True


class Reader:
    """One subscriber's side of one publisher's ring."""

    def __init__(self, file: int, *, counted: bool = COUNTED) -> None:
        """Open the ring in this file descriptor; OSError or ValueError if that fails.

        Without `counted` references, every payload is copied.
        """
        self._max_locked = _MAX_LOCKED if counted else 0
        # Reopened for reading: locks belong to an open file, and the publisher's own would not block itself.
        self._file = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)
        total = os.fstat(self._file).st_size
        self._stride, odd = divmod(total - _PAGE, _SLOTS)
        if odd or self._stride < _PAGE or self._stride % _PAGE:
            raise ValueError("not the file of a ring")
        if fcntl.fcntl(self._file, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("the ring could shrink while it is read")
        self._memory = memoryview(mmap.mmap(self._file, total, prot=mmap.PROT_READ))
        self._generations = self._memory[:_PAGE].cast("Q")
        self._sizes = [0] * _SLOTS
        self._read = [msgspec.Raw() for _ in range(_SLOTS)]
        """By slot: what the views of payloads refer to; its reference count shows whether it is used."""
        self._locked: list[int] = []

    def payload(self, slot: int, size: int, generation: int) -> memoryview | None:
        """Return the payload, constant while it is referenced; None if its slot was reused."""
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
        if group < _LOCKABLE and len(self._locked) <= self._max_locked:
            return payload
        copy = memoryview(payload.tobytes())
        self._unlock(group)
        return copy

    def _lock(self, group: int) -> bool:
        """Unlock groups without referenced payloads, then lock this group; return whether that succeeded."""
        for locked in self._locked[:]:
            if all(getrefcount(self._read[slot]) == _UNREFERENCED for slot in _slots(locked)):
                self._unlock(locked)
        if not _set_lock(self._file, _READ[group]):
            return False
        self._locked.append(group)
        return True

    def _unlock(self, group: int) -> None:
        self._locked.remove(group)
        _set_lock(self._file, _UNLOCK[group])


def _slots(group: int) -> range:
    return range(group * _GROUP, (group + 1) * _GROUP)


def _set_lock(file: int, request: bytes) -> bool:
    """Lock or unlock a group without waiting; return whether that succeeded."""
    try:
        fcntl.fcntl(file, _SET_LOCK, request)
    except OSError:
        return False
    return True
