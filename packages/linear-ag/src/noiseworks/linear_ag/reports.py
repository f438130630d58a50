"""What commands leave in a folder: images with their costs, and curves of similarity."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.kits.diffusers_hosts.drawing import Prompts, draw_into, progress_bar, write_rows
from noiseworks.kits.diffusers_hosts.levels import prediction_type_of
from noiseworks.kits.diffusers_hosts.options import Sampling
from noiseworks.linear_ag.diffusers import attach
from noiseworks.linear_ag.plots import plot_trace
from noiseworks.linear_ag.policies import AdaptiveGuidance, GuidancePolicy
from noiseworks.linear_ag.sampling import record_similarity

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def draw_report(
    folder: Path, pipe: "DiffusionPipeline", prompts: Prompts, sampling: Sampling, policy: GuidancePolicy
) -> dict[str, Any]:
    """Draw under a policy into a folder: images, `report.json`, `metrics.csv`, `trace.png`; returns the cost."""
    with attach(pipe, policy) as handle:
        count, reports = draw_into(folder, pipe, prompts, sampling), handle.reports
    nfe = [n for report in reports for n in report.nfe]
    actions = [row for report in reports for row in report.actions]
    threshold = policy.threshold if isinstance(policy, AdaptiveGuidance) else None
    plot_trace(handle.states[0], folder / "trace.png", threshold)
    header = ("image", "prompt", "nfe", "actions")
    write_rows(folder / "metrics.csv", header, zip(range(count), prompts, nfe, actions, strict=True))
    (folder / "report.json").write_text(json.dumps([vars(report) for report in reports]) + "\n")
    mean = sum(nfe) / len(nfe)
    return {"images": count, "mean_nfe": mean, "of_full_guidance": mean / reports[-1].full_nfe}


def similarity_curves(
    pipe: "DiffusionPipeline", prompts: Prompts, sampling: Sampling
) -> dict[str, list[float]]:
    """Return the mean similarity a step along fully guided runs, in every space that the model has."""
    flow = prediction_type_of(pipe.scheduler) == "flow_prediction"
    curves = {}
    for space in ("x0", "eps") if flow else ("x_minus_eps", "x0", "eps"):
        with progress_bar(f"similarity in {space}") as progress:
            gamma = record_similarity(pipe, prompts, sampling, space, progress)
        curves[space] = gamma[..., 0].mean(dim=1).tolist()
    return curves
