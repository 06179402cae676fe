"""Chooses the blocks that compute their activations again, `gradient_checkpointing=auto`: as few as the memory allows."""

from __future__ import annotations

from collections.abc import Callable

AUTO = "auto"
"""Value of `gradient_checkpointing` that leaves the choice to the plan."""

CHOICES: tuple[str | int, ...] = ("none", 8, 6, 5, 4, 3, 2, "all")
"""Values of `gradient_checkpointing`, from the most memory to the least: every k-th block is few blocks for a large k."""


def choose(held: Callable[[str | int], float], available: float) -> str | int:
    """Return the first of `CHOICES` that a step's peak fits with; "all", the least, if none does.

    Args:
        held: returns the peak of a choice, bytes; it falls along `CHOICES`, and is called for three of them at most.
        available: bytes.
    """
    low, high = 0, len(CHOICES) - 1
    while low < high:
        middle = (low + high) // 2
        if held(CHOICES[middle]) <= available:
            high = middle
        else:
            low = middle + 1
    return CHOICES[low]
