"""The claim: where poses are few, predicting pictures makes a policy better, and action-free video better still.

On the tasks of `tabletop` that push a disc, seen through its camera. All arms are one transformer with one training,
and differ in whether future pictures are denoised beside the poses, and whether video without poses is mixed in.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import Arm, Ceiling, Claim, Context, Floor, Measurement, Scale, at_least, at_most

if TYPE_CHECKING:
    from noiseworks.pad.model import PAD
    from noiseworks.pad.windows import Recording

PACKAGE = "noiseworks.pad"
TASKS, SIZE = (6, 7), 32
HELD_OUT = 90  # demonstrations that no arm learns from
ARMS = (
    Arm("action", "poses alone, no pictures predicted", "naive"),
    Arm("joint", "poses and pictures, no video", "baseline"),
    Arm("cotrain", "PAD, with action-free video", "method"),
)


@dataclass
class Shared:
    """The models of a seed, what they are judged on, and the seed."""

    models: "dict[str, PAD]"
    held_out: "Recording"
    seed: int


def prepare(seed: int, context: Context) -> Shared:
    """Train the arms' models on the seed's demonstrations, or load the shipped ones."""
    from noiseworks.bench import shipped
    from noiseworks.pad.data import FIRST_VIDEO_SEED, table_recording
    from noiseworks.pad.model import PAD
    from noiseworks.pad.options import Architecture, Fitting, Video, Window
    from noiseworks.pad.training import fit_pad

    sizes, models = context.settings, {}
    number = seed % 80
    if sizes["fit"]:
        demonstrations = table_recording(sizes["demonstrations"], number, SIZE, TASKS)
        video = table_recording(sizes["video"], FIRST_VIDEO_SEED + number, SIZE, TASKS)
        # Changes of pictures are small: at this weight their error begins as large as the poses'.
        fitting = Fitting(
            max_steps=sizes["fit"],
            batch_size=sizes["batch"],
            seed=seed,
            device="cpu",
            image_weight=40.0,
            shift=2,
        )
        for index, arm in enumerate(ARMS):
            context.progress(index, len(ARMS), f"train {arm.name}")
            shape = Architecture(
                depth=3,
                width=sizes["width"],
                learn_sigma=False,
                images=arm.name != "action",
                stem=sizes["stem"],
                prediction="sample",
            )
            made = models[arm.name] = fit_pad(
                demonstrations,
                shape,
                Window(),
                fitting,
                video=video if arm.name == "cotrain" else None,
                mixture=Video(video_share=0.3),
                progress=False,
            )
            shipped.save(context.folder, arm.name, made.config(), made.state_dict())
    else:
        for arm in ARMS:
            models[arm.name] = PAD.from_parts(*shipped.load(PACKAGE, arm.name), path=arm.name)
    return Shared(models, table_recording(sizes["held_out"], HELD_OUT, SIZE, TASKS), seed)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm: success of rollouts, and poses and pictures of held-out windows."""
    import numpy as np
    from noiseworks.bench.testbeds.tabletop import TabletopBatch
    from noiseworks.kits.pictures import write_picture
    from noiseworks.kits.policies.evaluation import episode_list, evaluate
    from noiseworks.pad.evaluation import consistency, judge, picture
    from noiseworks.pad.options import Judging, Sampling
    from noiseworks.pad.policy import PADPolicy

    sizes, model = context.settings, shared.models[arm]
    tasks, seeds = episode_list(TASKS, sizes["episodes"], 1000 * shared.seed)
    env = TabletopBatch(len(tasks), image_size=SIZE, max_steps=sizes["max_steps"])
    report = evaluate(PADPolicy(model, num_envs=env.num_envs), env, tasks, seeds)
    judged = judge(model, shared.held_out, Sampling(), Judging(sizes["windows"], noise_seed=shared.seed))
    metrics: dict[str, Any] = {
        "success": report.success.astype(float).tolist(),
        "pose_error": judged.pose_error.mean(1).tolist(),
    }
    images = {}
    if judged.psnr is not None:
        metrics["psnr"] = judged.psnr.mean(1).tolist()
        metrics["consistency"] = float(np.nanmean(consistency(judged)))
        path = write_picture(picture(judged), context.folder / f"{arm}.png")
        images[f"{arm}: what followed, and what was predicted"] = path
    return Measurement(metrics, images=images)


def _sizes(fit: int, demonstrations: int, episodes: int, windows: int, **others: int) -> dict[str, int]:
    more = {"video": 200, "batch": 64, "width": 64, "stem": 24, "held_out": 6, "max_steps": 100} | others
    return {"fit": fit, "demonstrations": demonstrations, "episodes": episodes, "windows": windows} | more


CLAIM = Claim(
    method="pad",
    paper="Prediction with Action: Visual Policy Learning via Joint Denoising Process (NeurIPS 2024, arXiv 2411.18179)",
    statement=(
        "Where demonstrations are few, a policy that predicts pictures beside its poses succeeds more often than one "
        "that does not, and action-free video makes it better still (paper, Meta-World: 43.6 without pictures, 59.2 "
        "without co-training, 72.5 % with both)."
    ),
    testbed="tabletop",
    arms=ARMS,
    targets=(
        at_least("success", "cotrain", "joint", difference=0.1, name="success, video over none"),
        at_least("success", "joint", "action", difference=0.1, name="success, pictures over none"),
        at_most("pose_error", "cotrain", "joint", ratio=0.9, name="pose error, video over none"),
        at_most("pose_error", "joint", "action", ratio=0.9, name="pose error, pictures over none"),
    ),
    scales={
        "smoke": Scale(
            (500,), 120, _sizes(2, 1, 1, 4, video=1, batch=8, width=16, stem=4, held_out=1, max_steps=8)
        ),
        "quick": Scale(
            (500,), 120, _sizes(20, 2, 2, 40, video=5, batch=16, width=32, held_out=1, max_steps=40)
        ),
        # Ten demonstrations of each task do not hold them: even on true states a policy solves a tenth of new scenes.
        "laptop": Scale((1000, 1001, 1002), 3600, _sizes(1500, 50, 50, 200)),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor("cotrain", "success", 0.2, "even with video the policy solves only {:.0%}"),
        Ceiling(
            "action", "success", 0.8, "without pictures the policy solves {:.0%}: little is left to gain"
        ),
    ),
    units="episode",
    columns={
        "success": "success",
        "pose_error": "pose error, table units",
        "psnr": "PSNR of pictures, dB",
        "consistency": "picture to pose, pixels",
    },
)
