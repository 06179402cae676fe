"""The diffusers pipeline of any of our architectures: a reference image and a prompt in, images out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsd_lightning.architectures.base import Architecture
from dsd_lightning.compute.finite import require_finite
from dsd_lightning.flux import tokens
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.pairs import REFERENCE, TARGET, Condition, TextEmbeddings
from dsd_lightning.pipeline.denoising import SamplingCodec, TwoFrameOutput, as_output, run_sampler
from dsd_lightning.pipeline.inputs import (
    Generator,
    ImageInput,
    InputError,
    as_images,
    expand_text,
    given_text,
    repeated,
    strength_of_steps,
    to_pixels,
)
from dsd_lightning.pipeline.loaded import LoadedPipeline
from dsd_lightning.sampler import SamplerSettings

log = logging.getLogger(__name__)

FAR_BEYOND = 1.5
"""Ratio to the trained side beyond which images distort (512 pixels: from 768 on, as users of the release report)."""


class TwoFramePipeline(LoadedPipeline):
    """A trained architecture with its VAE, text encoders and schedule. Make one with `load` or `from_run`.

    Args:
        scheduler: holds the timestep shift; the steps are those of `dsd_lightning.sampler`.
        text_encoder, tokenizer: CLIP's. text_encoder_2, tokenizer_2: T5's.
        transformer: the architecture, complete.
        vae: FLUX's.
        text_length: T5 tokens a prompt in training.
        default_size: side of a frame in training, pixels.
        model_name: what is written into images' metadata.
        num_inference_steps, guidance_scale, image_guidance, text_guidance: of calls that do not say; those that the model's
            previews and metrics were made with.
    """

    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    _callback_tensor_inputs = ("latents",)

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder_2: PreTrainedModel,
        tokenizer_2: PreTrainedTokenizerBase,
        transformer: Architecture,
        text_length: int = 512,
        default_size: int = 512,
        model_name: str = "",
        num_inference_steps: int = 28,
        guidance_scale: float = 3.5,
        image_guidance: float = 1.0,
        text_guidance: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
        )
        # diffusers looks up a component's class in libraries it knows; ours is passed to it ready made.
        self.register_to_config(
            transformer=("diffusers", "ModelMixin"),
            text_length=text_length,
            default_size=default_size,
            model_name=model_name,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            image_guidance=image_guidance,
            text_guidance=text_guidance,
        )
        transformer.eval()
        self._interrupt = False
        self._text = TextEncoder(text_encoder, tokenizer, text_encoder_2, tokenizer_2, text_length)

    @property
    def codec(self) -> Codec:
        """Pixels to normalised latents and back."""
        return Codec(self.vae)

    def encode_prompt(self, prompts: Sequence[str]) -> TextEmbeddings:
        """Return the embeddings of prompts, on the device that computes."""
        return self._text.encode(prompts).to(self._execution_device)

    def frame_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Return (height, width) of a frame in pixels: what is given, or the size of training.

        Raises:
            ValueError: a size that cannot be packed.
        """
        size = (height or self.config.default_size, width or self.config.default_size)
        self.codec.require_size(*size)
        if max(size) > FAR_BEYOND * self.config.default_size:
            log.warning(
                "frames of %d x %d are far beyond the %d pixels of training: expect distortions; generate smaller and enlarge",
                *size,
                self.config.default_size,
            )
        return size

    def draw_latents(self, count: int, height: int | None, width: int | None, generator: Generator = None) -> Tensor:
        """Return packed noise for `count` whole canvases with frames of `height` x `width` pixels."""
        return tokens.pack(self._noise(count, *self.frame_size(height, width), generator))

    def _or_own(self, name: str, given: Any) -> Any:
        return self.config[name] if given is None else given

    def _canvas_shape(self, count: int, height: int, width: int) -> tuple[int, ...]:
        codec = self.codec
        frame = torch.empty(
            count, codec.channels, height // codec.downsampling, width // codec.downsampling, device="meta"
        )
        return tuple(self.transformer.join(dict.fromkeys(self.transformer.frames, frame)).shape)

    def _noise(self, count: int, height: int, width: int, generator: Generator) -> Tensor:
        device = self._execution_device
        return randn_tensor(self._canvas_shape(count, height, width), generator, device, self.vae.dtype)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageInput | Sequence[ImageInput] | None = None,
        prompt: str | Sequence[str] | None = None,
        *,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt: str | Sequence[str] = "",
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance: float | None = None,
        text_guidance: float | None = None,
        guidance_start: int = 2,
        height: int | None = None,
        width: int | None = None,
        latents: Tensor | None = None,
        generator: Generator = None,
        condition_sample: Literal["mode", "sample"] = "mode",
        output_type: Literal["pil", "np", "latent"] = "pil",
        num_images_per_prompt: int = 1,
        return_reference: bool = False,
        reference_strength: float | Sequence[tuple[int, int, float]] = 1.0,
        batch_passes: bool | None = None,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor]] | None = None,
        return_dict: bool = True,
    ) -> TwoFrameOutput | tuple[Any, ...]:
        """Generate images of the subject of an image, as a prompt describes.

        Images and prompts form a batch: equally many, or one of them for all of the others.

        Args:
            image: reference images; the middle is cropped to the frame's proportions.
            prompt: or `prompt_embeds` (T5's sequence [b, n, d]) with `pooled_prompt_embeds` (CLIP's [b, p]).
            negative_prompt: stands for "no text" under true guidance; likewise as embeddings.
            num_inference_steps: Euler steps; this and the guidances are the model's own if None.
            guidance_scale: value of the guidance embedding.
            image_guidance, text_guidance: true guidance by reference and text, 1.0 is none; each works alone. Text guidance
                costs a prediction more a guided step, image guidance two, both at one value one.
            guidance_start: index of the first step with true guidance.
            height, width: of one frame, pixels; those of training if None.
            latents: packed noise of the whole canvas, [b, tokens, d].
            generator: of the noise; on the CPU its draws are the same on every device. A list gives one an image.
            condition_sample: encode the reference as the VAE posterior's mode, or as a sample of it with `generator`
                before the noise (as the official code does with the global one).
            output_type: "latent" gives packed latents of the whole canvas.
            num_images_per_prompt: images for each image and prompt.
            return_reference: also return the reconstructed reference.
            reference_strength: of all steps, or as ranges (first step, step after the last, strength); at 0 the model sees
                no reference. It costs no prediction.
            batch_passes: whether a guided step's predictions are computed as one batch; None decides by their size.
            callback_on_step_end: called as diffusers does, with {"latents": packed canvas}; what it returns replaces them.

        Raises:
            InputError: what is given does not fit together.
            ValueError: a size that cannot be packed, or senseless sampler settings.
        NonFiniteError: the model predicts NaN or infinite values.
        """
        steps = self._or_own("num_inference_steps", num_inference_steps)
        guidance = self._or_own("guidance_scale", guidance_scale)
        by_image, by_text = (
            self._or_own("image_guidance", image_guidance),
            self._or_own("text_guidance", text_guidance),
        )
        if batch_passes is None and self.layer_by_layer:
            batch_passes = True  # so that the weights travel once a step
        settings = SamplerSettings(steps, guidance, by_image, by_text, guidance_start, batch_passes)
        if output_type not in ("pil", "np", "latent") or condition_sample not in ("mode", "sample"):
            raise InputError(f"output_type={output_type!r}, condition_sample={condition_sample!r}: see the call's help")
        strengths = strength_of_steps(reference_strength, steps)
        height, width = self.frame_size(height, width)
        references_given = as_images(image)
        text = given_text(prompt_embeds, pooled_prompt_embeds, "")
        if (text is None) == (prompt is None):
            raise InputError("give either a prompt, or prompt_embeds with pooled_prompt_embeds")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        count = max(len(references_given), len(prompts) if text is None else text.sequence.shape[0])
        total = count * num_images_per_prompt
        if total < 1 or (text is None and not prompts):
            raise InputError(
                f"nothing to generate: {len(prompts)} prompts, num_images_per_prompt={num_images_per_prompt}"
            )
        if isinstance(generator, list) and len(generator) != total:
            raise InputError(f"generator: a list of {len(generator)} for {total} images; give one an image")
        device, dtype = self._execution_device, self.vae.dtype

        text = expand_text(text or self.encode_prompt(prompts), count, num_images_per_prompt, "prompt").to(device)
        null = given_text(negative_prompt_embeds, negative_pooled_prompt_embeds, "negative_")
        if null is None and (by_image, by_text) != (1.0, 1.0):
            null = self.encode_prompt([negative_prompt] if isinstance(negative_prompt, str) else negative_prompt)
        null = text if null is None else expand_text(null.to(device), count, num_images_per_prompt, "negative_prompt")
        reference = self._encode_reference(
            repeated(references_given, count, num_images_per_prompt, "image") if references_given else [],
            (height, width),
            generator if condition_sample == "sample" else None,
            condition_sample == "sample",
        )
        shape = self._canvas_shape(total, height, width)
        if latents is None:
            noise = self._noise(total, height, width, generator)
        else:
            expected = (total, shape[2] * shape[3] // 4, shape[1] * 4)
            if tuple(latents.shape) != expected:
                raise InputError(
                    f"latents are {list(latents.shape)}; packed noise of these canvases is {list(expected)}"
                )
            noise = tokens.unpack(latents.to(device, dtype), *shape[2:])
        condition = Condition(text, torch.full((total,), guidance, device=device), reference)
        canvas = run_sampler(self, condition, null, noise, settings, strengths, callback_on_step_end)
        require_finite(
            {"latents": canvas},
            f"the images of {self.config.model_name or 'this model'}",
            "the weights are damaged or overflow in their dtype, or a guidance is far too large",
        )

        references: Any = None
        if output_type == "latent":
            images: Any = tokens.pack(canvas)
        else:
            frames = self.transformer.split(self.codec.decode(canvas))
            images = as_output(frames[TARGET], output_type)
            if return_reference and REFERENCE in frames:
                references = as_output(frames[REFERENCE], output_type)
        self.maybe_free_model_hooks()
        return TwoFrameOutput(images, references) if return_dict else (images, references)

    def _encode_reference(
        self, images: Sequence[ImageInput], size: tuple[int, int], generator: Generator, sampled: bool
    ) -> dict[str, Tensor]:
        codec: Codec = self.codec
        if sampled:
            codec = SamplingCodec(self.vae, torch.default_generator if generator is None else generator)
        pixels = torch.stack([to_pixels(image, *size) for image in images]) if images else None
        encoded = self.transformer.encode_reference(pixels, codec)
        return {name: value.to(self._execution_device) for name, value in encoded.items()}
