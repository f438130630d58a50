"""`ema_update` and `pgd_project`: updates over many tensors or pixels in few launches, without Triton."""

from collections.abc import Mapping, Sequence

import torch
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.benchmark import Benchmark
from noiseworks.core.kernels.dispatch import fused
from torch import Tensor

NORMS = ("linf", "l2")


@torch.no_grad()
def ema_update(ema: Sequence[Tensor], parameters: Sequence[Tensor], decay: float) -> None:
    """Update averages in place: ema = decay ema + (1 - decay) parameter, in few launches for all tensors.

    Args:
        ema: The averages; float32 also for lower-precision parameters, since 1 - decay may be below their
            epsilon.
        parameters: The tensors they follow, same shapes and devices.
        decay: In [0, 1].

    Raises:
        InputError: When the decay is out of range or the lists do not fit.
    """
    check_number("decay", decay, low=0, high=1)
    if [e.shape for e in ema] != [p.shape for p in parameters]:
        raise InputError("ema and parameters must be lists of tensors of the same shapes")
    if ema:
        targets = [p.to(e.dtype) for e, p in zip(ema, parameters, strict=True)]
        torch._foreach_lerp_(list(ema), targets, 1 - decay)


def pgd_project(
    x_adv: Tensor,
    gradient: Tensor,
    x0: Tensor,
    step: float,
    eps: float,
    *,
    norm: str = "linf",
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Return one step of projected gradient ascent (Madry et al. 2018): step, project to the ball, clamp.

    For "linf": x = clip(x_adv + step sign(g), x0 - eps, x0 + eps). For "l2": the step is along g / ||g||,
    and the difference to x0 is scaled back to length eps per sample. A descent has a negative step.

    Args:
        x_adv: Current images [B, ...].
        gradient: Gradient at `x_adv`, [B, ...].
        x0: Clean images, the centre of the ball, [B, ...].
        step: Length of the step.
        eps: Radius of the ball, at least 0.
        norm: "linf" or "l2".
        low: Smallest pixel value.
        high: Largest pixel value.

    Returns:
        [B, ...] in the dtype of `x_adv`.

    Raises:
        InputError: When a number is out of range, shapes differ or the norm is unknown.
    """
    check_choice("norm", norm, NORMS)
    check_number("step", step)
    check_number("eps", eps, low=0)
    check_number("high", high, low=low)
    if gradient.shape != x_adv.shape or x0.shape != x_adv.shape:
        raise InputError(f"x_adv, gradient and x0 must have one shape, {tuple(x_adv.shape)}")
    return fused(eager_pgd, x_adv)(x_adv, gradient, x0, step, eps, norm, low, high)


def eager_pgd(
    x_adv: Tensor, gradient: Tensor, x0: Tensor, step: float, eps: float, norm: str, low: float, high: float
) -> Tensor:
    """The definition; arguments as `pgd_project`."""
    if norm == "linf":
        moved = x_adv + step * gradient.sign()
        return torch.minimum(torch.maximum(moved, x0 - eps), x0 + eps).clamp(low, high)
    # The smallest normal float32 keeps a zero gradient or difference from dividing by zero.
    tiny = torch.finfo(torch.float32).tiny
    dims = tuple(range(1, x_adv.ndim))
    length = gradient.float().square().sum(dim=dims, keepdim=True).sqrt().clamp(min=tiny)
    difference = (x_adv + step * gradient / length - x0).float()
    radius = difference.square().sum(dim=dims, keepdim=True).sqrt().clamp(min=tiny)
    return (x0 + difference * (eps / radius).clamp(max=1)).clamp(low, high).to(x_adv.dtype)


def _ema_inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    size = (shape["tensors"], shape["elements"])
    ema, parameters = torch.zeros(size, device=device), torch.ones(size, device=device, dtype=dtype)
    return list(ema.unbind()), list(parameters.unbind()), 0.999


@torch.no_grad()
def _naive_ema(ema: list[Tensor], parameters: list[Tensor], decay: float) -> None:
    """The usual code: a loop over tensors with two operations each."""
    for average, parameter in zip(ema, parameters, strict=True):
        average.mul_(decay).add_(parameter, alpha=1 - decay)


def _pgd_inputs(shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> tuple:
    generator = torch.Generator(device).manual_seed(0)
    size = (shape["samples"], shape["elements"])
    x, x0 = (torch.rand(size, generator=generator, device=device).to(dtype) for _ in range(2))
    gradient = torch.randn(size, generator=generator, device=device).to(dtype)
    return x, gradient, x0, 2 / 255, 8 / 255, "linf", 0.0, 1.0


def _naive_pgd(x_adv, gradient, x0, step, eps, norm, low, high) -> Tensor:
    """The usual code: step, clamp the difference, add it back, clamp."""
    moved = x_adv + step * torch.sign(gradient)
    difference = torch.clamp(moved - x0, min=-eps, max=eps)
    return torch.clamp(x0 + difference, min=low, max=high)


BENCHMARK_EMA = Benchmark(
    op="ema_update",
    summary="exponential moving average of many tensors (foreach, no Triton)",
    shape={"tensors": 64, "elements": 65536},
    inputs=_ema_inputs,
    eager=ema_update,
    kernel=None,
    naive=_naive_ema,
    bytes_moved=lambda shape, itemsize, backward: shape["tensors"] * shape["elements"] * (8 + itemsize),
    flops=lambda shape, backward: 3 * shape["tensors"] * shape["elements"],
    in_place=True,
)
BENCHMARK = Benchmark(
    op="pgd_project",
    summary="projected gradient step of an attack or a protection (compiled, no Triton)",
    shape={"samples": 4, "elements": 196608},
    inputs=_pgd_inputs,
    eager=eager_pgd,
    kernel=None,
    naive=_naive_pgd,
    bytes_moved=lambda shape, itemsize, backward: 4 * shape["samples"] * shape["elements"] * itemsize,
    flops=lambda shape, backward: 8 * shape["samples"] * shape["elements"],
)
