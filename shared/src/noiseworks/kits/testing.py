"""What every method that attaches to a host owes it, as checks to call from tests.

A broken promise is an AssertionError that names it.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.attachments import Wrap
from noiseworks.kits.attachments import attach as attach_parts
from torch import Tensor, nn


@dataclass(frozen=True)
class HostUnderTest:
    """A small host, and how it is run.

    Attributes:
        make: Returns a new one in evaluation mode and float32, the same every time.
        run: `run(host, samples)` returns the results of the samples of these numbers, `[len(samples), ...]`; a
            sample's number decides its inputs and its noise.
        network: Returns the module that the method acts on.
        lora: Names of the layers that adapters go to, as peft's `target_modules`; empty for no such check.
        cast: `cast(host, dtype)` changes the precision; None for no such check.
    """

    make: Callable[[], Any]
    run: Callable[[Any, Sequence[int]], Tensor]
    network: Callable[[Any], nn.Module]
    lora: tuple[str, ...] = ()
    cast: Callable[[Any, torch.dtype], object] | None = None


def diffusion_host(family: str, steps: int = 3) -> HostUnderTest:
    """Return a random pipeline of a family of `kits.diffusers_hosts`, guided, with a deterministic solver.

    Args:
        family: One of `kits.diffusers_hosts.FAMILIES`.
        steps: Denoising steps.
    """
    from noiseworks.kits.diffusers_hosts import denoiser_of, sample_generators, tiny_inputs, tiny_pipeline

    def run(pipe: Any, samples: Sequence[int]) -> Tensor:
        inputs = {
            name: [value[i] for i in samples] if isinstance(value, list) else value
            for name, value in tiny_inputs(family, 1 + max(samples)).items()
        }
        inputs = {k: v[list(samples)] if isinstance(v, Tensor) else v for k, v in inputs.items()}
        return pipe(
            **inputs,
            num_inference_steps=steps,
            generator=sample_generators(samples),
            output_type="pt" if family == "dit" else "latent",
        ).images

    return HostUnderTest(
        make=lambda: tiny_pipeline(family),
        run=run,
        network=denoiser_of,
        lora=("to_q", "to_v"),
        cast=lambda pipe, dtype: pipe.to(dtype),
    )


def check_attach(
    attach: Callable[[Any], AbstractContextManager[Any]],
    host: HostUnderTest | str,
    *,
    neutral: bool = True,
    tolerance: float = 1e-3,
    brief: bool = False,
) -> None:
    """Hold a method to what it owes the hosts that it attaches to.

    Checked are: in a neutral setting nothing changes, bit for bit, also with LoRA; two runs in a row are equal; a
    batch gives what its samples give alone; precision may be changed while attached; attaching twice and copying
    are refused; detaching restores every bit and every attribute, in any order with another method, after an
    exception inside a call, and when it is done twice.

    Args:
        attach: `attach(host)` returns a handle with `detach()` that is also a context manager.
        host: The host, or a family's name for `diffusion_host`.
        neutral: Whether the setting is one in which the method changes nothing.
        tolerance: Largest difference of a sample alone and in a batch, as a share of its largest value: sums run in
            another order at another batch size.
        brief: Whether to leave out what hangs on the method and hardly on the host: old handles, other methods beside
            it, and exceptions. For further families of a method that is held to all of it on some.

    Raises:
        AssertionError: Naming the promise that is broken.
    """
    host = diffusion_host(host) if isinstance(host, str) else host
    subject = host.make()
    before, attributes = host.run(subject, [0, 1]), _attributes(host, subject)

    def restored(when: str) -> None:
        _demand(
            _attributes(host, subject) == attributes, f"{when} leaves attributes on the network's modules"
        )
        _demand(
            torch.equal(host.run(subject, [0, 1]), before), f"{when} does not restore the host bit for bit"
        )

    with attach(subject):
        first, second = host.run(subject, [0, 1]), host.run(subject, [0, 1])
        _demand(torch.equal(first, second), "a second run differs from the first: something is left over")
        _demand(not neutral or torch.equal(first, before), "in a neutral setting the host's results change")
        alone = torch.cat([host.run(subject, [i]) for i in (0, 1)])
        distance = float((alone - first).abs().max())
        _demand(
            distance <= tolerance * float(first.abs().max()),
            f"samples alone differ from the same samples in a batch by {distance:.2g}",
        )
        _check_refusals(attach, host, subject, first)
    restored("detaching")
    if not brief:
        _check_handles(attach, host, subject, first)
        restored("an old handle's second detach()")
        _check_orders(attach, host, subject, first, restored)
        _check_exception(attach, host, subject)
        restored("detaching after an exception inside a call")
    if host.cast is not None:
        _check_cast(attach, host)
    if host.lora:
        _check_lora(attach, host, neutral)


def _check_refusals(attach: Callable, host: HostUnderTest, subject: Any, expected: Tensor) -> None:
    try:
        attach(subject)
    except InputError:
        pass
    else:
        raise AssertionError("attaching the method twice is not refused")
    _demand(torch.equal(host.run(subject, [0, 1]), expected), "a refused second attach changes the first")
    try:
        twin = copy.deepcopy(subject)
    except InputError:
        return
    for parameter in host.network(twin).parameters():
        parameter.data.zero_()
    _demand(
        not torch.equal(host.run(twin, [0, 1]), expected)
        and torch.equal(host.run(subject, [0, 1]), expected),
        "a copy of the attached host runs the original's network: refuse copying, or make it right",
    )


def _check_handles(attach: Callable, host: HostUnderTest, subject: Any, expected: Tensor) -> None:
    old = attach(subject)
    old.detach()
    with attach(subject):
        old.detach()
        attached = _attributes(host, subject)
        _demand(
            torch.equal(host.run(subject, [0, 1]), expected), "an old handle's detach() acts on a newer one"
        )
    _demand(attached != _attributes(host, subject), "an old handle's detach() takes a newer attachment off")


def _check_orders(
    attach: Callable,
    host: HostUnderTest,
    subject: Any,
    expected: Tensor,
    restored: Callable[[str], None],
) -> None:
    calls = []

    def other(subject: Any) -> Any:
        def passing(beneath: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return beneath(*args, **kwargs)

        return attach_parts("another method", [Wrap(host.network(subject), passing)])

    for makers in ((attach, other), (other, attach)):
        first, second = (make(subject) for make in makers)
        found = host.run(subject, [0, 1])
        _demand(torch.equal(found, expected), "beside another method the results change")
        first.detach()
        calls.clear()
        found = host.run(subject, [0, 1])
        if makers[0] is other:
            _demand(torch.equal(found, expected), "taking another method off changes this one")
        else:
            _demand(bool(calls), "detaching the method takes another method off that was attached later")
        second.detach()
        restored("detaching beside another method")


def _check_exception(attach: Callable, host: HostUnderTest, subject: Any) -> None:
    class InsideError(Exception):
        pass

    def fail(*_: Any) -> None:
        raise InsideError

    layers = [m for m in host.network(subject).modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hook = layers[-1].register_forward_pre_hook(fail)
    try:
        with attach(subject):
            host.run(subject, [0, 1])
    except InsideError:
        return
    finally:
        hook.remove()
    raise AssertionError("an exception inside the network does not reach the caller")


def _check_cast(attach: Callable, host: HostUnderTest) -> None:
    subject = host.make()
    with attach(subject):
        host.run(subject, [0, 1])
        host.cast(subject, torch.bfloat16)
        found = host.run(subject, [0, 1])
        _demand(bool(found.isfinite().all()), "after a change to bfloat16 the results are not finite")
    with attach(subject):
        _demand(
            torch.equal(host.run(subject, [0, 1]), found),
            "a change of precision while attached is remembered",
        )


def _check_lora(attach: Callable, host: HostUnderTest, neutral: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    subject = host.make()
    config = LoraConfig(r=2, target_modules=list(host.lora), init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inject_adapter_in_model(config, host.network(subject))
    before = host.run(subject, [0, 1])
    with attach(subject):
        found = host.run(subject, [0, 1])
    _demand(not neutral or torch.equal(found, before), "with LoRA the results change in a neutral setting")
    _demand(torch.equal(host.run(subject, [0, 1]), before), "with LoRA detaching does not restore the host")


def _attributes(host: HostUnderTest, subject: Any) -> dict[str, list[str]]:
    named = host.network(subject).named_modules()
    # The registry that some pipelines make at their first call is theirs.
    return {name: sorted(vars(module).keys() - {"_diffusers_hook"}) for name, module in named}


def _demand(kept: bool, promise: str) -> None:
    if not kept:
        raise AssertionError(promise)
