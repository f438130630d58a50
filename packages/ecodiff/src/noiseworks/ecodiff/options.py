"""The options of EcoDiff; nothing heavy is imported."""

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.options import Options, above, at_least, at_most
from noiseworks.kits.diffusers_hosts import options

Method = Literal["learned", "magnitude", "taylor", "random"]


@dataclass(frozen=True)
class Sampling(options.Sampling):
    """The sampler that the objective runs through.

    Attributes:
        num_inference_steps: Denoising steps.
        guidance_scale: Guidance scale (FLUX's true_cfg_scale).
        negative_prompt: Takes the place of the empty prompt.
        batch_size: Prompts that are drawn at once, under one draw of the masks.
        seed: Prompt i is drawn with seed + i, whatever the batch size.
    """

    guidance_scale: Annotated[float, at_least(0)] = 4.0
    batch_size: Annotated[int, at_least(1)] = 4


@dataclass(frozen=True)
class Where(Options):
    """Which units may go.

    Attributes:
        families: Kinds of units with commas between: attn (heads), ffn (neurons), norm (modulation outputs).
        include: Regular expression that a module's path must contain a match of, such as down_blocks or attn1.
        exclude: One that it must contain no match of.
        min_heads: Attention layers with fewer heads are left whole.
    """

    families: str = "attn,ffn"
    include: str | None = None
    exclude: str | None = None
    min_heads: Annotated[int, at_least(1)] = 1

    def check(self) -> None:
        """Refuse unknown families and broken expressions.

        Raises:
            InputError: Naming them.
        """
        unknown = set(self.names) - {"attn", "ffn", "norm"}
        if unknown or not self.names:
            raise InputError(f"families must be of attn, ffn and norm, got {self.families!r}")
        for name in ("include", "exclude"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise InputError(f"{name} is no regular expression: {error}") from None

    @property
    def names(self) -> tuple[str, ...]:
        """The families."""
        return tuple(part.strip() for part in self.families.split(",") if part.strip())


@dataclass(frozen=True)
class Learning(Options):
    """How the masks are learned; what is not given is what the paper's code has for the pipeline's family.

    Attributes:
        objective: trajectory (only the final latent is compared, through the whole sampler) or step (the prediction at
            one random step, the paper's ablation).
        epochs: Passes over the prompts.
        accumulate: Prompts of an update.
        start: Of all logits.
        lr_attn: Learning rate of the heads' logits.
        lr_ffn: Learning rate of the neurons' logits.
        lr_norm: Learning rate of the modulation outputs' logits.
        beta: Weight of the sparsity penalty.
        eps: Bounds the noise of the masks to ± log((1 + eps) / eps).
        penalty: l1 or l2 of the logits (the released runs), or l0, the expected number of kept units (the text).
        bounded: Whether the penalty is on σ(0.4 λ + 1) instead of λ.
        loss: mse or l1, between the final latents.
        mask_sample: trajectory (one draw a run) or step (one a denoising step, the same on the way back).
        checkpointed: Whether steps are computed again on the way back, which keeps the memory of one step.
        mask_seed: Of the order of the prompts and of the masks' noise.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every update.
    """

    objective: Literal["trajectory", "step"] = "trajectory"
    epochs: Annotated[int, at_least(1)] = 4
    accumulate: Annotated[int, at_least(1)] = 4
    start: float | None = None
    lr_attn: Annotated[float | None, at_least(0)] = None
    lr_ffn: Annotated[float | None, at_least(0)] = None
    lr_norm: Annotated[float | None, at_least(0)] = None
    beta: Annotated[float | None, at_least(0)] = None
    eps: Annotated[float | None, at_least(1e-8)] = None
    penalty: Literal["l0", "l1", "l2"] = "l1"
    bounded: bool | None = None
    loss: Literal["mse", "l1"] = "mse"
    mask_sample: Literal["trajectory", "step"] = "trajectory"
    checkpointed: bool = True
    mask_seed: Annotated[int, at_least(0)] = 0
    checkpoint_every: Annotated[float, at_least(0)] = 5.0

    def check_prompts(self, count: int) -> None:
        """Refuse fewer prompts than an update takes.

        Raises:
            InputError: Naming both numbers.
        """
        if count < self.accumulate:
            raise InputError(
                f"an update takes accumulate = {self.accumulate} prompts, there are {count}: give more prompts or a "
                "smaller accumulate"
            )

    def resolved(self, family: str) -> "Learning":
        """Return the settings with the released ones of a family in place of what is not given."""
        values = dict(zip(_RELEASED_NAMES, RELEASED.get(family, RELEASED["sdxl"]), strict=True))
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{**values, **given})


