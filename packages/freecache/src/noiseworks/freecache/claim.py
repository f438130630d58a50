"""The claim: frozen keys make a step cheaper, a guide makes steps fewer, and answers stay as right as they were.

On the masked language model of `countdown`, with prompts that show solved problems. FreeCache is judged with the
sliding window of the authors' code: where all of the prompt is frozen, the question's keys are those of an answer of
masks, which costs a model of few layers many answers. The package's default, FreeCache with a threshold, is judged
against Fast-dLLM's dual cache with the same threshold.
"""

from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import (
    Arm,
    Claim,
    Context,
    Data,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.freecache.asking import Desk

LONG = ("full", "dual", "guide", "default", "sliding", "both")  # arms that answer behind long prompts too
FEW = ("threshold", "stale")  # arms without a target, which answer the first problems only


def prepare(seed: int, context: Context) -> dict[str, "Desk"]:
    """Load host and guide, and write the prompts of both lengths; at the full scale from the user's questions."""
    from noiseworks.core.options import Hardware
    from noiseworks.freecache.asking import Desk
    from noiseworks.freecache.running import load

    sizes = context.settings
    guide = context.data.get("guide", "testbed:countdown-ar")
    loaded = load(context.model or "testbed:countdown", guide, Hardware(context.device, sizes["dtype"]))
    lengths = (sizes["length"], sizes["block"], sizes["batch"])
    ask = {"short": (sizes["problems"], sizes["tokens"]), "long": (sizes["long"], 2 * sizes["tokens"])}
    questions = context.data.get("questions")
    return {
        name: Desk.of(loaded, questions, count, tokens, seed, *lengths)
        for name, (count, tokens) in ask.items()
    }


def run(arm: str, desks: dict[str, "Desk"], context: Context) -> Measurement:
    """Measure one arm on one seed: right answers and seconds, at both prompt lengths where it has targets."""
    sizes = context.settings
    context.progress(0, 2, f"{arm}: prompts of {sizes['tokens']} tokens")
    metrics = desks["short"].measured(arm, sizes["few" if arm in FEW else "problems"])
    if arm in LONG:
        context.progress(1, 2, f"{arm}: prompts of {2 * sizes['tokens']} tokens")
        long = desks["long"].measured(arm, sizes["long"])
        metrics |= {f"{key}_long": value for key, value in long.items()}
    notes = (
        "The guide alone is an arm of its own: where it is more often right than the model, some of guided "
        "decoding's accuracy may come from what it approves.",
    )
    return Measurement(metrics, notes=notes if arm == "guide" else ())


def sizes(
    problems: int, few: int, long: int, batch: int, tokens: int = 512, block: int = 8, **changes: Any
) -> dict[str, Any]:
    """Return the settings of a scale; the testbed's answers have 16 tokens, two blocks."""
    counts = {"problems": problems, "few": few, "long": long, "batch": batch}
    return counts | {"tokens": tokens, "length": 2 * block, "block": block, "dtype": "auto"} | changes


CLAIM = Claim(
    method="freecache",
    paper="FlashDLM: Accelerating Diffusion Language Model Inference via Efficient KV Caching and Guided Diffusion "
    "(ICLR 2026, arXiv 2505.21467)",
    statement="Freezing the keys and values of clean tokens and letting a small autoregressive model approve drafts "
    "makes masked language models several times faster at the same accuracy (paper: 12 times on average, up to 34 "
    "times).",
    testbed="countdown",
    arms=(
        Arm("full", "full recompute", "baseline"),
        Arm("parallel", "confidence-parallel, guided's steps", "baseline"),
        Arm("threshold", "threshold 0.9, no cache", "baseline"),
        Arm("dual", "Fast-dLLM: threshold 0.9, dual cache", "baseline"),
        Arm("guide", "the guide alone", "reference"),
        Arm("default", "FreeCache, sliding window, threshold 0.9", "method"),
        Arm("sliding", "FreeCache, sliding window", "method"),
        Arm("lazy", "FreeCache, all of the prompt frozen", "method"),
        Arm("stale", "the same, stale commits", "method"),
        Arm("guided", "guided", "method"),
        Arm("both", "guided with FreeCache, sliding window", "method"),
    ),
    targets=(
        at_most("seconds", "sliding", "full", ratio=1 / 2, name="FreeCache's seconds, 512 tokens"),
        at_most("seconds_long", "both", "full", ratio=1 / 5, name="seconds of both, 1024 tokens"),
        at_least("tokens_per_step", "guided", "full", ratio=3, name="tokens a step, guided"),
        at_least("accuracy", "guided", "parallel", difference=0.0, name="guided at equal steps"),
        at_most("seconds", "default", "dual", ratio=1.0, name="the default against Fast-dLLM, 512 tokens"),
        at_most(
            "seconds_long", "default", "dual", ratio=1.0, name="the default against Fast-dLLM, 1024 tokens"
        ),
        no_worse("accuracy", "sliding", "full", by=0.01, name="FreeCache's accuracy"),
        no_worse("accuracy", "default", "full", by=0.01, name="the default's accuracy"),
        no_worse("accuracy", "guided", "full", by=0.01, name="guided accuracy"),
        no_worse("accuracy_long", "both", "full", by=0.01, name="accuracy of both, 1024"),
    ),
    scales={
        "smoke": Scale((500,), 300, sizes(4, 2, 2, 2, 64)),
        "quick": Scale((500,), 120, sizes(3, 1, 1, 3)),
        "laptop": Scale((1100, 1101, 1102), 1800, sizes(40, 8, 8, 8)),  # version 2 was judged on 1000 to 1002
        "full": Scale((1000, 1001, 1002), 36_000, sizes(200, 64, 64, 8, block=32, length=256)),
    },
    prepare=prepare,
    model_kind="language model",
    run=run,
    preconditions=(Floor("full", "accuracy", 0.05, "the model answers only {:.0%} of the problems"),),
    data=(
        Data("questions", "a JSON-lines file with `question` and `answer`, such as GSM8K's"),
        Data(
            "guide",
            "a causal model with the model's vocabulary, such as Qwen/Qwen2.5-1.5B-Instruct",
            kind="model",
        ),
    ),
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
    version=3,
)
