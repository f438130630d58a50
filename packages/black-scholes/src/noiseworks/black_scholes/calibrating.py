"""Strikes of each concept's own: the match that plain images of it reach."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from noiseworks.black_scholes.scorers import Scorer, score
from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.output import write_json
from noiseworks.kits.diffusers_hosts.drawing import draw
from noiseworks.kits.diffusers_hosts.options import Sampling

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def calibrate_strikes(
    pipe: "DiffusionPipeline",
    concepts: Sequence[str],
    scorer: Scorer,
    sampling: Sampling,
    *,
    images: int = 8,
    quantile: float = 0.95,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Return the strike of each concept: a quantile of the matches of plain images of it.

    Args:
        pipe: The pipeline, with nothing attached.
        concepts: Texts.
        scorer: The scorer that will be used.
        sampling: How to draw.
        images: Images a concept.
        quantile: Which match of them, 0 to 1.
        progress: Called with (images done, images in all).
    """
    check_number("images", images, low=1, integer=True)
    check_number("quantile", quantile, low=0, high=1)
    texts = [concept for concept in dict.fromkeys(concepts) for _ in range(images)]
    found, done = [], 0
    for batch in draw(pipe, texts, sampling, "pt"):
        rows = [[text] for text in texts[done : done + len(batch)]]
        found.append(score(scorer, batch.float(), rows)[:, 0])
        done += len(batch)
        if progress is not None:
            progress(done, len(texts))
    matches = torch.cat(found).view(-1, images).quantile(quantile, dim=1)
    return dict(zip(dict.fromkeys(concepts), matches.tolist(), strict=True))


def write_strikes(path: Path, strikes: Mapping[str, float]) -> None:
    """Write strikes as a JSON file."""
    write_json(path, {"kind": "black-scholes/strikes", "strikes": dict(strikes)})


def read_strikes(path: Path) -> dict[str, float]:
    """Return the strikes of a file.

    Raises:
        InputError: When it holds none.
    """
    try:
        found = json.loads(Path(path).read_text())
        strikes = {str(text): float(value) for text, value in found["strikes"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no strikes ({error}); calibrate writes such a file") from None
    if not all(0 < value < float("inf") for value in strikes.values()):
        raise InputError(f"{path} holds a strike that is not above 0")
    return strikes
