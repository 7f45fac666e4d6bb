"""Replaces the head of a running engine: loads the new one, compares it with the active one, then switches.

Rules. Three threads meet here. The receiving thread calls `request`, which never waits, and drains `uses` and
`statuses`. A loader thread, one at a time, reads, checks and warms up a checkpoint. The compute thread calls
`apply_requests` before and `compare` after each window; it alone changes the engine's head, so each window is
computed by one head as a whole.
"""

import logging
import math
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import torch

from perception.errors import PerceptionError, ProfileError, WeightsError, first_line
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
    """A head with its hash and folder."""

    head: Head
    hash: str
    folder: str

    def use(self, from_tick: int | None = None) -> HeadUse:
        """Return the record that this head is active from a tick on; None: since the fusion began."""
        return HeadUse(head_hash=self.hash, folder=self.folder, from_tick=from_tick)


@dataclass(slots=True)
class Trial:
    """A candidate head that runs beside the active one, and how often the two agree. Pure."""

    request: SwapRequest
    candidate: NamedHead
    ticks: int = 0
    equal: int = 0
    variation: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether the requested number of windows was compared."""
        return self.ticks >= self.request.ticks

    @property
    def agreement(self) -> Agreement:
        """Agreement over the windows compared so far."""
        count = max(1, self.ticks)
        return Agreement(ticks=self.ticks, equal=self.equal / count, variation=self.variation / count)

    def compare(self, published: Fused, tried: Fused) -> None:
        """Add one window, as computed by the active head and by the candidate."""
        pairs = zip(published.probabilities, tried.probabilities, strict=True)
        self.ticks += 1
        self.equal += published.label == tried.label
        self.variation += math.fsum(abs(one - other) for one, other in pairs) / 2


class HeadSwap:
    """The heads of a running engine: the active one, the previous one, and the candidate."""

    def __init__(self, engine: Engine) -> None:
        self.active = NamedHead(engine.head, head_hash(engine.head), head_folder(engine.config.head))
        """The compute thread writes; any thread reads."""
        self.uses: deque[HeadUse] = deque()
        """Switches not yet journaled. The compute thread appends, the receiving thread pops."""
        self.statuses: deque[HeadStatus] = deque()
        """Statuses not yet published, their stamp 0. Any thread appends, the receiving thread pops."""
        self._engine = engine
        self._previous: NamedHead | None = None
        """Compute thread only."""
        self._trial: Trial | None = None
        """Compute thread only."""
        self._requests: deque[Trial | SwapRequest] = deque()
        """The receiving and the loader thread append, the compute thread pops."""
        self._loading = threading.Lock()
        """Locked by the receiving thread when a loader starts, unlocked by the loader when it ends."""

    def request(self, request: SwapRequest) -> None:
        """Accept a request; never waits."""
        if request.action != "shadow":
            self._requests.append(request)
        elif self._loading.acquire(blocking=False):
            threading.Thread(target=self._load, args=(request,), name="head loader", daemon=True).start()
        else:
            self._refuse(request, "another head is being loaded; request it again later")

    def adopt(self, use: HeadUse) -> None:
        """Use the head that another fusion process used last. Only before the compute thread starts.

        Raises:
            WeightsError, ProfileError: it is not found, or does not fit the engine.
        """
        if use.head_hash != self.active.hash:
            wanted = SwapRequest(stamp_ns=0, action="shadow", folder=use.folder, head_hash=use.head_hash)
            self._previous, self.active = self.active, self._load_checked(wanted)
            self._engine.use(self.active.head)

    def apply_requests(self, tick: int) -> None:
        """Do what was requested; the next window to be computed is that of `tick`."""
        while self._requests:
            request = self._requests.popleft()
            if isinstance(request, Trial):
                self._trial = request
            elif request.action == "back":
                self._switch(request, self._previous, "no other head was active before", tick)
            else:
                trial = self._trial
                tried = trial is not None and trial.candidate.hash == request.head_hash
                candidate = trial.candidate if trial is not None and tried else None
                self._switch(
                    request, candidate, f"head {request.head_hash[:12]} has not been in shadow", tick
                )

    def compare(self, published: Fused) -> None:
        """Run the candidate on the window whose state was just published."""
        trial = self._trial
        if trial is None or trial.ended:
            return
        try:
            trial.compare(published, self._engine.infer_last(trial.candidate.head))
        except (RuntimeError, ValueError) as error:
            self._trial = None
            self._refuse(trial.request, f"it failed on a window: {first_line(error)}")
            return
        phase = "compared" if trial.ended else "shadow"
        self._report(trial.request, phase=phase, agreement=trial.agreement)

    def _switch(self, request: SwapRequest, to: NamedHead | None, otherwise: str, tick: int) -> None:
        if to is None:
            self._refuse(request, otherwise)
            return
        agreement = self._trial.agreement if self._trial is not None else Agreement()
        self._engine.use(to.head)
        self._previous, self.active, self._trial = self.active, to, None
        self.uses.append(to.use(tick))
        self._report(request, phase="live", in_force=to.use(tick), agreement=agreement)
        _LOG.info("head %s of %s is active from tick %d on", to.hash[:12], to.folder or "memory", tick)

    def _load(self, request: SwapRequest) -> None:
        """Thread body of the loader."""
        try:
            self._requests.append(Trial(request, self._load_checked(request)))
        except PerceptionError as error:
            self._refuse(request, str(error))
        except Exception as error:  # no content of a folder may stop the fusion
            self._refuse(request, f"{request.folder}: {type(error).__name__}: {error}")
        finally:
            self._loading.release()

    def _load_checked(self, request: SwapRequest) -> NamedHead:
        """Load, check and warm up the requested head.

        Raises:
            WeightsError, ProfileError: it does not fit the request or the engine.
        """
        engine, folder = self._engine, request.folder
        head = load_head(folder)
        if (found := head_hash(head)) != request.head_hash:
            raise WeightsError(f"{folder}: its hash is {found[:12]}, requested was {request.head_hash[:12]}")
        check_branches(head, engine.dims)
        check_classes(head, self.active.head.classes)
        self._check_encoders(folder)
        head = head.requires_grad_(False).to(engine.device)
        weights = [value for value in head.state_dict().values() if value.is_floating_point()]
        if not all(bool(torch.isfinite(value).all()) for value in weights):
            raise WeightsError(f"{folder}: its weights are not all finite")
        engine.warm_up_head(head)
        return NamedHead(head, found, folder)

    def _check_encoders(self, folder: str) -> None:
        """Raise ProfileError unless the encoders trained with a head equal the running ones."""
        engine, own = self._engine, own_encoders(folder)
        for name in own.keys() | own_encoders(self.active.folder).keys():
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
        self._report(request, phase="refused", reason=reason)

    def _report(self, request: SwapRequest, **fields: Any) -> None:
        fields = {"in_force": self.active.use()} | fields
        self.statuses.append(HeadStatus(stamp_ns=0, asked_by=request.source, **fields))
