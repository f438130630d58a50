"""LoRA on a pruned denoiser, trained on the whole one's predictions, and merged: the optional light retraining.

The whole denoiser is the teacher at one random step of its own runs, so that no images are needed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.noise import mix64
from noiseworks.ecodiff.objective import Runs, reconstruction, record
from noiseworks.ecodiff.options import Recovery
from noiseworks.kits.diffusers_hosts.rows import prediction_of
from noiseworks.kits.training import Batches, Fit, Run, rounds
from noiseworks.kits.training.loop import make_fabric
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "proj_mlp", "proj_out"]


def recover(
    runs: Runs,
    pruned: nn.Module,
    recovery: Recovery = Recovery(),
    run: Run | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train LoRA on a pruned denoiser and merge it; a run that was stopped goes on to the same numbers.

    Args:
        runs: The whole pipeline and the prompts.
        pruned: The smaller denoiser, changed in place.
        recovery: How.
        run: The open run, or None to keep nothing.
        progress: Whether to show a bar.

    Returns:
        The denoiser, of the same size as before, with the adapters in its weights.

    Raises:
        NonFiniteError: When the loss is not finite.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    names = [name for name, one in pruned.named_modules() if isinstance(one, nn.Linear)]
    wanted = [name for name in names if name.endswith(tuple(TARGETS)) and _whole(pruned, name)]
    pruned.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recovery.adapter_seed)
        inject_adapter_in_model(
            LoraConfig(r=recovery.rank, lora_alpha=recovery.rank, target_modules=wanted), pruned
        )
    loop = RecoveryLoop(runs, pruned, recovery)
    options = Fit(
        max_steps=recovery.steps,
        checkpoint_every=recovery.checkpoint_every,
        device=runs.pipe.device.type,
        seed=recovery.adapter_seed,
    )
    rounds(loop, run=run, options=options, fabric=make_fabric(options), progress=progress)
    layers = [(name, one) for name, one in pruned.named_modules() if isinstance(one, LoraLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(pruned.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(pruned, "peft_config"):
        del pruned.peft_config
    return pruned


def _whole(model: nn.Module, name: str) -> bool:
    weight = model.get_submodule(name).weight
    return min(weight.shape) > 0


class RecoveryLoop:
    """One update a round, on one batch of prompts at one random step.

    Args:
        runs: The whole pipeline and the prompts.
        pruned: The smaller denoiser with adapters.
        recovery: Settings.
    """

    def __init__(self, runs: Runs, pruned: nn.Module, recovery: Recovery) -> None:
        self.runs, self.pruned, self.recovery = runs, pruned, recovery
        self.weights = {name: p for name, p in pruned.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=recovery.learning_rate)
        size = min(runs.sampling.batch_size, len(runs.prompts))
        self.batches = Batches({"row": torch.arange(len(runs.prompts))}, size, seed=recovery.adapter_seed)
        self._order = self.batches.endless()

    def round(self, step: int) -> Mapping[str, float]:
        """Do one update."""
        rows = next(self._order)["row"].tolist()
        at = mix64(self.recovery.adapter_seed, step, 7) % self.runs.sampling.num_inference_steps
        losses: list[Tensor] = []
        for call, target in record(self.runs, rows, at):
            losses.append(
                reconstruction(prediction_of(self.pruned(*call.args, **call.kwargs)), target, "mse")
            )
        loss = torch.stack(losses).mean()
        check_finite("the recovery loss", loss.detach(), step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": float(loss.detach())}

    def state_dict(self) -> dict[str, Any]:
        """Return adapters, optimiser and the place in the prompts' order."""
        return {
            "adapters": {name: p.detach().cpu() for name, p in self.weights.items()},
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        with torch.no_grad():
            for name, value in state["adapters"].items():
                self.weights[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self._order = self.batches.endless()
