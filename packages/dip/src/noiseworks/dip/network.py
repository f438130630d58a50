"""The motion model and its control branch (MDM and OmniControl's, section 3.2).

A token a frame and one in front for time and action; a post-norm transformer encoder. The control branch is a second
encoder that reads the motion plus an embedding of where joints shall be; what its layers give is added to the base's
layers through linear maps that start at 0, so that a new branch changes nothing.
"""

import copy
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.schedules import TableSchedule, table_schedule
from noiseworks.dip.options import ACTIONS, Architecture
from noiseworks.kits.motion.body import COUNT, NUMBERS
from torch import Tensor, nn

KIND = "dip/motion-model"
LEAST_DEVIATION = 0.05
NUM_STEPS = 1000  # of the schedule: cosine, the clean end at index -1


def motion_schedule() -> TableSchedule:
    """Return the cosine schedule of 1000 steps, beta capped at 0.999."""
    return table_schedule("cosine", NUM_STEPS)


def sinusoids(count: int, width: int) -> Tensor:
    """Return the table of sines (even channels) and cosines (odd) of positions, [count, width]."""
    place = torch.arange(count, dtype=torch.float64)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000.0) / width))
    table = torch.zeros(count, width, dtype=torch.float64)
    table[:, 0::2], table[:, 1::2] = (place * rate).sin(), (place * rate).cos()
    return table.float()


