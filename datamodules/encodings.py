"""Names encodings and embeddings of pairs for storage in shards, and reads them back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from datamodules.stream import Size
from dsd_lightning.architectures.base import Architecture
from dsd_lightning.flux.codec import Codec
from dsd_lightning.flux.text import TextEncoder
from dsd_lightning.pairs import Encoded, TextEmbeddings

CLEAN, REFERENCE, MASK = "clean", "reference.", "mask"
SEQUENCE, POOLED = ".sequence", ".pooled"


def encodings_key(architecture: Architecture, codec: Codec, text_encoder: TextEncoder, sizes: Sequence[Size]) -> str:
    """Return what stored encodings depend on: architecture, VAE, text encoders with their length, and frame sizes.

    Args:
        architecture, codec, text_encoder: the encoders.
        sizes: every (height, width) that frames may have, pixels.
    """
    frames = "_".join(f"{height}x{width}" for height, width in sizes)
    return f"{architecture.encoding_key(codec)}-{text_encoder.fingerprint()}-{frames}"


def named_encodings(encoded: Encoded) -> dict[str, Tensor]:
    """Return the tensors of encodings by the names under which they are stored."""
    return {CLEAN: encoded.clean, **{REFERENCE + name: value for name, value in encoded.reference.items()}}


def named_embeddings(texts: Mapping[str, TextEmbeddings]) -> dict[str, Tensor]:
    """Return the tensors of embeddings, by caption kind, by the names under which they are stored."""
    named: dict[str, Tensor] = {}
    for kind, text in texts.items():
        named |= {kind + SEQUENCE: text.sequence, kind + POOLED: text.pooled}
    return named


def encoded_of(tensors: Mapping[str, Tensor]) -> Encoded:
    """Return the encodings (batch 1) of one stored sample."""
    references = {name[len(REFERENCE) :]: value[None] for name, value in tensors.items() if name.startswith(REFERENCE)}
    return Encoded(tensors[CLEAN][None], references)


def text_of(tensors: Mapping[str, Tensor], kind: str) -> TextEmbeddings:
    """Return the embeddings (batch 1) of one stored sample's caption of a kind.

    Raises:
        ValueError: if the set was encoded without that kind, naming the remedy.
    """
    if kind + SEQUENCE not in tensors:
        stored = sorted(name.removesuffix(SEQUENCE) for name in tensors if name.endswith(SEQUENCE))
        raise ValueError(
            f"the set's encodings hold captions of kind {', '.join(stored) or 'none'}, not {kind!r}: encode it again with the "
            f"task.relation.captions that you train with, or train with those"
        )
    return TextEmbeddings(tensors[kind + SEQUENCE][None], tensors[kind + POOLED][None])
