"""The options of unified masked diffusion; nothing heavy is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most, below
from noiseworks.kits.backbones.options import Draw, LossRecipe

Prediction = Literal["epsilon", "sample"]

# Preset -> r0, the share of noise-free samples, and the mask ratios ρ0 of those and ρ of the noised ones.
PRESETS: Mapping[str, tuple[float, float, float]] = MappingProxyType(
    {
        "umd": (0.5, 0.75, 0.375),
        "mae": (1.0, 0.75, 0.375),
        "dit": (0.0, 0.75, 0.0),
        "maskdit": (0.0, 0.75, 0.5),
    }
)


@dataclass(frozen=True)
class Network(Options):
    """The auto-encoder; the paper's are S 12 + 4 blocks, 384, 6 heads; B 12 + 4, 768, 12; L 24 + 8, 1024, 16.

    Attributes:
        depth: Blocks of the encoder.
        decoder_depth: Blocks of the decoder.
        width: Channels of a token.
        heads: Attention heads.
        patch: Side of a token's patch in pixels.
        mlp: Hidden width of a block's MLP, in widths.
        num_cls: Learned tokens whose mean is the representation.
        adaln: Whether time and label modulate the norms of every block; else they enter as a token of each block.
    """

    depth: Annotated[int, at_least(1)] = 6
    decoder_depth: Annotated[int, at_least(1)] = 2
    width: Annotated[int, at_least(4)] = 96
    heads: Annotated[int, at_least(1)] = 4
    patch: Annotated[int, at_least(1)] = 4
    mlp: Annotated[float, above(0)] = 4.0
    num_cls: Annotated[int, at_least(1)] = 4
    adaln: bool = True

    def check(self) -> None:
        """Refuse a width that heads or sinusoids cannot share.

        Raises:
            InputError: Naming the multiple.
        """
        if self.width % self.heads:
            raise InputError(f"width must be a multiple of heads ({self.heads}), got {self.width}")
        if self.width % 2:
            raise InputError(f"width must be even for sinusoids, got {self.width}")


@dataclass(frozen=True)
class UMDConfig(Network):
    """An auto-encoder of one image size.

    Attributes:
        image_size: Side of the square images.
        channels: Of the images.
        classes: Number of classes; 0 for a model without labels.
    """

    image_size: Annotated[int, at_least(1)] = 32
    channels: Annotated[int, at_least(1)] = 3
    classes: Annotated[int, at_least(0)] = 0

    def check(self) -> None:
        """Refuse an image that the patch does not divide.

        Raises:
            InputError: Naming the image size and the patch.
        """
        super().check()
        if self.image_size % self.patch:
            raise InputError(f"image_size must be a multiple of patch ({self.patch}), got {self.image_size}")

    @property
    def places(self) -> int:
        """N, the number of patches."""
        return (self.image_size // self.patch) ** 2


@dataclass(frozen=True)
class Mixture(Options):
    """The mixture of noise-free and noised samples in a batch.

    Attributes:
        preset: umd; mae (noise-free only), dit (noised only, no mask) or maskdit (noised only, half masked).
        r0: Share of noise-free samples, instead of the preset's.
        rho0: Share of patches removed from noise-free samples, instead of the preset's.
        rho: Share of patches removed from noised samples, instead of the preset's.
    """

    preset: Literal["umd", "mae", "dit", "maskdit"] = "umd"
    r0: Annotated[float | None, at_least(0), at_most(1)] = None
    rho0: Annotated[float | None, above(0), below(1)] = None
    rho: Annotated[float | None, at_least(0), below(1)] = None

    @property
    def values(self) -> tuple[float, float, float]:
        """The numbers r0, ρ0 and ρ."""
        given = (self.r0, self.rho0, self.rho)
        chosen = [
            own if own is not None else its for own, its in zip(given, PRESETS[self.preset], strict=True)
        ]
        return chosen[0], chosen[1], chosen[2]

    def clean_rows(self, batch: int) -> int:
        """Return n0 = int(B r0), the number of noise-free samples of a batch."""
        return int(batch * self.values[0])

    def fine_tuning(self) -> "Mixture":
        """Return the mixture of fine-tuning: no masks on noised samples, and a twentieth of noise-free ones for umd."""
        return Mixture(self.preset, r0=0.05 if self.values[0] else 0.0, rho0=self.rho0, rho=0.0)


@dataclass(frozen=True)
class Pretraining(LossRecipe):
    """How the auto-encoder learns without labels.

    Attributes:
        lr: Largest learning rate; the paper's is 1.5e-4 x batch / 256.
        schedule: Noise schedule, linear or cosine, of 1000 timesteps.
    """

    lr: Annotated[float, above(0)] = 1e-3
    schedule: Literal["linear", "cosine"] = "cosine"


@dataclass(frozen=True)
class FineTuning(LossRecipe):
    """How it learns to draw images of a class.

    Attributes:
        lr: Largest learning rate.
        weight_decay: Of all weights but biases and single tokens.
        beta2: Decay of AdamW's second moment.
        ema: Largest decay of the average of the weights, which is what comes out.
        label_drop: Share of the labels that are left out, for guidance without a classifier.
    """

    lr: Annotated[float, above(0)] = 5e-4
    weight_decay: Annotated[float, at_least(0)] = 0.0
    beta2: Annotated[float, above(0), below(1)] = 0.999
    ema: Annotated[float, at_least(0), below(1)] = 0.999
    label_drop: Annotated[float, at_least(0), at_most(1)] = 0.1


@dataclass(frozen=True)
class Features(Options):
    """Which features are probed.

    Attributes:
        time: Time that the network is told: 0 for clean images, t + 1 for images noised to timestep t (51 is the
            paper's for models without noise-free samples).
        tokens: cls, the mean of the learned tokens, or patches, the mean of the patches' tokens.
    """

    time: Annotated[int, at_least(0), at_most(1000)] = 0
    tokens: Literal["cls", "patches"] = "cls"


@dataclass(frozen=True)
class Drawing(Draw):
    """What is sampled, and from which of the network's two predictions.

    Attributes:
        by: epsilon, the predicted noise (the paper's), or sample, the predicted clean image.
    """

    by: Prediction = "epsilon"
