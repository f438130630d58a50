"""The model: transformer, window and the poses' scale; what is saved, and what a policy asks."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from noiseworks.core.artifacts import load_artifact, rebuilding, save_artifact
from noiseworks.core.models import resolve_model
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.pad.diffusion import losses, sample
from noiseworks.pad.modalities import Modality, world
from noiseworks.pad.options import Architecture, Sampling, Window
from noiseworks.pad.transformer import PADTransformer
from torch import Tensor, nn

KIND = "pad/model"
DEPTH_TOKENS = 4  # along a side


class Shapes(NamedTuple):
    """What the data are.

    Attributes:
        channels: Of an image or latent.
        size: Its side.
        pose_dim: Entries of a pose.
        text_width: Of a text embedding.
        depth: Side of depth maps; 0 for none.
        pixels: Whether images are pixels in [-1, 1], not latents.
    """

    channels: int
    size: int
    pose_dim: int
    text_width: int
    depth: int = 0
    pixels: bool = True


class Future(NamedTuple):
    """What a model predicts.

    Attributes:
        poses: [B, P, D] in the data's units.
        images: [B, k, C, S, S] in [-1, 1] or latents; None of a model that predicts none.
        depth: [B, k, S, S] in [-1, 1], or None.
    """

    poses: Tensor
    images: Tensor | None
    depth: Tensor | None


def modalities_of(architecture: Architecture, window: Window, shapes: Shapes) -> tuple[Modality, ...]:
    """Return what a model of these sizes sees and denoises; depth has 4 x 4 tokens, as the reference's.

    Raises:
        InputError: When sizes do not fit each other.
    """
    return world(
        frames=window.frames,
        patch=architecture.patch,
        image=(shapes.channels, shapes.size),
        pose=(window.poses * shapes.pose_dim, shapes.pose_dim),
        depth=(shapes.depth, max(1, shapes.depth // DEPTH_TOKENS)) if shapes.depth else None,
        predict=architecture.images,
        isolated=architecture.isolated,
        bound=(2.0 if window.changes else 1.0) if shapes.pixels else None,
    )


class PAD(nn.Module):
    """Prediction with action.

    Args:
        architecture: Sizes of the transformer.
        window: What of the future it predicts.
        shapes: What the data are.
        normalizer: Maps poses to [-1, 1].
        motions: Maps a window's poses relative to the present one, [poses D] together, to [-1, 1]: the first ones are
            near, and would drown in noise at the last ones' scale. Read of windows with relative poses alone.
    """

    def __init__(
        self,
        architecture: Architecture,
        window: Window,
        shapes: Shapes,
        normalizer: LinearNormalizer,
        motions: LinearNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.architecture, self.window, self.shapes = architecture, window, shapes
        self.normalizer = normalizer
        self.motions = motions or LinearNormalizer.identity(window.poses * shapes.pose_dim)
        self.network = PADTransformer(
            modalities_of(architecture, window, shapes),
            width=architecture.width,
            depth=architecture.depth,
            heads=architecture.heads,
            mlp=architecture.mlp,
            text_width=shapes.text_width,
            learn_sigma=architecture.learn_sigma,
            zero_heads=architecture.zero_heads,
            small_start=architecture.small_start,
            prediction=architecture.prediction,
            stem=architecture.stem,
        )

    # --- What a replanning policy asks (a `DenoiserHost` without a scheduler) ---

    @property
    def horizon(self) -> int:
        """Steps of a plan."""
        return self.window.steps

    n_obs_steps = 1

    @property
    def n_action_steps(self) -> int:
        """Steps between two plans."""
        return self.window.executed

    @property
    def action_dim(self) -> int:
        """Entries of a pose."""
        return self.shapes.pose_dim

    @property
    def observation_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of a single observation by name."""
        shapes = self.shapes
        image = (shapes.channels, shapes.size, shapes.size)
        found = {"image": image, "pose": (shapes.pose_dim,), "goal": (shapes.text_width,)}
        return found | ({"depth": (1, shapes.depth, shapes.depth)} if shapes.depth else {})

    def encode(self, obs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the present and the text of observations [B, 1, ...]; uint8 images are pixels."""
        device = next(self.parameters()).device

        def values(name: str) -> Tensor:
            found = obs[name][:, -1].to(device)
            return found.float() / 127.5 - 1 if found.dtype == torch.uint8 else found.float()

        clean = {"rgb": values("image"), "action": self.normalizer.normalize(values("pose"))}
        if self.shapes.depth:
            clean["depth"] = values("depth")
        return clean, values("goal")

    # --- Learning and predicting ---

    def loss(
        self, batch: Mapping[str, Tensor], t: Tensor, noise: Mapping[str, Tensor], balanced: bool = False
    ) -> dict[str, Tensor]:
        """Return the losses [B] of a batch of `Windows` at timesteps [B] with noise of `targets`' shapes."""
        values, clean, present = self.targets(batch)
        return losses(
            self.network, values, clean, batch["goal"], t, noise, present=present, balanced=balanced
        )

    def targets(
        self, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return futures, present, and which modalities each sample has, of a batch of `Windows`."""
        pose, poses = batch["pose"], batch["poses"].unflatten(1, (-1, self.shapes.pose_dim))
        if self.window.relative:
            poses = self.motions.normalize((poses - pose[:, None]).flatten(1))
        else:
            poses = self.normalizer.normalize(poses).flatten(1)
        values = {"action": poses}
        clean = {"rgb": batch["image"], "action": self.normalizer.normalize(pose)}
        present = {"action": batch["labelled"]}
        if self.architecture.images:
            values["rgb"] = batch["frames"] - self._kept(batch["image"])
        if self.shapes.depth:
            clean["depth"], present["depth"] = batch["depth"], batch["measured"]
            if self.architecture.images:
                values["depth"] = batch["depths"] - self._kept(batch["depth"])
        return values, clean, present

    def _kept(self, now: Tensor) -> Tensor | float:
        """Return what predicted pictures [B, k C, S, S] are changes of."""
        return now.repeat(1, self.window.frames, 1, 1) if self.window.changes else 0.0

    def predict(
        self,
        clean: Mapping[str, Tensor],
        text: Tensor,
        sampling: Sampling | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> Future:
        """Return futures of what `encode` returned.

        Args:
            clean: The present.
            text: Text embeddings.
            sampling: Solver and steps.
            generator: Noise: one for the batch, or one a row.
        """
        found = sample(self.network, clean, text, sampling or Sampling(), generator)
        poses, parts = found["action"], (-1, self.shapes.pose_dim)
        if self.window.relative:
            now = self.normalizer.unnormalize(clean["action"])
            poses = self.motions.unnormalize(poses).unflatten(1, parts) + now[:, None]
        else:
            poses = self.normalizer.unnormalize(poses.unflatten(1, parts))
        images, depth = (
            found[name] + self._kept(clean[name]) if name in found else None for name in ("rgb", "depth")
        )
        frames = (self.window.frames, self.shapes.channels)
        return Future(poses, None if images is None else images.unflatten(1, frames), depth)

    # --- Files ---

    def config(self) -> dict[str, Any]:
        """Return what is needed besides weights to make the model again, as plain values."""
        return {
            "architecture": asdict(self.architecture),
            "window": asdict(self.window),
            "shapes": self.shapes._asdict(),
            "normalizers": [self.normalizer.record(), self.motions.record()],
        }

    def save_pretrained(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write config and weights atomically, the weights in a type."""
        save_artifact(path, KIND, self.config(), {k: v.to(dtype) for k, v in self.state_dict().items()})

    @classmethod
    def from_pretrained(cls, name: str | Path) -> "PAD":
        """Read a model that `save_pretrained` wrote: a directory or `testbed:<name>`.

        Raises:
            ArtifactError: When it is missing, incomplete or of another kind.
        """
        path = resolve_model(name)
        return cls.from_parts(*load_artifact(path, KIND), path=path)

    @classmethod
    def from_parts(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: object = "it"
    ) -> "PAD":
        """Return a model of a config and weights, in evaluation mode and float32.

        Raises:
            ArtifactError: When they are not whole.
        """
        with rebuilding(path, "whole model"):
            scales = [
                LinearNormalizer(*(torch.tensor(record[key]) for key in ("scale", "offset")))
                for record in config["normalizers"]
            ]
            made = cls(
                Architecture(**config["architecture"]),
                Window(**config["window"]),
                Shapes(**config["shapes"]),
                *scales,
            )
            made.load_state_dict({name: value.float() for name, value in tensors.items()})
        return made.eval().requires_grad_(False)
