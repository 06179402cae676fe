"""Image tokens and their position ids are laid out as FLUX's pipeline lays them out."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline

from dsd_lightning.flux.tokens import image_ids, pack, text_ids, unpack

SIZES = [(2, 2), (4, 8), (8, 16), (64, 128)]
CPU = torch.device("cpu")


def latents(height: int, width: int) -> torch.Tensor:
    return torch.arange(2 * 4 * height * width, dtype=torch.float32).reshape(2, 4, height, width)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_unpack_undoes_pack(height: int, width: int) -> None:
    assert torch.equal(unpack(pack(latents(height, width)), height, width), latents(height, width))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_packing_is_the_pipelines(height: int, width: int) -> None:
    packed = FluxPipeline._pack_latents(latents(height, width), 2, 4, height, width)
    assert torch.equal(pack(latents(height, width)), packed)
    assert torch.equal(unpack(packed, height, width), FluxPipeline._unpack_latents(packed, 8 * height, 8 * width, 8))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_ids_are_the_pipelines(height: int, width: int) -> None:
    expected = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, CPU, torch.float32)
    assert torch.equal(image_ids(height, width, device=CPU), expected)
    assert torch.equal(text_ids(7, device=CPU), torch.zeros(7, 3))


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 3)])
def test_odd_latents_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height} x {width}.*multiples of twice the VAE's downsampling"):
        pack(latents(height, width))
