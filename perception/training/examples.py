"""Windows as a head receives them, stacked: the data of training, calibration and evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch

from perception.errors import SessionError
from perception.training.rows import Rows, read


@dataclass(frozen=True, slots=True)
class Examples:
    """N labelled windows. Branches are in sorted order, as in every fusion head."""

    features: dict[str, torch.Tensor]
    """By branch: (N, dim) float32, or (N, ...) the input of a trainable encoder; any value where absent.

    Features of sessions are `Rows` in place of tensors: `context` and `read` return tensors.
    """
    present: torch.Tensor
    """(N, M) bool."""
    ages_s: torch.Tensor
    """(N, M) float32, window end minus newest data used."""
    labels: torch.Tensor
    """(N,) int64, index into `classes`; -1 where there is none: rows for a head with a memory only."""
    sources: torch.Tensor
    """(N,) int64, index into `names`; rows of one source, or of one copy, are in order of time."""
    ends_ns: torch.Tensor
    """(N,) int64, event time of each window's end."""
    classes: tuple[str, ...]
    names: tuple[str, ...]
    """By source: the name of the session or media file."""
    hop_ns: int = 1
    """From one window's end to the next."""
    known: torch.Tensor | None = None
    """(N, K) bool where every row is K windows, see `context`; None where every row is one window."""
    origins: tuple[str, ...] = ()
    """By source: sources of one recording have the same; empty where every source is independent."""
    suspect: torch.Tensor | None = None
    """(N, M) bool, whose signals were in a suspect condition; None: none."""
    empty: tuple[int, ...] = ()
    """By source: how many labelled windows were left out because nothing is present in them."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def suspects(self) -> torch.Tensor:
        """(N, M) bool, whose signals were in a suspect condition."""
        return torch.zeros_like(self.present) if self.suspect is None else self.suspect

    @property
    def branches(self) -> tuple[str, ...]:
        """Branch names in the order of the presence columns."""
        return tuple(sorted(self.features))

    @property
    def groups(self) -> torch.Tensor:
        """(N,) int64, as `sources`, but sources of one recording have one number."""
        first = torch.tensor([self.origins.index(origin) for origin in self.origins], dtype=torch.int64)
        return first[self.sources] if self.origins else self.sources

    @classmethod
    def of(
        cls,
        features: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        classes: Sequence[str],
        sources: torch.Tensor | None = None,
    ) -> Self:
        """Return independent complete examples; without `sources` each is a source of its own."""
        count, branches = len(labels), sorted(features)
        groups = torch.arange(count) if sources is None else sources
        return cls(
            {name: features[name] for name in branches},
            torch.ones(count, len(branches), dtype=torch.bool),
            torch.zeros(count, len(branches)),
            labels,
            groups,
            torch.arange(count),
            tuple(classes),
            tuple(str(number) for number in range(int(groups.max()) + 1)),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Join examples of the same branches and classes, in order; sources stay apart.

        Features stay in the files that they are mapped from, unless they are few.

        Raises:
            SessionError: inputs of a trainable encoder differ in shape.
        """
        offsets = [sum(len(part.names) for part in parts[:index]) for index in range(len(parts))]
        return cls(
            {name: _joined(parts, name) for name in parts[0].branches},
            torch.cat([part.present for part in parts]),
            torch.cat([part.ages_s for part in parts]),
            torch.cat([part.labels for part in parts]),
            torch.cat([part.sources + offset for part, offset in zip(parts, offsets, strict=True)]),
            torch.cat([part.ends_ns for part in parts]),
            parts[0].classes,
            tuple(name for part in parts for name in part.names),
            parts[0].hop_ns,
            origins=tuple(origin for part in parts for origin in part.origins),
            suspect=torch.cat([part.suspects for part in parts]),
            empty=tuple(count for part in parts for count in part.empty),
        )

    def rows(self, index: torch.Tensor | slice) -> Self:
        """Return the rows of an index, a mask or a slice, not read; `names` still lists every source."""
        return replace(
            self,
            features={name: values[index] for name, values in self.features.items()},
            present=self.present[index],
            ages_s=self.ages_s[index],
            suspect=self.suspects[index],
            labels=self.labels[index],
            sources=self.sources[index],
            ends_ns=self.ends_ns[index],
            known=None if self.known is None else self.known[index],
        )

    def read(self) -> Self:
        """Return the same rows with features in memory."""
        return replace(self, features={name: read(values) for name, values in self.features.items()})

    @property
    def labelled(self) -> torch.Tensor:
        """The numbers of the rows that have a label, in order."""
        return torch.nonzero(self.labels >= 0).squeeze(1)

    def context(self, index: torch.Tensor, ticks: int = 1, late: torch.Tensor | None = None) -> Self:
        """Return rows as a head with a memory receives them, or as any head does while inputs are late.

        Args:
            index: (n,) int64, rows.
            ticks: above 1, each row has the windows before it: features (n, ticks, ...), presence and ages
                (n, ticks, M). Where a source has no window at a tick, because it was shed or is before the
                first one, the tick is not `known`.
            late: (n, M) int64, by how many ticks each branch is late; absent where there is no such tick.
        """
        if ticks == 1 and late is None:
            return self.rows(index).read()
        back = torch.arange(ticks - 1, -1, -1)
        due_ns = self.ends_ns[index][:, None] - back * self.hop_ns
        at, known = self._at(index, index[:, None] - back, due_ns)
        features, present, ages_s, suspect = {}, [], [], []
        lag, then, there = torch.zeros(len(index), 1, dtype=torch.int64), at, known
        for column, (name, values) in enumerate(self.features.items()):
            if late is not None:
                lag = late[:, column, None]
                then, there = self._at(index, at - lag, due_ns - lag * self.hop_ns)
            features[name] = read(values[then] if ticks > 1 else values[then.squeeze(1)])
            present.append(self.present[then, column] & there & known)
            ages_s.append(self.ages_s[then, column] + lag * (self.hop_ns / 1e9))
            suspect.append(self.suspects[then, column])
        row = self.rows(index)
        shown, old_s, bad = (torch.stack(columns, dim=2) for columns in (present, ages_s, suspect))
        if ticks == 1:
            shown, old_s, bad = shown[:, 0], old_s[:, 0], bad[:, 0]
        known_ticks = known if ticks > 1 else row.known
        return replace(row, features=features, present=shown, ages_s=old_s, suspect=bad, known=known_ticks)

    def _at(
        self, index: torch.Tensor, wanted: torch.Tensor, due_ns: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return row numbers that exist, and whether each is of the same source and ends at `due_ns`."""
        at = wanted.clamp_min(0)
        return at, (self.sources[at] == self.sources[index][:, None]) & (self.ends_ns[at] == due_ns)

    def only(self, branches: Sequence[str]) -> Self:
        """Return the same windows with every other branch absent."""
        kept = torch.tensor([name in branches for name in self.branches])
        return replace(self, present=self.present & kept)

    def without_empty(self) -> Self:
        """Return the same windows; those in which nothing is present lose their label."""
        return replace(self, labels=self.labels.masked_fill(~self.present.any(dim=1), -1))

    def select(self, branches: Sequence[str]) -> Self:
        """Return the same windows without the other branches, for a head that does not have them."""
        wanted = sorted(branches)
        columns = [self.branches.index(name) for name in wanted]
        return replace(
            self,
            features={name: self.features[name] for name in wanted},
            present=self.present[:, columns],
            ages_s=self.ages_s[:, columns],
            suspect=self.suspects[:, columns],
        )

    def to(self, device: torch.device) -> Self:
        """Return the same with every tensor on `device`."""
        return replace(
            self,
            features={name: read(values).to(device) for name, values in self.features.items()},
            present=self.present.to(device),
            ages_s=self.ages_s.to(device),
            suspect=self.suspects.to(device),
            labels=self.labels.to(device),
            sources=self.sources.to(device),
            ends_ns=self.ends_ns.to(device),
            known=None if self.known is None else self.known.to(device),
        )


def _joined(parts: Sequence[Examples], branch: str) -> Any:
    """Return one branch of all parts; a part in which it is never present gets the shape of the others."""
    column = parts[0].branches.index(branch)
    there = [part for part in parts if part.present[:, column].any()]
    like = (there or parts)[0].features[branch]
    for part in there:
        if part.features[branch].shape[1:] != like.shape[1:]:
            shapes = [tuple(values.shape[1:]) for values in (like, part.features[branch])]
            raise SessionError(
                f"input of encoder '{branch}' is {shapes[0]} in {there[0].names[0]} and {shapes[1]} in "
                f"{part.names[0]}: to train it, give pictures or sounds of one size"
            )
    nothing = read(like[:1])
    alike = [part.features[branch].shape[1:] == like.shape[1:] for part in parts]
    return Rows.joined(
        [
            part.features[branch] if same else torch.zeros_like(nothing).expand(len(part), *nothing.shape[1:])
            for part, same in zip(parts, alike, strict=True)
        ]
    ).packed()
