"""What `noiseworks-linear-ag` runs: each verb is one of these functions."""

import json
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noiseworks.core.artifacts import FolderKind, atomic_directory, check_folder
from noiseworks.core.checks import check_number
from noiseworks.linear_ag import calibration, policy_search
from noiseworks.linear_ag.artifacts import KIND as POLICY
from noiseworks.linear_ag.artifacts import save_policy
from noiseworks.linear_ag.comparison import PolicyScore, compare_policies, image_grid
from noiseworks.linear_ag.diffusers import attach
from noiseworks.linear_ag.drawing import (
    Options,
    load_drawing,
    progress_bar,
    prompts_for,
    read_prompts,
    write_config,
    write_rows,
)
from noiseworks.linear_ag.linear import KIND as COEFFICIENTS
from noiseworks.linear_ag.linear import LinearCoefficients
from noiseworks.linear_ag.naming import Ingredients, named_policy, needs_coefficients
from noiseworks.linear_ag.plots import plot_trace
from noiseworks.linear_ag.policies import AdaptiveGuidance, GuidancePolicy
from noiseworks.linear_ag.sampling import Prompts, Sampling, record_similarity, sample
from noiseworks.linear_ag.search import SearchSettings
from PIL import Image

_CONFIG = "config.yaml"
_IMAGES = FolderKind(
    "linear-ag/images", ("[0-9]*.png", "trace.png", "metrics.csv", "report.json", _CONFIG), _CONFIG
)
_SIMILARITY = FolderKind("linear-ag/similarity", ("gamma.csv", _CONFIG), _CONFIG)
_COMPARISON = FolderKind(
    "linear-ag/comparison", ("comparison.csv", "report.json", "images.png", _CONFIG), _CONFIG
)

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from rich.table import Table


def generate(
    *,
    drawing: Options,
    out: Path,
    threshold: float = 0.99,
    space: str = "auto",
    policy: str = "ag",
    coefs: Path | None = None,
) -> dict[str, Any]:
    """Draw images under a guidance policy and report what it cost.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for the images, `report.json`, `metrics.csv`, `config.yaml` and `trace.png`.
        threshold: Adaptive Guidance's similarity; above 1 means full guidance throughout.
        space: auto, x_minus_eps, x0 or eps.
        policy: ag, cfg, cond, alternating, linear or linear-all (with --coefs), first:0.5 (StepAG), last:0.5,
            interval:0.2-0.8, reuse:2, one digit a step, or a folder that calibrate or search wrote.
        coefs: Folder of LinearAG coefficients.

    Returns:
        The output folder, mean network evaluations a sample, and the share of full guidance that they are.
    """
    check_folder(out, _IMAGES, sources=(drawing.pipeline, drawing.prompts, policy, coefs))
    sampling = drawing.sampling
    adaptive = AdaptiveGuidance(threshold=threshold, space=space)
    coefficients = None if coefs is None else LinearCoefficients.from_pretrained(coefs)
    chosen = named_policy(policy, Ingredients(drawing.steps, adaptive, coefficients))
    pipe, texts = load_drawing(drawing)
    with atomic_directory(out, _IMAGES) as folder, attach(pipe, chosen) as handle:
        images: list = []
        with progress_bar("drawing") as progress:
            for batch in sample(pipe, texts, sampling, "pil", progress):
                images += batch
        for index, image in enumerate(images):
            image.save(folder / f"{index:04d}.png")
        nfe = [n for report in handle.reports for n in report.nfe]
        actions = [row for report in handle.reports for row in report.actions]
        plot_trace(handle.states[0], folder / "trace.png", threshold if policy == "ag" else None)
        write_rows(
            folder / "metrics.csv",
            ("image", "prompt", "nfe", "actions"),
            zip(range(len(nfe)), texts, nfe, actions, strict=True),
        )
        (folder / "report.json").write_text(json.dumps([vars(report) for report in handle.reports]) + "\n")
        chosen_by = {"policy": policy, "threshold": threshold}
        write_config(
            folder, kind=_IMAGES.name, pipeline=drawing.pipeline, sampling=vars(sampling), **chosen_by
        )
    mean = sum(nfe) / len(nfe)
    return {
        "out": str(out),
        "images": len(nfe),
        "mean_nfe": mean,
        "of_full_guidance": mean / handle.report.full_nfe,
    }


