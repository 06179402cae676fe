"""How the miniature's tokenizers and text encoders are made: small CLIP and T5, trained to understand captions.

Both learn to tell every attribute that a caption states. T5 also learns to restore hidden words and to tell which panel
of a grid each word belongs to, because FLUX reads its states word by word and gives them no positions of its own.
Held-out identities are never drawn. The word-level tokenizer drops the words that carry no information in this world.

    python -m dsd_lightning.pretraining.text output=assets/tiny-flux
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import hydra
import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from dsd_lightning.files.atomic import replacing, replacing_folder, write_json
from dsd_lightning.files.folders import write_tensors
from dsd_lightning.pretraining.fitting import warmed_up_cosine
from dsd_lightning.pretraining.labelled_captions import (
    ATTRIBUTES,
    IGNORED,
    KINDS,
    PANEL_ATTRIBUTES,
    PANELS,
    draw_caption,
)
from dsd_lightning.pretraining.tokenizers import count_words, make_clip_tokenizer, make_word_tokenizer
from dsd_lightning.randomness import key_to_int, numpy_generator, torch_generator

log = logging.getLogger(__name__)


class AttributeReadout(nn.Module):
    """One attention query and one linear layer an attribute, as a transformer that attends to the words would read."""

    def __init__(self, width: int, sizes: list[int]) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(len(sizes), width))
        self.layers = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, states: Tensor, member: Tensor) -> Tensor:
        """Return logits [..., sum(sizes)] from states [..., length, width], of the words in `member` [..., length]."""
        scores = (self.queries @ states.mT).masked_fill(~member[..., None, :], -1e4)
        pooled = scores.softmax(-1) @ states
        return torch.cat([layer(part) for layer, part in zip(self.layers, pooled.unbind(-2), strict=True)], -1)


class CaptionReader(nn.Module):
    """Both encoders with the heads that train them; the heads are thrown away afterwards."""

    def __init__(self, clip: CLIPTextModel, t5: T5EncoderModel, separator: int) -> None:
        super().__init__()
        self.clip, self.t5, self.separator = clip, t5, separator
        self.sizes = [len(values) + 1 for values in ATTRIBUTES.values()]
        self.panel_sizes = [len(ATTRIBUTES[name]) + 1 for name in PANEL_ATTRIBUTES]
        clip_width, t5_width = clip.config.hidden_size, t5.config.d_model
        self.clip_scene = nn.Linear(clip_width, sum(self.sizes))
        self.clip_panels = nn.Linear(clip_width, (PANELS - 1) * sum(self.panel_sizes))
        self.t5_scene = AttributeReadout(t5_width, self.sizes)
        self.t5_panel = AttributeReadout(t5_width, self.panel_sizes)
        self.t5_segment = nn.Linear(t5_width, PANELS + 1)
        self.t5_word = nn.Linear(t5_width, t5.config.vocab_size)
        # Fixed gains keep the outputs at unit variance, whatever the heads would like.
        for parameter in (*clip.final_layer_norm.parameters(), *t5.encoder.final_layer_norm.parameters()):
            parameter.requires_grad_(False)

    def read_clip(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [batch, classes] of the scene and [batch, 3, classes] of the panels that always fit in 77."""
        pooled = self.clip(input_ids=ids).pooler_output
        return self.clip_scene(pooled), self.clip_panels(pooled).unflatten(-1, (PANELS - 1, -1))

    def read_t5(self, ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return T5's states [batch, length, width], its words' segments, and logits of the scene and of the panels."""
        states = self.t5(input_ids=ids).last_hidden_state
        segments = (ids == self.separator).cumsum(-1).clamp(max=PANELS).masked_fill(ids == 0, IGNORED)
        panels = torch.stack([segments == index for index in range(1, PANELS + 1)], 1)
        return states, segments, self.t5_scene(states, segments == 0), self.t5_panel(states[:, None], panels)


def _cross_entropy(logits: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    """Return the mean over attributes of the cross-entropy; logits [..., sum(sizes)], labels [..., len(sizes)]."""
    total = logits.new_zeros(())
    for part, label in zip(logits.split(sizes, -1), labels.unbind(-1), strict=True):
        if bool((label != IGNORED).any()):
            total = total + F.cross_entropy(part.flatten(0, -2), label.flatten(), ignore_index=IGNORED)
    return total / len(sizes)


def _add_noise_words(text: str, words: list[str], rng: np.random.Generator) -> str:
    parts = text.split(" ")
    for _ in range(int(rng.integers(1, 3))):
        parts.insert(int(rng.integers(0, len(parts) + 1)), words[int(rng.integers(0, len(words)))])
    return " ".join(parts)


def _loss(
    reader: CaptionReader,
    tokens: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    config: DictConfig,
    noise: list[str],
    step: int,
) -> Tensor:
    """Return the loss of both encoders on the captions of one step."""
    rng = numpy_generator(config.seed, "text", "captions", step)
    kinds = (("full",), ("target",), ("instruction", "relighting", "target"), ("grid",))[step % 4]
    drawn = [draw_caption(kinds[i % len(kinds)], rng) for i in range(config.batch_size)]
    texts = [_add_noise_words(d.text, noise, rng) if rng.random() < config.noise_share else d.text for d in drawn]
    device = reader.t5_word.weight.device
    labels = torch.tensor([d.labels() for d in drawn], device=device)
    panels = torch.tensor([d.panel_labels() for d in drawn], device=device)

    clip_ids = tokens[0](texts, padding=True, truncation=True, return_tensors="pt").input_ids.to(device)
    scene, rows = reader.read_clip(clip_ids)
    loss = _cross_entropy(scene, labels, reader.sizes)
    loss = loss + 0.3 * _cross_entropy(rows, panels[:, :-1], reader.panel_sizes)

    longest = max(len(ids) for ids in tokens[1](texts).input_ids)
    lengths = [length for length in config.padded_lengths if length >= longest] or [longest]
    ids = tokens[1](
        texts, padding="max_length", max_length=lengths[int(rng.integers(0, len(lengths)))], return_tensors="pt"
    ).input_ids
    # The first half has hidden words to restore; the second half, whole, is asked for what it says.
    half = len(drawn) // 2
    chance = torch.rand(ids.shape, generator=torch_generator(config.seed, "text", "masks", step))
    hidden = (chance < config.masked_share) & (ids > 1)
    hidden[half:] = False
    words = torch.where(ids == 0, IGNORED, ids)
    words[:half] = torch.where(hidden[:half], ids[:half], IGNORED)
    states, segments, scene, rows = reader.read_t5(ids.masked_fill(hidden, 2).to(device))
    asked = (words != IGNORED).to(device)
    loss = loss + F.cross_entropy(reader.t5_word(states[asked]), words.to(device)[asked])
    loss = loss + F.cross_entropy(reader.t5_segment(states[half:]).flatten(0, 1), segments[half:].flatten())
    loss = loss + _cross_entropy(scene[half:], labels[half:], reader.sizes)
    return loss + _cross_entropy(rows[half:], panels[half:], reader.panel_sizes)


@torch.no_grad()
def measure(
    reader: CaptionReader,
    tokens: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    count: int,
    held_out: bool,
    padded_length: int,
    seed: int,
) -> dict[str, float]:
    """Return the share of attributes that each encoder tells rightly, over `count` new captions of each kind.

    Keys are `clip/full`, `t5/full` and so on; `t5/grid_panels` and `clip/grid_panels` are the attributes of the panels.
    """
    shares: dict[str, float] = {}
    device = reader.t5_word.weight.device

    def share_right(logits: Tensor, labels: Tensor, sizes: list[int]) -> float:
        best = torch.stack([part.argmax(-1) for part in logits.split(sizes, -1)], -1)
        return (best == labels)[labels != IGNORED].double().mean().item()

    for kind in KINDS:
        rng = numpy_generator(seed, "text", "measure", kind, held_out)
        drawn = [draw_caption(kind, rng, held_out) for _ in range(count)]
        texts = [each.text for each in drawn]
        labels = torch.tensor([each.labels() for each in drawn], device=device)
        panels = torch.tensor([each.panel_labels() for each in drawn], device=device)
        clip_ids = tokens[0](texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        t5_ids = tokens[1](texts, padding="max_length", max_length=padded_length, return_tensors="pt").input_ids
        clip_scene, clip_panels = reader.read_clip(clip_ids.to(device))
        _, _, t5_scene, t5_panels = reader.read_t5(t5_ids.to(device))
        shares[f"clip/{kind}"] = share_right(clip_scene, labels, reader.sizes)
        shares[f"t5/{kind}"] = share_right(t5_scene, labels, reader.sizes)
        if kind == "grid":
            shares["clip/grid_panels"] = share_right(clip_panels, panels[:, :-1], reader.panel_sizes)
            shares["t5/grid_panels"] = share_right(t5_panels, panels, reader.panel_sizes)
    return shares


CLIP_WEIGHTS, PREFIX = "model.safetensors", "text_model."
"""Name of CLIP's weights in its folder, and how their keys begin."""


def save(
    output: Path, reader: CaptionReader, clip_tokenizer: CLIPTokenizer, t5_tokenizer: PreTrainedTokenizerFast
) -> None:
    """Write the four folders of the diffusers layout into `output`; each is replaced when it is complete."""
    for tokenizer in (clip_tokenizer, t5_tokenizer):
        tokenizer.backend_tokenizer.no_padding()  # else the file would keep that of the last batch
        tokenizer.backend_tokenizer.no_truncation()
    with replacing_folder(output / "tokenizer") as folder:
        clip_tokenizer.save_pretrained(folder)
        clip_tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt, as FLUX has them
    with replacing_folder(output / "tokenizer_2") as folder:
        t5_tokenizer.save_pretrained(folder)
    with replacing_folder(output / "text_encoder") as folder:
        reader.clip.save_pretrained(folder)
        write_published_keys(folder / CLIP_WEIGHTS)
    with replacing_folder(output / "text_encoder_2") as folder:
        reader.t5.save_pretrained(folder)


def write_published_keys(file: Path) -> None:
    """Rename the keys of CLIP's weights in `file` to those of published checkpoints, `text_model.*`; values stay as they are.

    transformers 5 reads both and writes them without the prefix, which its versions before 5 (4.48) cannot read.
    """
    with replacing(file) as partial:
        weights = {f"{PREFIX}{name.removeprefix(PREFIX)}": value for name, value in load_file(file).items()}
        write_tensors(partial, weights, {"format": "pt"})


@hydra.main(config_path="../../conf/pretraining", config_name="text", version_base="1.3")
def main(config: DictConfig) -> None:
    """Build both tokenizers, train both encoders and save all four in the diffusers layout."""
    torch.manual_seed(key_to_int(config.seed, "text", "weights"))
    extra_words = config.extra_words.split()
    counts = count_words(extra_words, config.seed)
    clip_tokenizer, t5_tokenizer = make_clip_tokenizer(counts), make_word_tokenizer(counts, config.max_words)
    log.info("CLIP: %d pieces, T5: %d words", len(clip_tokenizer), len(t5_tokenizer))
    clip_config = CLIPTextConfig(
        **cast(dict[str, Any], OmegaConf.to_container(config.clip)),
        vocab_size=len(clip_tokenizer),
        bos_token_id=clip_tokenizer.bos_token_id,
        eos_token_id=clip_tokenizer.eos_token_id,
        pad_token_id=clip_tokenizer.pad_token_id,
    )
    t5_config = T5Config(
        **cast(dict[str, Any], OmegaConf.to_container(config.t5)),
        vocab_size=len(t5_tokenizer),
        pad_token_id=t5_tokenizer.pad_token_id,
        eos_token_id=t5_tokenizer.eos_token_id,
        is_encoder_decoder=False,
        use_cache=False,
    )
    reader = CaptionReader(
        CLIPTextModel(clip_config), T5EncoderModel(t5_config), t5_tokenizer.convert_tokens_to_ids(";")
    ).to(config.device)
    tokens = (clip_tokenizer, t5_tokenizer)
    noise = [word for word in extra_words if word in t5_tokenizer.get_vocab()]
    optimizer = torch.optim.AdamW(
        [parameter for parameter in reader.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        fused=True,
        weight_decay=config.weight_decay,
    )
    schedule = warmed_up_cosine(optimizer, config.learning_rate, config.steps, config.warmup_steps)
    for step in range(config.steps):
        loss = _loss(reader, tokens, config, noise, step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 4 == step // 200 % 4 and step % 200 < 4:
            log.info("step %d, loss %.4f on %s captions", step, loss.item(), KINDS[(0, 1, 2, 4)[step % 4]])

    reader.eval()
    output, work = Path(config.output), Path(config.work_dir)
    save(output, reader.cpu(), clip_tokenizer, t5_tokenizer)
    report = {
        f"{'held_out' if held_out else 'training'}/{name}": round(share, 5)
        for held_out in (False, True)
        for name, share in measure(
            reader, tokens, config.held_out_captions, held_out, max(config.padded_lengths), config.seed
        ).items()
    }
    for name, share in report.items():
        log.info("share of attributes recognised, %s: %.4f", name, share)
    write_json(work / "accuracy.json", report)
    log.info("saved tokenizer, tokenizer_2, text_encoder and text_encoder_2 in %s", output)


if __name__ == "__main__":
    main()
