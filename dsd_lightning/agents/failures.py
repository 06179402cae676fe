"""The kinds of failure, and which of them are worth another try."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from time import time


class AgentFailure(Exception):
    """A request that got no answer. Messages never hold a key."""

    retryable = False
    """Whether the same request may succeed if it is sent again."""
    stops_everything = False
    """Whether every other request would fail in the same way, so that going on is useless."""
    may_be_billed = False
    """Whether the provider may have computed, and bill, an answer that did not arrive."""
    retry_after: float | None = None
    """Seconds that the provider asks to wait."""

    def after(self, attempts: int) -> AgentFailure:
        """Return the same failure, saying how often it was tried."""
        failure = type(self)(f"{self} (tried {attempts} times)")
        failure.retry_after = self.retry_after
        return failure


class Refused(AgentFailure):
    """The model or a filter before or behind it would not answer."""


class RequestRejected(AgentFailure):
    """The provider cannot take this request (4xx): an unknown model, a parameter it does not know, too long."""


class RateLimited(AgentFailure):
    """Too many requests or tokens a minute (429)."""

    retryable = True


class QuotaExhausted(AgentFailure):
    """The account has no credit, or no requests, left (429 that waiting does not cure soon)."""

    stops_everything = True


class BudgetExceeded(AgentFailure):
    """The next request could cost more than what is left of `budget_usd`; it was not sent."""

    stops_everything = True


class AuthenticationFailed(AgentFailure):
    """There is no key, or the provider does not accept it (401, 403)."""

    stops_everything = True


class ProviderFailed(AgentFailure):
    """The provider failed (5xx), or sent what is no answer of its protocol."""

    retryable = True


class ConnectionFailed(AgentFailure):
    """No connection, a broken one, or no complete answer within the time limit."""

    retryable = True
    may_be_billed = True


_AUTHENTICATION, _TOO_MANY, _REQUEST_TIMEOUT, _CONFLICT, _FIRST_SERVER_ERROR = (401, 403), 429, 408, 409, 500
_LONGEST_MESSAGE = 500


def failure_of_status(status: int, message: str, retry_after: float | None = None) -> AgentFailure:
    """Return the failure that an HTTP status other than 2xx stands for."""
    # OpenAI's code for an empty account; the ids of Google's daily quotas.
    exhausted = "insufficient_quota" in message or "PerDay" in message
    message = f"HTTP {status}: {message[:_LONGEST_MESSAGE]}"
    failure: AgentFailure
    if status in _AUTHENTICATION:
        failure = AuthenticationFailed(message)
    elif status == _TOO_MANY:
        failure = QuotaExhausted(message) if exhausted else RateLimited(message)
    elif status >= _FIRST_SERVER_ERROR or status in (_REQUEST_TIMEOUT, _CONFLICT):
        failure = ProviderFailed(message)
    else:
        failure = RequestRejected(message)
    failure.retry_after = retry_after
    return failure


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that the header Retry-After asks for, given as a number or a date (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None
