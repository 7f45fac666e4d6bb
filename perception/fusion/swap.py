"""Another head for a running engine: loaded aside, tried beside the one in force, switched between windows.

Three threads meet here. Requests come from the one that receives, which must never wait; a loader reads and
checks a checkpoint; everything else happens on the compute thread, which alone owns the engine's head.
"""

import logging
import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import torch

from perception.errors import PerceptionError, ProfileError, WeightsError
from perception.fusion.engine import Engine
from perception.messages import Agreement, Fused, HeadStatus, HeadUse, SwapRequest
from perception.models.checkpoint import (
    Head,
    check_branches,
    check_classes,
    head_folder,
    head_hash,
    load_head,
    own_encoders,
)
from perception.models.registry import build_encoder
from perception.models.weights import weights_hash

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NamedHead:
    """A head and what identifies it."""

    head: Head
    hash: str
    folder: str

    def use(self, from_tick: int | None = None) -> HeadUse:
        """Say that it concludes from a tick on."""
        return HeadUse(head_hash=self.hash, folder=self.folder, from_tick=from_tick)


@dataclass(slots=True)
class Trial:
    """A head that concludes beside the one in force, and how alike the two are. Pure."""

    request: SwapRequest
    candidate: NamedHead
    ticks: int = 0
    equal: int = 0
    variation: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether enough has been compared."""
        return self.ticks >= self.request.ticks

    @property
    def agreement(self) -> Agreement:
        """How alike they were so far."""
        count = max(1, self.ticks)
        return Agreement(ticks=self.ticks, equal=self.equal / count, variation=self.variation / count)

    def compare(self, published: Fused, tried: Fused) -> None:
        """Take one window as both concluded it."""
        pairs = zip(published.probabilities, tried.probabilities, strict=True)
        self.ticks += 1
        self.equal += published.label == tried.label
        self.variation += math.fsum(abs(one - other) for one, other in pairs) / 2


class HeadSwap:
    """The heads of a running engine: the one in force, the one before it, and the one on trial."""

    def __init__(self, engine: Engine) -> None:
        self.in_force = NamedHead(engine.head, head_hash(engine.head), head_folder(engine.config.head))
        self.uses: deque[HeadUse] = deque()
        """Switches not yet journaled."""
        self.told: deque[HeadStatus] = deque()
        """Answers not yet published; their stamp is 0."""
        self._engine = engine
        self._before: NamedHead | None = None
        self._trial: Trial | None = None
        self._orders: deque[Trial | SwapRequest] = deque()
        self._loading = threading.Lock()

    def ask(self, request: SwapRequest) -> None:
        """Take a request; never waits."""
        if request.action != "shadow":
            self._orders.append(request)
        elif self._loading.acquire(blocking=False):
            threading.Thread(target=self._load, args=(request,), name="head loader", daemon=True).start()
        else:
            self._refuse(request, "another head is being loaded; ask again")

    def before(self, tick: int) -> None:
        """Do what was asked for; the window of `tick` is concluded next."""
        while self._orders:
            order = self._orders.popleft()
            if isinstance(order, Trial):
                self._trial = order
            elif order.action == "back":
                self._switch(order, self._before, "no other head was in force before", tick)
            else:
                trial = self._trial
                tried = trial is not None and trial.candidate.hash == order.head_hash
                candidate = trial.candidate if trial is not None and tried else None
                self._switch(order, candidate, f"head {order.head_hash[:12]} has not been in shadow", tick)

    def after(self, published: Fused) -> None:
        """Let the head on trial conclude the same window, now that the state is out."""
        trial = self._trial
        if trial is None or trial.ended:
            return
        try:
            trial.compare(published, self._engine.second_opinion(trial.candidate.head))
        except (RuntimeError, ValueError) as error:
            self._trial = None
            self._refuse(trial.request, f"it failed on a window: {str(error).splitlines()[0]}")
            return
        phase = "compared" if trial.ended else "shadow"
        self._tell(trial.request, phase=phase, agreement=trial.agreement)

    def _switch(self, request: SwapRequest, to: NamedHead | None, otherwise: str, tick: int) -> None:
        if to is None:
            self._refuse(request, otherwise)
            return
        agreement = self._trial.agreement if self._trial is not None else Agreement()
        self._engine.use(to.head)
        self._before, self.in_force, self._trial = self.in_force, to, None
        self.uses.append(to.use(tick))
        self._tell(request, phase="live", in_force=to.use(tick), agreement=agreement)
        _LOG.info("head %s of %s concludes from tick %d on", to.hash[:12], to.folder or "memory", tick)

    def _load(self, request: SwapRequest) -> None:
        try:
            self._orders.append(Trial(request, self._fitting(request)))
        except PerceptionError as error:
            self._refuse(request, str(error))
        except Exception as error:  # whatever a folder holds, the fusion goes on
            self._refuse(request, f"{request.folder}: {type(error).__name__}: {error}")
        finally:
            self._loading.release()

    def _fitting(self, request: SwapRequest) -> NamedHead:
        """Load, check and warm up the head asked for; WeightsError or ProfileError if it does not fit."""
        engine, folder = self._engine, request.folder
        head = load_head(folder)
        if (found := head_hash(head)) != request.head_hash:
            raise WeightsError(f"{folder}: its hash is {found[:12]}, asked for was {request.head_hash[:12]}")
        check_branches(head, engine.dims)
        check_classes(head, self.in_force.head.classes)
        self._check_encoders(folder)
        head = head.requires_grad_(False).to(engine.device)
        weights = [value for value in head.state_dict().values() if value.is_floating_point()]
        if not all(bool(torch.isfinite(value).all()) for value in weights):
            raise WeightsError(f"{folder}: its weights are not all finite")
        engine.warm_up_head(head)
        return NamedHead(head, found, folder)

    def _check_encoders(self, folder: str) -> None:
        """Raise ProfileError unless the encoders trained with a head are those that run."""
        engine, own = self._engine, own_encoders(folder)
        for name in own.keys() | own_encoders(self.in_force.folder).keys():
            if name in own:
                item = engine.config.encoders[name].model_copy(update={"weights": str(own[name])})
                cpu, seed = torch.device("cpu"), engine.config.seed
                trained = weights_hash(build_encoder(name, item, device=cpu, seed=seed).weights())
                if trained == weights_hash(engine.encoders[name].weights()):
                    continue
            raise ProfileError(
                f"it was trained with another encoder '{name}' than the one that runs, and a swap changes "
                f'the head alone; restart the fusion with fusion.head.weights = "{folder}"'
            )

    def _refuse(self, request: SwapRequest, reason: str) -> None:
        self._tell(request, phase="refused", reason=reason)

    def _tell(self, request: SwapRequest, **fields: Any) -> None:
        fields = {"in_force": self.in_force.use()} | fields
        self.told.append(HeadStatus(stamp_ns=0, asked_by=request.source, **fields))
