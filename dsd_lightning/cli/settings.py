"""Checks the values of a composed configuration before anything is built from them: kinds, finite numbers, ranges.

The kinds come from the annotations of what a `_target_` names. Ranges are checked by this project's own constructors;
those of other libraries' settings, and of settings without a constructor, are listed in `RANGES`.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from os import PathLike
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from omegaconf import DictConfig, OmegaConf

LARGEST_SEED = 2**32 - 1
"""Of the generators that Lightning seeds."""

_MISSING = "???"
_TARGET = "_target_"
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


class SettingError(ValueError):
    """A value of the configuration that cannot be meant; the message names the setting, the value and the remedy."""


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may have, both ends included.

    Attributes:
        kind: int for whole numbers, or float.
        least, most: the ends; None for none.
        optional: whether null is allowed as well.
    """

    kind: type[int] | type[float]
    least: int | float
    most: int | float | None = None
    optional: bool = False

    def admits(self, value: Any) -> bool:
        """Return whether a value is of the kind and between the ends."""
        if value is None:
            return self.optional
        return _accepts(self.kind, value) and self.least <= value and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        """Return the range in words."""
        ends = f"from {self.least} to {self.most}" if self.most is not None else f"of at least {self.least}"
        return f"{_WORDS[self.kind]} {ends}" + (", or null" if self.optional else "")


RANGES: Mapping[str, Range] = {
    "seed": Range(int, 0, LARGEST_SEED),
    "data.datamodule.seed": Range(int, 0, LARGEST_SEED),
    "optimizer.lr": Range(float, 0),
    "optimizer.muon_lr": Range(float, 0),
    "optimizer.weight_decay": Range(float, 0),
    "optimizer.eps": Range(float, 0),
    "optimizer.momentum": Range(float, 0, 1),
    "schedule.num_warmup_steps": Range(int, 0),
    "trainer.max_steps": Range(int, 1),
    "trainer.num_nodes": Range(int, 1),
    "trainer.accumulate_grad_batches": Range(int, 1),
    "trainer.gradient_clip_val": Range(float, 0, optional=True),
    "trainer.val_check_interval": Range(int, 1),
    "trainer.log_every_n_steps": Range(int, 1, optional=True),
    # Of commands, whose own settings have no constructor.
    "count": Range(int, 1),
    "identities": Range(int, 1, optional=True),
    "partition_size": Range(int, 1),
    "copies": Range(int, 1),
    "coverage": Range(float, 0, 1),
    "protocol.sampling.max_output_tokens": Range(int, 1, optional=True),
    "protocol.sampling.temperature": Range(float, 0, optional=True),
    "protocol.sampling.top_p": Range(float, 0, 1, optional=True),
    "protocol.sampling.seed": Range(int, 0, optional=True),
    "batch_size": Range(int, 1),
    "workers": Range(int, 0),
    "max_damaged": Range(int, 0),
    "max_bytes": Range(float, 1),
}
"""By dotted names; checked where a configuration has a setting of that name."""

_PLACES = {name: place for place, name in enumerate(RANGES)}

SWITCHES = ("plan", "force", "dry_run", "encode", "retry_failed", "judging", "estimate", "keep_maps", "allow_orphans")
"""Settings of commands that are true or false."""


def check_settings(config: DictConfig) -> None:
    """Refuse the first value that is of another kind than its constructor takes, not finite, or out of its range.

    Args:
        config: as a command composes it.

    Raises:
        SettingError: naming the setting by its dotted name, the value and what is needed.
        OmegaConfBaseException: a reference to another setting that leads nowhere.
    """
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=True)
    # In the order of RANGES: what others refer to, as the seed, comes first there.
    for name, value in sorted(_leaves(values), key=lambda leaf: _PLACES.get(leaf[0], len(_PLACES))):
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"{name}={value} must be a finite number")
        allowed = RANGES.get(name)
        if allowed is not None and value != _MISSING and not allowed.admits(value):
            raise SettingError(f"{name}={_shown(value)} must be {allowed}{_hint(value, allowed.kind)}")
        if name in SWITCHES and not isinstance(value, bool):
            raise SettingError(f"{name}={_shown(value)} must be true or false")
    _check_kinds(values, "")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is no list or mapping, with its dotted name; elements of a list have the list's."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value


def _check_kinds(value: Any, name: str) -> None:
    """Compare all values below `value` that a `_target_` is built from with the annotations of its parameters."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _check_kinds(item, f"{name}[{index}]")
    if not isinstance(value, Mapping):
        return
    annotations = _annotations(value[_TARGET]) if isinstance(value.get(_TARGET), str) else {}
    for key, item in value.items():
        place = f"{name}.{key}" if name else str(key)
        annotation = annotations.get(str(key), Any)
        if item != _MISSING and not _accepts(annotation, item):
            needed = " or ".join(dict.fromkeys(_in_words(annotation)))
            raise SettingError(f"{place}={_shown(item)} must be {needed}{_hint(item, annotation)}")
        _check_kinds(item, place)


def _annotations(target: str) -> dict[str, Any]:
    """Return the annotations of a target's parameters; none where it cannot be imported, which its building reports."""
    try:
        signature = inspect.signature(pkgutil.resolve_name(target), eval_str=True)
    except Exception:  # noqa: BLE001  importing and evaluating may fail in any way
        return {}
    return {name: each.annotation for name, each in signature.parameters.items()}


def _accepts(annotation: Any, value: Any) -> bool:
    """Return whether a value of YAML can be meant for a parameter; True wherever the annotation does not tell."""
    origin = get_origin(annotation)
    if annotation in (Any, inspect.Parameter.empty) or origin is Literal or isinstance(value, Mapping):
        return True
    if origin in (Union, UnionType):
        return any(_accepts(each, value) for each in get_args(annotation))
    if origin is Annotated:
        return _accepts(get_args(annotation)[0], value)
    kind = NoneType if annotation is None else origin or annotation
    if not isinstance(kind, type) or kind is object:
        return True
    if value is None or kind is NoneType:
        return value is None and kind is NoneType
    if isinstance(value, list):
        return issubclass(kind, Iterable) and kind is not str and _accepts_items(get_args(annotation), value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if isinstance(value, str):
        return issubclass(kind, str | PathLike | Enum)
    return kind is float or (kind is int and isinstance(value, int))


def _accepts_items(annotations: Sequence[Any], values: Sequence[Any]) -> bool:
    if not annotations:
        return True
    if len(annotations) == 2 and annotations[1] is Ellipsis:
        annotations = annotations[:1]
    if len(annotations) == 1:
        return all(_accepts(annotations[0], value) for value in values)
    return len(values) == len(annotations) and all(map(_accepts, annotations, values))


def _in_words(annotation: Any) -> Iterator[str]:
    """Yield what a parameter takes, in words."""
    origin = get_origin(annotation)
    if origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _in_words(each)
        return
    kind = NoneType if annotation is None else origin or annotation
    if kind in _WORDS:
        yield _WORDS[kind]
    elif isinstance(kind, type) and issubclass(kind, str | PathLike | Enum):
        yield _WORDS[str]
    elif isinstance(kind, type) and issubclass(kind, Mapping):
        yield "a group of settings"
    elif isinstance(kind, type) and issubclass(kind, Collection):
        yield "a list"


def _shown(value: Any) -> str:
    """Return a value as it is written in an override."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _hint(value: Any, annotation: Any) -> str:
    """Return how to write a whole number that was given in another way; empty for other values."""
    takes = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return ""
    is_whole = isinstance(value, float) and math.isfinite(value) and value.is_integer()
    return f": write {int(value)}" if is_whole and int in takes else ""
