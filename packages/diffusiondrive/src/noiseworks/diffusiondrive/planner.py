"""The planner: a backbone, anchors and a decoder, trained as one and run in a few network calls."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.errors import InputError
from noiseworks.diffusiondrive.baselines import HEADS
from noiseworks.diffusiondrive.decoder import CascadeDecoder, Hoisted, Scene
from noiseworks.diffusiondrive.losses import PLAN, agent_loss, plan_loss, positive_mode
from noiseworks.diffusiondrive.options import Architecture, Denoising
from noiseworks.diffusiondrive.perception import ViewEncoder
from noiseworks.diffusiondrive.plans import Plans
from noiseworks.diffusiondrive.truncation import (
    TRAIN_LEVELS,
    Normalizer,
    add_noise,
    check_anchors,
    ddim,
    levels_of,
    next_level,
    start_of,
)
from torch import Tensor, nn

KIND = "diffusiondrive/planner"
HORIZON = 8  # poses, half a second apart


class TruncatedHead(nn.Module):
    """Anchored truncated diffusion with the cascade decoder.

    Args:
        architecture: Sizes.
        anchors: [N, 8, 2], metres.
        normalizer: Of the schedule's units.
        extent: Metres of the view to each side.
    """

    def __init__(
        self, architecture: Architecture, anchors: Tensor, normalizer: Normalizer, extent: float
    ) -> None:
        super().__init__()
        self.register_buffer("anchors", check_anchors(anchors, normalizer, HORIZON))
        self.normalizer, self.draws = normalizer, architecture.draws
        cascade = architecture.design == "diffusiondrive"
        self.decoder = CascadeDecoder(
            architecture.width,
            HORIZON,
            extent,
            layers=architecture.layers if cascade else 1,
            looks=cascade,
            ffn_residual=architecture.ffn_residual,
            learned_skip=architecture.learned_skip,
        )

    def loss(self, scene: Scene, target: Tensor) -> Tensor:
        """Return the sum of the layers' losses at a level of 0 to 49 for each scene (section 3.4).

        Args:
            scene: From the backbone.
            target: [B, 8, 3].
        """
        batch = len(target)
        level = torch.randint(TRAIN_LEVELS, (batch,), device=target.device)
        again = self.anchors[positive_mode(self.anchors, target), None].expand(-1, self.draws - 1, -1, -1)
        clean = torch.cat((self.anchors.expand(batch, -1, -1, -1), again), dim=1)
        clean = self.normalizer.normalize(clean)
        noisy = add_noise(clean, level, torch.randn_like(clean)).clamp(-1, 1)
        points = self.normalizer.denormalize(noisy)
        layers = self.decoder(points, self.decoder.hoist(scene), level)
        return sum((plan_loss(*layer, self.anchors, target) for layer in layers), target.new_zeros(()))

    def plan(
        self,
        scene: Scene,
        denoising: Denoising,
        generator: torch.Generator | None = None,
        modes: Tensor | None = None,
    ) -> Plans:
        """Return plans from noisy anchors (section 3.2).

        Args:
            scene: From the backbone.
            denoising: Steps and how they move.
            generator: Of the noise, on the CPU; by default one of the denoising's seed.
            modes: Indices of the anchors that are used; all by default.
        """
        generator = generator or torch.Generator().manual_seed(denoising.seed)
        anchors = self.anchors if modes is None else self.anchors[modes]
        batch, levels = len(scene.ego), levels_of(denoising.steps)
        clean = self.normalizer.normalize(anchors).expand(batch, -1, -1, -1)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        x, hoisted = add_noise(clean, start_of(denoising), noise), self.decoder.hoist(scene)
        for index, level in enumerate(levels):
            poses, scores = self.step(x, hoisted, level)
            found = self.normalizer.normalize(poses[..., :2])
            x = ddim(x, found, level, next_level(levels, index, denoising.stepping))
        return Plans(poses, scores, len(levels))

    def step(self, x: Tensor, hoisted: list[Hoisted], level: int) -> tuple[Tensor, Tensor]:
        """Return the last layer's poses and scores of normalised noisy plans at a level."""
        points = self.normalizer.denormalize(x.clamp(-1, 1))
        levels = torch.full((len(x),), level, device=x.device)
        return self.decoder(points, hoisted, levels)[-1]


