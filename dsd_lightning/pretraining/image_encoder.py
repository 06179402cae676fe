"""How the miniature's image encoder is made: a small CLIP vision tower that has learned to see every attribute.

It stands where CLIP or SigLIP stand for FLUX.1-dev: it knows what is in an image and has never seen a pair. Identity and
context are read off its pooled embedding and off its patch tokens by heads that are thrown away afterwards, so both
IP-Adapters find everything in it. Some images are depth maps, of which only the form is asked. Held-out identities are
never drawn.

    python -m dsd_lightning.pretraining.image_encoder output=assets/tiny-image-encoder
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import hydra
import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from dsd_lightning.files.atomic import partial_of, rename, write_json
from dsd_lightning.miniature.renderer import RESOLUTION, render
from dsd_lightning.miniature.world import Context, Identity, Scene, draw_context, draw_identity
from dsd_lightning.pretraining.fitting import fit, scheduled
from dsd_lightning.pretraining.text import AttributeReadout
from dsd_lightning.randomness import key_to_int, numpy_generator
from dsd_lightning.training.muon import MuonWithAdamW

log = logging.getLogger(__name__)

ATTRIBUTES: dict[str, tuple[str, ...]] = {**Identity.vocabulary, **Context.vocabulary}
"""What the heads are asked, by name; the identity's first."""

SIZES = [len(words) for words in ATTRIBUTES.values()]

SEEN_IN_DEPTH = ("shape", "accessory", "place", "size", "rotation")
"""Attributes that a depth map shows."""

IGNORED = -100
"""Label of an attribute that an image does not show."""


class LabelledImages(NamedTuple):
    """Images in [-1, 1] and the index of every attribute's value (`IGNORED` where it is not shown)."""

    pixels: Float[Tensor, "b 3 h w"]
    labels: Int[Tensor, "b attributes"]


def draw_images(
    rng: np.random.Generator, count: int, depth_share: float = 0.0, held_out: bool = False
) -> LabelledImages:
    """Return `count` images of training or held-out identities, `depth_share` of them as depth maps (near is bright)."""
    images, labels = [], []
    for _ in range(count):
        scene = Scene(draw_identity(rng, held_out=held_out), draw_context(rng))
        drawn, values = render(scene), [*scene.identity.values(), *scene.context.values()]
        image = drawn.image
        if rng.random() < depth_share:
            image = np.repeat(1 - drawn.depth[..., None], 3, axis=-1)
            values = [v if name in SEEN_IN_DEPTH else IGNORED for name, v in zip(ATTRIBUTES, values, strict=True)]
        images.append(image)
        labels.append(values)
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous() * 2 - 1
    return LabelledImages(pixels, torch.tensor(labels))


class ImageBatches(Dataset[LabelledImages]):
    """Whole batches by step number."""

    def __init__(self, steps: int, count: int, depth_share: float, seed: int) -> None:
        self.steps, self.count, self.depth_share, self.seed = steps, count, depth_share, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> LabelledImages:
        return draw_images(numpy_generator(self.seed, "image encoder", step), self.count, self.depth_share)


