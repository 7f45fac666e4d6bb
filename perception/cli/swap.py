"""`perception swap`: replace the head of a running fusion, after a comparison in shadow, or switch back."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from perception.cli.options import joined_domain, setting
from perception.cli.standard_streams import show
from perception.errors import PerceptionError
from perception.units.closing import Closing

if TYPE_CHECKING:
    from perception.messages import HeadStatus

_REACHED_S: Final = 5.0
_SETTLE_S: Final = 0.3  # longer than a subscriber takes to reach a topic
_ANSWER_S: Final = 60.0
"""Longest time to load a large head from a slow disk."""


@click.command()
@click.argument("head", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--back", is_flag=True, help="Switch back to the previous head.")
@click.option("--node", metavar="NAME", default="fusion", show_default=True, help="Name of the fusion node.")
@joined_domain
@setting(
    "--after ticks", "N", click.IntRange(1, 1_000_000), 50, "Compare the heads on N windows before switching."
)
@click.option("--go", is_flag=True, help="Switch after the comparison without a question.")
@click.option(
    "--min-agreement",
    metavar="SHARE",
    type=click.FloatRange(0, 1),
    help="Switch without a question if at least this share of the labels is equal, else exit with code 1.",
)
@click.option(
    "--hash",
    "expected",
    metavar="PREFIX",
    default="",
    help="Refuse a head whose hash has another prefix.",
)
def swap(
    head: Path | None,
    back: bool,
    node: str,
    domain: str | None,
    ticks: int,
    go: bool,
    min_agreement: float | None,
    expected: str,
) -> int:
    """Replace the head of a running fusion by the checkpoint HEAD, without losing a tick.

    First both heads infer every window, and only the states of the old head are published. After N windows
    the command shows their agreement and asks whether to switch; --go and --min-agreement answer for you.
    """
    if back == (head is not None):
        raise click.UsageError("give either HEAD or --back")
    with _Control(node, domain) as control:
        if head is None:
            _show_live(control.switch(action="back"))
            return 0
        found = _hash(head, expected)
        compared = _compare(control, head, found, ticks)
        share = compared.agreement.equal
        show(
            f"shadow: {share:.1%} of {compared.agreement.ticks} labels equal, "
            f"mean total-variation distance {compared.agreement.variation:.4f}"
        )
        if min_agreement is not None and share < min_agreement:
            raise PerceptionError(f"not switched: agreement {share:.3f} is below {min_agreement}")
        if not (go or min_agreement is not None or _confirmed()):
            show("not switched; --go switches after the comparison without a question")
            return 0
        _show_live(control.switch(action="go", head_hash=found))
    return 0


def _hash(folder: Path, expected: str) -> str:
    from perception.models.checkpoint import head_hash, load_head

    found = head_hash(load_head(folder))
    if not found.startswith(expected):
        raise PerceptionError(f"{folder}: hash of the head is {found}, expected {expected}…")
    return found


def _compare(control: "_Control", head: Path, found: str, ticks: int) -> "HeadStatus":
    from rich.console import Console
    from rich.progress import Progress

    answers = control.request(action="shadow", folder=str(head.absolute()), head_hash=found, ticks=ticks)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("in shadow", total=ticks)
        for status in answers:
            progress.update(bar, completed=status.agreement.ticks)
            if status.phase == "compared":
                return status
    raise AssertionError("answers end by an exception only")


def _confirmed() -> bool:
    return sys.stdin.isatty() and click.confirm("switch to it?")


def _show_live(status: "HeadStatus") -> None:
    use = status.in_force
    show(f"live from tick {use.from_tick} on: head {use.head_hash[:12]} {use.folder}".rstrip())


class _Control(Closing):
    """Sends requests to one fusion node and receives its answers."""

    def __init__(self, node: str, domain: str | None) -> None:
        from perception.bus.domains import joined
        from perception.bus.host import HostClock
        from perception.bus.publisher import Publisher
        from perception.bus.subscriber import Subscriber

        runtime, self._now_ns = joined(domain), HostClock().now_ns
        self._node = f"fusion node '{node}' in domain '{runtime.domain}'"
        if f"head/{node}" not in runtime.topics():
            raise PerceptionError(f"no {self._node}; `perception nodes` shows those alive")
        self._answers = Subscriber(f"head/{node}", runtime=runtime, clock=self._now_ns)
        self._requests = Publisher(f"control/{node}", source="swap", runtime=runtime, clock=self._now_ns)
        if not self._requests.wait_for_subscriber(_REACHED_S):
            self.close()
            raise PerceptionError(f"{self._node} accepts no requests yet: it is still loading its models")
        time.sleep(_SETTLE_S)

    def request(self, **fields: object) -> "Iterator[HeadStatus]":
        """Send a request; yield the answers to it. PerceptionError if it is refused or not answered."""
        from perception.messages import HeadStatus, SwapRequest, checked

        request = self._requests.send(checked(SwapRequest, {"stamp_ns": self._now_ns(), **fields}))
        while (message := self._answers.receive(_ANSWER_S)) is not None:
            status = message.header
            if isinstance(status, HeadStatus) and status.asked_by == request.source:
                if status.phase == "refused":
                    raise PerceptionError(f"refused by the {self._node}: {status.reason}")
                yield status
        raise PerceptionError(f"no answer of the {self._node} within {_ANSWER_S:.0f} s")

    def switch(self, **fields: object) -> "HeadStatus":
        """Send a request that switches the head; return the answer to it."""
        return next(status for status in self.request(**fields) if status.phase == "live")

    def close(self) -> None:
        """Close both topics."""
        self._answers.close()
        self._requests.close()