def profile(
    *,
    drawing: Options,
    out: Path,
) -> dict[str, Any]:
    """Record how similar the two predictions are along fully guided runs, in every space that the model has.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for `gamma.csv` and `config.yaml`.

    Returns:
        Mean similarity per step, by space.
    """
    check_folder(out, _SIMILARITY, sources=(drawing.pipeline, drawing.prompts))
    sampling = drawing.sampling
    pipe, texts = load_drawing(drawing)
    from noiseworks.kits.diffusers_hosts.levels import prediction_type_of

    flow = prediction_type_of(pipe.scheduler) == "flow_prediction"
    curves = {}
    for space in ("x0", "eps") if flow else ("x_minus_eps", "x0", "eps"):
        with progress_bar(f"similarity in {space}") as progress:
            gamma = record_similarity(pipe, texts, sampling, space, progress)
        curves[space] = gamma[..., 0].mean(dim=1).tolist()
    with atomic_directory(out, _SIMILARITY) as folder:
        rows = ([k, *(curve[k] for curve in curves.values())] for k in range(drawing.steps))
        write_rows(folder / "gamma.csv", ("step", *curves), rows)
        write_config(folder, kind=_SIMILARITY.name, pipeline=drawing.pipeline, sampling=vars(sampling))
    return {"out": str(out), **curves}


def calibrate(
    *,
    drawing: Options,
    out: Path,
    target_nfe: float | None = None,
    max_quality_loss: float | None = None,
    space: str = "auto",
) -> dict[str, Any]:
    """Choose Adaptive Guidance's threshold for a model, number of steps and guidance scale.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for the policy, to be named in `generate --policy`.
        target_nfe: Mean network evaluations a sample to aim at, for instance 30 of 40.
        max_quality_loss: Instead: largest relative squared distance of the final latents to full guidance.
        space: auto, x_minus_eps, x0 or eps.

    Returns:
        The threshold and the folder.
    """
    check_folder(out, POLICY, sources=(drawing.pipeline, drawing.prompts))
    sampling, policy = drawing.sampling, AdaptiveGuidance(space=space)
    if target_nfe is not None:
        check_number("target_nfe", target_nfe, low=drawing.steps + 1, high=2 * drawing.steps)
    pipe, texts = load_drawing(drawing)
    with progress_bar("calibrating") as progress:
        found = calibration.calibrate(
            pipe,
            texts,
            sampling,
            target_nfe=target_nfe,
            max_quality_loss=max_quality_loss,
            policy=policy,
            progress=progress,
        )
    save_policy(out, found)
    return {"out": str(out), "threshold": found.threshold, "space": found.space}


def fit(
    *,
    drawing: Options,
    out: Path,
    ridge: float = 1e-7,
    intercept: bool = False,
) -> dict[str, Any]:
    """Fit LinearAG's coefficients; a stopped fit goes on where it was when run again.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for the coefficients; `<out>.partial` holds the sums until the fit is done.
        ridge: Added to the diagonal of the scaled normal equations.
        intercept: Whether to fit a constant a step.

    Returns:
        Smallest R^2 over the steps, with the regression and with the trivial copy, and the folder.
    """
    import shutil

    check_folder(out, COEFFICIENTS, sources=(drawing.pipeline, drawing.prompts))
    partial = check_folder(out.with_name(f"{out.name}.partial"), calibration.PARTIAL)
    check_number("ridge", ridge, low=0.0)
    sampling = drawing.sampling
    pipe, texts = load_drawing(drawing)
    with progress_bar("fitting") as progress:
        found = calibration.fit_linear(
            pipe, texts, sampling, ridge=ridge, intercept=intercept, partial=partial, progress=progress
        )
    found.save_pretrained(out)
    shutil.rmtree(partial, ignore_errors=True)
    return {
        "out": str(out),
        "lowest_r2": float(found.r2.min()),
        "lowest_r2_of_copy": float(found.r2_copy.min()),
    }


