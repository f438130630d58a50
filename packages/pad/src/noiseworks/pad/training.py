"""Co-training on demonstrations and action-free video (section 3.4)."""

import math

import lightning as L  # noqa: TID253
import numpy as np
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.normalizer import LinearNormalizer
from noiseworks.kits.training import Average, Batches, MuonWithAdamW, Run, fit, warm_decay
from noiseworks.pad.diffusion import STEPS
from noiseworks.pad.model import PAD, Shapes
from noiseworks.pad.options import Architecture, Fitting, Video, Window
from noiseworks.pad.windows import Mixed, Recording, Windows, shifted
from torch import Tensor


class PADModule(L.LightningModule):
    """The losses of all modalities, AdamW, and the average of the weights.

    Args:
        model: What is trained.
        options: Rates, weights and length.
    """

    def __init__(self, model: PAD, options: Fitting) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.average = Average(model, warm_decay(options.ema)) if options.ema else None

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return `L_rgb w_I + L_action w_A(step) + L_depth w_A(step)`, each a mean over the samples that have it."""
        rows, device = len(batch["goal"]), batch["goal"].device
        t = torch.randint(STEPS, (rows,), device=device)
        values, _, present = self.model.targets(batch)
        noise = {name: torch.randn_like(value) for name, value in values.items()}
        found = self.model.loss(batch, t, noise, self.options.balanced)
        total = found["action"].new_zeros(())
        for name, rows_loss in found.items():
            weight = self.options.image_weight if name == "rgb" else self.options.action_at(self.global_step)
            there = present.get(name)
            count = rows if there is None else there.sum().clamp(min=1)
            mean = rows_loss.sum() / count
            self.log(name, mean)
            total = total + weight * mean * (count / rows)
        self.log("loss", total, prog_bar=True)
        return total

    def configure_optimizers(self) -> dict:
        """Return the optimiser at a rate that warms up over 100 steps, then is constant or falls along a cosine."""
        rate = self.options.learning_rate
        if self.options.optimizer == "muon":
            blocks = self.model.network.blocks
            matrices = [p for p in blocks.parameters() if p.ndim == 2]
            inside = set(matrices)
            others = [
                {"params": [p for p in self.model.parameters() if p not in inside], "weight_decay": 0.0}
            ]
            optimizer = MuonWithAdamW(matrices, others, rate, (0.9, 0.99), 0.0)
        else:
            optimizer = torch.optim.AdamW(self.model.parameters(), rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _share(self, step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        if not self.options.cosine:
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.options.max_steps)))

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        """Step, then move the average: before the checkpoint of the step is written."""
        super().optimizer_step(*args, **kwargs)
        if self.average is not None:
            self.average.update(self.model)

    @property
    def trained(self) -> PAD:
        """The model that comes out: the average where there is one."""
        return self.model if self.average is None else self.average.model


def shapes_of(recording: Recording, depth: bool = False) -> Shapes:
    """Return what a recording with poses holds.

    Raises:
        InputError: When it has no poses, or no depth where it is asked for.
    """
    if recording.poses is None:
        raise InputError("the demonstrations have no poses: name them as video instead")
    if depth and recording.depth is None:
        raise InputError("the demonstrations have no depth: leave depth out, or add depth.npy")
    channels, size = recording.frames.shape[1:3]
    return Shapes(
        channels,
        size,
        recording.poses.shape[1],
        recording.goals.shape[1],
        recording.depth.shape[-1] if depth else 0,
        recording.frames.dtype == np.uint8,
    )


def pose_scales(
    recording: Recording, window: Window, pose_dim: int
) -> tuple[LinearNormalizer, LinearNormalizer]:
    """Return the maps to [-1, 1] of poses, and of a window's poses relative to its present, entry by entry."""
    poses = torch.from_numpy(np.array(recording.poses, np.float32))
    rows = Windows(recording, window, pose_dim)
    every = rows.poses_of(np.arange(len(rows)))
    motions = every["poses"].unflatten(1, (-1, pose_dim)) - every["pose"][:, None]
    return LinearNormalizer.fit(poses), LinearNormalizer.fit(motions.flatten(1))


def training_rows(
    recording: Recording,
    shapes: Shapes,
    window: Window,
    video: Recording | None,
    mixture: Video,
    *,
    images: bool = True,
) -> Windows | Mixed:
    """Return training windows, mixed with those of video where there is some.

    Raises:
        InputError: When no window fits, the video is another camera's, or there is video for a model without images.
    """
    side = shapes.depth or None
    rows = Windows(recording, window, shapes.pose_dim, depth=side)
    if video is None:
        return rows
    if not images:
        raise InputError("video teaches images alone: predict images, or leave the video out")
    found = (video.frames.shape[1], video.frames.shape[2], video.goals.shape[1])
    if found != (shapes.channels, shapes.size, shapes.text_width):
        raise InputError(
            f"the video has {found[0]} channels, side {found[1]} and texts of {found[2]}, the demonstrations "
            f"{shapes.channels}, {shapes.size} and {shapes.text_width}"
        )
    seen = Windows(video, window, shapes.pose_dim, labelled=False, stride=mixture.video_stride, depth=side)
    return Mixed(rows, seen, mixture.video_share)


def fit_pad(
    recording: Recording,
    architecture: Architecture,
    window: Window,
    options: Fitting,
    *,
    video: Recording | None = None,
    mixture: Video | None = None,
    depth: bool = False,
    run: Run | None = None,
    progress: bool = True,
) -> PAD:
    """Return a model trained on demonstrations and, if there is some, on video beside them.

    Args:
        recording: Demonstrations.
        architecture: Sizes of the transformer.
        window: What of the future is predicted.
        options: Length, rates and weights.
        video: Episodes whose poses are not looked at.
        mixture: Their share and stride.
        depth: Whether depth is seen and predicted.
        run: The open run, None to keep nothing on the way.
        progress: Whether to show a bar.

    Raises:
        InputError: When data are missing or do not fit, or there are fewer windows than a batch.
        NonFiniteError: When the loss is not finite.
    """
    shapes = shapes_of(recording, depth)
    rows = training_rows(recording, shapes, window, video, mixture or Video(), images=architecture.images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        scales = pose_scales(recording, window, shapes.pose_dim)
        module = PADModule(PAD(architecture, window, shapes, *scales), options)
        batches = Batches(rows, options.batch_size, seed=options.seed, transform=shifted(options.shift))
        fit(module, batches, run=run, options=options, clip=1.0, progress=progress)
    return module.trained.eval().requires_grad_(False)
