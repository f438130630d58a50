"""Adan, adaptive Nesterov momentum (Xie et al. 2022, arXiv 2208.06677), the optimiser of the released recipes."""

from collections.abc import Iterable
from typing import Any

import torch
from noiseworks.core.checks import check_number
from torch.optim import Optimizer


class Adan(Optimizer):
    """Algorithm 1, with the betas as one minus the paper's, decoupled weight decay after the step.

    With g the gradient and d its change since the last step (0 at the first):
    `m = β1 m + (1 - β1) g`, `v = β2 v + (1 - β2) d`, `n = β3 n + (1 - β3) (g + β2 d)²`, all corrected for their start,
    `θ = (θ - η (m + β2 v) / (√n + ε)) / (1 + η λ)`.

    Args:
        params: Parameters or groups.
        lr: η.
        betas: β1, β2, β3.
        eps: ε.
        weight_decay: λ.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.9),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        check_number("lr", lr, low=0)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; a closure that returns the loss is called first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            held = [p for p in group["params"] if p.grad is not None]
            if held:
                self._step(group, held)
        return loss

    def _step(self, group: dict[str, Any], held: list[torch.Tensor]) -> None:
        for p in held:
            if not self.state[p]:
                zeros = {name: torch.zeros_like(p) for name in ("momentum", "change", "square")}
                self.state[p] = {**zeros, "last": p.grad.clone()}
        states, (b1, b2, b3) = [self.state[p] for p in held], group["betas"]
        grads = [p.grad for p in held]
        lists = {name: [state[name] for state in states] for name in ("momentum", "change", "square", "last")}
        changes = torch._foreach_sub(grads, lists["last"])
        torch._foreach_lerp_(lists["momentum"], grads, 1 - b1)
        torch._foreach_lerp_(lists["change"], changes, 1 - b2)
        ahead = torch._foreach_add(grads, changes, alpha=b2)
        torch._foreach_mul_(lists["square"], b3)
        torch._foreach_addcmul_(lists["square"], ahead, ahead, 1 - b3)
        torch._foreach_copy_(lists["last"], grads)
        group["step"] = group.get("step", 0) + 1
        c1, c2, c3 = (1 - beta ** group["step"] for beta in (b1, b2, b3))
        below = torch._foreach_sqrt(lists["square"])
        torch._foreach_div_(below, c3**0.5)
        torch._foreach_add_(below, group["eps"])
        torch._foreach_addcdiv_(held, lists["momentum"], below, -group["lr"] / c1)
        torch._foreach_addcdiv_(held, lists["change"], below, -group["lr"] * b2 / c2)
        torch._foreach_div_(held, 1 + group["lr"] * group["weight_decay"])
