"""Streaming Diffusion Policy (arXiv 2406.04806): a persistent buffer of unevenly noised actions."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.streaming_dp.buffer import ActionBuffer
    from noiseworks.streaming_dp.difference import load_difference, save_difference
    from noiseworks.streaming_dp.hosts import (
        StreamingHost,
        convert,
        import_published,
        load_converted,
        save_converted,
    )
    from noiseworks.streaming_dp.levels import REGIMES, ChunkLevels, training_levels
    from noiseworks.streaming_dp.networks import StreamingTransformer, StreamingUnet1d, from_published
    from noiseworks.streaming_dp.policy import StreamingPolicy
    from noiseworks.streaming_dp.schedulers import PerStepDDIM, PerStepDDPM
    from noiseworks.streaming_dp.training import StreamingModule, TrainConfig, train

_HOME = {
    "REGIMES": "levels",
    "ActionBuffer": "buffer",
    "ChunkLevels": "levels",
    "PerStepDDIM": "schedulers",
    "PerStepDDPM": "schedulers",
    "StreamingHost": "hosts",
    "StreamingModule": "training",
    "StreamingPolicy": "policy",
    "StreamingTransformer": "networks",
    "StreamingUnet1d": "networks",
    "TrainConfig": "training",
    "convert": "hosts",
    "from_published": "networks",
    "import_published": "hosts",
    "load_converted": "hosts",
    "load_difference": "difference",
    "save_converted": "hosts",
    "save_difference": "difference",
    "train": "training",
    "training_levels": "levels",
}

__all__ = [
    "REGIMES",
    "ActionBuffer",
    "ChunkLevels",
    "PerStepDDIM",
    "PerStepDDPM",
    "StreamingHost",
    "StreamingModule",
    "StreamingPolicy",
    "StreamingTransformer",
    "StreamingUnet1d",
    "TrainConfig",
    "convert",
    "from_published",
    "import_published",
    "load_converted",
    "load_difference",
    "save_converted",
    "save_difference",
    "train",
    "training_levels",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
