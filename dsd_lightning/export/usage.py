"""Returns the lines that load an export, for its model card: with this project, with stock diffusers, in ComfyUI.

The code runs as written beside the exported folder, with an image `reference.png` there.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass

from dsd_lightning.checkpoints.official import LORA_FILE
from dsd_lightning.export.stock import ExportError
from dsd_lightning.models.generation_settings import GenerationSettings

COMFYUI_TEXT_LENGTH = 512
"""T5 tokens that ComfyUI's nodes, and the official code, always take."""

_PROMPT = "this character, reading a book at the beach"


@dataclass(frozen=True)
class Use:
    """What the lines depend on.

    Attributes:
        export_format: as `--format` has it.
        folder: name of the exported folder.
        base: the base's hub id, or its folder.
        settings: what the model was trained and previewed with.
        frames: names of the architecture's frames.
        architecture: its name.
        pipeline: diffusers' class that computes the same, if there is one.
        factors_alone: of `comfyui`: whether it is a LoRA file for plain FLUX rather than a folder for ComfyUI-DSD.
    """

    export_format: str
    folder: str
    base: str
    settings: GenerationSettings
    frames: tuple[str, ...]
    architecture: str
    pipeline: str | None = None
    factors_alone: bool = False

    def __post_init__(self) -> None:
        for name in (self.folder, self.base):
            if not name.isprintable():
                raise ExportError(
                    f"{name!r} cannot stand in a model card: it holds a control character; choose another name"
                )


def usage_of(use: Use) -> str:
    """Return Markdown that says how to generate with an export."""
    if use.export_format == "adapter":
        return "\n".join(
            [*_ours(use, f"--run {shlex.quote(use.folder)}", f"from_run({_code(use.folder)})"), *_train_on(use)]
        )
    if use.export_format in ("official", "comfyui") and not use.factors_alone:
        flags = f"--model_path {shlex.quote(use.folder)} --base_path {shlex.quote(use.base)}"
        lines = _ours(use, flags, f"load(base={_code(use.base)}, transformer={_code(use.folder)})")
        return "\n".join([*lines, *_official(use), *_comfyui(use)])
    if use.factors_alone:
        return "\n".join([*_stock_factors(use), *_comfyui_factors(use)])
    return "\n".join(_stock(use))


def warnings_of(use: Use) -> list[str]:
    """Return what the readers of a format cannot know, for the command and the card."""
    if use.export_format not in ("official", "comfyui") or use.settings.text_length == COMFYUI_TEXT_LENGTH:
        return []
    return [
        f"It was trained on {use.settings.text_length} T5 tokens a prompt, but ComfyUI and the official code always take "
        f"{COMFYUI_TEXT_LENGTH}: results there differ. dsd-lightning reads the length from generation.json."
    ]


def _code(text: str) -> str:
    """Return a name as a string literal of Python, which ends nowhere but at its end."""
    return json.dumps(text, ensure_ascii=False)


def _ours(use: Use, flags: str, loader: str) -> list[str]:
    image = "" if use.architecture == "text_only" else 'Image.open("reference.png"), '
    return [
        "With [dsd-lightning](https://arxiv.org/abs/2411.18616), which reads size, steps and guidance from this folder:",
        "",
        "```bash",
        f'python generate.py {flags} --image_path reference.png --text "{_PROMPT}"',
        "```",
        "",
        "```python",
        "from dsd_lightning.pipeline import TwoFramePipeline",
        *(["from PIL import Image"] if image else []),
        "",
        f"pipe = TwoFramePipeline.{loader}",
        f'image = pipe({image}prompt="{_PROMPT}").images[0]',
        "```",
        "",
    ]


def _train_on(use: Use) -> list[str]:
    return [
        f"`python train.py arch={use.architecture} init_from={use.folder}` trains on from it, with the settings in "
        "`adapter.json`.",
    ]


def _official(use: Use) -> list[str]:
    return [
        f"The layout is that of primecai/dsd_model: the official code takes `{use.folder}/transformer` as `--model_path` and "
        f"`{use.folder}/{LORA_FILE}` as `--lora_path`, and `init_from={use.folder}` trains on from it. Plain diffusers "
        "silently drops `c_embedder`, and with it the reference.",
        "",
    ]


