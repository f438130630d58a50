"""Blended prompts beside other methods on one pipeline, for `noiseworks bench compose`."""

from functools import cache
from typing import TYPE_CHECKING

from noiseworks.bench.compose import Composable
from noiseworks.bench.image_host import IMAGE_PIPELINE

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from noiseworks.black_scholes.diffusers import BlendHandle
    from noiseworks.black_scholes.scorers import ClipScorer

SCORER, CONCEPT = "testbed:shapes-clip", "a red circle"


@cache
def _scorer(device: str) -> "ClipScorer":
    from noiseworks.black_scholes import ClipScorer

    return ClipScorer(SCORER, device)


def attach_blend(pipe: "DiffusionPipeline") -> "BlendHandle":
    """Blend one more concept into every prompt, by the price of its call."""
    from noiseworks.black_scholes import attach

    return attach(pipe, [CONCEPT], scorer=_scorer(str(pipe.device)))


COMPOSABLE = Composable("black-scholes", IMAGE_PIPELINE, attach_blend, saves=False)
