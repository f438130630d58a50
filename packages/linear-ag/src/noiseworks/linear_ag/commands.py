"""What `noiseworks-linear-ag` runs: each verb is one of these functions."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from noiseworks.core.artifacts import atomic_directory, check_writable
from noiseworks.core.checks import check_number
from noiseworks.core.cli import SPREAD
from noiseworks.core.devices import resolve_device, resolve_dtype
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts.loading import load_pipeline
from noiseworks.linear_ag import calibration, policy_search
from noiseworks.linear_ag.artifacts import load_policy, save_policy
from noiseworks.linear_ag.diffusers import attach
from noiseworks.linear_ag.linear import LinearCoefficients, LinearGuidance
from noiseworks.linear_ag.plots import plot_trace
from noiseworks.linear_ag.policies import AdaptiveGuidance, FixedPolicy, GuidancePolicy
from noiseworks.linear_ag.sampling import Progress, Sampling, record_similarity, sample
from noiseworks.linear_ag.search import SearchSettings
from rich.progress import Progress as Bars

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")


@dataclass(frozen=True)
class Drawing:
    """What the commands share: the model, the prompts and how to draw.

    Attributes:
        pipeline: A directory, a hub id or testbed:<name>.
        prompts: A text file with one prompt a line, or one prompt (class labels for DiT).
        steps: Number of denoising steps.
        scale: Guidance scale, above 1.
        negative: Negative prompt.
        seed: Sample i is drawn with seed + i.
        batch_size: Samples a run.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.
    """

    pipeline: str
    prompts: str
    steps: int = 20
    scale: float = 7.5
    negative: str | None = None
    seed: int = 0
    batch_size: int = 8
    device: str = "auto"
    dtype: str = "float32"

    @property
    def sampling(self) -> Sampling:
        """The same as the library's functions take it."""
        return Sampling(self.steps, self.scale, self.negative, self.batch_size, self.seed)


Options = Annotated[Drawing, SPREAD]


def generate(
    *,
    drawing: Options,
    out: Path,
    threshold: float = 0.99,
    space: str = "auto",
    policy: str = "ag",
    coefs: Path | None = None,
    perp_neg: float = 0.0,
    uncond_zero: float = 0.0,
) -> dict[str, Any]:
    """Draw images under a guidance policy and report what it cost.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for the images, `report.json`, `metrics.csv`, `config.yaml` and `trace.png`.
        threshold: Adaptive Guidance's similarity; above 1 means full guidance throughout.
        space: auto, x_minus_eps, x0 or eps.
        policy: "ag", "cfg", "linear" (with --coefs), one digit a step, or a folder that
            calibrate or search wrote.
        coefs: Folder of LinearAG coefficients.
        perp_neg: With policy ag: weight of --negative as a perpendicular negative prompt, 0 for a plain one.
        uncond_zero: With policy ag: scale of uncond-zero once guidance has ended, 0 for off.

    Returns:
        The output folder, mean network evaluations a sample, and the share of full guidance that they are.
    """
    check_writable(out)
    sampling = drawing.sampling
    chosen = choose_policy(policy, drawing.steps, threshold, space, coefs, perp_neg, uncond_zero)
    pipe, texts = _load(drawing)
    with atomic_directory(out) as folder, attach(pipe, chosen) as handle:
        images: list = []
        with _bar("drawing") as progress:
            for batch in sample(pipe, texts, sampling, "pil", progress):
                images += batch
        for index, image in enumerate(images):
            image.save(folder / f"{index:04d}.png")
        nfe = [n for report in handle.reports for n in report.nfe]
        actions = [row for report in handle.reports for row in report.actions]
        plot_trace(handle.states[0], folder / "trace.png", threshold if policy == "ag" else None)
        _write_rows(
            folder / "metrics.csv",
            ("image", "prompt", "nfe", "actions"),
            zip(range(len(nfe)), texts, nfe, actions, strict=True),
        )
        (folder / "report.json").write_text(json.dumps([vars(report) for report in handle.reports]) + "\n")
        chosen_by = {
            "policy": policy,
            "threshold": threshold,
            "perp_neg": perp_neg,
            "uncond_zero": uncond_zero,
        }
        _write_config(folder, pipeline=drawing.pipeline, sampling=vars(sampling), **chosen_by)
    mean = sum(nfe) / len(nfe)
    return {
        "out": str(out),
        "images": len(nfe),
        "mean_nfe": mean,
        "of_full_guidance": mean / (2 * drawing.steps),
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
    check_writable(out)
    sampling = drawing.sampling
    pipe, texts = _load(drawing)
    from noiseworks.kits.diffusers_hosts.levels import prediction_type_of

    flow = prediction_type_of(pipe.scheduler) == "flow_prediction"
    curves = {}
    for space in ("x0", "eps") if flow else ("x_minus_eps", "x0", "eps"):
        with _bar(f"similarity in {space}") as progress:
            gamma = record_similarity(pipe, texts, sampling, space, progress)
        curves[space] = gamma[..., 0].mean(dim=1).tolist()
    with atomic_directory(out) as folder:
        rows = ([k, *(curve[k] for curve in curves.values())] for k in range(drawing.steps))
        _write_rows(folder / "gamma.csv", ("step", *curves), rows)
        _write_config(folder, pipeline=drawing.pipeline, sampling=vars(sampling))
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
    check_writable(out)
    sampling, policy = drawing.sampling, AdaptiveGuidance(space=space)
    if target_nfe is not None:
        check_number("target_nfe", target_nfe, low=drawing.steps + 1, high=2 * drawing.steps)
    pipe, texts = _load(drawing)
    with _bar("calibrating") as progress:
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

    check_writable(out)
    check_number("ridge", ridge, low=0.0)
    sampling = drawing.sampling
    pipe, texts = _load(drawing)
    partial = out.with_name(f"{out.name}.partial")
    with _bar("fitting") as progress:
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
    max_evaluations: int = 100,
) -> dict[str, Any]:
    """Search for a fixed guidance policy within a budget of network evaluations.

    Args:
        drawing: The model, the prompts and how to draw.
        out: Folder for the policy, to be named in `generate --policy`.
        method: relaxed (gradient search), truncation or local.
        budget: Network evaluations a sample.
        updates: Gradient steps of the relaxed search.
        max_evaluations: Policies that the local search may try.

    Returns:
        The policy as digits, its evaluations, and the folder.
    """
    check_writable(out)
    check_number("max_evaluations", max_evaluations, low=1, integer=True)
    sampling = drawing.sampling
    settings = replace(SearchSettings(budget=budget, updates=updates), scales=(drawing.scale,))
    pipe, texts = _load(drawing)
    with _bar("searching") as progress:
        found = policy_search.search_policy(
            pipe, texts, sampling, settings, method, max_evaluations, progress
        )
    save_policy(out, found)
    return {"out": str(out), "actions": found.actions, "nfe": found.nfe}


