"""Licences of models: by hub id, or by the front matter of the model card in a folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dsd_lightning.files.checkout import in_checkout

CARD = "README.md"
"""The model card."""

UNKNOWN = "unknown"

_DEV = "black-forest-labs/FLUX.1-dev"
_NON_COMMERCIAL = "flux-1-dev-non-commercial-license"
_APACHE: Mapping[str, str] = {"license": "apache-2.0"}
_STABILITY = "stabilityai/stable-diffusion-3.5"
_OF_HUB_IDS: Mapping[str, Mapping[str, str]] = {
    **{
        base: {
            "license": "other",
            "license_name": _NON_COMMERCIAL,
            "license_link": f"https://huggingface.co/{base}/blob/main/LICENSE.md",
        }
        for base in (_DEV, "black-forest-labs/FLUX.1-Krea-dev", "black-forest-labs/FLUX.1-Kontext-dev")
    },
    "black-forest-labs/FLUX.1-schnell": _APACHE,
    "black-forest-labs/FLUX.2-klein-4B": _APACHE,
    "Tongyi-MAI/Z-Image-Turbo": _APACHE,
    "Qwen/Qwen-Image": _APACHE,
    "stabilityai/stable-diffusion-xl-base-1.0": {"license": "openrail++"},
    **{
        f"{_STABILITY}-{size}": {
            "license": "other",
            "license_name": "stabilityai-ai-community",
            "license_link": f"https://huggingface.co/{_STABILITY}-{size}/blob/main/LICENSE.md",
        }
        for size in ("medium", "large", "large-turbo")
    },
}
"""As the cards on the hub state them."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Licence:
    """A model's name on the hub (None: not there) and the licence fields of a card, which bind what is made with it."""

    base_model: str | None
    fields: Mapping[str, str]

    @property
    def known(self) -> bool:
        """Whether the model says under which licence it may be used."""
        return self.fields["license"] != UNKNOWN


def licence_of_model(path: str, base_model: str | None = None) -> Licence:
    """Return a model's licence: by its hub id, or by the front matter of the README in its folder.

    Args:
        path: folder or hub id.
        base_model: its hub id, where the folder's name does not tell.

    Raises:
        ValueError: `base_model` is no hub id.
    """
    folder = Path(in_checkout(path))
    fields: dict[str, str] = {}
    if folder.is_dir():
        front = front_matter(folder / CARD)
        fields = {key: str(front[key]) for key in ("license", "license_name", "license_link") if key in front}
        if base_model is None and fields.get("license_name") == _NON_COMMERCIAL:
            base_model = _DEV
    else:
        base_model = base_model or path
    if base_model is not None and base_model in _OF_HUB_IDS:
        return Licence(base_model, _OF_HUB_IDS[base_model])
    if base_model is not None and not _HUB_ID.fullmatch(base_model):
        raise ValueError(f"--base-model={base_model!r} is no hub id (owner/name)")
    return Licence(base_model, fields if "license" in fields else {"license": UNKNOWN})


def front_matter(file: Path) -> dict[str, Any]:
    """Return the YAML between the first two lines `---` of a card; nothing where there is none."""
    text = file.read_text(errors="replace") if file.is_file() else ""
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    content = yaml.safe_load(match[1]) if match else {}
    return content if isinstance(content, dict) else {}
