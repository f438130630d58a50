"""The claim: choosing the cheapest call shows the less visible of two concepts better than any clock does.

A scene of two objects is described by two captions, each of which leaves the other object's colour open. Arms are
steered by `testbed:shapes-clip` and measured by the oracle's soft score.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_least, no_worse

if TYPE_CHECKING:
    import numpy as np
    from noiseworks.black_scholes.comparison import Blended

BATCH, GUIDANCE_SCALE, JOINT = 20, 5.0, " "
CLOCKS = ("linear", "alternating", "switch")
ARMS = (
    Arm("plain", "the first concept alone", "naive"),
    Arm("joined", "both in one prompt", "baseline"),
    Arm("linear", "mean of the embeddings", "baseline"),
    Arm("alternating", "alternating", "baseline"),
    Arm("switch", "switching at 14 and 34 %", "baseline"),
    Arm("clip-min", "lowest score", "baseline"),
    Arm("bs", "Black-Scholes", "method"),
    Arm("released", "the released formula", "reference"),
)


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share.

    Attributes:
        drawn: Arm -> what it drew.
        visible: Arm -> how visible each concept is, float64 [n, 2] in [0, 1].
    """

    drawn: "dict[str, Blended]"
    visible: "dict[str, np.ndarray]"


def prepare(seed: int, context: Context) -> Shared:
    """Draw the pairs of a seed with every arm from the same noise, batch by batch in turn."""
    import numpy as np
    from noiseworks.bench.testbeds.shapes.concepts import concept_pairs, concept_scores, open_prompts
    from noiseworks.bench.testbeds.shapes.scenes import RELATIONS
    from noiseworks.black_scholes.comparison import draw_blends
    from noiseworks.black_scholes.options import Pricing
    from noiseworks.black_scholes.policies import BlackScholes, named_policy
    from noiseworks.black_scholes.scorers import ClipScorer
    from noiseworks.kits.diffusers_hosts.loading import load_pipeline
    from noiseworks.kits.diffusers_hosts.options import Sampling

    pairs = concept_pairs(context.settings["pairs"], seed)
    names = tuple(RELATIONS)
    rows = [open_prompts(pair, names[i % len(names)]) for i, pair in enumerate(pairs)]
    asked = dict(zip(rows, pairs, strict=True))
    clip = ClipScorer("testbed:shapes-clip", context.device)
    pipe = load_pipeline(context.model or "testbed:shapes", context.device, families=("sd", "sdxl", "sd3"))
    policies: dict[str, Any] = {"plain": None, "joined": JOINT}
    policies |= {name: named_policy(name, Pricing()) for name in (*CLOCKS, "clip-min", "bs")}
    policies["released"] = BlackScholes(Pricing(price="released-density"))
    drawn = draw_blends(
        pipe,
        rows,
        policies,
        Sampling(context.settings["steps"], GUIDANCE_SCALE, batch_size=BATCH, seed=1000 * seed),
        scorer=lambda images, texts: clip(images, [asked[tuple(row)] for row in texts]),
        progress=lambda done, total: context.progress(done, total, "drawing"),
    )
    visible = {}
    for name, part in drawn.items():
        images = part.images.permute(0, 2, 3, 1).numpy()
        sides = [concept_scores(images, [pair[i] for pair in pairs]) for i in (0, 1)]
        visible[name] = np.stack(sides, 1)
    return Shared(drawn, visible)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure what one arm drew."""
    import torch
    from noiseworks.black_scholes.comparison import agreement
    from noiseworks.kits.pictures import strip, to_pixels, write_picture

    part, visible = shared.drawn[arm], shared.visible[arm]
    metrics = {
        "least": visible.min(1).tolist(),
        "first": visible[:, 0].tolist(),
        "second": visible[:, 1].tolist(),
        "seconds": [s / n for s, n in zip(part.seconds, part.sizes, strict=True)],
    }
    notes = ()
    if arm in ("bs", "released"):
        same = float(torch.cat([agreement(trace) for trace in part.traces]).mean())
        notes = (f"{arm}: {same:.1%} of its decisions are those of the lowest score",)
    label = next(one.label for one in ARMS if one.name == arm)
    picture = write_picture(strip(to_pixels(part.images[:8]), scale=2), context.folder / f"{arm}.png")
    return Measurement(metrics, images={label: picture}, notes=notes)


CLAIM = Claim(
    method="black-scholes",
    paper="Financial Models in Generative Art: Black-Scholes-Inspired Concept Blending (arXiv 2405.13685)",
    statement="Choosing the concept whose call is cheapest shows the less visible of two concepts a tenth better "
    "(0.03) than the best blend by a clock.",
    testbed="shapes",
    arms=ARMS,
    targets=(
        at_least("least", "bs", CLOCKS, difference=0.03, name="less visible concept, against the best clock"),
        at_least("least", "bs", "joined", difference=0.0, name="less visible concept, against one prompt"),
        no_worse("least", "bs", "clip-min", by=0.03, name="less visible concept, against the lowest score"),
    ),
    scales={
        "smoke": Scale((500,), 120, {"pairs": 2, "steps": 3}),
        "quick": Scale((500,), 120, {"pairs": 6, "steps": 25}),
        "laptop": Scale((1000, 1001, 1002), 900, {"pairs": 60, "steps": 25}),
    },
    prepare=prepare,
    run=run,
    preconditions=(Floor("plain", "first", 0.4, "a prompt's own concept is only {:.2f} visible"),),
    units="pair",
    columns={
        "least": "less visible concept",
        "first": "first concept",
        "second": "second concept",
        "seconds": "seconds an image",
    },
)
