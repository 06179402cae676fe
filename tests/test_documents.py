"""Every command of README.md, CONTRIBUTING.md and docs/ is run by a test, or it is said why not."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from support.commands import CONF, compose_train
from support.documents import DOCUMENTS, ROOT, RULES, Elsewhere, commands, rule_of

CONFIGS = {
    "train.py": "train",
    "distill.py": "distill",
    "datamodules.commands.encode_shards": "encode_shards",
    "datamodules.commands.write_shards": "write_shards",
    "dsd_lightning.packing.depth_command": "write_depth",
}


def test_every_command_has_a_rule_and_every_rule_a_command() -> None:
    used = set()
    for document in DOCUMENTS:
        for command in commands(document):
            rule = rule_of(document, command)
            assert rule is not None, f"{document}: `{command}` needs a rule in tests/support/documents.py"
            used.add(rule[0])
    assert [rule[:2] for number, rule in enumerate(RULES) if number not in used] == []


def test_the_tests_that_rules_name_are_there() -> None:
    pasted = "tests/test_fresh_copy.py::test_documented_commands_run_in_their_order_in_a_fresh_copy"
    for test in {pasted, *(way.test for _, _, way in RULES if isinstance(way, Elsewhere))}:
        file, _, name = test.partition("::")
        functions = {
            each.name for each in ast.parse((ROOT / file).read_text()).body if isinstance(each, ast.FunctionDef)
        }
        assert name in functions, test


def configured() -> list[tuple[str, list[str]]]:
    """Return (configuration, overrides) of the documented commands that Hydra composes, without their placeholders.

    Of a sweep, that of its runs that has each key's first value, and those that differ from it in one value.
    """
    result = []
    for command in (command for document in DOCUMENTS for command in commands(document)):
        if not command.startswith("python ") or "hydra/launcher=" in command:
            continue
        program, *words = [word for word in shlex.split(command)[1:] if word not in ("...", "--help")]
        if program in CONFIGS:
            values = swept(words) if "-m" in words else {}
            first = [word for word in words if word != "-m" and word.partition("=")[0] not in values]
            first += [f"{key}={choices[0]}" for key, choices in values.items()]
            others = [f"{key}={value}" for key, choices in values.items() for value in choices[1:]]
            # Of two values of one key the last counts.
            result += [(CONFIGS[program], first), *((CONFIGS[program], [*first, each]) for each in others)]
    return result


def swept(words: list[str]) -> dict[str, list[str]]:
    """Return the values of a sweep's keys: the command's own, and those that its experiment sweeps by itself."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    experiment = OmegaConf.load(CONF / "experiment" / f"{given['experiment']}.yaml") if "experiment" in given else {}
    params = OmegaConf.select(OmegaConf.create(experiment), "hydra.sweeper.params") or {}
    choices = {key: str(value) for key, value in params.items()} | given
    return {key: value.split(",") for key, value in choices.items() if re.fullmatch(r"[^\[{]*,[^\[{]*", value)}


@pytest.mark.long
def test_documented_settings_exist(tmp_path: Path) -> None:
    refused = {}
    for name, overrides in configured():
        try:
            compose_train(tmp_path, *overrides, name=name)
        except (HydraException, OmegaConfBaseException) as error:
            refused[name, *overrides] = str(error)
    assert refused == {}
