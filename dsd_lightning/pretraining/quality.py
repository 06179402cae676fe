"""Measures a text-to-image base on the miniature world: attributes of single images, agreement of panels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from dsd_lightning.miniature.captions import full_caption, grid_caption, target_caption
from dsd_lightning.miniature.inverse import infer_identity, matching_attributes
from dsd_lightning.miniature.oracle import same_identity, see
from dsd_lightning.miniature.world import Identity, Scene, draw_context, draw_identity, share_light_and_style
from dsd_lightning.module import DiffusionSelfDistillation
from dsd_lightning.pairs import Condition
from dsd_lightning.randomness import numpy_generator
from dsd_lightning.sampler import sample

_VERDICTS = {"agree": "yes", "differ": "no", "ambiguous": "ambiguous"}


@torch.no_grad()
def generate(
    module: DiffusionSelfDistillation,
    prompts: Sequence[str],
    keys: Sequence[str],
    size: tuple[int, int],
    text_length: int | None = None,
    batch: int = 32,
) -> Float[Tensor, "b 3 h w"]:
    """Return images of `size` (height, width), pixels, that a text-to-image module generates, from noise keyed by `keys`."""
    generated = []
    for start in range(0, len(prompts), batch):
        some = slice(start, start + batch)
        text = module.text_encoder.encode(prompts[some], sequence_length=text_length)
        noise = module.frame_noise(module.frame_shape(*size), [("grids", key) for key in keys[some]])
        guidance = torch.full((len(noise),), module.sampler_settings.guidance_scale)
        canvas = sample(
            module.architecture,
            Condition(text, guidance),
            module.null_text(text),
            noise,
            module.sampler_settings,
            module.shift,
        )
        generated.append(module.codec.decode(canvas))
    return torch.cat(generated)


def attribute_accuracy(
    module: DiffusionSelfDistillation, count: int, seed: int, held_out: bool
) -> tuple[dict[str, float], Float[Tensor, "b 3 h w"]]:
    """Return the share of single images in which each attribute is as the caption says, and the images.

    An attribute is right when the true value's rendering is nearer to the image than that of any other value, all
    other attributes being as the caption says.
    """
    scenes, prompts = [], []
    for index in range(count):
        rng = numpy_generator(seed, "quality", held_out, index)
        scenes.append(Scene(draw_identity(rng, held_out=held_out), draw_context(rng)))
        prompts.append(full_caption(scenes[-1], rng))
    images = generate(module, prompts, [f"single-{held_out}-{i}" for i in range(count)], (64, 64))
    right = [matching_attributes(image.numpy(), scene) for image, scene in zip(images, scenes, strict=True)]
    return {name: float(np.mean([each[name] for each in right])) for name in right[0]}, images


def grid_consistency(
    module: DiffusionSelfDistillation, count: int, seed: int, names_subject: bool, text_length: int
) -> tuple[dict[str, float], Float[Tensor, "b 3 h w"]]:
    """Return how far grids show one character, and the grids.

    Every panel's identity is inferred from its pixels in the context that the prompt asked for. `consistent` is the share
    of grids whose four panels agree in all six attributes, `pairs` the share of agreeing pairs of panels, `as_named` the
    share of panels that show the named identity (with `names_subject`).
    """
    prompts, contexts, identities = [], [], []
    for index in range(count):
        rng = numpy_generator(seed, "grids", names_subject, index)
        identity, first = draw_identity(rng, held_out=False), draw_context(rng)
        panels = [first] + [share_light_and_style(draw_context(rng), first) for _ in range(3)]
        identities.append(identity)
        contexts.append(panels)
        prompts.append(grid_caption(identity if names_subject else None, panels, rng))
    grids = generate(
        module, prompts, [f"grid-{names_subject}-{i}" for i in range(count)], (128, 128), text_length, batch=16
    )
    consistent, pairs, as_named = [], [], []
    for grid, panels, identity in zip(grids, contexts, identities, strict=True):
        cut = rearrange(grid, "d (r h) (c w) -> (r c) d h w", r=2, c=2).numpy()
        inferred: list[Identity] = [infer_identity(panel, context) for panel, context in zip(cut, panels, strict=True)]
        consistent.append(len(set(inferred)) == 1)
        pairs += [inferred[i] == inferred[j] for i in range(4) for j in range(i)]
        as_named += [each == identity for each in inferred]
    metrics = {"consistent": float(np.mean(consistent)), "pairs": float(np.mean(pairs))}
    return metrics | ({"as_named": float(np.mean(as_named))} if names_subject else {}), grids


def panel_agreement(
    module: DiffusionSelfDistillation, count: int, seed: int, text_length: int | None = None
) -> tuple[dict[str, float], Float[Tensor, "b 3 h w"]]:
    """Return how often panels show one character that the caption does not name, and the images.

    Images of two panels under the captions of the identity task, which describe the right panel; with a `text_length`, 2 x 2
    grids under captions of that many T5 tokens. The oracle judges every panel by itself. `agree`, `differ` and `ambiguous`
    are shares of all pairs of panels within an image, and `agree_of_clear` that of the pairs that are not ambiguous.
    """
    rows = 1 if text_length is None else 2
    prompts = []
    for index in range(count):
        rng = numpy_generator(seed, "panels", rows, index)
        first = draw_context(rng)
        if rows == 1:
            prompts.append(target_caption(first, rng))
        else:
            panels = [first] + [share_light_and_style(draw_context(rng), first) for _ in range(3)]
            prompts.append(grid_caption(None, panels, rng))
    keys = [f"panels-{rows}-{i}" for i in range(count)]
    images = generate(module, prompts, keys, (64 * rows, 128), text_length, batch=16)
    verdicts: Counter[str] = Counter()
    for image in images:
        cut = rearrange((image + 1) / 2, "d (r h) (c w) -> (r c) h w d", h=64, w=64).numpy()
        verdicts.update(same_identity(one, other) for one, other in combinations([see(panel) for panel in cut], 2))
    pairs, clear = sum(verdicts.values()), verdicts["yes"] + verdicts["no"]
    shares = {name: verdicts[verdict] / pairs for name, verdict in _VERDICTS.items()}
    return shares | {"agree_of_clear": verdicts["yes"] / clear if clear else float("nan")}, images
