"""What `noiseworks-mode` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Place, Spread
from noiseworks.kits.policies.options import TABLETOP, Trials
from noiseworks.mode.config import (
    KIND,
    MODEL_NAME,
    Demonstrations,
    Form,
    Judging,
    Levels,
    Recipe,
    Running,
    Seeing,
    SmallArchitecture,
    Timing,
    Training,
    check_ending,
)


def goals(
    *, texts: Path, out: Path, model: str = "openai/clip-vit-base-patch32", place: Spread[Place] = Place()
) -> Any:
    """Embed the wordings of tasks by a CLIP text model: the `goals.npy` that training reads.

    Args:
        texts: JSON file: for every task, in the order of the one-hot, a list of its wordings; equally many each.
        out: The file to write, such as data/goals.npy.
        model: Directory or hub id of a CLIP model.
        place: Where it runs.

    Returns:
        The file and the number of tasks, of wordings and of entries of an embedding.
    """
    check_ending(out, (".npy",))
    from noiseworks.mode.clip import embed_goals

    return embed_goals(texts, out, model=model, device=str(place.torch_device()))


def train(
    *,
    source: Spread[Demonstrations],
    out: Path,
    architecture: Spread[SmallArchitecture] = SmallArchitecture(),
    seeing: Spread[Seeing] = Seeing(),
    recipe: Spread[Recipe] = Recipe(),
    training: Spread[Training] = Training(),
) -> Any:
    """Train a MoDE policy, or with one expert a dense one, on demonstrations.

    The same command goes on with a run that was stopped, to the same numbers.

    Args:
        source: Demonstrations.
        out: Folder of the run: checkpoint, figures and, at the end, `model`.
        architecture: Of the denoiser.
        seeing: What the policy sees.
        recipe: Losses and optimiser.
        training: Length, seed, hardware.

    Returns:
        The model's directory, its parameters, steps in all and the step that this call went on from.
    """
    check_folder(out / MODEL_NAME, KIND, sources=(source.data, seeing.backbone))
    source.check_present()
    from noiseworks.mode.runs import new_model, run_training
    from noiseworks.mode.task_data import load_task_data

    found = load_task_data(source, image_size=seeing.size)
    model = new_model(found, architecture, seeing, training.seed)
    settings = {"source": source, "architecture": architecture, "seeing": seeing}
    return run_training(model, found, out, recipe, training, settings)


def finetune(
    *,
    model: str,
    source: Spread[Demonstrations],
    out: Path,
    freeze_routers: bool = False,
    recipe: Spread[Recipe] = Recipe(),
    training: Spread[Training] = Training(),
) -> Any:
    """Go on training a MoDE policy on other demonstrations.

    Args:
        model: A policy: a directory or testbed:<name>.
        source: Demonstrations.
        out: Folder of the run.
        freeze_routers: Whether the routers stay as they are, without balancing loss, as the paper fine-tunes.
        recipe: Losses and optimiser.
        training: Length, seed, hardware.

    Returns:
        As `train`.
    """
    check_folder(out / MODEL_NAME, KIND, sources=(source.data, model))
    source.check_present()
    resolve_model(model)
    from noiseworks.mode.models import load_model
    from noiseworks.mode.runs import check_fit, run_training
    from noiseworks.mode.task_data import load_task_data
    from noiseworks.mode.vision import ImageEncoder

    host = load_model(model)
    images = isinstance(host.encoder, ImageEncoder)
    size = (host.encoder.size or Seeing.image_size) if images else None
    found = load_task_data(source, image_size=size)
    check_fit(host, found)
    if not images:
        host.encoder.goals.copy_(found.goals)
    host = host.freeze_routers() if freeze_routers else host
    settings = {"source": source, "model": model, "freeze_routers": freeze_routers}
    return run_training(host, found, out, recipe, training, settings)


def eval_policy(
    *,
    model: str,
    running: Spread[Running] = Running(),
    trials: Spread[Trials] = Trials(),
    video: Path | None = None,
) -> dict[str, Any]:
    """Run a policy on the testbed `tabletop` and count its successes.

    Args:
        model: A policy: a directory or testbed:<name>.
        running: How it samples.
        trials: The episodes.
        video: Animated WebP file of the first episode of each task.

    Returns:
        Success with its interval, network calls, seconds, the cache's hit rate and the success of each task.
    """
    if trials.env != TABLETOP:
        raise InputError(f"policies of this package act on {TABLETOP}, got env {trials.env}")
    if video is not None:
        check_ending(video, (".webp",))
    resolve_model(model)
    from noiseworks.mode.models import load_model
    from noiseworks.mode.rollout import roll_out

    return roll_out(load_model(model).to(trials.torch_device()), running, trials, video)


def cache(*, model: str, form: Form = "merged", levels: Spread[Levels] = Levels()) -> dict[str, Any]:
    """Cache a policy's experts for a number of steps, and measure that nothing changes.

    Args:
        model: A policy: a directory or testbed:<name>.
        form: merged (one MLP per block and level) or bmm (a batched product, less memory).
        levels: Of the sampler.

    Returns:
        Steps, layers, different choices of experts, bytes, hit rate, and the greatest difference from routing at batch
        sizes 1, 7 and 64: as it is, and in float32 roundings at the magnitude of the output.
    """
    resolve_model(model)
    from dataclasses import asdict

    from noiseworks.mode.exactness import largest_difference
    from noiseworks.mode.models import load_model
    from noiseworks.mode.policy import EDMPolicy

    runner = EDMPolicy(load_model(model), num_inference_steps=levels.steps)
    made = runner.cache_experts(levels.steps, form)
    found = {f"largest_difference_batch_{n}": largest_difference(runner, n) for n in (1, 7, 64)}
    counts = runner.cache.report()
    shown = {name: one._asdict() for name, one in found.items()}
    return asdict(made) | shown | {"hits": counts.hits, "misses": counts.misses, "hit_rate": counts.hit_rate}


def usage(*, model: str, levels: Spread[Levels] = Levels(), out: Path | None = None) -> dict[str, Any]:
    """Show which experts a policy uses at which noise level.

    Args:
        model: A policy: a directory or testbed:<name>.
        levels: Of the sampler.
        out: PNG or WebP file of the heat map.

    Returns:
        Bits of information between level and expert per layer, each expert's share over all levels, and the weights
        [layers, steps, experts].
    """
    if out is not None:
        check_ending(out, (".png", ".webp"))
    resolve_model(model)
    from noiseworks.mode.models import load_model
    from noiseworks.mode.pictures import draw_usage
    from noiseworks.mode.policy import EDMPolicy
    from noiseworks.mode.routing import usage_information

    runner = EDMPolicy(load_model(model), num_inference_steps=levels.steps)
    table = runner.expert_usage()
    if out is not None:
        draw_usage(table, runner.sigmas[:-1], out)
    bits, share = usage_information(table).tolist(), table.mean(dim=1).tolist()
    return {"bits": bits, "share": share, "usage": table.tolist()}


def compare(
    *,
    model: str,
    against: str | None = None,
    timing: Spread[Timing] = Timing(),
    place: Spread[Place] = Place(),
) -> dict[str, Any]:
    """Time a replan with routed and with cached experts, in turns, and that of a dense model.

    Args:
        model: A policy: a directory or testbed:<name>.
        against: A dense policy to compare with, likewise.
        timing: What replans are timed.
        place: Where it runs.

    Returns:
        Median seconds of each kind and its ratio to routing, and the operations of a denoiser call.
    """
    for name in (model, *([] if against is None else [against])):
        resolve_model(name)
    from noiseworks.mode.models import load_model
    from noiseworks.mode.timing import compare_kinds

    device = place.torch_device()
    dense = None if against is None else load_model(against).to(device)
    return compare_kinds(load_model(model).to(device), dense, timing)


def ablate(
    *,
    source: Spread[Demonstrations],
    out: Path,
    variants: str | None = None,
    architecture: Spread[SmallArchitecture] = SmallArchitecture(),
    seeing: Spread[Seeing] = Seeing(),
    recipe: Spread[Recipe] = Recipe(),
    training: Spread[Training] = Training(),
    judging: Spread[Judging] = Judging(),
) -> Any:
    """Train variants of a model that differ in one setting each, and compare them.

    The same command goes on where it was stopped: each variant has a folder of its own.

    Args:
        source: Demonstrations.
        out: Folder that gets a folder for each variant.
        variants: Names with commas between; by default all, which a wrong name lists.
        architecture: What the variants change.
        seeing: What all of them see.
        recipe: Losses and optimiser, which some variants change.
        training: How all of them train.
        judging: On what they are compared.

    Returns:
        For each variant success, loss by noise level, bits of information between level and expert, parameters and
        operations.
    """
    source.check_present()
    from noiseworks.mode.ablation import compare_variants

    given = {"architecture": architecture, "seeing": seeing, "recipe": recipe, "training": training}
    return compare_variants(source, out, variants, given, judging.episodes)
