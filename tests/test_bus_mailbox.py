"""The mailbox follows the topic's policy, and its counts are exact at any time."""

from collections import defaultdict, deque
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from msgspec import structs

from perception import topics
from perception.bus.inbox import Inbox
from perception.bus.mailbox import MAX_REPORTED, Mailbox
from perception.messages import ClockTick, Header, InputHealth, Message
from perception.units.bounded import MAX_NAMES

CAMERA, TEXT = "camera/a", "text/b"


def message(topic: str, seq: int, *, source: str = "one#1", stamp_ns: int = 0) -> Message[Header]:
    return Message(topic, ClockTick(stamp_ns=stamp_ns, seq=seq, source=source))


def filled(*messages: Message[Header]) -> Mailbox:
    mailbox = Mailbox()
    for one in messages:
        mailbox.put(one)
    return mailbox


def account(mailbox: Mailbox, topic: str, now_ns: int = 0) -> InputHealth:
    return mailbox.health(now_ns)[topic]


def drain(mailbox: Mailbox) -> list[Message[Header]]:
    return list(iter(mailbox.take, None))


def test_latest_keeps_the_newest_and_counts_the_rest() -> None:
    mailbox = filled(*(message(CAMERA, seq) for seq in range(5)))
    assert [one.header.seq for one in drain(mailbox)] == [4]
    assert account(mailbox, CAMERA).dropped == {"superseded": 4}


def test_queue_keeps_the_oldest_and_counts_what_does_not_fit() -> None:
    depth = topics.lookup(TEXT).depth
    mailbox = filled(*(message(TEXT, seq) for seq in range(depth + 3)))
    assert account(mailbox, TEXT).dropped == {"overflow": 3}
    assert [one.header.seq for one in drain(mailbox)] == list(range(depth))


def test_a_row_of_the_table_can_be_replaced() -> None:
    mailbox = Mailbox({"camera": replace(topics.TOPICS["camera"], policy="queue", depth=2)})
    for seq in range(3):
        mailbox.put(message(CAMERA, seq))
    assert [one.header.seq for one in drain(mailbox)] == [0, 1]


def test_a_queue_is_bounded_in_bytes_too_and_takes_more_once_it_has_room() -> None:
    mailbox = Mailbox(
        {"camera": replace(topics.TOPICS["camera"], policy="queue", depth=9, max_queued_bytes=10)}
    )
    for seq in range(3):
        mailbox.put(structs.replace(message(CAMERA, seq), payload=b"12345"))
    assert account(mailbox, CAMERA).dropped == {"overflow": 1}
    mailbox.take()
    mailbox.put(structs.replace(message(CAMERA, 3), payload=b"12345"))
    assert [one.header.seq for one in drain(mailbox)] == [1, 3]


def test_several_topics_are_handed_out_in_order_of_arrival() -> None:
    arrivals = [(TEXT, 0), (CAMERA, 0), (TEXT, 1), ("state/c", 0), (TEXT, 2)]
    mailbox = filled(*(message(topic, seq) for topic, seq in arrivals))
    assert [(one.topic, one.header.seq) for one in drain(mailbox)] == arrivals


def test_what_nothing_waits_before_is_handed_to_who_waits_at_once() -> None:
    mailbox = Mailbox()
    first, second, third = message(TEXT, 0), message(TEXT, 1), message(CAMERA, 0)
    assert mailbox.put_and_take(first) is first
    mailbox.put(second)
    assert mailbox.put_and_take(third) is second
    assert mailbox.take() is third
    assert mailbox.put_and_take(message(TEXT, 1)) is None
    assert account(mailbox, TEXT) == InputHealth(received=3, consumed=2, dropped={"duplicate": 1}, age_ms=0)


def test_a_gap_in_the_numbers_is_a_loss() -> None:
    assert account(filled(message(TEXT, 3), message(TEXT, 4), message(TEXT, 9)), TEXT).lost == 4


def test_a_late_joiner_does_not_count_what_came_before() -> None:
    assert account(filled(message(TEXT, 1000)), TEXT).lost == 0


def test_a_restarted_publisher_starts_a_new_count() -> None:
    mailbox = filled(message(TEXT, 7, source="say#1"), message(TEXT, 0, source="say#2"))
    mailbox.put(message(TEXT, 2, source="say#2"))
    assert account(mailbox, TEXT) == InputHealth(received=3, queued=3, lost=1, age_ms=0)


def test_repeated_numbers_are_dropped_and_counted() -> None:
    mailbox = filled(*(message(TEXT, seq) for seq in (5, 5, 4, 6)))
    assert [one.header.seq for one in drain(mailbox)] == [5, 6]
    assert account(mailbox, TEXT).dropped == {"duplicate": 1, "backwards": 1}


def test_a_refused_message_is_not_also_lost() -> None:
    mailbox = filled(message(TEXT, 0))
    mailbox.refuse(TEXT)
    mailbox.put(message(TEXT, 3))
    assert account(mailbox, TEXT) == InputHealth(
        received=3, queued=2, lost=1, dropped={"malformed": 1}, age_ms=0
    )


def test_age_is_that_of_the_newest_stamp_so_far() -> None:
    mailbox = filled(message(TEXT, 0, stamp_ns=5_000_000), message(TEXT, 1, stamp_ns=3_000_000))
    assert account(mailbox, TEXT, now_ns=7_500_000).age_ms == 2.5


