"""The claim: frozen keys make a step cheaper, a guide makes steps fewer, and answers stay as right as they were.

On the masked language model of `countdown`, with prompts that show solved problems: decoding that computes
everything at every step against FreeCache, guided decoding and both; next to them, parallel decoding by confidence
at guided decoding's number of steps, decoding by a threshold, and the guide alone. FreeCache is judged with the
sliding window of the authors' code: where all of the prompt is frozen, the question's keys are those of an answer of
masks, which costs a model of few layers many answers.
"""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, Target
from noiseworks.core.errors import InputError
from noiseworks.freecache.baselines import full_recompute_generate, guide_generate, threshold_generate
from noiseworks.freecache.data import Question, encode, load_task, shown_questions, texts
from noiseworks.freecache.decoding import Decoded, Sampling, freecache_generate
from noiseworks.freecache.loading import Loaded, load, make_guided
from torch import Tensor

HOST, GUIDE = "testbed:countdown", "testbed:countdown-ar"
DATA_VARIABLE, GUIDE_VARIABLE = "NOISEWORKS_FREECACHE_DATA", "NOISEWORKS_FREECACHE_GUIDE"
SOLVED = 0.05  # accuracy of the host below which there is nothing to lose
ARMS = (
    Arm("full", "full recompute", "baseline"),
    Arm("parallel", "confidence-parallel, guided's steps", "baseline"),
    Arm("threshold", "threshold 0.9", "baseline"),
    Arm("guide", "the guide alone", "reference"),
    Arm("sliding", "FreeCache, sliding window", "method"),
    Arm("lazy", "FreeCache, all of the prompt frozen", "method"),
    Arm("stale", "the same, stale commits", "method"),
    Arm("guided", "guided", "method"),
    Arm("both", "guided with FreeCache, sliding window", "method"),
)
LONG = ("full", "guide", "sliding", "both")  # arms that answer behind long prompts too
FEW = ("threshold", "stale")  # arms without a target, which answer the first problems only
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Setup:
    """What is decoded, and how.

    Attributes:
        host: The masked model.
        guide: The autoregressive guide.
        data: File of questions; None for the testbed's problems.
        device: Where both run.
        dtype: Their type.
        seed: Of the problems.
        count: Problems.
        tokens: Length of the prompts, with solved problems before each question.
        batch: Problems at once.
        length: Tokens of an answer.
        block: Tokens of a block.
    """

    host: str
    guide: str
    data: str | None
    device: str
    dtype: str
    seed: int
    count: int
    tokens: int
    batch: int
    length: int
    block: int

    @property
    def sliding(self) -> int:
        """Clean tokens that windows compute anew: four blocks, as in the authors' code (128 and 32)."""
        return 4 * self.block


def setup_of(context: Context, seed: int, *, long: bool) -> Setup:
    """Return the set-up of a seed at one prompt length; at the full scale on the user's questions and guide.

    Raises:
        InputError: At the full scale without questions or guide.
    """
    sizes, guide, data = context.settings, GUIDE, None
    if context.scale == "full":
        missing = [name for name in (DATA_VARIABLE, GUIDE_VARIABLE) if not os.environ.get(name)]
        if missing:
            raise InputError(
                f"the full scale needs {DATA_VARIABLE}, a JSON-lines file with question and answer such as "
                f"GSM8K's, and {GUIDE_VARIABLE}, a causal model; {' and '.join(missing)} not set"
            )
        data, guide = os.environ[DATA_VARIABLE], os.environ[GUIDE_VARIABLE]
    return Setup(
        host=context.model or HOST,
        guide=guide,
        data=data,
        device=context.device,
        dtype=sizes["dtype"],
        seed=seed,
        count=sizes["long" if long else "problems"],
        tokens=sizes["long_tokens" if long else "tokens"],
        batch=sizes["batch"],
        length=sizes["length"],
        block=sizes["block"],
    )


@cache
def models(host: str, guide: str, device: str, dtype: str) -> Loaded:
    """Return host and guide, loaded once a process; a guide of another vocabulary is refused later."""
    return load(host, guide, device, dtype)


def loaded_of(setup: Setup) -> Loaded:
    """Return a set-up's models."""
    return models(setup.host, setup.guide, setup.device, setup.dtype)


@cache
def asked(setup: Setup) -> tuple[list[Question], list[Batch]]:
    """Return questions behind solved ones, prompts of about the same length, and the prompts in batches."""
    loaded = loaded_of(setup)
    if setup.data is None:
        found = load_task("countdown", setup.count, setup.seed, setup.tokens)
    else:
        found = shown_questions(setup.data, loaded.tokenizer, setup.count, setup.tokens, setup.seed)
    prompts = [question.prompt for question in found]
    parts = [prompts[first : first + setup.batch] for first in range(0, len(prompts), setup.batch)]
    return found, [encode(loaded.tokenizer, part, loaded.spec, loaded.device, False) for part in parts]


def decoder(arm: str, setup: Setup, steps: int) -> Callable[[Tensor, Tensor], Decoded]:
    """Return what completes a batch of prompts in an arm.

    Args:
        arm: The arm.
        setup: Models and lengths.
        steps: Steps of parallel decoding.
    """
    loaded = loaded_of(setup)
    model, spec, length = loaded.model, loaded.spec, setup.length
    sampling = Sampling(length, setup.block, steps if arm == "parallel" else length)
    if arm in ("full", "parallel"):
        return lambda ids, mask: full_recompute_generate(model, ids, sampling, attention_mask=mask, spec=spec)
    if arm == "threshold":
        return lambda ids, mask: threshold_generate(model, ids, sampling, attention_mask=mask, spec=spec)
    if arm == "guide":
        return lambda ids, mask: guide_generate(
            loaded.guide, ids, attention_mask=mask, gen_length=length, spec=spec
        )
    if arm in ("guided", "both"):
        windows = "sliding" if arm == "both" else "none"
        guided = make_guided(loaded, windows=windows, block_length=setup.block, sliding=setup.sliding)
        return lambda ids, mask: guided.generate(ids, attention_mask=mask, gen_length=length)
    commit = "stale" if arm == "stale" else "lazy"
    settings = vars(sampling) | {"sliding": setup.sliding if arm == "sliding" else 0}
    return lambda ids, mask: freecache_generate(
        model, ids, attention_mask=mask, commit=commit, spec=spec, **settings
    )


