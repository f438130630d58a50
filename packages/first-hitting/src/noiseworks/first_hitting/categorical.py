"""Categorical sampling in the right precision, and what the wrong one does (section 2.8 of the package page).

Gumbel-max on uniforms of b bits draws from a *truncated* Gumbel: no draw exceeds M = -log(-log(1 - 2^-b)), so
rare classes win too rarely. `truncated_probs` gives the resulting distribution in closed form.
"""

import math
from typing import get_args

import torch
import torch.nn.functional as F
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.kernels.gumbel import gumbel_argmax_conf
from noiseworks.core.noise import exponential_from_two_words, words
from noiseworks.first_hitting.options import Method
from torch import Tensor

METHODS = get_args(Method)
CORRECT = ("cdf64", "exponential", "gumbel64", "kernel")
_BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
_MDLM_EPS = 1e-10
_SHORT = 2048  # classes up to which one cumulative sum is quicker than two of their square root


def categorical(
    logits: Tensor,
    method: str = "cdf64",
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    keys: Tensor | None = None,
    counter0: int = 0,
    bound: float | None = None,
) -> Tensor:
    """Draw one class a row from softmax(logits / temperature).

    `cdf64` inverts the float64 cumulative sum with one uniform a row: the cheapest. `exponential` is the race
    argmin E / p with exponentials of 64 random bits. `gumbel64` is Gumbel-max in float64. `kernel` is the race
    in one pass over the logits, a Triton kernel on a GPU: 32 random bits a class, but fine ones where the race
    is decided. Its Gumbels reach M = 22.87 instead of 16.64; over 50,257 Zipf words its total variation from
    the true distribution is 4e-6 instead of 2e-3 (`truncated_probs`). `gumbel32` (as in MDLM's code) and
    `gumbel16` are faulty on purpose, to measure what they do; so is `gumbel_trunc`, whose Gumbels end at any M: it
    draws from `truncated_probs` of that M.

    Args:
        logits: [R, V], any floating type; -inf forbids a class. Half precision is cast up first.
        method: One of `METHODS`.
        temperature: At least 0; 0 takes the likeliest class.
        generator: Source of randomness.
        keys: One key a row in place of a generator, int64 [R]: a row's draw then does not depend on the batch.
            Only for the correct methods.
        counter0: First counter of the keys.
        bound: M of `gumbel_trunc`, by default that of float32 uniforms.

    Returns:
        int64 [R].

    Raises:
        InputError: On NaN, +inf or a row without an allowed class, or a bad number.
    """
    check_choice("method", method, METHODS)
    check_number("temperature", temperature, low=0)
    check_logits(logits)
    if temperature == 0:
        return logits.argmax(dim=-1)
    if keys is not None and method not in CORRECT:
        raise InputError(f"method {method!r} draws from a generator; keys are for {', '.join(CORRECT)}")
    # float32 arithmetic keeps what float32 logits hold; only their exponentials need more.
    rows = logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
    rows = rows if temperature == 1 else rows / temperature
    if method == "cdf64":
        return _invert(rows.softmax(dim=-1), _uniforms(rows, generator, keys, counter0))
    if method == "kernel":
        return _fused_race(rows, generator, keys, counter0)
    if method in ("exponential", "gumbel64"):
        return _race(rows, method, generator, keys, counter0)
    if method == "gumbel_trunc":
        return _truncated_race(rows, gumbel_bound(torch.float32) if bound is None else bound, generator)
    dtype = torch.float32 if method == "gumbel32" else torch.bfloat16
    uniform = torch.rand(rows.shape, generator=generator, device=_device(generator, rows), dtype=dtype)
    norm = _MDLM_EPS - (uniform.to(rows.device) + _MDLM_EPS).log()
    return (torch.softmax(rows, dim=-1, dtype=torch.float32).to(dtype) / norm).argmax(dim=-1)


