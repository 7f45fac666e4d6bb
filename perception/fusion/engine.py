"""Runs the models on windows: each encoder whose input changed, then the head.

Rules. One compute thread owns an `Engine`; no lock. Two methods are exempt: the receiving thread may call
`expect`, which shares only the decoder with `run`, and any thread `warm_up_head`, which shares nothing. The
receiving thread also reads `counts` and `facts()` for its health reports. `use` takes effect with the next
window. A state depends on the windows and heads since the start alone, never on time or threads.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

import cv2
import msgspec
import torch

from perception.fusion.reader import InputReader, Reading
from perception.fusion.recent import HeadInputs, Recent
from perception.fusion.window import Window
from perception.messages import (
    BranchState,
    CameraFrame,
    Fused,
    FusedState,
    Latency,
    Message,
    ModalityState,
    ModelInfo,
)
from perception.models.checkpoint import Head, config_hash, head_hash
from perception.models.device import Forward, Launcher, Span, upload_together
from perception.models.encoder import Encoding
from perception.models.precision import noise
from perception.models.registry import RegisteredEncoder
from perception.models.weights import weights_hash
from perception.profile import FusionConfig
from perception.units import MILLISECOND_NS

NO_BRANCH: Final = BranchState()


class _Cached(msgspec.Struct, frozen=True):
    key: Hashable
    encoding: Encoding | None
    """None if the encoder refused the input."""


class Encoded(msgspec.Struct, frozen=True):
    """Encodings of one window."""

    encodings: dict[str, Encoding]
    """By encoder; encoders whose input is absent are missing."""
    corrupt: set[str]
    """Inputs whose data could not be decoded."""
    took_ms: dict[str, float]


class Engine:
    """Encoders, fusion and head on one device."""

    def __init__(
        self,
        config: FusionConfig,
        encoders: Mapping[str, RegisteredEncoder],
        head: Head,
        *,
        device: torch.device,
        clock: Callable[[], int],
        facts: Mapping[str, str | float] | None = None,
        batched: bool | None = None,
    ) -> None:
        """Encoders by name; the head takes their features in the order of sorted names.

        `batched`: whether inputs of one encoder are encoded in one pass; None: on CUDA only. A CPU gains
        nothing by it, and the last bits of a result depend on the size of the pass.
        """
        self.config = config
        self.encoders = dict(sorted(encoders.items()))
        self.device = device
        self.counts: Counter[str] = Counter()
        """Inputs not used, by encoder or input and reason. The compute thread writes."""
        self.newest: FusedState | None = None
        """The state that `run` returned last. The compute thread writes, any thread reads."""
        self.encoders_hash = _encoders_hash(self.encoders)
        self._config_hash = config_hash(_decisive(config))
        self.use(head)
        self._clock = clock
        self._facts = dict(facts or {})
        """The compute thread writes in `warm_up`, before the receiving thread reads."""
        self._launcher = Launcher(device, clock)
        batched = device.type == "cuda" if batched is None else batched
        self._groups = _groups(self.encoders, batched=batched)
        self._input_of = {name: config.encoders[name].input for name in self.encoders}
        self._look_back = {
            name for name, encoder in self.encoders.items() if getattr(encoder, "uses_previous", False)
        }
        self._readers = {name: InputReader(item) for name, item in config.inputs.items()}
        self._readers_of: dict[str, list[InputReader]] = {}
        """By topic, for `expect`; constant after this."""
        for name, item in config.inputs.items():
            self._readers_of.setdefault(item.topic, []).append(self._readers[name])
        self._cache: dict[str, _Cached] = {}
        self._publish_ms = 0.0
        self.recent = Recent(self.dims)

    @property
    def dims(self) -> dict[str, int]:
        """Features per encoder."""
        return {name: encoder.dim for name, encoder in self.encoders.items()}

    def use(self, head: Head) -> None:
        """Use this head from the next window on; it must fit the encoders and be on their device."""
        self.head = head
        weights = config_hash({"encoders": self.encoders_hash, "head": head_hash(head)})
        self.info = ModelInfo(config_hash=self._config_hash, weights_hash=weights)

    def facts(self) -> dict[str, str | float]:
        """Return what affects the last bits of a result besides weights and inputs."""
        here: dict[str, str | float] = {"device": str(self.device), "threads": torch.get_num_threads()}
        return here | _platform() | self._facts

    def set_publish_time(self, took_ns: int) -> None:
        """Set how long publishing a state took; the next state carries it."""
        self._publish_ms = took_ns / MILLISECOND_NS

    def expect(self, message: Message[CameraFrame]) -> None:
        """Start to decode a frame that the next window will use. Receiving thread only."""
        for reader in self._readers_of.get(message.topic, ()):
            reader.expect(message)

    def run(self, window: Window, *, cut_ns: int = 0, shed: int = 0) -> FusedState:
        """Return the state of one window. Data that cannot be decoded is absent, reason `corrupt`."""
        began_ns = self._clock()
        with torch.inference_mode():  # once: entered with cold caches, it costs as much as a head
            encoded = self._encode(window)
            self.newest = self._infer(window, encoded, began_ns=began_ns, cut_ns=cut_ns, shed=shed)
        return self.newest

    def _infer(
        self, window: Window, encoded: Encoded, *, began_ns: int = 0, cut_ns: int = 0, shed: int = 0
    ) -> FusedState:
        """Run the head on the encodings of a window."""
        encoded_ns = self._clock()
        self.recent.add(window.tick, self.tensors(window, encoded))
        fused = _infer(self.head, self.recent)
        ready_ns = self._clock()
        return FusedState(
            stamp_ns=window.end_ns,
            tick=window.tick,
            fused=fused,
            modalities=self._modalities(window, encoded),
            shed=shed,
            model=self.info,
            latency=Latency(
                receive_ms=_receive_ms(window),
                align_ms=(cut_ns - window.end_ns) / MILLISECOND_NS,
                queue_ms=(began_ns - cut_ns) / MILLISECOND_NS,
                encoders_ms=encoded.took_ms,
                head_ms=(ready_ns - encoded_ns) / MILLISECOND_NS,
                publish_ms=self._publish_ms,
                total_ms=(ready_ns - window.end_ns) / MILLISECOND_NS,
            ),
        )

    infer = torch.inference_mode()(_infer)

    def _encode(self, window: Window) -> Encoded:
        """Run the encoders whose input changed since the last window.

        An encoder that refuses its input, or returns features that are not finite, is counted and left out.
        """
        readings, corrupt = self._read(window)
        inputs: dict[str, Reading] = {}
        stale: dict[str, Hashable] = {}
        for name, source in self._input_of.items():
            if (reading := readings.get(source)) is not None:
                inputs[name] = reading
                key = (reading.key, reading.previous_key) if name in self._look_back else reading.key
                if name not in self._cache or self._cache[name].key != key:
                    stale[name] = key
        took_ms = self._run_encoders(stale, inputs)
        known = {name: encoding for name in inputs if (encoding := self._cache[name].encoding) is not None}
        return Encoded(known, corrupt, took_ms)

    encode = torch.inference_mode()(_encode)

    def _run_encoders(self, stale: Mapping[str, Hashable], inputs: Mapping[str, Reading]) -> dict[str, float]:
        """Run the encoders in `stale`, cache their encodings under its keys; return ms by encoder."""
        launched: dict[str, Encoding | None] = {}
        spans: dict[str, Span] = {}
        for modality, names in self._groups:
            if not stale.keys().isdisjoint(names):
                made, span = self._launcher.launch(modality, self._launch, names, inputs)
                for name in names:
                    if name in stale:
                        launched[name], spans[name] = made[name], span
        self._launcher.join()
        finite = _are_finite(encoding.features for encoding in launched.values() if encoding is not None)
        for name, encoding in launched.items():
            self._cache[name] = _Cached(stale[name], self._checked(name, encoding, finite))
        return {name: spans[name].ms if name in spans else 0.0 for name in self.encoders}

    def _launch(self, names: Sequence[str], inputs: Mapping[str, Reading]) -> dict[str, Encoding | None]:
        """Encode the inputs of encoders of one model; on CUDA this only starts the work."""
        encoder: Any = self.encoders[names[0]]
        if len(names) > 1:
            batch = [inputs[name].data if name in inputs else None for name in names]
            return dict(zip(names, encoder.encode_batch(batch), strict=True))
        try:
            return {names[0]: encoder(inputs[names[0]].data)}
        except ValueError:
            return {names[0]: None}

    def _checked(self, name: str, encoding: Encoding | None, finite: bool) -> Encoding | None:
        """Return the encoding, None and a count if it is unusable; `finite`: all features are known to be."""
        if encoding is None:
            self.counts[f"{name} refused its input"] += 1
            return None
        if not ((finite or _are_finite([encoding.features])) and _is_finite(encoding.branch)):
            self.counts[f"{name} not finite"] += 1
            return None
        return encoding

    def tensors(self, window: Window, encoded: Encoded) -> HeadInputs:
        """Return the arguments of the head."""
        encodings = encoded.encodings
        ages_s = {name: (item.age_ns or 0) / 1e9 for name, item in window.inputs.items()}
        known = torch.tensor([[float(name in encodings) for name in self._input_of]])
        aged_s = torch.tensor([[ages_s[source] for source in self._input_of.values()]])
        bad = {name: float(item.suspect) for name, item in window.inputs.items()}
        suspect = torch.tensor([[bad[source] for source in self._input_of.values()]])
        made = [encoding.features.unsqueeze(0) for encoding in encodings.values()]
        *features, known, aged_s, suspect = upload_together([*made, known, aged_s, suspect], self.device)
        return dict(zip(encodings, features, strict=True)), known.bool(), aged_s, suspect.bool()

    def _read(self, window: Window) -> tuple[dict[str, Reading], set[str]]:
        inputs: dict[str, Reading] = {}
        corrupt: set[str] = set()
        for name, item in window.inputs.items():
            if item.data is None:
                continue
            try:
                inputs[name] = self._readers[name].read(item.data)
            except ValueError:
                corrupt.add(name)
                self.counts[f"{name} corrupt"] += 1
        return inputs, corrupt

    @torch.inference_mode()
    def infer_last(self, head: Head) -> Fused:
        """Return the result of another head for the window computed last."""
        return _infer(head, self.recent)

    def _modalities(self, window: Window, encoded: Encoded) -> dict[str, ModalityState]:
        branches: dict[str, dict[str, BranchState]] = {name: {} for name in window.inputs}
        for name, encoding in encoded.encodings.items():
            if (branch := encoding.branch) != NO_BRANCH:
                branches[self._input_of[name]][name] = branch
        return {
            name: ModalityState(
                topic=item.topic,
                presence="absent" if name in encoded.corrupt else item.presence,
                reason="corrupt" if name in encoded.corrupt else item.reason,
                age_ms=None if item.age_ns is None else item.age_ns / MILLISECOND_NS,
                seqs=item.seqs,
                branches=branches[name],
                condition=item.condition,
            )
            for name, item in window.inputs.items()
        }

    @torch.inference_mode()
    def warm_up(self, image_size: tuple[int, int] = (640, 480), repeats: int = 2) -> None:
        """Run every encoder and the head on noise, so that the first real window is not slower."""
        samples = noise(image_size=image_size)
        inputs = {name: Reading(samples[one.modality], None) for name, one in self.encoders.items()}
        for _ in range(repeats):
            for modality, names in self._groups:
                self._launcher.launch(modality, self._launch, names, inputs)
            self._launcher.join()
            self.warm_up_head(self.head)
        for _, names in self._groups:
            forward = getattr(self.encoders[names[0]], "forward", None)
            if isinstance(forward, Forward) and forward.capture_last():
                self._facts |= dict.fromkeys((f"{name} graph" for name in names), "captured")

    @torch.inference_mode()
    def warm_up_head(self, head: Head) -> None:
        """Run a head on zeros. From any thread."""
        features = {name: torch.zeros(1, dim, device=self.device) for name, dim in self.dims.items()}
        present = torch.ones(1, len(features), dtype=torch.bool, device=self.device)
        recent = Recent(self.dims)
        recent.add(0, (features, present, torch.zeros(1, len(features), device=self.device), ~present))
        _infer(head, recent)


@cache
def _platform() -> dict[str, str | float]:
    cpu = torch.backends.cpu.get_cpu_capability()
    return {"cpu": cpu, "torch": str(torch.__version__), "opencv": cv2.__version__}


def _infer(head: Head, recent: Recent) -> Fused:
    """Return the result of a head for the last tick; raise ValueError if it is NaN."""
    logits = head(*recent.last(head.ticks))
    (probabilities,) = torch.softmax(logits, dim=1, dtype=torch.float64).tolist()
    confidence = max(probabilities)
    if math.isnan(confidence):  # softmax spreads one NaN to all classes
        raise ValueError("fusion head returned NaN")
    return Fused(
        classes=head.classes,
        probabilities=tuple(probabilities),
        label=head.classes[probabilities.index(confidence)],
        confidence=confidence,
        entropy=_entropy(probabilities),
    )


def _entropy(probabilities: Iterable[float]) -> float:
    """Return the entropy in nats, the same bits on every Python: `sum` rounds differently from 3.12 on."""
    total = 0.0
    for part in probabilities:
        if part > 0:
            total -= part * math.log(part)
    return max(0.0, total)


def _are_finite(features: Iterable[torch.Tensor]) -> bool:
    """Return whether all these float32 numbers are finite; waits for their devices."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for feature in features:  # in training, inputs of encoders that are trained have any shape
        by_device.setdefault(feature.device, []).append(feature if feature.ndim == 1 else feature.flatten())
    # a sum in float64 is finite exactly if they are
    return all(math.isfinite(float(torch.cat(one).sum(dtype=torch.float64))) for one in by_device.values())


