"""What `noiseworks-freecache` runs: each verb is one of these functions."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from noiseworks.core.artifacts import CONFIG_NAME, FolderKind, atomic_directory, check_folder
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.errors import InputError
from noiseworks.freecache import data as tasks
from noiseworks.freecache.cache import COMMIT_RULES, CommitRule
from noiseworks.freecache.decoding import Decoded, Sampling
from noiseworks.freecache.guidance import Strategy
from noiseworks.freecache.guided import Mode
from noiseworks.freecache.loading import MODES, Loaded, decode, load, make_guided
from torch import Tensor

_TIMES = FolderKind("freecache/times", ("metrics.csv", CONFIG_NAME))
_DRIFT = FolderKind("freecache/drift", ("drift.csv", "drift.png", CONFIG_NAME))

if TYPE_CHECKING:
    from noiseworks.freecache.probe import Drift


def generate(
    *,
    model: str,
    prompt: str,
    guide: str | None = None,
    gen_length: int = 128,
    block_length: int = 32,
    steps: int | None = None,
    order: str | None = None,
    temperature: float = 0.0,
    top_p: float | None = None,
    top_k: int | None = None,
    commit: CommitRule = "lazy",
    refresh_every: int = 0,
    sliding: int | None = None,
    early_stop: int = 1,
    cache: bool = True,
    windows: str = "block",
    strategy: Strategy = "deterministic",
    guide_mode: Mode = "guided",
    verify: int = 32,
    match_any: bool = False,
    allow_retokenize: bool = False,
    chat: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Complete a prompt, or every line of a text file.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: The prompt, or a text file with one prompt a line.
        guide: A causal language model with the same vocabulary; with it, decoding is guided.
        gen_length: Tokens to generate.
        block_length: Tokens a block.
        steps: Steps in all without a guide, a multiple of the number of blocks; by default one a token.
        order: Which tokens are revealed first without a guide; by default the host's usual order.
        temperature: Of the draws without a guide.
        top_p: Mass of the nucleus without a guide.
        top_k: Tokens kept without a guide.
        commit: lazy, stale or eager.
        refresh_every: Blocks after which everything is computed anew; 0 for never.
        sliding: Without a guide: clean tokens before the block that every step computes anew, by default none.
            With windows sliding: tokens to each side, by default 128.
        early_stop: Ends of text in a row that end a text; 0 decodes every token.
        cache: Whether keys and values are cached.
        windows: block, token, prompt or sliding: where guided windows start.
        strategy: When the guide accepts: deterministic, dynamic_threshold, topk, topk_relative, aggressive or
            stochastic.
        guide_mode: guided, or speculative (baseline: the guide's tokens are written at rejections).
        verify: Drafts that are compared a step.
        match_any: Whether to write every accepted draft (experimental).
        allow_retokenize: Whether a guide with another vocabulary is mapped by text.
        chat: Whether to wrap prompts in the tokenizer's chat template.
        seed: Row i draws with seed + i.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Returns:
        The texts, and what they cost.
    """
    sampling = Sampling(
        gen_length,
        block_length,
        steps,
        order,
        temperature,
        top_p,
        top_k,
        early_stop,
        refresh_every,
        sliding=sliding or 0,
    )
    check_choice("commit", commit, COMMIT_RULES)
    prompts = tasks.read_prompts(prompt)
    loaded = load(model, guide, device, dtype)
    guided = None
    if guide is not None:
        guided = make_guided(
            loaded,
            windows=windows if cache else "none",
            block_length=block_length,
            verify=verify,
            strategy=strategy,
            guide_mode=guide_mode,
            match_any=match_any,
            early_stop=early_stop > 0,
            allow_retokenize=allow_retokenize,
            sliding=sliding,
        )
    ids, mask = tasks.encode(loaded.tokenizer, prompts, loaded.spec, loaded.device, chat)
    mode = ("both" if cache else "guide") if guided else ("cache" if cache else "none")
    output = decode(loaded, ids, mask, mode, sampling, commit=commit, guided=guided, seed=seed)
    texts = tasks.texts(loaded.tokenizer, output.sequences[:, ids.shape[1] :], loaded.spec)
    return {"texts": texts, "mode": mode, **cost(output)}


def cost(output: Decoded) -> dict[str, Any]:
    """Return what a generation cost as plain numbers."""
    stats = output.stats
    numbers = {
        "steps": stats.steps,
        "model_calls": stats.calls,
        "rows": stats.rows,
        "seconds": round(stats.seconds["total"], 4),
        "cache_mb": round(stats.memory_bytes / 1e6, 3),
    }
    if stats.guide_calls:
        numbers |= {
            "guide_calls": stats.guide_calls,
            "acceptance_rate": round(stats.acceptance_rate, 4),
            "seconds_model": round(stats.seconds["host"], 4),
            "seconds_guide": round(stats.seconds["guide"], 4),
        }
    return numbers


