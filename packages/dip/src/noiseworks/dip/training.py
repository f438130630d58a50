"""Training in two stages (section 3.2): the base on clips, then the control branch with sparse hints."""

import math
from typing import Any

import lightning as L  # noqa: TID253
import torch
from noiseworks.core.errors import InputError
from noiseworks.dip.network import NUM_STEPS, MotionModel, motion_schedule
from noiseworks.dip.options import Architecture, Fitting
from noiseworks.kits.motion.body import COUNT, NUMBERS, ROTATIONS, BodyModel, ProcBody
from noiseworks.kits.training import Average, Batches, Run, fit, warm_decay
from torch import Tensor

WARM_UP = 0.05


def motion_loss(found: Tensor, target: Tensor, *, reference: bool = False) -> Tensor:
    """Return the loss of each clip, [B]: all numbers, translation once more, and differences of frames.

    Args:
        found: [B, F, 69].
        target: [B, F, 69].
        reference: Leave the last number out of the differences, as the released code does.
    """
    error = found - target
    kept = error[..., : NUMBERS - 1] if reference else error
    steps = (kept[:, 1:] - kept[:, :-1]).square().flatten(1).mean(1)
    place = error[..., ROTATIONS:].square().flatten(1).mean(1)
    return error.square().flatten(1).mean(1) + place + steps


def draw_hints(count: int, frames: int) -> Tensor:
    """Return a mask [count, F, 22] of which joint is shown when: one joint a clip, in 1 to F - 1 of its frames."""
    joint = torch.randint(COUNT, (count,))
    number = torch.randint(1, frames, (count, 1))
    rank = torch.rand(count, frames).argsort(1).argsort(1)
    mask = torch.zeros(count, frames, COUNT, dtype=torch.bool)
    mask[torch.arange(count), :, joint] = rank < number
    return mask


class MotionModule(L.LightningModule):
    """The loss of a stage, AdamW and the average of the weights.

    Args:
        model: What is trained; with a branch, the second stage.
        options: Length, rate, and what is trained.
        body: Gives the joints that hints are taken from.
    """

    def __init__(self, model: MotionModel, options: Fitting, body: BodyModel) -> None:
        super().__init__()
        self.model, self.options = model, options
        self.average = Average(model, warm_decay(options.ema_decay))
        self.body = body
        alphas = motion_schedule().alphas_cumprod.float()
        self.register_buffer("alpha", alphas.sqrt(), persistent=False)
        self.register_buffer("sigma", (1 - alphas).sqrt(), persistent=False)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss of a batch: `motion` [B, F, 69] and `actions` [B]."""
        clean, action = batch["motion"], batch["actions"]
        t = torch.randint(NUM_STEPS, (len(clean),), device=clean.device)
        x = self.alpha[t][:, None, None] * clean + self.sigma[t][:, None, None] * torch.randn_like(clean)
        hint = None
        if self.model.branch is not None:
            with torch.no_grad():
                joints, _ = self.body(clean)
            hint = self.model.embed(joints, draw_hints(*clean.shape[:2]).to(clean.device))
        # In deviations of each number, as the layers see them: in metres and radians, translation would be most of it.
        scale = self.model.std
        loss = motion_loss(self.model(x, t, action, hint) / scale, clean / scale).mean()
        self.log("loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict:
        """Return AdamW without weight decay, and a rate that rises over the first steps and falls along a cosine."""
        options = self.options
        tuned = self.model
        if self.model.branch is not None and options.tuned == "branch":
            self.model.requires_grad_(False)
            tuned = self.model.branch.requires_grad_(True)
        optimizer = torch.optim.AdamW(tuned.parameters(), options.learning_rate, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: share_of_rate(step, options.max_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the average: a checkpoint of the step holds both."""
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.model)


def share_of_rate(step: int, total: int) -> float:
    """Return a step's share of the peak rate: linear over the first 5 %, then half a cosine to 1 %."""
    warm = max(1, round(WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def fit_motion(
    clips: dict[str, Tensor],
    start: Architecture | MotionModel,
    options: Fitting,
    run: Run | None = None,
    *,
    body: BodyModel | None = None,
    progress: bool = True,
) -> MotionModel:
    """Return a trained model: a base from its sizes, or a control branch on a base.

    Args:
        clips: `motion` [N, F, 69] in local frames, `actions` [N].
        start: Sizes for the first stage, a base model for the second.
        options: Length and bookkeeping.
        run: The open run, None to keep nothing on the way.
        body: Whose joints the hints are; by default the synthetic one.
        progress: Whether to show a bar.

    Raises:
        InputError: When the clips are not motions, or fewer than a batch.
        NonFiniteError: When the loss is not finite.
    """
    check_clips(clips, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if isinstance(start, MotionModel):
            model = start.with_branch().requires_grad_(True)
        else:
            model = MotionModel(start, frames=clips["motion"].shape[1])
            model.standardise(clips["motion"])
        batches = Batches(clips, options.batch_size, seed=options.seed)
        module = MotionModule(model.train(), options, body or ProcBody())
        fit(module, batches, run=run, options=options, clip=1.0, progress=progress)
    return module.average.model.requires_grad_(False).eval().cpu()


def check_clips(clips: dict[str, Tensor], options: Fitting) -> None:
    """Refuse clips that cannot be learnt from.

    Raises:
        InputError: Naming what is wrong.
    """
    motion, actions = clips["motion"], clips["actions"]
    if motion.ndim != 3 or motion.shape[-1] != NUMBERS or len(actions) != len(motion):
        raise InputError(f"clips are motion [N, F, {NUMBERS}] and actions [N], got {list(motion.shape)}")
    if len(motion) < options.batch_size:
        raise InputError(f"{len(motion)} clips are fewer than a batch of {options.batch_size}")
    if not bool(motion.isfinite().all()):
        raise InputError("the clips hold NaN or infinity")
    if not bool(((actions >= 0) & (actions < 3)).all()):
        raise InputError("actions are 0 walk, 1 sit or 2 lie")
