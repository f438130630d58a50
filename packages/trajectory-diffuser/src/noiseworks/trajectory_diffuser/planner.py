"""The planner: draft, refinement, inverse dynamics and critic together, saved as one artifact."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.networks import mlp
from noiseworks.trajectory_diffuser.drafting import make_draft
from noiseworks.trajectory_diffuser.options import Architecture, Planning
from noiseworks.trajectory_diffuser.refining import Refiner, from_noise, refine
from torch import Tensor, nn

KIND = "trajectory-diffuser/planner"


@dataclass(frozen=True)
class Plan:
    """Plans of B environments.

    Attributes:
        states: The chosen plan in the data's units, [B, H, Do]; its first state is the current one.
        draft: What was refined, [B, H, Do] in the data's units; None from noise.
        actions: Of the chosen plan's steps, [B, H - 1, Da].
        values: Returns that the critic expects of each candidate's first action, [B, K].
        chosen: Which candidate, [B].
        calls: Network calls, of the draft model and of the refiner.
        seconds: How long it took.
    """

    states: Tensor
    draft: Tensor | None
    actions: Tensor
    values: Tensor
    chosen: Tensor
    calls: tuple[int, int]
    seconds: float


class TrajectoryPlanner(nn.Module):
    """The four networks and the data's statistics.

    Args:
        obs_dim: Width of a state, Do.
        action_dim: Width of an action, Da.
        architecture: Sizes.
        about: What it was trained on, for JSON.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        architecture: Architecture | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_number("obs_dim", obs_dim, low=1, integer=True)
        check_number("action_dim", action_dim, low=1, integer=True)
        self.obs_dim, self.action_dim = obs_dim, action_dim
        self.architecture, self.about = architecture or Architecture(), about or {}
        hidden = self.architecture.hidden
        self.draft = make_draft(obs_dim, self.architecture)
        self.refiner = Refiner(obs_dim, self.architecture)
        self.dynamics = mlp(2 * obs_dim, action_dim, hidden)
        self.critic = nn.Sequential(
            nn.Linear(obs_dim + action_dim, hidden // 2),
            nn.Mish(),
            nn.Linear(hidden // 2, hidden // 2),
            nn.Mish(),
            nn.Linear(hidden // 2, 1),
        )
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("std", torch.ones(obs_dim))
        self.register_buffer("action_low", -torch.ones(action_dim))
        self.register_buffer("action_high", torch.ones(action_dim))
        self.register_buffer("return_range", torch.zeros(2))  # of the data's episodes, unscaled

    def normalise(self, obs: Tensor) -> Tensor:
        """Return states [..., Do] in the networks' units."""
        return (obs - self.mean) / self.std

    def action(self, states: Tensor, next_states: Tensor) -> Tensor:
        """Return the actions [..., Da] between states in the networks' units, within the data's bounds (eq. 6)."""
        made = self.dynamics(torch.cat((states, next_states), -1))
        return torch.clamp(made, self.action_low, self.action_high)

    def value(self, states: Tensor, actions: Tensor) -> Tensor:
        """Return the scaled returns [...] that the critic expects."""
        return self.critic(torch.cat((states, actions), -1)).squeeze(-1)

    @torch.no_grad()
    def plan(
        self,
        states: Tensor,
        returns: Tensor,
        planning: Planning | None = None,
        generator: torch.Generator | None = None,
    ) -> Plan:
        """Return a plan for each environment.

        Args:
            states: Past states in the data's units, the current one last, [B, L, Do].
            returns: Wished returns at those states, unscaled, [B, L].
            planning: How.
            generator: Of all noise and of the choice.

        Raises:
            InputError: When widths differ, a return is not finite, or there are more steps than the schedule has.
        """
        planning, begun = planning or Planning(), time.perf_counter()
        if states.ndim != 3 or states.shape[-1] != self.obs_dim or returns.shape != states.shape[:2]:
            raise InputError(
                f"the planner reads states [B, L, {self.obs_dim}] and returns [B, L], got {tuple(states.shape)} and "
                f"{tuple(returns.shape)}"
            )
        past, wishes = self.normalise(states), returns / self.architecture.return_scale
        horizon, wish = self.architecture.horizon, wishes[:, -1]
        if planning.start == "noise":
            draft, calls = None, (0, planning.steps or self.architecture.num_steps)
            made = from_noise(self.refiner, past[:, -1], wish, horizon, planning, generator)
        else:
            room = min(planning.context or self.draft.room, self.draft.room)
            ahead = self.draft.dream(past[:, -room:], wishes[:, -room:], horizon - 1)
            draft, calls = torch.cat((past[:, -1:], ahead), 1), (horizon - 1, planning.steps)
            made = refine(self.refiner, draft, wish, planning, generator)
        values = self.value(made[:, :, 0], self.action(made[:, :, 0], made[:, :, 1]))
        chosen = self._choose(values, planning.temperature, generator)
        states = made[torch.arange(len(made)), chosen]
        return Plan(
            states * self.std + self.mean,
            None if draft is None else draft * self.std + self.mean,
            self.action(states[:, :-1], states[:, 1:]),
            values * self.architecture.return_scale,
            chosen,
            calls,
            time.perf_counter() - begun,
        )

    def _choose(self, values: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
        if temperature == 0 or values.shape[1] == 1:
            return values.argmax(1)
        return torch.multinomial((values / temperature).softmax(1).cpu(), 1, generator=generator)[:, 0].to(
            values.device
        )

    def config(self) -> dict[str, Any]:
        """Return what is needed besides weights to make the planner again, as plain values."""
        return {
            "obs_dim": self.obs_dim,
            "action_dim": self.action_dim,
            "architecture": asdict(self.architecture),
            "about": self.about,
        }

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and weights atomically."""
        save_artifact(path, KIND, self.config(), self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "TrajectoryPlanner":
        """Read a planner that `save_pretrained` wrote.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        return cls.from_parts(*load_artifact(path, KIND), path=path)

    @classmethod
    def from_parts(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], path: object = "it"
    ) -> "TrajectoryPlanner":
        """Return a planner of a config and weights.

        Raises:
            ArtifactError: When they are not whole.
        """
        with rebuilding(path, "whole planner"):
            sizes = Architecture(**config["architecture"])
            planner = cls(config["obs_dim"], config["action_dim"], sizes, config["about"])
            planner.load_state_dict({name: t.float() for name, t in tensors.items()})
        return planner.eval().requires_grad_(False)
