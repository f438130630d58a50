"""Perceptual distance of images: a feature net trained in place, LPIPS with the user's weights, or none."""

from pathlib import Path

import torch
import torch.nn.functional as F
from noiseworks.core.artifacts import read_tensors
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from torch import Tensor, nn

BACKENDS = ("trained", "lpips", "none")
_LPIPS_SHIFT = (-0.030, -0.088, -0.188)
_LPIPS_SCALE = (0.458, 0.448, 0.450)
# VGG16: channels of the convolutions of its five stages; features are read at relu1_2 ... relu5_3.
_VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class FeatureNet(nn.Module):
    """Small convolutional classifier (32-64-128 channels, 64-d penultimate layer): its layers are features.

    It is trained in place by `train_features`, so scores that use it are not comparable with Inception
    scores: they are called "FD(featnet)".

    Args:
        in_channels: Image channels.
        classes: Outputs of the last layer.
    """

    def __init__(self, in_channels: int = 3, classes: int = 128) -> None:
        super().__init__()
        widths = (32, 64, 128)
        stages, previous = [], in_channels
        for level, width in enumerate(widths):
            stages.append(
                nn.Sequential(
                    nn.Conv2d(previous, width, 3, stride=1 if level == 0 else 2, padding=1),
                    nn.GroupNorm(8, width),
                    nn.SiLU(),
                    nn.Conv2d(width, width, 3, padding=1),
                    nn.SiLU(),
                )
            )
            previous = width
        self.in_channels = in_channels
        self.stages = nn.ModuleList(stages)
        self.penultimate = nn.Linear(widths[-1] * 2, 64)
        self.head = nn.Linear(64, classes)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the feature maps [B, 32, H, W], [B, 64, H/2, W/2] and [B, 128, H/4, W/4] of images."""
        found = []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        return found

    def embed(self, images: Tensor) -> Tensor:
        """Return the penultimate features [B, 64] of images [B, C, H, W] in [-1, 1]."""
        last = self.maps(images)[-1]
        return self.penultimate(torch.cat([last.mean(dim=(2, 3)), last.amax(dim=(2, 3))], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the outputs [B, classes] of the last layer."""
        return self.head(F.silu(self.embed(images)))


