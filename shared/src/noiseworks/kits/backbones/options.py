"""The options of backbones and their training; nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.training.options import Fit

# Name -> depth, width, heads: the published sizes (Peebles and Xie 2023, table 1), and three that train on a laptop.
SIZES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "T0": (3, 48, 4),
        "T1": (6, 96, 4),
        "T2": (8, 192, 6),
        "S": (12, 384, 6),
        "B": (12, 768, 12),
        "L": (24, 1024, 16),
        "XL": (28, 1152, 16),
    }
)


@dataclass(frozen=True)
class Architecture(Options):
    """The transformer; the published sizes are S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16; XL 28, 1152, 16.

    Attributes:
        depth: Blocks.
        width: Channels of a token.
        heads: Attention heads.
        patch: Side of a token's patch, in pixels (or latent pixels).
        mlp: Hidden width of a block's MLP, in widths.
        learn_sigma: Whether the network has further output channels for the variance.
    """

    depth: Annotated[int, at_least(1)] = 6
    width: Annotated[int, at_least(4)] = 96
    heads: Annotated[int, at_least(1)] = 4
    patch: Annotated[int, at_least(1)] = 2
    mlp: Annotated[float, above(0)] = 4.0
    learn_sigma: bool = False

    def check(self) -> None:
        """Refuse a width that heads or positions cannot share.

        Raises:
            InputError: Naming the multiple.
        """
        if self.width % self.heads:
            raise InputError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        if self.width % 4:
            raise InputError(f"width must be a multiple of 4 for positions in two axes, got {self.width}")


@dataclass(frozen=True)
class DiTConfig(Architecture):
    """A class-conditional DiT of one image size.

    Attributes:
        image_size: Side of the square image or latent.
        channels: Of the image or latent.
        classes: Number of classes; label `classes` means none.
    """

    image_size: Annotated[int, at_least(1)] = 8
    channels: Annotated[int, at_least(1)] = 1
    classes: Annotated[int, at_least(1)] = 10

    def check(self) -> None:
        """Refuse an image that the patch does not divide.

        Raises:
            InputError: Naming the image size and the patch.
        """
        super().check()
        if self.image_size % self.patch:
            raise InputError(f"image_size must be a multiple of patch ({self.patch}), got {self.image_size}")

    @property
    def out_channels(self) -> int:
        """Output channels: twice the input's with a learned variance."""
        return self.channels * (2 if self.learn_sigma else 1)

    @classmethod
    def named(cls, name: str, **others: int | float | bool) -> "DiTConfig":
        """Return a published size such as "XL/2" (a key of `SIZES`, then the patch).

        Raises:
            InputError: On an unknown name.
        """
        size, _, patch = name.partition("/")
        if size not in SIZES or not patch.isdigit():
            raise InputError(f"unknown size {name!r}; use one of {', '.join(SIZES)} and a patch, such as S/2")
        depth, width, heads = SIZES[size]
        return cls(depth=depth, width=width, heads=heads, patch=int(patch), **others)


@dataclass(frozen=True)
class Recipe(Fit):
    """How a class-conditional denoiser is trained.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Images of a batch, over all processes.
        lr: Learning rate of AdamW, constant, without weight decay.
        ema: Largest decay of the average of the weights, which starts lower and rises.
        label_drop: Share of the labels that are left out, for guidance without a classifier.
        schedule: Noise schedule, linear or cosine, of 1000 timesteps.
        weighting: Of the loss by timestep: constant; min_snr, min(SNR, 5) / SNR; or p2, 1 / (1 + SNR).
    """

    max_steps: Annotated[int, at_least(1)] = 2000
    batch_size: Annotated[int, at_least(1)] = 64
    lr: Annotated[float, above(0)] = 1e-3
    ema: Annotated[float, at_least(0), below(1)] = 0.999
    label_drop: Annotated[float, at_least(0), at_most(1)] = 0.1
    schedule: Literal["linear", "cosine"] = "cosine"
    weighting: Literal["constant", "min_snr", "p2"] = "constant"


@dataclass(frozen=True)
class LossRecipe(Fit):
    """How a model learns by a loss of its own: AdamW, a linear warm-up, then half a cosine down to 0.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Images of a batch, over all processes.
        lr: Largest learning rate.
        warmup: Share of the steps in which it rises.
        weight_decay: Of all weights but biases and single tokens.
        beta2: Decay of AdamW's second moment; 0.95 for long pre-training, 0.999 for fine-tuning.
        clip: Largest norm of the gradients.
        ema: Largest decay of the average of the weights, which is what comes out; 0 for the last weights.
        crop: Least share of the area that random crops keep; 1 for no crops.
        flip: Whether half of the images are mirrored.
    """

    max_steps: Annotated[int, at_least(1)] = 2000
    batch_size: Annotated[int, at_least(1)] = 64
    lr: Annotated[float, above(0)] = 1e-3
    warmup: Annotated[float, at_least(0), below(1)] = 0.05
    weight_decay: Annotated[float, at_least(0)] = 0.05
    beta2: Annotated[float, above(0), below(1)] = 0.95
    clip: Annotated[float, above(0)] = 1.0
    ema: Annotated[float, at_least(0), below(1)] = 0.0
    crop: Annotated[float, above(0), at_most(1)] = 1.0
    flip: bool = False


@dataclass(frozen=True)
class Draw(Options):
    """What is sampled.

    Attributes:
        n: Images, of the classes in turn.
        steps: Network calls of an image.
        guidance_scale: Weight w of x + (w - 1)(x - x_without_label) in the prediction; 1 for none.
        seed: Image i is drawn with seed + i.
    """

    n: Annotated[int, at_least(1)] = 10
    steps: Annotated[int, at_least(1), at_most(1000)] = 50
    guidance_scale: Annotated[float, at_least(1)] = 1.5
    seed: Annotated[int, at_least(0), below(2**62)] = 0
