"""Attaching a plan to a policy, in place, and taking it off again without a trace."""

import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from noiseworks.bac.cache import BlockCache, Observer
from noiseworks.bac.decoder import has_decoder_layout, make_decoder_forward
from noiseworks.bac.hosts import Stack, eager_parts, find_stack
from noiseworks.bac.plan import CachePlan
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits import attachments
from noiseworks.kits.attachments import Wrap, attached_to
from torch import Tensor, nn

_TIME_NAMES = ("timestep", "timesteps", "t", "noise", "time", "k")


class CachedPolicy:
    """A policy whose network reuses block outputs; made by `attach`.

    The policy itself is changed: everything that calls its network is faster, and `detach()`, or leaving a
    `with` block, gives the original back bit for bit, whatever else was attached before or since.

    Attributes:
        policy: What was given to `attach`.
        plan: The plan.
        cache: Stored outputs and the place in the plan.
    """

    def __init__(
        self, policy: Any, stack: Stack, cache: BlockCache, fused: bool = True, exact: bool = True
    ) -> None:
        self.policy, self.plan, self.cache = policy, cache.plan, cache
        network = stack.network
        if fused and has_decoder_layout(network, stack) and not attached_to(network):
            forward = make_decoder_forward(network, stack, cache, exact)
            # The network's own forward pass runs the steps that reuse nothing; an observer sees those too.
            watched = cache.observer is not None and exact
        else:
            forward, watched = _counted(network, cache), True
        parts = [*eager_parts(stack), Wrap(network, _clearing(forward, cache))]
        for index, layer in enumerate(stack.layers if watched else ()):
            parts.append(Wrap(layer, _layer_forward(layer, index, stack, cache)))
        if stack.host is not None:
            parts.append(Wrap(stack.host, _restarting(cache), "encode"))
        self._attachment = attachments.attach("bac", parts, rows="keeps")

    def restart(self) -> None:
        """Start a new replan: the next network call is step 0. Hosts do it when they encode an observation."""
        self.cache.restart()

    def detach(self) -> None:
        """Give the policy its own methods back and drop the stored outputs; a second call does nothing."""
        self._attachment.detach()
        self.cache.restart()

    def __enter__(self) -> "CachedPolicy":
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach."""
        self.detach()


def attach(
    policy: Any, plan: CachePlan, *, fused: bool = True, exact: bool = True, observer: Observer | None = None
) -> CachedPolicy:
    """Let a policy's network reuse block outputs as a plan says.

    Steps are counted from the last observation that the host encoded; a time argument that does not go on in the
    plan's direction starts a new replan as well. So the attached policy serves every sampler that calls the
    network `plan.calls_per_step` times a step, with at most the plan's number of steps.

    Args:
        policy: A `DenoiserHost`, a policy of a known library, or a network; see `find_stack`.
        plan: The plan; made for this network, or for any network with these blocks.
        fused: Whether the diffusion policies' transformer skips what a step does not need (condition, masks);
            other networks, and those with another method attached, only skip blocks.
        exact: With `fused`, whether steps whose outputs nobody reuses run the network's own forward pass, so
            that a plan that computes everything changes no bit.
        observer: Called as (step, block, output) for every computed block.

    Returns:
        A handle that is also a context manager.

    Raises:
        InputError: When the plan is another network's, a plan is attached already or the network trains.
        UnsupportedHostError: When the network cannot be cached, or a method is attached to it that drops rows.
    """
    stack = find_stack(policy)
    if plan.blocks != stack.blocks:
        raise InputError(
            f"the plan is for {len(plan.blocks)} blocks ({plan.blocks[0]} to {plan.blocks[-1]}), the network has "
            f"{len(stack.blocks)} ({stack.blocks[0]} to {stack.blocks[-1]}); profile this network"
        )
    if plan.fingerprint is not None and plan.fingerprint != (found := stack.fingerprint()):
        raise InputError(
            f"the plan was made for the weights {plan.fingerprint}, these are {found}; profile this policy"
        )
    return CachedPolicy(policy, stack, BlockCache(plan, stack, observer), fused, exact)


def _counted(network: nn.Module, cache: BlockCache) -> Callable:
    names = [*inspect.signature(network.forward).parameters]
    name = next((name for name in names if name in _TIME_NAMES), names[1] if len(names) > 1 else None)
    if name is None:
        raise UnsupportedHostError(f"{type(network).__name__}.forward takes no time argument")

    def forward(beneath: Callable, *args: Any, **kwargs: Any) -> Any:
        sample = args[0] if args else kwargs[names[0]]
        cache.begin(args[1] if len(args) > 1 else kwargs[name], sample)
        return beneath(*args, **kwargs)

    return forward


def _layer_forward(layer: nn.Module, index: int, stack: Stack, cache: BlockCache) -> Callable:
    bind, branches = stack.family.bind, tuple(stack.family.branches.values())

    def forward(beneath: Callable, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return cache.run_layer(layer, index, x, bind(layer, *args, **kwargs), branches)

    return forward


def _clearing(forward: Callable, cache: BlockCache) -> Callable:
    def guarded(beneath: Callable, *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(beneath, *args, **kwargs)
        except BaseException:
            cache.restart()  # so that no later call meets what a broken replan left
            raise

    return guarded


def _restarting(cache: BlockCache) -> Callable:
    def restarted(beneath: Callable, obs: Any) -> Any:
        cache.restart()
        return beneath(obs)

    return restarted
