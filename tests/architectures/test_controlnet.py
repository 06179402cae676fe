"""The ControlNet starts from the base's blocks, as many as configured, and all of them are read."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxTransformer2DModel
from support.models.architecture_rows import base, configured

from dsd_lightning.architectures.controlnet import ControlNet, copy_blocks
from dsd_lightning.flux.lora import Lora


def deep(num_layers: int, num_single_layers: int) -> FluxTransformer2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            in_channels=16,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=8,
            num_attention_heads=1,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            axes_dims_rope=(2, 2, 4),
        )


def test_it_starts_from_the_bases_first_blocks_in_float32() -> None:
    transformer = deep(3, 4).bfloat16()
    transformer.set_attention_backend("_native_math")
    controlnet = copy_blocks(transformer, num_layers=2, num_single_layers=1)
    assert (len(controlnet.transformer_blocks), len(controlnet.single_transformer_blocks)) == (2, 1)
    theirs = transformer.state_dict()
    own = 0
    for name, value in controlnet.state_dict().items():
        assert value.dtype == torch.float32
        if name.startswith("controlnet_"):
            own += 1
            assert not value.any(), name
        else:
            assert torch.equal(value, theirs[name].float()), name
    assert own == 2 * (2 + 1 + 1)
    kernel = transformer.transformer_blocks[0].attn.processor._attention_backend
    assert {block.attn.processor._attention_backend for block in controlnet.transformer_blocks} == {kernel}


def test_a_default_configuration_is_no_excuse_for_another_number_of_blocks() -> None:
    # `FluxControlNetModel.from_transformer` copies all 57 blocks of a transformer that was made without arguments.
    with torch.device("meta"):
        transformer = FluxTransformer2DModel()
        controlnet = copy_blocks(transformer, num_layers=4, num_single_layers=10)
    assert (len(controlnet.transformer_blocks), len(controlnet.single_transformer_blocks)) == (4, 10)


def test_factors_must_come_after_the_copy() -> None:
    transformer = base()
    Lora(rank=2, targets=r"transformer_blocks\.\d+\.attn\.to_q").attach(transformer)
    with pytest.raises(KeyError, match=r"to_q\.weight"):
        copy_blocks(transformer, 1, 1)


@pytest.mark.parametrize(
    ("of_base", "copied"), [((19, 38), (5, 10)), ((2, 4), (1, 1)), ((1, 1), (1, 1)), ((5, 9), (2, 3))]
)
def test_one_block_is_copied_for_every_few_of_the_bases(of_base: tuple[int, int], copied: tuple[int, int]) -> None:
    with torch.device("meta"):
        architecture = configured("controlnet")(deep(*of_base))
    assert architecture.settings() == dict(zip(("num_layers", "num_single_layers"), copied, strict=True))


@pytest.mark.parametrize("layers", range(1, 8))
def test_a_number_is_admitted_if_all_copied_blocks_are_read(layers: int) -> None:
    for count in range(1, layers + 1):
        marks = [torch.full((1, 1, 8), float(2**i)) for i in range(count)]
        all_are_read = marks_read(layers, marks) == {float(2**i) for i in range(count)}
        assert admitted(layers, count) == all_are_read, f"{count} of {layers}"
    assert admitted(layers, 1)
    assert admitted(layers, layers)
    assert not admitted(layers, layers + 1)
    # Nothing would train the text half of the last double block.
    assert not admitted(layers, 0)


def test_another_number_is_refused_with_those_that_work() -> None:
    with pytest.raises(ValueError, match=r"arch\.num_single_layers=5 .* one of 1, 2, 3, 4, 7"):
        ControlNet(deep(1, 7), num_layers=1, num_single_layers=5)
    with pytest.raises(ValueError, match=r"arch\.blocks_per_copy=0"):
        ControlNet(deep(1, 1), blocks_per_copy=0)


def admitted(layers: int, count: int) -> bool:
    try:
        with torch.device("meta"):
            ControlNet(deep(1, layers), num_layers=1, num_single_layers=count)
    except ValueError:
        return False
    return True


@torch.no_grad()
def marks_read(layers: int, marks: list[torch.Tensor]) -> set[float]:
    """Return which of `marks` diffusers' transformer adds, if it is given them as a ControlNet's outputs."""

    class Passing(torch.nn.Module):
        def forward(self, hidden_states, encoder_hidden_states, **_):  # type: ignore[no-untyped-def]
            seen.append(float(hidden_states[0, 0, 0]))
            return encoder_hidden_states, torch.zeros_like(hidden_states)

    seen: list[float] = []
    transformer = deep(1, layers)
    transformer.single_transformer_blocks = torch.nn.ModuleList(Passing() for _ in range(layers))
    transformer.norm_out.register_forward_pre_hook(lambda _, inputs: seen.append(float(inputs[0][0, 0, 0])))
    transformer(
        torch.zeros(1, 1, 16),
        encoder_hidden_states=torch.zeros(1, 1, 8),
        pooled_projections=torch.zeros(1, 8),
        timestep=torch.zeros(1),
        img_ids=torch.zeros(1, 3),
        txt_ids=torch.zeros(1, 3),
        controlnet_single_block_samples=marks,
    )
    return set(seen[1:])
