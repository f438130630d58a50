"""The claim: one auto-encoder has better features than a diffusion transformer and samples nearly as good.

Features are those of scenes of one object, halved to 16x16 pixels: all arms see as many images in the same order, and
the features of each are read where they are best, of clean images at time 0 or of noised ones at time 51, of its
learned tokens or of its patches. Samples are those of the digits, which a transformer of this size learns to draw in
the time: a second network of the same kind is pre-trained on them without labels and fine-tuned with labels, both for
as many steps in every arm, and a classifier of the digits says what a sample shows.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import Arm, Claim, Context, Floor, Measurement, Scale, at_least, no_worse

if TYPE_CHECKING:
    from noiseworks.kits.backbones import FeatureNet
    from torch import Tensor

READINGS = ((0, "cls"), (51, "cls"), (0, "patches"), (51, "patches"))


@dataclass
class Shared:
    """What the arms of a seed share: scenes to learn from and held out, attributes, digits and their classifier."""

    seed: int
    images: "Tensor"
    held: "Tensor"
    attributes: "list[tuple[Tensor, Tensor]]"
    digits: "tuple[Tensor, Tensor]"
    net: "FeatureNet"


def prepare(seed: int, context: Context) -> Shared:
    """Draw the scenes, and train the classifier of the digits, in whose features distances are measured too."""
    import torch
    from noiseworks.bench.testbeds.shapes import render, sample_scenes
    from noiseworks.bench.testbeds.shapes.scenes import COLORS, POSITIONS, SHAPES
    from noiseworks.kits.backbones import fit_features, load_images

    parts = []
    for split, count in (("train", context.settings["scenes"]), ("test", context.settings["scenes"] // 4)):
        scenes = [scene for scene in sample_scenes(count, 0, split) if scene.kind == "single"]
        images = torch.as_tensor(render(scenes) * 2 - 1).permute(0, 3, 1, 2)
        names = [(s.objects[0].shape, s.objects[0].color, s.position) for s in scenes]
        orders = (SHAPES, list(COLORS), list(POSITIONS))
        columns = [
            torch.tensor([order.index(n) for n in column])
            for order, column in zip(orders, zip(*names, strict=True), strict=True)
        ]
        parts.append((torch.nn.functional.avg_pool2d(images, 2), columns))
    (images, known), (held, asked) = parts
    digits = load_images("digits", needs="umd")
    net = fit_features(*digits, steps=context.settings["classifier_steps"])
    return Shared(seed, images, held, list(zip(known, asked, strict=True)), digits, net)


def samples(arm: str, shared: Shared, context: Context) -> "dict[str, Any]":
    """Pre-train on the digits without labels, fine-tune with them, draw, and say what the samples show."""
    import torch
    from noiseworks.core.schedules import table_schedule
    from noiseworks.kits.backbones import frechet_distance
    from noiseworks.umd import FineTuning, Mixture, Pretraining, UMDConfig
    from noiseworks.umd.sampling import draw
    from noiseworks.umd.training import finetune_model, pretrain_model

    sizes, seed, mixture, (images, labels) = context.settings, shared.seed, Mixture(arm), shared.digits
    usual = {"seed": seed, "device": context.device, **sizes["digits_recipe"]}
    config = UMDConfig(**sizes["network"] | {"patch": 2}, image_size=8, channels=1)
    recipe = Pretraining(max_steps=sizes["digits_steps"], **usual)
    model = pretrain_model(config, images, mixture, recipe, progress=False)
    tuning = FineTuning(max_steps=sizes["tuning_steps"], **usual)
    tuned = finetune_model(model, images, labels, mixture.fine_tuning(), tuning, "cosine", progress=False)
    wanted = torch.arange(sizes["samples"]) % tuned.null_label
    drawn = draw(
        tuned.to(context.device),
        wanted,
        table_schedule("cosine"),
        steps=sizes["sampling_steps"],
        guidance_scale=sizes["guidance"],
        seeds=range(seed * 1000, seed * 1000 + len(wanted)),
    ).cpu()
    right = (shared.net(drawn).argmax(1) == wanted).double().tolist()
    distance = frechet_distance(shared.net.moments(drawn), shared.net.moments(images))
    return {"right": right, "frechet": distance}


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Pre-train and probe one arm on scenes, and judge the samples of its like on digits."""
    from noiseworks.kits.backbones import few_shot
    from noiseworks.umd import UMD, Mixture, Pretraining, UMDConfig
    from noiseworks.umd.features import features_of, untrained
    from noiseworks.umd.options import Features
    from noiseworks.umd.training import pretrain_model

    sizes, seed = context.settings, shared.seed
    config = UMDConfig(**sizes["network"], image_size=16, channels=3)
    cost: dict[str, float] = {}

    def accuracy(images: "Tensor", held: "Tensor") -> float:
        scores = [
            few_shot((images, known), (held, asked), sizes["shots"]) for known, asked in shared.attributes
        ]
        return sum(scores) / len(scores)

    if arm == "pixels":
        return Measurement({"probe": accuracy(shared.images.flatten(1), shared.held.flatten(1))})
    if arm == "untrained":
        model = untrained(UMD(config), seed)
    else:
        recipe = Pretraining(max_steps=sizes["steps"], seed=seed, device=context.device, **sizes["recipe"])
        now = time.process_time if context.device == "cpu" else time.perf_counter
        begun = now()
        model = pretrain_model(config, shared.images, Mixture(arm), recipe, progress=False)
        cost["milliseconds"] = 1000 * (now() - begun) / (recipe.max_steps * recipe.batch_size)
    model = model.to(context.device)
    found = {
        f"{tokens} at {at}": accuracy(
            *(features_of(model, x, Features(at, tokens)) for x in (shared.images, shared.held))
        )
        for at, tokens in READINGS  # of every arm: after short training the learned tokens know little of any
    }
    best = max(found, key=lambda name: found[name])
    measured: dict[str, Any] = {"probe": found[best], "probe_cls": found["cls at 0"]} | cost
    if arm in ("dit", "umd"):
        measured |= samples(arm, shared, context)
    return Measurement(measured, notes=[f"{arm}: features are read as {best}"])


