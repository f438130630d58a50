"""The formulas of training: schedule, forward process, targets and weights (equations 1 to 4)."""

import numpy as np
import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.ldm.conditioning.conditioners import Condition
from torch import Tensor, nn

PREDICTIONS = ("epsilon", "sample", "v_prediction")


def make_scheduler(
    beta_schedule: str = "scaled_linear",
    beta_start: float = 0.0015,
    beta_end: float = 0.0195,
    num_train_timesteps: int = 1000,
    prediction_type: str = "epsilon",
):
    """Return the training schedule as a diffusers `DDIMScheduler` with the paper code's sampling conventions.

    Args:
        beta_schedule: `"scaled_linear"` (the paper's, β = (linear in √β)²), `"linear"`, `"cosine"`, or
            `"sqrt"` (β = √ of linear).
        beta_start: First β; (.0015, .0195) is the default of class and face models.
        beta_end: Last β.
        num_train_timesteps: T.
        prediction_type: What the U-Net predicts, one of `PREDICTIONS`.

    Raises:
        InputError: When a value is out of its range.
    """
    from diffusers import DDIMScheduler

    check_choice("beta_schedule", beta_schedule, ("scaled_linear", "linear", "cosine", "sqrt"))
    check_choice("prediction_type", prediction_type, PREDICTIONS)
    check_number("beta_start", beta_start, low=0, high=beta_end, low_open=True)
    check_number("beta_end", beta_end, high=1, high_open=True)
    names = {"cosine": "squaredcos_cap_v2", "sqrt": "linear"}
    betas = np.linspace(beta_start, beta_end, num_train_timesteps) ** 0.5 if beta_schedule == "sqrt" else None
    return DDIMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=names.get(beta_schedule, beta_schedule),
        trained_betas=None if betas is None else betas.tolist(),
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def run_unet(unet: nn.Module, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
    """Return the U-Net's prediction `[B, C, h, w]` for noisy latents under a condition."""
    inputs = latents if condition.concat is None else torch.cat([latents, condition.concat], dim=1)
    arguments = {} if condition.adm is None else {"class_labels": condition.adm}
    if condition.crossattn is not None:
        arguments["encoder_hidden_states"] = condition.crossattn
    return unet(inputs, timesteps, return_dict=False, **arguments)[0]
