"""Which noise schedule a warm start steps on, and whether it is the one that the checkpoint was trained with.

The authors' evaluation files replace a checkpoint's scheduler by `DDPMScheduler(num_train_timesteps=100)`, whose
default betas are linear, while the checkpoints were trained on the squared-cosine schedule. Near k = 0 the two
differ by a factor of about 2 in the size of a step.
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

from noiseworks.core.checks import check_choice
from noiseworks.core.errors import InputError
from noiseworks.kits.policies.steps import is_flow

Schedule = Literal["checkpoint", "host", "linear100"]

KEYS = ("num_train_timesteps", "beta_schedule", "prediction_type", "beta_start", "beta_end")
# A trained schedule ends in nearly pure noise; the linear one with 100 steps keeps a third of the signal.
TERMINAL_SIGNAL = 0.05


def choose_schedule(host: Any, schedule: Schedule = "checkpoint") -> Any:
    """Return the scheduler to step on.

    Args:
        host: The policy.
        schedule: `checkpoint`: the host's, refused when it is not the one that the checkpoint records. `host`: the
            host's, whatever the checkpoint says. `linear100`: the library's default of 100 linear betas, which
            repeats the authors' evaluation files.

    Raises:
        InputError: When the host's scheduler is not the checkpoint's.

    Warns:
        UserWarning: When the checkpoint records nothing and the schedule does not reach pure noise.
    """
    check_choice("schedule", schedule, ("checkpoint", "host", "linear100"))
    if is_flow(host.scheduler):
        if schedule == "linear100":
            raise InputError(
                "schedule linear100 replaces a diffusion's betas; a flow-matching policy has none"
            )
        return host.scheduler
    if schedule == "linear100":
        from diffusers import DDPMScheduler

        kind = host.scheduler.config.get("prediction_type", "epsilon")
        return DDPMScheduler(num_train_timesteps=100, prediction_type=kind)
    if schedule == "checkpoint":
        check_schedule(host.scheduler, trained_schedule(host))
    return host.scheduler


def trained_schedule(host: Any) -> dict[str, Any]:
    """Return what a policy's own configuration says about its schedule; empty when it says nothing.

    A native policy is always trained on the squared-cosine schedule; LeRobot's `config` names its own.
    """
    config = getattr(getattr(host, "policy", host), "config", None)
    found = {key: getattr(config, key) for key in KEYS if hasattr(config, key)}
    if hasattr(config, "step_embed_dim"):  # the native configuration
        found["beta_schedule"] = "squaredcos_cap_v2"
    return found


def check_schedule(scheduler: Any, trained: Mapping[str, Any]) -> None:
    """Refuse a scheduler that differs from what a checkpoint was trained with.

    Args:
        scheduler: A diffusers scheduler.
        trained: Settings of the training's scheduler; may be empty.

    Raises:
        InputError: Naming the first setting that differs.

    Warns:
        UserWarning: When nothing is known of the training and the schedule does not reach pure noise.
    """
    config = scheduler.config
    # The squared-cosine schedule has no range of betas.
    cosine = str(trained.get("beta_schedule", "")).startswith("squaredcos")
    unread = ("beta_start", "beta_end") if cosine else ()
    for key in (key for key in KEYS if key in trained and key not in unread):
        if config.get(key) != trained[key]:
            raise InputError(
                f"the scheduler's {key} is {config.get(key)!r} but the checkpoint was trained with "
                f"{trained[key]!r}; use the checkpoint's scheduler, or force it with schedule='host'"
            )
    last = float(scheduler.alphas_cumprod[-1]) if hasattr(scheduler, "alphas_cumprod") else 0.0
    if not trained and last > TERMINAL_SIGNAL:
        warnings.warn(
            f"abar of the last step is {last:.3g}: {config.get('beta_schedule')!r} betas with "
            f"{config.get('num_train_timesteps')} steps do not reach pure noise, so this may not be the schedule that "
            "the policy was trained with",
            stacklevel=3,
        )
