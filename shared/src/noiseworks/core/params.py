"""What a network predicts, and how one prediction or loss weight becomes another.

With `x = α x_0 + σ ε` the prediction types are
`epsilon` ε, `sample` x_0, `v_prediction` v = α ε − σ x_0, `flow_prediction` u = ε − x_0, `score` −ε/σ, and
`denoiser`, an x_0 predicted from the variance-exploding view (see `ve_view`). Conversions are exact for every
(α, σ), not only for variance-preserving ones, and compute in float32 at least: half-precision predictions
come back as float32, because ε is recovered from x_0 by a difference that half precision would lose.
"""

from typing import NamedTuple

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.schedules import Level, Schedule, expand
from torch import Tensor

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction", "score", "denoiser")
LOSS_TYPES = ("epsilon", "v_prediction", "sample", "flow_prediction")


def to_x0(output: Tensor, x: Tensor, level: Level, prediction_type: str) -> Tensor:
    """Return the clean sample that a prediction implies.

    Args:
        output: The network's prediction, (B, ...).
        x: The noisy sample, same shape.
        level: Level of x, scalar, (B,), per token, ...
        prediction_type: One of `PREDICTION_TYPES`.

    Raises:
        InputError: On an unknown type, or an `epsilon` or `score` prediction at α = 0.
    """
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type in ("epsilon", "score"):
        _refuse_zero(
            level.alpha,
            f"x_0 is undefined for {prediction_type} at zero signal; predict v or x_0",
        )
    a, s = expand(level.alpha, x), expand(level.sigma, x)
    output = output.to(a.dtype)
    match prediction_type:
        case "epsilon":
            return (x - s * output) / a
        case "v_prediction":
            return (a * x - s * output) / (a**2 + s**2)
        case "flow_prediction":
            return (x - s * output) / (a + s)
        case "score":
            return (x + s**2 * output) / a
    return output


def to_epsilon(output: Tensor, x: Tensor, level: Level, prediction_type: str) -> Tensor:
    """Return the noise that a prediction implies; arguments as in `to_x0`.

    Raises:
        InputError: On an unknown type, or an x_0 prediction at σ = 0, where x holds no noise.
    """
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    if prediction_type in ("sample", "denoiser"):
        _refuse_zero(level.sigma, f"noise is undefined for a {prediction_type} prediction of a clean sample")
    a, s = expand(level.alpha, x), expand(level.sigma, x)
    output = output.to(a.dtype)
    match prediction_type:
        case "epsilon":
            return output
        case "v_prediction":
            return (s * x + a * output) / (a**2 + s**2)
        case "flow_prediction":
            return (x + a * output) / (a + s)
        case "score":
            return -s * output
    return (x - a * output) / s


def from_x0_epsilon(x0: Tensor, epsilon: Tensor, level: Level, prediction_type: str) -> Tensor:
    """Return the quantity of a prediction type from clean sample and noise, which is the training target.

    Raises:
        InputError: On an unknown type, or the score of a clean sample (σ = 0).
    """
    check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    a, s = expand(level.alpha, x0), expand(level.sigma, x0)
    match prediction_type:
        case "epsilon":
            return epsilon
        case "v_prediction":
            return a * epsilon - s * x0
        case "flow_prediction":
            return epsilon - x0
        case "score":
            _refuse_zero(level.sigma, "the score of a clean sample is undefined")
            return -epsilon / s
    return x0


def convert(output: Tensor, x: Tensor, level: Level, source: str, target: str) -> Tensor:
    """Return a prediction of type `source` as the prediction of type `target` that says the same.

    Raises:
        InputError: Where `to_x0`, `to_epsilon` or `from_x0_epsilon` do.
    """
    check_choice("target prediction_type", target, PREDICTION_TYPES)
    if source == target or {source, target} == {"sample", "denoiser"}:
        return output
    if target in ("sample", "denoiser"):
        return to_x0(output, x, level, source)
    epsilon = to_epsilon(output, x, level, source)
    if target in ("epsilon", "score"):
        return from_x0_epsilon(x, epsilon, level, target)
    return from_x0_epsilon(to_x0(output, x, level, source), epsilon, level, target)


def _refuse_zero(coefficient: Tensor, message: str) -> None:
    # On an accelerator the check would stall the queue, and a compiled step cannot branch on data.
    if (
        not torch.compiler.is_compiling()
        and coefficient.device.type == "cpu"
        and bool((coefficient == 0).any())
    ):
        raise InputError(message)


