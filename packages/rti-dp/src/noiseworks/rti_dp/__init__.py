"""RTI-DP (arXiv 2508.05396): diffusion policies that replan at every step from their previous plan."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.rti_dp.baselines import EnsemblePolicy, TruncatedPolicy
    from noiseworks.rti_dp.discrete import DiscreteSpec
    from noiseworks.rti_dp.gaussian import Gaussian, GaussianHost, contraction
    from noiseworks.rti_dp.policy import RTIPolicy
    from noiseworks.rti_dp.published import published_steps
    from noiseworks.rti_dp.scaling import scale_dataset
    from noiseworks.rti_dp.schedule import check_schedule, choose_schedule
    from noiseworks.rti_dp.stepping import step_table
    from noiseworks.rti_dp.suggestion import Suggestion, suggest_steps, thin_steps

_HOME = {
    "DiscreteSpec": "discrete",
    "EnsemblePolicy": "baselines",
    "Gaussian": "gaussian",
    "GaussianHost": "gaussian",
    "RTIPolicy": "policy",
    "Suggestion": "suggestion",
    "TruncatedPolicy": "baselines",
    "check_schedule": "schedule",
    "choose_schedule": "schedule",
    "contraction": "gaussian",
    "published_steps": "published",
    "scale_dataset": "scaling",
    "step_table": "stepping",
    "suggest_steps": "suggestion",
    "thin_steps": "suggestion",
}

__all__ = [
    "DiscreteSpec",
    "EnsemblePolicy",
    "Gaussian",
    "GaussianHost",
    "RTIPolicy",
    "Suggestion",
    "TruncatedPolicy",
    "check_schedule",
    "choose_schedule",
    "contraction",
    "published_steps",
    "scale_dataset",
    "step_table",
    "suggest_steps",
    "thin_steps",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