def train_features(
    images: Tensor,
    *,
    steps: int = 300,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> tuple[FeatureNet, float]:
    """Train a `FeatureNet` on the user's own images.

    It learns to recognise an image after a random shift, flip and noise among the other images of its batch (instance
    discrimination), which needs no labels.

    Args:
        images: [N, C, H, W] in [-1, 1], N >= 2.
        steps: Optimiser steps.
        batch_size: Images a step.
        learning_rate: Adam's learning rate.
        seed: Seed of initialisation, order and augmentation.

    Returns:
        The net in eval mode without gradients, and its accuracy on the last quarter of the steps (chance is
        1 / batch_size).

    Raises:
        InputError: When the shapes do not fit.
    """
    if images.ndim != 4 or len(images) < 2:
        raise InputError(f"images must be [N, C, H, W] with N >= 2, got {tuple(images.shape)}")
    check_number("steps", steps, low=1, integer=True)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = FeatureNet(images.shape[1]).to(images.device)
    optimiser = torch.optim.Adam(net.parameters(), lr=learning_rate, foreach=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=max(steps, 2))
    batch_size = min(batch_size, len(images))
    correct: list[float] = []
    for _ in range(steps):
        rows = torch.randperm(len(images), generator=generator)[:batch_size].to(images.device)
        first, second = (net(augment(images[rows], generator)) for _ in range(2))
        logits = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / 0.1
        target = torch.arange(batch_size, device=images.device)
        loss = F.cross_entropy(logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        correct.append(float((logits.argmax(dim=1) == target).double().mean()))
    tail = correct[-max(1, steps // 4) :]
    return net.requires_grad_(False).eval(), sum(tail) / len(tail)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return randomly shifted (by up to an eighth), flipped and noised copies of images [B, C, H, W]."""
    margin = max(1, images.shape[-1] // 8)
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    top, left = (int(v) for v in torch.randint(0, 2 * margin + 1, (2,), generator=generator))
    moved = padded[..., top : top + images.shape[-2], left : left + images.shape[-1]]
    if bool(torch.rand((), generator=generator) < 0.5):
        moved = moved.flip(-1)
    noise = torch.randn(images.shape, generator=generator).to(images)
    return moved + 0.05 * noise


class Perceptual(nn.Module):
    """Perceptual distance P(x, x̂) of the first-stage loss (section 3.1; LPIPS).

    Both backends normalise each feature map over its channels, take the squared difference, weight the
    channels, average over positions and add up the layers.

    Args:
        backend: `"trained"` (a `FeatureNet` of `train_features`, equal channel weights), `"lpips"` (VGG16 and
            the learned channel weights, both from files that the user supplies) or `"none"` (the distance is
            0).
        features: The trained net, for `"trained"`.
        vgg_weights: Torchvision's VGG16 weights (`features.<i>.weight`), `.safetensors` or a `.pth` of
            tensors.
        lpips_weights: The learned channel weights (`lin<i>.model.1.weight`), same kinds of file.

    Raises:
        InputError: When the backend is unknown or its net or files are missing.
    """

    def __init__(
        self,
        backend: str = "trained",
        features: FeatureNet | None = None,
        vgg_weights: str | Path | None = None,
        lpips_weights: str | Path | None = None,
    ) -> None:
        super().__init__()
        check_choice("backend", backend, BACKENDS)
        if backend == "trained" and features is None:
            raise InputError(
                'Perceptual("trained") needs features=...; make them with train_features(images)'
            )
        if backend == "lpips" and (vgg_weights is None or lpips_weights is None):
            raise InputError(
                'Perceptual("lpips") needs vgg_weights=... and lpips_weights=... files; none is shipped'
            )
        self.backend = backend
        self.net: nn.Module | None = None
        if backend == "trained":
            self.net = features
        elif backend == "lpips":
            self.net = VGGFeatures(_read_tensors(vgg_weights))
            channels = _read_tensors(lpips_weights)
            for stage in range(len(_VGG_STAGES)):
                self.register_buffer(
                    f"channel_weight_{stage}", channels[f"lin{stage}.model.1.weight"].float()
                )
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Perceptual":
        """Stay in eval mode: the features are fixed."""
        return super().train(False)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Return the distance [B, 1, 1, 1] of two batches [B, C, H, W] in [-1, 1]."""
        if self.net is None:
            return reconstructions.new_zeros(len(reconstructions), 1, 1, 1)
        with torch.no_grad():
            wanted = self.net.maps(images)
        total = 0.0
        for stage, (want, have) in enumerate(zip(wanted, self.net.maps(reconstructions), strict=True)):
            difference = (unit_channels(want.float()) - unit_channels(have.float())).square()
            if self.backend == "lpips":
                difference = difference * getattr(self, f"channel_weight_{stage}")
            total = total + difference.sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
        return total


def unit_channels(maps: Tensor, eps: float = 1e-10) -> Tensor:
    """Return feature maps [B, C, H, W] scaled to unit length over the channels at each position."""
    # The eps under the root keeps the gradient finite where a ReLU silenced all channels.
    return maps * (maps.square().sum(dim=1, keepdim=True) + eps).rsqrt()


class VGGFeatures(nn.Module):
    """The convolutions of VGG16 up to relu5_3, read at the end of its five stages.

    Args:
        tensors: Torchvision's names (`features.<i>.weight`, `features.<i>.bias`) to tensors.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_LPIPS_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_LPIPS_SCALE).view(1, 3, 1, 1))
        self.stages = nn.ModuleList()
        index, previous = 0, 3
        for number, widths in enumerate(_VGG_STAGES):
            modules: list[nn.Module] = [nn.MaxPool2d(2)] if number else []
            index += number > 0
            for width in widths:
                convolution = nn.Conv2d(previous, width, 3, padding=1)
                names = {kind: f"features.{index}.{kind}" for kind in ("weight", "bias")}
                missing = [name for name in names.values() if name not in tensors]
                if missing:
                    raise InputError(
                        f"the VGG16 weights lack {missing[0]}; give torchvision's vgg16 state dict"
                    )
                convolution.load_state_dict({kind: tensors[name] for kind, name in names.items()})
                modules += [convolution, nn.ReLU()]
                index, previous = index + 2, width
            self.stages.append(nn.Sequential(*modules))

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return the five feature maps of RGB images [B, 3, H, W] in [-1, 1]."""
        if images.shape[1] != 3:
            raise InputError(
                f"LPIPS needs RGB images, got {images.shape[1]} channels; repeat the channel three times"
            )
        images, found = (images - self.shift) / self.scale, []
        for stage in self.stages:
            images = stage(images)
            found.append(images)
        return found


def _read_tensors(path: str | Path | None) -> dict[str, Tensor]:
    if not Path(str(path)).is_file():
        raise InputError(f"no weights file at {path}; name a .safetensors or .pth file")
    if str(path).endswith(".safetensors"):
        return read_tensors(str(path))
    return torch.load(path, map_location="cpu", weights_only=True)
