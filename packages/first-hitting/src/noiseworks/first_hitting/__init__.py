"""First-hitting sampling of masked diffusion models (arXiv 2409.02908), and categorical draws done right."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.first_hitting.ancestral import AncestralSettings, ancestral_sample, expected_calls
    from noiseworks.first_hitting.categorical import (
        effective_temperature,
        gumbel_bound,
        truncated_probs,
    )
    from noiseworks.first_hitting.denoisers import from_callable, from_sigma_model
    from noiseworks.first_hitting.hitting import hitting_times, time_of
    from noiseworks.first_hitting.metrics import distinct_tokens, generative_nll, unigram_entropy
    from noiseworks.first_hitting.objective import elbo, time_free_loss
    from noiseworks.first_hitting.sampling import Sample, Settings, fhs_sample
    from noiseworks.first_hitting.transformers import FirstHittingGenerator, host_denoiser

_HOME = {
    "AncestralSettings": "ancestral",
    "ancestral_sample": "ancestral",
    "expected_calls": "ancestral",
    "effective_temperature": "categorical",
    "gumbel_bound": "categorical",
    "truncated_probs": "categorical",
    "from_callable": "denoisers",
    "from_sigma_model": "denoisers",
    "hitting_times": "hitting",
    "time_of": "hitting",
    "distinct_tokens": "metrics",
    "generative_nll": "metrics",
    "unigram_entropy": "metrics",
    "elbo": "objective",
    "time_free_loss": "objective",
    "Sample": "sampling",
    "Settings": "sampling",
    "fhs_sample": "sampling",
    "FirstHittingGenerator": "transformers",
    "host_denoiser": "transformers",
}

__all__ = [
    "AncestralSettings",
    "FirstHittingGenerator",
    "Sample",
    "Settings",
    "ancestral_sample",
    "distinct_tokens",
    "effective_temperature",
    "elbo",
    "expected_calls",
    "fhs_sample",
    "from_callable",
    "from_sigma_model",
    "generative_nll",
    "gumbel_bound",
    "hitting_times",
    "host_denoiser",
    "time_free_loss",
    "time_of",
    "truncated_probs",
    "unigram_entropy",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
