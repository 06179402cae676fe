"""Shows that faces are found, aligned and compared as ArcFace needs it, that none is not 0, and which files are refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from skimage.transform import SimilarityTransform, warp
from support.face_networks import SIDE, WIDTH, write_arcface, write_scrfd
from support.llm.rehearsals import ROOT

from dsd_lightning.evaluation.errors import EvaluationError
from dsd_lightning.evaluation.samples.benchmark import folder
from dsd_lightning.evaluation.samples.result_folder import Samples
from dsd_lightning.evaluation.similarity.arcface import ArcFace
from dsd_lightning.evaluation.similarity.encoders import are_encoded
from dsd_lightning.evaluation.similarity.face_alignment import TEMPLATE, aligned, resized, to_template
from dsd_lightning.evaluation.similarity.face_detector import Scrfd
from dsd_lightning.evaluation.similarity.measures import consistency, measure
from dsd_lightning.evaluation.similarity.onnx_network import OnnxNetwork


def needs_onnxruntime() -> None:
    pytest.importorskip("onnxruntime", reason="the extra [faces]")


def noise(seed: int, size: tuple[int, int] = (200, 180)) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (12, 14, 3), dtype=np.uint8)
    return np.array(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))


def corner(x: int, y: int) -> np.ndarray:
    """Return the template's landmarks in a face of 112 pixels whose corner is there."""
    return TEMPLATE + np.array((x, y))


# --- Alignment.


def test_a_similarity_transform_of_the_template_is_undone_exactly() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        angle, scale = rng.uniform(-np.pi, np.pi), rng.uniform(0.1, 5)
        turn = scale * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
        shift = rng.uniform(-300, 300, 2)
        matrix = to_template(TEMPLATE @ turn.T + shift)
        assert matrix is not None
        assert np.allclose(matrix[:, :2] @ turn, np.eye(2), atol=1e-9)
        assert np.allclose(matrix[:, :2] @ shift + matrix[:, 2], 0, atol=1e-9)


def test_landmarks_are_fitted_as_by_the_library_that_insightface_uses() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        landmarks = TEMPLATE * rng.uniform(0.3, 3) + rng.normal(0, 15, (5, 2)) + rng.uniform(-50, 50, 2)
        wanted = SimilarityTransform.from_estimate(landmarks, TEMPLATE)
        assert np.allclose(to_template(landmarks), wanted.params[:2], atol=1e-8)
    # Mirrored landmarks are turned and not reflected.
    matrix = to_template(TEMPLATE * np.array((-1, 1)))
    assert matrix is not None
    assert np.linalg.det(matrix[:, :2]) > 0
    assert to_template(np.full((5, 2), 7.0)) is None


def test_a_shifted_and_turned_image_gives_the_same_aligned_face() -> None:
    image = noise(0)
    face = aligned(image, corner(30, 20))
    assert face is not None
    assert np.array_equal(face, image[20:132, 30:142])
    # A quarter turn to the left: (x, y) becomes (y, width - 1 - x).
    turned = np.stack([TEMPLATE[:, 1] + 20, image.shape[1] - 1 - TEMPLATE[:, 0] - 30], axis=1)
    again = aligned(np.ascontiguousarray(np.rot90(image)), turned)
    assert again is not None
    assert np.abs(again.astype(int) - face).max() <= 1  # half a grey level may be rounded either way
    assert (again != face).mean() < 0.01
    landmarks = TEMPLATE * 1.3 + np.random.default_rng(2).normal(0, 4, (5, 2)) - 25
    beyond = aligned(image, landmarks)
    back = SimilarityTransform.from_estimate(landmarks, TEMPLATE).inverse
    assert beyond is not None
    assert (beyond == 0).all(axis=-1).any()  # black beyond the image
    wanted, inside = (
        warp(each, back, output_shape=(112, 112), preserve_range=True) for each in (image, np.ones_like(image))
    )
    assert np.abs(beyond - wanted)[inside == 1].max() <= 0.51


