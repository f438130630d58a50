"""What `noiseworks-rti-dp` runs: each verb is one of these functions."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from noiseworks.core.checks import check_number
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Spread, Whole
from noiseworks.core.output import check_file
from noiseworks.kits.policies.options import Keep, Trials
from noiseworks.rti_dp.options import Choice, Iteration, parse_dims, parse_steps

DDIM_STEPS = 10


def suggest(*, model: str, data: str, choice: Spread[Choice] = Choice()) -> dict[str, Any]:
    """Suggest a list of steps from recorded episodes, and show how far a moved plan is from a new one.

    Args:
        model: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        data: An npz file with obs, actions, ends and tasks, testbed:tabletop or testbed:metaworld:TASK.
        choice: How the list is chosen.
    """
    check_model(model)
    from noiseworks.kits.policies.data import load_episodes
    from noiseworks.kits.policies.hosts import load_host
    from noiseworks.rti_dp.suggestion import suggest_steps

    episodes = load_episodes(data, needs="rti-dp", episodes=4, others=20)
    return asdict(suggest_steps(load_host(model), episodes, choice))


def evaluate(
    *,
    model: str,
    iteration: Spread[Iteration] = Iteration(),
    trials: Spread[Trials] = Trials(),
    keep: Spread[Keep] = Keep(),
) -> dict[str, Any]:
    """Run a policy by real-time iteration and count its successes.

    Args:
        model: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        iteration: How a replan starts from the last plan.
        trials: The episodes.
        keep: What is kept of them; `suggest` reads a record.

    Returns:
        Success with its interval, network calls, seconds, restarts and the success of each task.
    """
    check_model(model)
    from noiseworks.kits.policies.hosts import load_host
    from noiseworks.kits.policies.verbs import run
    from noiseworks.rti_dp.policy import RTIPolicy

    host = load_host(model, device=str(trials.torch_device()))
    outcome = run(
        lambda n: RTIPolicy(host, **vars(iteration), num_envs=n),
        trials,
        needs="rti-dp",
        **vars(keep),
    )
    return outcome.summary() | {"restarts": outcome.policy.restarts}


def compare(
    *,
    model: str,
    iteration: Spread[Iteration] = Iteration(),
    trials: Spread[Trials] = Trials(),
    replans: Whole = 20,
    video: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Compare real-time iteration with the full sampler, DDIM, temporal ensembling and the same steps from fresh noise.

    Args:
        model: A policy directory, a checkpoint file of the original library, or testbed:<name>.
        iteration: How a replan starts from the last plan.
        trials: The episodes, the same for all policies.
        replans: Replans whose time is measured, one environment at a time.
        video: Animated WebP file of the first episode on the table, the policies side by side.

    Returns:
        For each policy: success with its interval, network calls a replan and an executed action, milliseconds a
        replan, peak memory in MiB beside the weights, and how many times faster than the full sampler a replan is.
    """
    check_number("replans", replans, low=1, integer=True)
    check_model(model)
    from noiseworks.kits.policies import verbs
    from noiseworks.kits.policies.hosts import load_host
    from noiseworks.kits.policies.replanning import DiffusionPolicy
    from noiseworks.rti_dp.baselines import EnsemblePolicy, TruncatedPolicy
    from noiseworks.rti_dp.policy import RTIPolicy

    host, steps = load_host(model, device=str(trials.torch_device())), parse_steps(iteration.steps)
    few, lean = {"num_inference_steps": DDIM_STEPS}, {"cache": True}
    arms = {
        "full": lambda n: DiffusionPolicy(host, num_envs=n, **lean),
        "ddim": lambda n: DiffusionPolicy(host, solver="ddim", num_envs=n, **few, **lean),
        "ensemble": lambda n: EnsemblePolicy(host, num_envs=n, **few),
        "truncated": lambda n: TruncatedPolicy(host, steps, stepping=iteration.stepping, num_envs=n),
        "rti": lambda n: RTIPolicy(host, **vars(iteration), num_envs=n),
    }
    return verbs.compare(arms, trials, needs="rti-dp", replans=replans, video=video)


def scale_data(source: Path, target: Path, *, dims: str, factor: float = 10.0) -> dict[str, object]:
    """Write a copy of a dataset whose discrete actions are divided by a factor.

    Args:
        source: An npz file with `actions` [M, Da], or an HDF5 file in robomimic's layout (`data/<demo>/actions`),
            which needs the extra [hdf5].
        target: The file to write.
        dims: Discrete dimensions, separated by commas; -1 is the last one.
        factor: Above 0.

    Returns:
        The file, and the steps and dimensions that were scaled.

    Raises:
        InputError: When a file or number is wrong, or source and target are the same file.
    """
    source, target = Path(source), Path(target)
    if not source.is_file():
        raise InputError(f"no dataset at {source}: name an npz or HDF5 file")
    check_file(target, (source.suffix,), sources=(source,))
    check_number("factor", factor, low=0, low_open=True)
    wanted = parse_dims(dims)
    if source.suffix in (".hdf5", ".h5"):
        from noiseworks.rti_dp.hdf5 import scale_hdf5 as scale
    else:
        from noiseworks.rti_dp.scaling import scale_npz as scale
    steps, wanted = scale(source, target, wanted, factor)
    return {"file": str(target), "steps": steps, "dims": wanted, "factor": factor}


def lerobot(*, model: Path, out: Path, iteration: Spread[Iteration] = Iteration()) -> dict[str, str]:
    """Write a policy directory that LeRobot's own commands run by real-time iteration.

    Args:
        model: A directory that LeRobot saved with a policy of type diffusion.
        out: The directory to make, with the same weights and processors.
        iteration: How a replan starts from the last plan; the command of LeRobot may change each as --policy.NAME.

    Returns:
        The folder, and the command that evaluates it.
    """
    from noiseworks.kits.policies.hosts.lerobot_control import evaluation_command, write_policy

    write_policy(model, out, "rti_dp", vars(iteration))
    return {"folder": str(out), "run": evaluation_command(out, "noiseworks.rti_dp.lerobot")}


def check_model(model: str) -> None:
    """Refuse a model that is not there, before anything heavy is imported.

    Raises:
        ModelNotFoundError: When it is neither a checkpoint file, a directory nor a testbed's.
    """
    if not (model.endswith(".ckpt") and Path(model).is_file()):
        resolve_model(model)
