"""Sample messages, of the size and structure that a graph has."""

from perception import messages

ENCODERS = ("aruco", "faces", "intent", "level", "mfcc", "motion", "silero")
CLASSES = ("idle", "attend", "come", "stop", "go", "turn", "hand", "tool")


def fused_state() -> messages.FusedState:
    """Return a state of three inputs and seven encoders, about 2 kB on the wire."""
    box = messages.Box(x=101.5, y=52.25, width=80.0, height=82.5, label="face", score=0.875)
    branch = messages.BranchState(labels=CLASSES, scores=tuple(0.125 for _ in CLASSES))
    boxed = messages.BranchState(labels=("face",), scores=(0.875,), boxes=(box, box))

    def modality(topic: str, branches: dict[str, messages.BranchState]) -> messages.ModalityState:
        return messages.ModalityState(
            topic=topic, presence="present", age_ms=12.5, seqs=(1040, 1071), branches=branches
        )

    return messages.FusedState(
        stamp_ns=1_700_000_000_123_456_789,
        tick=17_000_000_001,
        fused=messages.Fused(
            classes=CLASSES,
            probabilities=tuple(0.125 for _ in CLASSES),
            label="idle",
            confidence=0.125,
            entropy=2.0794415,
        ),
        modalities={
            "camera": modality("camera/front", {"aruco": boxed, "faces": boxed, "motion": branch}),
            "microphone": modality("microphone/main", {"level": branch, "mfcc": branch, "silero": branch}),
            "text": modality("text/script", {"intent": branch}),
        },
        model=messages.ModelInfo(config_hash="c0ffee" * 8, weights_hash="5eed" * 12),
        latency=messages.Latency(receive_ms=1.5, encoders_ms=dict.fromkeys(ENCODERS, 2.25)),
    )
