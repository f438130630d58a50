"""The claim: frozen keys make a step cheaper, a guide makes steps fewer, and answers stay as right as they were.

On the masked language model of `countdown`, with prompts that show solved problems: decoding that computes
everything at every step against FreeCache, guided decoding and both; next to them, parallel decoding by confidence
at guided decoding's number of steps, decoding by a threshold, and the guide alone.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, Target
from noiseworks.bench.testbeds.countdown import Problem, few_shot_prompts, problems, verify
from noiseworks.freecache.baselines import full_recompute_generate, guide_generate, threshold_generate
from noiseworks.freecache.data import encode, texts
from noiseworks.freecache.decoding import Decoded, Sampling, freecache_generate
from noiseworks.freecache.loading import Loaded, load, make_guided
from torch import Tensor

HOST, GUIDE = "testbed:countdown", "testbed:countdown-ar"
LENGTH, BLOCK = 16, 8  # tokens of the testbed's answers, and of a block
SOLVED = 0.05  # accuracy of the host below which there is nothing to lose
ARMS = (
    Arm("full", "full recompute", "baseline"),
    Arm("parallel", "confidence-parallel, guided's steps", "baseline"),
    Arm("threshold", "threshold 0.9", "baseline"),
    Arm("guide", "the guide alone", "reference"),
    Arm("lazy", "FreeCache", "method"),
    Arm("stale", "FreeCache, stale commits", "method"),
    Arm("guided", "guided", "method"),
    Arm("both", "guided with FreeCache", "method"),
)
Batch = tuple[Tensor, Tensor]


@cache
def models(name: str, device: str) -> Loaded:
    """Return host and guide, loaded once a process; a guide of another vocabulary is refused later."""
    return load(name, GUIDE, device, "float32")


@cache
def asked(
    name: str, device: str, count: int, tokens: int, size: int, seed: int
) -> tuple[list[Problem], list[Batch]]:
    """Return held-out problems and their prompts of about `tokens` tokens, in batches of `size`."""
    loaded, found = models(name, device), problems("countdown", count, seed, "test")
    prompts = few_shot_prompts(found, tokens, seed)
    parts = [prompts[first : first + size] for first in range(0, count, size)]
    return found, [encode(loaded.tokenizer, part, loaded.spec, loaded.device, False) for part in parts]


def decoder(arm: str, loaded: Loaded, steps: int) -> Callable[[Tensor, Tensor], Decoded]:
    """Return what completes a batch of prompts in an arm.

    Args:
        arm: The arm.
        loaded: Host and guide.
        steps: Steps of parallel decoding.
    """
    model, spec = loaded.model, loaded.spec
    sampling = Sampling(LENGTH, BLOCK, steps if arm == "parallel" else LENGTH)
    if arm in ("full", "parallel"):
        return lambda ids, mask: full_recompute_generate(model, ids, sampling, attention_mask=mask, spec=spec)
    if arm == "threshold":
        return lambda ids, mask: threshold_generate(model, ids, sampling, attention_mask=mask, spec=spec)
    if arm == "guide":
        return lambda ids, mask: guide_generate(
            loaded.guide, ids, attention_mask=mask, gen_length=LENGTH, spec=spec
        )
    if arm in ("guided", "both"):
        windows = "block" if arm == "both" else "none"
        guided = make_guided(loaded, windows=windows, block_length=BLOCK)
        return lambda ids, mask: guided.generate(ids, attention_mask=mask, gen_length=LENGTH)
    return lambda ids, mask: freecache_generate(
        model, ids, attention_mask=mask, commit=arm, spec=spec, **vars(sampling)
    )


@cache
def decoded(
    arm: str, name: str, device: str, count: int, tokens: int, size: int, seed: int
) -> tuple[list[Decoded], list[float]]:
    """Return an arm's completions and wall-clock seconds, batch by batch, after a pair of prompts to warm up."""
    loaded = models(name, device)
    _, batches = asked(name, device, count, tokens, size, seed)
    steps = LENGTH
    if arm == "parallel":
        # What guided decoding takes for a whole answer, rounded up so that both blocks have a step of their own.
        guided, _ = decoded("guided", name, device, count, tokens, size, seed)
        pace = sum(map(pace_of, guided)) / len(guided)
        blocks = LENGTH // BLOCK
        steps = min(LENGTH, blocks * math.ceil(LENGTH / pace / blocks))
    complete, found, seconds = decoder(arm, loaded, steps), [], []
    complete(*(part[:2] for part in batches[0]))
    for ids, mask in batches:
        _wait(loaded.device)
        begin = time.perf_counter()
        found.append(complete(ids, mask))
        _wait(loaded.device)
        seconds.append(time.perf_counter() - begin)
    return found, seconds


