"""The miniature's metrics measure what they say: laws, on rendered truths that were distorted."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from dsd_lightning.miniature import candidates
from dsd_lightning.miniature.metrics.identity_metrics import CopyPaste, IdentityAccuracy, PromptAccuracy, ReferencePSNR
from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Context, Identity, Scene, draw_context, draw_identity
from dsd_lightning.randomness import normal, numpy_generator
from dsd_lightning.training import wandb_workspace as workspace

SAMPLES = 64


@dataclass(frozen=True)
class Held:
    """Held-out samples with their images."""

    facts: list[dict[str, list[int]]]
    keys: list[str]
    truths: Tensor
    references: Tensor
    others: Tensor


def pixels(scene: Scene) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(render(scene).image.transpose(2, 0, 1))) * 2 - 1


@pytest.fixture(scope="module")
def held() -> Held:
    rng = numpy_generator("metrics test")
    facts, truths, references, others = [], [], [], []
    for _ in range(SAMPLES):
        identity, context, other_context = draw_identity(rng, held_out=True), draw_context(rng), draw_context(rng)
        facts.append(
            {
                "identity": [int(i) for i in astuple(identity)],
                "reference": [int(i) for i in astuple(other_context)],
                "target": [int(i) for i in astuple(context)],
            }
        )
        truths.append(pixels(Scene(identity, context)))
        references.append(pixels(Scene(identity, other_context)))
        others.append(pixels(Scene(draw_identity(rng, held_out=None), context)))
    keys = [f"sample-{index}" for index in range(SAMPLES)]
    return Held(facts, keys, torch.stack(truths), torch.stack(references), torch.stack(others))


def accuracy(kind: type[Metric], images: Tensor, held: Held) -> float:
    metric = kind()
    metric.update(images, held.facts, held.keys)
    return float(metric.compute())


Candidates = Callable[[Identity, Context, str], list[Scene]]


@pytest.mark.parametrize("choose", [candidates.identity_candidates, candidates.context_candidates])
def test_candidates_are_the_truth_and_fifteen_visibly_different_scenes_five_of_them_near(choose: Candidates) -> None:
    rng = numpy_generator("candidates test")
    for index in range(25):
        truth = Scene(draw_identity(rng, held_out=True), draw_context(rng))
        scenes = choose(truth.identity, truth.context, f"key-{index}")
        assert scenes[0] == truth
        assert len(set(scenes)) == 16
        differences = [candidates.differing(truth, scene) for scene in scenes]
        near = [names[0] for names in differences if len(names) == 1]
        assert len(near) == len(set(near)) == 5
        for scene in scenes[1:]:
            rms = math.sqrt(float(np.mean((candidates.rendered(scene) - candidates.rendered(truth)) ** 2)))
            assert rms >= candidates.VISIBLE_DIFFERENCE


def test_identity_candidates_keep_the_context_and_context_candidates_the_identity() -> None:
    rng = numpy_generator("kept test")
    identity, context = draw_identity(rng), draw_context(rng)
    assert {scene.context for scene in candidates.identity_candidates(identity, context, "k")} == {context}
    assert {scene.identity for scene in candidates.context_candidates(identity, context, "k")} == {identity}


@pytest.mark.parametrize("choose", [candidates.identity_candidates, candidates.context_candidates])
def test_candidates_depend_on_the_key_and_on_nothing_else(choose: Candidates) -> None:
    rng = numpy_generator("key test")
    identity, context = draw_identity(rng), draw_context(rng)
    first = choose(identity, context, "one")
    choose(draw_identity(rng), draw_context(rng), "between")
    assert choose(identity, context, "one") == first
    assert choose(identity, context, "two")[1:] != first[1:]


def test_a_rendered_truth_scores_one_and_copies_nothing(held: Held) -> None:
    assert accuracy(IdentityAccuracy, held.truths, held) == 1.0
    assert accuracy(PromptAccuracy, held.truths, held) == 1.0
    copy_paste = CopyPaste()
    copy_paste.update(held.truths, held.truths, held.references)
    assert float(copy_paste.compute()) == 0.0


def test_noise_does_not_cost_accuracy(held: Held) -> None:
    noisy = held.truths + 0.1 * normal(held.truths.shape, "noise test")
    assert accuracy(IdentityAccuracy, noisy, held) >= 0.99
    assert accuracy(PromptAccuracy, noisy, held) >= 0.99


def test_another_identity_scores_about_chance(held: Held) -> None:
    assert accuracy(IdentityAccuracy, held.others, held) <= 0.15


def test_an_image_that_tells_nothing_scores_about_chance(held: Held) -> None:
    gray = torch.zeros_like(held.truths)
    assert accuracy(IdentityAccuracy, gray, held) <= 0.2
    assert accuracy(PromptAccuracy, gray, held) <= 0.2


def test_the_pasted_reference_is_called_a_copy(held: Held) -> None:
    copy_paste = CopyPaste()
    copy_paste.update(held.references, held.truths, held.references)
    assert float(copy_paste.compute()) > 0.3
    assert accuracy(PromptAccuracy, held.references, held) <= 0.2


def test_copy_paste_grows_with_the_share_of_the_reference(held: Held) -> None:
    metrics = []
    for share in (0.0, 0.25, 0.5, 1.0):
        metric = CopyPaste()
        metric.update(held.truths.lerp(held.references, share), held.truths, held.references)
        metrics.append(float(metric.compute()))
    assert metrics == sorted(metrics)
    assert metrics[0] == pytest.approx(0, abs=1e-6)


def test_errors_name_the_attribute_that_is_wrong(held: Held) -> None:
    """The image is the candidate that wears something else; every error must be about the accessory."""
    metric, wrong, count = IdentityAccuracy(), [], 0
    for fact, key in zip(held.facts, held.keys, strict=True):
        truth = Scene(Identity(*fact["identity"]), Context(*fact["target"]))
        scenes = candidates.identity_candidates(truth.identity, truth.context, key)
        wearing = [scene for scene in scenes if candidates.differing(truth, scene) == ["accessory"]]
        wrong.append(pixels(wearing[0] if wearing else truth))
        count += bool(wearing)
    metric.update(torch.stack(wrong), held.facts, held.keys)
    errors = metric.errors_by_attribute()
    assert count > SAMPLES // 2
    assert errors.pop("accessory") == count
    assert set(errors.values()) == {0}
    assert float(metric.compute()) == pytest.approx(1 - count / SAMPLES)


def test_metrics_do_not_depend_on_the_batches(held: Held) -> None:
    whole, parts = PromptAccuracy(), PromptAccuracy()
    whole.update(held.others, held.facts, held.keys)
    for start in range(0, SAMPLES, 24):
        chosen = slice(start, start + 24)
        parts.update(held.others[chosen], held.facts[chosen], held.keys[chosen])
    assert 0 < float(whole.compute()) < 1
    assert float(whole.compute()) == float(parts.compute())
    assert whole.errors_by_attribute() == parts.errors_by_attribute()


def test_images_of_another_size_are_refused(held: Held) -> None:
    with pytest.raises(ValueError, match=r"32 x 32 .* 64 x 64"):
        IdentityAccuracy().update(held.truths[:, :, ::2, ::2], held.facts, held.keys)


def test_reference_psnr_is_the_textbook_formula(held: Held) -> None:
    metric, reconstructed = (
        ReferencePSNR(),
        (held.references + 0.05 * normal(held.references.shape, "psnr")).clamp(-1, 1),
    )
    for chosen in (slice(0, 10), slice(10, SAMPLES)):
        metric.update(reconstructed[chosen], held.references[chosen])
    error = float(((reconstructed - held.references).double() ** 2).mean())
    assert float(metric.compute()) == pytest.approx(10 * math.log10(4 / error), abs=1e-3)


# --- Names are a contract.


def documented_names() -> set[str]:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    names: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE):
        quoted = re.findall(r"`([^`]+)`", row)
        if "..." in row:
            stem = quoted[0].removesuffix("0")
            quoted = [f"{stem}{index}" for index in range(int(quoted[1].removeprefix(stem)) + 1)]
        names.update(quoted)
    return names


def test_the_workspace_shows_documented_metrics_and_leaves_none_out() -> None:
    shown = workspace.metric_names()
    assert len(shown) == len(set(shown))
    assert set(shown) == {name for name in documented_names() if "/" in name}


def test_the_workspace_asks_for_the_package_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("wandb_workspaces") is not None:
        pytest.skip("wandb-workspaces is installed")
    with pytest.raises(SystemExit) as stopped:
        workspace.main([])
    assert stopped.value.code == 1
    assert "pip install -e '.[workspace]'" in capsys.readouterr().err


def test_the_workspace_is_one_that_wandb_understands() -> None:
    pytest.importorskip("wandb_workspaces")
    built = workspace.build("someone", "some-project", "a view")
    specification = built._to_model().model_dump_json(by_alias=True)
    assert all(f'"{name}"' in specification for name in workspace.metric_names())
