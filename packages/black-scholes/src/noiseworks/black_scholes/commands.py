"""What `noiseworks-black-scholes` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.black_scholes.options import Choosing, Contest, Pricing, Watching, split_concepts
from noiseworks.core.artifacts import FolderKind
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread, Whole
from noiseworks.core.output import check_file, progress_bar, results, write_rows
from noiseworks.kits.diffusers_hosts.options import Drawing, Hardware, Sampling

FAMILIES = ("sd", "sdxl", "sd3", "flux", "pixart")
CONFIG = "config.json"
IMAGES = FolderKind("black-scholes/images", ("*.png", "trace.csv", CONFIG), CONFIG)
COMPARISON = FolderKind("black-scholes/comparison", ("comparison.csv", "*.png", CONFIG), CONFIG)
WATCHING = ("bs", "softmin", "clip-min")


def generate(
    *,
    drawing: Spread[Drawing],
    out: Path,
    choosing: Spread[Choosing] = Choosing(),
    pricing: Spread[Pricing] = Pricing(),
    watching: Spread[Watching] = Watching(),
    sampling: Spread[Sampling] = Sampling(num_inference_steps=50),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Draw images that show several concepts at once; a line of the prompts is "a rabbit | a teapot".

    Args:
        drawing: What is drawn.
        out: Folder for the images, `trace.csv` (choice, scores and prices of each step), `trace.png` and `config.json`.
        choosing: What decides.
        pricing: Of bs and softmin.
        watching: How the image in the making is looked at.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The folder, images, and the mean share of the steps that each concept conditioned.
    """
    _check_watching(watching, (choosing.policy,))
    lines = drawing.begin(out, IMAGES, choosing.strikes)
    concepts = None if choosing.policy == "syntax" else split_concepts(lines)
    from noiseworks.black_scholes.comparison import draw_blends
    from noiseworks.black_scholes.reports import write_blend
    from noiseworks.black_scholes.syntax import parse_prompts

    strikes = _strikes(choosing.strikes)
    if concepts is None:
        concepts, policy = parse_prompts(lines)
    else:
        policy = _named(choosing.policy, pricing, strikes)
    pipe, scorer = _load(drawing, watching, hardware)
    with progress_bar("drawing") as progress:
        found = draw_blends(
            pipe, concepts, {"blend": policy}, sampling, scorer=scorer, watching=watching, progress=progress
        )["blend"]
    settings = {
        "drawing": drawing,
        "choosing": choosing,
        "pricing": pricing,
        "watching": watching,
        "sampling": sampling,
    }
    with results(out, IMAGES, settings) as folder:
        shares = write_blend(folder, found)
    return {"out": str(out), "images": len(concepts), "shares": shares}


