"""The two optimizers behind one do what each would do alone, and go on from a saved state as if never stopped."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dsd_lightning.training.muon import BatchedMuon, MuonWithAdamW, orthogonalise

MATRICES = r"^block\."


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.block(self.embed(inputs))))


def _model() -> _Model:
    torch.manual_seed(0)
    return _Model()


def _optimizer(model: nn.Module) -> MuonWithAdamW:
    return MuonWithAdamW(model.named_parameters(), lr=0.01, muon_lr=0.02, matrices=MATRICES, weight_decay=0.1)


def _train(model: nn.Module, optimizers: list[torch.optim.Optimizer], steps: range) -> None:
    for step in steps:
        inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        for optimizer in optimizers:
            optimizer.zero_grad()
        (model(inputs) - inputs[:, :2]).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4)])
def test_orthogonal_matrices_result(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert ((singular > 0.4) & (singular < 1.6)).all()


def test_batches_are_torch_s_muon_matrix_by_matrix() -> None:
    shapes = [(8, 16), (16, 8), (8, 16), (8, 8)]
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    mine, torchs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    optimizers = [
        BatchedMuon(mine, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(torchs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(5):
        for one, other in zip(mine, torchs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for before, one, other in zip(start, mine, torchs, strict=True):
        assert (one - before).abs().max() > 0.02
        # both orthogonalise in bfloat16, in other orders of summation
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)


def _same(first: nn.Module, second: nn.Module) -> None:
    for (name, one), (_, other) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_each_updates_its_parameters_as_it_would_alone() -> None:
    together, apart = _model(), _model()
    _train(together, [_optimizer(together)], range(5))
    rest = [value for name, value in apart.named_parameters() if name != "block.weight"]
    muon = torch.optim.Muon([apart.block.weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    _train(apart, [muon, adamw], range(5))
    for (name, one), (_, other) in zip(together.named_parameters(), apart.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3 if name == "block.weight" else 1e-4, msg=name)


def test_a_saved_state_goes_on_as_if_never_stopped() -> None:
    straight, stopped = _model(), _model()
    _train(straight, [_optimizer(straight)], range(6))
    first = _optimizer(stopped)
    _train(stopped, [first], range(3))
    state = copy.deepcopy(first.state_dict())
    second = _optimizer(stopped)
    second.load_state_dict(state)
    _train(stopped, [second], range(3, 6))
    _same(straight, stopped)


def test_a_schedule_reaches_both() -> None:
    model = _model()
    optimizer = _optimizer(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    _train(model, [optimizer], range(1))
    schedule.step()
    before = copy.deepcopy(model)
    _train(model, [optimizer], range(1, 3))
    _same(before, model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]


def test_a_step_evaluates_its_closure_once_with_gradients() -> None:
    model, calls = _model(), []
    optimizer = _optimizer(model)

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = model(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0
    assert calls == [True]


@pytest.mark.parametrize(("matrices", "alone"), [("nothing like this", torch.optim.AdamW), (".", BatchedMuon)])
def test_a_pattern_may_leave_one_of_them_without_work(matrices: str, alone: type[torch.optim.Optimizer]) -> None:
    linear = nn.Linear(3, 3, bias=False)
    optimizer = MuonWithAdamW(linear.named_parameters(), lr=0.01, muon_lr=0.02, matrices=matrices)
    before = linear.weight.clone()
    linear(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert [type(part) for part in optimizer.parts] == [alone]
    assert not torch.equal(linear.weight, before)
