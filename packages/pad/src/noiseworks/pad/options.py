"""The options of the commands; nothing heavy is imported."""

from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, Wholes, above, at_least, at_most, below
from noiseworks.kits.backbones.options import Architecture as DiTArchitecture
from noiseworks.kits.policies.options import GRIPPER_TASKS, TABLETOP
from noiseworks.kits.training.options import Fit

Target = Literal["epsilon", "sample"]


@dataclass(frozen=True)
class Architecture(DiTArchitecture):
    """The transformer; the published sizes are S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16; XL 28, 1152, 16.

    Attributes:
        depth: Blocks.
        width: Channels of a token.
        heads: Attention heads.
        patch: Side of an image token's patch, in pixels (or latent pixels).
        mlp: Hidden width of a block's MLP, in widths.
        learn_sigma: Whether the variance is learned.
        images: Whether future images are predicted, or only the present one is seen.
        isolated: Whether image tokens attend to image tokens alone, so that poses cannot disturb them.
        zero_heads: Whether all heads begin at zero; the reference has only the image's so.
        small_start: Whether timestep and text begin at DiT's deviation of 0.02, or at He et al.'s, from which small
            models learn sooner what the text says.
        prediction: epsilon, the noise, as published; or sample, what is clean: a token narrower than what it denoises
            cannot hold noise, but pictures.
        stem: Channels of convolutions that look at the whole present picture, where no frozen encoder did; their
            result is added to the tokens. 0 for none, as published.
    """

    depth: Annotated[int, at_least(1)] = 4
    width: Annotated[int, at_least(4)] = 128
    patch: Annotated[int, at_least(1)] = 8
    learn_sigma: bool = True
    images: bool = True
    isolated: bool = True
    zero_heads: bool = True
    small_start: bool = False
    prediction: Target = "epsilon"
    stem: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class Window(Options):
    """What of the future is predicted, and how much of it is executed.

    Attributes:
        frames: Future frames k.
        stride: Steps s between them.
        dense: Whether the poses of all steps up to the last frame are predicted (action chunks), not those at the
            frames alone.
        execute: Steps between two plans; by default the stride.
        relative: Whether poses are predicted relative to the present one, or as they are.
        changes: Whether pictures are predicted as what changes from the present one, or as they are.
        keep_ends: Whether windows begin also where the first frame would leave the episode; its last one is repeated.
    """

    frames: Annotated[int, at_least(1), at_most(16)] = 3
    stride: Annotated[int, at_least(1)] = 4
    dense: bool = True
    execute: Annotated[int | None, at_least(1)] = None
    relative: bool = True
    changes: bool = True
    keep_ends: bool = True

    def check(self) -> None:
        """Refuse to execute more than is predicted.

        Raises:
            InputError: Naming the limit.
        """
        if self.execute is not None and self.execute > self.steps:
            raise InputError(f"execute must be at most frames x stride = {self.steps}, got {self.execute}")

    @property
    def steps(self) -> int:
        """Steps up to the last frame."""
        return self.frames * self.stride

    @property
    def poses(self) -> int:
        """Poses of a prediction."""
        return self.steps if self.dense else self.frames

    @property
    def executed(self) -> int:
        """Steps between two plans."""
        return self.execute or self.stride


@dataclass(frozen=True)
class Demonstrations(Options):
    """Episodes with poses.

    Attributes:
        data: tabletop, or a folder of a recording (frames.npy, poses.npy, goals.npy, ends.npy and perhaps depth.npy).
        episodes: Demonstrations of each task of the table.
        tasks: Its tasks, 0 to 11 with commas between; by default those with a gripper.
        data_seed: Which demonstrations, 0 to 99.
        image_size: Side of the table's pictures: 32, 48 or 64.
        depth_maps: Whether depth is seen and predicted as well (heights over the table, or depth.npy).
    """

    data: str = TABLETOP
    episodes: Annotated[int, at_least(1)] = 20
    tasks: Annotated[Wholes, at_least(0), at_most(11)] = GRIPPER_TASKS
    data_seed: Annotated[int, at_least(0), at_most(99)] = 0
    image_size: Literal[32, 48, 64] = 32
    depth_maps: bool = False


