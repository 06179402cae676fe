"""Compares how characters are found, by Grounding DINO, and compared by faces, with ViStoryBench's public code."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BertConfig, BertTokenizerFast, GroundingDinoConfig, GroundingDinoForObjectDetection, SwinConfig
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.grounding_dino.processing_grounding_dino import GroundingDinoProcessor

from benchmarks.published import inputs
from benchmarks.published.comparison import Comparison, Theirs, configured
from benchmarks.published.stand_ins import FACE_THRESHOLD, face_in
from benchmarks.published.stories import CHARACTERS, published
from dsd_lightning.evaluation.stories.characters import cast_of, crops, scores_of
from dsd_lightning.evaluation.stories.grounding_dino import GroundingDino
from dsd_lightning.images.pixels import load_rgb
from dsd_lightning.randomness import numpy_generator

WORDS = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?", 200: "character"}
"""Places in BERT's vocabulary, some of which the architecture knows by number."""


class TableFaces:
    """Encodes the face that `face_in` gives an image, if its score suffices."""

    name, backbone = "faces", "table"

    def images(self, images: Iterable[Image.Image]) -> Tensor:
        """Return a unit vector an image [n, 16], NaN for one without a face."""
        vectors = []
        for image in images:
            score, embedding = face_in(np.asarray(image.convert("RGB")))
            vectors.append(torch.from_numpy(embedding) if score >= FACE_THRESHOLD else torch.full((16,), torch.nan))
        return F.normalize(torch.stack(vectors), dim=1)


def compare_faces(theirs: Theirs, folder: Path, compared: Comparison) -> None:
    """Compare CIDS and the copy-paste rate of stories in which two of three characters are realistic people.

    Faces are those of `face_in` in both. Their average over three networks of faces is that of the only one it is given.
    """
    weights = folder / "weights" / "pretrain"
    given = published(theirs, "vistorybench_faces", folder / "faces", weights, 6, realistic=("Ann", "Rex"))
    values: dict[str, list[float]] = {}
    matched = []
    for story in given.benchmark.stories:
        cast = cast_of(story, given.samples.shots(story.name), given.detector, given.identity, TableFaces())
        scores = scores_of(cast)
        matched += [(story.name, index, sorted(by_key)) for index, by_key in cast.cutouts.items() if by_key]
        for name, attribute in CHARACTERS.items():
            values.setdefault(name, []).append(getattr(scores, attribute))
    for way, by_story in given.results.items():
        for name, ours in values.items():
            wanted = [by_story[story]["metrics"][name] for story in given.names]
            compared.numbers(f"ViStoryBench {name} of each story, {way}", "cids_evaluator.py", ours, wanted)
        shots = [
            (story, int(key.removeprefix("shot-")), sorted(who for who, each in shot.items() if each["box"] != "null"))
            for story in given.names
            for key, shot in by_story[story].items()
            if key.startswith("shot-")
        ]
        wanted = [shot for shot in shots if shot[2]]
        compared.equal(f"ViStoryBench characters matched in a shot, {way}", "cids_evaluator.py", matched, wanted)


def write_grounding_dino(folder: Path, shorter: int = 800, longer: int = 1333) -> None:
    """Write a small random Grounding DINO in the layout of the hub's.

    Args:
        folder: to write to.
        shorter, longer: sides that images are resized to, pixels; of the published weights unless given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS.get(number, f"word{number}") for number in range(1100)))
    backbone = SwinConfig(
        image_size=64,
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage2", "stage3", "stage4"],
    )
    text = BertConfig(vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
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
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": shorter, "longest_edge": longer})
    GroundingDinoProcessor(images, BertTokenizerFast(str(vocabulary))).save_pretrained(folder)


class PreparedNetwork:
    """In the place of Grounding DINO's network: keeps its inputs and gives a prepared answer."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.answer: Any = None

    def __call__(self, **inputs: Any) -> Any:
        """Return the answer."""
        self.inputs.append(inputs)
        return self.answer


def _answer(*key: int | str) -> tuple[list[list[float]], list[list[float]]]:
    """Return logits [12, 256] of the four words of a text, about half above the threshold, and boxes [12, 4]."""
    rng = numpy_generator("grounding dino", *key)
    logits = np.full((12, 256), -1e4, np.float32)
    logits[:, :4] = rng.normal(-2.2, 1, (12, 4))
    boxes = np.concatenate([rng.uniform(0, 1, (12, 2)), rng.uniform(0.05, 0.9, (12, 2))], axis=1).astype(np.float32)
    return logits.tolist(), boxes.tolist()


def compare_grounding_dino(theirs: Theirs, folder: Path, compared: Comparison) -> None:
    """Compare what the network of Grounding DINO is given, and what is cut out by the same answers; not the network itself."""
    weights, place = folder / "weights" / "grounding_dino", folder / "found"
    write_grounding_dino(weights)
    place.mkdir()
    files = []
    for number in range(12):
        files.append(place / f"image{number}.png")
        inputs.image("grounding dino", number).save(files[-1])
    published = theirs.run(
        "grounding_dino",
        folder=str(place),
        vocabulary=str(weights / "vocab.txt"),
        images=[(str(file), *_answer(number)) for number, file in enumerate(files)],
    )
    settings = ("detector=grounding_dino", f"detector.path={weights}", "detector.device=cpu")
    config = configured("benchmark=vistorybench", "benchmark.folder=.", *settings).detector
    detector = GroundingDino(config.path, config.text, config.box_threshold, config.text_threshold, config.device)
    network = PreparedNetwork()
    detector.model = network
    images = [load_rgb(file) for file in files]
    cutouts = []
    for number, image in enumerate(images):
        logits, boxes = _answer(number)
        network.answer = SimpleNamespace(logits=torch.tensor(logits)[None], pred_boxes=torch.tensor(boxes)[None])
        cutouts.append([each.tobytes() for each in crops(image, detector)])
    given = [torch.load(each["pixels"], weights_only=True).numpy() for each in published["inputs"]]
    apart = [
        float(np.abs(ours["pixel_values"][0].numpy() - other).max())
        for ours, other in zip(network.inputs, given, strict=True)
    ]
    code = "groundingdino/util/inference.py"
    compared.numbers("Grounding DINO, pixels of each image: largest difference", code, apart, [0.0] * len(apart))
    tokens = [each["input_ids"][0].tolist() for each in network.inputs]
    compared.equal("Grounding DINO, words", code, tokens, [each["tokens"] for each in published["inputs"]])
    wanted = [[Image.open(name).tobytes() for name in each["all"]] for each in published["images"]]
    compared.equal("Grounding DINO, cut-outs of each image in their order", "cids_evaluator.py", cutouts, wanted)
    surest = [[Image.open(name).tobytes() for name in each["surest"]] for each in published["images"]]
    compared.equal("Grounding DINO, the surest cut-out", "cids_evaluator.py", [each[:1] for each in cutouts], surest)
