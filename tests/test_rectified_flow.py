"""Interpolant, timestep densities and scheduler times are FLUX's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from dsd_lightning.pairs import TextEmbeddings
from dsd_lightning.rectified_flow import (
    FixedShift,
    LogitNormal,
    Mode,
    NoShift,
    ResolutionShift,
    Uniform,
    euler_step,
    interpolate,
    sampling_times,
    shift_time,
    velocity,
)

FLUX_DEV = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
"""Of FLUX.1-dev's scheduler/scheduler_config.json, with use_dynamic_shifting and 1000 training timesteps."""

CLEAN, NOISE = torch.randn(2, 3, 4, 4, 6, generator=torch.Generator().manual_seed(0))
GRID = (torch.arange(4096) + 0.5) / 4096


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True, **FLUX_DEV)


# --- The straight line between clean and noise.


def test_ends_of_the_interpolant() -> None:
    torch.testing.assert_close(interpolate(CLEAN, NOISE, torch.zeros(3)), CLEAN)
    torch.testing.assert_close(interpolate(CLEAN, NOISE, torch.ones(3)), NOISE)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_step_along_the_true_velocity_stays_on_the_line(start: float, end: float) -> None:
    noisy = interpolate(CLEAN, NOISE, torch.full((3,), start))
    moved = euler_step(noisy, velocity(CLEAN, NOISE), start, end)
    torch.testing.assert_close(moved, interpolate(CLEAN, NOISE, torch.full((3,), end)), atol=1e-5, rtol=0)


def test_every_sample_has_its_own_time() -> None:
    times = torch.tensor([0.1, 0.5, 1.0])
    together = interpolate(CLEAN, NOISE, times)
    for row in range(3):
        alone = interpolate(CLEAN[row : row + 1], NOISE[row : row + 1], times[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_wrong_shapes_are_refused_in_functions_methods_and_dataclasses() -> None:
    """The hook of tests/conftest.py checks shapes in all of the package, and so in every other test."""
    calls: list[Callable[[], Any]] = [
        lambda: velocity(CLEAN, NOISE[:2]),
        lambda: Uniform()(CLEAN),
        lambda: TextEmbeddings(torch.zeros(2, 3), torch.zeros(2, 3)),
    ]
    for call in calls:
        with pytest.raises(TypeCheckError):
            call()


def test_steps_of_half_precision_latents_are_added_in_float32() -> None:
    noisy, predicted = NOISE.bfloat16(), CLEAN.bfloat16()
    expected = (noisy.float() - 0.01 * predicted.float()).bfloat16()
    moved = euler_step(noisy, predicted, 0.5, 0.49)
    assert moved.dtype == torch.bfloat16
    assert torch.equal(moved, expected)


# --- Densities.


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-0.5, 0.7), (1.0, 2.0)])
def test_logit_normal_has_the_quantiles_of_its_distribution(mean: float, deviation: float) -> None:
    distribution = TransformedDistribution(Normal(mean, deviation), [SigmoidTransform()])
    times = LogitNormal(mean, deviation)(GRID)
    torch.testing.assert_close(distribution.cdf(times), GRID, atol=1e-4, rtol=0)


def test_logit_normal_is_finite_at_the_ends_of_the_draw() -> None:
    times = LogitNormal(0.0, 1.0)(torch.tensor([0.0, 1 - 2**-24]))
    assert ((times > 0) & (times < 1)).all()


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 1.29, 2 / (math.pi - 2)])
def test_mode_runs_monotonically_from_noise_to_clean(scale: float) -> None:
    times = Mode(scale)(torch.cat([torch.zeros(1), GRID, torch.ones(1)]))
    assert times[0] == 1
    assert times[-1] == pytest.approx(0, abs=1e-6)
    assert (times.diff() <= 1e-6).all()


def test_mode_puts_its_weight_in_the_middle_if_positive_and_at_the_ends_if_negative() -> None:
    # The density at the middle is 1 / |slope of the map|, which is 1 + scale (1 - pi / 2) there.
    for scale in (-1.0, 0.5, 1.29):
        expected = 0.02 / (1 + scale * (1 - math.pi / 2))
        measured = ((Mode(scale)(GRID) - 0.5).abs() < 0.01).float().mean()
        assert measured == pytest.approx(expected, rel=0.03)


def test_mode_zero_and_uniform_are_uniform() -> None:
    for density in (Uniform(), Mode(0.0)):
        torch.testing.assert_close(density(GRID).sort().values, GRID, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogitNormal(deviation=0.0), r"density\.deviation=0\.0"),
        (lambda: Mode(2.0), r"density\.scale=2\.0.*1\.752"),
        (lambda: FixedShift(0.0), r"shift\.factor=0\.0"),
        (lambda: sampling_times(0, 0.0), "num_inference_steps=0"),
    ],
)
def test_senseless_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


# --- Shift and times are diffusers'.


@pytest.mark.parametrize("tokens", [16, 256, 1024, 2048, 4096, 8192])
def test_resolution_shift_is_diffusers(tokens: int) -> None:
    expected = calculate_shift(
        tokens,
        base_seq_len=FLUX_DEV["base_image_seq_len"],
        max_seq_len=FLUX_DEV["max_image_seq_len"],
        base_shift=FLUX_DEV["base_shift"],
        max_shift=FLUX_DEV["max_shift"],
    )
    assert ResolutionShift()(tokens) == pytest.approx(expected)


def test_mu_of_the_official_canvas() -> None:
    # 512 x 1024 pixels are 2048 tokens; the official code prints 0.8033 for them.
    assert ResolutionShift()(2048) == pytest.approx(0.8033, abs=5e-5)


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.8033, 1.15])
def test_shift_is_diffusers(mu: float) -> None:
    expected = scheduler().time_shift(mu, 1.0, GRID.numpy())
    np.testing.assert_allclose(shift_time(GRID, mu).numpy(), expected, rtol=1e-5)
    torch.testing.assert_close(shift_time(torch.tensor([0.0, 1.0]), mu), torch.tensor([0.0, 1.0]))


def test_fixed_shift_is_sd3s() -> None:
    fixed = FlowMatchEulerDiscreteScheduler(shift=3.0)
    fixed.set_timesteps(sigmas=list(np.linspace(1, 0.1, 10)))
    torch.testing.assert_close(sampling_times(10, FixedShift(3.0)(2048)), fixed.sigmas, atol=1e-6, rtol=0)
    assert NoShift()(2048) == FixedShift(1.0)(2048) == 0


@pytest.mark.parametrize("steps", [1, 4, 28, 50])
@pytest.mark.parametrize("tokens", [1024, 2048])
def test_sampling_times_are_the_schedulers_sigmas(steps: int, tokens: int) -> None:
    mu = ResolutionShift()(tokens)
    reference = scheduler()
    reference.set_timesteps(sigmas=list(np.linspace(1.0, 1 / steps, steps)), mu=mu)  # as FluxPipeline calls it
    assert torch.equal(sampling_times(steps, mu), reference.sigmas)