@dataclass(frozen=True)
class Video(Options):
    """Episodes without actions that are trained on beside the demonstrations.

    Attributes:
        video: tabletop, or a folder of a recording, whose poses are not looked at; none by default.
        video_episodes: Episodes of each task of the table.
        video_share: Share of the samples that are video.
        video_stride: Steps between frames of video; by default the stride of the demonstrations.
    """

    video: str | None = None
    video_episodes: Annotated[int, at_least(1)] = 100
    video_share: Annotated[float, above(0), below(1)] = 0.3
    video_stride: Annotated[int | None, at_least(1)] = None


@dataclass(frozen=True)
class Fitting(Fit):
    """Length, rates, loss and bookkeeping of a training run.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Windows of a batch, over all processes.
        optimizer: adamw, the paper's; or muon for the matrices inside the blocks, which takes fewer steps.
        learning_rate: Of both, without weight decay.
        cosine: Whether the rate falls to 0 along a cosine, or is constant as the paper's.
        ema: Largest decay of the average of the weights, which starts lower and rises; 0 for none.
        shift: Pixels by which a sample's pictures are moved at random, all alike, with repeated edges; 0 for none. Few
            demonstrations are then harder to learn by heart: where things are has to be seen.
        image_weight: Weight of the image loss.
        action_weight: Weight of the pose loss, and of depth's.
        ramp: How those weights come in: step, from 0 at once at ramp_steps; or linear, up to ramp_steps.
        ramp_steps: Steps of the ramp; 0 for none.
        balanced: Whether errors of the noise are weighted by 1 / sqrt(SNR), which learns faster than the paper's
            constant weight. Errors of what is clean are not weighted.
    """

    max_steps: Annotated[int, at_least(1)] = 6000
    batch_size: Annotated[int, at_least(1)] = 64
    optimizer: Literal["adamw", "muon"] = "muon"
    learning_rate: Annotated[float, above(0)] = 2e-3
    cosine: bool = True
    ema: Annotated[float, at_least(0), below(1)] = 0.999
    shift: Annotated[int, at_least(0)] = 0
    image_weight: Annotated[float, at_least(0)] = 1.0
    action_weight: Annotated[float, at_least(0)] = 2.0
    ramp: Literal["step", "linear"] = "linear"
    ramp_steps: Annotated[int, at_least(0)] = 0
    balanced: bool = True

    def action_at(self, step: int) -> float:
        """Return the weight of the pose loss at an optimiser step."""
        if step >= self.ramp_steps:
            return self.action_weight
        return self.action_weight * step / self.ramp_steps if self.ramp == "linear" else 0.0


@dataclass(frozen=True)
class Sampling(Options):
    """How futures are denoised.

    Attributes:
        solver: ddim, deterministic, or ddpm, with fresh noise in every step.
        steps: Network calls.
        clip: Whether predictions of clean pixels and poses are held in [-1, 1] at every step; the reference does not.
    """

    solver: Literal["ddim", "ddpm"] = "ddim"
    steps: Annotated[int, at_least(1), at_most(1000)] = 10
    clip: bool = True


@dataclass(frozen=True)
class Following(Options):
    """How a plan's poses are followed.

    Attributes:
        reach: How far a velocity of 1 moves in a step.
        position: How many entries of a pose, the first ones, are a position; what follows is passed on.
    """

    reach: Annotated[float, above(0)] = 0.06
    position: Annotated[int, at_least(1)] = 2


@dataclass(frozen=True)
class Judging(Options):
    """On how much a model is judged, and with which noise.

    Attributes:
        windows: Windows of the recording, evenly spread.
        noise_seed: Of the noise.
    """

    windows: Annotated[int, at_least(1)] = 200
    noise_seed: Annotated[int, at_least(0), below(2**62)] = 0
