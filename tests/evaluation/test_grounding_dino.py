"""Shows that characters are found with Grounding DINO's architecture, above the thresholds, the surest first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertTokenizerFast, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.stories.grounding_dino import GroundingDino

SPECIAL = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?", 200: "character"}
"""Places in BERT's vocabulary, some of which the architecture knows by number."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small random model in the layout of the hub's."""
    root = tmp_path_factory.mktemp("grounding-dino")
    (root / "vocab.txt").write_text("\n".join(SPECIAL.get(number, f"word{number}") for number in range(1100)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = SwinConfig(
            image_size=64,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_features=["stage2", "stage3", "stage4"],
        )
        text = BertConfig(
            vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        config = GroundingDinoConfig(
            backbone_config=backbone,
            text_config=text,
            d_model=32,
            encoder_layers=1,
            decoder_layers=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_queries=12,
        )
        GroundingDinoForObjectDetection(config).save_pretrained(root)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, BertTokenizerFast(vocab_file=str(root / "vocab.txt"))).save_pretrained(root)
    return root


def test_boxes_are_within_reach_and_ordered_and_thresholds_hold(weights: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    everything = GroundingDino(str(weights), box_threshold=0.0, text_threshold=0.0)
    boxes = everything.boxes(image)
    assert len(boxes) == 12
    assert all(left < right and top < bottom for left, top, right, bottom in boxes)
    assert max(right for _, _, right, _ in boxes) > 1.5  # pixels and not shares
    inputs = everything.processor(images=image, text="character.", return_tensors="pt")
    scores = everything.model(**inputs).logits[0].sigmoid().amax(dim=1)
    least = float(scores.sort().values[6:8].mean())
    surest = GroundingDino(str(weights), box_threshold=least).boxes(image)
    assert np.allclose(surest, boxes[: int((scores > least).sum())], atol=1e-3)


def test_what_cannot_be_loaded_or_meant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nowhere: the weights cannot be loaded"):
        GroundingDino(str(tmp_path / "nowhere"))
    with pytest.raises(EvaluationError, match=r"box_threshold=2"):
        GroundingDino("x", box_threshold=2.0)
