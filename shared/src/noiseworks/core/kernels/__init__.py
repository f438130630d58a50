"""GPU kernels, each beside the eager function that defines it and that runs where the kernel cannot."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.core.kernels.adaln import adaln_modulate
    from noiseworks.core.kernels.attention import PartialAttention, block_gather_attention, merge_attention
    from noiseworks.core.kernels.experts import group_by_expert, grouped_ffn
    from noiseworks.core.kernels.fill import philox_noise
    from noiseworks.core.kernels.guidance import cfg_step_reduce
    from noiseworks.core.kernels.gumbel import GumbelDraw, gumbel_argmax_conf
    from noiseworks.core.kernels.logp import TokenLogp, dpo_loss, selective_logp
    from noiseworks.core.kernels.multi import ema_update, pgd_project

_MODULES = {
    "GumbelDraw": "gumbel",
    "PartialAttention": "attention",
    "TokenLogp": "logp",
    "adaln_modulate": "adaln",
    "block_gather_attention": "attention",
    "cfg_step_reduce": "guidance",
    "dpo_loss": "logp",
    "ema_update": "multi",
    "group_by_expert": "experts",
    "grouped_ffn": "experts",
    "gumbel_argmax_conf": "gumbel",
    "merge_attention": "attention",
    "pgd_project": "multi",
    "philox_noise": "fill",
    "selective_logp": "logp",
}

__all__ = [
    "GumbelDraw",
    "PartialAttention",
    "TokenLogp",
    "adaln_modulate",
    "block_gather_attention",
    "cfg_step_reduce",
    "dpo_loss",
    "ema_update",
    "group_by_expert",
    "grouped_ffn",
    "gumbel_argmax_conf",
    "merge_attention",
    "pgd_project",
    "philox_noise",
    "selective_logp",
]


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
