"""Bytes of tensors, counted."""

import torch
from noiseworks.core.memory import PeakMemory, peak_mib


def test_peak_is_what_was_held_at_once():
    before = torch.zeros(1000)
    with PeakMemory() as memory:
        first = torch.zeros(250)  # 1,000 bytes
        second = first + 1
        del first
        third = second * 2
        view = third[10:]
        del second
        before.add_(1)
    assert memory.peak == 2000
    assert memory.now == 1000
    del third, view
    assert memory.now == 0


def test_what_autograd_keeps_counts_until_it_is_freed():
    x = torch.zeros(250, requires_grad=True)
    with PeakMemory() as memory:
        y = x
        for _ in range(10):
            y = y.exp()  # keeps its result
        held = memory.now
        y.sum().backward()
        del y
    assert held == 10_000
    assert memory.now == 1000, "the gradient"


def test_work_is_done_once_and_its_peak_is_in_mib():
    done = []

    def work():
        done.append(torch.zeros(2**18))  # 1 MiB
        return len(done), done.pop() + 1

    (calls, result), peak = peak_mib(work, "cpu")
    assert (calls, float(result[0]), peak) == (1, 1.0, 2.0)
