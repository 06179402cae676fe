"""Converts our timestep shifts to diffusers' scheduler, which a pipeline is saved with, and back."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler

from dsd_lightning.flux import base
from dsd_lightning.rectified_flow import FixedShift, ResolutionShift, sampling_times
from dsd_lightning.sampler import Shift


def scheduler_of(shift: Shift) -> FlowMatchEulerDiscreteScheduler:
    """Return diffusers' scheduler with a shift; the inverse of `shift_of`."""
    if isinstance(shift, ResolutionShift):
        return FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_image_seq_len=shift.base_tokens,
            max_image_seq_len=shift.max_tokens,
            base_shift=shift.base_mu,
            max_shift=shift.max_mu,
        )
    return FlowMatchEulerDiscreteScheduler(shift=shift.factor if isinstance(shift, FixedShift) else 1.0)


def scheduler_of_base(flux: base.FluxBase) -> FlowMatchEulerDiscreteScheduler:
    """Return the base's own scheduler."""
    return FlowMatchEulerDiscreteScheduler.from_config(flux.scheduler_config())


def shift_of(scheduler: FlowMatchEulerDiscreteScheduler) -> Shift:
    """Return the timestep shift that a scheduler stands for."""
    return base.shift_of(scheduler.config)


def times_of(scheduler: FlowMatchEulerDiscreteScheduler, steps: int, image_tokens: int) -> list[float]:
    """Return the timesteps as diffusers counts them, from 1000 down; one a step."""
    times = sampling_times(steps, shift_of(scheduler)(image_tokens))[:-1]
    return [float(time) for time in times * scheduler.config.num_train_timesteps]
