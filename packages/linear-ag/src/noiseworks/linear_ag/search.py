"""Searching for guidance policies: the paper's differentiable search (section 3) and two cheaper ones.

At each step a policy chooses among F = {e_u, e_c, e_cfg(s_1), ..., e_cfg(s_n)}. The differentiable search
relaxes the choice to a mixture, unrolls the sampler and moves the scores alpha by gradient. Tensors and
callables only.
"""

from collections.abc import Callable, Sequence

import torch
from noiseworks.core.checks import check_finite, check_number
from noiseworks.linear_ag.options import SearchSettings
from noiseworks.linear_ag.policies import FixedPolicy
from torch import Tensor


def relaxed_weights(alpha: Tensor, temperature: float, gumbel: Tensor | None = None) -> Tensor:
    """Return w = softmax(alpha / tau), or with Gumbel noise softmax((alpha + g) / tau); `[T, F]`.

    Args:
        alpha: Scores, `[T, F]`.
        temperature: tau.
        gumbel: Standard Gumbel noise, `[T, F]`.
    """
    return torch.softmax((alpha if gumbel is None else alpha + gumbel) / temperature, dim=-1)


def guidance_position(weights: Tensor, scales: Sequence[float]) -> Tensor:
    """Return a = w_c + sum_j w_j s_j, where the relaxed prediction stands: e_u + a (e_c - e_u); a scalar.

    All options are e_u + a (e_c - e_u) with a = 0, 1, s_j, so their mixture needs the mean a only.

    Args:
        weights: `[2 + n]` for e_u, e_c and each scale.
        scales: s_1..s_n.
    """
    return weights @ torch.tensor([0.0, 1.0, *scales], dtype=weights.dtype, device=weights.device)


def mixture(uncond: Tensor, cond: Tensor, weights: Tensor, scales: Sequence[float]) -> Tensor:
    """Return the relaxed prediction sum_j w_j F_j of one step.

    Args:
        uncond: e_u, any shape.
        cond: e_c, of the same shape.
        weights: `[2 + n]` for e_u, e_c and each scale.
        scales: s_1..s_n.
    """
    return uncond + guidance_position(weights, scales).to(uncond.dtype) * (cond - uncond)


def mixture_of_three(
    cond: Tensor, image: Tensor, uncond: Tensor, weights: Tensor, scale: float, image_scale: float
) -> Tensor:
    """Return the relaxed prediction of one InstructPix2Pix step.

    The options are the edits of that host that cost 1, 1, 2 and 3 evaluations: e_3; e_1; e_3 + s_I (e_1 - e_3),
    which is its guidance with e_2 := e_1; and full guidance e_3 + s_I (e_2 - e_3) + s (e_1 - e_2).

    Args:
        cond: e_1, with text and image.
        image: e_2, with the image only.
        uncond: e_3, with neither.
        weights: `[4]`, in the order above.
        scale: s, on the text.
        image_scale: s_I, on the image.
    """
    w = weights.to(cond.dtype)
    pair = uncond + image_scale * (cond - uncond)
    guided = uncond + image_scale * (image - uncond) + scale * (cond - image)
    return w[0] * uncond + w[1] * cond + w[2] * pair + w[3] * guided


def option_costs(scales: Sequence[float], num_roles: int = 2) -> tuple[float, ...]:
    """Return the evaluations of each option: 1, 1, then 2 a scale, or 1, 1, 2, 3 with three predictions."""
    return (1.0, 1.0, *[2.0] * len(scales)) if num_roles == 2 else (1.0, 1.0, 2.0, 3.0)


def expected_nfe(weights: Tensor, costs: Sequence[float]) -> Tensor:
    """Return E[NFE] = sum_k sum_j w_kj cost_j; a scalar.

    Args:
        weights: `[T, F]`.
        costs: Of each option, `[F]`, from `option_costs`.
    """
    return (weights @ weights.new_tensor(costs)).sum()


def search_loss(
    latents: Tensor, target: Tensor, weights: Tensor, settings: SearchSettings, costs: Sequence[float]
) -> Tensor:
    """Return MSE + lambda_c ReLU(E[NFE] - budget) + lambda_e entropy(w), a scalar.

    Args:
        latents: Final latents (or images) of the relaxed policy, `[B, ...]`.
        target: Those of full guidance from the same noise.
        weights: `[T, F]`.
        settings: Knobs.
        costs: Evaluations of each option.
    """
    over = torch.relu(expected_nfe(weights, costs) - settings.budget)
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=-1).mean()
    error = (latents.float() - target.float()).square().mean()
    return error + settings.cost_weight * over + settings.entropy_weight * entropy


