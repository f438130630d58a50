"""MoDE (arXiv 2412.12953): a diffusion policy with experts routed by the noise level, cached before it runs."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.mode.ablation import ablate, loss_by_level
    from noiseworks.mode.caching import CacheReport, ExpertCache
    from noiseworks.mode.clip import clip_text_encoder, embed_goals
    from noiseworks.mode.config import MoDEConfig
    from noiseworks.mode.edm import edm_loss, sample_sigmas, sampling_sigmas
    from noiseworks.mode.encoders import StateEncoder, TextGoalEncoder, table_of
    from noiseworks.mode.experts import SwiGLU
    from noiseworks.mode.flops import denoiser_flops
    from noiseworks.mode.model import MoDEModel
    from noiseworks.mode.network import Condition, MoDEDenoiser
    from noiseworks.mode.pictures import draw_usage
    from noiseworks.mode.policy import EDMPolicy
    from noiseworks.mode.released import load_released, map_state
    from noiseworks.mode.routing import Router, load_balance, select_experts, usage_information
    from noiseworks.mode.samplers import sample
    from noiseworks.mode.shipped import load_model, shipped_models
    from noiseworks.mode.training import MoDEModule
    from noiseworks.mode.upcycling import upcycle
    from noiseworks.mode.vision import FiLMResNet, ImageEncoder

_HOME = {
    "CacheReport": "caching",
    "Condition": "network",
    "EDMPolicy": "policy",
    "ExpertCache": "caching",
    "FiLMResNet": "vision",
    "ImageEncoder": "vision",
    "MoDEConfig": "config",
    "MoDEDenoiser": "network",
    "MoDEModel": "model",
    "MoDEModule": "training",
    "Router": "routing",
    "StateEncoder": "encoders",
    "SwiGLU": "experts",
    "TextGoalEncoder": "encoders",
    "ablate": "ablation",
    "clip_text_encoder": "clip",
    "denoiser_flops": "flops",
    "draw_usage": "pictures",
    "edm_loss": "edm",
    "embed_goals": "clip",
    "load_balance": "routing",
    "load_model": "shipped",
    "load_released": "released",
    "loss_by_level": "ablation",
    "map_state": "released",
    "sample": "samplers",
    "sample_sigmas": "edm",
    "sampling_sigmas": "edm",
    "select_experts": "routing",
    "shipped_models": "shipped",
    "table_of": "encoders",
    "upcycle": "upcycling",
    "usage_information": "routing",
}

__all__ = [
    "CacheReport",
    "Condition",
    "EDMPolicy",
    "ExpertCache",
    "FiLMResNet",
    "ImageEncoder",
    "MoDEConfig",
    "MoDEDenoiser",
    "MoDEModel",
    "MoDEModule",
    "Router",
    "StateEncoder",
    "SwiGLU",
    "TextGoalEncoder",
    "ablate",
    "clip_text_encoder",
    "denoiser_flops",
    "draw_usage",
    "edm_loss",
    "embed_goals",
    "load_balance",
    "load_model",
    "load_released",
    "loss_by_level",
    "map_state",
    "sample",
    "sample_sigmas",
    "sampling_sigmas",
    "select_experts",
    "shipped_models",
    "table_of",
    "upcycle",
    "usage_information",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