def bench(
    *,
    model: str,
    out: Path,
    guide: str | None = None,
    lengths: str = "128,1024",
    modes: str = "none,cache",
    gen_length: int = 64,
    block_length: int = 8,
    batch_size: int = 1,
    repeats: int = 3,
    commit: CommitRule = "lazy",
    sliding: int = 0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Time decodings at several prompt lengths, in turn; prompts are random tokens and no text ends early.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        out: Folder for `metrics.csv` and `config.json`.
        guide: A causal language model with the same vocabulary, for the modes guide and both.
        lengths: Prompt lengths, apart by commas.
        modes: none, cache, guide and both, apart by commas; none is what the others are compared with.
        gen_length: Tokens to generate.
        block_length: Tokens a block.
        batch_size: Prompts at once.
        repeats: Timed runs of each mode; the median counts.
        commit: lazy, stale or eager.
        sliding: In mode cache: clean tokens before the block that every step computes anew.
        seed: Of the prompts.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Returns:
        One line a length and mode: seconds, speed-up over no cache, ratio of rows, tokens a step.
    """
    check_folder(out, _TIMES, sources=(model, guide))
    wanted = [word.strip() for word in modes.split(",")]
    for word in wanted:
        check_choice("modes", word, MODES)
    if not all(word.strip().isdigit() and int(word) > 0 for word in lengths.split(",")):
        raise InputError(f"lengths must be positive whole numbers apart by commas, got {lengths!r}")
    check_number("repeats", repeats, low=1, integer=True)
    check_number("batch_size", batch_size, low=1, integer=True)
    if {"guide", "both"} & set(wanted) and guide is None:
        raise InputError("the modes guide and both need a guide; name one with --guide")
    loaded = load(model, guide, device, dtype)
    sampling, found = Sampling(gen_length, block_length, early_stop=0, sliding=sliding), []
    for length in map(int, lengths.split(",")):
        generator = torch.Generator().manual_seed(seed)
        ids = tasks.random_prompts(loaded.spec, batch_size, length, generator).to(loaded.device)
        found += _time_modes(loaded, ids, wanted, sampling, repeats, commit)
    with atomic_directory(out, _TIMES) as folder:
        text = io.StringIO()
        writer = csv.DictWriter(text, found[0].keys())
        writer.writeheader()
        writer.writerows(found)
        (folder / "metrics.csv").write_text(text.getvalue())
        config = {
            "kind": _TIMES.name,
            "model": model,
            "guide": guide,
            "commit": commit,
            "batch_size": batch_size,
            **vars(sampling),
        }
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    lines = {f"{row['prompt']} {row['mode']}": row for row in found}
    return {"out": str(out), **lines}


def _time_modes(
    loaded: Loaded, ids: Tensor, modes: list[str], sampling: Sampling, repeats: int, commit: CommitRule
) -> list[dict[str, Any]]:
    """Return one record a mode; modes take turns, so that a change of the machine's speed meets all alike."""
    guided = {
        mode: make_guided(
            loaded,
            windows="none" if mode == "guide" else "block",
            block_length=sampling.block_length,
            early_stop=False,
        )
        for mode in modes
        if mode in ("guide", "both")
    }
    runs: dict[str, list[Decoded]] = {mode: [] for mode in modes}
    mask = torch.ones_like(ids)
    for turn in range(repeats + 1):
        for mode in modes:
            run = decode(loaded, ids, mask, mode, sampling, commit=commit, guided=guided.get(mode))
            if turn:  # the first turn warms up
                runs[mode].append(run)
    records, base = [], None
    for mode in modes:
        seconds = sorted(run.stats.seconds["total"] for run in runs[mode])[repeats // 2]
        stats = runs[mode][0].stats
        base = (seconds, stats.rows) if mode == "none" else base
        records.append(
            {
                "prompt": ids.shape[1],
                "mode": mode,
                "seconds": round(seconds, 5),
                "speed_up": round(base[0] / seconds, 3) if base else None,
                "row_ratio": round(base[1] / stats.rows, 3) if base else None,
                "steps": stats.steps,
                "tokens_per_step": round(sampling.gen_length / stats.steps, 3),
            }
        )
    return records


def probe(
    *,
    model: str,
    prompt: str,
    out: Path,
    gen_length: int = 32,
    block_length: int = 8,
    steps: int | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Measure how much keys and values change from step to step, by layer and kind of position.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: The prompt, or a text file with one prompt a line.
        out: Folder for `drift.csv`, `drift.png` and `config.json`.
        gen_length: Tokens to generate.
        block_length: Tokens a block.
        steps: Steps in all; by default one a token.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Returns:
        Mean relative change by kind of position, one number a layer.
    """
    from noiseworks.freecache.plots import plot_drift
    from noiseworks.freecache.probe import probe_drift

    check_folder(out, _DRIFT, sources=(model, prompt))
    if steps is not None:
        check_number("steps", steps, low=2, integer=True)
    prompts = tasks.read_prompts(prompt)
    loaded = load(model, None, device, dtype)
    ids, mask = tasks.encode(loaded.tokenizer, prompts, loaded.spec, loaded.device, False)
    sampling = Sampling(gen_length, block_length, steps, early_stop=0)
    drift = probe_drift(loaded.model, ids, sampling, attention_mask=mask, spec=loaded.spec)
    with atomic_directory(out, _DRIFT) as folder:
        plot_drift(drift, folder / "drift.png")
        _write_drift(drift, folder / "drift.csv")
        config = {"kind": _DRIFT.name, "model": model, "prompts": len(prompts), **vars(sampling)}
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    return {"out": str(out), **drift.means()}


def _write_drift(drift: "Drift", path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("tensor", "kind", "step", "layer", "relative_change"))
        for name, part in (("keys", drift.keys), ("values", drift.values)):
            for kind, table in part.items():
                for step, row in enumerate(table.tolist(), start=1):
                    writer.writerows((name, kind, step, layer, value) for layer, value in enumerate(row))


def evaluate(
    *,
    model: str,
    task: str,
    guide: str | None = None,
    mode: str = "cache",
    problems: int = 64,
    examples: int = 0,
    gen_length: int = 16,
    block_length: int = 8,
    steps: int | None = None,
    commit: CommitRule = "lazy",
    strategy: Strategy = "deterministic",
    windows: str = "block",
    sliding: int | None = None,
    batch_size: int = 16,
    chat: bool = False,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Count the right answers of a decoding on a task.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        task: countdown (the testbed's problems), or a JSON-lines file with `question` and `answer`, as GSM8K has
            them: the last number of the text is compared.
        guide: A causal language model with the same vocabulary, for the modes guide and both.
        mode: none, cache, guide or both.
        problems: How many problems.
        examples: With countdown: tokens of solved problems before each question; 0 for none.
        gen_length: Tokens to generate.
        block_length: Tokens a block.
        steps: Steps in all without a guide; by default one a token.
        commit: lazy, stale or eager.
        strategy: When the guide accepts.
        windows: block, token, prompt or sliding, with mode both.
        sliding: In mode cache: clean tokens before the block that every step computes anew, by default none.
            With windows sliding: tokens to each side, by default 128.
        batch_size: Problems at once.
        chat: Whether to wrap prompts in the tokenizer's chat template.
        seed: Of the problems.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Returns:
        The share of right answers, and the cost summed over batches.
    """
    check_choice("mode", mode, MODES)
    check_number("batch_size", batch_size, low=1, integer=True)
    asked = tasks.load_task(task, problems, seed, examples)
    loaded = load(model, guide if mode in ("guide", "both") else None, device, dtype)
    guided = None
    if mode in ("guide", "both"):
        chosen = "none" if mode == "guide" else windows
        guided = make_guided(
            loaded, windows=chosen, block_length=block_length, strategy=strategy, sliding=sliding
        )
    sampling = Sampling(gen_length, block_length, steps, sliding=sliding or 0)
    right, totals = 0, {"steps": 0, "rows": 0, "seconds": 0.0}
    for first in range(0, len(asked), batch_size):
        part = asked[first : first + batch_size]
        prompts = [problem.prompt for problem in part]
        ids, mask = tasks.encode(loaded.tokenizer, prompts, loaded.spec, loaded.device, chat)
        output = decode(loaded, ids, mask, mode, sampling, commit=commit, guided=guided, seed=seed)
        answers = tasks.texts(loaded.tokenizer, output.sequences[:, ids.shape[1] :], loaded.spec)
        right += sum(problem.right(answer) for problem, answer in zip(part, answers, strict=True))
        totals["steps"] += output.stats.steps
        totals["rows"] += output.stats.rows
        totals["seconds"] += output.stats.seconds["total"]
    return {"mode": mode, "problems": len(asked), "right": right, "accuracy": right / len(asked), **totals}
