"""Prompts to T5's sequence and CLIP's pooled embedding, as FLUX reads them."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dsd_lightning.flux.placement import Parkable, execution_device
from dsd_lightning.pairs import TextEmbeddings

log = logging.getLogger(__name__)

NULL_PROMPT = ""
"""The one definition of "no text": the embedding of the empty prompt, in training dropout and in guidance alike."""


CUT_WARNINGS = 4
"""Truncated prompts that are reported; a data set may hold thousands."""

FINGERPRINT_VALUES = 1024
"""Values of each weight that a fingerprint reads."""


class TextEncoder(Parkable):
    """FLUX's two frozen text encoders.

    T5 is padded to `sequence_length` and read without an attention mask, as FLUX was trained; CLIP's pooled output is
    taken over 77 tokens. Longer prompts are cut, with a warning for the first few.

    Args:
        clip, clip_tokenizer: CLIPTextModel and its tokenizer.
        t5, t5_tokenizer: T5EncoderModel and its tokenizer.
        sequence_length: T5 tokens a prompt; a property of the trained model, so record it with its weights.
        cache_size: prompts whose embeddings are kept in memory (0 keeps none).
    """

    def __init__(
        self,
        clip: PreTrainedModel,
        clip_tokenizer: PreTrainedTokenizerBase,
        t5: PreTrainedModel,
        t5_tokenizer: PreTrainedTokenizerBase,
        sequence_length: int,
        cache_size: int = 0,
    ) -> None:
        super().__init__()
        if sequence_length < 1:
            raise ValueError(f"base.model.text_length: sequence_length={sequence_length} must be at least 1 T5 token")
        self.clip = clip.eval().requires_grad_(False)
        self.t5 = t5.eval().requires_grad_(False)
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer, t5_tokenizer
        self.sequence_length, self.cache_size = sequence_length, cache_size
        self._cache: OrderedDict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()
        self._null: dict[int, TextEmbeddings] = {}
        self._warned: set[tuple[str, str]] = set()

    def fingerprint(self) -> str:
        """Return a short hash of the sequence length and of samples of all weights: embeddings computed otherwise are stale."""
        digest = hashlib.sha256(str(self.sequence_length).encode())
        for name, tensor in sorted([*self.clip.state_dict().items(), *self.t5.state_dict().items()]):
            values = tensor.detach().flatten()
            # Evenly spread: T5 of FLUX has 4.8 billion weights.
            some = values[:: max(1, values.numel() // FINGERPRINT_VALUES)].cpu().float().contiguous()
            digest.update(f"{name} {tuple(tensor.shape)}".encode() + some.numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], sequence_length: int | None = None) -> TextEmbeddings:
        """Return embeddings of `prompts`: sequence [b, sequence_length, d] and pooled [b, p]."""
        length = sequence_length or self.sequence_length
        once = list(dict.fromkeys(prompts))
        cached = {prompt: self._cache[prompt, length] for prompt in once if (prompt, length) in self._cache}
        missing = [prompt for prompt in once if prompt not in cached]
        if missing:
            sequence, pooled = self._encode(missing, length)
            for row, prompt in enumerate(missing):
                cached[prompt] = (sequence[row], pooled[row])
                if self.cache_size:
                    self._cache[prompt, length] = cached[prompt]
                    if len(self._cache) > self.cache_size:
                        self._cache.popitem(last=False)
        return TextEmbeddings(
            torch.stack([cached[prompt][0] for prompt in prompts]),
            torch.stack([cached[prompt][1] for prompt in prompts]),
        )

    def null(self, sequence_length: int | None = None) -> TextEmbeddings:
        """Return the embeddings (batch 1) of "no text", computed once and kept."""
        length = sequence_length or self.sequence_length
        if length not in self._null:
            # The same whoever asks first: a training step in lower precision, or validation in inference mode.
            with (
                torch.inference_mode(False),
                torch.no_grad(),
                self.at_work(),
                torch.autocast(execution_device(self.t5).type, enabled=False),
            ):
                self._null[length] = TextEmbeddings(*self._encode([NULL_PROMPT], length))
        return self._null[length]

    def _encode(self, prompts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        clip_ids = self._tokenize(self.clip_tokenizer, prompts, 77, "CLIP")
        t5_ids = self._tokenize(self.t5_tokenizer, prompts, length, "T5")
        with self.at_work():
            pooled = self.clip(clip_ids.to(execution_device(self.clip))).pooler_output
            sequence = self.t5(t5_ids.to(execution_device(self.t5))).last_hidden_state
        return sequence, pooled

    def _tokenize(self, tokenizer: PreTrainedTokenizerBase, prompts: list[str], length: int, name: str) -> torch.Tensor:
        ids = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        for prompt in prompts:
            # A cheap bound first: a token is at least one character.
            if len(prompt) > length and len(self._warned) < CUT_WARNINGS and (name, prompt) not in self._warned:
                count = len(tokenizer(prompt).input_ids)
                if count > length:
                    self._warned.add((name, prompt))
                    log.warning("%s reads %d of the %d tokens of the prompt %r", name, length, count, prompt[:80])
        return ids
