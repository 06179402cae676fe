"""Latents are FLUX's, a pure function of the image, and only of images that can be packed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from dsd_lightning.flux.codec import Codec
from dsd_lightning.randomness import normal, torch_generator

SHIPPED = Path(__file__).parents[2] / "assets" / "tiny-flux" / "vae"


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(AutoencoderKL.from_pretrained(SHIPPED))


def small(**config: float) -> Codec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Codec(AutoencoderKL(block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4, **BLOCKS, **config))


BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
}


def images(count: int, height: int, width: int) -> torch.Tensor:
    return normal((count, 3, height, width), "images").clamp(-1, 1)


@torch.no_grad()
def test_normalisation_is_fluxes(codec: Codec) -> None:
    pixels, config = images(2, 64, 128), codec.vae.config
    posterior = codec.vae.encode(pixels).latent_dist
    expected = (posterior.mode() - config.shift_factor) * config.scaling_factor
    assert torch.equal(codec.encode(pixels), expected)
    assert codec.encode(pixels).shape == (2, codec.channels, 64 // codec.downsampling, 128 // codec.downsampling)
    drawn = codec.encode(pixels, sample=torch_generator("posterior"))
    expected = (posterior.sample(torch_generator("posterior")) - config.shift_factor) * config.scaling_factor
    assert torch.equal(drawn, expected)


@torch.no_grad()
def test_decoding_undoes_the_normalisation_and_clips() -> None:
    codec = small(scaling_factor=0.36, shift_factor=0.12)
    raw = 30 * normal((2, 4, 8, 8), "raw")
    pixels = codec.decode((raw - 0.12) * 0.36)
    torch.testing.assert_close(pixels, codec.vae.decode(raw).sample.clamp(-1, 1), atol=1e-4, rtol=0)
    assert pixels.abs().max() == 1


def test_a_vae_without_a_shift_factor_shifts_by_zero() -> None:
    # Stable Diffusion's say null.
    assert small(shift_factor=None).shift == 0.0


def test_a_canvas_is_not_its_frames_side_by_side(codec: Codec) -> None:
    # Why an architecture encodes its canvas whole: the encoder looks across the seam.
    left, right = images(2, 64, 64).split(1)
    whole = codec.encode(torch.cat([left, right], dim=-1))
    apart = torch.cat([codec.encode(left), codec.encode(right)], dim=-1)
    assert (whole - apart).abs().max() > 0.01


def test_memory_layout_does_not_matter(codec: Codec) -> None:
    pixels = images(1, 64, 64)
    assert torch.equal(codec.encode(pixels.to(memory_format=torch.channels_last)), codec.encode(pixels))


@pytest.mark.parametrize(("size", "nearest"), [((60, 64), "64 x 64"), ((64, 100), "64 x 96"), ((3, 5), "8 x 8")])
def test_sizes_that_cannot_be_packed_are_refused_naming_the_nearest(
    codec: Codec, size: tuple[int, int], nearest: str
) -> None:
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} .*multiples of 8 pixels.*nearest is {nearest}"):
        codec.encode(torch.zeros(1, 3, *size))


def test_nothing_is_trained() -> None:
    codec = small()
    assert not codec.vae.training
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert not codec.encode(images(1, 16, 16)).requires_grad


def test_fingerprint_tells_encoders_apart() -> None:
    codec, fingerprint = small(), small().fingerprint()
    assert codec.fingerprint() == fingerprint
    with torch.no_grad():
        codec.vae.decoder.conv_out.bias += 1
    assert codec.fingerprint() == fingerprint, "encodings do not depend on the decoder"
    with torch.no_grad():
        codec.vae.encoder.conv_out.bias[0] += 1e-3
    assert codec.fingerprint() != fingerprint
    assert small(scaling_factor=0.2).fingerprint() != fingerprint
    assert small(shift_factor=0.2).fingerprint() != fingerprint