_RELEASED_NAMES = ("start", "lr_attn", "lr_ffn", "lr_norm", "beta", "eps", "bounded")
# Family -> the released configurations (sd2, sdxl, sd3, flux, dit); DiT's states no eps.
RELEASED = {
    "sd": (2.5, 0.2, 0.2, 0.0, 1.0, 0.5, False),
    "sdxl": (3.0, 0.1, 0.1, 0.0, 0.5, 0.5, False),
    "sd3": (4.0, 0.2, 0.2, 0.2, 0.5, 1.0, False),
    "flux": (3.0, 0.5, 0.1, 0.5, 0.01, 0.1, True),
    "dit": (10.0, 0.5, 0.5, 0.5, 1.0, 0.5, False),
}


@dataclass(frozen=True)
class Cut(Options):
    """How much is removed: one of a budget, ratios, or a threshold.

    Attributes:
        target_params: Share of all parameters of the denoiser that stays; units go by their rank until it is reached.
        target_prunable: Instead: share of the prunable parameters that stays.
        ratio_attn: Instead: share of the heads that stays.
        ratio_ffn: Share of the neurons that stays.
        ratio_norm: Share of the modulation outputs that stays.
        scope: Whether ratios count over all layers (global) or in each layer (local).
        threshold: Instead: units whose logit is at most this go.
        multiple_of: Widths of feed-forward layers are rounded up to a multiple of this.
    """

    target_params: Annotated[float | None, above(0), at_most(1)] = None
    target_prunable: Annotated[float | None, above(0), at_most(1)] = None
    ratio_attn: Annotated[float | None, above(0), at_most(1)] = None
    ratio_ffn: Annotated[float | None, above(0), at_most(1)] = None
    ratio_norm: Annotated[float | None, above(0), at_most(1)] = None
    scope: Literal["global", "local"] = "global"
    threshold: float | None = None
    multiple_of: Annotated[int, at_least(1)] = 1

    def check_given(self) -> None:
        """Refuse anything but one way of saying how much.

        Raises:
            InputError: When none or several are given.
        """
        ways = (self.target_params, self.target_prunable, self.threshold, self.ratios or None)
        if sum(way is not None for way in ways) != 1:
            raise InputError("give one of target_params, target_prunable, threshold, or ratios of families")

    @property
    def ratios(self) -> dict[str, float]:
        """Family -> share that stays."""
        given = {"attn": self.ratio_attn, "ffn": self.ratio_ffn, "norm": self.ratio_norm}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Ranking(Where):
    """What ranks the units; learned masks say themselves which units may go.

    Attributes:
        method: learned (masks of fit), or a baseline: magnitude of the weights, taylor (first order at one random
            step) or random.
        masks: Folder that fit wrote, for learned.
        calibration: Text file of the prompts that taylor looks at.
        families: Kinds of units with commas between: attn (heads), ffn (neurons), norm (modulation outputs).
        include: Regular expression that a module's path must contain a match of, such as down_blocks or attn1.
        exclude: One that it must contain no match of.
        min_heads: Attention layers with fewer heads are left whole.
    """

    method: Method = "learned"
    masks: Path | None = None
    calibration: str | None = None

    def check_given(self) -> None:
        """Refuse a method without what it needs.

        Raises:
            InputError: Naming the option.
        """
        if self.method == "learned" and self.masks is None:
            raise InputError("method learned needs masks, the folder that fit wrote")
        if self.method == "taylor" and self.calibration is None:
            raise InputError("method taylor needs calibration, a text file of prompts")


@dataclass(frozen=True)
class Recovery(Options):
    """How a pruned denoiser is brought closer to the whole one, by LoRA on the predictions of the whole one.

    Attributes:
        rank: Of LoRA.
        steps: Updates.
        learning_rate: Of AdamW.
        adapter_seed: Of the adapters, the prompts' order and the steps.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every update.
    """

    rank: Annotated[int, at_least(1)] = 8
    steps: Annotated[int, at_least(1)] = 200
    learning_rate: Annotated[float, above(0)] = 1e-3
    adapter_seed: Annotated[int, at_least(0)] = 0
    checkpoint_every: Annotated[float, at_least(0)] = 5.0


@dataclass(frozen=True)
class Contest(Options):
    """What is compared on your own model.

    Attributes:
        masks: Folder that fit wrote.
        target_prunable: Share of the prunable parameters that stays in each of the pruned models.
        methods: Baselines beside the learned masks, commas between: magnitude, taylor, random.
    """

    masks: Path
    target_prunable: Annotated[float, above(0), at_most(1)] = 0.8
    methods: str = "magnitude,random"

    def check(self) -> None:
        """Refuse unknown baselines.

        Raises:
            InputError: Naming them.
        """
        unknown = set(self.names) - {"magnitude", "taylor", "random"}
        if unknown:
            raise InputError(f"methods must be of magnitude, taylor and random, got {', '.join(unknown)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The baselines."""
        return tuple(part.strip() for part in self.methods.split(",") if part.strip())
