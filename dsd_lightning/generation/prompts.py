"""What becomes of users' texts before the model reads them?"""

from __future__ import annotations

import logging
from collections.abc import Sequence

log = logging.getLogger(__name__)


def one_line(text: str) -> str:
    """Return a text without line breaks and outer spaces, as the official command passes it on."""
    return text.strip().replace("\n", "").replace("\r", "")


def enhance(texts: Sequence[str]) -> list[str]:
    """Return the prompts to draw from: without a language model to ask, the user's own, and that is said."""
    log.warning(
        "prompt enhancement has no key for a language model: going on with your prompt as it is "
        "(--disable_gemini_prompt says that this is meant)"
    )
    return list(texts)
