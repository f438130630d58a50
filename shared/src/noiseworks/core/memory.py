"""How much memory the tensors of some work take at most, on any device, to the byte and the same on every machine."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside the block, as long as anything holds them.

        with PeakMemory() as memory:
            loss(model(x)).backward()
        print(memory.peak)

    Tensors that were there before do not count, and neither do a library's own work buffers. The block is slow, and is
    not for timing.

    Attributes:
        peak: Most bytes at any time.
        now: Bytes that are held now.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.now = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage(), given)
        return out

    def _count(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = id(storage)
        if key in self._seen or key in given:  # counted, or a view of what was there before
            return
        size = self._seen[key] = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)


def peak_mib[T](work: Callable[[], T], device: torch.device | str) -> tuple[T, float]:
    """Return what some work returns, and the MiB that its tensors take at most beside those that were there before.

    Args:
        work: Called once. On a GPU that of the allocator counts, elsewhere that of `PeakMemory`, which is slow.
        device: Of the work.
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        found = work()
        torch.cuda.synchronize(device)
        return found, (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with PeakMemory() as memory:
        found = work()
    return found, memory.peak / 2**20
