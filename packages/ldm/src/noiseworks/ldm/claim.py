"""The claim: an f = 4 latent reaches the score of pixel diffusion in at most a third of its training time.

Two U-Nets of about the same number of parameters are trained from scratch on scenes with one object, given
their attributes, for the same time: one on pixels (f = 1), one on the latents of the shipped f = 4 first
stage. Along the way the oracle reads the requested attributes from samples of both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from noiseworks.bench import shipped
from noiseworks.bench.claims import (
    Arm,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
)

if TYPE_CHECKING:
    from noiseworks.bench.testbeds import shapes
    from noiseworks.ldm.claim_training import Trained
    from torch import nn

PACKAGE = "noiseworks.ldm"
SMALLEST_PIXEL_SCORE = 0.4  # what scenes score that were drawn without a look at the request
_EARLY = (1 / 6, 1 / 5, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1.0)


@dataclass(frozen=True)
class Space:
    """Where an arm's diffusion runs, and its U-Net and training settings, chosen on seed 0.

    Attributes:
        label: What tables call the arm.
        channels: Channels of what is diffused.
        side: Its height and width.
        widths: Channels of the U-Net's levels; attention on the last one.
        batch_size: Rows a step.
        first_stage: Directory or `testbed:` name of the first stage; None diffuses pixels.
        marks: Shares of the training time at which samples are scored.
    """

    label: str
    channels: int
    side: int
    widths: tuple[int, ...]
    batch_size: int
    first_stage: str | None
    marks: tuple[float, ...]


SPACES = {
    "pixels": Space("pixel diffusion, f = 1", 3, 32, (16, 32, 48), 8, None, (1 / 4, 1 / 2, 1.0)),
    "latent": Space("latent diffusion, f = 4", 4, 8, (32, 48), 32, "testbed:shapes-vae", _EARLY),
}


@dataclass
class Shared:
    """What the arms of a seed share.

    Attributes:
        seed: Of weights, order, noise and evaluation prompts.
        held: The scenes that are asked for.
        values: The values of each attribute.
        first_stages: Arm -> first stage; None diffuses pixels.
        trained: What arms trained; the latent arm is measured against the pixel arm's last score.
    """

    seed: int
    held: "Sequence[shapes.Scene]"
    values: tuple[tuple[str, ...], ...]
    first_stages: "Mapping[str, nn.Module | None]"
    trained: "dict[str, Trained]" = field(default_factory=dict)


def prepare(seed: int, context: Context) -> Shared:
    """Draw the scenes that are asked for, and load the first stage: the shipped one, or the user's."""
    from noiseworks.kits.backbones import load_autoencoder
    from noiseworks.ldm.evidence import attribute_values, single_scenes

    stages = {
        arm: None if space.first_stage is None else load_autoencoder(context.model or space.first_stage)
        for arm, space in SPACES.items()
    }
    return Shared(seed, single_scenes(context.settings["prompts"], seed, "test"), attribute_values(), stages)


_REACH_NOTE = (
    "seconds: CPU time of training until the mean score first reaches the pixel arm's final one, linear "
    "between marks (the whole time when it never does); encoding the training images once is counted, training "
    "the first stage, which is shared between models, is not"
)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: train it, or (at the quick scale) sample from the model of the last laptop run."""
    from noiseworks.kits.pictures import strip, write_picture
    from noiseworks.ldm.claim_training import seconds_to_reach, size_note, state_of, train_arm
    from noiseworks.ldm.data import to_uint8
    from noiseworks.ldm.evidence import reconstruction_scores

    ceiling = {"ceiling": reconstruction_scores(shared.first_stages[arm], shared.held)}
    if context.scale == "quick":
        return shipped_measurement(arm, shared, ceiling)
    seconds = context.settings["seconds"]
    context.progress(list(SPACES).index(arm), len(SPACES), f"training {arm} for {seconds:g} s")
    pixels, trained = (train_arm(name, shared, context.settings, context.device) for name in ("pixels", arm))
    reached = pixels.seconds[-1]
    if arm != "pixels":
        reached = seconds_to_reach(pixels.scores[-1], trained.seconds, trained.scores, trained.encoding)
    record = {"seconds": trained.seconds, "scores": trained.scores, "reached": reached}
    settings, tensors = state_of(trained.model)
    about = record | settings | {"steps": trained.steps, "seed": shared.seed}
    shipped.save(context.folder, arm, about, tensors)
    picture = write_picture(strip(to_uint8(trained.images[:12])), context.folder / f"{arm}.png")
    return Measurement(
        metrics={"score": trained.final.tolist(), "seconds": reached} | ceiling,
        series={"score over training seconds": (trained.seconds, trained.scores)},
        images={"samples after the whole time": picture},
        notes=[size_note(arm, trained.model, trained.steps), _REACH_NOTE],
    )


def shipped_measurement(arm: str, shared: Shared, ceiling: Mapping[str, Sequence[float]]) -> Measurement:
    """Measure a shipped model on this seed's prompts; the time is the one recorded when it was trained."""
    from noiseworks.ldm.claim_training import rebuilt, sample, size_note
    from noiseworks.ldm.evidence import oracle_scores

    config, tensors = shipped.load(PACKAGE, arm)
    counts = [len(column) for column in shared.values]
    model = rebuilt(arm, counts, shared.first_stages[arm], config, tensors)
    scores = oracle_scores(sample(model, SPACES[arm], shared), shared.held)
    note = f"model and seconds are those that were trained with seed {config['seed']}; the samples are new"
    return Measurement(
        metrics={"score": scores.tolist(), "seconds": config["reached"], **ceiling},
        series={"score over training seconds": (config["seconds"], config["scores"])},
        notes=[size_note(arm, model, config["steps"]), note, _REACH_NOTE],
    )


CLAIM = Claim(
    method="ldm",
    paper="High-Resolution Image Synthesis with Latent Diffusion Models, CVPR 2022, arXiv 2112.10752",
    statement=(
        "With equal compute, the shared first stage's training not counted, diffusion in an f = 4 latent (batches of "
        "32) reaches the sample quality of pixel diffusion (batches of 8) in at most a third of its training time "
        "(figure 6 of the paper: LDM-4 to LDM-8 train fastest)."
    ),
    testbed="shapes",
    arms=tuple(
        Arm(name, space.label, "baseline" if space.first_stage is None else "method")
        for name, space in SPACES.items()
    ),
    targets=(
        at_most("seconds", "latent", "pixels", ratio=1 / 3, name="time to the pixel model's score"),
        at_least("score", "latent", "pixels", difference=0.0, guard=True, name="score after equal time"),
    ),
    scales={
        "smoke": Scale((500,), 300, {"seconds": 0.5, "scenes": 64, "prompts": 1}),
        "quick": Scale((500,), 120, {"prompts": 32}),
        "laptop": Scale((1000, 1001, 1002), 1800, {"seconds": 100.0, "scenes": 6000, "prompts": 96}),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor(
            "latent", "ceiling", 0.9, "the oracle reads only {:.0%} of the attributes after the first stage"
        ),
        Floor(
            "pixels",
            "score",
            SMALLEST_PIXEL_SCORE,
            "pixel diffusion learned too little to compare with: its score is {:.0%}, as of scenes drawn blindly",
        ),
    ),
    units="prompt",
    columns={
        "seconds": "seconds to the pixel score",
        "score": "attributes right",
        "ceiling": "after first stage",
    },
    version=2,
)
