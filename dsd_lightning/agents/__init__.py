"""How does the project ask language models, with and without pictures? Requests, answers, failures; agents that ask."""

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
from dsd_lightning.agents.messages import Answer, Message, Picture, Request, Sampling

__all__ = [
    "Agent",
    "AgentFailure",
    "Answer",
    "AuthenticationFailed",
    "BudgetExceeded",
    "ConnectionFailed",
    "Message",
    "Picture",
    "ProviderFailed",
    "QuotaExhausted",
    "RateLimited",
    "Refused",
    "Request",
    "RequestRejected",
    "Sampling",
]