def search(
    *,
    drawing: Options,
    out: Path,
    method: policy_search.Method = "relaxed",
    budget: float = 30.0,
    updates: int = 100,
    scales: tuple[float, ...] = (),
    learning_rate: float = 0.05,
    temperature: float = 1.0,
    gumbel: bool = False,
    cost_weight: float = 0.1,
    entropy_weight: float = 0.0,
    compare: Literal["latent", "image"] = "latent",
    max_evaluations: int = 100,
) -> dict[str, Any]:
    """Search for a fixed guidance policy within a budget of network evaluations.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for the policy, to be named in `generate --policy`.
        method: relaxed (gradient search), truncation or local.
        budget: Network evaluations a sample.
        updates: Gradient steps of the relaxed search.
        scales: Guidance scales that the relaxed search chooses among; by default --scale alone.
        learning_rate: Of the relaxed search.
        temperature: Of its softmax.
        gumbel: Whether Gumbel noise is added to its scores.
        cost_weight: Weight of evaluations above the budget.
        entropy_weight: Weight of the mixture's entropy.
        compare: What the relaxed search compares with full guidance: final latents or decoded images.
        max_evaluations: Policies that the local search may try.

    Returns:
        The policy as digits, its factors on s - 1 where it has any, its evaluations, and the folder.
    """
    check_folder(out, POLICY, sources=(drawing.pipeline, drawing.prompts))
    check_number("max_evaluations", max_evaluations, low=1, integer=True)
    sampling = drawing.sampling
    settings = SearchSettings(
        scales=scales or (drawing.scale,),
        budget=budget,
        updates=updates,
        learning_rate=learning_rate,
        temperature=temperature,
        gumbel=gumbel,
        cost_weight=cost_weight,
        entropy_weight=entropy_weight,
        compare=compare,
    )
    pipe, texts = load_drawing(drawing)
    with progress_bar("searching") as progress:
        found = policy_search.search_policy(
            pipe, texts, sampling, settings, method, max_evaluations, progress
        )
    save_policy(out, found)
    return {"out": str(out), "actions": found.actions, "strengths": found.strengths, "nfe": found.nfe}


@dataclass(frozen=True)
class Comparison:
    """What `bench` returns.

    Attributes:
        out: The folder.
        policies: One row a policy, full guidance first.
        threshold: Adaptive Guidance's threshold, where it took part.
    """

    out: str
    policies: tuple[PolicyScore, ...]
    threshold: float | None

    def __rich__(self) -> "Table":
        from rich.table import Table

        table = Table(title="against full guidance from the same noise")
        for name in ("policy", "steps", "calls", "PSNR (dB)", "SSIM", "s / image", "time ratio"):
            table.add_column(name)
        for row in self.policies:
            numbers = (f"{row.calls:.1f}", f"{row.psnr:.2f}", f"{row.ssim:.4f}", f"{row.seconds:.3f}")
            table.add_row(row.policy, str(row.steps), *numbers, f"{row.time_ratio:.3f}")
        return table


