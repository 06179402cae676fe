"""The base class of metrics of generated samples: each says which samples it can score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping

from torch import Tensor
from torchmetrics import Metric

from dsd_lightning.pairs import PairBatch


class SampleMetric(Metric):
    """One number that a set of drawn pairs is scored by, such as a task names them in its YAML (`task.metrics`).

    A subclass is a torchmetrics metric with an `update` of its own; these methods let whoever draws the pairs score them
    without knowing what kind of metric it is.
    """

    @abstractmethod
    def can_score(self, batch: PairBatch, frames: Collection[str]) -> bool:
        """Return whether pairs like those of `batch` can be scored when the named `frames` are drawn of them."""

    @abstractmethod
    def score(self, drawn: Mapping[str, Tensor], batch: PairBatch) -> None:
        """Update with drawn frames.

        Args:
            drawn: pixels [b, 3, h, w] in [-1, 1] by the frame's name.
            batch: the pairs of which they were drawn, with images, on the same device.
        """

    def details(self) -> Mapping[str, int]:
        """Return counts that explain the metric to a reader of the log, of this process alone; none by default."""
        return {}