def ve_view(x: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Return `(x/α, σ/α)`: sample and noise level in the variance-exploding view of EDM and k-diffusion."""
    return x / expand(level.alpha, x), level.sigma_ve


def level_from_sigma_ve(sigma: Tensor | float) -> Level:
    """Return the variance-preserving level whose variance-exploding noise is σ: `(1, σ) / √(1 + σ²)`."""
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    scale = 1 / (1 + sigma**2).sqrt()
    return Level(scale, sigma * scale)


class Preconditioning(NamedTuple):
    """EDM coefficients: `D(x, σ) = c_skip x + c_out F(c_in x, c_noise)`, and the weight of its x_0 loss."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor
    weight: Tensor


def edm_preconditioning(sigma: Tensor, sigma_data: float = 0.5) -> Preconditioning:
    """Return the coefficients of Karras et al. 2022, table 1, in the shape of `sigma`."""
    total = sigma**2 + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / total.sqrt(),
        c_in=1 / total.sqrt(),
        c_noise=sigma.log() / 4,
        weight=total / (sigma * sigma_data) ** 2,
    )


def change_path(x: Tensor, level: Level, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Carry a noisy sample to another schedule at equal signal-to-noise ratio, which keeps its x_0.

    Args:
        x: Sample at `level`.
        level: Its level under its own schedule.
        schedule: The schedule to go to.

    Returns:
        `x α'/α` and the time t' of the new schedule with the same ratio, in the shape of the level.

    Raises:
        InputError: When the new schedule does not reach the ratio.
    """
    t = schedule.t_of_log_snr(level.log_snr)
    new = schedule.level(t)
    if not torch.allclose(new.log_snr, level.log_snr, rtol=1e-6, atol=1e-6):
        raise InputError(f"the {schedule.kind} schedule does not reach the sample's signal-to-noise ratio")
    return (x * expand(new.alpha / level.alpha, x)).to(x.dtype), t


def loss_ratio(snr: Tensor, loss_type: str) -> Tensor:
    """Return by how much a squared error of x_0 grows when it is written as an error of another prediction.

    `‖ε_err‖² = SNR ‖x0_err‖²`, `‖v_err‖² = (SNR + 1) ‖x0_err‖²` (variance preserving),
    `‖u_err‖² = (√SNR + 1)² ‖x0_err‖²`.
    """
    check_choice("loss type", loss_type, LOSS_TYPES)
    match loss_type:
        case "epsilon":
            return snr
        case "v_prediction":
            return snr + 1
        case "flow_prediction":
            return (snr.sqrt() + 1) ** 2
    return torch.ones_like(snr)


def convert_weight(weight: Tensor, snr: Tensor, source: str, target: str) -> Tensor:
    """Return the weight on the `target` loss that equals `weight` on the `source` loss."""
    return weight * loss_ratio(snr, source) / loss_ratio(snr, target)


def min_snr_weight(snr: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """Return the min-SNR-γ weight (Hang et al. 2023): `min(SNR, γ)` on x_0, over `loss_ratio` for others."""
    check_number("gamma", gamma, low=0, low_open=True)
    return convert_weight(snr.clamp(max=gamma), snr, "sample", prediction_type)


def p2_weight(snr: Tensor, prediction_type: str, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Return the P2 weight (Choi et al. 2022): `1/(k + SNR)^γ` on ε."""
    return convert_weight((k + snr) ** -gamma, snr, "epsilon", prediction_type)


def sigmoid_weight(snr: Tensor, prediction_type: str, bias: float = 0.0) -> Tensor:
    """Return the sigmoid weight (Kingma and Gao 2023): `sigmoid(bias − log SNR)` on ε."""
    return convert_weight(torch.sigmoid(bias - snr.log()), snr, "epsilon", prediction_type)


def edm_weight(snr: Tensor, prediction_type: str, sigma_data: float = 0.5) -> Tensor:
    """Return the EDM weight: `(σ² + σ_d²)/(σ σ_d)²` on x_0, where `σ² = 1/SNR`."""
    return convert_weight(snr + 1 / sigma_data**2, snr, "sample", prediction_type)


def guide(unconditional: Tensor, conditional: Tensor, guidance_scale: Tensor | float) -> Tensor:
    """Return classifier-free guidance `u + w (c − u)`: w = 1 is the conditional prediction itself.

    Args:
        unconditional: u, (B, ...).
        conditional: c, same shape.
        guidance_scale: w, a number or one per sample (B,).
    """
    return unconditional + expand(guidance_scale, unconditional) * (conditional - unconditional)


def guide_eta(unconditional: Tensor, conditional: Tensor, eta: Tensor | float) -> Tensor:
    """Return guidance in its first form `c + η (c − u)` (Ho and Salimans 2022): `guide` with w = 1 + η."""
    return conditional + expand(eta, conditional) * (conditional - unconditional)


def rescale_guidance(guided: Tensor, conditional: Tensor, phi: float = 0.7) -> Tensor:
    """Return a guided prediction with the conditional's per-sample spread (Lin et al. 2024, eq. 15-16).

    Args:
        guided: Prediction after guidance, (B, ...).
        conditional: Conditional prediction, same shape.
        phi: Share of the rescaled prediction, 0 (off) to 1.
    """
    check_number("phi", phi, low=0, high=1)
    axes = tuple(range(1, guided.ndim))
    ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (phi * ratio + (1 - phi))