def sizes(steps: int, digits_steps: int, tuning_steps: int, **others: Any) -> dict[str, Any]:
    """Return the settings of a scale: steps on the scenes, on the digits, and of fine-tuning on the digits."""
    network = {"depth": 3, "decoder_depth": 1, "width": 64, "heads": 4, "patch": 4}
    usual = {"scenes": 4096, "classifier_steps": 300, "shots": 100, "samples": 480, "sampling_steps": 25}
    usual["guidance"] = 1.5
    usual["recipe"] = {"lr": 3e-3, "batch_size": 32}  # at smaller rates no arm learns much in so few steps
    usual["digits_recipe"] = {"lr": 2e-3, "batch_size": 64}
    lengths = {"steps": steps, "digits_steps": digits_steps, "tuning_steps": tuning_steps}
    return {**lengths, "network": network, **usual, **others}


TINY = {"depth": 1, "decoder_depth": 1, "width": 16, "heads": 2, "patch": 4}
CLAIM = Claim(
    method="umd",
    paper="Unified Auto-Encoding with Masked Diffusion (2024, arXiv 2406.17688)",
    statement="One masked auto-encoder has better features than a diffusion transformer, and samples nearly as good.",
    testbed="shapes, digits",
    arms=(
        Arm("pixels", "raw pixels", "reference"),
        Arm("untrained", "untrained encoder, gates open", "reference"),
        Arm("mae", "masked auto-encoder", "reference"),
        Arm("dit", "diffusion transformer", "baseline"),
        Arm("umd", "UMD", "method"),
    ),
    targets=(
        at_least("probe", "umd", "dit", difference=0.03),
        no_worse("right", "umd", "dit", by=0.03),
    ),
    scales={
        "smoke": Scale(
            (500,),
            120,
            sizes(
                2,
                2,
                2,
                network=TINY,
                scenes=400,
                classifier_steps=5,
                shots=5,
                samples=72,
                sampling_steps=2,
            ),
        ),
        "quick": Scale(
            (500,),
            180,
            sizes(40, 20, 20, scenes=1200, classifier_steps=60, shots=30, samples=72, sampling_steps=10),
        ),
        "laptop": Scale((1000, 1001, 1002), 3600, sizes(2000, 500, 1000)),
    },
    preconditions=(
        Floor("dit", "right", 0.6, "the diffusion transformer's samples show their class in only {:.0%}"),
    ),
    prepare=prepare,
    run=run,
    units="sample",
    columns={
        "probe": "few-shot accuracy of shape, colour and place, best reading",
        "probe_cls": "of the learned tokens at time 0",
        "right": "digits drawn that show their class",
        "frechet": "Fréchet distance of digits drawn",
        "milliseconds": "pre-training on scenes, milliseconds of the processor an image",
    },
)
