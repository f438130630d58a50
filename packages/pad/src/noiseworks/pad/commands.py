"""What `noiseworks-pad` runs: each verb is one of these functions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noiseworks.core.artifacts import check_writable
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread, Whole
from noiseworks.core.output import check_file
from noiseworks.kits.policies.options import TABLETOP, Trials
from noiseworks.pad.options import (
    Architecture,
    Demonstrations,
    Fitting,
    Following,
    Judging,
    Sampling,
    Video,
    Window,
)

if TYPE_CHECKING:
    from noiseworks.pad.evaluation import Judged


def train(
    *,
    out: Path,
    demonstrations: Spread[Demonstrations] = Demonstrations(),
    co_training: Spread[Video] = Video(),
    architecture: Spread[Architecture] = Architecture(),
    window: Spread[Window] = Window(),
    fitting: Spread[Fitting] = Fitting(),
) -> dict[str, Any]:
    """Train a model on demonstrations and, with `--video`, on action-free video beside them.

    Args:
        out: Folder of the run; the model is its `model`. The same command goes on with a run that was stopped.
        demonstrations: Episodes with poses.
        co_training: Episodes without.
        architecture: Sizes of the transformer.
        window: What of the future is predicted.
        fitting: Length, rates and weights.

    Returns:
        Where the model is, its parameters and steps.
    """
    check_writable(out)
    _check(demonstrations, co_training, architecture)
    from noiseworks.kits.training import Batches, check_run, open_run
    from noiseworks.pad.data import load_demonstrations, load_video
    from noiseworks.pad.model import modalities_of
    from noiseworks.pad.training import fit_pad, shapes_of, training_rows

    settings = {
        "demonstrations": demonstrations,
        "co_training": co_training,
        "architecture": architecture,
        "window": window,
        "fit": fitting,
    }
    check_run(out, settings)
    recording, seen = load_demonstrations(demonstrations), load_video(co_training, demonstrations)
    shapes = shapes_of(recording, demonstrations.depth_maps)
    modalities_of(architecture, window, shapes)
    Batches(training_rows(recording, shapes, window, seen, co_training), fitting.batch_size)
    with open_run(out, settings) as run:
        model = fit_pad(
            recording,
            architecture,
            window,
            fitting,
            video=seen,
            mixture=co_training,
            depth=demonstrations.depth_maps,
            run=run,
        )
        model.save_pretrained(out / "model")
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"model": str(out / "model"), "parameters": count, "steps": fitting.max_steps}


def evaluate(
    *,
    model: str,
    demonstrations: Spread[Demonstrations] = Demonstrations(episodes=5, data_seed=99),
    sampling: Spread[Sampling] = Sampling(),
    judging: Spread[Judging] = Judging(),
    following: Spread[Following] = Following(),
) -> dict[str, Any]:
    """Measure predicted poses and pictures on demonstrations that the model did not learn from.

    Args:
        model: A model: a directory or testbed:<name>.
        demonstrations: Episodes with poses; of the table, others than `train` takes by default.
        sampling: How futures are denoised.
        judging: On how much.
        following: Which entries of a pose are a position.

    Returns:
        Distance of the positions and PSNR of the pictures at every frame and, on the table, the distance in pixels of
        the gripper in a predicted picture to the predicted pose.
    """
    judged = _judged(model, demonstrations, sampling, judging, following)
    found = judged.summary()
    if demonstrations.data == TABLETOP and judged.psnr is not None:
        import numpy as np
        from noiseworks.pad.evaluation import consistency

        found["consistency_pixels"] = float(np.nanmean(consistency(judged)))
    return found


def predict(
    *,
    model: str,
    out: Path,
    demonstrations: Spread[Demonstrations] = Demonstrations(episodes=5, data_seed=99),
    sampling: Spread[Sampling] = Sampling(),
    judging: Spread[Judging] = Judging(windows=6),
    following: Spread[Following] = Following(),
) -> dict[str, Any]:
    """Draw predicted pictures below those that followed.

    Args:
        model: A model that predicts pictures: a directory or testbed:<name>.
        out: PNG file.
        demonstrations: Episodes with poses.
        sampling: How futures are denoised.
        judging: How many windows.
        following: Which entries of a pose are a position.

    Returns:
        The file, and the figures of `eval` on what it shows.
    """
    check_file(out, (".png",))
    from noiseworks.kits.pictures import write_picture
    from noiseworks.pad.evaluation import picture

    judged = _judged(model, demonstrations, sampling, judging, following)
    if judged.psnr is None:
        raise InputError(f"{model} predicts no pixels: train one with images")
    write_picture(picture(judged, judging.windows), out)
    return {"picture": str(out)} | judged.summary()


def rollout(
    *,
    model: str,
    trials: Spread[Trials] = Trials(),
    sampling: Spread[Sampling] = Sampling(),
    following: Spread[Following] = Following(),
    execute: Whole | None = None,
    video: Path | None = None,
) -> dict[str, Any]:
    """Run the policy on the testbed `tabletop` and count its successes.

    Args:
        model: A model: a directory or testbed:<name>.
        trials: The episodes.
        sampling: How plans are denoised.
        following: How their poses are followed.
        execute: Steps between two plans; the model's own number by default.
        video: Animated WebP file of the first episode of each task.

    Returns:
        Success with its interval, network calls, seconds, and success of each task.
    """
    if trials.env != TABLETOP:
        raise InputError(f"this policy sees pictures, which {TABLETOP} has, got env {trials.env}")
    if video is not None:
        check_file(video, (".webp",))
    resolve_model(model)
    from noiseworks.kits.policies.verbs import run
    from noiseworks.pad.model import PAD
    from noiseworks.pad.policy import PADPolicy, PosePlanner

    host = PAD.from_pretrained(model).to(trials.torch_device())

    def make(num_envs: int) -> PADPolicy:
        return PADPolicy(
            host,
            sampling=sampling,
            planner=PosePlanner(following),
            num_envs=num_envs,
            n_action_steps=execute,
        )

    cameras = {"image_size": host.shapes.size, "depth": bool(host.shapes.depth)}
    return run(make, trials, needs="pad", video=video, **cameras).summary()


def _check(demonstrations: Demonstrations, video: Video, architecture: Architecture) -> None:
    """Refuse what does not fit before anything heavy is imported."""
    for source in (demonstrations.data, video.video):
        if source not in (None, TABLETOP) and not Path(source).is_dir():
            raise InputError(f"no recording at {source!r}: name a folder, or {TABLETOP}")
    if video.video is not None and not architecture.images:
        raise InputError("video teaches images alone: predict images, or leave the video out")
    if demonstrations.data == TABLETOP and demonstrations.image_size % architecture.patch:
        raise InputError(
            f"image_size must be a multiple of patch ({architecture.patch}), got {demonstrations.image_size}"
        )


def _judged(
    model: str, source: Demonstrations, sampling: Sampling, judging: Judging, following: Following
) -> "Judged":
    """Return a model's futures."""
    resolve_model(model)
    _check(source, Video(), Architecture(patch=1))
    from noiseworks.pad.data import load_demonstrations
    from noiseworks.pad.evaluation import judge
    from noiseworks.pad.model import PAD

    network = PAD.from_pretrained(model)
    return judge(network, load_demonstrations(source), sampling, judging, following.position)
