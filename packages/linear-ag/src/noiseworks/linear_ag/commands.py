"""What `noiseworks-linear-ag` runs: each verb is one of these functions."""

import shutil
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, atomic_directory, check_folder
from noiseworks.core.options import Spread
from noiseworks.kits.diffusers_hosts.options import Drawing, Hardware, read_prompts
from noiseworks.linear_ag.naming import Ingredients, check_contest, named_policy, parse
from noiseworks.linear_ag.options import Aim, Contest, Making, Regression, Sampling, SearchSettings

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart", "dit")
CONFIG = "config.yaml"
IMAGES = FolderKind("linear-ag/images", ("*.png", "metrics.csv", "report.json", CONFIG), CONFIG)
SIMILARITY = FolderKind("linear-ag/similarity", ("gamma.csv", CONFIG), CONFIG)
COMPARISON = FolderKind("linear-ag/comparison", ("comparison.csv", "*.png", "report.json", CONFIG), CONFIG)
POLICY, COEFFICIENTS = "linear-ag/policy", "linear-ag/coefficients"
PARTIAL = "linear-ag/partial-gram"


def generate(
    *,
    drawing: Spread[Drawing],
    out: Path,
    policy: str = "ag",
    making: Spread[Making] = Making(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Draw images under a guidance policy and report what it cost.

    Args:
        drawing: What is drawn.
        out: Folder for the images, `report.json`, `metrics.csv`, `config.yaml` and `trace.png`.
        policy: ag, cfg, cond, alternating, linear or linear-all (with --coefs), first:0.5 (StepAG), last:0.5,
            interval:0.2-0.8, reuse:2, reuse:3-0.25, one digit a step, or a folder that calibrate or search wrote.
        making: What the policy is made with.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The output folder, mean network evaluations a sample, and the share of full guidance that they are.
    """
    parse(policy, sampling.num_inference_steps)
    texts = drawing.begin(out, IMAGES, policy, making.coefs)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, write_config
    from noiseworks.linear_ag.reports import draw_report

    chosen = named_policy(policy, Ingredients.of(making, sampling.num_inference_steps))
    pipe, texts = load_for(drawing, texts, hardware, FAMILIES)
    with atomic_directory(out, IMAGES) as folder:
        found = draw_report(folder, pipe, texts, sampling, chosen)
        write_config(folder, IMAGES, drawing=drawing, policy=policy, making=making, sampling=sampling)
    return {"out": str(out), **found}


def profile(
    *,
    drawing: Spread[Drawing],
    out: Path,
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Record how similar the two predictions are along fully guided runs, in every space that the model has.

    Args:
        drawing: What is drawn.
        out: Folder for `gamma.csv` and `config.yaml`.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        Mean similarity per step, by space.
    """
    texts = drawing.begin(out, SIMILARITY)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, write_config, write_rows
    from noiseworks.linear_ag.reports import similarity_curves

    curves = similarity_curves(*load_for(drawing, texts, hardware, FAMILIES), sampling)
    with atomic_directory(out, SIMILARITY) as folder:
        steps = range(sampling.num_inference_steps)
        write_rows(folder / "gamma.csv", ("step", *curves), zip(steps, *curves.values(), strict=True))
        write_config(folder, SIMILARITY, drawing=drawing, sampling=sampling)
    return {"out": str(out), **curves}


def calibrate(
    *,
    drawing: Spread[Drawing],
    out: Path,
    aim: Spread[Aim] = Aim(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Choose Adaptive Guidance's threshold for a model, number of steps and guidance scale.

    Args:
        drawing: What is drawn.
        out: Folder for the policy, to be named in `generate --policy`.
        aim: What the threshold is for.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The threshold and the folder.
    """
    aim.check_given(sampling.num_inference_steps)
    texts = drawing.begin(out, POLICY)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, progress_bar
    from noiseworks.linear_ag import calibration
    from noiseworks.linear_ag.artifacts import save_policy

    pipe, texts = load_for(drawing, texts, hardware, FAMILIES)
    with progress_bar("calibrating") as progress:
        found = calibration.calibrate(pipe, texts, sampling, aim, progress=progress)
    save_policy(out, found)
    return {"out": str(out), "threshold": found.threshold, "space": found.space}


def fit(
    *,
    drawing: Spread[Drawing],
    out: Path,
    regression: Spread[Regression] = Regression(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Fit LinearAG's coefficients; a stopped fit goes on where it was when run again.

    Args:
        drawing: What is drawn.
        out: Folder for the coefficients; `<out>.partial` holds the sums until the fit is done.
        regression: How they are fitted.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        Smallest R^2 over the steps, with the regression and with the trivial copy, and the folder.
    """
    check_folder(out, COEFFICIENTS)
    partial = check_folder(out.with_name(f"{out.name}.partial"), PARTIAL)
    texts = drawing.begin(out, COEFFICIENTS)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, progress_bar
    from noiseworks.linear_ag.calibration import fit_linear

    pipe, texts = load_for(drawing, texts, hardware, FAMILIES)
    with progress_bar("fitting") as progress:
        found = fit_linear(pipe, texts, sampling, regression, partial=partial, progress=progress)
    found.save_pretrained(out)
    shutil.rmtree(partial, ignore_errors=True)
    lowest, copied = found.r2.min(), found.r2_copy.min()
    return {"out": str(out), "lowest_r2": float(lowest), "lowest_r2_of_copy": float(copied)}


def search(
    *,
    drawing: Spread[Drawing],
    out: Path,
    settings: Spread[SearchSettings] = SearchSettings(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Search for a fixed guidance policy within a budget of network evaluations.

    Args:
        drawing: What is drawn.
        out: Folder for the policy, to be named in `generate --policy`.
        settings: How it is searched for.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The policy as digits, its factors on s - 1 where it has any, its evaluations, and the folder.
    """
    texts = drawing.begin(out, POLICY)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, progress_bar
    from noiseworks.linear_ag.artifacts import save_policy
    from noiseworks.linear_ag.policy_search import search_policy

    pipe, texts = load_for(drawing, texts, hardware, FAMILIES)
    with progress_bar("searching") as progress:
        found = search_policy(pipe, texts, sampling, settings, progress)
    save_policy(out, found)
    return {"out": str(out), "actions": found.actions, "strengths": found.strengths, "nfe": found.nfe}


def compare(
    *,
    drawing: Spread[Drawing],
    out: Path,
    contest: Spread[Contest] = Contest(),
    making: Spread[Making] = Making(),
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> Any:
    """Try it on your own model: full guidance and other policies beside each other, from the same noise.

    What has to be calibrated or fitted is calibrated or fitted first, under other seeds than those compared.

    Args:
        drawing: What is drawn.
        out: Folder for `comparison.csv`, `images.png` (a row a policy, full guidance first) and `config.yaml`.
        contest: What is compared.
        making: What the policies are made with; coefficients are fitted where none are given.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        A row a policy: calls, PSNR and SSIM to full guidance, seconds an image, peak memory on a GPU.
    """
    steps = sampling.num_inference_steps
    check_contest(contest, steps)
    texts = drawing.begin(out, COMPARISON, making.coefs, contest.calibration_prompts)
    others = None if contest.calibration_prompts is None else read_prompts(contest.calibration_prompts)
    from noiseworks.kits.diffusers_hosts.drawing import load_for, prompts_for, write_config
    from noiseworks.linear_ag.comparison import compare_named

    given = Ingredients.of(making, steps)
    pipe, texts = load_for(drawing, texts, hardware, FAMILIES)
    with atomic_directory(out, COMPARISON) as folder:
        others = texts if others is None else prompts_for(pipe, others)
        found, images = compare_named(pipe, texts, others, sampling, contest, given)
        found.write(folder, images)
        write_config(folder, COMPARISON, drawing=drawing, contest=contest, making=making, sampling=sampling)
    return found
