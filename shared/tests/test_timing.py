"""Timing in turns, against a clock that is set by hand."""

import numpy as np
import pytest
from noiseworks.core import timing
from noiseworks.core.errors import InputError
from noiseworks.core.timing import Times, in_turns, median_interval, turns


class Machine:
    """A clock, and work that moves it."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def clock(self):
        return self.now

    def work(self, name, seconds):
        def run(turn):
            self.calls.append((name, turn))
            self.now += seconds(turn)
            return f"{name}{turn}"

        return run


def test_arms_alternate_and_warm_ups_do_not_count():
    machine = Machine()
    arms = {"a": machine.work("a", lambda turn: 1.0), "b": machine.work("b", lambda turn: 3.0 + turn)}
    done = []
    times = in_turns(arms, 3, warmup=1, clock=machine.clock, keep=True, progress=done.append)
    assert machine.calls == [
        *[("b", -1), ("a", -1)],
        *[("a", 0), ("b", 0)],
        *[("b", 1), ("a", 1)],
        *[("a", 2), ("b", 2)],
    ]
    assert times["a"] == Times((1.0, 1.0, 1.0), ("a0", "a1", "a2"))
    assert times["b"].seconds == (3.0, 4.0, 5.0)
    assert (times["b"].median, times["b"].ratio(times["a"])) == (4.0, 4.0)
    assert done == [1, 2, 3]


def test_a_machine_that_slows_down_leaves_the_ratio():
    machine = Machine()
    arms = {name: machine.work(name, lambda turn, n=n: n * 2.0**turn) for name, n in (("a", 1.0), ("b", 3.0))}
    times = in_turns(arms, 8, clock=machine.clock)
    assert times["b"].ratio(times["a"]) == 3.0
    assert times["a"].results == ()


def test_a_ratio_is_the_median_of_the_turns_own_ratios():
    one, base = Times((4.0, 2.0, 9.0)), Times((1.0, 2.0, 3.0))
    assert one.ratio(base) == 3.0  # of 4, 1 and 3; the medians' ratio is 2


def test_each_call_waits_for_the_device(monkeypatch):
    machine, waited = Machine(), []
    monkeypatch.setattr(timing, "synchronize", lambda device: waited.append((device, len(machine.calls))))
    list(turns({"a": machine.work("a", lambda turn: 1.0)}, 2, warmup=0, device="cuda:1", clock=machine.clock))
    assert waited == [("cuda:1", 0), ("cuda:1", 1), ("cuda:1", 1), ("cuda:1", 2)]


@pytest.mark.parametrize(("n", "ranks"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (9, (1, 7)), (30, (9, 20))])
def test_the_interval_is_the_tabled_order_statistics(n, ranks):
    values = list(np.random.default_rng(n).permutation(n).astype(float))
    assert median_interval(values) == tuple(map(float, ranks))


def test_the_interval_covers_the_median_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(size=(4000, 15))
    covered = [low <= np.log(2) <= high for low, high in map(median_interval, draws)]
    assert 0.955 < np.mean(covered) < 0.975  # 1 - 2 P(Bin(15, 1/2) <= 3) = 0.9648


@pytest.mark.parametrize(("repeats", "warmup"), [(0, 1), (1, -1), (1.5, 1)])
def test_bad_counts_are_refused(repeats, warmup):
    with pytest.raises(InputError):
        in_turns({"a": lambda turn: None}, repeats, warmup=warmup)
