"""The claim: two calls from anchors plan better than twenty from noise, and than a plan that averages.

On scenes of `drive` where junctions and blocked lanes leave several routes open and nothing says which: there the score
is judged twice, with progress along whichever admissible route a plan follows, and along the one that the expert
happened to take. All planners of a seed are trained at once, on one backbone that learns from all of them. Planners
without anchored diffusion are the paper's baselines; anchors that are only chosen, and a decoder without its cascade,
are its ablations.
"""

from dataclasses import dataclass
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
)

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.drive import Labelled
    from noiseworks.diffusiondrive.planner import Planner
    from torch import Tensor

PACKAGE = "noiseworks.diffusiondrive"
TRAIN_SEED = 0  # all judging seeds learn from the same scenes; test scenes are the seed's own
RATE = 1.5e-3
BATCHED = 64  # scenes that are planned at once, for the second of the two times
ARMS = (
    Arm("regression", "regression, one plan", "baseline"),
    Arm("diffusion", "diffusion from noise, 20 calls", "baseline"),
    Arm("anchors", "anchors, classified", "naive"),
    Arm("no_cascade", "truncated, no cascade, 2 calls", "reference"),
    Arm("diffusiondrive", "DiffusionDrive, 2 calls", "method"),
    Arm("consistent", "DiffusionDrive, consistent steps", "method"),
)
DESIGNS = ("regression", "diffusion", "anchors", "no_cascade", "diffusiondrive")


@dataclass
class Shared:
    """What the arms of a seed share: the planners, the test scenes, and seconds of a plan, alone and in a batch."""

    planners: "dict[str, Planner]"
    labelled: "Labelled"
    table: "dict[str, Tensor]"
    seconds: dict[str, tuple[float, ...]]
    batched: dict[str, tuple[float, ...]]


def prepare(seed: int, context: Context) -> Shared:
    """Train the planners, or load the shipped ones; make the test scenes; time plans, arms in turn."""
    from noiseworks.bench import shipped
    from noiseworks.core.timing import in_turns
    from noiseworks.diffusiondrive.data import plan_all, scenes_of
    from noiseworks.diffusiondrive.options import Fitting, SceneSet, architecture_of
    from noiseworks.diffusiondrive.training import fit_planners
    from noiseworks.kits.training import open_run

    sizes = context.settings
    if sizes["fit"]:
        context.progress(0, 1, "train")
        _, table = scenes_of(SceneSet(scenes=sizes["train"], scene_seed=TRAIN_SEED))
        fitting = Fitting(
            max_steps=sizes["fit"],
            batch_size=sizes["batch"],
            learning_rate=RATE,
            seed=seed,
            device="cpu",
            checkpoint_every=1.0,
        )
        architectures = [architecture_of(design, sizes["width"], sizes["draws"]) for design in DESIGNS]
        # What was stopped goes on: the folder is this seed's and these settings' own.
        which = {name: sizes[name] for name in ("train", "width", "draws")}
        with open_run(context.folder / "training", which | {"fit": fitting}) as opened:
            made = fit_planners(table, architectures, fitting, opened, progress=False)
        planners = dict(zip(DESIGNS, made, strict=True))
        for design, planner in planners.items():
            tensors = planner.state_dict().items()
            own = {
                name: value
                for name, value in tensors
                if design == DESIGNS[0] or not name.startswith("backbone.")
            }
            shipped.save(context.folder, design, planner.config(), own)
    else:
        planners = shipped_planners()
    labelled, table = scenes_of(SceneSet(scenes=sizes["test"], scene_seed=seed))
    seconds = []
    for size in (1, min(BATCHED, len(labelled))):
        some = {name: rows[:size] for name, rows in table.items()}
        arms = {
            arm.name: lambda turn, name=arm.name, some=some: plan_all(*of_arm(name, planners, some))
            for arm in ARMS
        }
        times = in_turns(arms, sizes["turns"], warmup=1)
        seconds.append({name: tuple(one / size for one in found.seconds) for name, found in times.items()})
    return Shared(planners, labelled, table, *seconds)


def shipped_planners() -> "dict[str, Planner]":
    """Return the planners that the package ships; their one backbone lies with the first."""
    from noiseworks.bench import shipped
    from noiseworks.diffusiondrive.planner import Planner

    parts = {design: shipped.load(PACKAGE, design) for design in DESIGNS}
    backbone = {name: tensor for name, tensor in parts[DESIGNS[0]][1].items() if name.startswith("backbone.")}
    return {
        design: Planner.from_parts(config, backbone | tensors, path=design)
        for design, (config, tensors) in parts.items()
    }


