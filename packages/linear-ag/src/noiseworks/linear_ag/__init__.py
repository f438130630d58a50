"""Adaptive Guidance and LinearAG (arXiv 2312.12487): guidance with fewer network evaluations."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.linear_ag.artifacts import load_policy, save_policy
    from noiseworks.linear_ag.calibration import calibrate, fit_linear
    from noiseworks.linear_ag.diffusers import GuidanceHandle, GuidanceReport, attach
    from noiseworks.linear_ag.guidance import Action
    from noiseworks.linear_ag.guider import AdaptiveClassifierFreeGuidance
    from noiseworks.linear_ag.linear import LinearCoefficients, LinearGuidance
    from noiseworks.linear_ag.policies import (
        AdaptiveGuidance,
        FixedPolicy,
        GuidancePolicy,
        IntervalGuidance,
        ReuseGuidance,
    )
    from noiseworks.linear_ag.policy_search import search_policy
    from noiseworks.linear_ag.sampling import Sampling
    from noiseworks.linear_ag.search import SearchSettings

_HOME = {
    "Action": "guidance",
    "AdaptiveClassifierFreeGuidance": "guider",
    "AdaptiveGuidance": "policies",
    "FixedPolicy": "policies",
    "GuidanceHandle": "diffusers",
    "GuidancePolicy": "policies",
    "GuidanceReport": "diffusers",
    "IntervalGuidance": "policies",
    "LinearCoefficients": "linear",
    "LinearGuidance": "linear",
    "ReuseGuidance": "policies",
    "Sampling": "sampling",
    "SearchSettings": "search",
    "attach": "diffusers",
    "calibrate": "calibration",
    "fit_linear": "calibration",
    "load_policy": "artifacts",
    "save_policy": "artifacts",
    "search_policy": "policy_search",
}

__all__ = [
    "Action",
    "AdaptiveClassifierFreeGuidance",
    "AdaptiveGuidance",
    "FixedPolicy",
    "GuidanceHandle",
    "GuidancePolicy",
    "GuidanceReport",
    "IntervalGuidance",
    "LinearCoefficients",
    "LinearGuidance",
    "ReuseGuidance",
    "Sampling",
    "SearchSettings",
    "attach",
    "calibrate",
    "fit_linear",
    "load_policy",
    "save_policy",
    "search_policy",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
