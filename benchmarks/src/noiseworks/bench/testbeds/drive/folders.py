"""Labelled scenes as folders of .npz files: made by several processes, and gone on with where they were stopped."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

from noiseworks.bench.testbeds.drive.expert import Labelled, joined, label, of_scenes
from noiseworks.core.errors import InputError
from noiseworks.kits.driving import read_scenes, write_scenes

SHARD = 512  # scenes of a file
OTHERS = ("plans", "ends", "references", "scores", "templates")


def write_folder(
    folder: str | Path,
    seed: int,
    count: int,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write scenes 0 to `count` of a seed, and return how many were made now.

    Files that are whole are kept: a scene depends on its seed and index alone.

    Args:
        folder: Where the files go.
        seed: Of the set.
        count: Number of scenes.
        jobs: Processes.
        progress: Called with (scenes made, all that were missing).

    Raises:
        InputError: When the folder holds files of the seed's that another count wrote: their scenes would come twice.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {start: min(SHARD, count - start) for start in range(0, count, SHARD)}
    paths = {start: folder / f"scenes_{seed}_{start:06d}_{size}.npz" for start, size in sizes.items()}
    others = sorted({*folder.glob(f"scenes_{seed}_*.npz")} - {*paths.values()})
    if others:
        raise InputError(
            f"{others[0]} is of another count than {count}: give that one, or name another folder"
        )
    work = [(path, seed, start, sizes[start]) for start, path in paths.items() if not path.exists()]
    made, missing = 0, sum(size for *_, size in work)
    several = jobs > 1 and len(work) > 1
    with ProcessPoolExecutor(jobs, get_context("spawn")) if several else nullcontext() as pool:
        for size in (pool.map if pool else map)(_write, work):
            made += size
            if progress is not None:
                progress(made, missing)
    return made


def _write(task: tuple[Path, int, int, int]) -> int:
    path, seed, start, size = task
    labelled = label(seed, size, start=start)
    write_scenes(path, labelled.scenes, {name: getattr(labelled, name) for name in OTHERS})
    return size


def read_folder(folder: str | Path) -> Labelled:
    """Return the scenes of all .npz files of a folder, in the order of their names.

    Besides the scenes a file needs `plans` [B, 8, 3], what was driven. What else `write_folder` writes is found anew
    where it is missing.

    Raises:
        InputError: When there is no file, or one holds no scenes or no plans.
    """
    files = sorted(Path(folder).glob("*.npz"))
    if not files:
        raise InputError(f"{folder} has no .npz file of scenes and plans")
    parts = []
    for file in files:
        scenes, others = read_scenes(file)
        if "plans" not in others or others["plans"].shape != (len(scenes), 8, 3):
            raise InputError(f"{file} needs plans [{len(scenes)}, 8, 3]: what was driven, each half second")
        whole = set(OTHERS) <= set(others)
        made = {name: others[name] for name in OTHERS} if whole else {}
        parts.append(Labelled(scenes, **made) if whole else of_scenes(scenes, others["plans"]))
    return joined(parts)