def compare(
    *,
    drawing: Spread[Drawing],
    out: Path,
    contest: Spread[Contest] = Contest(),
    strikes: Path | None = None,
    pricing: Spread[Pricing] = Pricing(),
    watching: Spread[Watching] = Watching(),
    sampling: Spread[Sampling] = Sampling(num_inference_steps=50),
    hardware: Spread[Hardware] = Hardware(),
) -> list[dict[str, Any]]:
    """Try it on your own model: every policy on the same concepts from the same noise.

    Args:
        drawing: What is drawn; a line of the prompts is "a rabbit | a teapot".
        out: Folder for `comparison.csv`, `images.png` (a row a policy) and `config.json`.
        contest: What is compared.
        strikes: A file of strikes, one a concept, that `calibrate` wrote.
        pricing: Of bs and softmin.
        watching: How the image in the making is looked at.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        A row a policy: mean of the lowest match of an image, mean match, smallest share of the steps, seconds an image.
    """
    _check_watching(watching, WATCHING)
    lines = drawing.begin(out, COMPARISON, strikes)
    concepts = split_concepts(lines)
    if contest.judge is not None:
        resolve_model(contest.judge)
    from noiseworks.black_scholes.comparison import compare_policies
    from noiseworks.black_scholes.scorers import ClipScorer
    from noiseworks.kits.pictures import grid, to_pixels, write_picture

    given = _strikes(strikes)
    pipe, scorer = _load(drawing, watching, hardware)
    judge = None if contest.judge is None else ClipScorer(contest.judge, hardware.torch_device())
    with progress_bar("comparing") as progress:
        rows, found = compare_policies(
            pipe,
            concepts,
            sampling,
            contest,
            pricing,
            scorer=scorer,
            judge=judge,
            watching=watching,
            strikes=given,
            progress=progress,
        )
    with results(out, COMPARISON, {"drawing": drawing, "contest": contest, "sampling": sampling}) as folder:
        write_rows(folder / "comparison.csv", rows)
        shown = {name: to_pixels(part.images[:8]) for name, part in found.items()}
        write_picture(
            grid(shown, scale=max(1, 64 // found[contest.names[0]].images.shape[-1])), folder / "images.png"
        )
    return rows


def calibrate(
    *,
    drawing: Spread[Drawing],
    out: Path,
    images: Whole = 8,
    quantile: float = 0.95,
    watching: Spread[Watching] = Watching(),
    sampling: Spread[Sampling] = Sampling(num_inference_steps=50),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Find the match that plain images of each concept reach, as strikes for `generate --strikes`.

    Args:
        drawing: What is drawn; concepts in lines, or in a line as "a rabbit | a teapot".
        out: JSON file to write.
        images: Images a concept.
        quantile: Which match of them is the strike, 0 to 1.
        watching: The scorer.
        sampling: How images are drawn.
        hardware: Where the model runs.

    Returns:
        The strike of each concept.
    """
    from noiseworks.kits.diffusers_hosts.options import read_prompts

    check_number("images", images, low=1, integer=True)
    check_number("quantile", quantile, low=0, high=1)
    _check_watching(watching, WATCHING)
    check_file(out, (".json",))
    concepts = [
        text.strip() for line in read_prompts(drawing.prompts) for text in line.split("|") if text.strip()
    ]
    resolve_model(drawing.model)
    from noiseworks.black_scholes.calibrating import calibrate_strikes, write_strikes

    pipe, scorer = _load(drawing, watching, hardware)
    with progress_bar("calibrating") as progress:
        found = calibrate_strikes(
            pipe, concepts, scorer, sampling, images=images, quantile=quantile, progress=progress
        )
    write_strikes(out, found)
    return {"out": str(out), "strikes": found}


def price(
    *, spot: float, strike: float = 100.0, rate: float = 0.02, sigma: float = 0.1, tau: float = 50.0
) -> dict[str, float]:
    """Price a call: what a concept is worth at a match.

    Args:
        spot: The match, 0 to 100.
        strike: The match at which the concept counts as reached.
        rate: 1 / steps.
        sigma: Volatility.
        tau: Steps that are left.

    Returns:
        The price, its logarithm, and what the released code's formula gives instead.
    """
    if spot <= 0:
        raise InputError(f"spot must be above 0, got {spot}")
    from noiseworks.black_scholes.pricing import call_price

    arguments = (spot, strike, rate, sigma, tau)
    found = float(call_price(*arguments))
    log = float(call_price(*arguments, log=True))
    released = float(call_price(*arguments, kind="released-density"))
    return {"price": found, "log_price": log, "released": released}


def _check_watching(watching: Watching, policies: tuple[str, ...]) -> None:
    if watching.scorer is not None:
        resolve_model(watching.scorer)
    elif any(policy in WATCHING for policy in policies):
        raise InputError("bs, softmin and clip-min watch the image: name a CLIP model with --scorer")


def _strikes(path: Path | None) -> dict[str, float]:
    from noiseworks.black_scholes.calibrating import read_strikes

    return {} if path is None else read_strikes(path)


def _named(name: str, pricing: Pricing, strikes: dict[str, float]) -> Any:
    from noiseworks.black_scholes.policies import named_policy

    return named_policy(name, pricing, strikes)


def _load(drawing: Drawing, watching: Watching, hardware: Hardware) -> tuple[Any, Any]:
    from noiseworks.black_scholes.scorers import ClipScorer
    from noiseworks.kits.diffusers_hosts.loading import load_pipeline

    device = hardware.torch_device()
    pipe = load_pipeline(drawing.model, device, hardware.torch_dtype(), FAMILIES)
    return pipe, None if watching.scorer is None else ClipScorer(watching.scorer, device)
