"""Demonstrations of the scripted experts, made on demand from a seed and checked against stored hashes."""

import hashlib
from dataclasses import dataclass

import numpy as np
from noiseworks.bench.testbeds.tabletop import simulation as sim
from noiseworks.bench.testbeds.tabletop.experts import Expert
from noiseworks.bench.testbeds.tabletop.rendering import render
from noiseworks.bench.testbeds.tabletop.tasks import INSTRUCTIONS, NUM_TASKS
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import ArtifactError
from noiseworks.kits.policies.chunking import Episodes

EPISODES_PER_TASK = {"tabletop-s": 50, "tabletop-m": 200}
# Seeds of demonstrations start here, far from those of evaluations.
FIRST_SEED = 1 << 32
HASHES = {
    "tabletop-s": "08e92e4c6cdcdfa098a09799e157f4e33c7fad26deffd8d164d9b3e42d18ba87",
    "tabletop-m": "d5667485cfd0bee05d597a52b7873341ee41a1241c54fa98d8c12abe6c3f4ec3",
}


def demonstrations(
    episodes_per_task: int,
    seed: int = 0,
    *,
    tasks: tuple[int, ...] = tuple(range(NUM_TASKS)),
    unimodal: bool = False,
) -> Episodes:
    """Return solved episodes of the experts, task after task.

    Args:
        episodes_per_task: Episodes of each task.
        seed: Which demonstrations; 0 to 999.
        tasks: Task ids.
        unimodal: Whether all bows go to the same side.

    Returns:
        Episodes with `obs` [M, 33] (state and task one-hot) and `actions` [M, 3] (velocities and gripper +-1).

    Raises:
        InputError: When a number is out of range.
    """
    check_number("episodes_per_task", episodes_per_task, low=1, integer=True)
    check_number("seed", seed, low=0, high=999, integer=True)
    # A few more than needed, since an expert fails now and then.
    attempts = episodes_per_task + 2 + episodes_per_task // 20
    labels = np.repeat(np.array(tasks, np.int64), attempts)
    first = FIRST_SEED + (seed << 20)
    seeds = first + np.tile(np.arange(attempts), len(tasks))
    obs, actions, lengths, solved = _roll_out(labels, seeds, unimodal)
    kept = np.concatenate([np.flatnonzero((labels == t) & solved)[:episodes_per_task] for t in tasks])
    ends = np.cumsum(lengths[kept])
    return Episodes(
        np.concatenate([obs[i, : lengths[i]] for i in kept]),
        np.concatenate([actions[i, : lengths[i]] for i in kept]),
        ends,
        labels[kept],
    )


def _roll_out(labels: np.ndarray, seeds: np.ndarray, unimodal: bool) -> tuple[np.ndarray, ...]:
    env = sim.TabletopBatch(len(labels))
    expert = Expert(env, unimodal=unimodal)
    rows = np.arange(len(labels))
    env.reset(rows, labels, seeds)
    expert.reset(rows, seeds)
    obs, actions = [], []
    lengths, solved = np.full(len(labels), env.max_steps), np.zeros(len(labels), bool)
    for step in range(env.max_steps):
        obs.append(env.observe()["obs"])
        actions.append(expert.act().astype(np.float32))
        new = env.step(actions[-1]).terminated & ~solved
        lengths[new] = step + 1
        solved |= new
        if solved.all():
            break
    return np.stack(obs, 1), np.stack(actions, 1), lengths, solved


def fingerprint(episodes: Episodes) -> str:
    """Return a SHA-256 of the episodes, with values rounded to 1e-4 so that it is the same on every machine."""
    digest = hashlib.sha256()
    for array in (episodes.obs, episodes.actions):
        digest.update(np.round(array.astype(np.float64) * 1e4).astype(np.int32).tobytes())
    for array in (episodes.ends, episodes.tasks):
        digest.update(array.astype(np.int64).tobytes())
    return digest.hexdigest()


def load(name: str = "tabletop-s") -> Episodes:
    """Return a named set of demonstrations, made anew in a second or two.

    Args:
        name: `tabletop-s` (50 episodes of each task) or `tabletop-m` (200).

    Raises:
        InputError: When the name is unknown.
        ArtifactError: When the result differs from the one that this release was measured on.
    """
    check_choice("name", name, tuple(EPISODES_PER_TASK))
    episodes = demonstrations(EPISODES_PER_TASK[name])
    found = fingerprint(episodes)
    if found != HASHES[name]:
        raise ArtifactError(f"{name} came out with hash {found[:12]}, expected {HASHES[name][:12]}")
    return episodes


@dataclass(frozen=True)
class Videos:
    """Episodes as a camera and a caption see them, without actions.

    Attributes:
        frames: uint8 [M, S, S, 3].
        ends: Where each episode ends, int64 [E].
        texts: An instruction or a paraphrase of it for each episode.
        tasks: Task ids, int64 [E], for figures only.
        paraphrases: Which wording, int64 [E]; row of `text_embeddings()[task]`.
    """

    frames: np.ndarray
    ends: np.ndarray
    texts: tuple[str, ...]
    tasks: np.ndarray
    paraphrases: np.ndarray


def videos(
    episodes_per_task: int,
    seed: int = 1,
    *,
    size: int = 32,
    tasks: tuple[int, ...] = tuple(range(NUM_TASKS)),
) -> Videos:
    """Return the video-only split: images and text of other episodes than `demonstrations(..., seed=0)`.

    Args:
        episodes_per_task: Episodes of each task.
        seed: Which demonstrations; 0 to 999.
        size: Side of the images: 32, 48 or 64.
        tasks: Task ids.
    """
    episodes = demonstrations(episodes_per_task, seed, tasks=tasks)
    wording = np.random.default_rng([seed, 2]).integers(len(INSTRUCTIONS[0]), size=len(episodes.tasks))
    pairs = zip(episodes.tasks.tolist(), wording.tolist(), strict=True)
    texts = tuple(INSTRUCTIONS[task][i] for task, i in pairs)
    frames = render(episodes.obs[:, : sim.STATE_DIM], size)
    return Videos(frames, episodes.ends, texts, episodes.tasks, wording)
