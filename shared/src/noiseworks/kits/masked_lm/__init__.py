"""What methods for masked diffusion language models share: the two hosts, one forward contract, baselines.

- `llada`, `dream`: the released LLaDA and Dream architectures as transformers classes, with the released
  configuration keys and parameter names, so that their checkpoints load without remote code.
- `hosts`: `HostSpec`, `detect_host`, `load_host`, and `aligned_logits`, the forward that all methods use.
- `layers`: `LayerAccess`, the parts of a host that a cached forward calls one by one.
- `schedules`: how many tokens each step reveals; how sure a model is of a token.
- `sampling`: temperature, nucleus and top-k filters; draws that do not depend on the batch.
- `decoding`: LLaDA's and Dream's own samplers, the baselines.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.kits.masked_lm.decoding import GenerationOutput, dream_generate, llada_generate
    from noiseworks.kits.masked_lm.dream import DreamConfig, DreamModel, make_dream
    from noiseworks.kits.masked_lm.hosts import (
        HostSpec,
        aligned_logits,
        check_logits,
        check_prompt,
        detect_host,
        load_host,
        load_weights,
        pad_prompts,
    )
    from noiseworks.kits.masked_lm.layers import LayerAccess, layer_access
    from noiseworks.kits.masked_lm.llada import LLaDAConfig, LLaDAModelLM, make_llada
    from noiseworks.kits.masked_lm.sampling import draw_tokens, filter_logits, row_keys
    from noiseworks.kits.masked_lm.schedules import SCHEDULES, confidence, dream_counts, transfer_schedule

_HOME = {
    "GenerationOutput": "decoding",
    "dream_generate": "decoding",
    "llada_generate": "decoding",
    "DreamConfig": "dream",
    "DreamModel": "dream",
    "make_dream": "dream",
    "HostSpec": "hosts",
    "aligned_logits": "hosts",
    "check_logits": "hosts",
    "check_prompt": "hosts",
    "detect_host": "hosts",
    "load_host": "hosts",
    "load_weights": "hosts",
    "pad_prompts": "hosts",
    "LayerAccess": "layers",
    "layer_access": "layers",
    "LLaDAConfig": "llada",
    "LLaDAModelLM": "llada",
    "make_llada": "llada",
    "draw_tokens": "sampling",
    "filter_logits": "sampling",
    "row_keys": "sampling",
    "SCHEDULES": "schedules",
    "confidence": "schedules",
    "dream_counts": "schedules",
    "transfer_schedule": "schedules",
}

__all__ = [
    "SCHEDULES",
    "DreamConfig",
    "DreamModel",
    "GenerationOutput",
    "HostSpec",
    "LLaDAConfig",
    "LLaDAModelLM",
    "LayerAccess",
    "aligned_logits",
    "check_logits",
    "check_prompt",
    "confidence",
    "detect_host",
    "draw_tokens",
    "dream_counts",
    "dream_generate",
    "filter_logits",
    "layer_access",
    "llada_generate",
    "load_host",
    "load_weights",
    "make_dream",
    "make_llada",
    "pad_prompts",
    "row_keys",
    "transfer_schedule",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
