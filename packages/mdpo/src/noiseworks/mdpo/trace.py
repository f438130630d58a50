"""What every denoising step read, predicted and was sure of; saved as JSON, shown in the terminal or as HTML."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import ArtifactError
from noiseworks.core.output import json_text
from torch import Tensor

KIND = "mdpo/trace"


@dataclass(frozen=True)
class Trace:
    """The record of a decoding run: T steps, B rows, L generated positions.

    Attributes:
        inputs: x_t, the canvas before each step, int32 [T, B, L].
        predictions: x̂_t, the full prediction at each step, int32 [T, B, L].
        scores: Probability of each position's latest prediction, float16 [T, B, L]; 0 where there is none
            yet. It is the weight of the position in the MDPO loss.
        final: The result, int32 [B, L].
        mask_id: Id of [MASK].
        words: Text of the ids that occur, for display; empty where no tokenizer was given.
    """

    inputs: Tensor
    predictions: Tensor
    scores: Tensor
    final: Tensor
    mask_id: int
    words: dict[int, str] | None = None

    @property
    def steps(self) -> int:
        """Number of recorded steps T."""
        return self.inputs.shape[0]

    def row(self, index: int) -> "Trace":
        """Return the trace of one row, with B = 1."""
        part = slice(index, index + 1)
        cut = {name: getattr(self, name)[:, part] for name in ("inputs", "predictions", "scores")}
        return replace(self, **cut, final=self.final[part])

    def correct(self, verify: Callable[[int, Tensor], bool]) -> Tensor:
        """Return which steps' full predictions are right, bool [T, B]; equal predictions are asked once a row.

        Args:
            verify: Called with the row and its predicted ids, int32 [L].
        """
        right = torch.zeros(self.predictions.shape[:2], dtype=torch.bool)
        for b in range(right.shape[1]):
            unique, place = torch.unique(self.predictions[:, b], dim=0, return_inverse=True)
            right[:, b] = torch.tensor([bool(verify(b, ids)) for ids in unique])[place]
        return right

    def over_denoised(self, verify: Callable[[int, Tensor], bool]) -> Tensor:
        """Return which rows were right at some step and wrong at the last one, bool [B]; see `correct`."""
        return over_denoised(self.correct(verify))

    def with_words(self, tokenizer: Any) -> "Trace":
        """Return the trace with the text of its ids."""
        ids = (
            torch.cat([self.predictions.unique(), self.inputs.unique(), self.final.unique()])
            .unique()
            .tolist()
        )
        known = [i for i in ids if i != self.mask_id and i < len(tokenizer)]
        return replace(self, words={i: tokenizer.decode([i]) for i in known})

    def save(self, path: str | Path) -> None:
        """Write the trace as JSON, atomically."""
        record = {
            "kind": KIND,
            "mask_id": self.mask_id,
            "inputs": self.inputs.tolist(),
            "predictions": self.predictions.tolist(),
            "scores": [[[round(v, 4) for v in row] for row in step] for step in self.scores.tolist()],
            "final": self.final.tolist(),
            "words": self.words,
        }
        atomic_write(path, json_text(record, indent=None))

    @classmethod
    def load(cls, path: str | Path) -> "Trace":
        """Read what `save` wrote.

        Raises:
            ArtifactError: When the file is missing, cut off or no trace.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"no trace can be read from {path} ({error}); record it again") from error
        if not isinstance(record, dict) or record.get("kind") != KIND:
            raise ArtifactError(f"{path} is no trace; name a file that `generate --trace` wrote")
        tokens = [torch.tensor(record[name], dtype=torch.int32) for name in ("inputs", "predictions")]
        words = record["words"] and {int(i): word for i, word in record["words"].items()}
        final = torch.tensor(record["final"], dtype=torch.int32)
        return cls(*tokens, torch.tensor(record["scores"]).half(), final, record["mask_id"], words)


def over_denoised(correct: Tensor) -> Tensor:
    """Return which rows were right at some step and wrong at the last one, from bool [T, B]."""
    return correct.any(dim=0) & ~correct[-1]


def remasked(trace: Trace) -> Tensor:
    """Return how many predicted tokens each step masked again for later revision, int64 [T, B]."""
    known = trace.inputs != trace.mask_id
    after = torch.cat([known[1:], (trace.final != trace.mask_id)[None]])
    return (known & ~after).sum(dim=2)
