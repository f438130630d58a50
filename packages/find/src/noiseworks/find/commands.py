"""What `noiseworks-find` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.options import Seed, Spread, Whole
from noiseworks.core.output import results
from noiseworks.find.options import Contest, Fitting, Learned, Objective
from noiseworks.kits.diffusers_hosts.options import Hardware
from noiseworks.kits.image_tuning.options import RewardChoice, Rollout, Subject
from noiseworks.kits.training import check_run, open_run

NOISE = "find/noise"
IMAGES = FolderKind("find/images", ("*.png", "images.json"), "images.json")
COMPARISON = FolderKind("find/comparison", ("*.png", "comparison.json"), "comparison.json")


def fit(
    *,
    model: str,
    prompt: str,
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    objective: Spread[Objective] = Objective(),
    rollout: Spread[Rollout] = Rollout(),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Learn from which noise a pipeline draws a prompt right; the same command goes on with a stopped fit.

    Args:
        model: A text-to-image pipeline (Stable Diffusion 1, 2, XL, 3, FLUX): a directory, a hub id or testbed:<name>.
        prompt: The prompt.
        out: Folder for config.json, metrics.csv, checkpoints and the distribution, `noise`.
        choice: What images are scored by.
        objective: The distribution and its loss.
        rollout: How the pipeline draws.
        fitting: Length and step size.

    Returns:
        Images scored, mean reward of the first and of the last tenth, mean |mu| and sigma, and the folder.
    """
    settings = {"model": model, "prompt": prompt, "choice": choice, "objective": objective}
    settings |= {"rollout": rollout, "fitting": fitting}
    check_run(out, settings)
    check_folder(out / "noise", NOISE)
    text = _one(model, prompt)
    from noiseworks.find.reports import figures_of, fit_of, opened

    drawing = opened(model, text, rollout, Hardware(fitting.device))
    found = fit_of(drawing, choice.reward, fitting, objective)
    with open_run(out, settings) as run:
        found.fit(run).save_pretrained(out / "noise", text)
    return {"out": str(out / "noise"), **figures_of(found)}


def generate(
    *,
    learned: Spread[Learned],
    out: Path,
    count: Whole = 8,
    seed: Seed = 0,
    rollout: Spread[Rollout] = Rollout(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Draw images of the prompt from noise of a learned distribution.

    Args:
        learned: The distribution and its pipeline.
        out: Folder for the images and `images.json`.
        count: Images.
        seed: Of all noise.
        rollout: How the pipeline draws.
        hardware: Where the model runs.

    Returns:
        The folder, and the prompt.
    """
    check_folder(out, IMAGES, sources=(learned.model, learned.noise))
    if count < 1:
        raise InputError(f"count must be at least 1, got {count}")
    from noiseworks.find.reports import drawing_of, images_from
    from noiseworks.kits.pictures import to_pixels, write_picture

    policy, drawing = drawing_of(learned, hardware, rollout)
    images = images_from(drawing, policy, count, seed)
    said = {"prompt": drawing.prompt, "noise": str(learned.noise), "seed": seed}
    with results(out, IMAGES, said) as folder:
        for number, pixels in enumerate(to_pixels(images)):
            write_picture(pixels, folder / f"{number:04d}.png")
    return {"out": str(out), "prompt": drawing.prompt}


def evaluate(
    *,
    learned: Spread[Learned],
    choice: Spread[RewardChoice] = RewardChoice(),
    contest: Spread[Contest] = Contest(),
    rollout: Spread[Rollout] = Rollout(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Compare a learned distribution with standard normal noise, on fresh draws.

    Args:
        learned: The distribution and its pipeline.
        choice: What images are scored by.
        contest: How many images, and what counts as a success.
        rollout: How the pipeline draws.
        hardware: Where the model runs.

    Returns:
        For both mean reward, share of successes, and mean distance between two images.
    """
    from noiseworks.find.reports import drawing_of, measured
    from noiseworks.kits.image_tuning import named_reward

    reward = named_reward(choice.reward, "find")
    policy, drawing = drawing_of(learned, hardware, rollout)
    return measured(drawing, {"standard": None, "find": policy}, reward, contest)[0]


def compare(
    *,
    model: str,
    prompt: str,
    out: Path,
    choice: Spread[RewardChoice] = RewardChoice(),
    objective: Spread[Objective] = Objective(),
    rollout: Spread[Rollout] = Rollout(),
    fitting: Spread[Fitting] = Fitting(),
    contest: Spread[Contest] = Contest(),
) -> dict[str, Any]:
    """Try it on your own model: FIND beside other uses of as many images, with seconds and peak memory.

    Args:
        model: A text-to-image pipeline.
        prompt: The prompt.
        out: Folder for `comparison.json` and `images.png`, a row of images a method, standard normal noise first.
        choice: What images are scored by.
        objective: FIND's distribution and loss.
        rollout: How the pipeline draws.
        fitting: Length and step size; the others score as many images.
        contest: How many images are compared, and what counts as a success.

    Returns:
        For standard normal noise, the best of many noises, the cross-entropy method and FIND what eval measures, the
        seconds of the fit, and the process's peak memory.
    """
    check_folder(out, COMPARISON, sources=(model,))
    text = _one(model, prompt)
    from noiseworks.find.reports import compared, opened

    drawing = opened(model, text, rollout, Hardware(fitting.device))
    figures, images = compared(drawing, choice.reward, fitting, objective, contest)
    from noiseworks.kits.pictures import grid, to_pixels, write_picture

    rows = {name: to_pixels(one) for name, one in images.items()}
    picture = grid(rows, scale=max(1, 64 // rows["find"].shape[1]))
    with results(out, COMPARISON, {"model": model, "prompt": text, "figures": figures}) as folder:
        write_picture(picture, folder / "images.png")
    return figures


def _one(model: str, prompt: str) -> str:
    texts = Subject(model, prompt).texts()
    if len(texts) != 1:
        raise InputError(
            f"{prompt} holds {len(texts)} prompts: a distribution is of one prompt, fit each by itself"
        )
    return texts[0]
