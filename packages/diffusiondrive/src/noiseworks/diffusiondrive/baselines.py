"""What the paper compares with, on the same backbone: regression, classified anchors, diffusion from pure noise.

Their losses have the weights and units of the decoder's parts, so that beside the agents' loss each of them teaches the
backbone as much.
"""

import torch
import torch.nn.functional as F
from noiseworks.diffusiondrive.decoder import Scene, mlp
from noiseworks.diffusiondrive.losses import CLASSIFICATION, REGRESSION, focal_loss, positive_mode
from noiseworks.diffusiondrive.options import Architecture, Denoising
from noiseworks.diffusiondrive.plans import Plans
from noiseworks.diffusiondrive.truncation import STEPS, Normalizer, add_noise, ddim
from noiseworks.kits.policies.unet import ConditionalUnet1D
from torch import Tensor, nn

CALLS = 20  # of diffusion from noise


def summary(scene: Scene) -> Tensor:
    """Return the ego token and the view's mean, [B, 2 C]."""
    return torch.cat((scene.ego[:, 0], scene.view.mean((2, 3))), dim=-1)


class RegressionHead(nn.Module):
    """One plan, by an L1 loss.

    Args:
        architecture: Its width is C.
        anchors: Kept for the horizon alone, [N, T, 2].
        normalizer: Unused: the plan is in metres.
    """

    def __init__(self, architecture: Architecture, anchors: Tensor, normalizer: Normalizer) -> None:
        super().__init__()
        width = architecture.width
        self.register_buffer("anchors", anchors)
        self.points = anchors.shape[1]
        self.out = mlp(2 * width, 2 * width, 2 * width, 3 * self.points)

    def loss(self, scene: Scene, target: Tensor) -> Tensor:
        """Return 8 L1 to the expert's plan."""
        return REGRESSION * F.l1_loss(self._plan(scene), target)

    def plan(self, scene: Scene, denoising: Denoising, generator: object, modes: object) -> Plans:
        """Return one plan."""
        poses = self._plan(scene)[:, None]
        return Plans(poses, poses.new_zeros(poses.shape[:2]), 1)

    def _plan(self, scene: Scene) -> Tensor:
        return self.out(summary(scene)).unflatten(-1, (self.points, 3))


class AnchorHead(nn.Module):
    """Which of the anchors to take; their headings are those of their own steps.

    Args:
        architecture: Its width is C.
        anchors: [N, T, 2].
        normalizer: Unused: the anchors are in metres.
    """

    def __init__(self, architecture: Architecture, anchors: Tensor, normalizer: Normalizer) -> None:
        super().__init__()
        width = architecture.width
        self.register_buffer("anchors", anchors)
        self.out = mlp(2 * width, 2 * width, 2 * width, len(anchors))

    def loss(self, scene: Scene, target: Tensor) -> Tensor:
        """Return 10 focal of the nearest anchor."""
        return CLASSIFICATION * focal_loss(self.out(summary(scene)), positive_mode(self.anchors, target))

    def plan(self, scene: Scene, denoising: Denoising, generator: object, modes: Tensor | None) -> Plans:
        """Return the anchors, scored."""
        scores = self.out(summary(scene))
        poses = with_headings(self.anchors).expand(len(scores), -1, -1, -1)
        if modes is not None:
            poses, scores = poses[:, modes], scores[:, modes]
        return Plans(poses, scores, 1)


class DiffusionHead(nn.Module):
    """A diffusion policy: a one-dimensional U-Net that denoises plans from pure noise in 20 DDIM steps.

    Args:
        architecture: Its width is C.
        anchors: Kept for the horizon and the number of samples, [N, T, 2].
        normalizer: Of the schedule's units.
    """

    def __init__(self, architecture: Architecture, anchors: Tensor, normalizer: Normalizer) -> None:
        super().__init__()
        width = architecture.width
        self.register_buffer("anchors", anchors)
        self.normalizer, self.draws = normalizer, architecture.draws
        self.net = ConditionalUnet1D(
            2, global_cond_dim=2 * width, diffusion_step_embed_dim=64, down_dims=(32, 64), kernel_size=3
        )

    def loss(self, scene: Scene, target: Tensor) -> Tensor:
        """Return the squared error, in metres, of the predicted clean plan at a level of all 1000."""
        clean = self.normalizer.normalize(target[..., :2]).repeat_interleave(self.draws, 0)
        level = torch.randint(STEPS, (len(clean),), device=target.device)
        noisy = add_noise(clean, level, torch.randn_like(clean))
        cond = summary(scene).repeat_interleave(self.draws, 0)
        metres = clean.new_tensor(self.normalizer.range) / 2
        return (metres * (self.net(noisy, level, global_cond=cond) - clean)).square().mean()

    def plan(
        self, scene: Scene, denoising: Denoising, generator: torch.Generator | None, modes: Tensor | None
    ) -> Plans:
        """Return N samples, none of them preferred; the first one is what is driven."""
        generator = generator or torch.Generator().manual_seed(denoising.seed)
        count = len(self.anchors) if modes is None else len(modes)
        cond = summary(scene).repeat_interleave(count, 0)
        x = torch.randn((len(cond), self.anchors.shape[1], 2), generator=generator).to(cond)
        levels = [STEPS * i // CALLS for i in range(CALLS - 1, -1, -1)]
        for level, to in zip(levels, [*levels[1:], -1], strict=True):
            x = ddim(x, self.net(x, level, global_cond=cond), level, to)
        points = self.normalizer.denormalize(x).unflatten(0, (-1, count))
        return Plans(with_headings(points), points.new_zeros(points.shape[:2]), CALLS)


def with_headings(points: Tensor) -> Tensor:
    """Return poses [..., T, 3] of points [..., T, 2] from the origin: each heading is its step's direction.

    A step shorter than 0.1 m keeps the heading before it, since the direction of a vehicle that stands is noise.
    """
    steps = torch.diff(points, dim=-2, prepend=torch.zeros_like(points[..., :1, :]))
    heading, kept = torch.atan2(steps[..., 1], steps[..., 0]), []
    last = torch.zeros_like(heading[..., 0])
    for angle, size in zip(heading.unbind(-1), steps.norm(dim=-1).unbind(-1), strict=True):
        last = torch.where(size > 0.1, angle, last)
        kept.append(last)
    return torch.cat((points, torch.stack(kept, -1)[..., None]), dim=-1)


HEADS = {"regression": RegressionHead, "anchors": AnchorHead, "diffusion": DiffusionHead}
