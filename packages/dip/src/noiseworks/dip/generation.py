"""What the commands do with models, cases and files."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.errors import InputError
from noiseworks.dip.agent import Motion, MotionAgent
from noiseworks.dip.baselines import make_agent
from noiseworks.dip.data import cases_of, opening, read_plan
from noiseworks.dip.evaluation import carry_out, generators_of, judge, plans_of, unblended
from noiseworks.dip.network import MotionModel
from noiseworks.dip.options import WAYS, CaseSet, Moving, Place, Sampling
from noiseworks.dip.pictures import films, write_motion
from noiseworks.kits.motion import ProcBody, load_body, load_scene
from noiseworks.kits.motion.body import BodyModel

if TYPE_CHECKING:
    from noiseworks.bench.testbeds.motion import Cases

Options = tuple[Sampling, Moving, CaseSet]
Show = Callable[..., None]


def load(model: str, body: BodyModel, options: Options) -> MotionAgent:
    """Return an agent with a model of the user's.

    Raises:
        InputError: When the way needs a control branch that the model lacks.
    """
    made = MotionModel.from_pretrained(model)
    sampling, moving, _ = options
    if sampling.hinted and made.branch is None:
        raise InputError(
            f"{model} has no control branch: train one with --model {model}, or use --no-control"
        )
    return make_agent(made, body, sampling, moving)


def generate_motions(model: str, out: Path, place: Place, options: Options, show: Show) -> dict[str, Any]:
    """Write motions; those that are there already are not made again."""
    figure = load_body(place.body, place.markers)
    agent = load(model, figure, options)
    samples, seed = options[2].samples, options[2].seed
    if place.scene is not None:
        scenes = load_scene(place.scene)
        start, points = read_plan(place.plan)
        first = next((one.place[:2] for one in points), start)
        plans, histories = [points], opening(figure, start, first)
    else:
        cases = cases_of(options[2])
        scenes, plans, histories = cases.scene, plans_of(cases), cases.history
    found = []
    generators = generators_of(seed, len(plans) * samples)
    for number, generator in enumerate(generators):
        case = number // samples
        path = out / f"motion_{number:03d}.npz"
        if path.exists():
            found.append({"file": str(path), "kept": True})
            continue
        (motion,) = agent.run([plans[case]], histories[case : case + 1], scenes[case : case + 1], [generator])
        out.mkdir(parents=True, exist_ok=True)
        write_motion(motion, scenes, case, figure, path, agent.sampler.model.fps)
        found.append(
            {
                "file": str(path),
                "frames": len(motion.frames),
                "rounds": len(motion.rounds),
                "done": motion.done == len(motion.plan),
            }
        )
        show(number + 1, len(generators))
    return {"motions": found}


def evaluate_way(model: str, options: Options, video: Path | None, show: Show) -> dict[str, Any]:
    """Return what motions of the options' way are worth, and write a film of some."""
    body = ProcBody()
    agent, cases = load(model, body, options), cases_of(options[2])
    motions = _made(agent, cases, options, show)
    if video is not None:
        rows = [index // options[2].samples for index in range(min(4, len(motions)))]
        films(motions[:4], cases.scene[rows], body, video)
    return _figures(motions, cases, body, agent, options)


def compare_ways(model: str, options: Options, video: Path | None, show: Show) -> dict[str, Any]:
    """Return what motions of all ways are worth, and write a film of the first case."""
    body, cases = ProcBody(), cases_of(options[2])
    found, first = {}, []
    for number, way in enumerate(WAYS):
        show(number, len(WAYS))
        agent = load(model, body, (replace(options[0], way=way), *options[1:]))
        begin = time.process_time()
        motions = _made(agent, cases, options, None)
        seconds = (time.process_time() - begin) / len(motions)
        found[way] = _figures(motions, cases, body, agent, options) | {"work_seconds": seconds}
        first.append(motions[0])
        if way == "dip":
            joined = unblended(motions, options[1].history)
            found["dip, not blended"] = _figures(joined, cases, body, agent, options)
    if video is not None:
        films(first, cases.scene[[0] * len(first)], body, video, columns=3)
    return found


def _made(agent: MotionAgent, cases: "Cases", options: Options, show: Show | None) -> list[Motion]:
    return carry_out(agent, cases, samples=options[2].samples, seed=options[2].seed, progress=show)


def _figures(
    motions: list[Motion], cases: "Cases", body: BodyModel, agent: MotionAgent, options: Options
) -> dict[str, Any]:
    samples = options[2].samples
    judged = judge(motions, cases, body, agent.sampler.model.fps, samples=samples)
    found: dict[str, Any] = judged.summary()
    return found | {f"best of {samples}": judged.best_of(samples)} if samples > 1 else found
