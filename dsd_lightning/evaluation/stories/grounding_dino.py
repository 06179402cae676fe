"""Finds characters with Grounding DINO (arXiv 2303.05499), as ViStoryBench does, by the word "character"."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from dsd_lightning.evaluation.errors import EvaluationError


class GroundingDino:
    """The detector through transformers.

    Args:
        path: folder or hub id. Published: Swin-T, IDEA-Research/grounding-dino-tiny.
        text: what to find; a full stop ends it.
        box_threshold, text_threshold: least score of a box and of a word in it, 0 to 1. Published: 0.25.
        device: None takes the GPU if there is one.

    Raises:
        EvaluationError: it cannot be loaded, or a threshold is off its scale.
    """

    def __init__(
        self,
        path: str,
        text: str = "character.",
        box_threshold: float = 0.25,
        text_threshold: float = 0.25,
        device: str | None = None,
    ) -> None:
        if not (0 <= box_threshold < 1 and 0 <= text_threshold < 1):
            raise EvaluationError(
                f"detector.box_threshold={box_threshold}, text_threshold={text_threshold}: scores from 0 to below 1"
            )
        self.name, self.text = path, text
        self.thresholds = {"threshold": box_threshold, "text_threshold": text_threshold}
        try:
            model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(path)
            self.processor: Any = AutoProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise EvaluationError(
                f"detector.path={path}: the weights cannot be loaded ({error}); give a folder or a hub id that can be reached"
            ) from error
        self.model = model.requires_grad_(False).eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    @torch.no_grad()
    def boxes(self, image: Image.Image) -> list[tuple[float, float, float, float]]:
        """Return left, top, right and bottom of each character, pixels, the most certain first."""
        resized = image.convert("RGB").resize(self._size(image.width, image.height), Image.Resampling.BILINEAR)
        inputs = self.processor(images=resized, text=self.text, do_resize=False, return_tensors="pt").to(
            self.model.device
        )
        (result,) = self.processor.post_process_grounded_object_detection(
            self.model(**inputs), inputs["input_ids"], target_sizes=[(image.height, image.width)], **self.thresholds
        )
        order = result["scores"].argsort(descending=True)
        return [(left, top, right, bottom) for left, top, right, bottom in result["boxes"][order].tolist()]

    def _size(self, width: int, height: int) -> tuple[int, int]:
        """Return what an image is resized to, pixels, as Grounding DINO's own code does (`get_size_with_aspect_ratio`).

        The shorter side is rounded before the longer one follows from it. transformers does not round it, so that the longer
        side of an image of more than 5:3 can be another by a pixel.
        """
        sizes = self.processor.image_processor.size
        shorter, longer = sizes["shortest_edge"], sizes["longest_edge"]
        least, most = min(width, height), max(width, height)
        if most / least * shorter > longer:
            shorter = round(longer * least / most)
        other = int(shorter * most / least)
        return (shorter, other) if width < height else (other, shorter)