def relaxed_search(
    sampler: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    num_steps: int,
    settings: SearchSettings,
    progress: Callable[[int, int], None] | None = None,
    *,
    num_roles: int = 2,
    has_uncond: bool = True,
) -> Tensor:
    """Return the scores alpha `[T, F]` that the differentiable search finds.

    Args:
        sampler: `sampler(weights, update) -> (latents, target)`: final latents of the relaxed policy, with
            a graph to the weights, and those of full guidance.
        num_steps: T.
        settings: Knobs.
        progress: Called with (updates done, updates in all).
        num_roles: Predictions of a guided step: 2, or 3 for InstructPix2Pix.
        has_uncond: Whether the host can take e_u alone; otherwise its score stays at minus infinity.

    Raises:
        NonFiniteError: When the loss is not finite.
    """
    generator = torch.Generator().manual_seed(settings.start_seed)
    costs = option_costs(settings.scales, num_roles)
    alpha = 1e-3 * torch.randn(num_steps, len(costs), generator=generator)
    if not has_uncond:
        alpha[:, 0] = -torch.inf
    alpha.requires_grad_()
    optimizer = torch.optim.Adam([alpha], lr=settings.learning_rate)
    for update in range(settings.updates):
        gumbel = None
        if settings.gumbel:
            uniform = torch.rand(alpha.shape, generator=generator).clamp(1e-9, 1 - 1e-9)
            gumbel = -(-uniform.log()).log()
        weights = relaxed_weights(alpha, settings.temperature, gumbel)
        latents, target = sampler(weights, update)
        loss = search_loss(latents, target, weights, settings, costs)
        check_finite("search loss", loss, update)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(update + 1, settings.updates)
    return alpha.detach()


def discretise(
    alpha: Tensor, scales: Sequence[float], guidance_scale: float, num_roles: int = 2
) -> FixedPolicy:
    """Return the policy of the best option of each step.

    Args:
        alpha: Scores, `[T, F]`.
        scales: s_1..s_n.
        guidance_scale: The host's s; other scales become strengths (s_j - 1) / (s - 1).
        num_roles: Predictions of a guided step.
    """
    best = alpha.argmax(dim=-1).tolist()
    if num_roles == 3:
        return FixedPolicy(actions="".join("0152"[j] for j in best))
    strengths = [1.0 if j < 2 else (scales[j - 2] - 1.0) / (guidance_scale - 1.0) for j in best]
    plain = all(value == 1.0 for value in strengths)
    return FixedPolicy(
        actions="".join(str(min(j, 2)) for j in best), strengths=() if plain else tuple(strengths)
    )


def truncation_policies(num_steps: int) -> list[str]:
    """Return the T + 1 policies that guide the first p steps only, p = 0..T."""
    return ["2" * p + "1" * (num_steps - p) for p in range(num_steps + 1)]


def local_search(evaluate: Callable[[str], float], start: str, max_evaluations: int) -> tuple[str, float]:
    """Improve a policy at the same cost by moving one guided step at a time; returns (policy, loss).

    Every exchange of a guided step with one of another kind is tried, nearest steps first; the first
    improvement is taken; it ends when no exchange helps or after `max_evaluations`. Where the start reuses
    differences (4), steps after the first guided one do, and those before it are conditional.

    Args:
        evaluate: Loss of a policy given as digits.
        start: The policy to begin with.
        max_evaluations: Largest number of calls of `evaluate`.

    Raises:
        InputError: When `max_evaluations` is below 1.
    """
    check_number("max_evaluations", max_evaluations, low=1, integer=True)
    best, loss, used, reuse = start, evaluate(start), 1, "4" in start
    seen = {start}
    improved = True
    while improved and used < max_evaluations:
        improved = False
        for neighbour in _neighbours(best, reuse):
            if neighbour in seen:
                continue
            if used == max_evaluations:
                break
            seen.add(neighbour)
            found, used = evaluate(neighbour), used + 1
            if found < loss:
                best, loss, improved = neighbour, found, True
                break
    return best, loss


def _neighbours(policy: str, reuse: bool) -> list[str]:
    guided = [k for k, digit in enumerate(policy) if digit == "2"]
    others = [k for k, digit in enumerate(policy) if digit != "2"]
    found = []
    for i, j in sorted(((i, j) for i in guided for j in others), key=lambda pair: abs(pair[0] - pair[1])):
        digits = list(policy)
        digits[i], digits[j] = digits[j], digits[i]
        head, guide, tail = "".join(digits).partition("2")
        found.append(head.replace("4", "1") + guide + (tail.replace("1", "4") if reuse else tail))
    return found
