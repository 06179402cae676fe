"""Misspelt keys, choices and flags are answered with the name that was meant; broken quotes with how to quote."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from support.commands import compose_train

from dsd_lightning.cli.errors import message_for_user
from dsd_lightning.cli.flags import Flags, number, whole
from dsd_lightning.cli.suggestions import _quoted, suggestion


def refusal(*overrides: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        compose_train(Path("run"), *overrides)
    message = message_for_user(caught.value)
    assert message is not None
    return message


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("arch.lora.ranks=3", "arch.lora.rank"),
        ("archh=parallel", "arch"),
        ("optimiser=muon", "optimizer"),
        ("trainer.max_step=3", "trainer.max_steps"),
        ("task=identify", "identity"),
        ("+arch/lora=all_liner", "all_linear"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(misspelt: str, meant: str) -> None:
    assert f"Did you mean '{meant}'?" in refusal(misspelt)


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert "Did you mean" not in refusal("qqqq=3")


@pytest.mark.parametrize("arch", ["controlnet", "ip_adapter"])
def test_a_setting_of_a_group_that_is_null_is_answered_with_how_to_choose_it(arch: str) -> None:
    (remedy,) = re.findall(r"arch\.lora is null here; (\S+) sets it", refusal(f"arch={arch}", "arch.lora.rank=8"))
    assert compose_train(Path("run"), f"arch={arch}", remedy, "arch.lora.rank=8").arch.lora.rank == 8


def test_a_setting_of_a_null_without_a_group_gets_no_such_answer() -> None:
    assert "is null here" not in refusal("callbacks.probe=null", "callbacks.probe.samples=8")


@pytest.mark.parametrize("value", ["my shards (1)", "a b=c", "[1,2", "it's", 'say "hi" (loud)', "${x", "a,b"])
def test_an_override_that_cannot_be_parsed_is_shown_quoted(value: str) -> None:
    line = refusal(f"data.root={value}").splitlines()[-1]
    assert "quoted" in line
    (override,) = shlex.split(line.partition("for the shell: ")[2])
    assert OverridesParser.create().parse_override(override).value() == value


@given(st.text(st.characters(codec="ascii", exclude_characters="\\'\"$\n\r\t\0", min_codepoint=32), min_size=1))
def test_what_is_shown_is_read_as_it_was_meant(value: str) -> None:
    (override,) = shlex.split(_quoted(f"key={value}").partition("for the shell: ")[2])
    assert OverridesParser.create().parse_override(override).value() == value


def test_other_errors_get_no_suggestion() -> None:
    assert suggestion(ValueError("x")) is None


# --- Flags.


@pytest.fixture
def flags() -> Flags:
    flags = Flags(prog="command")
    flags.add_argument("--image_path")
    flags.add_argument("--count", type=whole(1, 9))
    flags.add_argument("--share", type=number(0))
    return flags


@pytest.mark.parametrize(
    ("given_flags", "message"),
    [
        (["--image-path=a.png"], "did you mean --image_path?"),
        (["--imagepath", "a.png"], "did you mean --image_path?"),
        (["--count", "0"], "'0' must be a whole number from 1 to 9"),
        (["--count", "2.0"], "'2.0' must be a whole number"),
        (["--share", "nan"], "'nan' must be a number of at least 0"),
        (["--share", "-1"], "'-1' must be a number"),
        (["--share", "much"], "'much' must be a number"),
    ],
)
def test_wrong_flags_are_refused(
    flags: Flags, capsys: pytest.CaptureFixture[str], given_flags: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        flags.parse_args(given_flags)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_numbers_in_range_are_read(flags: Flags) -> None:
    chosen = flags.parse_args(["--count", "9", "--share", "1e9"])
    assert (chosen.count, chosen.share) == (9, 1e9)
