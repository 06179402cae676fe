"""Calls language models, with and without images: requests, answers, failures, and agents that make the calls."""

from dsd_lightning.agents.agent import Agent
from dsd_lightning.agents.failures import (
    AgentFailure,
    AuthenticationFailed,
    BudgetExceeded,
    ConnectionFailed,
    ProviderFailed,
    QuotaExhausted,
    RateLimited,
    Refused,
    RequestRejected,
)
from dsd_lightning.agents.messages import Answer, ImagePart, Message, Request, Sampling

__all__ = [
    "Agent",
    "AgentFailure",
    "Answer",
    "AuthenticationFailed",
    "BudgetExceeded",
    "ConnectionFailed",
    "ImagePart",
    "Message",
    "ProviderFailed",
    "QuotaExhausted",
    "RateLimited",
    "Refused",
    "Request",
    "RequestRejected",
    "Sampling",
]
