"""What the masks are judged by: the final latent of the whole sampler (section 3.3), or one step's prediction.

Dense results are computed once a prompt and kept. Everything that is drawn is drawn from seeds, so that the same masks
give the same loss at any time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from noiseworks.core.noise import mix64
from noiseworks.kits.diffusers_hosts.drawing import Prompts, call_arguments
from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall
from noiseworks.kits.diffusers_hosts.layouts import layout_of
from noiseworks.kits.diffusers_hosts.loading import sample_generators
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.kits.diffusers_hosts.recording import record_step
from noiseworks.kits.diffusers_hosts.rows import prediction_of
from noiseworks.kits.diffusers_hosts.through import through_run
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Masks = Mapping[str, Tensor]
Loss = Literal["mse", "l1"]


def reconstruction(latents: Tensor, target: Tensor, loss: Loss) -> Tensor:
    """Return the mean square (or absolute) difference to the dense model's latents, in float32, a scalar."""
    difference = latents.float() - target.float()
    return difference.square().mean() if loss == "mse" else difference.abs().mean()


@dataclass
class Current:
    """The masks that the attached denoiser reads, and for each step the ones that it read there."""

    masks: Masks = field(default_factory=dict)

    @contextmanager
    def set(self, masks: Masks) -> Iterator[None]:
        """Let the denoiser read these masks inside the block."""
        before, self.masks = self.masks, masks
        try:
            yield
        finally:
            self.masks = before


@dataclass(eq=False)
class Runs:
    """Runs of a pipeline on some prompts, each with its own noise.

    Attributes:
        pipe: The pipeline.
        prompts: Texts, or class labels for DiT.
        sampling: How they are drawn.
    """

    pipe: "DiffusionPipeline"
    prompts: Prompts
    sampling: Sampling
    _dense: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def arguments(self, rows: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of the pipeline's call for some prompts, given by number."""
        chosen = [self.prompts[row] for row in rows]
        own = call_arguments(layout_of(self.pipe).family, chosen, self.sampling, slice(None))
        generator = sample_generators([self.sampling.seed + row for row in rows])
        return {**own, "num_inference_steps": self.sampling.num_inference_steps, "generator": generator}

    @torch.no_grad()
    def latents(self, rows: Sequence[int]) -> Tensor:
        """Return final latents of the pipeline as it is now, `[n, ...]`."""
        return through_run(self.pipe, self.arguments(rows))

    def dense(self, rows: Sequence[int], undisturbed: Callable[[], Any]) -> Tensor:
        """Return z_0* of some prompts, from the first time they are asked for.

        Args:
            rows: Numbers of the prompts.
            undisturbed: Returns a context in which nothing is masked.
        """
        key = tuple(rows)
        if key not in self._dense:
            with undisturbed():
                self._dense[key] = self.latents(rows)
        return self._dense[key]


def trajectory_loss(
    runs: Runs, rows: Sequence[int], draws: Callable[[int], Masks], current: Current, options: Any
) -> Tensor:
    """Return the reconstruction loss of the final latents, with a graph to the masks (eq. 5), a scalar.

    Args:
        runs: The runs.
        rows: Numbers of the prompts.
        draws: Step -> masks, the same numbers whenever it is asked for the same step.
        current: What the attached denoiser reads.
        options: `Learning`: `loss` and `checkpointed`.
    """
    ones = {path: torch.ones_like(mask) for path, mask in draws(0).items()}
    target = runs.dense(rows, lambda: current.set(ones))
    latents = through_run(
        runs.pipe,
        runs.arguments(rows),
        around=lambda step: current.set(draws(step)),
        checkpointed=options.checkpointed,
    )
    return reconstruction(latents, target, options.loss)


def record(runs: Runs, rows: Sequence[int], step: int) -> list[tuple[DenoiserCall, Tensor]]:
    """Return the denoiser's calls of one step (two on FLUX with guidance) and its predictions.

    Args:
        runs: The runs.
        rows: Numbers of the prompts.
        step: The step, from 0.
    """
    return record_step(runs.pipe, runs.arguments(rows), step)


def step_loss(
    runs: Runs, rows: Sequence[int], masks: Masks, current: Current, *, seed: int, loss: Loss
) -> Tensor:
    """Return the loss of the prediction at one random step of the dense run: the local objective of the ablation.

    Args:
        runs: The runs.
        rows: Numbers of the prompts.
        masks: The masks.
        current: What the attached denoiser reads.
        seed: Of the step.
        loss: "mse" or "l1".
    """
    step = mix64(seed, 5) % runs.sampling.num_inference_steps
    with current.set({path: torch.ones_like(mask) for path, mask in masks.items()}):
        found = record(runs, rows, step)
    with current.set(masks):
        losses = [
            reconstruction(prediction_of(call.beneath(*call.args, **call.kwargs)), target, loss)
            for call, target in found
        ]
    return torch.stack(losses).mean()
