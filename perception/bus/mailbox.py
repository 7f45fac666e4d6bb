"""Messages between socket and consumer: queue policy and exact counts per topic. No socket, no thread.

`put`, `refuse` and `put_and_take` count a message as received; exactly one of consumed, dropped and queued
counts it afterwards. Lost messages are gaps in `seq` per publisher id, less the refused messages between.

Threads: not thread-safe; `Inbox.lock` is held during every call.
"""

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from perception import topics
from perception.messages import MAX_COUNT, Header, InputHealth, Message
from perception.units.bounded import MAX_NAMES, REST

_MAX_SOURCES: Final = 16  # publisher ids per topic: a publisher that restarts again and again stays bounded
_MAX_GAP: Final = 1 << 32
"""Largest gap in `seq` that is a loss: at 1000 messages a second that of 50 days."""
_MAX_BYTES: Final = 1 << 30
"""Headers and payloads queued on all topics together."""
MAX_REPORTED: Final = 256
"""Topics with counts of their own in a report, which must fit into one header."""


@dataclass(slots=True)
class _Account:
    row: topics.Topic
    arrivals: deque[int] = field(default_factory=deque)
    queued_bytes: int = 0
    next_seq: dict[str, int] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    received: int = 0
    consumed: int = 0
    lost: int = 0
    unexplained: int = 0
    """Refused messages since the last valid one; each explains one missing `seq`."""
    newest_stamp_ns: int | None = None
    queued_elsewhere: int = 0
    """Messages that wait in the accounts that were added to this one."""

    @property
    def queued(self) -> int:
        """Number of messages that wait; of a sum of accounts, those of all."""
        return self.queued_elsewhere + len(self.arrivals)

    def add(self, other: "_Account") -> None:
        """Add the counts of another account."""
        self.received += other.received
        self.consumed += other.consumed
        self.lost = min(self.lost + other.lost, MAX_COUNT)
        self.dropped.update(other.dropped)
        self.queued_elsewhere += other.queued

    def admit(self, header: Header) -> bool:
        """Count a received message and the loss before it; return False for a duplicate or an old `seq`."""
        self.received += 1
        source, seq, stamp_ns = header.source, header.seq, header.stamp_ns
        expected = self.next_seq.get(source)
        if seq != expected and not self._is_new(source, seq, expected):
            return False
        self.unexplained = 0
        self.next_seq[source] = seq + 1
        if self.newest_stamp_ns is None or stamp_ns > self.newest_stamp_ns:
            self.newest_stamp_ns = stamp_ns
        return True

    def _is_new(self, source: str, seq: int, expected: int | None) -> bool:
        if expected is None:
            if len(self.next_seq) >= _MAX_SOURCES:
                del self.next_seq[next(iter(self.next_seq))]
        elif seq < expected:
            self.dropped["duplicate" if seq == expected - 1 else "backwards"] += 1
            return False
        elif seq - expected > _MAX_GAP:
            self.dropped["seq ahead"] += 1
            return False
        else:
            self.lost = min(self.lost + max(0, seq - expected - self.unexplained), MAX_COUNT)
        return True


