"""The options of rollouts, rewards and tuning; nothing heavy is imported."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Options, above, at_least, at_most
from noiseworks.kits.diffusers_hosts.options import read_prompts
from noiseworks.kits.training.options import Fit, Precision

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FAMILIES = ("sd", "sdxl", "sd3", "flux")
Link = Literal["sigmoid", "hinge", "ipo"]
REWARDS = ("incompressibility", "compressibility", "brightness", "redness", "greenness", "blueness", "shapes")


@dataclass(frozen=True)
class Subject(Options):
    """What is tuned, and on what.

    Attributes:
        model: A text-to-image pipeline (Stable Diffusion 1, 2, XL, 3, FLUX): a directory, a hub id or testbed:<name>.
        prompts: A text file with one prompt a line, or one prompt.
    """

    model: str
    prompts: str

    def texts(self) -> list[str]:
        """Return the prompts, each once, before any work.

        Raises:
            InputError: When there are none, or the model is not there.
        """
        found = list(dict.fromkeys(read_prompts(self.prompts)))
        resolve_model(self.model)
        return found


@dataclass(frozen=True)
class Rollout(Options):
    """How the pipeline draws while it is tuned: the policy whose steps are scored.

    Attributes:
        num_inference_steps: Denoising steps, T.
        guidance_scale: Guidance scale w of rollouts, policy and reference alike; 1 or less switches it off.
        eta: Share of DDPM's noise in each DDIM step, above 0: without noise a step has no probability.
        noise_level: Strength of the noise of flow models' steps (SD3, FLUX), in place of eta.
        rollout_batch: Samples of one call of the denoiser; changes no number but in the last bits.
        size: Height and width of the images in pixels; the pipeline's own by default.
    """

    num_inference_steps: Annotated[int, at_least(2)] = 20
    guidance_scale: Annotated[float, at_least(0)] = 5.0
    eta: Annotated[float, above(0), at_most(1)] = 1.0
    noise_level: Annotated[float, above(0)] = 0.7
    rollout_batch: Annotated[int, at_least(1)] = 16
    size: Annotated[int | None, at_least(8)] = None


@dataclass(frozen=True)
class RewardChoice(Options):
    """What images are scored by.

    Attributes:
        reward: incompressibility, compressibility, brightness, redness, greenness, blueness, shapes (the testbed's
            oracle, for its captions), clip:FOLDER (a CLIP model's directory), or module:function of your own.
    """

    reward: str = "shapes"

    def check(self) -> None:
        """Refuse a name that cannot be a reward's.

        Raises:
            InputError: Naming the rewards.
        """
        if self.reward not in REWARDS and ":" not in self.reward:
            raise InputError(
                f"unknown reward {self.reward!r}; use {', '.join(REWARDS)}, clip:FOLDER or module:function"
            )


@dataclass(frozen=True)
class OfflineTuning(Fit):
    """Length, optimiser, hardware and bookkeeping of tuning on data that is there, one optimiser step a batch.

    Attributes:
        max_steps: Optimiser steps of the whole run.
        batch_size: Rows (images, pairs) of an optimiser step, over all processes.
        learning_rate: AdamW's.
        weight_decay: AdamW's.
        max_grad_norm: The gradient of an optimiser step is scaled down to this norm.
        minibatch: Rows of one forward and backward pass, over all processes.
        weights: Type of the pipeline's own weights, which are frozen: float32, bfloat16 or float16.
        gradient_checkpointing: Whether activations are computed again instead of kept.
        seed: Of what is trained, the order of the data and all noise.
        precision: 32-true, bf16-mixed or 16-mixed.
        devices: Number of processes, each with a device of its own; they change no number but in the last bits.
    """

    max_steps: Annotated[int, at_least(1)] = 100
    batch_size: Annotated[int, at_least(1)] = 8
    learning_rate: Annotated[float, above(0)] = 3e-4
    weight_decay: Annotated[float, at_least(0)] = 1e-4
    max_grad_norm: Annotated[float, above(0)] = 1.0
    minibatch: Annotated[int, at_least(1)] = 4
    weights: Literal["float32", "bfloat16", "float16"] = "float32"
    gradient_checkpointing: bool = False
    precision: Precision = "32-true"
    log_every: Annotated[int, at_least(1)] = 1
    strategy: Literal["auto", "ddp"] = "auto"

    def check(self) -> None:
        """Refuse what the processes cannot share, and a precision in which adapters cannot be trained.

        Raises:
            InputError: Naming the option.
        """
        super().check()
        if self.minibatch % self.devices:
            raise InputError(
                f"minibatch must be a multiple of devices ({self.devices}), got {self.minibatch}"
            )
        if self.precision not in ("32-true", "bf16-mixed", "16-mixed", "64-true"):
            raise InputError(
                "adapters are trained in 32 bits: precision must be 32-true, bf16-mixed or 16-mixed, got "
                f"{self.precision}"
            )

    def pipeline(self, model: str, families: Sequence[str] = FAMILIES) -> "DiffusionPipeline":
        """Load what is tuned, on its device.

        Args:
            model: A directory, a hub id or testbed:<name>.
            families: Families of pipelines that can be tuned.

        Raises:
            InputError: When it is not there or cannot be tuned.
        """
        import torch
        from noiseworks.core.devices import resolve_device
        from noiseworks.kits.diffusers_hosts import load_pipeline

        return load_pipeline(model, resolve_device(self.device), getattr(torch, self.weights), families)


@dataclass(frozen=True)
class PairLoss(Options):
    """How strongly pairs of images count, by the difference of their denoising errors.

    Attributes:
        kappa: Strength; diffusers' beta, half of Diffusion-DPO's own. Published for Stable Diffusion.
        link: Loss of a margin: sigmoid, hinge or ipo.
    """

    kappa: Annotated[float, above(0)] = 2500.0
    link: Link = "sigmoid"


@dataclass(frozen=True)
class LoraTuning(OfflineTuning):
    """Offline tuning of LoRA adapters.

    Attributes:
        lora_rank: Rank of the adapters on all attention projections.
    """

    lora_rank: Annotated[int, at_least(1)] = 4


@dataclass(frozen=True)
class Tuning(LoraTuning):
    """Length, optimiser, adapter, hardware and bookkeeping of a tuning run; a method's own options extend it.

    Attributes:
        max_steps: Rounds of the whole run, each of rollouts and optimiser steps on them.
        batch_size: Prompts of a round, over all processes.
        minibatch: Rows (samples, pairs) of one forward and backward pass, over all processes.
        accumulate: Minibatches of an optimiser step; each counts with all of its denoising steps.
        inner_epochs: How often a round's rollouts are gone through.
        timestep_fraction: Share of each row's denoising steps that are trained on, drawn at random.
        pictures_every: Rounds between two pictures of samples in the folder; 0 writes none.
        seed: Of adapters, prompts, rollouts and order.
        checkpoint_every: Minutes between two checkpoints; 0 writes one after every round.
        log_every: Rounds between two rows of metrics.csv.
    """

    accumulate: Annotated[int, at_least(1)] = 1
    inner_epochs: Annotated[int, at_least(1)] = 1
    timestep_fraction: Annotated[float, above(0), at_most(1)] = 1.0
    pictures_every: Annotated[int, at_least(0)] = 0


@dataclass(frozen=True)
class Trial(Options):
    """How a tuned pipeline is tried beside the one that it was.

    Attributes:
        per_prompt: Images of each prompt, from the same noise with and without the adapter.
        trial_seed: Of the first latents and the steps' noise.
    """

    per_prompt: Annotated[int, at_least(1)] = 4
    trial_seed: Annotated[int, at_least(0)] = 1_000_000


@dataclass(frozen=True)
class Control(Options):
    """What shows how far a training drifts when there is nothing to learn.

    Attributes:
        control: Whether the method is also trained on its rewards in random order, for as long again.
    """

    control: bool = False
