"""How the miniature's VAE is made: a small AutoencoderKL, trained on everything the tasks will show it.

FLUX's layout (no quant convolutions), with 4x downsampling and 6 latent channels instead of 8x and 16: packed 2 x 2, a token
is 8 x 8 pixels in 24 channels, which fit through the transformer's width. Batches are of one kind each: single images,
depth maps and relit scenes at 64 x 64, two-frame canvases at 64 x 128 (with a black right half too, since that is how a
condition is encoded), grids at 128 x 128. Held-out identities are never drawn.

The latents are held near a linear code of the image, the principal components of its patches (one patch a latent): a
transformer of this size learns in such latents several times sooner than in those that the reconstruction loss alone
finds.

    python -m dsd_lightning.pretraining.vae
    python -m dsd_lightning.pretraining.vae start_from=assets/tiny-flux/vae code_weight=0.2 seed=1 \
        work_dir=outputs/pretraining/vae_2

The second stretch holds the latents less tightly: canvases gain 1.9 dB, details that a linear code has no room for.
"""

from __future__ import annotations

import logging
from typing import Any, cast

import hydra
import lightning as L
import numpy as np
import torch
from diffusers import AutoencoderKL
from einops import rearrange
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import Dataset

from dsd_lightning.miniature.renderer import render
from dsd_lightning.miniature.world import Scene, change_context, draw_context, draw_identity
from dsd_lightning.pretraining.fitting import fit, scheduled
from dsd_lightning.randomness import numpy_generator

log = logging.getLogger(__name__)

PATCHES = "b c (h p) (w q) -> b h w (c p q)"


class ImageBatches(Dataset[Tensor]):
    """Whole batches by step number: [n, 3, h, w] in [-1, 1], each of `pixels` pixels in all."""

    def __init__(self, steps: int, pixels: int, seed: int) -> None:
        self.steps, self.pixels, self.seed = steps, pixels, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Tensor:
        rng = numpy_generator(self.seed, "vae", step)
        rows, columns = ((1, 1), (1, 1), (1, 2), (2, 2))[step % 4]
        count = self.pixels // (rows * columns * 64 * 64)
        batch = np.stack([self._image(rng, rows, columns) for _ in range(count)])
        return torch.from_numpy(batch * 2 - 1)

    def _image(self, rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
        identity, context = draw_identity(rng), draw_context(rng)
        contexts = [context] + [draw_context(rng) for _ in range(rows * columns - 1)]
        if rows * columns == 2 and rng.random() < 0.3:
            contexts[1] = change_context(context, "light_direction", rng)
        drawn = [render(Scene(identity, each)) for each in contexts]
        panels = [each.image for each in drawn]
        as_depth = rng.random() < (0.2 if rows == 1 else 0.0)
        if as_depth:
            panels[0] = drawn[0].depth_map
        if rows * columns == 2 and rng.random() < 0.4:
            panels[1] = np.zeros_like(panels[1])
        return rearrange(np.stack(panels), "(r c) h w d -> d (r h) (c w)", r=rows, c=columns)


class PatchCode(nn.Module):
    """The first principal components of square patches: what the latents are held near.

    Each is divided by the root of its deviation, and all by one factor, so that together they have deviation 1. Half-way
    between plain components (the fine ones drown in the noise) and white ones (noise and coarse structure weigh alike).
    """

    mean: Tensor
    components: Tensor

    def __init__(self, images: Float[Tensor, "b 3 h w"], channels: int, side: int) -> None:
        """Fit `channels` components to the patches, `side` pixels wide and high, of images in [-1, 1]."""
        super().__init__()
        self.side = side
        patches = rearrange(images, PATCHES, p=side, q=side).flatten(0, 2)
        mean = patches.mean(0)
        components = torch.linalg.eigh((patches - mean).T @ (patches - mean)).eigenvectors[:, -channels:].flip(1)
        # An eigenvector's sign is the solver's whim; the largest entry is made positive.
        components *= components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        components /= ((patches - mean) @ components).std(0).sqrt()
        self.register_buffer("mean", mean)
        self.register_buffer("components", components / ((patches - mean) @ components).std())

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Return the code of images in [-1, 1]; its height and width are theirs over the patch's side."""
        patches = rearrange(images, PATCHES, p=self.side, q=self.side)
        return rearrange((patches - self.mean) @ self.components, "b h w c -> b c h w")


class Autoencoding(L.LightningModule):
    """AutoencoderKL under an L1 loss on pixels and on their gradients, a slight KL term, and a pull towards a linear code."""

    def __init__(
        self,
        vae: AutoencoderKL,
        code: PatchCode,
        learning_rate: float,
        steps: int,
        warmup_steps: int,
        kl_weight: float,
        code_weight: float,
    ) -> None:
        super().__init__()
        self.vae, self.code = vae, code
        self.save_hyperparameters(ignore=["vae", "code"])

    def training_step(self, images: Tensor, _: int) -> Tensor:
        posterior = self.vae.encode(images).latent_dist
        code_error = (posterior.mean.float() - self.code(images).float()).square().mean()
        rebuilt = self.vae.decode(posterior.sample()).sample.float()
        error = rebuilt - images
        pixel = error.abs().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        psnr = -10 * torch.log10(error.detach().square().mean() / 4)
        self.log_dict({"pixel": pixel, "kl": divergence, "code": code_error, "psnr": psnr}, prog_bar=True)
        weights = self.hparams
        return pixel + 0.5 * edges + weights["kl_weight"] * divergence + weights["code_weight"] * code_error

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(
            self.vae.parameters(), lr=self.hparams["learning_rate"], betas=(0.9, 0.99), weight_decay=1e-4
        )
        return scheduled(optimizer, self.hparams)


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, images: Tensor) -> tuple[float, float]:
    """Return (shift_factor, scaling_factor) that bring the latents of `images` to mean 0 and deviation 1."""
    latents = vae.encode(images).latent_dist.mode()
    return float(latents.mean()), float(1 / latents.std())


