"""Data selection: train on prompts that the model solves at some step and then gets wrong."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from noiseworks.core import noise
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.mdpo.options import Decoding
from noiseworks.mdpo.prompts import Row
from noiseworks.mdpo.rollouts import Scoring, roll_out, row_seeds
from torch import nn

KIND = "mdpo/selection"


@dataclass(frozen=True)
class Selection:
    """The chosen prompts of a pool.

    Attributes:
        indices: Their places in the pool, increasing.
        block_lengths: The block length at which each was found to be over-denoised.
        pool: Fingerprint of the pool (see `fingerprint`).
        rate: Share of the pool that was over-denoised.
    """

    indices: tuple[int, ...]
    block_lengths: tuple[int, ...]
    pool: str
    rate: float

    def save(self, path: str | Path) -> None:
        """Write the selection as JSON, atomically."""
        atomic_write(path, json.dumps({"kind": KIND, **asdict(self)}) + "\n")

    def among(self, places: Sequence[int]) -> "Selection":
        """Return the selection with indices into the part of the pool that stands at `places`."""
        new = {old: index for index, old in enumerate(places)}
        kept = [(new[i], b) for i, b in zip(self.indices, self.block_lengths, strict=True) if i in new]
        return replace(self, indices=tuple(i for i, _ in kept), block_lengths=tuple(b for _, b in kept))

    @classmethod
    def load(cls, path: str | Path, rows: Sequence[Row]) -> "Selection":
        """Read what `save` wrote.

        Raises:
            ArtifactError: When the file is missing or no selection, or was made from other rows.
        """
        try:
            record = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise ArtifactError(f"no selection can be read from {path} ({error}); select again") from error
        if not isinstance(record, dict) or record.pop("kind", None) != KIND:
            raise ArtifactError(f"{path} is no selection; name a file that `select` wrote")
        if record["pool"] != fingerprint(rows):
            raise ArtifactError(f"{path} was selected from other data; select again on this data")
        record |= {name: tuple(record[name]) for name in ("indices", "block_lengths")}
        return cls(**record)


def fingerprint(rows: Sequence[Row]) -> str:
    """Return a short hash of data rows."""
    text = json.dumps([dict(row) for row in rows], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def draw_block_lengths(count: int, choices: Sequence[int], seed: int) -> list[int]:
    """Return one block length a prompt, drawn evenly from `choices`."""
    picks = noise.randint(noise.SeedSpec(seed).keys(range(count)), 0, len(choices), (1,))
    return [choices[i] for i in picks[:, 0].tolist()]


def select_over_denoised(
    model: nn.Module,
    scoring: Scoring,
    rows: Sequence[Row],
    decoding: Decoding,
    *,
    block_lengths: Sequence[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
    max_rows: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Selection:
    """Decode every prompt once and keep those that some step had right and the last one has wrong.

    Args:
        model: The model, in evaluation mode.
        scoring: Rewards; 1 or more is right.
        rows: The pool.
        decoding: Length, steps and sampler.
        block_lengths: Block length of each prompt is drawn from these (the authors: 32 and L); empty keeps
            the one of `decoding`.
        temperature: τ of this decoding.
        seed: Of block lengths and sampling.
        max_rows: Prompts a forward.
        progress: Called with prompts done and in all.

    Raises:
        InputError: When the pool is empty.
    """
    if not rows:
        raise InputError("the pool of prompts is empty; give data with at least one row")
    lengths = draw_block_lengths(len(rows), list(block_lengths) or [decoding.block_length], seed)
    seeds, found, done = row_seeds(seed, len(rows)), [], 0
    for length in sorted(set(lengths)):
        places = [i for i, own in enumerate(lengths) if own == length]
        rollouts = roll_out(
            model,
            scoring,
            [rows[i] for i in places],
            replace(decoding, block_length=length, temperature=temperature),
            seeds=[seeds[i] for i in places],
            max_rows=max_rows,
        )
        found += [i for i, over in zip(places, rollouts.over_denoised.tolist(), strict=True) if over]
        done += len(places)
        if progress is not None:
            progress(done, len(rows))
    found.sort()
    kept = tuple(lengths[i] for i in found)
    return Selection(tuple(found), kept, fingerprint(rows), len(found) / len(rows))