def check_logits(logits: Tensor) -> None:
    """Refuse logits that no class can be drawn from.

    Raises:
        InputError: On another number of dimensions, NaN, +inf or a row of -inf.
    """
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise InputError(f"need logits [R, V], got shape {tuple(logits.shape)}")
    best = logits.amax(dim=-1)
    if math.isfinite(float(best.sum())):  # NaN and infinity spread; one copy from the device
        return
    finite = best.isfinite()
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise InputError(
            f"row {row} of the logits holds NaN, +inf or no allowed class; mend the model's output"
        )


def _device(generator: torch.Generator | None, rows: Tensor) -> torch.device:
    return rows.device if generator is None else generator.device


def unit_uniform(keys: Tensor, counter0: int = 0) -> Tensor:
    """Return one uniform in [0, 1) a key, of 53 bits, float64 with the shape of `keys`."""
    high, low = words(keys.reshape(-1), 2, counter0).unbind(dim=-1)
    return (((high << 21) | (low >> 11)).double() * 2.0**-53).reshape(keys.shape)


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the class at which the cumulative sum of softmax(logits) passes `uniform`, int64 [R].

    Args:
        logits: [R, V], float32 or float64; -inf forbids a class.
        uniform: In [0, 1), float64 [R, 1].

    Raises:
        InputError: On NaN, +inf or a row without an allowed class.
    """
    check_logits(logits)
    return _invert(logits.softmax(dim=-1), uniform)


def _uniforms(rows: Tensor, generator: torch.Generator | None, keys: Tensor | None, counter0: int) -> Tensor:
    if keys is not None:
        return unit_uniform(keys, counter0)[:, None]
    drawn = torch.rand(
        (len(rows), 1), generator=generator, device=_device(generator, rows), dtype=torch.float64
    )
    return drawn.to(rows.device)


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the class at which the cumulative sum of each row passes a share of its total, int64 [R].

    Of many classes, blocks are summed first, and then the classes of one block, so that there is no float64 table
    of all classes. Weights are exact to their type and sums to float64, where small classes would be lost.

    Args:
        weights: At least 0 with a positive sum a row, [R, V].
        uniform: The share, in [0, 1), float64 [R, 1].
    """
    if weights.shape[1] <= _SHORT:
        sums = weights.cumsum(dim=-1, dtype=torch.float64)
        target = torch.minimum(uniform * sums[:, -1:], _below(sums[:, -1:]))
        return torch.searchsorted(sums, target, right=True).squeeze(-1)
    block = max(1, math.isqrt(weights.shape[1]))
    blocks = F.pad(weights, (0, -weights.shape[1] % block)).unflatten(1, (-1, block))
    sums = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    # The last sum, not 1, is the mass that there is. Below it, the first sum above is one of a positive weight.
    target = torch.minimum(uniform * sums[:, -1:], _below(sums[:, -1:]))
    found = torch.searchsorted(sums, target, right=True)
    before = F.pad(sums, (1, 0)).gather(1, found)
    index = found.unsqueeze(-1).expand(-1, 1, block)
    inside = blocks.gather(1, index).squeeze(1).cumsum(dim=-1, dtype=torch.float64)
    place = torch.searchsorted(inside, torch.minimum(target - before, _below(inside[:, -1:])), right=True)
    return (found * block + place).squeeze(-1)


def _below(value: Tensor) -> Tensor:
    return torch.nextafter(value, torch.zeros_like(value))


def _race(
    rows: Tensor, method: str, generator: torch.Generator | None, keys: Tensor | None, counter0: int
) -> Tensor:
    if keys is not None:
        race = exponential_from_two_words(words(keys, 2 * rows.shape[1], counter0))
    elif method == "exponential":
        # 64 random bits: U is fine where the winner is decided, at small E.
        device = _device(generator, rows)
        bits = torch.randint(2**63 - 1, rows.shape, generator=generator, device=device).to(rows.device)
        race = -torch.log1p(-(bits.double() + 0.5) * 2.0**-63)
    else:
        device = _device(generator, rows)
        uniform = torch.rand(rows.shape, generator=generator, device=device, dtype=torch.float64)
        race = -uniform.to(rows.device).clamp_(min=2.0**-1074).log_()
    return (rows.double() - race.log()).argmax(dim=-1)


