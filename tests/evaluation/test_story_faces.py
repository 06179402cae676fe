"""Shows that realistic people of stories are compared by faces as ViStoryBench's code does, and that missing faces are counted.

The values of its code on the same stories: `python -m benchmarks.published --only faces`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from PIL import Image, ImageOps
from support.face_networks import SIDE, write_arcface, write_scrfd
from support.llm.rehearsals import ROOT
from torch import Tensor

from dsd_lightning.evaluation.command import score
from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.stories.characters import FaceCounts, cast_of, scores_of
from dsd_lightning.evaluation.stories.dataset import Character, Shot, Story
from dsd_lightning.evaluation.stories.outputs import StoryImages
from dsd_lightning.offline import stories

Box = tuple[float, float, float, float]


class Colours:
    """Encodes an image by its mean colour; a face encoder sees none in images without red."""

    backbone = "mean"

    def __init__(self, name: str, red: bool) -> None:
        self.name, self.red = name, red

    def images(self, images: Any) -> Tensor:
        """Return a unit vector an image, NaN for one without a face."""
        means = torch.stack(
            [torch.from_numpy(np.asarray(each, np.float32)[:, : each.width // 2].mean((0, 1))) for each in images]
        )
        vectors = F.normalize(means + torch.tensor([0.0, 0.0, 1.0]), dim=1)
        return vectors.masked_fill(means[:, :1] == 0, torch.nan) if self.red else vectors


class Thirds:
    """Finds the three vertical thirds of shots, and the whole of references."""

    name = "thirds"

    def boxes(self, image: Image.Image) -> list[Box]:
        wide, high = image.size
        return (
            [(wide * each / 3, 0, wide * (each + 1) / 3, high) for each in range(3)]
            if wide == 60
            else [(0, 0, wide, high)]
        )


def plain(folder: Path, name: str, *colours: tuple[int, int, int]) -> Path:
    """Write an image of vertical bars, 20 pixels each, whose right half is darker."""
    image = Image.new("RGB", (20 * len(colours), 20))
    for number, colour in enumerate(colours):
        image.paste(colour, (20 * number, 0, 20 * number + 20, 20))
        image.paste(tuple(each // 2 for each in colour), (20 * number + 10, 0, 20 * number + 20, 20))  # type: ignore[arg-type]
    image.save(folder / f"{name}.png")
    return folder / f"{name}.png"


ANN, BOB, BACK, REX, TREE = (200, 40, 10), (90, 200, 10), (0, 30, 220), (0, 220, 40), (0, 60, 60)
"""Colours of two people's faces, of someone seen from behind, of a dog and of no one."""


@pytest.fixture
def story(tmp_path: Path) -> tuple[Story, dict[int, Path]]:
    """Return a story of two realistic people, one whose references show no face, one never seen from the front, and a dog."""
    references = {
        "Ann": (plain(tmp_path, "ann0", BACK), plain(tmp_path, "ann1", ANN)),
        "Bob": (plain(tmp_path, "bob", BOB),),
        "Eve": (plain(tmp_path, "eve", BACK),),
        "Max": (plain(tmp_path, "max", ANN),),
        "Rex": (plain(tmp_path, "rex", REX),),
    }
    characters = {
        key: Character(key, key, "", "non_human" if key == "Rex" else "realistic_human", files)
        for key, files in references.items()
    }
    stages = {1: ("Ann", "Rex"), 2: ("Bob", "Ann", "Eve"), 3: ("Max",)}
    shots = tuple(Shot(index, "", "", "", "", stage) for index, stage in stages.items())
    images = {
        1: plain(tmp_path, "shot1", REX, ANN, TREE),
        2: plain(tmp_path, "shot2", ANN, BACK, BOB),
        3: plain(tmp_path, "shot3", BACK, TREE, REX),
    }
    return Story("01", "tale", shots, characters), images


