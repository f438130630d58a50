"""Block-wise Adaptive Caching (arXiv 2506.13456): transformer diffusion policies that reuse block outputs."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from noiseworks.bac.attaching import CachedPolicy, attach
    from noiseworks.bac.bubbling import bubble_union, most_volatile
    from noiseworks.bac.hosts import find_stack
    from noiseworks.bac.plan import CachePlan, make_plan
    from noiseworks.bac.plots import plot_errors, plot_plan, plot_similarity
    from noiseworks.bac.profiling import FeatureProfile, profile
    from noiseworks.bac.report import ErrorReport, error_report
    from noiseworks.bac.sampling import FusedDiffusionPolicy
    from noiseworks.bac.scheduling import adjacent_schedule, pairwise_schedule, solve
    from noiseworks.bac.teacache import attach_teacache, teacache_threshold

_HOME = {
    "CachePlan": "plan",
    "CachedPolicy": "attaching",
    "ErrorReport": "report",
    "FeatureProfile": "profiling",
    "FusedDiffusionPolicy": "sampling",
    "adjacent_schedule": "scheduling",
    "attach": "attaching",
    "attach_teacache": "teacache",
    "bubble_union": "bubbling",
    "error_report": "report",
    "find_stack": "hosts",
    "make_plan": "plan",
    "most_volatile": "bubbling",
    "pairwise_schedule": "scheduling",
    "plot_errors": "plots",
    "plot_plan": "plots",
    "plot_similarity": "plots",
    "profile": "profiling",
    "solve": "scheduling",
    "teacache_threshold": "teacache",
}

__all__ = [
    "CachePlan",
    "CachedPolicy",
    "ErrorReport",
    "FeatureProfile",
    "FusedDiffusionPolicy",
    "adjacent_schedule",
    "attach",
    "attach_teacache",
    "bubble_union",
    "error_report",
    "find_stack",
    "make_plan",
    "most_volatile",
    "pairwise_schedule",
    "plot_errors",
    "plot_plan",
    "plot_similarity",
    "profile",
    "solve",
    "teacache_threshold",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