class Seeing(L.LightningModule):
    """A vision tower under cross-entropies: every attribute from the pooled embedding, and again from patch tokens.

    The pooled embedding is read by one linear layer; the tokens before the last layer (which IP-Adapter Plus resamples) by
    one attention query and one linear layer an attribute.
    """

    def __init__(
        self,
        tower: CLIPVisionModelWithProjection,
        learning_rate: float,
        muon_learning_rate: float,
        weight_decay: float,
        steps: int,
        warmup_steps: int,
        context_weight: float,
    ) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.hidden_size
        self.pooled_head = nn.Linear(tower.config.projection_dim, sum(SIZES))
        self.patch_norm, self.patch_head = nn.LayerNorm(width), AttributeReadout(width, SIZES)
        count = len(Identity.vocabulary)
        self.weights = [1.0] * count + [context_weight] * (len(SIZES) - count)
        self.save_hyperparameters(ignore=["tower"])

    def read(self, pixels: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b values"]]:
        """Return the logits of all attributes' values, side by side, from the pooled embedding and from the patches."""
        # The tower's preprocessing (`save`) leaves pixels in [-1, 1] as they are.
        seen = self.tower(pixel_values=pixels, output_hidden_states=True)
        tokens = self.patch_norm(seen.hidden_states[-2].float())
        everywhere = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return {"pooled": self.pooled_head(seen.image_embeds), "patches": self.patch_head(tokens, everywhere)}

    def training_step(self, batch: LabelledImages, _: int) -> Tensor:
        loss = torch.zeros((), device=self.device)
        for name, logits in self.read(batch.pixels).items():
            parts = logits.float().split(SIZES, -1)
            errors = [F.cross_entropy(part, batch.labels[:, i]) for i, part in enumerate(parts)]
            loss = loss + sum(weight * error for weight, error in zip(self.weights, errors, strict=True))
            worst = min(shares_right(logits, batch.labels)[each] for each in Identity.vocabulary)
            self.log(f"worst_{name}", worst, prog_bar=True, batch_size=len(batch.pixels))
        self.log("loss", loss.detach(), prog_bar=True, batch_size=len(batch.pixels))
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = MuonWithAdamW(
            self.named_parameters(),
            lr=self.hparams["learning_rate"],
            muon_lr=self.hparams["muon_learning_rate"],
            matrices=r"encoder\.layers\.\d+\.(self_attn|mlp)\.",
            weight_decay=self.hparams["weight_decay"],
        )
        return scheduled(optimizer, self.hparams)


def shares_right(logits: Float[Tensor, "b values"], labels: Int[Tensor, "b attributes"]) -> dict[str, float]:
    """Return the share of images whose value of each attribute has the largest logit."""
    shares = {}
    for index, (name, part) in enumerate(zip(ATTRIBUTES, logits.split(SIZES, -1), strict=True)):
        shown = labels[:, index] != IGNORED
        shares[name] = (part.argmax(-1) == labels[:, index])[shown].double().mean().item()
    return shares


@torch.no_grad()
def measure(module: Seeing, count: int, held_out: bool, seed: int) -> dict[str, dict[str, float]]:
    """Return, for the pooled embedding and the patches, the share of `count` new images with each attribute right."""
    rng = numpy_generator(seed, "image encoder", "measure", held_out)
    drawn = draw_images(rng, count, held_out=held_out)
    read = [module.read(some) for some in drawn.pixels.split(64)]
    return {
        name: shares_right(torch.cat([each[name] for each in read]), drawn.labels) for name in ("pooled", "patches")
    }


def save(output: Path, tower: CLIPVisionModelWithProjection, metrics: dict[str, Any]) -> None:
    """Write the tower in float16, its preprocessing and its metrics; the weights get their name last."""
    partial = partial_of(output)
    tower.to(torch.float16).save_pretrained(partial)
    CLIPImageProcessor(
        size={"height": RESOLUTION, "width": RESOLUTION},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    ).save_pretrained(partial)
    write_json(partial / "metrics.json", metrics)
    for file in _weights_last(partial.iterdir()):
        rename(file, output / file.name)
    partial.rmdir()


def _weights_last(files: Iterable[Path]) -> list[Path]:
    return sorted(files, key=lambda file: (file.suffix == ".safetensors", file.name))


@hydra.main(config_path="../../conf/pretraining", config_name="image_encoder", version_base="1.3")
def main(config: DictConfig) -> None:
    """Train the tower and save it in the transformers layout; the same command goes on where it stopped."""
    L.seed_everything(key_to_int(config.seed, "image encoder", "weights") % 2**32)
    settings = CLIPVisionConfig(**cast(dict[str, Any], OmegaConf.to_container(config.model, resolve=True)))
    # The fused kernel's backward pass is slow in bfloat16 on CPU.
    settings._attn_implementation = "eager"
    module = Seeing(
        CLIPVisionModelWithProjection(settings),
        config.learning_rate,
        config.muon_learning_rate,
        config.weight_decay,
        config.steps,
        config.warmup_steps,
        config.context_weight,
    )
    fit(module, ImageBatches(config.steps, config.batch_size, config.depth_share, config.seed), config)

    module = module.cpu().float().eval()
    metrics = {
        "held_out" if held_out else "training": measure(module, config.measured_images, held_out, config.seed)
        for held_out in (False, True)
    }
    for kind, shares in metrics["held_out"].items():
        for name, share in shares.items():
            log.info("%s told from %s, held-out identities: %.4f", name, kind, share)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    save(output, module.tower, metrics)
    log.info("saved %s", output)


if __name__ == "__main__":
    main()