def test_faces_are_matched_among_cutouts_with_a_face_and_the_others_are_counted(
    story: tuple[Story, dict[int, Path]],
) -> None:
    identity, faces = Colours("CLIP", False), Colours("faces", True)
    cast = cast_of(*story, Thirds(), identity, faces)
    # The dog is matched to a cut-out without a face; Ann and Bob to their own; no one to Eve's and Max's backs.
    names = {
        index: {key: each.getpixel((0, 0)) for key, each in cutouts.items()} for index, cutouts in cast.cutouts.items()
    }
    assert names == {1: {"Ann": ANN, "Rex": REX}, 2: {"Bob": BOB, "Ann": ANN}, 3: {}}
    assert {key: len(each) for key, each in cast.references.items()} == {
        "Ann": 1,
        "Bob": 1,
        "Eve": 0,
        "Max": 1,
        "Rex": 1,
    }
    assert cast.faces == FaceCounts(cutouts=9, cutouts_without=6, characters=4, unknown=1, never=1)
    scores = scores_of(cast)
    # Eve is left out; Max counts as 0, as published.
    assert scores.cross == pytest.approx((1 + 1 + 0 + 1) / 4, abs=1e-6)
    assert scores.own == pytest.approx((1 + 1 + 0 + 1) / 4, abs=1e-6)
    alone = cast_of(*story, Thirds(), identity)
    assert alone.faces == FaceCounts()
    assert "Eve" in alone.cutouts[2]
    assert str(cast.faces + cast.faces) == (
        "faces: none in 12 of 18 cut-outs; of 8 realistic characters 2 without a face in any reference (left out of CIDS), "
        "2 never matched (0, as published)"
    )


def test_a_mirror_image_without_a_face_shows_no_preference(
    story: tuple[Story, dict[int, Path]], tmp_path: Path
) -> None:
    class OneSided(Colours):
        def images(self, images: Any) -> Tensor:
            images = list(images)
            vectors = super().images(images)
            darker = [np.asarray(each)[0, 0].sum() < np.asarray(each)[0, -1].sum() for each in images]
            return vectors.masked_fill(torch.tensor(darker)[:, None], torch.nan)

    tale, images = story
    only = Story("01", "tale", tale.shots[:1], {"Ann": tale.characters["Ann"]})
    with_mirror = scores_of(cast_of(only, images, Thirds(), Colours("CLIP", False), Colours("faces", True)))
    without = scores_of(cast_of(only, images, Thirds(), Colours("CLIP", False), OneSided("faces", True)))
    assert without.copied == pytest.approx(0.5)
    assert with_mirror.copied != pytest.approx(0.5)
    assert ImageOps.mirror(Image.open(tmp_path / "ann1.png")).getpixel((0, 0)) != ANN


def run(tmp_path: Path, *overrides: str) -> str:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = ["benchmark=vistorybench", f"benchmark.folder={tmp_path / 'dataset'}", "story.alignment=false"]
        config = compose("evaluate", [*settings, "story.style=null", f"out={tmp_path / 'out'}", *overrides])
    return score(config)


def test_the_command_compares_faces_and_names_what_has_none(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra [faces]")
    stories.write(tmp_path / "dataset", stories=2, shots=2)
    for file in (tmp_path / "dataset").glob("*/story.json"):
        content = json.loads(file.read_text())
        for each in content["Characters"].values():
            each["tag"] = "realistic_human"
        file.write_text(json.dumps(content))
    samples = tmp_path / "samples"
    for number in (1, 2):
        for index in (1, 2):
            reference = sorted((tmp_path / "dataset" / f"{number:02d}" / "image").rglob("*.jpg"))[0]
            target = samples / f"{number:02d}" / "shots" / f"shot_{index:02d}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.open(reference).save(target)
    assert StoryImages(samples).shots("01")
    given = ["method=images", "method.name=copies", f"method.samples={samples}", "detector=miniature"]
    networks = [
        f"encoders.arcface.path={write_arcface(tmp_path / 'face.onnx')}",
        f"encoders.arcface.detector.path={write_scrfd(tmp_path / 'found.onnx')}",
        f"encoders.arcface.detector.side={SIDE}",
        # So that every cut-out has a face to the small detector.
        "encoders.arcface.detector.threshold=0.000001",
    ]
    printed = run(tmp_path, *given, *networks, "story.identity=pixels", "story.faces=arcface")
    assert "CIDS: pixel correlation" in printed
    assert "faces: ArcFace (face.onnx " in printed
    assert "copies, faces: none in 0 of 4 cut-outs; of 4 realistic characters 0 without a face" in printed
    assert json.loads((tmp_path / "out" / "scores" / "copies.json").read_text())["setup"]["faces"].startswith("ArcFace")
    for wrong, message in (
        (["story.faces=arcface"], r"story\.faces=arcface: .* needs one .*story\.identity=clip"),
        (["story.identity=pixels", "story.faces=pixels"], r"story\.faces=pixels: an encoder of faces is needed"),
        (["story.style=arcface"], r"story\.style=arcface: faces are for realistic people alone: story\.faces=arcface"),
    ):
        with pytest.raises(EvaluationError, match=message):
            run(tmp_path, *given, *networks, *wrong)
