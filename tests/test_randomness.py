"""Every random draw depends on its key, the whole key and nothing but the key."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_run import make_architecture, make_module

from dsd_lightning.architectures.parallel import Parallel
from dsd_lightning.architectures.text_only import TextOnly
from dsd_lightning.pairs import TARGET
from dsd_lightning.randomness import key_to_int, normal, numpy_generator, torch_generator, uniform

KEYS = [
    (seed, epoch, f"sample-{sample}", frame, purpose)
    for seed, epoch, sample, frame, purpose in itertools.product(
        range(4), range(10), range(250), ("reference", "target"), ("noise", "timestep")
    )
]
"""40,000 keys of the kind that training makes."""


def test_draws_do_not_depend_on_their_order() -> None:
    shuffled = random.Random(0).sample(KEYS[:500], 500)
    drawn = {key: normal((2,), *key) for key in shuffled}
    for key in KEYS[:500]:
        assert torch.equal(normal((2,), *key), drawn[key])
        assert numpy_generator(*key).random() == numpy_generator(*key).random()


def test_other_draws_do_not_disturb_and_are_not_disturbed() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = normal((3,), 0, "a")
    assert torch.equal(torch.rand(1), expected)
    torch.rand(100)
    assert torch.equal(normal((3,), 0, "a"), first)


def test_keys_do_not_collide() -> None:
    assert len({key_to_int(*key) for key in KEYS}) == len(KEYS)
    assert len({uniform(*key) for key in KEYS}) == len(KEYS)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "2"), ("1", 2)),
        ((1,), (True,)),
        ((1,), (1.0,)),
        ((12, 3), (1, 23)),
        (("a", "b"), ("b", "a")),
        (("a",), ("a", "")),
    ],
)
def test_type_place_and_number_of_the_parts_count(one: tuple[object, ...], other: tuple[object, ...]) -> None:
    assert key_to_int(*one) != key_to_int(*other)  # type: ignore[arg-type]


@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), min_size=1, max_size=3))
def test_different_words_make_different_keys(one: list[str], other: list[str]) -> None:
    assert (key_to_int(*one) == key_to_int(*other)) == (one == other)


def test_draws_are_the_same_in_another_process() -> None:
    # Python's own hash of strings differs from process to process.
    code = "from dsd_lightning.randomness import uniform; print(repr(uniform(3, 'sample', True, 0.5)))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(other.stdout) == uniform(3, "sample", True, 0.5)
    # And the same as ever: changing them changes every run and every asset.
    assert key_to_int(0, "sample") == 7622564013620671443
    assert float(normal((1,), 0, "sample")) == pytest.approx(2.0637972354888916, abs=1e-6)


def test_uniform_draws_are_uniform() -> None:
    draws = torch.tensor([uniform(*key) for key in KEYS], dtype=torch.float64).sort().values
    assert draws[0] >= 0
    assert draws[-1] < 1
    # Kolmogorov-Smirnov; 1.95 / sqrt(n) is exceeded by one in a thousand fair samples, and these are fixed.
    ranks = torch.arange(len(draws), dtype=torch.float64) / len(draws)
    assert (draws - ranks).abs().max() < 1.95 / len(draws) ** 0.5


def test_normal_draws_of_neighbouring_keys_are_independent() -> None:
    drawn = torch.stack([normal((64,), *key) for key in KEYS[:2000]])
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    neighbours = (drawn[1:] * drawn[:-1]).mean()
    assert abs(float(neighbours)) < 0.02
    assert torch.equal(normal((64,), *KEYS[0]), torch.randn(64, generator=torch_generator(*KEYS[0])))


def test_a_frames_noise_is_the_same_in_every_architecture() -> None:
    # So that architectures compared on the same data see the same noise on the target.
    two, one = (make_module(make_architecture(kind)) for kind in (Parallel, TextOnly))
    keys = [(0, "a"), (1, "b")]
    noise = two.architecture.split(two.frame_noise((4, 4, 4), keys))
    assert torch.equal(noise[TARGET], one.frame_noise((4, 4, 4), keys))
    assert not torch.equal(noise["reference"], noise[TARGET])
    assert torch.equal(two.frame_noise((4, 4, 4), keys[1:])[0], two.frame_noise((4, 4, 4), keys)[1])