def _comfyui(use: Use) -> list[str]:
    chosen = use.settings
    return [
        f"In ComfyUI, with the custom node ComfyUI-DSD: put this folder in place as `ComfyUI/models/dsd_model`. Its generator "
        f"takes steps {chosen.num_inference_steps}, guidance {chosen.guidance_scale:g}, image guidance "
        f"{chosen.image_guidance:g}, text guidance {chosen.text_guidance:g}, width {2 * chosen.width} (both frames) and height "
        f"{chosen.height}.",
    ]


def _comfyui_factors(use: Use) -> list[str]:
    return [
        "",
        f"In ComfyUI: put `{LORA_FILE}` into `ComfyUI/models/loras`, and load it over the base with a LoRA loader.",
    ]


def _call(use: Use) -> list[str]:
    """Return the arguments of a stock pipeline's call."""
    chosen = use.settings
    width = chosen.width * len(use.frames)
    return [
        f"    height={chosen.height},",
        f"    width={width},",
        f"    num_inference_steps={chosen.num_inference_steps},",
        f"    guidance_scale={chosen.guidance_scale:g},",
        f"    max_sequence_length={chosen.text_length},",
    ]


def _stock_factors(use: Use) -> list[str]:
    return [
        "With stock diffusers:",
        "",
        "```python",
        "from diffusers import FluxPipeline",
        "",
        f"pipe = FluxPipeline.from_pretrained({_code(use.base)})",
        f'pipe.load_lora_weights({_code(use.folder)}, weight_name="{LORA_FILE}")',
        "image = pipe(",
        f'    "{_PROMPT}",',
        *_call(use),
        ").images[0]",
        "```",
    ]


def _stock(use: Use) -> list[str]:
    two_frames, has_reference = len(use.frames) > 1, use.pipeline != "FluxPipeline"
    imports = [use.pipeline or "", *(["FluxTransformer2DModel"] if use.export_format == "transformer" else [])]
    lines = [
        f"With stock diffusers, as a `{use.pipeline}`:",
        "",
        "```python",
        f"from diffusers import {', '.join(imports)}",
    ]
    lines += ["from PIL import Image", ""] if has_reference else [""]
    if use.export_format == "transformer":
        lines += [
            f"transformer = FluxTransformer2DModel.from_pretrained({_code(use.folder)})",
            f"pipe = {use.pipeline}.from_pretrained({_code(use.base)}, transformer=transformer)",
        ]
    else:
        lines += [f"pipe = {use.pipeline}.from_pretrained({_code(use.folder)})"]
    size = f"({use.settings.width}, {use.settings.height})"
    if has_reference:
        lines += [f'reference = Image.open("reference.png").convert("RGB").resize({size}, Image.Resampling.BICUBIC)']
    if two_frames:
        lines += [
            f'canvas = Image.new("RGB", ({2 * use.settings.width}, {use.settings.height}), "black")',
            "canvas.paste(reference, (0, 0))",
        ]
    given = {
        "FluxControlPipeline": f"    control_image={'canvas' if two_frames else 'reference'},",
        "FluxKontextPipeline": f"    image=reference,\n    max_area={use.settings.width * use.settings.height},\n"
        "    _auto_resize=False,",
    }.get(use.pipeline or "")
    lines += ["image = pipe(", f'    prompt="{_PROMPT}",', *([given] if given else []), *_call(use), ").images[0]"]
    if two_frames:
        crop = f"({use.settings.width}, 0, {2 * use.settings.width}, {use.settings.height})"
        lines += [f"result = image.crop({crop})  # the left half reconstructs the reference"]
    lines += ["```"]
    if use.settings.image_guidance != 1 or use.settings.text_guidance != 1:
        lines += [
            "",
            "It computes without the true guidance by reference and text that the metrics were measured with; "
            "`generate.py` on an adapter of the same run has it.",
        ]
    return lines
