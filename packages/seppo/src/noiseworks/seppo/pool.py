"""The pool of a run's checkpoints: each an adapter of its own on the same network, switched as peft switches them."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.image_tuning.adapters import NAME, reference
from noiseworks.seppo.options import OpponentRule
from torch import Tensor, nn


def choose_opponent(rule: OpponentRule, checkpoints: int, seed: int) -> int:
    """Return the number of the checkpoint that is played against; 0 is the initial model.

    Args:
        rule: all (uniform), initial or latest.
        checkpoints: How many there are, the initial model among them.
        seed: Of the draw.

    Raises:
        InputError: When there is none.
    """
    if checkpoints < 1:
        raise InputError(f"an opponent is one of the checkpoints, and there are {checkpoints}")
    if rule == "initial":
        return 0
    if rule == "latest":
        return checkpoints - 1
    generator = torch.Generator().manual_seed(mix64(seed) >> 2)
    return int(torch.randint(checkpoints, (), generator=generator))


class CheckpointPool:
    """Earlier checkpoints of a denoiser's trained adapter, beside it on the network.

    Checkpoint 0 is the network without adapters. The others are frozen copies, a few megabytes each.

    Args:
        denoiser: A UNet or transformer of diffusers that carries the adapter that is trained.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser = denoiser
        self._copies: list[dict[str, nn.Parameter]] = []

    def __len__(self) -> int:
        """Return how many checkpoints there are, the initial model among them."""
        return 1 + len(self._copies)

    def add(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Keep the adapter as it is now, or other weights of it, as the next checkpoint.

        Args:
            weights: Name of a trained parameter -> values.

        Raises:
            ArtifactError: When they are not this adapter's.
        """
        trained = {name: p for name, p in self.denoiser.named_parameters() if f".{NAME}." in name}
        weights = trained if weights is None else weights
        if {name: w.shape for name, w in weights.items()} != {name: p.shape for name, p in trained.items()}:
            raise ArtifactError("the pool's checkpoints are of another adapter than the one that is trained")
        own = _name(len(self))
        # peft draws first values, which are replaced, and warns of the second adapter, which is the point
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            self.denoiser.add_adapter(self.denoiser.peft_config[NAME], own)
        self.denoiser.set_adapter(NAME)
        copies = dict(self.denoiser.named_parameters())
        kept = {}
        for name, parameter in trained.items():
            kept[name] = copies[name.replace(f".{NAME}.", f".{own}.")]
            kept[name].data = weights[name].detach().to(parameter.device, parameter.dtype).clone()
        self._copies.append(kept)

    @contextmanager
    def playing(self, index: int) -> Iterator[None]:
        """Make the denoiser checkpoint `index` within a block; behind it, the trained adapter is on again.

        Raises:
            InputError: When there is no such checkpoint.
        """
        if not 0 <= index < len(self):
            raise InputError(f"checkpoint {index} of {len(self)}: count from 0, the initial model")
        if index == 0:
            with reference(self.denoiser):
                yield
            return
        self.denoiser.set_adapter(_name(index))
        try:
            yield
        finally:
            self.denoiser.set_adapter(NAME)

    def state(self) -> list[dict[str, Tensor]]:
        """Return the weights of all checkpoints but the initial model."""
        return [{name: p.detach() for name, p in kept.items()} for kept in self._copies]

    def load(self, state: Sequence[Mapping[str, Tensor]]) -> None:
        """Put the checkpoints of `state` into a pool that has none yet.

        Raises:
            ArtifactError: When they are another adapter's, or there are some already.
        """
        if self._copies:
            raise ArtifactError("checkpoints are loaded into an empty pool, and this one holds some already")
        for weights in state:
            self.add(weights)


def _name(index: int) -> str:
    return f"checkpoint-{index}"
