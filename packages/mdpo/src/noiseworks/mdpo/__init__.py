"""MDPO and RCR (arXiv 2508.13148): better decoding, and reinforcement learning, for masked diffusion LMs."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.mdpo.advantages import compute_advantages, select_steps, step_returns
    from noiseworks.mdpo.config import MDPOConfig
    from noiseworks.mdpo.objective import diffu_grpo_loss, kl_estimate, mdpo_loss, token_log_probs
    from noiseworks.mdpo.remasking import Decoding, GenerationOutput, rcr_generate
    from noiseworks.mdpo.rewards import bundled_reward, math_equal, score_completions, solves_countdown
    from noiseworks.mdpo.rollouts import Evaluation, Scoring, roll_out, summarize
    from noiseworks.mdpo.selection import Selection, select_over_denoised
    from noiseworks.mdpo.trace import Trace
    from noiseworks.mdpo.training import MDPOTrainer, TrainResult
    from noiseworks.mdpo.viewer import html_page, view_trace

_HOME = {
    "Decoding": "remasking",
    "Evaluation": "rollouts",
    "GenerationOutput": "remasking",
    "MDPOConfig": "config",
    "MDPOTrainer": "training",
    "Scoring": "rollouts",
    "Selection": "selection",
    "Trace": "trace",
    "TrainResult": "training",
    "bundled_reward": "rewards",
    "compute_advantages": "advantages",
    "diffu_grpo_loss": "objective",
    "html_page": "viewer",
    "kl_estimate": "objective",
    "math_equal": "rewards",
    "mdpo_loss": "objective",
    "rcr_generate": "remasking",
    "roll_out": "rollouts",
    "score_completions": "rewards",
    "select_over_denoised": "selection",
    "select_steps": "advantages",
    "solves_countdown": "rewards",
    "step_returns": "advantages",
    "summarize": "rollouts",
    "token_log_probs": "objective",
    "view_trace": "viewer",
}

__all__ = [
    "Decoding",
    "Evaluation",
    "GenerationOutput",
    "MDPOConfig",
    "MDPOTrainer",
    "Scoring",
    "Selection",
    "Trace",
    "TrainResult",
    "bundled_reward",
    "compute_advantages",
    "diffu_grpo_loss",
    "html_page",
    "kl_estimate",
    "math_equal",
    "mdpo_loss",
    "rcr_generate",
    "roll_out",
    "score_completions",
    "select_over_denoised",
    "select_steps",
    "solves_countdown",
    "step_returns",
    "summarize",
    "token_log_probs",
    "view_trace",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
