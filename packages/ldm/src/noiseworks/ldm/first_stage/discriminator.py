"""The patch discriminator of the first stage (PatchGAN)."""

from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from torch import Tensor, nn

NORMS = ("batch", "group")
_FEWEST_VALUES = 8  # a channel, for the statistics of a training batch


class PatchDiscriminator(nn.Module):
    """Convolutional net that judges overlapping patches of an image as real or reconstructed.

    Convolution 4x4 stride 2 with bias and LeakyReLU 0.2, `layers - 1` stride-2 blocks that double the
    channels (up to eight times the width), one stride-1 block, one 4x4 stride-1 convolution to a single
    channel; padding 1 everywhere. Convolution weights start at N(0, 0.02), normalisation weights at N(1,
    0.02). With the default three layers 256x256 pixels give 30x30 logits, 64x64 give 6x6 and 32x32 give 2x2.
    Source: section 3.1 of the paper; the sizes are those of the authors' code.

    Args:
        in_channels: Channels of the judged images.
        width: Channels after the first convolution.
        layers: Number of stride-2 convolutions.
        norm: `"batch"` as the authors, or `"group"`, which does not mix the images of a batch and therefore
            works with batches of one, on tiny maps and with several processes.

    Raises:
        InputError: When an option is outside its range.
    """

    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        check_number("width", width, low=8, integer=True)
        check_number("layers", layers, low=1, integer=True)
        check_choice("norm", norm, NORMS)
        self.norm = norm
        widths = [width * min(2**level, 8) for level in range(layers + 1)]
        modules: list[nn.Module] = [
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for level in range(1, layers + 1):
            stride = 2 if level < layers else 1
            modules += [
                nn.Conv2d(widths[level - 1], widths[level], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[level]) if norm == "batch" else nn.GroupNorm(8, widths[level]),
                nn.LeakyReLU(0.2),
            ]
        modules.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.layers = nn.Sequential(*modules)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return one logit a patch; large means real.

        Args:
            images: [B, C, H, W] in [-1, 1].

        Returns:
            [B, 1, h, w] logits.

        Raises:
            InputError: When the images are too small, or BatchNorm would see too few values.
        """
        self.check_size(len(images), *images.shape[-2:])
        return self.layers(images)

    def check_size(self, rows: int, height: int, width: int) -> None:
        """Refuse batches whose maps are too small for the layers or for BatchNorm's statistics.

        Raises:
            InputError: With the fix.
        """
        side = self._last_map(min(height, width))
        if side < 2:
            raise InputError(
                f"{height}x{width} pixels are too few for the discriminator; use larger images or fewer layers"
            )
        if self.training and self.norm == "batch" and rows * side**2 < _FEWEST_VALUES:
            raise InputError(
                f"BatchNorm would see {rows * side**2} values a channel; use a larger batch, "
                'or PatchDiscriminator(norm="group")'
            )

    def _last_map(self, side: int) -> int:
        """Return the side of the smallest map that a normalisation sees, for images of a side."""
        for module in self.layers[:-1]:
            if isinstance(module, nn.Conv2d):
                side = (side + 2 - 4) // module.stride[0] + 1
        return side


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
