"""Learning the masks: AdamW on the logits alone, through the whole sampler; every weight stays as it is."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.checks import check_finite
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.core.noise import mix64
from noiseworks.ecodiff.hard_concrete import hard_concrete
from noiseworks.ecodiff.masks import NAME, MaskSet
from noiseworks.ecodiff.objective import Current, Masks, Runs, step_loss, trajectory_loss
from noiseworks.ecodiff.options import Learning
from noiseworks.kits.diffusers_hosts.layouts import denoiser_of, layout_of
from noiseworks.kits.diffusers_hosts.units import Units, mask_units
from noiseworks.kits.training import Batches, Fit, Run, rounds
from noiseworks.kits.training.loop import make_fabric
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def learn_masks(
    runs: Runs, units: Units, learning: Learning = Learning(), run: Run | None = None, progress: bool = True
) -> MaskSet:
    """Learn which units a pipeline can do without; a run that was stopped goes on to the same numbers.

    Args:
        runs: The pipeline and the calibration prompts.
        units: The units of its denoiser.
        learning: How.
        run: The open run, or None to keep nothing.
        progress: Whether to show a bar.

    Returns:
        The learned logits.

    Raises:
        InputError: When there are fewer prompts than an update takes.
        UnsupportedHostError: When the scheduler draws noise in its steps, which no seed here decides.
        NonFiniteError: When the loss is not finite; the last checkpoint stays.
    """
    check_sampler(runs.pipe)
    learning = learning.resolved(layout_of(runs.pipe).family)
    loop = MaskLoop(runs, units, learning)
    device = runs.pipe.device.type
    options = Fit(
        max_steps=loop.updates, checkpoint_every=learning.checkpoint_every, log_every=1, device=device
    )
    with loop.attached():
        rounds(loop, run=run, options=options, fabric=make_fabric(options), progress=progress)
    return loop.masks


def check_sampler(pipe: "DiffusionPipeline") -> None:
    """Refuse a scheduler whose steps draw noise.

    Raises:
        UnsupportedHostError: Naming it.
    """
    name = type(pipe.scheduler).__name__
    config = pipe.scheduler.config
    draws = any(word in name for word in ("Ancestral", "SDE", "DDPM", "LCM", "TCD"))
    if draws or "sde" in config.get("algorithm_type", "") or config.get("stochastic_sampling", False):
        raise UnsupportedHostError(
            f"{name} draws noise in its steps: set a deterministic scheduler such as DDIMScheduler first"
        )


class MaskLoop:
    """One update a round: `accumulate` prompts, some of them at once under one draw of the masks.

    Args:
        runs: The pipeline and the prompts.
        units: The units.
        learning: Resolved settings.

    Attributes:
        masks: The logits.
        updates: Rounds in all.
    """

    def __init__(self, runs: Runs, units: Units, learning: Learning) -> None:
        learning.check_prompts(len(runs.prompts))
        self.runs, self.units, self.learning = runs, units, learning
        self.masks = MaskSet.new(units, learning.start)
        numbers = {"row": torch.arange(len(runs.prompts))}
        self.batches = Batches(numbers, learning.accumulate, seed=learning.mask_seed)
        self.updates = learning.epochs * len(self.batches)
        self.current = Current()
        rates = {"attn": learning.lr_attn, "ffn": learning.lr_ffn, "norm": learning.lr_norm}
        device = denoiser_of(runs.pipe).device
        self.masks.logits = {
            path: values.to(device).requires_grad_() for path, values in self.masks.logits.items()
        }
        self.optimizer = torch.optim.AdamW(
            [{"params": self.masks.family(kind), "lr": rates[kind]} for kind in self.masks.families]
        )
        self._order = self.batches.endless()

    def attached(self) -> Any:
        """Attach to the denoiser; a context manager."""
        return mask_units(denoiser_of(self.runs.pipe), self.units, lambda: self.current.masks, NAME)

    def round(self, step: int) -> Mapping[str, float]:
        """Do one update: the sum over its prompts of reconstruction + β R (eq. 6)."""
        rows = next(self._order)["row"].tolist()
        size = self.runs.sampling.batch_size
        parts = [rows[first : first + size] for first in range(0, len(rows), size)]
        self.optimizer.zero_grad()
        found = [
            self._backward(part, mix64(self.learning.mask_seed, step, number))
            for number, part in enumerate(parts)
        ]
        penalty = self.masks.penalty(self.learning.penalty, self.learning.bounded)
        (len(rows) * self.learning.beta * penalty).backward()
        self.optimizer.step()
        self.masks.updates = step + 1
        error = sum(found) / len(rows)
        loss = error + self.learning.beta * float(penalty.detach())
        gone = {f"at most 0, {kind}": share for kind, share in self.masks.sparsity().items()}
        return {
            "loss": loss,
            "reconstruction": error,
            "penalty": float(penalty.detach()),
            **gone,
            **self._clamped(),
        }

    def _backward(self, rows: Sequence[int], seed: int) -> float:
        draws = _Draws(self.masks, self.learning, seed)
        if self.learning.objective == "trajectory":
            loss = trajectory_loss(self.runs, rows, draws, self.current, self.learning)
        else:
            loss = step_loss(self.runs, rows, draws(0), self.current, seed=seed, loss=self.learning.loss)
        check_finite("the reconstruction loss", loss.detach())
        (len(rows) * loss).backward()
        return len(rows) * float(loss.detach())

    def _clamped(self) -> dict[str, float]:
        """Return the share of units whose mask would be 1 for every draw: they get no gradient but the penalty's."""
        with torch.no_grad():
            lowest = _lowest(self.masks, self.learning.eps)
        return {"whole in any draw": float((lowest >= 1).float().mean())}

    def state_dict(self) -> dict[str, Any]:
        """Return logits, optimiser and the place in the prompts' order."""
        return {
            "logits": {path: values.detach().cpu() for path, values in self.masks.logits.items()},
            "updates": self.masks.updates,
            "optimizer": self.optimizer.state_dict(),
            "batches": self.batches.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        with torch.no_grad():
            for path, values in state["logits"].items():
                self.masks.logits[path].copy_(values)
        self.masks.updates = state["updates"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.batches.load_state_dict(state["batches"])
        self._order = self.batches.endless()


def _lowest(masks: MaskSet, eps: float) -> Tensor:
    joined = torch.cat([values.flatten() for values in masks.logits.values()])
    return hard_concrete(joined, torch.zeros_like(joined), eps)


class _Draws:
    """Masks of each step of a run: one draw for all steps, or one a step, the same whenever it is asked for.

    A step's own draw is not kept, but made again on the way back like all else of the step.
    """

    def __init__(self, masks: MaskSet, learning: Learning, seed: int) -> None:
        self.masks, self.learning, self.seed = masks, learning, seed
        self.found = None if learning.mask_sample == "step" else self._draw(0)

    def __call__(self, step: int) -> Masks:
        return self._draw(step) if self.found is None else self.found

    def _draw(self, step: int) -> Masks:
        generator = torch.Generator().manual_seed(mix64(self.seed, step) >> 1)
        return self.masks.draw("hard_concrete", self.learning.eps, generator)
