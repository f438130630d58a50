"""Stacks of attachments: any order of detaching restores all, what others put there stays, copies are refused."""

import copy
import inspect
import io
import itertools

import pytest
import torch
from noiseworks.core.errors import InputError, UnsupportedHostError
from noiseworks.kits.attachments import Replace, Wrap, attach, attached_to
from torch import nn


class Doubler(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x, scale=2.0):
        return scale * x


def adding(amount):
    return lambda beneath, x, **kwargs: beneath(x, **kwargs) + amount


def named(host, name, amount=1.0, rows="any"):
    return attach(name, [Wrap(host, adding(amount))], rows)


def value(host):
    return float(host(torch.tensor(3.0)))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_detaching_in_any_order_leaves_the_others_and_then_nothing(order):
    host = Doubler()
    before = dict(vars(host))
    handles = [named(host, name, amount) for name, amount in (("a", 1), ("b", 10), ("c", 100))]
    left = 111
    assert value(host) == 6 + left
    assert attached_to(host) == ("a", "b", "c")
    for index in order:
        handles[index].detach()
        left -= 10**index
        assert value(host) == 6 + left
        assert not handles[index].attached
    assert vars(host) == before


def test_the_newest_stands_outermost_and_arguments_pass_through():
    host, calls = Doubler(), []

    def noting(name):
        def function(beneath, x, **kwargs):
            calls.append(name)
            return beneath(x, **kwargs)

        return function

    with attach("a", [Wrap(host, noting("a"))]), attach("b", [Wrap(host, noting("b"))]):
        assert float(host(torch.tensor(3.0), scale=5.0)) == 15
    assert calls == ["b", "a"]
    assert "scale" in inspect.signature(host.forward).parameters


def test_an_old_handles_second_detach_leaves_the_newer_one():
    host = Doubler()
    old = named(host, "a", 1)
    old.detach()
    with named(host, "a", 10):
        old.detach()
        assert value(host) == 16
        assert attached_to(host) == ("a",)
    assert value(host) == 6


def test_a_method_attaches_once_and_a_refusal_changes_nothing():
    host, other = Doubler(), Doubler()
    with named(host, "a"):
        before = dict(vars(other))
        with pytest.raises(InputError, match="a is attached to this Doubler already: detach it first"):
            attach("a", [Wrap(other, adding(1)), Wrap(host, adding(1))])
        assert vars(other) == before
        assert value(host) == 7
    named(host, "a").detach()


def test_wrappers_of_others_stay_above_and_beneath():
    host = Doubler()
    plain = host.forward
    host.forward = lambda x: plain(x) + 1000  # somebody's, beneath
    theirs = host.forward
    first = named(host, "a", 1)
    beneath = host.forward
    host.forward = lambda x: beneath(x) + 2000  # somebody's, above
    above = host.forward
    second = named(host, "b", 10)
    assert value(host) == 6 + 3011
    first.detach()
    assert value(host) == 6 + 3010
    second.detach()
    assert value(host) == 6 + 3000
    assert host.forward is above
    with pytest.raises(InputError, match="already"), named(host, "a", 1):
        named(host, "a", 1)
    host.forward = beneath  # they take theirs off
    assert value(host) == 6 + 1000
    named(host, "a", 1).detach()
    assert host.forward is theirs


def test_hooks_of_diffusers_and_accelerate_stay():
    from accelerate.hooks import ModelHook as AccelerateHook
    from accelerate.hooks import add_hook_to_module, remove_hook_from_module
    from diffusers.hooks import HookRegistry, ModelHook

    class Plus(ModelHook):
        def post_forward(self, module, output):
            return output + 1000

    class Times(AccelerateHook):
        def post_forward(self, module, output):
            return output * 2

    host = Doubler()
    registry = HookRegistry.check_if_exists_or_initialize(host)
    registry.register_hook(Plus(), "plus")
    handle = named(host, "a", 1)
    add_hook_to_module(host, Times())
    assert value(host) == (6 + 1000 + 1) * 2
    handle.detach()
    assert value(host) == (6 + 1000) * 2
    remove_hook_from_module(host)
    assert value(host) == 6 + 1000
    registry.remove_hook("plus")
    assert value(host) == 6


def test_attributes_are_replaced_and_put_back_in_any_order():
    class Host:
        mode = "class's"

    for order in itertools.permutations(range(2)):
        host = Host()
        handles = [attach(name, [Replace(host, "mode", name)]) for name in ("a", "b")]
        assert host.mode == "b"
        handles[order[0]].detach()
        assert host.mode == "ba"[order[0]]
        handles[order[1]].detach()
        assert vars(host) == {}
    host.mode = "own"
    with attach("a", [Replace(host, "mode", "a")]):
        pass
    assert vars(host) == {"mode": "own"}
    handle = attach("a", [Replace(host, "mode", "a")])
    host.mode = "set since"
    handle.detach()
    assert vars(host) == {"mode": "set since"}


def test_copying_and_pickling_with_something_attached_is_refused():
    host = nn.Sequential(Doubler())
    handle = named(host[0], "a")
    for take in (copy.deepcopy, lambda model: torch.save(model, io.BytesIO())):
        with pytest.raises(InputError, match=r"attached method \(a\) cannot be copied: detach"):
            take(host)
    assert not any("noiseworks" in key for key in host.state_dict())
    handle.detach()
    twin = copy.deepcopy(host)
    twin[0].inner.weight.data.zero_()
    assert host[0].inner.weight.abs().sum() > 0


def test_a_copy_made_after_detaching_beneath_a_wrapper_runs_its_own_layers():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x):
            return self.linear(x)

    host = Layer()
    handle = named(host, "a")
    stack = host.forward
    host.forward = stack.__call__
    handle.detach()
    host.forward = stack  # the empty stack came to light again
    twin = copy.deepcopy(host)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert not twin(torch.ones(1)).any()
    assert twin.forward is not host.forward


def test_an_exception_inside_a_call_restores_the_host():
    host = Doubler()
    before = dict(vars(host))

    def failing(beneath, x):
        raise ValueError("inside")

    with (
        pytest.raises(ValueError, match="inside"),
        named(host, "a"),
        attach("b", [Wrap(host, failing), Replace(host, "training", False)]),
    ):
        value(host)
    assert vars(host) == before


@pytest.mark.parametrize("rows", [("drops", "keeps"), ("keeps", "drops")])
def test_methods_that_drop_rows_and_methods_that_keep_them_are_not_attached_together(rows):
    host = nn.Sequential(Doubler())
    with named(host, "first", rows=rows[0]):
        with pytest.raises(UnsupportedHostError, match=r"cannot be attached to one Sequential: detach first"):
            named(host, "second", rows=rows[1])
        with named(host, "third", rows=rows[0]):
            pass
    with (
        named(host[0], "layers", rows="keeps"),
        pytest.raises(UnsupportedHostError, match="whole drops batch rows between calls and layers stores"),
    ):
        named(host, "whole", rows="drops")
