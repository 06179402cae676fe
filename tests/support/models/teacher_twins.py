"""Text-to-image pipelines of several families with a few random weights, as diffusers saves and opens them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

_WIDTH = 32
_BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def _clip(tokenizer: Any, kind: Any) -> Any:
    return kind(
        CLIPTextConfig(
            hidden_size=_WIDTH,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            projection_dim=_WIDTH,
            vocab_size=len(tokenizer),
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(32, 64), latent_channels=channels, shift_factor=0.0, **_BLOCKS)


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer of single bytes, which needs no merges."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(vocab={name: number for number, name in enumerate(names)}, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = _CHAT
    return tokenizer


def _qwen_text(tokenizer: Qwen2Tokenizer, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 37,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
    }


def _sdxl(clip_folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(clip_folder, subfolder="tokenizer")
    return StableDiffusionXLPipeline(
        vae=_vae(4),
        text_encoder=_clip(tokenizer, CLIPTextModel),
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 1),
            projection_class_embeddings_input_dim=80,
            cross_attention_dim=64,
        ),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def _sd3(clip_folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(clip_folder, subfolder="tokenizer")
    longer = AutoTokenizer.from_pretrained(clip_folder, subfolder="tokenizer_2")
    words = T5Config(vocab_size=len(longer), d_model=2 * _WIDTH, d_ff=37, d_kv=8, num_heads=4, num_layers=1)
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=32,
            patch_size=1,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=2 * _WIDTH,
            caption_projection_dim=_WIDTH,
            pooled_projection_dim=2 * _WIDTH,
            out_channels=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(4),
        text_encoder=_clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        text_encoder_2=_clip(tokenizer, CLIPTextModelWithProjection),
        tokenizer_2=tokenizer,
        text_encoder_3=T5EncoderModel(words),
        tokenizer_3=longer,
    )


def _flux2_klein(clip_folder: Path) -> Any:
    tokenizer = _qwen_tokenizer()
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLFlux2(block_out_channels=(32, 32), latent_channels=4, layers_per_block=1, **_BLOCKS),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_qwen_text(tokenizer, layers=28))),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * _WIDTH,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        is_distilled=True,
    )


def _z_image(clip_folder: Path) -> Any:
    tokenizer = _qwen_tokenizer()
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(16),
        text_encoder=Qwen3ForCausalLM(Qwen3Config(**_qwen_text(tokenizer, layers=2))),
        tokenizer=tokenizer,
        transformer=ZImageTransformer2DModel(
            in_channels=16,
            dim=_WIDTH,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=_WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        ),
    )


def _qwen_image(clip_folder: Path) -> Any:
    tokenizer = _qwen_tokenizer()
    text = {**_qwen_text(tokenizer, layers=2), "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    text.pop("head_dim")
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": _WIDTH}
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLQwenImage(
            base_dim=16, z_dim=16, dim_mult=[1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True]
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=_WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
    )


TWINS: dict[str, Callable[[Path], Any]] = {
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux2_klein": _flux2_klein,
    "z_image": _z_image,
    "qwen_image": _qwen_image,
}


def write_twin(family: str, folder: Path, clip_folder: Path) -> Path:
    """Write the pipeline of a family with a few random weights.

    Args:
        family: one of `TWINS`.
        folder: where it goes.
        clip_folder: a model whose CLIP tokenizer is used where the family has one.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        TWINS[family](clip_folder).save_pretrained(folder)
    return folder
