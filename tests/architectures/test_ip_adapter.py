"""The IP-Adapter computes what diffusers does; its image encoder is in no checkpoint, whatever is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from hydra.errors import InstantiationException
from safetensors import safe_open
from support.commands import compose_train, tiny_miniature
from support.models.architecture_rows import BATCH, TIMES, base, condition_of, images, with_random_weights
from support.models.toy_models import image_encoder

from dsd_lightning.architectures.ip_adapter import EMBEDDING, IPAdapter, IPAdapterPlus
from dsd_lightning.checkpoints.adapter import AdapterMismatchError, load_adapter, save_adapter
from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.flux import tokens
from dsd_lightning.flux.base import PARTS
from dsd_lightning.flux.codec import Codec
from dsd_lightning.models.build import build_architecture
from dsd_lightning.pairs import Encoded
from dsd_lightning.randomness import normal
from dsd_lightning.training.run import train


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(AutoencoderKL.from_pretrained(Path(__file__).parents[2] / "assets" / "tiny-flux" / "vae"))


def xlabs(adapter: IPAdapter) -> dict[str, dict[str, torch.Tensor]]:
    """Return the trained weights as diffusers' loader receives XLabs' adapter."""
    projection = {
        name.replace("image_embeds", "proj"): value for name, value in adapter.image_projection.state_dict().items()
    }
    attention = {}
    for index, block in enumerate(adapter.transformer.transformer_blocks):
        for name, value in block.attn.processor.state_dict().items():
            attention[f"{index}.{name.replace('.0.', '.')}"] = value
    return {"image_proj": projection, "ip_adapter": attention}


@torch.no_grad()
def test_the_prediction_is_that_of_diffusers_with_the_same_adapter_loaded(codec: Codec) -> None:
    adapter = with_random_weights(IPAdapter(base(), image_encoder(), num_tokens=4))
    reference = adapter.encode_reference(images("reference"), codec)
    noisy = normal((BATCH, 6, 4, 4), "noise")
    condition = condition_of(Encoded(noisy, reference))
    stock: FluxTransformer2DModel = base()
    stock._load_ip_adapter_weights([xlabs(adapter)], low_cpu_mem_usage=False)
    expected = stock(
        hidden_states=tokens.pack(noisy),
        encoder_hidden_states=condition.text.sequence,
        pooled_projections=condition.text.pooled,
        timestep=TIMES,
        img_ids=tokens.image_ids(4, 4, device=noisy.device),
        txt_ids=torch.zeros(5, 3),
        guidance=condition.guidance,
        joint_attention_kwargs={"ip_adapter_image_embeds": [reference[EMBEDDING].unsqueeze(1)]},
        return_dict=False,
    )[0]
    torch.testing.assert_close(adapter(noisy, TIMES, condition), tokens.unpack(expected, 4, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [IPAdapter, IPAdapterPlus])
def test_the_image_encoder_is_frozen_and_in_no_adapter(kind: type[IPAdapter], tmp_path: Path) -> None:
    architecture = kind(base(), image_encoder())
    architecture.train()
    assert not architecture.image_encoder.tower.training
    assert not any(parameter.requires_grad for parameter in architecture.image_encoder.parameters())
    names = {name for name, _ in architecture.trainable()}
    assert {name.partition(".")[0] for name in names} == {"image_projection", "transformer"}
    assert all(".processor.to_" in name for name in names if name.startswith("transformer."))
    save_adapter(tmp_path, architecture)
    with safe_open(tmp_path / "adapter.safetensors", "pt") as file:
        assert set(file.keys()) == names


@pytest.mark.image_encoder
def test_a_runs_checkpoints_hold_no_weight_of_the_image_encoder(tiny_base: Path, tmp_path: Path) -> None:
    choices = [each for each in tiny_miniature(tiny_base, "callbacks=minimal", "logger=csv") if "lora" not in each]
    config = compose_train(tmp_path, *choices, "arch=ip_adapter_plus", "arch.depth=1", "trainer.max_steps=2")
    train(config, tmp_path)
    files = [file for file in (tmp_path / "checkpoints").rglob("*") if file.is_file()]
    assert any(file.name == "adapter.safetensors" for file in files)
    for file in files:
        assert b"image_encoder.tower" not in file.read_bytes(), file


def test_a_missing_image_encoder_is_told_before_the_transformer_is_loaded(tmp_path: Path) -> None:
    for part in PARTS:
        (tmp_path / part).mkdir()  # nothing in it: loading the transformer would fail
    choices = ["arch=ip_adapter", f"base.model.path={tmp_path}", "base.image_encoder.path=assets/nowhere"]
    with pytest.raises(InstantiationException) as refusal:
        build_architecture(compose_train(tmp_path / "run", *choices))
    message = message_for_user(refusal.value)
    assert message is not None
    assert message.startswith("base.image_encoder.path='assets/nowhere': no such folder")


def test_only_the_double_blocks_attend_to_the_image() -> None:
    architecture = IPAdapter(base(), image_encoder())
    kinds = {name: type(each).__name__ for name, each in architecture.transformer.attn_processors.items()}
    assert kinds == {
        "transformer_blocks.0.attn.processor": "FluxIPAdapterAttnProcessor",
        "single_transformer_blocks.0.attn.processor": "FluxAttnProcessor",
    }


def test_the_chosen_attention_kernel_is_kept() -> None:
    transformer = base()
    transformer.set_attention_backend("_native_math")
    architecture = IPAdapter(transformer, image_encoder())
    backends = {each._attention_backend for each in architecture.transformer.attn_processors.values()}
    assert {str(getattr(each, "value", each)) for each in backends} == {"_native_math"}


def test_encodings_and_weights_belong_to_one_image_encoder(codec: Codec, tmp_path: Path) -> None:
    mine, same, other = (IPAdapter(base(), image_encoder(seed)) for seed in (0, 0, 1))
    assert mine.encoding_key(codec) == same.encoding_key(codec) != other.encoding_key(codec)
    assert mine.encoding_key(codec) != IPAdapterPlus(base(), image_encoder()).encoding_key(codec)
    save_adapter(tmp_path, mine)
    load_adapter(tmp_path, same)
    load_adapter(tmp_path, IPAdapter(base(torch.bfloat16), image_encoder()))
    with pytest.raises(AdapterMismatchError, match=r"arch\.image_encoder\.fingerprint=.*use the image_encoder it was"):
        load_adapter(tmp_path, other)
    with pytest.raises(AdapterMismatchError, match=r"set arch\.num_tokens=4"):
        load_adapter(tmp_path, IPAdapter(base(), image_encoder(), num_tokens=5))
    with pytest.raises(AdapterMismatchError, match=r"set arch=ip_adapter,"):
        load_adapter(tmp_path, IPAdapterPlus(base(), image_encoder()))


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"arch\.num_tokens=0"):
        IPAdapter(base(), image_encoder(), num_tokens=0)
    with pytest.raises(ValueError, match=r"arch\.num_heads=5 must divide .* 32"):
        IPAdapterPlus(base(), image_encoder(), num_heads=5)
    with pytest.raises(ValueError, match=r"arch\.depth=0"):
        IPAdapterPlus(base(), image_encoder(), depth=0)