def test_images_are_resized_about_the_centres_of_pixels() -> None:
    ramp = np.tile(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], (10, 1, 3))
    half = resized(ramp, 15, 5)
    assert np.array_equal(half[0, :, 0], np.arange(15) * 16 + 4)
    assert np.array_equal(resized(ramp, 30, 10), ramp)


# --- The networks.


def face_at(x: int, y: int, image: np.ndarray) -> np.ndarray:
    """Return the image with the one red cell at whose corner the small detector sees a face of 112 pixels."""
    image = image.copy()
    image[y : y + 8, x : x + 8] = (255, 0, 0)
    return image


@pytest.fixture
def encoder(tmp_path: Path) -> ArcFace:
    needs_onnxruntime()
    return ArcFace(
        str(write_arcface(tmp_path / "face.onnx")), Scrfd(str(write_scrfd(tmp_path / "found.onnx")), side=SIDE)
    )


GREY = np.full((SIDE, SIDE, 3), 90, np.uint8)


def test_landmarks_are_those_of_the_surest_place_in_pixels_of_the_image(encoder: ArcFace) -> None:
    detector = encoder.detector
    assert np.allclose(detector.surest(face_at(24, 16, GREY)), corner(24, 16), atol=1e-4)
    faint = GREY.copy()
    faint[40:48, 8:16] = (200, 30, 30)
    both = face_at(24, 16, faint)
    assert np.allclose(detector.surest(both), corner(24, 16), atol=1e-4)
    assert np.allclose(detector.surest(faint), corner(8, 40), atol=1e-4)
    # An image of twice the size is halved, one of half the size doubled; what is below a wide one is black.
    double = np.kron(both, np.ones((2, 2, 1), np.uint8))
    assert np.allclose(detector.surest(double), 2 * corner(24, 16), atol=1e-3)
    small = face_at(24, 16, GREY)[:80]
    assert np.allclose(detector.surest(small), corner(24, 16), atol=1e-4)
    assert detector.surest(GREY) is None
    strict = Scrfd(
        str(Path(encoder.network._label.partition("=")[2]).with_name("found.onnx")), threshold=0.9, side=SIDE
    )
    assert strict.surest(faint) is None
    assert strict.surest(both) is not None


def test_the_embedding_is_the_networks_of_the_aligned_face_in_red_green_blue(encoder: ArcFace) -> None:
    pixels = face_at(24, 16, noise(3, (SIDE, SIDE)) // 2)
    vectors = encoder.images([Image.fromarray(pixels), Image.fromarray(GREY), Image.fromarray(pixels)])
    face = (pixels[16:128, 24:136].astype(np.float32) - 127.5) / 127.5
    (wanted,) = encoder.network(face.transpose(2, 0, 1)[None])
    assert vectors.shape == (3, WIDTH)
    assert np.allclose(vectors[0], wanted[0] / np.linalg.norm(wanted), atol=1e-5)
    assert are_encoded(vectors).tolist() == [True, False, True]
    assert torch.equal(vectors[0], vectors[2])
    swapped = encoder.images([Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))])
    assert not torch.allclose(swapped, vectors[:1], atol=1e-3)