def pace_of(run: Decoded) -> float:
    """Return the tokens that a row gets in a step, on average over a batch."""
    stats = run.stats
    if stats.row_steps:
        return sum(stats.written) / sum(stats.row_steps)
    return LENGTH / stats.steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on one seed: right answers and seconds at both prompt lengths."""
    settings, name = context.settings, context.model or HOST
    metrics: dict[str, Any] = {}
    for place, (suffix, count, tokens) in enumerate(
        (("", settings["problems"], settings["tokens"]), ("_long", settings["long"], settings["long_tokens"]))
    ):
        context.progress(place, 2, f"{arm}: prompts of {tokens} tokens")
        where = (name, context.device, count, tokens, settings["batch"], seed)
        metrics |= {key + suffix: value for key, value in measured(arm, where).items()}
    notes = ()
    if arm == "guide":
        notes = (
            "The guide alone is an arm of its own: where it is more often right than the model, some of "
            "guided decoding's accuracy may come from what it approves.",
        )
    return Measurement(metrics, notes=notes)


def measured(arm: str, where: tuple) -> dict[str, Any]:
    """Return the metrics of an arm at one prompt length."""
    loaded, (found, batches) = models(*where[:2]), asked(*where)
    runs, seconds = decoded(arm, *where)
    reference, _ = decoded("full", *where)
    right: list[float] = []
    agreement: list[float] = []
    for run, base, (ids, _) in zip(runs, reference, batches, strict=True):
        answers = run.sequences[:, ids.shape[1] :]
        part = found[len(right) : len(right) + len(answers)]
        words = texts(loaded.tokenizer, answers, loaded.spec)
        right += [float(verify(one, text)) for one, text in zip(part, words, strict=True)]
        same = answers == base.sequences[:, ids.shape[1] :]
        agreement += same.double().mean(dim=1).tolist()
    metrics = {"accuracy": right, "agreement": agreement, "seconds": seconds}
    if arm != "guide":
        metrics["tokens_per_step"] = [pace_of(run) for run in runs]
        metrics["rows"] = [run.stats.rows / len(run.sequences) for run in runs]
    return metrics


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: the model answers nearly nothing, so nothing can be lost."""
    values = [value for one in measurements["full"] for value in one.metrics["accuracy"]]
    accuracy = sum(values) / len(values)
    return None if accuracy >= SOLVED else f"the model answers only {accuracy:.0%} of the problems"


def _sizes(problems: int, long: int, batch: int, tokens: int = 512) -> dict[str, int]:
    return {"problems": problems, "long": long, "batch": batch, "tokens": tokens, "long_tokens": 2 * tokens}


CLAIM = Claim(
    method="freecache",
    paper="FlashDLM: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion "
    "(ICLR 2026, arXiv 2505.21467)",
    statement=(
        "Freezing the keys and values of clean tokens and letting a small autoregressive model approve drafts "
        "makes masked language models several times faster at the same accuracy (paper: 12 times on average, up "
        "to 34 times)."
    ),
    testbed="countdown",
    arms=ARMS,
    targets=(
        Target("FreeCache's seconds, 512 tokens", "seconds", "lazy", "full", "ratio", 1 / 2, "lower"),
        Target("seconds of both, 1024 tokens", "seconds_long", "both", "full", "ratio", 1 / 5, "lower"),
        Target("tokens a step, guided", "tokens_per_step", "guided", "full", "ratio", 3, "higher"),
        Target("guided at equal steps", "accuracy", "guided", "parallel", "difference", 0.0, "higher"),
        Target("FreeCache's accuracy", "accuracy", "lazy", "full", "difference", -0.01, "higher", guard=True),
        Target("guided accuracy", "accuracy", "guided", "full", "difference", -0.01, "higher", guard=True),
        Target(
            "accuracy of both, 1024",
            "accuracy_long",
            "both",
            "full",
            "difference",
            -0.01,
            "higher",
            guard=True,
        ),
    ),
    scales={
        "smoke": Scale((1000,), 300, _sizes(4, 2, 2, 64)),
        "quick": Scale((1000,), 120, _sizes(12, 4, 4)),
        "laptop": Scale((1000, 1001, 1002), 1200, _sizes(48, 16, 8)),
    },
    run=run_arm,
    units="problem",
    columns={
        "accuracy": "right, 512 tokens",
        "seconds": "seconds a batch",
        "rows": "rows a problem",
        "tokens_per_step": "tokens a step",
        "agreement": "tokens as full recompute",
        "accuracy_long": "right, 1024 tokens",
        "seconds_long": "seconds a batch, 1024",
    },
    precondition=precondition,
)
