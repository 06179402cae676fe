"""An optimizer for pretraining small models: Muon for the blocks' matrices, AdamW for everything else.

Muon orthogonalises the momentum of a matrix, so that all of its directions learn at one speed (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon; here `torch.optim.Muon`). Embedders, modulations, norms and biases stay with
AdamW, as its authors advise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Two optimizers behind one: the parameter groups are `[matrices under Muon, the rest under AdamW]`.

    Args:
        parameters: trained parameters with their names.
        lr: learning rate of AdamW.
        muon_lr: learning rate of Muon, scaled so that its updates have the size of AdamW's
            (`adjust_lr_fn="match_rms_adamw"`, arXiv 2502.16982).
        matrices: regular expression; two-dimensional parameters whose name it finds go to Muon.
        momentum: Muon's.
        betas, eps: AdamW's.
        weight_decay: decoupled, of both.

    Raises:
        ValueError: if no parameter goes to Muon, or none to AdamW; then one of them alone is meant.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        muon_lr: float,
        matrices: str,
        momentum: float = 0.95,
        betas: Sequence[float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        named = list(parameters)
        hidden = [(name, value) for name, value in named if value.ndim == 2 and re.search(matrices, name)]
        chosen = {name for name, _ in hidden}
        rest = [(name, value) for name, value in named if name not in chosen]
        if not hidden or not rest:
            raise ValueError(
                f"optimizer.matrices={matrices!r} finds {len(hidden)} of {len(named)} trained parameters; Muon and AdamW "
                "need some each (optimizer=adamw for AdamW alone)"
            )
        self.muon = Muon(
            hidden, lr=muon_lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self.adamw = AdamW(rest, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the two read and write this optimizer's own groups and state, so that there is one of each."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over groups and state, as `load_state_dict` asks."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Evaluate `closure` once, if there is one, then update all parameters, and return the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss
