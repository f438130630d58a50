"""The claim: a policy inside the denoising loop gets motion to its goals and out of furniture that it never saw.

On rooms of `motion`: walks on ways that keep little from furniture, and seats to sit on. All arms have the same model,
cases, speeds and noise; the model learnt from clips without any room.

At the quick and laptop scales it is the one that the package ships (`noiseworks-dip make` trains it): the effect is one
of sampling, and seeds differ in rooms, cases and noise.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from noiseworks.bench.claims import (
    Arm,
    Ceiling,
    Claim,
    Context,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
    no_worse,
)

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.motion import Cases
    from noiseworks.dip.agent import Motion
    from noiseworks.dip.network import MotionModel
    from noiseworks.kits.motion import Naturalness, ProcBody

PACKAGE = "noiseworks.dip"
KINDS = "walk,sit"
CLEARANCE, HISTORY, LEAST = 0.15, 10, 0.01
ARMS = (
    Arm("inpainting", "waypoints inpainted", "baseline"),
    Arm("control", "control branch alone", "baseline"),
    Arm("pure", "policy without diffusion", "naive"),
    Arm("direct", "direct guidance", "baseline"),
    Arm("unblended", "DIP, rounds not blended", "reference"),
    Arm("dip", "DIP", "method"),
)


@dataclass
class Shared:
    """What the arms of a seed share: model, cases, measure of naturalness, and motions that two arms need."""

    model: "MotionModel"
    cases: "Cases"
    body: "ProcBody"
    natural: "Naturalness"
    seed: int
    made: "dict[str, tuple[list[Motion], float]]" = field(default_factory=dict)


def prepare(seed: int, context: Context) -> Shared:
    """Train the model and its branch, or load the shipped ones; draw the cases."""
    from noiseworks.bench import shipped
    from noiseworks.bench.testbeds.motion import FPS, draw_cases, draw_clips
    from noiseworks.dip.data import clips_of
    from noiseworks.dip.network import MotionModel
    from noiseworks.dip.options import Architecture, Clipset, Fitting
    from noiseworks.dip.training import fit_motion
    from noiseworks.kits.motion import Naturalness, ProcBody

    sizes, body = context.settings, ProcBody()
    if sizes["fit"]:
        clips = clips_of(Clipset(clips=sizes["clips"], kinds=KINDS))
        fitting = {"batch_size": 16, "seed": seed, "device": "cpu"}
        context.progress(0, 2, "train the base")
        base = fit_motion(
            clips,
            Architecture(width=sizes["width"]),
            Fitting(max_steps=sizes["fit"], **fitting),
            progress=False,
        )
        context.progress(1, 2, "train the branch")
        control = fit_motion(clips, base, Fitting(max_steps=sizes["branch"], **fitting), progress=False)
        # The branch was trained alone: without it, the model is the base.
        shipped.save(context.folder, "control", control.config(), control.state_dict())
    else:
        control = MotionModel.from_parts(*shipped.load(PACKAGE, "control"), path="control")
    cases = draw_cases(seed, sizes["cases"], clearance=CLEARANCE)
    recorded = draw_clips(seed, sizes["recorded"], kinds=("walk", "sit"))
    return Shared(control, cases, body, Naturalness(body(recorded.motion)[0], FPS), seed)


def motions_of(way: str, shared: Shared, sizes: dict[str, Any]) -> "tuple[list[Motion], float]":
    """Return the motions of a way, and seconds of work each."""
    import time

    from noiseworks.dip.baselines import make_agent
    from noiseworks.dip.evaluation import carry_out
    from noiseworks.dip.options import Moving, Sampling

    if way not in shared.made:
        sampling = Sampling(way=way, steps=sizes["steps"], policy_steps=sizes["policy"])
        moving = Moving(history=HISTORY, sit_speed=(0.3, 0.4), patience=1, show_way=True)
        agent = make_agent(shared.model, shared.body, sampling, moving)
        begin = time.process_time()
        motions = carry_out(agent, shared.cases, samples=sizes["samples"], seed=shared.seed)
        shared.made[way] = motions, (time.process_time() - begin) / len(motions)
    return shared.made[way]


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm on the cases."""
    import numpy as np
    import torch
    from noiseworks.bench.testbeds.motion import FPS
    from noiseworks.dip.evaluation import judge, unblended
    from noiseworks.dip.pictures import films

    sizes = dict(context.settings)
    motions, seconds = motions_of("dip" if arm == "unblended" else arm, shared, sizes)
    motions = unblended(motions, HISTORY) if arm == "unblended" else motions
    judged = judge(motions, shared.cases, shared.body, FPS, samples=sizes["samples"])
    joined = np.isfinite(judged.boundary)
    # Of the longest stretch that all motions have; they begin after what was there before.
    length = min(len(one.frames) for one in motions) - HISTORY
    joints = shared.body(torch.stack([one.frames[HISTORY : HISTORY + length] for one in motions]))[0]
    metrics: dict[str, Any] = {
        "success": judged.success.tolist(),
        "distance": judged.distance.tolist(),
        # A ratio needs means above 0, also where nothing is touched: a hundredth of a centimetre is added to all.
        "penetration": (judged.penetration + LEAST).tolist(),
        "contact": judged.contact.tolist(),
        "boundary": judged.boundary[joined].tolist() if joined.any() else 0.0,
        "unnatural": shared.natural.distance(joints),
        "seconds": seconds,
    }
    images = {}
    if arm in ("dip", "control"):
        path = context.folder / f"{arm}.webp"
        rows = [index // sizes["samples"] for index in range(min(2, len(motions)))]
        films(motions[:2], shared.cases.scene[rows], shared.body, path)
        images[f"{arm}: the first motions"] = path
    return Measurement(metrics, images=images)


def scale(fit: int, branch: int, cases: int, steps: int, policy: int, **others: int) -> dict[str, int]:
    """Return the settings of a scale."""
    sizes = {"clips": 4000, "width": 80, "samples": 1, "recorded": 60}
    return sizes | {"fit": fit, "branch": branch, "cases": cases, "steps": steps, "policy": policy} | others


CLAIM = Claim(
    method="dip",
    paper="Diffusion Implicit Policy for Unpaired Scene-aware Motion Synthesis (AAAI 2026, arXiv 2412.02261)",
    statement="Motion reaches its goals and keeps out of furniture without a clip that was ever in a room.",
    testbed="motion",
    arms=ARMS,
    targets=(
        at_least("success", "dip", "inpainting", difference=0.3, name="goals reached"),
        at_most("penetration", "dip", "control", ratio=0.3, name="penetration"),
        at_most("boundary", "dip", "unblended", ratio=1 / 3, name="acceleration at joins"),
        no_worse("contact", "dip", "direct", by=0.02, name="contact against direct guidance"),
    ),
    scales={
        "smoke": Scale((500,), 120, scale(2, 1, 2, 3, 1, clips=32, width=16, recorded=20)),
        "quick": Scale((500,), 180, scale(0, 0, 2, 10, 2, recorded=30)),
        "laptop": Scale((1000, 1001, 1002), 1800, scale(0, 0, 8, 25, 5)),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Ceiling("inpainting", "success", 0.6, "inpainting alone reaches {:.0%} of the goals"),
        Floor("control", "penetration", 0.3, "the control branch alone penetrates by only {:.2f} cm"),
    ),
    units="motion",
    columns={
        "success": "goals reached",
        "distance": "distance, m",
        "penetration": "penetration + 0.01, cm",
        "contact": "contact",
        "boundary": "acceleration at joins, m/s²",
        "unnatural": "Fréchet distance",
        "seconds": "s a motion",
    },
)