class Stem(nn.Module):
    """Tokens of a noisy motion: one of time and action, then one a frame, with positions.

    Args:
        sizes: Sizes.
    """

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        width = sizes.width
        self.frames = nn.Linear(NUMBERS, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.action = nn.Embedding(len(ACTIONS), width)
        self.register_buffer("table", sinusoids(NUM_STEPS + 1, width), persistent=False)

    def forward(self, x: Tensor, t: Tensor, action: Tensor, hint: Tensor | None = None) -> Tensor:
        """Return tokens [B, 1 + F, width].

        Args:
            x: [B, F, 69].
            t: Indices of the schedule, [B].
            action: Indices of the actions, [B].
            hint: Embedding of the hints, added to the frames, [B, F, width].
        """
        first = self.time(self.table[t]) + self.action(action)
        frames = self.frames(x)
        if hint is not None:
            frames = frames + hint
        tokens = torch.cat((first[:, None], frames), 1)
        return tokens + self.table[: tokens.shape[1]]


def encoder_layers(sizes: Architecture) -> nn.ModuleList:
    """Return post-norm GELU transformer layers."""
    return nn.ModuleList(
        nn.TransformerEncoderLayer(
            sizes.width, sizes.heads, sizes.feedforward, sizes.dropout, activation="gelu", batch_first=True
        )
        for _ in range(sizes.layers)
    )


class ControlBranch(nn.Module):
    """The second encoder, which sees hints.

    Args:
        sizes: Sizes.
    """

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        width = sizes.width
        self.stem, self.layers = Stem(sizes), encoder_layers(sizes)
        self.hint = nn.Sequential(
            nn.Linear(3 * COUNT, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(sizes.layers))
        for zero in (self.hint[-1], *self.out):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def embed(self, points: Tensor, mask: Tensor) -> Tensor:
        """Return the embedding of hints, [B, F, width]: 0 in frames without any.

        It depends on no timestep and is computed once a round. The released code tells absence by a position of exactly
        0; here the mask does, so that a joint can be asked to be at the origin.

        Args:
            points: Positions [B, F, 22, 3]; those that the mask leaves out are not read.
            mask: [B, F, 22].
        """
        shown = torch.where(mask[..., None], points, torch.zeros_like(points))
        return self.hint(shown.flatten(-2)) * mask.any(-1, keepdim=True)

    def forward(self, x: Tensor, t: Tensor, action: Tensor, hint: Tensor) -> list[Tensor]:
        """Return what is added after each of the base's layers, [B, 1 + F, width] each."""
        tokens = self.stem(x, t, action, hint)
        found = []
        for layer, out in zip(self.layers, self.out, strict=True):
            tokens = layer(tokens)
            found.append(out(tokens))
        return found


class MotionModel(nn.Module):
    """The denoiser: noisy motion, timestep, action and, with a branch, hints -> clean motion.

    Args:
        architecture: Sizes.
        control: Whether it has a control branch.
        fps: Frames a second of what it learnt.
        frames: Frames of a round.
        about: What it was trained on, for JSON.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        control: bool = False,
        fps: float = 20.0,
        frames: int = 80,
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.fps, self.frames, self.about = architecture, fps, frames, about or {}
        self.stem, self.layers = Stem(architecture), encoder_layers(architecture)
        self.head = nn.Linear(architecture.width, NUMBERS)
        self.branch = ControlBranch(architecture) if control else None
        self.register_buffer("mean", torch.zeros(NUMBERS))
        self.register_buffer("std", torch.ones(NUMBERS))
        self.register_buffer("alphas", motion_schedule().alphas_cumprod.float(), persistent=False)

    def standardise(self, clips: Tensor) -> None:
        """Take mean and deviation of each number from clips [N, F, 69]; deviations below 0.05 count as that.

        Metres of translation would drown the angles in the layers' normalisation. Noise and diffusion stay in metres
        and radians; only what the layers see and give is scaled.
        """
        self.mean.copy_(clips.mean((0, 1)))
        self.std.copy_(clips.std((0, 1)).clamp(min=LEAST_DEVIATION))

    def scaled(self, x: Tensor, t: Tensor) -> Tensor:
        """Return noisy motions with mean 0 and deviation 1 in each number, at any noise."""
        alphas = self.alphas[t][:, None, None]
        return (x - alphas.sqrt() * self.mean) / (alphas * self.std.square() + 1 - alphas).sqrt()

    def with_branch(self) -> "MotionModel":
        """Return a copy with a control branch that starts as a copy of the base and adds nothing."""
        made = MotionModel(
            self.architecture, control=True, fps=self.fps, frames=self.frames, about=dict(self.about)
        )
        made.load_state_dict(self.state_dict(), strict=False)
        made.branch.stem = copy.deepcopy(made.stem)
        made.branch.layers = copy.deepcopy(made.layers)
        return made.to(self.head.weight)

    def embed(self, points: Tensor, mask: Tensor) -> Tensor | None:
        """Return the hint embedding that `forward` takes, None without a branch; see `ControlBranch.embed`."""
        return None if self.branch is None else self.branch.embed(points, mask)

    def forward(self, x: Tensor, t: Tensor, action: Tensor, hint: Tensor | None = None) -> Tensor:
        """Return the clean motion [B, F, 69].

        Args:
            x: Noisy motion, [B, F, 69].
            t: Indices of the schedule, [B].
            action: Indices of the actions, [B].
            hint: From `embed`; None leaves the branch out.
        """
        x = self.scaled(x, t)
        added = None if hint is None or self.branch is None else self.branch(x, t, action, hint)
        tokens = self.stem(x, t, action)
        for index, layer in enumerate(self.layers):
            tokens = layer(tokens)
            if added is not None:
                tokens = tokens + added[index]
        return self.mean + self.std * self.head(tokens[:, 1:])

    def config(self) -> dict[str, Any]:
        """Return what is needed besides weights to make the model again, as plain values."""
        return {
            "architecture": asdict(self.architecture),
            "control": self.branch is not None,
            "fps": self.fps,
            "frames": self.frames,
            "about": self.about,
        }

    def save_pretrained(self, path: str | Path) -> None:
        """Write config and weights atomically."""
        save_artifact(path, KIND, self.config(), self.state_dict())

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "MotionModel":
        """Read a model that `save_pretrained` wrote.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        return cls.from_parts(*load_artifact(path, KIND), path=path)

    @classmethod
    def from_parts(
        cls, config: dict[str, Any], tensors: dict[str, Tensor], path: object = "it"
    ) -> "MotionModel":
        """Return a model of a config and weights.

        Raises:
            ArtifactError: When they are not whole.
        """
        with rebuilding(path, "whole model"):
            made = cls(
                Architecture(**config["architecture"]),
                control=config["control"],
                fps=config["fps"],
                frames=config["frames"],
                about=config["about"],
            )
            made.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return made.eval().requires_grad_(False)
