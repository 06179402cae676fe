"""The calls, tokens and dollars that a list of requests would take, without an API call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """What a dry run says."""

    calls: int
    """Requests that would be sent; equal ones count once."""
    cached: int
    """Requests whose answer is on disk already, or that repeat another of the list."""
    input_tokens: int
    output_tokens: int
    usd: float | None
    """Expected; None where the model's price is not known."""
    usd_at_most: float | None
    """What would be set aside if all calls were under way at once: no run costs more, retries of cut answers apart."""

    def __add__(self, other: Estimate) -> Estimate:
        """Return the estimate of both lists, of one model or of two."""

        def both(one: float | None, two: float | None) -> float | None:
            return None if one is None or two is None else one + two

        return Estimate(
            self.calls + other.calls,
            self.cached + other.cached,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            both(self.usd, other.usd),
            both(self.usd_at_most, other.usd_at_most),
        )

    def __str__(self) -> str:
        tokens = f"about {self.input_tokens:,} tokens in and {self.output_tokens:,} out"
        dollars = (
            "price unknown"
            if self.usd is None or self.usd_at_most is None
            else f"about {_dollars(self.usd)}, at most {_dollars(self.usd_at_most)}"
        )
        return f"{self.calls:,} calls ({self.cached:,} more are answered already), {tokens}, {dollars}"


def _dollars(usd: float) -> str:
    """Return an amount in USD: to the cent, and below one dollar to a hundredth of a cent."""
    return f"{usd:,.2f} USD" if usd >= 1 else f"{usd:.4f} USD"
