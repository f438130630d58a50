"""Adaptive Guidance and LinearAG (arXiv 2312.12487): guidance with fewer network evaluations."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.linear_ag.diffusers import GuidanceHandle, GuidanceReport, attach
    from noiseworks.linear_ag.guidance import Action
    from noiseworks.linear_ag.linear import LinearCoefficients, LinearGuidance
    from noiseworks.linear_ag.policies import (
        AdaptiveGuidance,
        FixedPolicy,
        GuidancePolicy,
        IntervalGuidance,
        ReuseGuidance,
    )

_HOME = {
    "Action": "guidance",
    "AdaptiveGuidance": "policies",
    "FixedPolicy": "policies",
    "GuidanceHandle": "diffusers",
    "GuidancePolicy": "policies",
    "GuidanceReport": "diffusers",
    "IntervalGuidance": "policies",
    "LinearCoefficients": "linear",
    "LinearGuidance": "linear",
    "ReuseGuidance": "policies",
    "attach": "diffusers",
}

__all__ = [
    "Action",
    "AdaptiveGuidance",
    "FixedPolicy",
    "GuidanceHandle",
    "GuidancePolicy",
    "GuidanceReport",
    "IntervalGuidance",
    "LinearCoefficients",
    "LinearGuidance",
    "ReuseGuidance",
    "attach",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
