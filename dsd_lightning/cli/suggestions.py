"""Suggests what was probably meant: the nearest name that exists, and how to quote a value for Hydra."""

from __future__ import annotations

import re
import shlex

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from dsd_lightning.cli.flags import nearest
from dsd_lightning.cli.groups import CONF

_AMBIGUOUS = re.compile(r"Ambiguous value for argument '(?P<override>.+)'$", re.MULTILINE)


def suggestion(error: BaseException) -> str | None:
    """Return a line that helps with an error of a configuration: the name that was meant, or how to quote a value."""
    if isinstance(error, OverrideParseException):
        return _quoted(error.override)
    if ambiguous := _AMBIGUOUS.match(str(error)):
        return _quoted(ambiguous["override"])
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        meant = nearest(str(error.missing_cfg_file).rpartition("/")[2], error.options)
        return None if meant is None else f"Did you mean {meant!r}?"
    if isinstance(error, ConfigAttributeError | ConfigKeyError) and isinstance(error.parent_node, DictConfig):
        place = str(error.full_key or error.key).rpartition(".")[0]
        if not error.parent_node:  # OmegaConf puts an empty mapping where the override meets a null
            return _filled(place)
        meant = nearest(str(error.key), map(str, error.parent_node))
        return None if meant is None else f"Did you mean {'.'.join(filter(None, (place, meant)))!r}?"
    return None


def _filled(place: str) -> str | None:
    """Return how to fill a part of the configuration that is null and has a group of its own, such as `arch.lora`."""
    group = place.replace(".", "/")
    choices = sorted(each.stem for each in (CONF / group).glob("*.yaml"))
    return (
        f"{place} is null here; " + ", or ".join(f"+{group}={each}" for each in choices) + " sets it"
        if choices
        else None
    )


def _quoted(override: str) -> str:
    """Return how to write an override whose value Hydra cannot parse: quoted for Hydra, and then for the shell."""
    key, _, value = override.partition("=")
    inner = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
    return (
        "A value with blanks, commas, brackets, = or quotes is quoted for Hydra and, outside of that, for the shell: "
        + shlex.quote(f'{key}="{inner}"')
    )