def _truncated_race(rows: Tensor, bound: float, generator: torch.Generator | None) -> Tensor:
    # -log(-log U) <= M where U <= exp(-exp(-M)).
    device, top = _device(generator, rows), math.exp(-math.exp(-bound))
    uniform = top * torch.rand(rows.shape, generator=generator, device=device, dtype=torch.float64).to(
        rows.device
    )
    race = -uniform.clamp_(min=2.0**-1074).log_()
    return (rows.double() - race.log()).argmax(dim=-1)


def _fused_race(
    rows: Tensor, generator: torch.Generator | None, keys: Tensor | None, counter0: int
) -> Tensor:
    if keys is None:
        device = _device(generator, rows)
        keys = torch.randint(2**63 - 1, (len(rows),), generator=generator, device=device).to(rows.device)
    return gumbel_argmax_conf(rows, keys, counter0=counter0, check=False).ids


def gumbel_bound(dtype: torch.dtype) -> float:
    """Return M, the largest Gumbel that uniforms of a type give: 16.6355 in float32, 36.7368 in float64.

    Raises:
        InputError: When it is no floating type.
    """
    if dtype not in _BITS:
        raise InputError(f"need one of {', '.join(map(str, _BITS))}, got {dtype}")
    return -math.log(-math.log1p(-(2.0 ** -_BITS[dtype])))


def truncated_probs(probs: Tensor, bound: float) -> Tensor:
    """Return the distribution that Gumbel-max draws from when Gumbels are cut off at `bound` = M.

    With classes sorted ascending, S_i = Σ_{j≥i} π_j and e = exp(-M),
    β_i = [exp((K-i+1 - S_i/π_i) e) - exp((K-i+1 - S_i/π_{i-1}) e)] / S_i (second term 0 for i = 1), and
    π'_n = π_n Σ_{i≤n} β_i. Larger classes gain: the effective temperature falls.

    Args:
        probs: Probabilities [K], sum 1.
        bound: M, any real number.

    Returns:
        float64 [K].

    Raises:
        InputError: When `probs` is no distribution.
    """
    p = torch.as_tensor(probs, dtype=torch.float64)
    if p.ndim != 1 or not bool((p >= 0).all()) or abs(float(p.sum()) - 1) > 1e-6:
        raise InputError("probs must be one distribution: numbers of at least 0 that sum to 1")
    inside = p > 0
    values, order = (p[inside] / p.sum()).sort()
    count, small = len(values), math.exp(-bound)
    tail = values.flip(0).cumsum(0).flip(0)
    left = count - torch.arange(count, dtype=torch.float64)
    first = torch.exp((left - tail / values) * small)
    second = torch.zeros_like(first)
    second[1:] = torch.exp((left[1:] - tail[1:] / values[:-1]) * small)
    result = torch.zeros_like(values).scatter_(0, order, values * ((first - second) / tail).cumsum(0))
    return torch.zeros_like(p).masked_scatter_(inside, result)


def effective_temperature(probs: Tensor, bound: float) -> float:
    """Return T* that minimises KL(π' || softmax(log π / T)), with π' = `truncated_probs(probs, bound)`.

    The minimum is where both have the same mean of log π, which falls with T: found by bisection.

    Args:
        probs: Probabilities [K], all positive, not all equal.
        bound: M.
    """
    log_p = torch.as_tensor(probs, dtype=torch.float64).log()
    wanted = float((truncated_probs(probs, bound) * log_p).sum())
    low, high = 1e-3, 1e3
    for _ in range(100):
        middle = math.sqrt(low * high)
        mean = float((torch.softmax(log_p / middle, dim=-1) * log_p).sum())
        low, high = (middle, high) if mean > wanted else (low, middle)
    return math.sqrt(low * high)


def entropy(probs: Tensor) -> float:
    """Return the entropy of a distribution [K] in nats."""
    return float(torch.special.entr(torch.as_tensor(probs, dtype=torch.float64)).sum())
