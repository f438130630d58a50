"""Attaching streaming to a LeRobot policy object whose network reads a level for each position, and storing it."""

from pathlib import Path

from noiseworks.core.artifacts import load_artifact
from noiseworks.kits.policies.hosts.lerobot_control import Controlled, control, write_policy
from noiseworks.streaming_dp.hosts import NETWORK_KIND
from noiseworks.streaming_dp.options import Stream
from noiseworks.streaming_dp.policy import StreamingPolicy
from torch import nn


def attach(policy: nn.Module, stream: Stream = Stream(), *, seed: int = 0) -> Controlled:
    """Let a converted LeRobot policy stream in everything that calls its `select_action`.

    Args:
        policy: `convert(policy).policy` or, fine-tuned, `load_converted(folder, policy).policy`.
        stream: How the buffer begins and is denoised; actions stand in the policy's normalised units.
        seed: Seed of the noise.

    Returns:
        A handle with `detach()`, which is a context manager; `handle.controller.stats` counts network calls.

    Raises:
        InputError: When the settings do not fit the policy, or the method is attached already.
        UnsupportedHostError: When the network takes one step for all positions.
    """
    return control(
        "streaming-dp",
        policy,
        lambda host, rows: StreamingPolicy(host, **vars(stream), num_envs=rows, seed=seed),
    )


def write_lerobot(model: str | Path, weights: str | Path, out: str | Path, stream: Stream = Stream()) -> None:
    """Write a policy directory that LeRobot's own commands run as a stream.

    Args:
        model: The directory that LeRobot saved with the ordinary policy.
        weights: The converted network of `train` or `save_converted`.
        out: The directory to make.
        stream: How the buffer begins and is denoised; the conversion's number of actions a cycle by default.

    Raises:
        ArtifactError: When the weights are no converted network.
        InputError: When the model is no directory of LeRobot's diffusion policy.
    """
    record, tensors = load_artifact(weights, NETWORK_KIND)
    steps = stream.n_action_steps or record["n_action_steps"]
    write_policy(model, out, "streaming_dp", vars(stream) | {"n_action_steps": steps}, weights=tensors)
