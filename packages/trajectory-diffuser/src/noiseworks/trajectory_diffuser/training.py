"""Training of the four networks on recorded experience: their losses share nothing but the batch."""

from typing import Any

import lightning as L  # noqa: TID253
import numpy as np
import torch
import torch.nn.functional as F
from noiseworks.kits.rl.offline import obs_statistics
from noiseworks.kits.rl.transitions import Transitions
from noiseworks.kits.training import Average, Batches, Run, fit
from noiseworks.trajectory_diffuser.drafting import draft_loss
from noiseworks.trajectory_diffuser.options import Architecture, Fitting
from noiseworks.trajectory_diffuser.planner import TrajectoryPlanner
from noiseworks.trajectory_diffuser.refining import DROP_RETURN, refiner_loss
from torch import Tensor

EMA_DECAY, EMA_EVERY, WEIGHT_DECAY, LAST_RATE = 0.995, 2, 1e-4, 0.01


class PlannerModule(L.LightningModule):
    """The sum of the four losses, Adam, and the refiner's average.

    Adam treats each number by itself, so one optimiser over separate networks is what four would be.

    Args:
        planner: The planner, whose statistics are set.
        options: Rates, and which parts are trained.
    """

    def __init__(self, planner: TrajectoryPlanner, options: Fitting) -> None:
        super().__init__()
        self.planner, self.options = planner, options
        copied = options.average_from // EMA_EVERY
        self.average = Average(planner.refiner, lambda update: 0.0 if update < copied else EMA_DECAY)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch of windows."""
        states, returns = batch["states"], batch["returns"]
        losses = {"draft": draft_loss(self.planner.draft, states, returns)}
        if self.options.parts == "all":
            losses |= self._others(states, returns, batch["actions"])
        for name, value in losses.items():
            self.log(f"loss/{name}", value.detach())
        loss = sum(losses.values())
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def _others(self, states: Tensor, returns: Tensor, actions: Tensor) -> dict[str, Tensor]:
        planner, size = self.planner, (len(states),)
        t = torch.randint(planner.architecture.num_steps, size, device=states.device)
        shown = (torch.rand(size, device=states.device) >= DROP_RETURN).to(states)
        noise = torch.randn_like(states)
        made = planner.action(states[:, :-1], states[:, 1:])
        value = planner.value(states[:, :-1], actions[:, :-1])
        return {
            "refiner": refiner_loss(
                planner.refiner,
                states,
                (returns[:, 0], shown),
                t,
                noise,
                clean_start=self.options.clean_start,
            ),
            "dynamics": F.mse_loss(made, actions[:, :-1]),
            "critic": F.mse_loss(value, returns[:, :-1]),
        }

    def configure_optimizers(self) -> dict:
        """Return AdamW, which decays the refiner's weights alone, with rates that fall but for the critic's."""
        planner, options = self.planner, self.options
        parts = [(planner.draft, 0.0, True)]
        if options.parts == "all":
            parts += [
                (planner.refiner, WEIGHT_DECAY, True),
                (planner.dynamics, 0.0, True),
                (planner.critic, 0.0, False),
            ]
        groups = [{"params": list(part.parameters()), "weight_decay": decay} for part, decay, _ in parts]
        optimizer = torch.optim.AdamW(groups, options.learning_rate, fused=True)
        falls = [_falling(options.decay_steps) if falling else _constant for _, _, falling in parts]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, falls)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average, every second step: a checkpoint of the step holds both."""
        super().optimizer_step(*args, **kwargs)
        if self.options.parts == "all" and (self.global_step + 1) % EMA_EVERY == 0:
            self.average.update(self.planner.refiner)


def _falling(steps: int):
    return lambda step: 1 + (LAST_RATE - 1) * min(step / steps, 1.0)


def _constant(step: int) -> float:
    return 1.0


def windows_of(transitions: Transitions, planner: TrajectoryPlanner) -> dict[str, Tensor]:
    """Return all windows that a step of the episode follows: states, actions and returns-to-go in the planner's units.

    An episode of L steps gives L - H of them.

    Raises:
        InputError: When none fits.
    """
    rows = transitions.windows(planner.architecture.horizon, starts="strict")
    index = rows[:, None] + np.arange(planner.architecture.horizon)
    returns = transitions.returns_to_go() / planner.architecture.return_scale
    return {
        "states": planner.normalise(torch.from_numpy(transitions.observations[index])),
        "actions": torch.from_numpy(transitions.actions[index]),
        "returns": torch.from_numpy(returns[index].astype(np.float32)),
    }


def make_planner(transitions: Transitions, architecture: Architecture, seed: int) -> TrajectoryPlanner:
    """Return an untrained planner with the data's statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        planner = TrajectoryPlanner(
            transitions.obs_dim, transitions.action_dim, architecture, {"data": dict(transitions.about)}
        )
    mean, std = obs_statistics(transitions)
    planner.mean.copy_(mean)
    planner.std.copy_(std)
    planner.action_low.copy_(torch.from_numpy(transitions.actions.min(0)))
    planner.action_high.copy_(torch.from_numpy(transitions.actions.max(0)))
    totals = transitions.returns()
    planner.return_range.copy_(torch.tensor([totals.min(), totals.max()]))
    return planner


def fit_planner(
    transitions: Transitions,
    architecture: Architecture,
    options: Fitting,
    run: Run | None = None,
    planner: TrajectoryPlanner | None = None,
) -> TrajectoryPlanner:
    """Return a planner trained on recorded experience, whose refiner has the averaged weights.

    Args:
        transitions: What was recorded.
        architecture: Sizes.
        options: Length, rates and bookkeeping.
        run: The open run, None to keep nothing on the way.
        planner: One to train on, changed in place; by default a new one.

    Raises:
        InputError: When no window fits, or there are fewer than a batch.
        NonFiniteError: When the loss is not finite; the last checkpoint stays.
    """
    planner = planner or make_planner(transitions, architecture, options.seed)
    planner.requires_grad_(True).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        batches = Batches(windows_of(transitions, planner), options.batch_size, seed=options.seed)
        module = PlannerModule(planner, options)
        fit(module, batches, run=run, options=options)
    if options.parts == "all":
        planner.refiner.load_state_dict(module.average.model.state_dict())
    return planner.eval().requires_grad_(False)
