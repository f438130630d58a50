"""What `noiseworks-streaming-dp` runs: each verb is one of these functions."""

from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import check_folder
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread, Whole
from noiseworks.kits.policies.options import SHIPPED, TABLETOP, Keep, Trials
from noiseworks.streaming_dp.levels import ChunkLevels, LevelTable
from noiseworks.streaming_dp.options import KIND, NoiseSchedule, Stream, TrainConfig

RECORDED, EPISODES_PER_TASK = f"{SHIPPED}{TABLETOP}", 200
TRIALS = Trials(tasks=(0, 1, 2, 3, 4, 5, 8, 10, 11))


def levels(*, spec: Spread[ChunkLevels] = ChunkLevels()) -> LevelTable:
    """Show the buffer's levels and the network calls of each cycle.

    Args:
        spec: Sizes of the buffer.
    """
    return spec.table()


def convert_policy(*, model: str, out: Path, n_action_steps: Whole = 1) -> dict[str, Any]:
    """Convert an ordinary policy's network to one level per position; fine-tune it with `train` afterwards.

    Args:
        model: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        out: Directory of the converted policy.
        n_action_steps: Actions of a chunk.
    """
    check_folder(out, KIND, sources=(model,))
    check_number("n_action_steps", n_action_steps, low=1, integer=True)
    check_policy(model)
    from noiseworks.streaming_dp.hosts import streaming_host

    made = streaming_host(model, n_action_steps)
    made.save_pretrained(out)
    return {"out": str(out), "parameters": sum(p.numel() for p in made.net.parameters())}


