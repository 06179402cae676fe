"""Scores the judge: its verdicts against people's labels, at several thresholds, without another API call.

Labels are CSV files in `RUN/labels/`: columns `pair` and `same` (yes, no or ambiguous), one file a labeller.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dsd_lightning.distillation.records import DistillationError, Record
from dsd_lightning.distillation.rules import accepted
from dsd_lightning.distillation.store import Store
from dsd_lightning.files.atomic import write_text
from dsd_lightning.files.rows import Table

STAGE = "verify"
LABELS = "labels"
THRESHOLDS = (None, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
"""Least confidences that reports show; None goes by the judge's yes or no."""


def judged(store: Store, looks_at: Sequence[str] = ()) -> Iterator[Record]:
    """Yield every pair that has a verdict, kept or not, partition by partition."""
    for manifest in store.manifests(STAGE):
        yield from (each for each in store.read(STAGE, manifest.partition, looks_at) if "same" in each.values)
        rejected = store.read_rejected(STAGE, manifest.partition, looks_at)
        yield from (each.record for each in rejected if "same" in each.record.values)


@dataclass(frozen=True)
class Score:
    """What a threshold would keep of the labelled pairs.

    Attributes:
        threshold: least confidence; None goes by yes or no.
        labelled: pairs with a label, those called ambiguous left out.
        same: how many of them are the same, that is, the share before curation.
        kept: how many the threshold keeps.
        kept_same: how many of the kept are the same.
        ambiguous, kept_ambiguous: pairs called ambiguous, and how many of them are kept.
    """

    threshold: float | None
    labelled: int
    same: int
    kept: int
    kept_same: int
    ambiguous: int
    kept_ambiguous: int

    @property
    def before(self) -> float | None:
        """Share of same pairs before curation."""
        return self.same / self.labelled if self.labelled else None

    @property
    def precision(self) -> float | None:
        """Share of same pairs after curation."""
        return self.kept_same / self.kept if self.kept else None

    @property
    def recall(self) -> float | None:
        """Share of the same pairs that are kept."""
        return self.kept_same / self.same if self.same else None


def scores(pairs: Sequence[Record], labels: Mapping[str, str]) -> list[Score]:
    """Return the judge's score against labels at every threshold that its verdicts allow."""
    labelled = [(pair, labels[pair.id]) for pair in pairs if pair.id in labels]
    confident = any(pair.values["confidence"] is not None for pair, _ in labelled)
    results = []
    for threshold in THRESHOLDS if confident else (None,):
        kept = [accepted(pair.values["same"], pair.values["confidence"], threshold) for pair, _ in labelled]
        given = [label for _, label in labelled]
        both = list(zip(kept, given, strict=True))
        results.append(
            Score(
                threshold,
                labelled=sum(label != "ambiguous" for label in given),
                same=given.count("yes"),
                kept=sum(keep and label != "ambiguous" for keep, label in both),
                kept_same=sum(keep and label == "yes" for keep, label in both),
                ambiguous=given.count("ambiguous"),
                kept_ambiguous=sum(keep and label == "ambiguous" for keep, label in both),
            )
        )
    return results


def read_labels(path: Path) -> dict[str, str]:
    """Return the labels of a CSV file by pair; rows that are not filled in are left out.

    Raises:
        DistillationError: a column is missing, or a label is none of yes, no and ambiguous.
    """
    table = Table(path)
    if not {"pair", "same"} <= set(table.columns):
        raise DistillationError(f"{path}: the columns pair and same are needed, but it has {', '.join(table.columns)}")
    labels: dict[str, str] = {}
    for row in table:
        pair, label = row.required_text("pair"), (row.text("same") or "").lower()
        if label not in ("", "yes", "no", "ambiguous"):
            raise DistillationError(f"{path}: {label!r} of pair {pair}: a label is yes, no or ambiguous, or empty")
        if label:
            labels[pair] = label
    return labels


def label_files(root: Path) -> list[Path]:
    """Return the files of labels of a run, by name."""
    return sorted((root / LABELS).glob("*.csv"))


def write_labels(path: Path, labels: Mapping[str, str]) -> None:
    """Write labels as CSV, atomically."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["pair", "same"])
    writer.writerows(labels.items())
    write_text(path, buffer.getvalue())
