"""A baseline in the manner of TeaCache: the whole stack is reused while the network's input has changed little.

TeaCache (Liu et al. 2024) adds up the relative change of the input, modulated by the time embedding, from call
to call, and computes anew once the sum passes a threshold. Its polynomial, which is fitted to a video model,
is left out.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from noiseworks.bac.attaching import CachedPolicy
from noiseworks.bac.cache import BlockCache, Step
from noiseworks.bac.decoder import has_decoder_layout
from noiseworks.bac.hosts import Stack, find_stack
from noiseworks.bac.plan import CachePlan
from noiseworks.bac.profiling import record_calls
from noiseworks.core.checks import check_number
from noiseworks.core.errors import UnsupportedHostError
from noiseworks.kits.policies.protocols import Generators, Obs
from noiseworks.kits.policies.replanning import DiffusionPolicy
from torch import Tensor, nn


class ThresholdCache(BlockCache):
    """Decides at each call whether the whole stack is computed or reused.

    Args:
        stack: What it is applied to; its network embeds input and time as the policies' transformer does.
        threshold: Sum of relative changes from which on the stack is computed anew.
        num_steps: K; the first and the last step are always computed.
    """

    def __init__(self, stack: Stack, threshold: float, num_steps: int) -> None:
        self.threshold, self.num_steps, self.network = threshold, num_steps, stack.network
        self.computed: list[int] = []
        # Three steps cover every case: computed, reused with a sum to build, reused with the same sum.
        table = np.zeros((len(stack.blocks), 3), bool)
        table[:, 0] = True
        super().__init__(CachePlan(table, stack.blocks, "teacache"), stack)

    def restart(self) -> None:
        """Forget the stored outputs: the next call is step 0."""
        super().restart()
        self._sum, self._last, self._reused = 0.0, None, 0

    def choose(self, timestep: Tensor | float, sample: Tensor) -> Step:
        """Return whether this call computes or reuses everything."""
        signal = modulated_input(self.network, timestep, sample)
        if self._last is not None:
            self._sum += relative_change(signal, self._last)
        compute = self._last is None or self._sum >= self.threshold or self.position == self.num_steps - 1
        self._last = signal
        if compute:
            self._sum, self._reused = 0.0, 0
            self.computed.append(self.position)
            return self.program[0]
        self._reused += 1
        return self.program[min(self._reused, 2)]


def attach_teacache(policy: Any, threshold: float, num_steps: int) -> CachedPolicy:
    """Let a policy's network reuse all blocks while its input has changed little.

    Args:
        policy: A policy on the diffusion policies' transformer; see `find_stack`.
        threshold: Sum of relative changes from which on the stack is computed anew; see `teacache_threshold`.
        num_steps: K, network calls of a replan.

    Returns:
        A handle that is also a context manager.

    Raises:
        InputError: When a number is out of range.
        UnsupportedHostError: When the network does not embed input and time as that transformer does.
    """
    check_number("threshold", threshold, low=0)
    check_number("num_steps", num_steps, low=1, integer=True)
    stack = _embedding_stack(policy)
    return CachedPolicy(policy, stack, ThresholdCache(stack, threshold, num_steps))


def teacache_threshold(
    policy: Any,
    observations: Obs,
    updates: int,
    *,
    num_steps: int | None = None,
    generator: Generators = None,
) -> float:
    """Return the threshold with which the stack would be computed `updates` times along ordinary runs.

    Args:
        policy: A host on the diffusion policies' transformer.
        observations: Its observations, tensors [n, To, ...], as one batch.
        updates: M, first and last step among them.
        num_steps: K; by default all steps of the training.
        generator: Noise of the runs.

    Raises:
        InputError: When `updates` is out of range.
    """
    stack = _embedding_stack(policy)
    if stack.host is None:
        raise UnsupportedHostError(
            "the threshold is measured on a policy with its observations, not a network"
        )
    host, rows = stack.host, len(next(iter(observations.values())))
    sampler = DiffusionPolicy(host, num_inference_steps=num_steps)
    calls = record_calls(stack, lambda: sampler.plan(host.encode(observations), None, generator, rows))
    check_number("updates", updates, low=2, high=len(calls), integer=True)
    with torch.inference_mode():
        signals = [modulated_input(stack.network, args[1], args[0]) for args, _ in calls]
    changes = [relative_change(new, old) for old, new in pairwise(signals)]
    low, high = 0.0, sum(changes) + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if count_updates(changes, middle) > updates else (low, middle)
    return high


def count_updates(changes: list[float], threshold: float) -> int:
    """Return how often the stack is computed when the input changes so from call to call."""
    count, total = 1, 0.0
    for index, change in enumerate(changes, start=1):
        total += change
        if total >= threshold or index == len(changes):
            count, total = count + 1, 0.0
    return count


def modulated_input(network: nn.Module, timestep: Tensor | float, sample: Tensor) -> Tensor:
    """Return the embedded noisy actions with the embedded time added, [B, T, D]."""
    first = torch.as_tensor(timestep, device=sample.device).reshape(-1)[:1]
    return network.input_emb(sample) + network.time_emb(first)[:, None].to(sample.dtype)


def relative_change(new: Tensor, old: Tensor) -> float:
    """Return the mean absolute change over the mean absolute value."""
    return float((new - old).abs().mean() / old.abs().mean())


def _embedding_stack(policy: Any) -> Stack:
    stack = find_stack(policy)
    if not has_decoder_layout(stack.network, stack):
        raise UnsupportedHostError(
            f"{type(stack.network).__name__} is not the diffusion policies' transformer, which this baseline needs"
        )
    return stack
