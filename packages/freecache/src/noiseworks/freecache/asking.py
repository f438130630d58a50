"""Questions of the claim behind solved ones, and what each arm answers and costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from noiseworks.core.timing import work_clock
from noiseworks.freecache.baselines import dual_cache_generate, guide_generate
from noiseworks.freecache.data import Question, encode, load_task, shown_questions, texts
from noiseworks.freecache.decoding import Decoded, freecache_generate
from noiseworks.freecache.options import Caching, Guidance, Sampling
from noiseworks.freecache.running import Loaded
from torch import Tensor

# What is frozen in the arms that have a cache and no guide; in the others everything is computed anew.
_CACHING = {
    "lazy": Caching(sliding=0),
    "stale": Caching(commit="stale", sliding=0),
    "sliding": Caching(),
    "default": Caching(),
}


@dataclass
class Desk:
    """Prompts of one length, and what was decoded of them.

    Attributes:
        loaded: The models.
        questions: What is asked.
        batches: Prompts and masks.
        length: Tokens of an answer.
        block: Tokens of a block.
        done: Arm -> completions and seconds of the batches, on a CPU those of the process alone.
    """

    loaded: Loaded
    questions: list[Question]
    batches: list[tuple[Tensor, Tensor]]
    length: int
    block: int
    done: dict[str, tuple[list[Decoded], list[float]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        loaded: Loaded,
        file: str | None,
        count: int,
        tokens: int,
        seed: int,
        length: int,
        block: int,
        batch: int,
    ) -> "Desk":
        """Return questions of a file, or of the testbed, behind solved ones, prompts of about `tokens` tokens."""
        if file is None:
            questions = load_task("countdown", count, seed, tokens)
        else:
            questions = shown_questions(file, loaded.tokenizer, count, tokens, seed)
        prompts = [question.prompt for question in questions]
        parts = [prompts[first : first + batch] for first in range(0, len(prompts), batch)]
        batches = [encode(loaded.tokenizer, part, loaded.spec, loaded.device, False) for part in parts]
        return cls(loaded, questions, batches, length, block)

    def decoder(self, arm: str) -> Callable[[Tensor, Tensor], Decoded]:
        """Return what completes a batch of prompts in an arm."""
        loaded, common = self.loaded, {"spec": self.loaded.spec}
        sure = Sampling(self.length, self.block)
        if arm == "guide":
            common["gen_length"] = self.length
            return lambda ids, mask: guide_generate(loaded.guide, ids, attention_mask=mask, **common)
        if arm in ("guided", "both"):
            guided = loaded.guided(Guidance(), Caching(cache=arm == "both"))
            return lambda ids, mask: guided.generate(ids, sure, attention_mask=mask)
        if arm == "dual":
            return lambda ids, mask: dual_cache_generate(
                loaded.model, ids, sure, attention_mask=mask, **common
            )
        steps = self.guided_steps() if arm == "parallel" else self.length
        scheduled = Sampling(self.length, self.block, "schedule", steps=steps)
        sampling = sure if arm in ("threshold", "default") else scheduled
        caching = _CACHING.get(arm, Caching(cache=False))
        return lambda ids, mask: freecache_generate(
            loaded.model, ids, sampling, caching, attention_mask=mask, **common
        )

    def guided_steps(self) -> int:
        """Return what guided decoding takes for a whole answer, rounded up so that all blocks have as many steps."""
        runs, _ = self.decoded("guided", len(self.batches))
        pace = sum(pace_of(run, self.length) for run in runs) / len(runs)
        blocks = self.length // self.block
        return min(self.length, blocks * math.ceil(self.length / pace / blocks))

    def decoded(self, arm: str, batches: int) -> tuple[list[Decoded], list[float]]:
        """Return completions and seconds of the first batches, after a pair of prompts to warm up; kept once made."""
        if arm not in self.done:
            complete, clock = self.decoder(arm), work_clock(self.loaded.device)
            runs, seconds = [], []
            complete(*(part[:2] for part in self.batches[0]))
            for ids, mask in self.batches[:batches]:
                self._wait()
                begin = clock()
                runs.append(complete(ids, mask))
                self._wait()
                seconds.append(clock() - begin)
            self.done[arm] = runs, seconds
        return self.done[arm]

    def measured(self, arm: str, count: int) -> dict[str, list[float]]:
        """Return the metrics of an arm on the first questions, one value a question or a batch."""
        width = len(self.batches[0][0])
        runs, seconds = self.decoded(arm, -(-count // width))
        reference, _ = self.decoded("full", len(self.batches))
        right: list[float] = []
        agreement: list[float] = []
        for run, base, (ids, _) in zip(runs, reference, self.batches, strict=False):
            answers = run.sequences[:, ids.shape[1] :]
            words = texts(self.loaded.tokenizer, answers, self.loaded.spec)
            asked = self.questions[len(right) : len(right) + len(words)]
            right += [float(one.right(text)) for one, text in zip(asked, words, strict=True)]
            same = answers == base.sequences[:, ids.shape[1] :]
            agreement += same.double().mean(dim=1).tolist()
        metrics = {"accuracy": right, "agreement": agreement, "seconds": seconds}
        if arm != "guide":
            metrics["tokens_per_step"] = [pace_of(run, self.length) for run in runs]
            metrics["rows"] = [run.stats.rows / len(run.sequences) for run in runs]
        return metrics

    def _wait(self) -> None:
        if self.loaded.device.type == "cuda":
            torch.cuda.synchronize(self.loaded.device)


def pace_of(run: Decoded, length: int) -> float:
    """Return the tokens that a row gets in a step, on average over a batch."""
    stats = run.stats
    if stats.row_steps:
        return sum(stats.written) / sum(stats.row_steps)
    return length / stats.steps
