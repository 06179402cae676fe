"""Shows that characters are found with Grounding DINO's architecture, above the thresholds, the surest first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.published.characters import write_grounding_dino
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.stories.grounding_dino import GroundingDino


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random model in the layout of the hub's."""
    root = tmp_path_factory.mktemp("grounding-dino")
    write_grounding_dino(root, 64, 96)
    return root


def test_boxes_are_within_reach_and_ordered_and_thresholds_hold(weights: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    everything = GroundingDino(str(weights), box_threshold=0.0, text_threshold=0.0)
    boxes = everything.boxes(image)
    assert len(boxes) == 12
    assert all(left < right and top < bottom for left, top, right, bottom in boxes)
    assert max(right for _, _, right, _ in boxes) > 1.5  # pixels and not shares
    resized = image.resize(everything._size(*image.size), Image.Resampling.BILINEAR)
    inputs = everything.processor(images=resized, text="character.", do_resize=False, return_tensors="pt")
    assert inputs["input_ids"].tolist() == [[101, 200, 1012, 102]]
    scores = everything.model(**inputs).logits[0].sigmoid().amax(dim=1)
    least = float(scores.sort().values[6:8].mean())
    surest = GroundingDino(str(weights), box_threshold=least).boxes(image)
    assert np.allclose(surest, boxes[: int((scores > least).sum())], atol=1e-3)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((640, 480), (85, 64)),
        ((480, 640), (64, 85)),
        ((50, 50), (64, 64)),
        # The longer side is the limit: 96 * 101 / 301 is rounded to 32, and 32 * 301 / 101 is 95 and not 96.
        ((301, 101), (95, 32)),
        ((101, 301), (32, 95)),
    ],
)
def test_images_are_resized_as_by_its_own_code(size: tuple[int, int], wanted: tuple[int, int], weights: Path) -> None:
    detector = GroundingDino(str(weights), box_threshold=0.0)
    assert detector._size(*size) == wanted


def test_what_cannot_be_loaded_or_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nowhere: the weights cannot be loaded"):
        GroundingDino(str(tmp_path / "nowhere"))
    with pytest.raises(EvaluationError, match=r"box_threshold=2"):
        GroundingDino("x", box_threshold=2.0)