class Mailbox:
    """Received messages that are not consumed yet, in order of arrival.

    Between calls received = consumed + dropped + queued, and for each connected publisher
    sent = received + lost.
    """

    def __init__(self, policies: Mapping[str, topics.Topic] | None = None) -> None:
        """Create an empty mailbox; `policies` replaces rows of the table of topics, by prefix."""
        self._rows = {**topics.TOPICS, **(policies or {})}
        self._accounts: dict[str, _Account] = {}
        self._rest = _Account(topics.TOPICS["text"])
        """Sums over the topics that are no longer remembered."""
        self._waiting: OrderedDict[int, Message[Header]] = OrderedDict()
        self._arrived = 0
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def expect(self, topic: str) -> None:
        """Report counts of `topic` from now on, even if no message arrives."""
        self._account(topic)

    def put(self, message: Message[Header]) -> None:
        """Add one message; drop it or an older one if the topic's policy requires."""
        account = self._account(message.topic)
        if not account.admit(message.header):
            return
        row, size = account.row, _size(message)
        full = len(account.arrivals) >= row.depth
        if full and row.policy == "latest":
            self._remove(account, self._waiting.pop(account.arrivals.popleft()))
            account.dropped["superseded"] += 1
        elif full or account.queued_bytes + size > row.max_queued_bytes:
            account.dropped["overflow"] += 1
            return
        if self._bytes + size > _MAX_BYTES:
            account.dropped["overflow"] += 1
            return
        self._waiting[self._arrived] = message
        account.queued_bytes += size
        self._bytes += size
        account.arrivals.append(self._arrived)
        self._arrived += 1

    def put_and_take(self, message: Message[Header]) -> Message[Header] | None:
        """Add one message; return the one that arrived first, which is the same one if none is queued."""
        if self._waiting:
            self.put(message)
            return self.take()
        account = self._accounts.get(message.topic) or self._account(message.topic)
        if not account.admit(message.header):
            return None
        account.consumed += 1
        return message

    def refuse(self, topic: str, reason: str = "malformed") -> None:
        """Count a received message of `topic` that cannot be used."""
        account = self._account(topic)
        account.received += 1
        account.unexplained += 1
        account.dropped[reason] += 1

    def take(self) -> Message[Header] | None:
        """Return the message that arrived first; None if none is queued."""
        if not self._waiting:
            return None
        _, message = self._waiting.popitem(last=False)
        account = self._accounts[message.topic]
        account.arrivals.popleft()
        self._remove(account, message)
        account.consumed += 1
        return message

    def _remove(self, account: _Account, message: Message[Header]) -> None:
        """Subtract the bytes of a message that is no longer queued."""
        size = _size(message)
        account.queued_bytes -= size
        self._bytes -= size

    def health(self, now_ns: int) -> dict[str, InputHealth]:
        """Return the counts by topic, of further topics the sums; ages are relative to `now_ns`."""
        accounts, rest = self._accounts, self._rest
        if len(accounts) > MAX_REPORTED:
            order = sorted(accounts, key=lambda one: accounts[one].received or math.inf)
            further, rest = order[:-MAX_REPORTED], _Account(rest.row)
            for account in (self._rest, *(accounts[one] for one in further)):
                rest.add(account)
            accounts = {one: account for one, account in accounts.items() if one not in set(further)}
        if rest.received:
            accounts = accounts | {REST: rest}
        return {topic: _report(account, now_ns) for topic, account in accounts.items()}

    def _account(self, topic: str) -> _Account:
        account = self._accounts.get(topic)
        if account is None:
            if len(self._accounts) >= MAX_NAMES:
                self._forget_one()
            account = self._accounts[topic] = _Account(self._rows[topics.lookup(topic).prefix])
        return account

    def _forget_one(self) -> None:
        """Add the account with the fewest messages to the rest: a flood of topics sends one on each.

        Topics without any message are expected by name and stay, unless nothing else is there. What is
        queued on the forgotten topic is dropped, reason `forgotten`.
        """
        topic = min(self._accounts, key=lambda one: self._accounts[one].received or math.inf)
        account, rest = self._accounts.pop(topic), self._rest
        for arrival in account.arrivals:
            self._remove(account, self._waiting.pop(arrival))
        account.dropped["forgotten"] += len(account.arrivals)
        account.arrivals.clear()
        rest.add(account)


def _size(message: Message[Header]) -> int:
    return len(message.wire) + len(message.payload)


def _report(account: _Account, now_ns: int) -> InputHealth:
    stamp_ns = account.newest_stamp_ns
    return InputHealth(
        received=account.received,
        consumed=account.consumed,
        queued=account.queued,
        lost=account.lost,
        dropped=dict(account.dropped),
        age_ms=None if stamp_ns is None else (now_ns - stamp_ns) / 1e6,
    )
