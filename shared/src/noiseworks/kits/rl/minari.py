"""Transitions from and to Minari's data sets on disk."""

from typing import TYPE_CHECKING

import numpy as np
from noiseworks.core.errors import InputError
from noiseworks.kits.rl.transitions import Transitions

if TYPE_CHECKING:
    import gymnasium
    from minari import MinariDataset


def from_minari(dataset: "MinariDataset | str") -> Transitions:
    """Return a Minari data set with vector observations and actions as transitions.

    Args:
        dataset: The data set, or the id of one that is on disk.

    Raises:
        InputError: When it is not on disk, observations or actions are not vectors, or it holds no steps.
    """
    import minari

    if isinstance(dataset, str):
        try:
            dataset = minari.load_dataset(dataset)
        except FileNotFoundError:
            raise InputError(
                f"Minari has no data set {dataset!r} on this machine: fetch it with `minari download {dataset}`"
            ) from None
    parts: dict[str, list[np.ndarray]] = {}
    for episode in dataset.iterate_episodes():
        seen, actions = episode.observations, episode.actions
        if not isinstance(seen, np.ndarray) or seen.ndim != 2 or np.ndim(actions) != 2:
            raise InputError(f"{dataset.spec.dataset_id}: observations and actions must be vectors")
        ended = np.asarray(episode.terminations, bool)
        cut = np.asarray(episode.truncations, bool) & ~ended
        cut[-1] |= not ended[-1]
        rows = {
            "observations": seen[:-1],
            "next_observations": seen[1:],
            "actions": actions,
            "rewards": episode.rewards,
            "terminals": ended,
            "timeouts": cut,
        }
        for name, array in rows.items():
            parts.setdefault(name, []).append(np.asarray(array))
    if not parts:
        raise InputError(f"{dataset.spec.dataset_id} holds no episodes")
    about = {"minari": dataset.spec.dataset_id}
    return Transitions(**{name: np.concatenate(arrays) for name, arrays in parts.items()}, about=about)


def to_minari(
    transitions: Transitions,
    dataset_id: str,
    env: "gymnasium.Env",
    *,
    random_score: float | None = None,
    expert_score: float | None = None,
    description: str | None = None,
    behaviour: str | None = None,
) -> "MinariDataset":
    """Write transitions as a Minari data set and return it.

    Minari keeps T + 1 observations and T actions an episode. Without an environment it would silently drop the two
    scores; its own normalised score runs from 0 to 1, `noiseworks.kits.rl.normalised_score` from 0 to 100.

    Args:
        transitions: What to write.
        dataset_id: Minari's id, such as `maze/umaze-medium-v0`.
        env: The environment it was recorded in, of a registered id.
        random_score: Return of the random policy.
        expert_score: Return of the expert.
        description: What the data set is.
        behaviour: What acted, Minari's `algorithm_name`.
    """
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for number, (a, b) in enumerate(zip(transitions.begins, transitions.ends, strict=True)):
        seen = np.concatenate((transitions.observations[a:b], transitions.next_observations[b - 1 : b]))
        buffers.append(
            EpisodeBuffer(
                id=number,
                observations=seen,
                actions=transitions.actions[a:b],
                rewards=transitions.rewards[a:b],
                terminations=transitions.terminals[a:b],
                truncations=transitions.timeouts[a:b],
            )
        )
    return minari.create_dataset_from_buffers(
        dataset_id,
        buffers,
        env=env,
        eval_env=env,
        ref_min_score=random_score,
        ref_max_score=expert_score,
        description=description,
        algorithm_name=behaviour,
    )