@cache
def decoded(arm: str, setup: Setup, batches: int) -> tuple[list[Decoded], list[float]]:
    """Return completions and wall-clock seconds of the first batches, after a pair of prompts to warm up."""
    loaded, (_, parts) = loaded_of(setup), asked(setup)
    steps = setup.length
    if arm == "parallel":
        # What guided decoding takes for a whole answer, rounded up so that all blocks have as many steps.
        guided, _ = decoded("guided", setup, batches)
        pace = sum(pace_of(run, setup.length) for run in guided) / len(guided)
        blocks = setup.length // setup.block
        steps = min(setup.length, blocks * math.ceil(setup.length / pace / blocks))
    complete, found, seconds = decoder(arm, setup, steps), [], []
    complete(*(part[:2] for part in parts[0]))
    for ids, mask in parts[:batches]:
        _wait(loaded.device)
        begin = time.perf_counter()
        found.append(complete(ids, mask))
        _wait(loaded.device)
        seconds.append(time.perf_counter() - begin)
    return found, seconds


def pace_of(run: Decoded, length: int) -> float:
    """Return the tokens that a row gets in a step, on average over a batch."""
    stats = run.stats
    if stats.row_steps:
        return sum(stats.written) / sum(stats.row_steps)
    return length / stats.steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on one seed: right answers and seconds, at both prompt lengths where it has targets."""
    settings = context.settings
    few = settings["few"] if arm in FEW else settings["problems"]
    context.progress(0, 2, f"{arm}: prompts of {settings['tokens']} tokens")
    metrics = measured(arm, setup_of(context, seed, long=False), few)
    if arm in LONG:
        context.progress(1, 2, f"{arm}: prompts of {settings['long_tokens']} tokens")
        long = measured(arm, setup_of(context, seed, long=True), settings["long"])
        metrics |= {f"{key}_long": value for key, value in long.items()}
    notes = ()
    if arm == "guide":
        notes = (
            "The guide alone is an arm of its own: where it is more often right than the model, some of "
            "guided decoding's accuracy may come from what it approves.",
        )
    return Measurement(metrics, notes=notes)


def measured(arm: str, setup: Setup, count: int) -> dict[str, Any]:
    """Return the metrics of an arm on the first problems of a set-up."""
    loaded, (found, batches) = loaded_of(setup), asked(setup)
    number = -(-count // setup.batch)
    runs, seconds = decoded(arm, setup, number)
    reference, _ = decoded("full", setup, len(batches))
    right: list[float] = []
    agreement: list[float] = []
    for run, base, (ids, _) in zip(runs, reference, batches, strict=False):
        answers = run.sequences[:, ids.shape[1] :]
        part = found[len(right) : len(right) + len(answers)]
        words = texts(loaded.tokenizer, answers, loaded.spec)
        right += [float(one.right(text)) for one, text in zip(part, words, strict=True)]
        same = answers == base.sequences[:, ids.shape[1] :]
        agreement += same.double().mean(dim=1).tolist()
    metrics = {"accuracy": right, "agreement": agreement, "seconds": seconds}
    if arm != "guide":
        metrics["tokens_per_step"] = [pace_of(run, setup.length) for run in runs]
        metrics["rows"] = [run.stats.rows / len(run.sequences) for run in runs]
    return metrics


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: the model answers nearly nothing, so nothing can be lost."""
    values = [value for one in measurements["full"] for value in one.metrics["accuracy"]]
    accuracy = sum(values) / len(values)
    return None if accuracy >= SOLVED else f"the model answers only {accuracy:.0%} of the problems"


def _sizes(
    problems: int, few: int, long: int, batch: int, tokens: int = 512, block: int = 8
) -> dict[str, Any]:
    return {
        "problems": problems,
        "few": few,
        "long": long,
        "batch": batch,
        "tokens": tokens,
        "long_tokens": 2 * tokens,
        "length": 2 * block,  # the testbed's answers have 16 tokens
        "block": block,
        "dtype": "float32",
    }


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
        Target("FreeCache's seconds, 512 tokens", "seconds", "sliding", "full", "ratio", 1 / 2, "lower"),
        Target("seconds of both, 1024 tokens", "seconds_long", "both", "full", "ratio", 1 / 5, "lower"),
        Target("tokens a step, guided", "tokens_per_step", "guided", "full", "ratio", 3, "higher"),
        Target("guided at equal steps", "accuracy", "guided", "parallel", "difference", 0.0, "higher"),
        Target(
            "FreeCache's accuracy", "accuracy", "sliding", "full", "difference", -0.01, "higher", guard=True
        ),
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
        "smoke": Scale((1000,), 300, _sizes(4, 2, 2, 2, 64)),
        "quick": Scale((1000,), 120, _sizes(16, 8, 4, 4)),
        "laptop": Scale((1000, 1001, 1002), 1800, _sizes(72, 16, 16, 8)),
        "full": Scale(
            (1000, 1001, 1002),
            36_000,
            _sizes(200, 64, 64, 8, block=32) | {"length": 256, "dtype": "bfloat16"},
        ),
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
    version=2,
)