def test_a_topic_that_is_only_expected_has_an_empty_account() -> None:
    mailbox = Mailbox()
    mailbox.expect(CAMERA)
    assert account(mailbox, CAMERA) == InputHealth()


def test_a_publisher_that_restarts_for_ever_does_not_grow_the_mailbox() -> None:
    mailbox = Mailbox()
    for incarnation in range(1000):
        mailbox.put(message(CAMERA, 0, source=f"camera#{incarnation}"))
    assert len(mailbox) == 1
    assert len(mailbox._accounts[CAMERA].next_seq) <= 16


class Exactness(RuleBasedStateMachine):
    """Any sequence of arrivals, losses, repeats, refusals and reads keeps all counts exact."""

    def __init__(self) -> None:
        super().__init__()
        rows = {
            "camera": replace(topics.TOPICS["camera"], depth=2),
            "text": replace(topics.TOPICS["text"], depth=3),
        }
        self.mailbox = Mailbox(rows)
        self.sent: defaultdict[str, int] = defaultdict(int)
        self.received: defaultdict[str, int] = defaultdict(int)
        self.newest: dict[str, int] = {}
        self.repeated: defaultdict[str, int] = defaultdict(int)
        self.consumed: defaultdict[str, int] = defaultdict(int)
        self.model: defaultdict[str, deque[int]] = defaultdict(deque)

    topic_names = st.sampled_from([CAMERA, TEXT])

    @rule(topic=topic_names)
    def arrives(self, topic: str) -> None:
        self.mailbox.put(self.next_message(topic))

    @rule(topic=topic_names)
    def arrives_for_who_waits(self, topic: str) -> None:
        self.reads(self.mailbox.put_and_take(self.next_message(topic)))

    def next_message(self, topic: str) -> Message[Header]:
        seq = self.sent[topic]
        self.sent[topic] += 1
        self.received[topic] += 1
        self.newest[topic] = seq
        queue = self.model[topic]
        if topic == CAMERA:
            queue.append(seq)
            while len(queue) > 2:
                queue.popleft()
        elif len(queue) < 3:
            queue.append(seq)
        return message(topic, seq)

    @rule(topic=topic_names)
    def is_lost(self, topic: str) -> None:
        if self.received[topic]:  # messages before the first received one are not counted
            self.sent[topic] += 1

    @rule(topic=topic_names)
    def is_repeated(self, topic: str) -> None:
        if self.received[topic]:
            self.repeated[topic] += 1
            self.mailbox.put(message(topic, self.newest[topic]))

    @rule(topic=topic_names)
    def arrives_malformed(self, topic: str) -> None:
        if self.received[topic]:
            self.sent[topic] += 1
            self.received[topic] += 1
            self.mailbox.refuse(topic)

    @rule(topic=topic_names)
    def is_repeated_to_who_waits(self, topic: str) -> None:
        if self.received[topic]:
            self.repeated[topic] += 1
            self.reads(self.mailbox.put_and_take(message(topic, self.newest[topic])))

    @rule()
    def is_read(self) -> None:
        self.reads(self.mailbox.take())

    def reads(self, taken: Message[Header] | None) -> None:
        if taken is None:
            assert not any(self.model.values())
        else:
            self.consumed[taken.topic] += 1
            assert taken.header.seq == self.model[taken.topic].popleft()

    @invariant()
    def accounts_are_exact(self) -> None:
        for topic, health in self.mailbox.health(0).items():
            assert health.received == health.consumed + sum(health.dropped.values()) + health.queued
            assert health.received == self.received[topic] + self.repeated[topic]
            assert health.consumed == self.consumed[topic]
            assert health.queued == len(self.model[topic])

    def teardown(self) -> None:
        for topic in (CAMERA, TEXT):
            if self.received[topic]:
                self.arrives(topic)
                health = self.mailbox.health(0)[topic]
                assert self.sent[topic] == health.received - self.repeated[topic] + health.lost


TestExactness = Exactness.TestCase
TestExactness.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_who_judges_whether_to_wait_is_counted_among_those_who_do() -> None:
    inbox = Inbox(Mailbox())
    counted = []

    def unless() -> bool:
        counted.append(inbox.waiting)
        return True

    inbox.wait(None, unless)
    assert (counted, inbox.waiting) == ([1], 0)

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inbox.wait(None, unless=interrupted)
    assert inbox.waiting == 0


def test_a_flood_of_topics_costs_no_memory_and_not_the_accounts_of_the_others() -> None:
    mailbox = filled(*(message(CAMERA, seq) for seq in range(5)))
    mailbox.expect("camera/silent")
    drain(mailbox)
    for number in range(3 * MAX_NAMES):
        mailbox.put(message(f"text/flood-{number}", 0))
        if number % 2:
            mailbox.take()
    health = mailbox.health(0)
    assert len(health) == MAX_REPORTED + 1
    assert health[CAMERA].received == 5
    assert "camera/silent" in health
    rest = health["*"]
    assert rest.received == 3 * MAX_NAMES - MAX_REPORTED + 2
    assert rest.dropped["forgotten"] > 0
    assert sum(one.received for one in health.values()) == 3 * MAX_NAMES + 5
    for one in health.values():
        assert one.received == one.consumed + one.queued + sum(one.dropped.values())
    assert len(drain(mailbox)) == sum(one.queued for one in health.values())
