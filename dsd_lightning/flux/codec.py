"""Pixels to normalised latents and back, through FLUX's VAE."""

from __future__ import annotations

import hashlib
import json

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.flux.placement import Parkable, execution_device


class Codec(Parkable):
    """A frozen AutoencoderKL with FLUX's normalisation `(z - shift_factor) * scaling_factor`.

    Encoding takes the posterior's mode, so that encodings are a pure function of the image and may be cached; the
    official inference code samples it instead (see docs/architecture.md).
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae.eval().requires_grad_(False)
        self.shift = float(vae.config.shift_factor or 0.0)
        self.scale = float(vae.config.scaling_factor)

    @property
    def downsampling(self) -> int:
        """Pixels a latent spans on a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    def require_size(self, height: int, width: int) -> None:
        """Refuse an image size that latents packed 2 x 2 cannot carry.

        Raises:
            ValueError: naming the size and the nearest sizes that work.
        """
        unit = 2 * self.downsampling
        if height % unit or width % unit or height <= 0 or width <= 0:
            near = [max(unit, round(side / unit) * unit) for side in (height, width)]
            raise ValueError(
                f"resolution {height} x {width} cannot be packed: both sides must be multiples of {unit} pixels "
                f"(VAE downsampling {self.downsampling} times 2); nearest is {near[0]} x {near[1]}"
            )

    def fingerprint(self) -> str:
        """Return a short hash of the encoder's weights and normalisation: caches of another VAE are stale."""
        digest = hashlib.sha256(json.dumps([self.shift, self.scale]).encode())
        for name, tensor in sorted(self.vae.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(
        self, pixels: Float[Tensor, "b 3 h w"], *, sample: torch.Generator | list[torch.Generator] | None = None
    ) -> Float[Tensor, "b c lh lw"]:
        """Return normalised latents; of the posterior's mode, or a draw from it with the generator(s) `sample`."""
        self.require_size(*pixels.shape[-2:])
        dtype = next(self.vae.parameters()).dtype
        with self.at_work():
            # On CPU a channels_last input meets an inaccurate GroupNorm (1e-2 off): keep it contiguous.
            posterior = self.vae.encode(pixels.to(execution_device(self.vae), dtype).contiguous()).latent_dist
        latents = posterior.mode() if sample is None else posterior.sample(sample)
        # Under autocast the encoder answers in its lower precision.
        return (latents.to(dtype) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Return pixels, clipped to [-1, 1], float32."""
        dtype = next(self.vae.parameters()).dtype
        with self.at_work():
            raw = latents.to(execution_device(self.vae), dtype) / self.scale + self.shift
            return self.vae.decode(raw.contiguous()).sample.float().clamp(-1, 1)
