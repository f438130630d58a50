"""Noise levels at a timestep and conversions between prediction types.

The denoiser's *input* is x_t = alpha x_0 + sigma epsilon. For variance-preserving models (alpha^2 + sigma^2
= 1) this holds for every scheduler, also for those that work with unscaled sigmas (Euler, Heun): they scale
the latents before they call the denoiser. For rectified flow, alpha = 1 - sigma.
"""

import math
from typing import TYPE_CHECKING

import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import SchedulerMixin

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


def prediction_type_of(scheduler: "SchedulerMixin") -> str:
    """Return what the scheduler takes the denoiser's output for: one of `PREDICTION_TYPES`."""
    if _is_flow(scheduler):
        return "flow_prediction"
    return scheduler.config.get("prediction_type", "epsilon")


def noise_level(scheduler: "SchedulerMixin", timestep: float) -> tuple[float, float]:
    """Return (alpha, sigma) of the denoiser's input at a timestep.

    Args:
        scheduler: A diffusers scheduler on which `set_timesteps` has been called.
        timestep: In the scheduler's own units, also between two training timesteps.

    Raises:
        UnsupportedHostError: When the scheduler has neither sigmas nor `alphas_cumprod` (EDM
            preconditioning).
    """
    if type(scheduler).__name__.startswith("EDM"):
        raise UnsupportedHostError(
            f"{type(scheduler).__name__} scales the denoiser in a way that is not supported"
        )
    sigma = _scheduled_sigma(scheduler, timestep)
    if sigma is None:
        sigma = _trained_sigma(scheduler, timestep)
    if _is_flow(scheduler):
        return 1.0 - sigma, sigma
    alpha = 1.0 / math.sqrt(1.0 + sigma * sigma)
    return alpha, sigma * alpha


def to_x0(prediction: Tensor, sample: Tensor, alpha: float, sigma: float, prediction_type: str) -> Tensor:
    """Return the denoised sample that a prediction implies.

    epsilon: (x - sigma e) / alpha; v: alpha x - sigma v; flow (v = epsilon - x_0, alpha = 1 - sigma): x -
        sigma v.

    Args:
        prediction: The denoiser's prediction, any shape.
        sample: The denoiser's input x_t, of the same shape.
        alpha: Signal coefficient at this timestep, above 0.
        sigma: Noise coefficient at this timestep.
        prediction_type: One of `PREDICTION_TYPES`.

    Raises:
        InputError: When the prediction type is unknown.
    """
    match prediction_type:
        case "epsilon":
            return (sample - sigma * prediction) / alpha
        case "v_prediction":
            return alpha * sample - sigma * prediction
        case "sample":
            return prediction
        case "flow_prediction":
            return sample - sigma * prediction
    raise InputError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def to_epsilon(
    prediction: Tensor, sample: Tensor, alpha: float, sigma: float, prediction_type: str
) -> Tensor:
    """Return the noise that a prediction implies; arguments as in `to_x0`.

    v: sigma x + alpha v; sample: (x - alpha x_0) / sigma; flow: x + alpha v.

    Raises:
        InputError: When the prediction type is unknown.
    """
    match prediction_type:
        case "epsilon":
            return prediction
        case "v_prediction":
            return sigma * sample + alpha * prediction
        case "sample":
            return (sample - alpha * prediction) / sigma
        case "flow_prediction":
            return sample + alpha * prediction
    raise InputError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")


def score_slope(alpha: float, sigma: float, prediction_type: str) -> float:
    """Return by how much a prediction moves with a score, the gradient of a log-probability at x_t.

    The noise prediction moves by -sigma score (Dhariwal and Nichol 2021, algorithm 2), x_0 by sigma^2 / alpha score,
    v and flow by -sigma / alpha score; where alpha is 0 x_t tells nothing of x_0, and nothing is moved.

    Args:
        alpha: Signal coefficient at this timestep.
        sigma: Noise coefficient at this timestep.
        prediction_type: One of `PREDICTION_TYPES`.
    """
    if alpha == 0:
        return 0.0
    return {"epsilon": -sigma, "sample": sigma**2 / alpha}.get(prediction_type, -sigma / alpha)


def distinct_timesteps(timesteps: Tensor) -> list[float]:
    """Return the timesteps without repetition, in order: second-order schedulers list some of them twice."""
    return list(dict.fromkeys(float(t) for t in timesteps.tolist()))


def _is_flow(scheduler: "SchedulerMixin") -> bool:
    config = scheduler.config
    if config.get("prediction_type") == "flow_prediction" or config.get("use_flow_sigmas", False):
        return True
    return "FlowMatch" in type(scheduler).__name__


def _scheduled_sigma(scheduler: "SchedulerMixin", timestep: float) -> float | None:
    # PNDM, DDIM and DDPM keep no sigmas; k-DPM2 lists intermediate timesteps that its sigmas do not follow.
    sigmas, timesteps = getattr(scheduler, "sigmas", None), scheduler.timesteps
    if (
        sigmas is None
        or len(sigmas) not in (len(timesteps), len(timesteps) + 1)
        or "KDPM2" in type(scheduler).__name__
    ):
        return None
    distance = (torch.as_tensor(timesteps, dtype=torch.float64) - timestep).abs()
    index = int(distance.argmin())
    return float(sigmas[index]) if float(distance[index]) < 1e-3 * max(1.0, abs(timestep)) else None


def _trained_sigma(scheduler: "SchedulerMixin", timestep: float) -> float:
    if _is_flow(scheduler):
        return timestep / scheduler.config.num_train_timesteps
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise UnsupportedHostError(f"{type(scheduler).__name__} has neither sigmas nor alphas_cumprod")
    low = min(max(int(timestep), 0), len(table) - 1)
    high = min(low + 1, len(table) - 1)
    below, above = (math.sqrt(1.0 / float(table[i]) - 1.0) for i in (low, high))
    return below + (timestep - low) * (above - below)