def of_arm(arm: str, planners: "dict[str, Planner]", table: "dict[str, Tensor]") -> tuple[Any, ...]:
    """Return the planner, table and denoising of an arm."""
    from noiseworks.diffusiondrive.options import Denoising

    stepping = "consistent" if arm == "consistent" else "reference"
    return planners.get(arm, planners["diffusiondrive"]), table, Denoising(stepping=stepping)


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm on the test scenes."""
    from noiseworks.diffusiondrive.data import plan_all
    from noiseworks.diffusiondrive.evaluation import judge
    from noiseworks.diffusiondrive.pictures import grid
    from noiseworks.diffusiondrive.sanity import sanity

    plans = plan_all(*of_arm(arm, shared.planners, shared.table))
    judged = judge(plans, shared.labelled, diverse=context.settings["diverse"])
    several = shared.labelled.scenes.admissible.sum(axis=1) > 1
    metrics: dict[str, Any] = {
        "any_route": judged.any_route[several].tolist(),
        "own_route": judged.scores.score[several, 0].tolist(),
        "pdms": judged.scores.score[:, 0].tolist(),
        "drivable": judged.scores.drivable_area[:, 0].tolist(),
        "collisions": judged.scores.no_collision[:, 0].tolist(),
        "ade": judged.ade.tolist(),
        "covered": judged.covered[several].tolist(),
        "diversity": judged.diverse[: context.settings["diverse"]].tolist(),
        "calls": judged.calls,
        "milliseconds": [1e3 * value for value in shared.seconds[arm]],
        "batched": [1e3 * value for value in shared.batched[arm]],
    }
    notes, images = (), {}
    if arm == "diffusiondrive":
        known = ", ".join(f"{name} {value:.3f}" for name, value in sanity(shared.labelled).items())
        notes = (f"PDM score of planners that do not learn: {known}.",)
    if arm in ("diffusiondrive", "diffusion"):
        grid(shared.labelled, plans, context.folder / f"{arm}.png")
        images[f"{arm}: all modes, the chosen one strong, the expert's plan in green"] = (
            context.folder / f"{arm}.png"
        )
    return Measurement(metrics, images=images, notes=notes)


def sizes(training: tuple[int, int, int, int] | None, **others: int) -> dict[str, int]:
    """Return a scale's settings: steps, scenes a batch, noisy plans of each and width of a training, or none."""
    names = ("fit", "batch", "draws", "width")
    return dict(zip(names, training, strict=True)) | others if training else {"fit": 0} | others


CLAIM = Claim(
    method="diffusiondrive",
    paper="DiffusionDrive: Truncated Diffusion Model for End-to-End Autonomous Driving (CVPR 2025, arXiv 2411.15139)",
    statement="Two denoising calls from anchors plan better than twenty from noise, and keep the ways apart.",
    testbed="drive",
    arms=ARMS,
    targets=(
        at_least("any_route", "diffusiondrive", "regression", difference=0.05, name="score over regression"),
        at_least("any_route", "diffusiondrive", "diffusion", difference=0.02, name="score over diffusion"),
        at_least(
            "own_route",
            "diffusiondrive",
            "regression",
            difference=0.05,
            name="score over regression on the expert's route",
        ),
        at_most("calls", "diffusiondrive", "diffusion", ratio=0.1, name="network calls"),
        at_least("covered", "diffusiondrive", "diffusion", difference=0.3, name="routes covered"),
        at_least("diversity", "diffusiondrive", "diffusion", ratio=3.0, name="diversity"),
    ),
    scales={
        "smoke": Scale((500,), 300, sizes((2, 8, 2, 16), train=40, test=16, turns=1, diverse=1)),
        "quick": Scale((500,), 120, sizes(None, test=64, turns=1, diverse=4)),
        "laptop": Scale(
            (1000, 1001, 1002),
            1800,
            sizes((1200, 32, 4, 48), train=4000, test=300, turns=5, diverse=12),
        ),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor("diffusiondrive", "pdms", 0.3, "the planner's PDM score is only {:.2f}"),
        Ceiling(
            "regression", "any_route", 0.92, "one regressed plan scores {:.2f} where several routes are right"
        ),
    ),
    units="scene",
    columns={
        "any_route": "PDM score, several routes",
        "own_route": "on the expert's route",
        "pdms": "PDM score, all scenes",
        "drivable": "on the road",
        "collisions": "no collision at fault",
        "ade": "nearest mode, m",
        "covered": "routes covered",
        "diversity": "diversity",
        "calls": "network calls",
        "milliseconds": "ms a plan",
        "batched": "ms, 64 at once",
    },
)
