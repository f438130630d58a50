"""What methods on diffusion policies share: hosts, networks, chunks, replanning, evaluation, training.

- `protocols`: `DenoiserHost`, `ActionPolicy`, `BatchEnv` and `Chunk`, the types that methods are written against.
- `native`, `unet`, `transformer`: policies that live here, under the published checkpoints' parameter names.
- `hosts`: adapters to the original policies and their checkpoint files, to LeRobot's, and to CleanDiffuser's agents.
- `chunking`, `normalizer`, `schedulers`: time windows, normalisation, noise schedules.
- `steps`, `loop`: lists of denoising steps as tables, and the loop that runs them in buffers.
- `replanning`: `ReplanningPolicy`, the base of action policies, and `DiffusionPolicy`, the baseline.
- `evaluation`, `control`: success with intervals and latency; control with an inference delay.
- `video`: episodes as animated pictures.
- `training`: the loss and the module that trains a policy (needs Lightning); `kits.training` runs it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.kits.policies.chunking import ChunkSpec, Episodes, shift, window_indices, windows
    from noiseworks.kits.policies.control import ControlTrace, control_loop
    from noiseworks.kits.policies.evaluation import (
        EvaluationReport,
        Latency,
        episode_list,
        evaluate,
        measure_latency,
        wilson_interval,
    )
    from noiseworks.kits.policies.hosts import as_host, load_host
    from noiseworks.kits.policies.loop import DenoisingLoop, FilmTable, film_table, randn
    from noiseworks.kits.policies.native import NativePolicy, PolicyConfig
    from noiseworks.kits.policies.normalizer import LinearNormalizer
    from noiseworks.kits.policies.protocols import ActionPolicy, BatchEnv, Chunk, DenoiserHost
    from noiseworks.kits.policies.replanning import DiffusionPolicy, PolicyStats, ReplanningPolicy
    from noiseworks.kits.policies.schedulers import make_scheduler, sampling_scheduler
    from noiseworks.kits.policies.steps import StepTable, reverse_step_, sampler_table, step_table
    from noiseworks.kits.policies.training import PolicyTrainer, diffusion_loss
    from noiseworks.kits.policies.transformer import (
        TransformerForDiffusion,
        optimizer_groups,
        strip_published,
    )
    from noiseworks.kits.policies.unet import ConditionalUnet1D

_HOME = {
    "ActionPolicy": "protocols",
    "BatchEnv": "protocols",
    "Chunk": "protocols",
    "ChunkSpec": "chunking",
    "ConditionalUnet1D": "unet",
    "ControlTrace": "control",
    "DenoiserHost": "protocols",
    "DenoisingLoop": "loop",
    "DiffusionPolicy": "replanning",
    "Episodes": "chunking",
    "EvaluationReport": "evaluation",
    "FilmTable": "loop",
    "Latency": "evaluation",
    "LinearNormalizer": "normalizer",
    "NativePolicy": "native",
    "PolicyConfig": "native",
    "PolicyStats": "replanning",
    "PolicyTrainer": "training",
    "ReplanningPolicy": "replanning",
    "StepTable": "steps",
    "TransformerForDiffusion": "transformer",
    "as_host": "hosts",
    "control_loop": "control",
    "diffusion_loss": "training",
    "episode_list": "evaluation",
    "evaluate": "evaluation",
    "film_table": "loop",
    "load_host": "hosts",
    "make_scheduler": "schedulers",
    "measure_latency": "evaluation",
    "optimizer_groups": "transformer",
    "randn": "loop",
    "reverse_step_": "steps",
    "sampler_table": "steps",
    "sampling_scheduler": "schedulers",
    "shift": "chunking",
    "step_table": "steps",
    "strip_published": "transformer",
    "wilson_interval": "evaluation",
    "window_indices": "chunking",
    "windows": "chunking",
}

__all__ = [
    "ActionPolicy",
    "BatchEnv",
    "Chunk",
    "ChunkSpec",
    "ConditionalUnet1D",
    "ControlTrace",
    "DenoiserHost",
    "DenoisingLoop",
    "DiffusionPolicy",
    "Episodes",
    "EvaluationReport",
    "FilmTable",
    "Latency",
    "LinearNormalizer",
    "NativePolicy",
    "PolicyConfig",
    "PolicyStats",
    "PolicyTrainer",
    "ReplanningPolicy",
    "StepTable",
    "TransformerForDiffusion",
    "as_host",
    "control_loop",
    "diffusion_loss",
    "episode_list",
    "evaluate",
    "film_table",
    "load_host",
    "make_scheduler",
    "measure_latency",
    "optimizer_groups",
    "randn",
    "reverse_step_",
    "sampler_table",
    "sampling_scheduler",
    "shift",
    "step_table",
    "strip_published",
    "wilson_interval",
    "window_indices",
    "windows",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
