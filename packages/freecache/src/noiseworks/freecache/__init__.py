"""FreeCache and Guided Diffusion (arXiv 2505.21467): cached and guided decoding of masked language models."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.freecache.baselines import full_recompute_generate, guide_generate, threshold_generate
    from noiseworks.freecache.cache import FreeCache, Recompute, kv_bytes_per_token
    from noiseworks.freecache.decoding import Decoded, Sampling, Stats, freecache_generate
    from noiseworks.freecache.guidance import Acceptance, leading_run
    from noiseworks.freecache.guide import Guide
    from noiseworks.freecache.guided import GuidedDiffusion
    from noiseworks.freecache.probe import Drift, probe_drift
    from noiseworks.freecache.transformers import apply_freecache

_HOME = {
    "Acceptance": "guidance",
    "Decoded": "decoding",
    "Drift": "probe",
    "FreeCache": "cache",
    "Guide": "guide",
    "GuidedDiffusion": "guided",
    "Recompute": "cache",
    "Sampling": "decoding",
    "Stats": "decoding",
    "apply_freecache": "transformers",
    "freecache_generate": "decoding",
    "full_recompute_generate": "baselines",
    "guide_generate": "baselines",
    "kv_bytes_per_token": "cache",
    "leading_run": "guidance",
    "probe_drift": "probe",
    "threshold_generate": "baselines",
}

__all__ = [
    "Acceptance",
    "Decoded",
    "Drift",
    "FreeCache",
    "Guide",
    "GuidedDiffusion",
    "Recompute",
    "Sampling",
    "Stats",
    "apply_freecache",
    "freecache_generate",
    "full_recompute_generate",
    "guide_generate",
    "kv_bytes_per_token",
    "leading_run",
    "probe_drift",
    "threshold_generate",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
