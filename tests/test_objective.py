"""The loss is the weighted mean of the frames' velocity errors, whatever the frames."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models.toy_models import ToyOneFrame, ToyTwoFrames, text_of
from torch import Tensor

from dsd_lightning.objective import FrameLosses, frame_losses
from dsd_lightning.pairs import REFERENCE, TARGET, Condition, Encoded, Task
from dsd_lightning.randomness import normal

SHAPE = (2, 4, 4, 8)
CLEAN, NOISE, ERROR = (normal(SHAPE, name) for name in ("clean", "noise", "error"))
TIMES = torch.tensor([0.2, 0.9])
CONDITION = Condition(text_of(0.0), torch.zeros(2), {})


def losses(weights: dict[str, float], one_frame: bool = False, clean: Tensor = CLEAN) -> FrameLosses:
    """The losses of a model that is off by ERROR."""

    def field(noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        torch.testing.assert_close(noisy, clean + TIMES[:, None, None, None] * (NOISE - clean))
        return NOISE - clean + ERROR

    architecture = (ToyOneFrame if one_frame else ToyTwoFrames)(field)
    return frame_losses(architecture, Encoded(clean, {}), CONDITION, NOISE, TIMES, weights)


def test_a_frames_loss_is_its_mean_squared_error() -> None:
    computed = losses({REFERENCE: 1.0, TARGET: 1.0})
    expected = {REFERENCE: ERROR[..., :4], TARGET: ERROR[..., 4:]}
    for name, error in expected.items():
        torch.testing.assert_close(computed.frames[name], error.square().mean(dim=(1, 2, 3)), atol=1e-5, rtol=1e-4)
    assert computed.total == pytest.approx(float(ERROR.square().mean()), rel=1e-4)


@given(st.floats(0, 10), st.floats(0.01, 10))
def test_the_total_is_the_weighted_mean_of_the_frames(reference: float, target: float) -> None:
    computed = losses({REFERENCE: reference, TARGET: target})
    means = {name: float(frame.mean()) for name, frame in computed.frames.items()}
    expected = (reference * means[REFERENCE] + target * means[TARGET]) / (reference + target)
    assert float(computed.total) == pytest.approx(expected, rel=1e-5)
    assert min(means.values()) - 1e-5 <= float(computed.total) <= max(means.values()) + 1e-5


@given(st.floats(0.01, 10), st.floats(0, 10))
def test_with_one_frame_weights_do_not_matter(target: float, reference: float) -> None:
    computed = losses({TARGET: target, REFERENCE: reference}, one_frame=True)
    assert set(computed.frames) == {TARGET}
    assert float(computed.total) == pytest.approx(float(ERROR.square().mean()), rel=1e-4)


def test_half_precision_errors_are_squared_in_float32() -> None:
    def field(noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        return (NOISE.bfloat16() - CLEAN.bfloat16()) + 0.0625

    encoded = Encoded(CLEAN.bfloat16(), {})
    computed = frame_losses(ToyTwoFrames(field), encoded, CONDITION, NOISE.bfloat16(), TIMES, {TARGET: 1.0})
    assert computed.total.dtype == torch.float32


@pytest.mark.parametrize(
    "weights", [{TARGET: 0.0}, {REFERENCE: 1.0}, {TARGET: 1.0, REFERENCE: -1.0}, {TARGET: 1.0, "left": 1.0}]
)
def test_weights_without_a_target_or_of_unknown_frames_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="frame_weights"):
        Task("identity", False, weights)
