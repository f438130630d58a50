"""The trained model and the reference it is held to, as log-probabilities of given tokens."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError, first_line
from noiseworks.core.models import resolve_model
from noiseworks.kits.masked_lm import HostSpec, aligned_logits
from noiseworks.mdpo.objective import token_log_probs
from noiseworks.mdpo.options import ADAPTER_TARGETS
from torch import Tensor, nn


def add_lora(
    model: nn.Module, rank: int, alpha: float, dropout: float, targets: tuple[str, ...] = ADAPTER_TARGETS
) -> nn.Module:
    """Return the model with trainable peft LoRA adapters on the named linear layers, all else frozen.

    Raises:
        InputError: When the model has no layer of these names.
    """
    from peft import LoraConfig, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [target for target in targets if target not in names]
    if missing:
        raise InputError(f"lora_targets must name linear layers of the model, {missing[0]!r} is none")
    return get_peft_model(
        model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
    )


def load_adapter(model: nn.Module, name: str) -> nn.Module:
    """Return the model with LoRA adapters that a training run saved.

    Args:
        model: The model that they were trained on.
        name: Their directory, or a hub id.

    Raises:
        InputError: When there are none, or they are another model's.
    """
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, resolve_model(name)).eval()
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"cannot put the adapter {name} on the model: {first_line(error)}") from error


def masked_positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the masked positions of each row first, and which of them are real.

    Args:
        mask: bool [B, L].

    Returns:
        Positions int64 [B, n] and bool [B, n], n the largest number of masks of a row; rows with fewer are
        filled up with positions that are not masked.
    """
    n = int(mask.sum(dim=1).max())
    positions = (~mask).to(torch.int8).argsort(dim=1, stable=True)[:, :n]
    return positions, mask.gather(1, positions)


class Policy(nn.Module):
    """The model as log-probabilities of target tokens; also what Fabric wraps.

    Args:
        model: A masked language model, or a peft model around one.
        spec: Its contract.
    """

    def __init__(self, model: nn.Module, spec: HostSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(
        self, ids: Tensor, attention_mask: Tensor, positions: Tensor, targets: Tensor, temperature: float
    ) -> Tensor:
        """Return log p(target | ids) at each position, float32 [B, n].

        Args:
            ids: Prompt and partly masked completion, int64 [B, P + L].
            attention_mask: [B, P + L].
            positions: Positions in `ids`, int64 [B, n].
            targets: Token at each of them, int64 [B, n].
            temperature: τ of the rollouts.
        """
        logits = aligned_logits(self.model, ids, attention_mask, spec=self.spec, positions=positions)
        return token_log_probs(logits, targets, temperature)

    def trainable(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name.

        Raises:
            InputError: When they are float16, in which gradients vanish and AdamW divides by zero.
        """
        found = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if any(p.dtype == torch.float16 for p in found.values()):
            raise InputError("weights in float16 cannot be trained; load the model with dtype float32")
        return found


class Reference:
    """The model that the KL term holds the policy to: a frozen copy, or the policy with its adapters off.

    Args:
        policy: The policy; with peft adapters no copy is made.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.copy: Policy | None = None
        if not hasattr(policy.model, "disable_adapter"):
            self.copy = copy.deepcopy(policy).requires_grad_(False).eval()

    @torch.no_grad()
    def log_probs(self, *arguments: Any) -> Tensor:
        """Return what `Policy.forward` returns, under the reference."""
        if self.copy is not None:
            return self.copy(*arguments)
        with _evaluating(self.policy), self.policy.model.disable_adapter():
            return self.policy(*arguments)

    @torch.no_grad()
    def sync(self, mix: float) -> None:
        """Move the reference towards the policy: ref ← mix · policy + (1 − mix) · ref.

        Raises:
            InputError: With adapters, whose reference is the model without them.
        """
        check_number("reference_mix", mix, low=0, high=1)
        if self.copy is None:
            raise InputError("a reference without adapters cannot be synced; set reference_sync_every to 0")
        for kept, new in zip(self.copy.parameters(), self.policy.parameters(), strict=True):
            kept.lerp_(new.to(kept), mix)

    def state_dict(self) -> dict[str, Tensor] | None:
        """Return the frozen copy's weights; None with adapters."""
        return None if self.copy is None else self.copy.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor] | None) -> None:
        """Restore what `state_dict` returned."""
        if self.copy is not None and state is not None:
            self.copy.model.load_state_dict(state)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
