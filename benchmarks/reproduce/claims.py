"""Holds what was measured against the paper's claims, and keeps the values of claims measured elsewhere."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dsd_lightning.evaluation.scores.intervals import of_share
from dsd_lightning.files.text import read_text

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
NOT_MEASURED = "not measured yet"


@dataclass(frozen=True)
class Value:
    """A measured number with the bounds of its 95 % interval; without an interval both are None."""

    mean: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """Return the number with its interval in brackets."""
        return f"{self.mean:.3f}" + (f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None else "")


def value_at(source: Mapping[str, Any]) -> Value | None:
    """Return the number that `source` points to, or None if its file or its entry does not exist yet.

    Args:
        source: `file` (JSON or CSV), `path` (keys; `key=value` selects among the items of a list or the rows of a table), and
            of its interval either `interval`, the path of its two bounds, or for a share `count`, of how many independent
            samples it is. A mapping with `mean` and `half_width` or a row with `value`, `low` and `high` brings its own.
    """
    file = ROOT / source["file"]
    if not file.exists():
        return None
    text = read_text(file)
    content: Any = list(csv.DictReader(text.splitlines())) if file.suffix == ".csv" else json.loads(text)
    node = _entry(content, source["path"])
    if node is None:
        log.warning("%s has no entry %s", source["file"], " / ".join(map(str, source["path"])))
        return None
    if "interval" in source:
        return Value(float(node), *(_entry(content, source["interval"]) or ()))
    if not isinstance(node, Mapping):
        return _share(float(node), source.get("count"))
    if "mean" not in node:
        return Value(*(float(node[name]) for name in ("value", "low", "high")))
    half = node["half_width"]
    return Value(node["mean"]) if half is None else Value(node["mean"], node["mean"] - half, node["mean"] + half)


def _entry(node: Any, path: Sequence[Any]) -> Any:
    """Return what a path of keys leads to, or None."""
    for key in map(str, path):
        if isinstance(node, list):
            name, _, wanted = key.partition("=")
            node = [item for item in node if str(item.get(name)) == wanted]
            node = node[0] if len(node) == 1 else node
        elif "=" not in key:
            node = node.get(key)
        if not node and node != 0:
            return None
    return node


def _share(share: float, count: int | None) -> Value:
    if count is None:
        return Value(share)
    return Value(share, *of_share(round(share * count), count))


def agreement(rule: Mapping[str, Any], values: Mapping[str, Value]) -> str:
    """Return whether a claim holds: "yes", "no", or "not distinguished" where intervals overlap or one is unknown.

    Args:
        rule: `{greater: [a, b]}`, of two values; `{above: [a, number]}`, of a value with an interval, such as a difference that
            was measured on the same samples; or `{least: [a, number]}`, of a mean.
        values: by name.
    """
    if "least" in rule:
        name, least = rule["least"]
        return "yes" if values[name].mean >= least else "no"
    if "above" in rule:
        name, bound = rule["above"]
        (_, low, high), other_low, other_high = astuple(values[name]), float(bound), float(bound)
    else:
        (_, low, high), (_, other_low, other_high) = (astuple(values[name]) for name in rule["greater"])
    if None not in (low, high, other_low, other_high):
        if low > other_high:
            return "yes"
        if high < other_low:
            return "no"
    return "not distinguished"


def measure(claims: Sequence[Mapping[str, Any]], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of every claim that was measured: from the result files where all are there, else as recorded.

    Args:
        claims: of the plan.
        recorded: what this function returned before, perhaps on another machine.

    Returns:
        By the claim's text: `values` (mean, low and high, by name) and `measured`, the day of the newest result file.
    """
    results: dict[str, Any] = {}
    for claim in claims:
        sources = claim.get("values", {})
        values = {name: value for name, source in sources.items() if (value := value_at(source)) is not None}
        if values and len(values) == len(sources):
            newest = max((ROOT / source["file"]).stat().st_mtime for source in sources.values())
            results[claim["claim"]] = {
                "values": {name: asdict(value) for name, value in values.items()},
                "measured": datetime.fromtimestamp(newest, UTC).date().isoformat(),
            }
        elif set(recorded.get(claim["claim"], {}).get("values", ())) == set(sources) and sources:
            results[claim["claim"]] = recorded[claim["claim"]]
    return results


def table(claims: Sequence[Mapping[str, Any]], results: Mapping[str, Any]) -> str:
    """Return docs/reproduction.md: a row a claim.

    Args:
        claims: of the plan.
        results: of `measure`.
    """
    lines = [
        "# The paper's claims, measured on the miniature",
        "",
        "Written by `make reproduce`. Steps and claims: `benchmarks/reproduce/plan.yaml`. Values, which are kept where their",
        "result files are absent: `benchmarks/results/reproduction.json`. In brackets: 95 % intervals, over seeds",
        "(Student's t), subjects or grids (jackknife), or over samples (Wilson). Where intervals overlap, values are not",
        "distinguished; a gain, which is a difference on the same samples, is where its own interval excludes 0.",
        "",
        "| paper | claim | measured here | agrees? | day | command |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        result = results.get(claim["claim"])
        values = {name: Value(**value) for name, value in result["values"].items()} if result else {}
        text = "<br>".join(f"{name}: {value}" for name, value in values.items())
        cells = [
            claim["paper"],
            claim["claim"],
            claim.get("instead") or text or NOT_MEASURED,
            agreement(claim["agrees"], values) if values else "—",
            result["measured"] if result else "",
        ]
        command = f"`python -m benchmarks.reproduce --only {' '.join(claim['steps'])}`" if "steps" in claim else ""
        lines.append("| " + " | ".join([*cells, command]) + " |")
    return "\n".join(lines) + "\n"
