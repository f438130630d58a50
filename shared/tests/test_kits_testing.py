"""`check_attach` passes a method that keeps its promises, and names the one that is broken."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.attachments import Wrap, attach
from noiseworks.kits.diffusers_hosts import DenoiserHook, attach_hook
from noiseworks.kits.testing import HostUnderTest, check_attach
from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q = nn.Linear(4, 4)

    def forward(self, x):
        return self.to_q(x)


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().requires_grad_(False)


def run(host, samples):
    x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(i)) for i in samples])
    return host(x.to(host.to_q.weight.dtype if not hasattr(host.to_q, "base_layer") else x.dtype))


HOST = HostUnderTest(make, run, lambda host: host, ("to_q",), lambda host, dtype: host.to(dtype))


def wrapped(host, function):
    return attach("method", [Wrap(host, function)])


def neutral(host):
    return wrapped(host, lambda beneath, x: beneath(x))


def test_a_method_that_keeps_its_promises_passes():
    check_attach(neutral, HOST)
    check_attach(neutral, HOST, brief=True)
    check_attach(lambda host: wrapped(host, lambda beneath, x: 2 * beneath(x)), HOST, neutral=False)


def test_a_hook_on_pipelines_passes():
    check_attach(lambda pipe: attach_hook(DenoiserHook(pipe), "passing"), "flux")


class Patch:
    """Attaches by assignment, as methods do that do not know of each other."""

    def __init__(self, host, function=None):
        self.host, self.original = host, host.forward
        host.forward = lambda x: (function or (lambda y: y))(self.original(x))

    def detach(self):
        self.host.forward = self.original

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.detach()


def batch_mean(beneath, x):
    return beneath(x) - x.mean()


def counting():
    calls = []

    def function(beneath, x):
        calls.append(1)
        return beneath(x) + len(calls)

    return function


class Leaky:
    def __init__(self, host):
        self.handle = neutral(host)
        self.host = host

    def detach(self):
        self.handle.detach()
        self.host.to_q.weight.data.add_(1e-3)

    __enter__ = lambda self: self  # noqa: E731

    def __exit__(self, *_):
        self.detach()


@pytest.mark.parametrize(
    ("method", "promise"),
    [
        (lambda host: wrapped(host, lambda beneath, x: beneath(x) + 1e-6), "neutral setting"),
        (lambda host: wrapped(host, counting()), "second run"),
        (lambda host: wrapped(host, batch_mean), "alone differ"),
        (Patch, "attaching the method twice"),
        (Leaky, "does not restore the host bit for bit"),
    ],
)
def test_a_broken_promise_is_named(method, promise):
    unchanged = "neutral" in promise or "restore" in promise or "twice" in promise
    for brief in (False, True):
        with pytest.raises(AssertionError, match=promise):
            check_attach(method, HOST, neutral=unchanged, brief=brief)


class Guard:
    def __deepcopy__(self, memo):
        raise InputError("detach first")


class Alone:
    """Keeps every promise as long as nothing else is attached: it forgets what came after it."""

    def __init__(self, host):
        if "guard" in vars(host):
            raise InputError("attached already")
        self.host, self.attached, host.guard, original = host, True, Guard(), host.forward
        host.forward = lambda x: original(x)

    def detach(self):
        if self.attached:
            del self.host.guard, self.host.forward
        self.attached = False

    __enter__ = lambda self: self  # noqa: E731

    def __exit__(self, *_):
        self.detach()


def test_a_method_that_does_not_go_with_others_is_caught():
    with pytest.raises(AssertionError, match="takes another method off"):
        check_attach(Alone, HOST)


def test_a_copy_that_runs_the_originals_network_is_caught():
    class Copied(Alone):
        def __init__(self, host):
            super().__init__(host)
            host.guard = None

    with pytest.raises(AssertionError, match="copy of the attached host"):
        check_attach(Copied, HOST)
