"""One fusion process: active from its start, or standing by with its models loaded until it takes over.

Order of an active process: bind the outputs, so that readers find them while the models load; load; fuse.
Order of one that stands by: load; follow the inputs; when the active process has ended, the kernel gives the
role to this one (`perception.bus.role`): bind the outputs; wait until readers have found them; fuse. Only the
process that has the role binds outputs, so only one ever publishes states.

Threads: the main thread calls every method. A daemon thread waits for the role and sets an event.
"""

import gc
import logging
import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from perception.bus.host import HostClock, Runtime
from perception.bus.publisher import Publisher
from perception.bus.role import Role
from perception.bus.subscriber import Subscriber
from perception.devices.received import thresholds_of
from perception.errors import BusError, PerceptionError
from perception.fusion.core import FusionCore
from perception.graph.fusion_loop import FusionLoop, Outputs
from perception.graph.intake import Intake
from perception.graph.judging import Judging
from perception.graph.plan import STANDBY
from perception.graph.standby import Standby
from perception.messages import PROCESS, FusedState, Header, HeadUse, Health
from perception.profile import Profile

if TYPE_CHECKING:
    from perception.fusion.compute import Compute

_LOG: Final = logging.getLogger("perception")
_FIND_NS: Final = 150_000_000
"""Readers look for new publishers every 0.1 s; a message sent before they have found one is lost to them."""


_RELEASE_NS: Final = 2_000_000_000
_RETRY_S: Final = 0.02


class FusionProcess:
    """Runs the fusion of a profile until stopped.

    Args:
        profile: with a `[fusion]` table.
        name: of the node.
        stopped: set when the process has to end.
    """

    def __init__(self, profile: Profile, name: str, stopped: threading.Event) -> None:
        self._profile = profile
        self._config = profile.required_fusion()
        self._name = name
        self._stopped = stopped
        self._runtime, self._clock = Runtime(profile.domain), HostClock().now_ns
        self._judging = Judging(thresholds_of(profile))
        self._core = FusionCore(self._config)
        self._outputs: Outputs | None = None
        """Bound before the compute thread starts."""

    def run(self) -> None:
        """Fuse, at once or after a takeover.

        Raises:
            PerceptionError: the models cannot be built, an output cannot be bound, or the models hang.
        """
        if not self._config.standby:
            self._fuse_at_once()
            return
        role = Role(self._runtime.directory, self._config.name)
        try:
            if role.take():
                self._fuse_at_once()
            else:
                self._stand_by(role)
        finally:
            role.release()

    def _fuse_at_once(self) -> None:
        with ExitStack() as stack:
            outputs = self._bind(stack)  # torch takes seconds to import; meanwhile a recorder finds them
            compute = self._compute()
            intake = Intake(self._core, self._inbox(stack), self._clock)
            compute.start()
            self._loop(compute, intake, outputs).run(self._stopped)

    def _stand_by(self, role: Role) -> None:
        with ExitStack() as stack:
            compute, taken = self._compute(), threading.Event()
            intake = Intake(self._core, self._inbox(stack), self._clock)
            active = self._subscriber(stack, f"state/{self._config.name}", f"journal/{self._name}")
            standby = Standby(self._core, intake, active, clock=self._clock, judging=self._judging)
            threading.Thread(target=_wait, args=(role, taken), name="role", daemon=True).start()
            with self._publisher(f"health/{self._name}{STANDBY}") as health:
                standby.follow(
                    taken.is_set, self._stopped, lambda: self._report(health, compute, standby.head)
                )
            if not self._stopped.is_set():
                self._take_over(stack, compute, intake, standby)

    def _take_over(self, stack: ExitStack, compute: "Compute", intake: Intake, standby: Standby) -> None:
        outputs = self._bind_released(stack)
        found_ns = self._clock() + _FIND_NS
        self._adopt(compute, standby.head)
        standby.follow(lambda: self._clock() >= found_ns, self._stopped)
        loop = self._loop(compute, intake, outputs)
        missed = standby.missed()
        compute.offer(missed)
        compute.start()
        _LOG.info("took over from %s: %d windows without a state", standby.source or "none", len(missed))
        loop.run(self._stopped)

    def _report(self, health: Publisher, compute: "Compute", head: HeadUse | None) -> None:
        """Publish how this process stands by; load a head that was swapped in now, not at the takeover."""
        problem = self._adopt(compute, head)
        health.send(
            Health(
                stamp_ns=self._clock(),
                node=f"{self._name}{STANDBY}",
                status="degraded" if problem else "ok",
                reason=problem or "stands by: its models are loaded",
                device={PROCESS: os.getpid()},
            )
        )

    def _adopt(self, compute: "Compute", head: HeadUse | None) -> str:
        """Use the head of the active fusion; return why that is not possible, else empty."""
        try:
            if head is not None:
                compute.swap.adopt(head)
        except PerceptionError as error:
            return f"it would take over with another head: {error}"
        return ""

    def _loop(self, compute: "Compute", intake: Intake, outputs: Outputs) -> FusionLoop:
        return FusionLoop(self._core, compute, intake, outputs, self._clock, self._judging)

    def _compute(self) -> "Compute":
        """Load and warm up the models."""
        from perception.fusion.build import build_engine, use_threads
        from perception.fusion.compute import Compute

        use_threads(self._config.threads)
        engine = build_engine(self._config, clock=self._clock)
        engine.warm_up()
        gc.freeze()  # models are permanent: a full collection would scan them for a tenth of a second
        _LOG.info("ready on %s: %s", engine.device, ", ".join(engine.encoders))
        return Compute(engine, self._send, self._clock)

    def _send(self, state: FusedState) -> Header:
        """Publish a state. Compute thread."""
        assert self._outputs is not None
        return self._outputs.state.send(state)

    def _bind(self, stack: ExitStack) -> Outputs:
        config, name = self._config, self._name
        topics = {f"{kind}/{name}": None for kind in ("clock", "journal", "health", "head")}
        given = {f"state/{config.name}": config.endpoint, **topics}
        self._outputs = Outputs(*(stack.enter_context(self._publisher(*item)) for item in given.items()))
        return self._outputs

    def _bind_released(self, stack: ExitStack) -> Outputs:
        """Bind the outputs; the kernel may need some time to release those of the ended process."""
        limit_ns = self._clock() + _RELEASE_NS
        while True:
            try:
                with ExitStack() as attempt:
                    outputs = self._bind(attempt)
                    stack.push(attempt.pop_all())
                    return outputs
            except BusError:
                if self._clock() > limit_ns or self._stopped.wait(_RETRY_S):
                    raise

    def _publisher(self, topic: str, endpoint: str | None = None) -> Publisher:
        return Publisher(
            topic,
            source=self._name,
            runtime=self._runtime,
            clock=self._clock,
            endpoint=endpoint or self._profile.endpoint_of(topic),
            insecure=self._profile.insecure,
            keys=self._profile.keys,
        )

    def _inbox(self, stack: ExitStack) -> Subscriber:
        inputs = [item.topic for item in self._config.inputs.values()]
        return self._subscriber(stack, *inputs, f"control/{self._name}")

    def _subscriber(self, stack: ExitStack, *topics: str) -> Subscriber:
        subscriber = Subscriber(
            *topics,
            runtime=self._runtime,
            clock=self._clock,
            connect=self._profile.connect,
            hosts=self._profile.other_hosts(),
            insecure=self._profile.insecure,
            keys=self._profile.keys,
        )
        return stack.enter_context(subscriber)


def _wait(role: Role, taken: threading.Event) -> None:
    """Thread body: wait for the role, then set the event."""
    role.wait()
    taken.set()