def test_images_without_a_face_are_counted_and_are_no_zeros(encoder: ArcFace, tmp_path: Path) -> None:
    for number in range(3):
        image = noise(number, (SIDE, SIDE)) // 2
        file = tmp_path / "benchmark" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        # The last subject's reference shows no face.
        Image.fromarray(face_at(24, 16, image) if number < 2 else GREY).save(file)
        file.with_suffix(".txt").write_text("on the moon\nin a hat\nasleep")
    cases = folder(tmp_path / "benchmark").cases()
    samples = Samples(tmp_path / "results")
    for number, case in enumerate(cases):
        face = face_at(24, 16, noise(10 + number, (SIDE, SIDE)) // 2)
        reference = Image.open(case.subject.reference)
        samples.write(case, Image.fromarray(GREY if number in (0, 3) else face), reference)
    measured = {each.name: each for each in measure(samples, cases, [encoder])}
    similarity = measured["ArcFace"]
    assert (similarity.subjects, similarity.images, similarity.missing) == (2, 9, 0)
    assert (similarity.no_face, similarity.references_no_face) == (2, 1)
    assert str(similarity).endswith("missing; no face in 2 of the images and 1 of the real images)")
    with_faces = {subject: [] for subject in range(3)}  # type: ignore[var-annotated]
    for number, case in enumerate(cases):
        if number not in (0, 3):
            image, reference = samples.image(case), case.subject.reference
            assert image is not None
            one, other = encoder.images([Image.open(image), Image.open(reference)])
            with_faces[number // 3].append((one, other))
    means = [np.mean([float(one @ other) for one, other in with_faces[subject]]) for subject in (0, 1)]
    assert similarity.value == pytest.approx(np.mean(means), abs=1e-6)
    assert measured["diversity, ArcFace"].subjects == 3
    panels = [samples.image(case) for case in cases[:3]]
    alike = consistency([each for each in panels if each is not None], [cases[0].subject.reference], encoder)
    assert (alike.panels, alike.no_face) == (3, 1)
    assert "no face in 1 panels" in str(alike)
    assert not np.isnan([alike.self_similarity, alike.neighbours, alike.cross_similarity]).any()


def test_the_shipped_configuration_builds_it_from_two_files(encoder: ArcFace, tmp_path: Path) -> None:
    files = f"encoders.arcface.path={tmp_path}/face.onnx", f"encoders.arcface.detector.path={tmp_path}/found.onnx"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(
            "evaluate/similarity", ["samples=x", "use=[arcface]", *files, f"encoders.arcface.detector.side={SIDE}"]
        )
    built = instantiate(config.encoders.arcface)
    assert built.backbone == encoder.backbone
    assert built.backbone.startswith("face.onnx ")
    assert "found.onnx " in built.backbone


# --- What is refused.


@pytest.mark.parametrize(
    ("write", "side", "message"),
    [
        (lambda file: file.with_name("none.onnx"), 112, r"x\.path=.*none\.onnx: there is no such file"),
        (lambda file: file.write_text("no") and file, 112, "cannot be read as ONNX"),
        (lambda file: write_arcface(file, side=96), 112, r"it takes .*96, 96.*\[1, 3, 112, 112\] is needed"),
        (lambda file: write_scrfd(file, side=320), 640, r"it takes .*320, 320.*\[1, 3, 640, 640\] is needed"),
    ],
)
def test_other_files_are_refused(write: Callable[[Path], Path], side: int, message: str, tmp_path: Path) -> None:
    needs_onnxruntime()
    with pytest.raises(EvaluationError, match=message):
        OnnxNetwork(str(write(tmp_path / "file.onnx")), side, "x.path")


def test_networks_of_another_form_are_refused(encoder: ArcFace, tmp_path: Path) -> None:
    file = tmp_path / "other.onnx"
    with pytest.raises(EvaluationError, match=r"has 6 outputs; an SCRFD with landmarks \(kps\) has 9 or 15"):
        Scrfd(str(write_scrfd(file, landmarks=False)), side=SIDE)
    with pytest.raises(EvaluationError, match=r"has 800 scores at stride 8, and an SCRFD has 400 for side=160"):
        Scrfd(str(write_scrfd(file, strides=(8, 16, 32, 64, 128))), side=SIDE)
    with pytest.raises(EvaluationError, match=r"gives \[\[392, 1\].*one vector \[1, d\] is needed"):
        ArcFace(str(write_scrfd(file, side="any")), encoder.detector)
    with pytest.raises(EvaluationError, match=r"side=100 a multiple of 32"):
        Scrfd(str(file), side=100)
    with pytest.raises(EvaluationError, match=r"deviation=0"):
        ArcFace(str(file), encoder.detector, deviation=0.0)


def test_what_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EvaluationError, match=r"pip install -c constraints\.txt -e '\.\[faces\]'"):
        OnnxNetwork(str(write_arcface(tmp_path / "face.onnx")), 112, "encoders.arcface.path")
