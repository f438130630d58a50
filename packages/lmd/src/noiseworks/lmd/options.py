"""The options of latent masking: network, mask ratio by step, latents, recipes; nothing heavy is imported."""

import math
import warnings
from dataclasses import dataclass
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.backbones.options import LossRecipe

OFFSET = 0.008  # of the cosine, as in the noise schedule that it is taken from
MIDDLE = 0.4  # where the piecewise ramp rests
LIMITS = (0.15, 0.75)  # between which the paper's ramps rise


@dataclass(frozen=True)
class Network(Options):
    """The auto-encoder; the paper's is 12 blocks of 768 with 12 heads, and 8 of 512 with 16 in the decoder.

    Attributes:
        depth: Blocks of the encoder.
        width: Channels of its tokens.
        heads: Its attention heads.
        patch: Side of a token's patch, in latent pixels (or pixels).
        mlp: Hidden width of a block's MLP, in widths.
        decoder_depth: Blocks of the decoder.
        decoder_width: Channels of its tokens.
        decoder_heads: Its attention heads.
        subtract_positions: Whether the decoder's positions are subtracted, as in released checkpoints.
    """

    depth: Annotated[int, at_least(1)] = 6
    width: Annotated[int, at_least(4)] = 96
    heads: Annotated[int, at_least(1)] = 4
    patch: Annotated[int, at_least(1)] = 2
    mlp: Annotated[float, above(0)] = 4.0
    decoder_depth: Annotated[int, at_least(1)] = 2
    decoder_width: Annotated[int, at_least(4)] = 64
    decoder_heads: Annotated[int, at_least(1)] = 4
    subtract_positions: bool = False

    def check(self) -> None:
        """Refuse widths that heads or positions cannot share.

        Raises:
            InputError: Naming the multiple.
        """
        for prefix, width, heads in (
            ("", self.width, self.heads),
            ("decoder_", self.decoder_width, self.decoder_heads),
        ):
            if width % heads:
                raise InputError(f"{prefix}width must be a multiple of {prefix}heads ({heads}), got {width}")
            if width % 4:
                raise InputError(f"{prefix}width must be a multiple of 4 for positions, got {width}")


