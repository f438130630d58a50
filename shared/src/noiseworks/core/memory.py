"""How much memory the tensors of some work take at most, on any device, to the byte and the same on every machine."""

import weakref
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
