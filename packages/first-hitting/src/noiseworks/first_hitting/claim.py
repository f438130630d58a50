"""The claim: first-hitting sampling is many times faster than ancestral sampling, at the same distribution.

Time is measured on a small LLaDA host with a vocabulary of 4,096, quality on a source of text whose exact
conditionals are the denoiser, so that the likelihood of a sample is exact.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, Target
from noiseworks.bench.testbeds.countdown.chain import MarkovText, make_chain
from noiseworks.first_hitting.ancestral import AncestralSettings, ancestral_sample
from noiseworks.first_hitting.denoisers import Denoiser
from noiseworks.first_hitting.metrics import unigram_entropy
from noiseworks.first_hitting.sampling import Settings, fhs_sample
from noiseworks.first_hitting.transformers import host_denoiser
from noiseworks.kits.masked_lm import detect_host, load_host, make_llada
from torch import Tensor

SOURCE_TOKENS, SOURCE_LENGTH = 24, 24
ARMS = (
    Arm("ancestral", "ancestral, float64 Gumbel", "baseline"),
    Arm("ancestral32", "ancestral, float32 Gumbel", "naive"),
    Arm("lazy", "ancestral, draws only at reveals", "reference"),
    Arm("fhs", "first-hitting", "method"),
    Arm("parallel", "first-hitting, 4 tokens a call", "method"),
)


@dataclass
class Stopwatch:
    """A denoiser that counts its own seconds."""

    inner: Denoiser
    seconds: float = 0.0

    def __call__(self, tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
        """Call the denoiser."""
        begin = time.perf_counter()
        try:
            return self.inner(tokens, times, positions)
        finally:
            self.seconds += time.perf_counter() - begin


@cache
def source() -> MarkovText:
    """Return the source of text; its seed is fixed, as a language is."""
    return make_chain(SOURCE_TOKENS, seed=0, classes=SOURCE_TOKENS)


def exact_denoiser(text: MarkovText) -> Denoiser:
    """Return the perfect denoiser of a source; [MASK] is the first id that is no token."""

    def denoise(tokens: Tensor, times: Tensor | None, positions: Tensor) -> Tensor:
        visible = tokens != text.vocabulary
        found = text.conditionals(tokens.masked_fill(~visible, 0), visible)
        return found.gather(1, positions.unsqueeze(-1).expand(-1, -1, text.vocabulary)).log()

    return denoise


@cache
def host(model: str | None, vocabulary: int, device: str):
    """Return the model whose time is measured and its contract: time does not depend on the weights."""
    if model is not None:
        loaded, _, spec = load_host(model)
        return loaded.to(device), spec
    ids = {"mask_token_id": vocabulary - 1, "eos_token_id": vocabulary - 2, "pad_token_id": vocabulary - 2}
    made = make_llada(vocabulary, d_model=128, n_layers=4, **ids).to(device)
    return made, detect_host(made)


def draw(arm: str, denoiser: Denoiser, canvas: Tensor, mask_id: int, num_steps: int, seed: int):
    """Return an arm's samples."""
    if arm in ("fhs", "parallel"):
        steps = -(-canvas.shape[1] // 4) if arm == "parallel" else None
        settings = Settings(mask_id, "exact" if steps is None else "parallel", steps)
        return fhs_sample(denoiser, canvas, settings, seeds=range(seed, seed + len(canvas)))
    method = "gumbel32" if arm == "ancestral32" else "gumbel64"
    settings = AncestralSettings(mask_id, num_steps, method=method, lazy=arm == "lazy")
    return ancestral_sample(denoiser, canvas, settings, generator=torch.Generator().manual_seed(seed))


def run(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on one seed: seconds on the host, likelihood and entropy on the source."""
    sizes = context.settings
    seconds, network, calls = time_host(arm, seed, context)
    context.progress(1, 2, f"{arm}: likelihood")
    # The float64 baseline is drawn in its lazy form, which has the same distribution.
    drawn = "lazy" if arm == "ancestral" else arm
    # The naive arm is in no target, and its draws at every mask cost the most.
    samples = sizes["naive_samples" if arm == "ancestral32" else "samples"]
    nll, entropy = quality(drawn, seed, samples, sizes["quality_steps"])
    metrics = {
        "seconds": seconds,
        "categorical": seconds - network,
        "calls": float(calls),
        "nll": nll.tolist(),
        "entropy": entropy.tolist(),
    }
    series, notes = (
        curves(seed, source(), sizes["curve"]) if arm == "parallel" and sizes["curve"] else ({}, ())
    )
    return Measurement(metrics, series=series, notes=notes)


def time_host(arm: str, seed: int, context: Context) -> tuple[float, float, int]:
    """Return seconds, seconds in the network, and network calls of sampling on the host."""
    sizes = context.settings
    model, spec = host(context.model, sizes["vocabulary"], context.device)
    watch = Stopwatch(host_denoiser(model, spec))
    canvas = torch.full((sizes["rows"], sizes["length"]), spec.mask_id, device=context.device)
    draw(arm, watch, canvas[:, :4], spec.mask_id, 4, seed)  # warm up
    watch.seconds, begin = 0.0, time.perf_counter()
    found = draw(arm, watch, canvas, spec.mask_id, sizes["steps"], seed)
    return time.perf_counter() - begin, watch.seconds, found.calls


@cache
def quality(arm: str, seed: int, samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return nats a token and unigram entropy of each sample of the source's perfect denoiser."""
    text = source()
    denoiser = exact_denoiser(text)
    parts = []
    for first in range(0, samples, 512):
        canvas = torch.full((min(512, samples - first), SOURCE_LENGTH), text.vocabulary)
        parts.append(draw(arm, denoiser, canvas, text.vocabulary, steps, seed * 100_000 + first).tokens)
    tokens = torch.cat(parts)
    return -text.log_likelihood(tokens) / SOURCE_LENGTH, unigram_entropy(tokens)


def curves(seed: int, text: MarkovText, samples: int) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return nats a token against network calls for the three forms that reveal several tokens a call."""
    denoiser, series = exact_denoiser(text), {}
    for variant in ("parallel", "extrapolate", "predictor_corrector"):
        calls, nats = [], []
        for steps in (2, 4, 8, 16, 24):
            canvas = torch.full((samples, SOURCE_LENGTH), text.vocabulary)
            settings = Settings(text.vocabulary, variant, steps)
            found = fhs_sample(denoiser, canvas, settings, seeds=range(seed * 1000, seed * 1000 + samples))
            calls.append(float(found.calls))
            nats.append(float(-text.log_likelihood(found.tokens).mean() / SOURCE_LENGTH))
        series[f"nats a token, {variant}"] = (calls, nats)
    own = -text.log_likelihood(text.sample(2000, SOURCE_LENGTH, seed)).mean() / SOURCE_LENGTH
    return series, (f"Text of the source itself has {float(own):.4f} nats a token.",)


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim is void: categorical draws must be most of the baseline's time."""
    shares = [m.metrics["categorical"] / m.metrics["seconds"] for m in measurements["ancestral"]]
    share = sum(shares) / len(shares)
    return (
        None if share > 0.5 else f"categorical draws are only {share:.0%} of the baseline's time on this host"
    )


CLAIM = Claim(
    method="first-hitting",
    paper="Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate Categorical "
    "Sampling (ICLR 2025, arXiv 2409.02908)",
    statement="First-hitting sampling draws from the same distribution as ancestral sampling, up to 20 times faster.",
    testbed="countdown",
    arms=ARMS,
    targets=(
        Target("seconds, end to end", "seconds", "fhs", "ancestral", "ratio", 1 / 5, "lower"),
        Target("seconds in categorical draws", "categorical", "fhs", "ancestral", "ratio", 1 / 20, "lower"),
        Target("exact NLL not above", "nll", "fhs", "ancestral", "difference", 0.05, "lower", guard=True),
        Target("exact NLL not below", "nll", "fhs", "ancestral", "difference", -0.05, "higher", guard=True),
    ),
    scales={
        "smoke": Scale(
            (1000,),
            300,
            {
                "steps": 8,
                "vocabulary": 256,
                "length": 8,
                "rows": 1,
                "samples": 4,
                "naive_samples": 4,
                "quality_steps": 8,
                "curve": 0,
            },
        ),
        "quick": Scale(
            (1000,),
            120,
            {
                "steps": 512,
                "vocabulary": 4096,
                "length": 16,
                "rows": 1,
                "samples": 64,
                "naive_samples": 64,
                "quality_steps": 512,
                "curve": 0,
            },
        ),
        "laptop": Scale(
            (1000, 1001, 1002),
            900,
            {
                "steps": 4096,
                "vocabulary": 4096,
                "length": 32,
                "rows": 1,
                "samples": 512,
                "naive_samples": 64,
                "quality_steps": 4096,
                "curve": 64,
            },
        ),
        "full": Scale(
            (1000, 1001, 1002),
            36_000,
            {
                "steps": 4096,
                "vocabulary": 50257,
                "length": 1024,
                "rows": 1,
                "samples": 2048,
                "naive_samples": 256,
                "quality_steps": 4096,
                "curve": 256,
            },
        ),
    },
    run=run,
    units="sample",
    columns={
        "seconds": "seconds a sequence",
        "categorical": "of which not network",
        "calls": "network calls",
        "nll": "exact nats a token",
        "entropy": "unigram entropy",
    },
    precondition=precondition,
)
