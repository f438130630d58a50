"""FiLM-ResNet encoders of camera images: a ResNet whose stages are scaled and shifted by the goal."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.mode.network import Condition
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

Depth = Literal[18, 34, 50]
_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Residual(nn.Module):
    """A residual block: two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times the channels; torchvision's names."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        out = 4 * width if bottleneck else width
        sizes = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [channels, width, width, out] if bottleneck else [channels, width, out]
        for i, (kernel, step) in enumerate(sizes):
            pad, last = kernel // 2, widths[i : i + 2]
            self.add_module(f"conv{i + 1}", nn.Conv2d(*last, kernel, step, pad, bias=False))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(last[1]))
        self.count = len(sizes)
        same = stride == 1 and channels == out
        self.downsample = (
            None
            if same
            else nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.downsample is None else self.downsample(x)
        for i in range(1, self.count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = F.relu(x if i < self.count else x + skip)
        return x


class ResNet(nn.Module):
    """A ResNet without its classifier (He et al. 2016), under torchvision's parameter names.

    Args:
        depth: 18, 34 or 50.
        width: Channels of the first stage; 64 in the published models.
    """

    def __init__(self, depth: Depth = 18, width: int = 64) -> None:
        super().__init__()
        if depth not in _STAGES:
            raise InputError(f"depth must be one of 18, 34, 50, got {depth!r}")
        check_number("width", width, low=1, integer=True)
        bottleneck = depth == 50
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels, self.stage_dims = width, []
        for i, count in enumerate(_STAGES[depth]):
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(_Residual(channels, width << i, stride, bottleneck))
                channels = (width << i) * (4 if bottleneck else 1)
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.stage_dims.append(channels)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, x: Tensor) -> Tensor:
        """Return the features [B, W, H/4, W/4] before the first stage."""
        return F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled features [B, C] of images [B, 3, H, W]."""
        x = self.stem(x)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return x.mean(dim=(2, 3))


def feature_dim(depth: Depth, width: int = 64) -> int:
    """Return the width of a ResNet's features: 512 for 18 and 34 layers, 2048 for 50, at width 64."""
    return 8 * width * (4 if depth == 50 else 1)


class FiLM(nn.Module):
    """x (1 + gamma(g)) + beta(g), both linear in the goal and 0 at first.

    Args:
        features: Channels.
        goal_dim: Width of the goal.
    """

    def __init__(self, features: int, goal_dim: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Linear(goal_dim, features), nn.Linear(goal_dim, features)
        for layer in (self.gamma, self.beta):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        """Return features [B, C, H, W] scaled and shifted by goals [B, G]."""
        return x * (1 + self.gamma(goal)[..., None, None]) + self.beta(goal)[..., None, None]


class FiLMResNet(nn.Module):
    """A ResNet with FiLM after each of its four stages; equal to the plain one until it trains.

    Args:
        goal_dim: Width of a goal embedding.
        depth: 18, 34 or 50.
        width: Channels of the first stage.
    """

    def __init__(self, goal_dim: int, depth: Depth = 18, width: int = 64) -> None:
        super().__init__()
        self.resnet = ResNet(depth, width)
        self.films = nn.ModuleList(FiLM(dim, goal_dim) for dim in self.resnet.stage_dims)
        self.features = self.resnet.stage_dims[-1]

    def forward(self, image: Tensor, goal: Tensor) -> Tensor:
        """Return features [B, C] of images [B, 3, H, W] seen with goals [B, G]."""
        x = self.resnet.stem(image)
        for i, film in enumerate(self.films):
            x = film(getattr(self.resnet, f"layer{i + 1}")(x), goal)
        return x.mean(dim=(2, 3))


def random_shift(images: Tensor, pad: int) -> Tensor:
    """Return images [B, C, H, W] each moved by up to `pad` pixels, edges repeated; torch's global generator.

    The published training uses 10 pixels at 224 and 4 at 112.
    """
    check_number("pad", pad, low=0, integer=True)
    batch, _, height, width = images.shape
    padded = F.pad(images, (pad,) * 4, mode="replicate")
    top, left = torch.randint(2 * pad + 1, (2, batch), device=images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    index = torch.arange(batch, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


class ImageEncoder(nn.Module):
    """One FiLM-ResNet per camera; the goal comes with the observation as an embedding.

    Args:
        cameras: Names of the observations' images, [B, 1, 3, H, W] in [0, 1].
        goal_dim: Width of a goal embedding.
        depth: 18, 34 or 50.
        width: Channels of a ResNet's first stage.
        shift: Pixels of random shift in training.
        size: Side that images must have, in pixels; None for any.
        state: Of the robot's state, which then is a token of its own; None where the cameras are all that is seen.
    """

    def __init__(
        self,
        cameras: Sequence[str],
        goal_dim: int,
        depth: Depth = 18,
        width: int = 64,
        shift: int = 0,
        size: int | None = None,
        state: LinearNormalizer | None = None,
    ) -> None:
        super().__init__()
        self.state = state
        if not cameras or len(set(cameras)) != len(cameras):
            raise InputError(f"cameras must be different names, at least one, got {list(cameras)}")
        check_number("shift", shift, low=0, integer=True)
        self.cameras, self.shift, self.size, self.goal_dim = tuple(cameras), shift, size, goal_dim
        self._record = {"goal_dim": goal_dim, "depth": depth, "width": width}
        self.networks = nn.ModuleList(FiLMResNet(goal_dim, depth, width) for _ in cameras)
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    def forward(self, obs: Mapping[str, Tensor]) -> Condition:
        """Return the condition of images, `obs["goal"]` [B, 1, G] or [B, G] and, with it, `obs["state"]` [B, 1, S].

        Raises:
            InputError: When an image or the goal is missing, or batch sizes differ.
        """
        needed = (*self.cameras, "goal", *(() if self.state is None else ("state",)))
        missing = [name for name in needed if name not in obs]
        if missing:
            raise InputError(f"observations lack {', '.join(missing)}")
        goal = obs["goal"].flatten(1)
        tokens = []
        for name, network in zip(self.cameras, self.networks, strict=True):
            image = obs[name]
            if image.ndim != 5 or image.shape[1:3] != (1, 3) or len(image) != len(goal):
                raise InputError(f"{name} must have shape [{len(goal)}, 1, 3, H, W], got {list(image.shape)}")
            if self.size is not None and image.shape[3:] != (self.size, self.size):
                raise InputError(
                    f"{name} must have {self.size} x {self.size} pixels, as in training, got {list(image.shape)}"
                )
            image = (image[:, 0] - self.mean) / self.std
            image = random_shift(image, self.shift) if self.training and self.shift else image
            tokens.append(network(image, goal))
        state = None if self.state is None else self.state.normalize(obs["state"].flatten(1))
        return Condition(goal, torch.stack(tokens, dim=1), state)

    def load_backbone(self, path: str | Path) -> None:
        """Start all cameras' ResNets from weights under torchvision's names, such as ImageNet's; FiLM stays as it is.

        Args:
            path: A safetensors file; a classifier in it is left out.

        Raises:
            InputError: When the file is missing, or its weights are another network's.
        """
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"no ResNet weights in safetensors form at {path} ({error})") from error
        weights = {name: value for name, value in found.items() if not name.startswith("fc.")}
        for network in self.networks:
            try:
                network.resnet.load_state_dict(weights)
            except RuntimeError as error:
                first = str(error).splitlines()[1].strip()
                raise InputError(f"{path} holds another network than this ResNet: {first}") from error

    def record(self) -> dict[str, Any]:
        """Return what rebuilds the encoder, without its tensors."""
        return {
            "kind": "images",
            "cameras": list(self.cameras),
            "shift": self.shift,
            "size": self.size,
            "state": None if self.state is None else self.state.record(),
            **self._record,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ImageEncoder":
        """Return an encoder of a `record`."""
        check_choice("encoder", record["kind"], ("images",))
        own = {name: value for name, value in record.items() if name != "kind"}
        if own.get("state") is not None:
            own["state"] = LinearNormalizer(*(torch.tensor(own["state"][n]) for n in ("scale", "offset")))
        return cls(**own)