def train_policy(
    *,
    out: Path,
    model: str | None = None,
    data: str = RECORDED,
    config: Spread[TrainConfig] = TrainConfig(),
    sizes: Spread[ChunkLevels] = ChunkLevels(),
    schedule: NoiseSchedule = "vp",
) -> dict[str, Any]:
    """Train a streaming policy: fine-tune a converted one, or begin anew. The same command goes on with a stopped run.

    Args:
        out: Folder of the run; the policy is in its folder model.
        model: A policy to convert and fine-tune, or a converted one; without it, training begins anew.
        data: An npz file with obs, actions, ends and tasks, testbed:tabletop or testbed:metaworld:TASK.
        config: Length, rate, seed and hardware.
        sizes: Sizes of a new policy; of n_action_steps also those of a conversion.
        schedule: Noise of a new policy: vp, the diffusion policies' discrete schedule, or edm (Karras et al. 2022).
    """
    check_folder(out / "model", KIND, sources=(model, data))
    if model is not None:
        check_policy(model)
        if schedule != "vp":
            raise InputError(
                "schedule is a new policy's, and a policy named by --model has its own; leave one out"
            )
    from noiseworks.kits.training import check_run

    settings = {"model": model, "data": data, "new": sizes, "schedule": schedule}
    check_run(out, settings | {"fit": config})
    import torch
    from noiseworks.kits.policies.chunking import ChunkSpec, windows
    from noiseworks.kits.policies.data import load_episodes
    from noiseworks.kits.policies.native import PolicyConfig
    from noiseworks.kits.policies.normalizer import LinearNormalizer
    from noiseworks.streaming_dp.hosts import StreamingHost, streaming_host
    from noiseworks.streaming_dp.training import train

    host = None if model is None else streaming_host(model, sizes.n_action_steps)
    shape = {name: getattr(sizes, name) for name in ("horizon", "n_obs_steps", "n_action_steps")}
    spec = ChunkSpec(**shape) if host is None else host.chunk
    found = load_episodes(data, needs="streaming-dp", episodes=EPISODES_PER_TASK)
    # Every step of an episode is the current one of some window.
    table = windows(found, spec, pad_after=spec.horizon - spec.n_obs_steps)
    if host is None:
        fitted = PolicyConfig(
            obs_dim=table["obs"].shape[-1],
            action_dim=table["action"].shape[-1],
            num_train_timesteps=sizes.num_levels,
            **shape,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            normal = (LinearNormalizer.fit(table[name]) for name in ("action", "obs"))
            host = StreamingHost(fitted, None, *normal, edm={} if schedule == "edm" else None)
    train(host, table, out, config, settings=settings)
    return {"model": str(out / "model"), "steps": config.max_steps, "windows": len(table["action"])}


def evaluate(
    *,
    model: str,
    stream: Spread[Stream] = Stream(),
    trials: Spread[Trials] = TRIALS,
    keep: Spread[Keep] = Keep(),
) -> dict[str, Any]:
    """Run a streaming policy and count its successes.

    Args:
        model: A directory of `train`.
        stream: How the buffer begins and is denoised.
        trials: The episodes.
        keep: What is kept of them; the video shows up to six tasks, with the buffers' paths.

    Returns:
        Success with its interval, network calls, seconds and the success of each task.
    """
    if keep.video is not None:
        check_choice("env of a video", trials.env, (TABLETOP,))
    resolve_model(model)
    from noiseworks.kits.policies.verbs import run
    from noiseworks.kits.policies.video import write_video
    from noiseworks.streaming_dp.hosts import StreamingHost
    from noiseworks.streaming_dp.pictures import record_stream
    from noiseworks.streaming_dp.policy import StreamingPolicy

    host = StreamingHost.from_pretrained(model, device=trials.torch_device())

    def make(rows: int) -> StreamingPolicy:
        return StreamingPolicy(host, num_envs=rows, **vars(stream))

    found = run(make, trials, needs="streaming-dp", record=keep.record, dataset=keep.dataset).summary()
    if keep.video is not None:
        shown = trials.tasks[:6]
        write_video(record_stream(make(len(shown)), shown, trials.seed, disturb=trials.disturb), keep.video)
    return found


def compare(
    *,
    model: str,
    host: str = "testbed:tabletop-unet",
    stream: Spread[Stream] = Stream(),
    trials: Spread[Trials] = TRIALS,
    replans: Whole = 20,
    compile_network: bool = False,
) -> dict[str, Any]:
    """Compare a streaming policy with its ordinary host, in 100 calls and in 10: success, calls and seconds a replan.

    Args:
        model: A directory of `train`.
        host: The ordinary policy.
        stream: How the buffer begins and is denoised.
        trials: The episodes, the same for all policies.
        replans: Replans that are timed with one environment.
        compile_network: Whether torch.compile compiles the streaming network.

    Returns:
        For each policy: success with its interval, network calls a replan and an executed action, milliseconds a
        replan, and how many times faster than the host's 100 calls a replan is.
    """
    check_number("replans", replans, low=1, integer=True)
    resolve_model(model)
    check_policy(host)
    from noiseworks.kits.policies import verbs
    from noiseworks.kits.policies.hosts import load_host
    from noiseworks.kits.policies.replanning import DiffusionPolicy
    from noiseworks.streaming_dp.hosts import StreamingHost
    from noiseworks.streaming_dp.policy import StreamingPolicy

    device = trials.torch_device()
    ordinary, streaming = (
        load_host(host, device=str(device)),
        StreamingHost.from_pretrained(model, device=device),
    )
    own = {**vars(stream), "compile_network": compile_network}
    arms = {
        "dp": lambda n: DiffusionPolicy(ordinary, cache=True, num_envs=n),
        "ddim": lambda n: DiffusionPolicy(
            ordinary, solver="ddim", num_inference_steps=10, cache=True, num_envs=n
        ),
        "sdp": lambda n: StreamingPolicy(streaming, num_envs=n, **own),
    }
    return verbs.compare(arms, trials, needs="streaming-dp", replans=replans)


def lerobot(*, model: Path, weights: Path, out: Path, stream: Spread[Stream] = Stream()) -> dict[str, str]:
    """Write a policy directory that LeRobot's own commands run as a stream.

    Args:
        model: A directory that LeRobot saved with a policy of type diffusion.
        weights: Its conversion, fine-tuned: the folder `model` of a training in Python.
        out: The directory to make.
        stream: How the buffer begins and is denoised.

    Returns:
        The folder, and the command that evaluates it.
    """
    from noiseworks.kits.policies.hosts.lerobot_control import evaluation_command
    from noiseworks.streaming_dp.lerobot.attaching import write_lerobot

    write_lerobot(model, weights, out, stream)
    return {"folder": str(out), "run": evaluation_command(out, "noiseworks.streaming_dp.lerobot")}


def check_policy(model: str) -> None:
    """Refuse a policy that is not there, before anything heavy is imported.

    Raises:
        ModelNotFoundError: When it is neither a checkpoint file, a directory nor a testbed's.
    """
    if not (model.endswith(".ckpt") and Path(model).is_file()):
        resolve_model(model)
