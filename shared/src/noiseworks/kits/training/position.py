"""Where a Lightning run stands in its data and its random numbers, as part of its checkpoint."""

from typing import Any

import lightning as L  # noqa: TID253
import torch
from lightning.pytorch.callbacks import Callback  # noqa: TID253
from noiseworks.kits.training.state import random_state, restore_random_state

_KEY = "noiseworks_position"


class Position(Callback):
    """Stores and restores the place in `Batches` and every process's random state; `fit` has one.

    Lightning restores a loader itself, but not when the run had been stopped within an epoch on purpose.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the position; all processes take part."""
        own = random_state(trainer.strategy.root_device).to(trainer.strategy.root_device)
        states = trainer.strategy.all_gather(own).reshape(-1, len(own)).cpu()
        checkpoint[_KEY] = {"random": states, "loader": trainer.train_dataloader.state_dict()}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the position until training starts."""
        self._restored = checkpoint.get(_KEY)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore it after everything that draws in setting up."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        trainer.train_dataloader.load_state_dict(state["loader"])
        states: torch.Tensor = state["random"]
        restore_random_state(states[min(trainer.global_rank, len(states) - 1)], trainer.strategy.root_device)