def bench(
    *,
    drawing: Options,
    out: Path,
    policies: str = "ag,cfg:15,first:0.5,cond",
    target_nfe: float | None = None,
    threshold: float = 0.99,
    space: str = "auto",
    coefs: Path | None = None,
    calibration_prompts: str | None = None,
) -> Comparison:
    """Compare guidance policies with full guidance on a model: calls, PSNR and SSIM of the images, seconds.

    What has to be calibrated or fitted is calibrated or fitted first, under other seeds than those compared.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for `comparison.csv`, `images.png` (a row a policy) and `config.yaml`.
        policies: Names as in `generate --policy`, commas between; and cfg:N, full guidance in N steps.
        target_nfe: Calibrate Adaptive Guidance to so many evaluations; otherwise --threshold counts.
        threshold: Adaptive Guidance's similarity.
        space: auto, x_minus_eps, x0 or eps.
        coefs: Folder of LinearAG coefficients; otherwise they are fitted when a policy needs them.
        calibration_prompts: Text file for calibrating and fitting, by default the same prompts.

    Returns:
        A row a policy.
    """
    sources = (drawing.pipeline, drawing.prompts, coefs, calibration_prompts)
    check_folder(out, _COMPARISON, sources=sources)
    names = [name.strip() for name in policies.split(",") if name.strip()]
    sampling, steps = drawing.sampling, drawing.steps
    adaptive = AdaptiveGuidance(threshold=threshold, space=space)
    if target_nfe is not None:
        check_number("target_nfe", target_nfe, low=steps + 1, high=2 * steps)
    coefficients = None if coefs is None else LinearCoefficients.from_pretrained(coefs)
    for name in names:  # refuse bad names before any work
        if coefficients is not None or not needs_coefficients(name):
            _numbered(name, Ingredients(steps, adaptive, coefficients))
    others = None if calibration_prompts is None else read_prompts(calibration_prompts)
    pipe, texts = load_drawing(drawing)
    others = texts if others is None else prompts_for(pipe, others)
    apart = replace(sampling, seed=sampling.seed + len(texts))
    if target_nfe is not None and "ag" in names:
        with progress_bar("calibrating") as progress:
            adaptive = calibration.calibrate(
                pipe, others, apart, target_nfe=target_nfe, policy=adaptive, progress=progress
            )
    if coefficients is None and any(needs_coefficients(name) for name in names):
        with progress_bar("fitting") as progress:
            coefficients = calibration.fit_linear(pipe, others, apart, progress=progress)
    given = Ingredients(steps, adaptive, coefficients)
    chosen = {name: _numbered(name, given) for name in names if name != "cfg"}
    settings = {"pipeline": drawing.pipeline, "sampling": vars(sampling), "threshold": adaptive.threshold}
    scores = _compare(pipe, texts, sampling, chosen, out, settings)
    return Comparison(str(out), tuple(scores), adaptive.threshold if "ag" in names else None)


def _numbered(name: str, given: Ingredients) -> tuple[int, GuidancePolicy]:
    """Return the number of steps and the policy of a name; `cfg:15` is full guidance in 15 steps."""
    kind, _, steps = name.partition(":")
    if kind == "cfg" and steps.isdigit() and int(steps) > 0:
        return int(steps), named_policy("cfg", replace(given, steps=int(steps)))
    return given.steps, named_policy(name, given)


def _compare(
    pipe: "DiffusionPipeline",
    texts: Prompts,
    sampling: Sampling,
    chosen: Mapping[str, tuple[int, GuidancePolicy]],
    out: Path,
    settings: Mapping[str, Any],
) -> list[PolicyScore]:
    with atomic_directory(out, _COMPARISON) as folder, progress_bar("comparing") as progress:
        scores, images = compare_policies(pipe, texts, sampling, chosen, progress)
        header = tuple(field.name for field in fields(PolicyScore))
        write_rows(folder / "comparison.csv", header, map(astuple, scores))
        (folder / "report.json").write_text(json.dumps([asdict(score) for score in scores], indent=2) + "\n")
        Image.fromarray(image_grid(images).numpy()).save(folder / "images.png")
        write_config(folder, kind=_COMPARISON.name, **settings, policies=list(chosen))
    return scores
