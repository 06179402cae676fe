"""Returns the few lines that load an export, for its model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsd_lightning.checkpoints.official import LORA_FILE

_ADAPTER = """
With dsd-lightning: `TwoFramePipeline.from_run("FOLDER")` or `python generate.py --run FOLDER` generates with it, and
`python train.py arch={architecture} init_from=FOLDER` trains on from it, with the settings in `adapter.json`.
"""

_OFFICIAL = """
The layout of primecai/dsd_model: give `FOLDER/transformer` and `FOLDER/{file}` to the official code
(`--model_path`, `--lora_path`), or to dsd-lightning as `init_from=FOLDER`. Plain diffusers silently drops `c_embedder` and
with it the reference.
"""

_COMFYUI = """
Put this folder in place as `ComfyUI/models/dsd_model` (custom node ComfyUI-DSD).
"""

_FACTORS = """
Put `{file}` into `ComfyUI/models/loras`, or, with diffusers: `FluxPipeline.from_pretrained(BASE).load_lora_weights(FOLDER)`.
"""

_TWO_FRAMES = """
```python
from diffusers import FluxControlPipeline
from PIL import Image

pipe = FluxControlPipeline.from_pretrained("FOLDER")
size = 512  # of a frame; the size it was trained at
canvas = Image.new("RGB", (2 * size, size), "black")
canvas.paste(reference.resize((size, size), Image.BICUBIC), (0, 0))
image = pipe("a prompt", control_image=canvas, height=size, width=2 * size, guidance_scale=3.5).images[0]
result = image.crop((size, 0, 2 * size, size))  # the left half reconstructs the reference
```
"""

_ONE_FRAME = """
```python
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("FOLDER")
```
"""

_TRANSFORMER = """
```python
from diffusers import {pipeline}, FluxTransformer2DModel

transformer = FluxTransformer2DModel.from_pretrained("FOLDER")
pipe = {pipeline}.from_pretrained("BASE", transformer=transformer)
```
"""


def usage_of(export_format: str, header: Mapping[str, Any], folder: Path, pipeline: str | None = None) -> str:
    """Return Markdown that says how to load what is in `folder` (`FOLDER` in it).

    Args:
        export_format: as `--format` has it.
        header: the adapter's.
        folder: the filled folder.
        pipeline: diffusers' class that computes the same, if there is one.
    """
    chosen = {
        "adapter": _ADAPTER,
        "official": _OFFICIAL,
        "comfyui": _COMFYUI if (folder / "transformer").is_dir() else _FACTORS,
        "diffusers": _TWO_FRAMES if len(header["frames"]) > 1 else _ONE_FRAME,
        "transformer": _TRANSFORMER,
    }[export_format]
    return chosen.format(architecture=header["architecture"], file=LORA_FILE, pipeline=pipeline)
