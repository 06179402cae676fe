"""Estimates what a run would take: calls, tokens and dollars, stage by stage, without an API call."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

from hydra.utils import instantiate
from omegaconf import DictConfig
from PIL import Image

from dsd_lightning.agents import Agent, Message, Request
from dsd_lightning.agents.estimate import Estimate
from dsd_lightning.distillation.image_api import ImageApi
from dsd_lightning.distillation.records import SIDES, Record
from dsd_lightning.distillation.stages import captions
from dsd_lightning.distillation.stages.caption import Caption, ModelDescriber
from dsd_lightning.distillation.stages.filter import Filter
from dsd_lightning.distillation.stages.prompts import GridPrompts
from dsd_lightning.distillation.stages.verify import Verify
from dsd_lightning.distillation.yields import DIRECTIONS, PAIRS, PANELS, Yields, captions_wanted

ANSWER_TOKENS = {"filter": 20, "prompts": 80, "verify": 200, "caption": 80}
"""Expected length of an answer, by stage; models that think take more."""

ROOM = 1.2
"""Factor of the expected dollars that a budget should hold."""

_WORDS = "as said in an answer of ordinary length, "
_PROMPT = _WORDS * (ANSWER_TOKENS["prompts"] * 4 // len(_WORDS))


@dataclass(frozen=True)
class Expectation:
    """What a stage is expected to take; no estimate where it calls no model."""

    stage: str
    estimate: Estimate
    agent: Agent | None = None
    """The one that is asked."""

    def __str__(self) -> str:
        return f"{self.stage:8} {self.estimate}"


def expect(config: DictConfig) -> list[Expectation]:
    """Return what each stage would take if it kept every record and repeated no request."""
    source: captions.CaptionSource = instantiate(config.captions)
    records = captions.sample(source, captions_wanted(config), config.seed)
    grids = len(records) * config.stages.grids.seeds_per_prompt
    expectations = []
    sorter: Filter = instantiate(config.stages.filter)
    asked = _of(sorter.agent, "filter", [sorter.requests(each)[0] for each in records])
    expectations.append(Expectation("filter", asked, sorter.agent))
    writer: GridPrompts = instantiate(config.stages.prompts)
    asked = _of(writer.agent, "prompts", [writer.request(each) for each in records])
    expectations.append(Expectation("prompts", asked, writer.agent))
    teacher = instantiate(config.stages.grids).teacher
    if isinstance(teacher, ImageApi):
        one = teacher.expected(_PROMPT)
        expectations.append(Expectation("grids", _times(one, grids), teacher.agent))
    judge: Verify = instantiate(config.stages.verify)
    pair = _stand_in(config.stages.split.width, config.stages.split.height)
    conversation = _conversation(*judge.requests(pair), ANSWER_TOKENS["verify"])
    asked = _times(_of(judge.agent, "verify", conversation), grids * PAIRS)
    expectations.append(Expectation("verify", asked, judge.agent))
    caption: Caption = instantiate(config.stages.caption)
    if isinstance(caption.describer, ModelDescriber):
        texts = [request for _, _, request in caption.describer.requests(pair, caption.words)]
        # Two descriptions and two instructions a pair; a panel's description serves all its pairs: 4 a grid, not 12.
        each = [_of(caption.describer.agent, "caption", [request]) for request in texts[:2]]
        total = _times(each[0], PANELS * grids) + _times(each[1], DIRECTIONS * PAIRS * grids)
        expectations.append(Expectation("caption", total, caption.describer.agent))
    return expectations


def kept_shares(yields: Yields) -> dict[str, float]:
    """Return the share of its calls that each stage is expected to make, of those it makes if every record is kept."""
    prompts = yields.filter * yields.prompts
    shares = {"filter": 1.0, "prompts": float(yields.filter), "grids": prompts, "verify": prompts * yields.split}
    # A panel is described if one of its three pairs was accepted; each accepted pair has two instructions.
    described = PANELS * (1 - (1 - yields.verify) ** (PANELS - 1))
    of_a_grid = (described + DIRECTIONS * PAIRS * yields.verify) / (PANELS + DIRECTIONS * PAIRS)
    return {**shares, "caption": shares["verify"] * of_a_grid}


def outlook(config: DictConfig, at_most: list[Expectation]) -> str:
    """Return the lines that say what the run is expected to take and to give, by the shares of `config.expected`.

    Args:
        config: the run's.
        at_most: what it would take if every record were kept; see `expect`.
    """
    expected: Yields = instantiate(config.expected)
    yields, seeds = expected.measured(), config.stages.grids.seeds_per_prompt
    wanted, drawn = captions_wanted(config), at_most[0].estimate.calls + at_most[0].estimate.cached
    grids, shares = yields.grids(drawn, seeds), kept_shares(yields)
    calls, tokens_in, tokens_out, seconds = 0.0, 0.0, 0.0, 0.0
    for each in at_most:
        share, estimate = shares[each.stage], each.estimate
        calls += share * estimate.calls
        tokens_in, tokens_out = tokens_in + share * estimate.input_tokens, tokens_out + share * estimate.output_tokens
        if each.agent is not None:
            tokens = share * (estimate.input_tokens + estimate.output_tokens)
            seconds += each.agent.limits.least_seconds(share * estimate.calls, tokens)
    dollars = [each.estimate.usd for each in at_most]
    priced = sum((usd or 0.0) * shares[each.stage] for usd, each in zip(dollars, at_most, strict=True))
    cost = "price unknown" if None in dollars else f"about {priced:,.2f} USD"
    by_api = any(each.stage == "grids" for each in at_most)
    devices = {} if by_api else yields.gpu_hours(grids)
    (name, hours), *others = list(devices.items()) or [("", 0.0)]
    elsewhere = "".join(f", {other} {its:,.1f}" for other, its in others)
    teacher = f", {hours:,.1f} hours of one {name}{elsewhere}" if devices else ""
    short = f"; {wanted:,} are wanted, and the source holds no more" if drawn < wanted else ""
    agents = {each.agent.model: each.agent for each in at_most if each.agent is not None}
    origins = [f"{model}: {origin}" for model, agent in agents.items() if (origin := agent.prices.origin(model))]
    # What calls under way set aside, and shares that turn out higher, need room above what is expected.
    bounds = [(budget.budget_usd, budget.spent_usd) for budget in (agent.budget for agent in agents.values())]
    needed = [(bound, spent) for bound, spent in bounds if bound is not None and spent + priced > bound]
    stops = [
        f"  budget    {bound:,.2f} USD, of which {spent:,.2f} are spent: the run would stop there; "
        f"agents.budget.budget_usd={math.ceil(ROOM * (spent + priced))} leaves room to finish"
        for bound, spent in needed[:1]
    ]
    source = "by the shares of expected" if expected.run is None else f"as in {expected.run}"
    return "\n".join(
        [
            f"expected, {source}:",
            f"  captions  {drawn:,}{short}",
            f"  grids     {grids:,.0f}{teacher}",
            f"  calls     {calls:,.0f}, about {tokens_in:,.0f} tokens in and {tokens_out:,.0f} out, {cost}",
            *(f"  price     of {origin}" for origin in origins),
            *stops,
            f"  time      {hours + seconds / 3600:,.1f} hours at least in one process, by the limits of the agents",
            f"  pairs     {yields.pairs(drawn, seeds):,.0f} to train on, both directions counted",
            "at most, stage by stage:",
        ]
    )


def _of(agent: Agent, stage: str, requests: Iterable[Request]) -> Estimate:
    return agent.dry_run(requests, ANSWER_TOKENS[stage])


def _conversation(opening: Request, turns: list[Message], tokens: int) -> list[Request]:
    said = Message.assistant(_WORDS * (tokens * 4 // len(_WORDS)))
    requests, messages = [opening], opening.messages
    for turn in turns:
        messages = (*messages, said, turn)
        requests.append(Request(messages))
    return requests


def _stand_in(width: int, height: int) -> Record:
    images = {}
    for shade, side in enumerate(SIDES):
        buffer = io.BytesIO()
        Image.new("RGB", (width, height), (shade, shade, shade)).save(buffer, "PNG")
        images[side] = buffer.getvalue()
    return Record("stand-in", {"family": "character"}, {}, images)


def _times(one: Estimate, number: int) -> Estimate:
    """Return the estimate of `number` such lists, none of which is answered yet."""
    return Estimate(
        (one.calls + one.cached) * number,
        0,
        one.input_tokens * number,
        one.output_tokens * number,
        None if one.usd is None else one.usd * number,
        None if one.usd_at_most is None else one.usd_at_most * number,
    )


def table(expected: list[Expectation]) -> str:
    """Return the lines to print."""
    total = expected[0].estimate
    for each in expected[1:]:
        total += each.estimate
    lines = [str(each) for each in [*expected, Expectation("all", total)]]
    return "\n".join([*lines, "If every record is kept and no request is repeated. No call was made."])