@dataclass(frozen=True)
class LMDConfig(Network):
    """An auto-encoder of latents (or images) of one size.

    Attributes:
        size: Side of the square latents, or of the images.
        channels: Of the latents, or of the images.
    """

    size: Annotated[int, at_least(1)] = 8
    channels: Annotated[int, at_least(1)] = 4

    def check(self) -> None:
        """Refuse a side that the patch does not divide.

        Raises:
            InputError: Naming both.
        """
        super().check()
        if self.size % self.patch:
            raise InputError(
                f"the side of the latents, {self.size}, must be a multiple of patch ({self.patch}); "
                "use another patch or size"
            )

    @property
    def places(self) -> int:
        """N, the number of patches."""
        return (self.size // self.patch) ** 2


@dataclass(frozen=True)
class Masking(Options):
    """The share of removed patches, r(s), by step s of S: it plays the part of a diffusion's time.

    Attributes:
        schedule: cosine, piecewise and linear rise from least to most; fixed is most from the first step, as in MAE.
        least: Ratio at the first step.
        most: Ratio after the ramp.
        ramp: Share of the steps in which it rises; by default 2/3, and 1 for linear.
        kind: random, block (a square) or grid (evenly spread).
    """

    schedule: Literal["cosine", "piecewise", "linear", "fixed"] = "cosine"
    least: Annotated[float, at_least(0), below(1)] = LIMITS[0]
    most: Annotated[float, above(0), below(1)] = LIMITS[1]
    ramp: Annotated[float | None, above(0), at_most(1)] = None
    kind: Literal["random", "block", "grid"] = "random"

    def check(self) -> None:
        """Refuse a ratio that falls.

        Raises:
            InputError: Naming both ends.
        """
        if self.most < self.least and self.schedule != "fixed":
            raise InputError(f"most must be at least least ({self.least}), got {self.most}")

    def ratio(self, step: int, steps: int) -> float:
        """Return r(s).

        Args:
            step: s, from 0; beyond S the ratio stays what it is at S, with a warning.
            steps: S, the optimiser steps of the whole run.

        Raises:
            InputError: On a step below 0.
        """
        if step < 0:
            raise InputError(f"a step must be at least 0, got {step}")
        if step > steps:
            warnings.warn(f"step {step} is beyond the schedule's {steps}", stacklevel=2)
        share = self.ramp or (1.0 if self.schedule == "linear" else 2 / 3)
        length = share * steps
        match self.schedule:
            case "fixed":
                return self.most
            case "cosine":
                risen = 1 - _cosine(min(1.0, step / max(1, int(length)))) / _cosine(0.0)
            case "linear":
                risen = min(1.0, step / length)
            case "piecewise":
                risen = self._piecewise(4 * step / length)
        return self.least + (self.most - self.least) * risen

    def _piecewise(self, quarter: float) -> float:
        """Return how much of the way is done at a quarter of the ramp: up in one, rest in one, up in two."""
        rest = (MIDDLE - LIMITS[0]) / (LIMITS[1] - LIMITS[0])
        return rest * min(1.0, quarter) + (1 - rest) * min(1.0, max(0.0, quarter - 2) / 2)

    def mean_ratio(self, steps: int) -> float:
        """Return the mean of r(s) over a run of S steps."""
        return sum(self.ratio(step, steps) for step in range(steps)) / steps


def _cosine(share: float) -> float:
    return math.cos((share + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2


@dataclass(frozen=True)
class Latents(Options):
    """What is masked.

    Attributes:
        vae: An AutoencoderKL (a directory of it or of a pipeline, a hub id or testbed:<name>) whose latents are
            masked; pixels masks the images themselves, as MAE does.
        scale_latents: Whether latents are multiplied by the autoencoder's scaling factor; the paper's are not.
        views: Crops and mirror images of each image that are encoded once and kept, where crop or flip make some.
    """

    vae: str = "testbed:shapes-vae"
    scale_latents: bool = False
    views: Annotated[int, at_least(1)] = 1

    def check(self) -> None:
        """Refuse views of pixels, which are cropped anew at every visit.

        Raises:
            InputError: Naming the option.
        """
        if self.vae == "pixels" and (self.views > 1 or self.scale_latents):
            raise InputError("views and scale_latents are for latents; leave them out with vae pixels")


Optimizer = Literal["adamw", "adan"]


@dataclass(frozen=True)
class Pretraining(LossRecipe):
    """How the auto-encoder learns to fill in what was removed.

    Attributes:
        lr: Largest learning rate; the paper's is 3e-4 x batch / 256 with Adan.
        normalise: Whether each patch is predicted less its mean, over its deviation. Pictures then borrow both from
            the true patch, so switch it off to reconstruct.
        optimizer: adamw or adan.
    """

    lr: Annotated[float, above(0)] = 1e-3
    normalise: bool = True
    optimizer: Optimizer = "adamw"


@dataclass(frozen=True)
class FineTuning(LossRecipe):
    """How a classifier is trained on a pre-trained encoder.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        lr: Largest learning rate, of the head.
        layer_decay: Factor of the rate from each block to the one below it.
        drop_path: Largest share of images that a block leaves out in training, that of the last one.
        smoothing: Share of a label's weight that is spread over all classes.
        mixup: α of the Beta distribution by which two images are blended; 0 for none, the paper's is 0.8.
        cutmix: α of that by which a box of one image is pasted into another; 0 for none, the paper's is 1.
        beta2: Decay of AdamW's second moment.
        optimizer: adamw or adan.
    """

    max_steps: Annotated[int, at_least(1)] = 1000
    lr: Annotated[float, above(0)] = 1e-3
    layer_decay: Annotated[float, above(0), at_most(1)] = 0.65
    drop_path: Annotated[float, at_least(0), below(1)] = 0.1
    smoothing: Annotated[float, at_least(0), below(1)] = 0.1
    mixup: Annotated[float, at_least(0)] = 0.0
    cutmix: Annotated[float, at_least(0)] = 0.0
    beta2: Annotated[float, above(0), below(1)] = 0.999
    optimizer: Optimizer = "adamw"

    @property
    def changes_images(self) -> bool:
        """Whether each visit sees other pixels, so that latents cannot be kept."""
        return bool(self.mixup or self.cutmix or self.flip or self.crop < 1)


@dataclass(frozen=True)
class Hiding(Options):
    """What is removed of which images, to see it filled in.

    Attributes:
        mask: Share of the patches that is removed.
        kind: random, block (a square) or grid (evenly spread).
        rounds: Passes, each of which sees more of what the last one filled in.
        n: The first n images.
        seed: Of the masks.
    """

    mask: Annotated[float, at_least(0), below(1)] = 0.75
    kind: Literal["random", "block", "grid"] = "random"
    rounds: Annotated[int, at_least(1)] = 1
    n: Annotated[int, at_least(1)] = 8
    seed: Annotated[int, at_least(0), below(2**62)] = 0
