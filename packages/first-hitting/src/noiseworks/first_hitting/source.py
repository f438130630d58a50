"""Sampling a source of text whose exact conditionals are the denoiser, so that a sample's likelihood is exact."""

from typing import TYPE_CHECKING

import torch
from noiseworks.first_hitting.ancestral import AncestralSample, AncestralSettings, ancestral_sample
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.first_hitting.sampling import Sample, Settings, fhs_sample
from torch import Tensor

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.countdown.chain import MarkovText

LENGTH = 24


def draw(
    arm: str, denoiser: Denoiser, canvas: Tensor, mask_id: int, num_steps: int, seed: int
) -> Sample | AncestralSample:
    """Return an arm's samples of a canvas [B, L]; ancestral arms take `num_steps` steps."""
    if arm in ("fhs", "parallel"):
        steps = -(-canvas.shape[1] // 4) if arm == "parallel" else None
        settings = Settings(mask_id, "exact" if steps is None else "parallel", steps)
        return fhs_sample(denoiser, canvas, settings, seeds=range(seed, seed + len(canvas)))
    method = "gumbel32" if arm == "ancestral32" else "gumbel64"
    settings = AncestralSettings(mask_id, num_steps, method=method, lazy=arm == "lazy")
    return ancestral_sample(denoiser, canvas, settings, generator=torch.Generator().manual_seed(seed))


def exact_denoiser(text: "MarkovText") -> Denoiser:
    """Return the perfect denoiser of a source; [MASK] is the first id that is no token."""

    def denoise(tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
        visible = tokens != text.vocabulary
        found = text.conditionals(tokens.masked_fill(~visible, 0), visible)
        return found.gather(1, positions.unsqueeze(-1).expand(-1, -1, text.vocabulary)).log()

    return denoise


def texts(arm: str, text: "MarkovText", samples: int, steps: int, seed: int) -> Tensor:
    """Return an arm's samples of the perfect denoiser, int64 [samples, 24], drawn in batches of 512."""
    denoiser, mask = exact_denoiser(text), text.vocabulary
    parts = []
    for first in range(0, samples, 512):
        canvas = torch.full((min(512, samples - first), LENGTH), mask)
        parts.append(draw(arm, denoiser, canvas, mask, steps, seed * 100_000 + first).tokens)
    return torch.cat(parts)


def curves(text: "MarkovText", samples: int, seed: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return nats a token against network calls for the three forms that reveal several tokens a call."""
    denoiser, mask, series = exact_denoiser(text), text.vocabulary, {}
    for variant in ("parallel", "extrapolate", "predictor_corrector"):
        calls, nats = [], []
        for steps in (2, 4, 8, 16, 24):
            canvas = torch.full((samples, LENGTH), mask)
            seeds = range(seed * 1000, seed * 1000 + samples)
            found = fhs_sample(denoiser, canvas, Settings(mask, variant, steps), seeds=seeds)
            calls.append(float(found.calls))
            nats.append(float(-text.log_likelihood(found.tokens).mean() / LENGTH))
        series[f"nats a token, {variant}"] = (calls, nats)
    return series


def own_nats(text: "MarkovText", seed: int) -> str:
    """Say how many nats a token text of the source itself has."""
    own = -text.log_likelihood(text.sample(2000, LENGTH, seed)).mean() / LENGTH
    return f"Text of the source itself has {float(own):.4f} nats a token."
