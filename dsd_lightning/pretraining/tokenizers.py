"""The miniature's tokenizers: words for T5, byte-level BPE in which every known word is one token for CLIP."""

from __future__ import annotations

import json
from collections import Counter

import tokenizers as tk
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from dsd_lightning.miniature import captions
from dsd_lightning.miniature.world import draw_context
from dsd_lightning.pretraining.labelled_captions import KINDS, draw_caption
from dsd_lightning.randomness import numpy_generator

DROPPED_WORDS = ("a", "an", "the", "and", "with", "of", "on", "in", "at", "to", "is", "are")
"""Words that the T5 tokenizer drops. `from` stays: it tells light from the left from a character on the left."""


def word_normalizer() -> normalizers.Normalizer:
    """Return the serialisable normaliser: lower case, no punctuation but ";", none of `DROPPED_WORDS`."""
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(tk.Regex(r"[^\p{L}\p{N};]+"), " "),
            normalizers.Replace(tk.Regex(rf"\b(?:{'|'.join(DROPPED_WORDS)})\b"), " "),
        ]
    )


def count_words(extra_words: list[str], seed: int) -> Counter[str]:
    """Return how often each word stands in a corpus of captions; `extra_words` count once."""
    rng = numpy_generator(seed, "text", "vocabulary")
    corpus = [draw_caption(kind, rng).text for _ in range(1000) for kind in KINDS]
    context = draw_context(rng)
    corpus += [captions.instruction(context, context, rng) for _ in range(32)]
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    counts = Counter(word for text in corpus for word, _ in split.pre_tokenize_str(text))
    return counts + Counter(word.lower() for word in extra_words)


def make_word_tokenizer(counts: Counter[str], max_length: int) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer for T5: pad 0, </s> 1 (appended), <unk> 2, then words by frequency.

    It is a `PreTrainedTokenizerFast`, since transformers 5 rebuilds a `T5Tokenizer` as Unigram whatever its file says.
    """
    normalizer = word_normalizer()
    words = sorted(counts, key=lambda word: (-counts[word], word))
    kept = [word for word in words if normalizer.normalize_str(word).strip() == word]
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *kept])}
    backend = tk.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = word_normalizer()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def make_clip_tokenizer(counts: Counter[str]) -> CLIPTokenizer:
    """Return a byte-level BPE in CLIP's layout that keeps each word of `counts` whole and spells all others."""
    template = CLIPTokenizer()
    trained = tk.Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = template.backend_tokenizer.normalizer
    trained.pre_tokenizer = template.backend_tokenizer.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = [*letters, *(letter + "</w>" for letter in letters)]
    # Ties between merges fall by the ids of their parts; named here, the alphabet's ids are the same in every process.
    trainer = trainers.BpeTrainer(
        vocab_size=1 << 16, min_frequency=0, end_of_word_suffix="</w>", show_progress=False, special_tokens=alphabet
    )
    trained.train_from_iterator((word for word in sorted(counts) for _ in range(counts[word])), trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    merged = dict.fromkeys(left + right for left, right in merges)
    pieces = [*alphabet, *merged, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges, model_max_length=77)
