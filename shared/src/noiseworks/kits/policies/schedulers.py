"""The noise schedulers of diffusion policies, from diffusers."""

from typing import TYPE_CHECKING, Any, Literal

from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import UnsupportedHostError

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

Solver = Literal["ddpm", "ddim"]


def make_scheduler(
    num_train_timesteps: int = 100, prediction_type: str = "epsilon", clip_sample: bool = True
) -> "DDPMScheduler":
    """Return the published policies' scheduler: squared-cosine betas, small fixed variance, clipped x0."""
    from diffusers import DDPMScheduler

    check_number("num_train_timesteps", num_train_timesteps, low=1, integer=True)
    check_choice("prediction_type", prediction_type, ("epsilon", "sample", "v_prediction"))
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_schedule="squaredcos_cap_v2",
        variance_type="fixed_small",
        clip_sample=clip_sample,
        prediction_type=prediction_type,
    )


def sampling_scheduler(scheduler: Any, solver: Solver, num_inference_steps: int | None = None) -> Any:
    """Return a fresh scheduler of the given solver on a checkpoint's own schedule, timesteps set.

    Args:
        scheduler: The host's diffusers scheduler; left as it is.
        solver: `ddpm` or `ddim`.
        num_inference_steps: Steps of a run; by default all of the training's.

    Raises:
        InputError: When the number of steps is out of range.
        UnsupportedHostError: When the scheduler has a learned variance, which needs a second network output.
    """
    from diffusers import DDIMScheduler, DDPMScheduler

    check_choice("solver", solver, ("ddpm", "ddim"))
    config = scheduler.config
    steps = config.num_train_timesteps if num_inference_steps is None else num_inference_steps
    check_number("num_inference_steps", steps, low=1, high=config.num_train_timesteps, integer=True)
    if str(config.get("variance_type", "fixed_small")).startswith("learned"):
        raise UnsupportedHostError("schedulers with a learned variance are not supported; use a fixed one")
    kind = DDPMScheduler if solver == "ddpm" else DDIMScheduler
    fresh = kind.from_config(config)
    fresh.set_timesteps(steps)
    return fresh