@hydra.main(config_path="../../conf/pretraining", config_name="vae", version_base="1.3")
def main(config: DictConfig) -> None:
    """Train the VAE and save it in the diffusers layout; the same command goes on where it stopped."""
    L.seed_everything(config.seed)
    vae = AutoencoderKL(**cast(dict[str, Any], OmegaConf.to_container(config.model, resolve=True)))
    if config.start_from is not None:
        # Not the loaded model itself, whose configuration would keep the folder's path.
        started = AutoencoderKL.from_pretrained(config.start_from, torch_dtype=torch.float32)
        vae.load_state_dict(started.state_dict())
    batches = ImageBatches(config.steps, config.pixels_per_batch, config.seed)
    probe = ImageBatches(200, config.pixels_per_batch, config.seed + 1)
    images = torch.cat([probe[step] for step in range(0, len(probe), 4)])
    module = Autoencoding(
        vae.to(memory_format=torch.channels_last),
        PatchCode(images, vae.config.latent_channels, side=2 ** (len(vae.config.block_out_channels) - 1)),
        config.learning_rate,
        config.steps,
        config.warmup_steps,
        config.kl_weight,
        config.code_weight,
    )
    fit(module, batches, config)

    vae = vae.float().eval()
    shift, scale = measure_latents(vae, torch.cat([probe[0], probe[1]]))
    vae.register_to_config(shift_factor=round(shift, 4), scaling_factor=round(scale, 4))
    with torch.no_grad():
        for kind, step in (("images", 0), ("canvases", 2), ("grids", 3)):
            images = probe[step]
            error = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1) - images
            log.info("PSNR of %s: %.2f dB", kind, -10 * torch.log10(error.square().mean() / 4).item())
    vae.to(torch.float16).save_pretrained(config.output)
    log.info("saved %s (shift %.4f, scale %.4f)", config.output, shift, scale)


if __name__ == "__main__":
    main()