def choose_policy(
    policy: str,
    steps: int,
    threshold: float = 0.99,
    space: str = "auto",
    coefs: Path | None = None,
    perp_neg: float = 0.0,
    uncond_zero: float = 0.0,
) -> GuidancePolicy:
    """Return the policy that a command line names.

    Args:
        policy: "ag", "cfg", "linear", digits, or a folder that `save_policy` wrote.
        steps: T.
        threshold: For "ag".
        space: For "ag".
        coefs: Folder of coefficients, for "linear".
        perp_neg: For "ag".
        uncond_zero: For "ag".

    Raises:
        InputError: When the name is none of these, or does not fit the number of steps.
    """
    if policy == "ag":
        return AdaptiveGuidance(threshold=threshold, space=space, perp_neg=perp_neg, uncond_zero=uncond_zero)
    if perp_neg or uncond_zero:
        raise InputError(f"--perp-neg and --uncond-zero go with --policy ag, got --policy {policy}")
    if policy == "cfg":
        return FixedPolicy(actions="2" * steps)
    if policy == "linear":
        if coefs is None:
            raise InputError("policy linear needs --coefs, a folder that `fit` wrote")
        coefficients = LinearCoefficients.from_pretrained(coefs)
        if coefficients.num_steps != steps:
            raise InputError(f"coefficients are for {coefficients.num_steps} steps, got --steps {steps}")
        return LinearGuidance(coefficients=coefficients)
    if policy.isdigit():
        if len(policy) != steps:
            raise InputError(f"the policy has {len(policy)} digits, got --steps {steps}")
        return FixedPolicy(actions=policy)
    if Path(policy).is_dir():
        return load_policy(policy)
    raise InputError(f"policy must be ag, cfg, linear, one digit a step or a folder, got {policy!r}")


def _load(drawing: Drawing) -> tuple[Any, list]:
    target, precision = resolve_device(drawing.device), resolve_dtype(drawing.dtype)
    prompts = drawing.prompts
    path = Path(prompts)
    if path.suffix == ".txt" and not path.is_file():
        raise InputError(
            f"no prompts file at {prompts}: name a text file with one prompt a line, or one prompt"
        )
    lines = path.read_text().splitlines() if path.suffix == ".txt" else [prompts]
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError(f"no prompts in {prompts}: put one a line")
    pipe = load_pipeline(drawing.pipeline, target, precision, FAMILIES)
    if type(pipe).__name__ != "DiTPipeline":
        return pipe, texts
    if not all(text.isdigit() for text in texts):
        raise InputError("a DiT pipeline takes class labels: give whole numbers as prompts")
    return pipe, [int(text) for text in texts]


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    with Bars(transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _write_rows(path: Path, header: tuple[str, ...], rows: Any) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    path.write_text(text.getvalue())


def _write_config(folder: Path, **values: Any) -> None:
    # JSON is YAML, and needs no further library.
    record = {**values, "torch": torch.__version__}
    (folder / "config.yaml").write_text(json.dumps(record, indent=2, default=str) + "\n")