class Planner(nn.Module):
    """A planner for bird's-eye views.

    Args:
        architecture: Its design and sizes.
        anchors: [N, 8, 2], metres.
        normalizer: Of the schedule's units.
        view: Channels, pixels of the side, and metres to each side.
        about: What it was trained on, for JSON.
    """

    def __init__(
        self,
        architecture: Architecture,
        anchors: Tensor,
        normalizer: Normalizer,
        view: tuple[int, int, float] = (7, 64, 32.0),
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.normalizer, self.view = architecture, normalizer, view
        self.about = about or {}
        channels, size, extent = view
        self.backbone = ViewEncoder(channels, architecture.width, size)
        if architecture.design in HEADS:
            self.head = HEADS[architecture.design](architecture, anchors, normalizer)
        else:
            self.head = TruncatedHead(architecture, anchors, normalizer, extent)

    def loss(self, view: Tensor, status: Tensor, plan: Tensor, agents: Tensor) -> dict[str, Tensor]:
        """Return the losses of a batch, and their sum `loss`; the arguments are those of `joint_loss`."""
        return joint_loss([self], view, status, plan, agents)

    @torch.no_grad()
    def plan(
        self,
        view: Tensor,
        status: Tensor,
        denoising: Denoising | None = None,
        *,
        generator: torch.Generator | None = None,
        modes: Tensor | None = None,
    ) -> Plans:
        """Return plans.

        Args:
            view: [B, channels, size, size] in [-1, 1].
            status: [B, 8].
            denoising: Steps and how they move.
            generator: Of the noise, on the CPU; by default one of the denoising's seed.
            modes: Indices of the anchors that are used; all by default.

        Raises:
            InputError: When the view is of another size.
        """
        channels, size, _ = self.view
        if tuple(view.shape[1:]) != (channels, size, size):
            raise InputError(f"the planner sees [B, {channels}, {size}, {size}], got {list(view.shape)}")
        scene = self.backbone(view, status)
        return self.head.plan(scene, denoising or Denoising(), generator, modes)

    def config(self) -> dict[str, Any]:
        """Return what is needed besides weights to make the planner again, as plain values."""
        return {
            "architecture": asdict(self.architecture),
            "normalizer": {name: list(values) for name, values in asdict(self.normalizer).items()},
            "view": list(self.view),
            "about": self.about,
        }

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and weights atomically."""
        save_artifact(path, KIND, self.config(), self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "Planner":
        """Read a planner that `save_pretrained` wrote.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        return cls.from_parts(*load_artifact(path, KIND), path=path)

    @classmethod
    def from_parts(cls, config: dict[str, Any], tensors: dict[str, Tensor], path: object = "it") -> "Planner":
        """Return a planner of a config and weights.

        Raises:
            ArtifactError: When they are not whole.
        """
        with rebuilding(path, "whole planner"):
            normalizer = Normalizer(*(tuple(config["normalizer"][name]) for name in ("offset", "range")))
            channels, size, extent = config["view"]
            made = cls(
                Architecture(**config["architecture"]),
                tensors["head.anchors"].float(),
                normalizer,
                (channels, size, extent),
                config["about"],
            )
            made.load_state_dict(tensors)
        return made.eval().requires_grad_(False)


def joint_loss(
    planners: Sequence[Planner], view: Tensor, status: Tensor, plan: Tensor, agents: Tensor
) -> dict[str, Tensor]:
    """Return the losses of planners that share the first one's backbone, by design, and their sum `loss`.

    Args:
        planners: Of different designs.
        view: [B, channels, size, size] in [-1, 1].
        status: [B, 8].
        plan: The expert's, [B, 8, 3].
        agents: x, y, heading, length, width and whether there is one, [B, K, 6].
    """
    backbone = planners[0].backbone
    scene = backbone(view, status)
    plans = {planner.architecture.design: planner.head.loss(scene, plan) for planner in planners}
    seen = agent_loss(*backbone.agents(scene), agents)
    return {"loss": PLAN * torch.stack([*plans.values()]).sum() + seen, **plans, "agents": seen}