def _is_finite(branch: BranchState) -> bool:
    return all(map(math.isfinite, branch.scores)) and all(
        math.isfinite(box.x + box.y + box.width + box.height + box.score) for box in branch.boxes
    )


def _groups(
    encoders: Mapping[str, RegisteredEncoder], *, batched: bool
) -> list[tuple[str | None, tuple[str, ...]]]:
    """Return modality and names of the encoders of each pass: those of one model together, if it can.

    Encoders that compute on the CPU come last, without a modality, so that they run while the GPU works.
    """
    groups: dict[Hashable, list[str]] = {}
    for name, encoder in encoders.items():
        together = batched and hasattr(encoder, "encode_batch")
        groups.setdefault(id(encoder) if together else name, []).append(name)
    on_cpu = {names[0]: bool(getattr(encoders[names[0]], "cpu_only", False)) for names in groups.values()}
    ordered = sorted(groups.values(), key=lambda names: on_cpu[names[0]])
    return [(None if on_cpu[names[0]] else encoders[names[0]].modality, tuple(names)) for names in ordered]


def _encoders_hash(encoders: Mapping[str, RegisteredEncoder]) -> str:
    """Return the hash of the weights of all encoders."""
    weights = {
        f"{name}.{key}": value
        for name, encoder in encoders.items()
        for key, value in encoder.weights().items()
    }
    return weights_hash(weights)


def _receive_ms(window: Window) -> float:
    """Return the ms from event to arrival of the newest data that the window received."""
    newest = max(
        (item for item in window.inputs.values() if item.happened_ns and item.received_ns),
        key=lambda item: item.happened_ns or 0,
        default=None,
    )
    if newest is None or newest.received_ns is None or newest.happened_ns is None:
        return 0.0
    return (newest.received_ns - newest.happened_ns) / MILLISECOND_NS


def _decisive(config: FusionConfig) -> dict[str, Any]:
    """Return what decides a state besides weights and inputs: grid, inputs, encoders, head."""
    return config.model_dump(mode="json", exclude={"endpoint", "device", "threads", "dtype", "standby"})
