"""What methods that attach to a diffusers pipeline share: row layouts, denoiser hooks, noise levels, models.

- `layouts`: which rows or calls of the denoiser are conditional and which are not, per pipeline family.
- `hooks`: `DenoiserHook`, the base of hooks on the UNet or transformer, with run and step detection.
- `rows`: selecting batch rows in nested arguments; reading and replacing the prediction in an output.
- `levels`: the noise level (alpha, sigma) at a timestep, and conversions between prediction types.
- `loading`: `load_pipeline` for a directory, a hub id or `testbed:<name>`; per-sample generators.
- `tiny`, `tokenizers`: random pipelines of every family, built in a second without a download.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.kits.diffusers_hosts.hooks import DenoiserCall, DenoiserHook, attach_hook, detach_hook
    from noiseworks.kits.diffusers_hosts.layouts import Layout, denoiser_of, layout_of
    from noiseworks.kits.diffusers_hosts.levels import noise_level, prediction_type_of, to_epsilon, to_x0
    from noiseworks.kits.diffusers_hosts.loading import load_pipeline, sample_generators, seeded_latents
    from noiseworks.kits.diffusers_hosts.rows import prediction_of, replace_prediction, take_rows
    from noiseworks.kits.diffusers_hosts.tiny import FAMILIES, tiny_inputs, tiny_pipeline

_HOME = {
    "DenoiserCall": "hooks",
    "DenoiserHook": "hooks",
    "attach_hook": "hooks",
    "detach_hook": "hooks",
    "Layout": "layouts",
    "denoiser_of": "layouts",
    "layout_of": "layouts",
    "noise_level": "levels",
    "prediction_type_of": "levels",
    "to_epsilon": "levels",
    "to_x0": "levels",
    "load_pipeline": "loading",
    "sample_generators": "loading",
    "seeded_latents": "loading",
    "prediction_of": "rows",
    "replace_prediction": "rows",
    "take_rows": "rows",
    "FAMILIES": "tiny",
    "tiny_inputs": "tiny",
    "tiny_pipeline": "tiny",
}

__all__ = [
    "FAMILIES",
    "DenoiserCall",
    "DenoiserHook",
    "Layout",
    "attach_hook",
    "denoiser_of",
    "detach_hook",
    "layout_of",
    "load_pipeline",
    "noise_level",
    "prediction_of",
    "prediction_type_of",
    "replace_prediction",
    "sample_generators",
    "seeded_latents",
    "take_rows",
    "tiny_inputs",
    "tiny_pipeline",
    "to_epsilon",
    "to_x0",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
