"""Laws that every architecture keeps; a new one adds a row to `ROWS`, and all laws are tested on it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline
from support.models.architecture_rows import (
    BATCH,
    CONF,
    FACTORS,
    ROOT,
    ROWS,
    TIMES,
    Row,
    base,
    condition_of,
    images,
    with_random_weights,
)
from torch import Tensor

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.checkpoints.adapter import load_adapter, save_adapter
from dsd_lightning.flux import tokens
from dsd_lightning.flux.codec import Codec
from dsd_lightning.objective import frame_losses
from dsd_lightning.pairs import REFERENCE, TARGET, Condition, Encoded, TextEmbeddings
from dsd_lightning.randomness import normal
from dsd_lightning.rectified_flow import NoShift
from dsd_lightning.sampler import SamplerSettings, sample

FACTORS.rank = 4


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest) -> Row:
    return ROWS[request.param]


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(AutoencoderKL.from_pretrained(ROOT / "assets" / "tiny-flux" / "vae"))


@dataclass(frozen=True)
class Case:
    """An architecture before a batch of pairs."""

    architecture: Architecture
    encoded: Encoded
    noisy: Tensor
    condition: Condition

    @torch.no_grad()
    def predict(self, condition: Condition | None = None) -> Tensor:
        return self.architecture(self.noisy, TIMES, condition or self.condition)


def case(row: Row, codec: Codec, trained: bool = False, dtype: torch.dtype = torch.float32) -> Case:
    architecture = row.build(base(dtype))
    if trained:
        with_random_weights(architecture)
    encoded = architecture.encode(images("reference"), images("target"), codec)
    noisy = normal(encoded.clean.shape, "noise")
    return Case(architecture, encoded, noisy, condition_of(encoded))


def test_every_configured_architecture_is_put_to_the_laws() -> None:
    assert {name.partition("-")[0] for name in ROWS} == {file.stem for file in CONF.glob("*.yaml")}


# --- The canvas.


def test_the_canvas_holds_its_frames(row: Row) -> None:
    architecture = row.build(base())
    frames = {name: normal((BATCH, 6, 4, 6), name) for name in architecture.frames}
    split = architecture.split(architecture.join(frames))
    assert list(split) == list(architecture.frames)
    assert architecture.frames[-1] == TARGET
    for name, frame in frames.items():
        assert torch.equal(split[name], frame)


def test_the_clean_canvas_ends_with_the_target(row: Row, codec: Codec) -> None:
    drawn = case(row, codec)
    split = drawn.architecture.split(codec.decode(drawn.encoded.clean))
    assert list(split)[-1] == TARGET
    assert torch.equal(drawn.architecture.join(split), codec.decode(drawn.encoded.clean))
    for name, image in split.items():
        other = {REFERENCE: TARGET, TARGET: REFERENCE}[name]
        assert (image - images(name)).square().mean() < 0.5 * (image - images(other)).square().mean()


def test_tokens_are_counted_over_the_whole_canvas(row: Row, codec: Codec) -> None:
    drawn = case(row, codec)
    assert drawn.architecture.image_tokens(drawn.encoded.clean) == tokens.pack(drawn.encoded.clean).shape[1]


def test_encoding_is_a_pure_function_of_the_pair(row: Row, codec: Codec) -> None:
    first, second = case(row, codec).encoded, case(row, codec).encoded
    assert torch.equal(first.clean, second.clean)
    assert first.reference.keys() == second.reference.keys()
    for name, value in first.reference.items():
        assert torch.equal(value, second.reference[name])
    # What sampling asks for, without a target, is the same.
    sampling = case(row, codec).architecture.encode_reference(images("reference"), codec)
    for name, value in first.reference.items():
        assert torch.equal(value, sampling[name])


# --- The prediction.


@torch.no_grad()
def test_at_first_the_prediction_is_the_bases(row: Row, codec: Codec) -> None:
    if not row.starts_as_base:
        pytest.skip("this architecture changes the base's sequence")
    drawn = case(row, codec)
    channels, height, width = drawn.noisy.shape[1:]
    packed = base()(
        hidden_states=FluxPipeline._pack_latents(drawn.noisy, BATCH, channels, height, width),
        encoder_hidden_states=drawn.condition.text.sequence,
        pooled_projections=drawn.condition.text.pooled,
        timestep=TIMES,
        img_ids=FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, torch.device("cpu"), torch.float32),
        txt_ids=torch.zeros(5, 3),
        guidance=drawn.condition.guidance,
        return_dict=False,
    )[0]
    expected = FluxPipeline._unpack_latents(packed, 8 * height, 8 * width, vae_scale_factor=8)
    torch.testing.assert_close(drawn.predict(), expected, atol=1e-5, rtol=0)


def test_the_reference_changes_the_prediction(row: Row, codec: Codec) -> None:
    drawn = case(row, codec, trained=True)
    other = drawn.architecture.encode_reference(images("another"), codec)
    frames = [
        drawn.architecture.split(drawn.predict(condition))[TARGET]
        for condition in (drawn.condition, replace(drawn.condition, reference=other))
    ]
    if row.uses_reference:
        assert (frames[0] - frames[1]).abs().max() > 1e-3
    else:
        assert torch.equal(*frames)


def test_no_reference_does_not_depend_on_the_image(row: Row, codec: Codec) -> None:
    drawn = case(row, codec, trained=True)
    other = drawn.architecture.encode_reference(images("another"), codec)
    null, same = (drawn.architecture.null_reference(each) for each in (drawn.encoded.reference, other))
    assert null.keys() == same.keys() == drawn.encoded.reference.keys()
    for name, value in null.items():
        assert value.shape == other[name].shape
        assert torch.equal(value, same[name])
    if row.uses_reference:
        without = drawn.predict(replace(drawn.condition, reference=null))
        assert (without - drawn.predict()).abs().max() > 1e-3


def test_references_are_dropped_a_sample_at_a_time(row: Row, codec: Codec) -> None:
    drawn = case(row, codec)
    null = drawn.architecture.null_reference(drawn.encoded.reference)
    dropped = drawn.architecture.drop_reference(drawn.condition, torch.tensor([True, False]))
    assert dropped.reference.keys() == drawn.encoded.reference.keys()
    for name, value in dropped.reference.items():
        assert torch.equal(value[0], drawn.encoded.reference[name][0])
        assert torch.equal(value[1], null[name][1])
    kept = drawn.architecture.drop_reference(drawn.condition, torch.tensor([True, True]))
    assert all(torch.equal(value, drawn.encoded.reference[name]) for name, value in kept.reference.items())


@torch.no_grad()
def test_what_is_prepared_once_an_image_changes_nothing(row: Row, codec: Codec) -> None:
    drawn = case(row, codec, trained=True)
    state = drawn.architecture.prepare(drawn.condition)
    for _ in range(2):
        prepared = drawn.architecture(drawn.noisy, TIMES, drawn.condition, state)
        torch.testing.assert_close(prepared, drawn.predict(), atol=1e-6, rtol=0)


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other(row: Row, codec: Codec) -> None:
    drawn, together = case(row, codec, trained=True), case(row, codec, trained=True).predict()
    text = drawn.condition.text
    for i in range(BATCH):
        one = slice(i, i + 1)
        alone = Condition(
            TextEmbeddings(text.sequence[one], text.pooled[one]),
            drawn.condition.guidance[one],
            {name: value[one] for name, value in drawn.condition.reference.items()},
        )
        predicted = drawn.architecture(drawn.noisy[one], TIMES[one], alone)
        torch.testing.assert_close(predicted, together[one], atol=1e-4, rtol=0)


@torch.no_grad()
def test_guidance_keeps_a_state_for_each_of_its_passes(row: Row, codec: Codec) -> None:
    drawn = case(row, codec, trained=True)
    no_text = TextEmbeddings(normal((1, 5, 16), "no text"), normal((1, 8), "no text pooled"))
    image, text, steps = 1.5, 2.5, 2
    settings = SamplerSettings(steps, image_guidance=image, text_guidance=text, guidance_start=0)
    sampled = sample(drawn.architecture, drawn.condition, no_text, drawn.noisy, settings, NoShift())

    unnamed = drawn.condition.with_text(
        TextEmbeddings(no_text.sequence.expand(BATCH, -1, -1), no_text.pooled.expand(BATCH, -1))
    )
    nothing = replace(unnamed, reference=drawn.architecture.null_reference(drawn.encoded.reference))
    canvas = drawn.noisy
    for time in (1.0, 0.5):
        null, reference, full = (
            drawn.architecture(canvas, torch.full((BATCH,), time), condition)
            for condition in (nothing, unnamed, drawn.condition)
        )
        canvas = canvas - (null + image * (reference - null) + text * (full - reference)) / steps
    torch.testing.assert_close(sampled, canvas, atol=1e-4, rtol=1e-4)


# --- What is trained.


def loss_of(drawn: Case) -> Tensor:
    weights = {REFERENCE: 0.5, TARGET: 1.0}
    noise = normal(drawn.encoded.clean.shape, "noise")
    return frame_losses(drawn.architecture, drawn.encoded, drawn.condition, noise, TIMES, weights).total


def test_three_steps_move_all_that_is_trained_and_nothing_else(row: Row, codec: Codec) -> None:
    drawn = case(row, codec)
    before = copy.deepcopy(drawn.architecture.state_dict())
    trained = dict(drawn.architecture.trainable())
    assert trained
    optimizer = torch.optim.Adam(trained.values(), lr=1e-2)  # no weight decay: only the loss can move
    first = float(loss_of(drawn))
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(drawn).backward()
        optimizer.step()
    for name, value in drawn.architecture.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == (name in trained), f"{name} {'moved' if moved else 'did not move'}"
    assert float(loss_of(drawn)) < first


def test_a_checkpoint_changes_nothing(row: Row, codec: Codec, tmp_path: Path) -> None:
    trained = case(row, codec, trained=True)
    save_adapter(tmp_path, trained.architecture)
    loaded = case(row, codec)
    assert not torch.equal(loaded.predict(), trained.predict())
    load_adapter(tmp_path, loaded.architecture)
    assert torch.equal(loaded.predict(), trained.predict())


def test_a_bfloat16_base_trains_float32_weights(row: Row, codec: Codec) -> None:
    if row.trains_base:
        pytest.skip("the base itself is trained, in its own dtype")
    drawn = case(row, codec, trained=True, dtype=torch.bfloat16)
    for name, parameter in drawn.architecture.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    predicted, exact = drawn.predict(), case(row, codec, trained=True).predict()
    assert predicted.dtype == torch.bfloat16
    # bfloat16 holds 8 bits, 0.4%; it adds up over two blocks.
    assert (predicted.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    loss_of(drawn).backward()
    for name, parameter in drawn.architecture.trainable():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_shard_units_hold_the_transformers_blocks_and_share_nothing(row: Row) -> None:
    architecture = row.build(base())
    units = list(architecture.shard_units())
    blocks = [*architecture.transformer.transformer_blocks, *architecture.transformer.single_transformer_blocks]
    assert all(any(unit is block for unit in units) for block in blocks)
    held = [parameter for unit in units for parameter in unit.parameters()]
    assert len({id(parameter) for parameter in held}) == len(held), "units may not share parameters"
