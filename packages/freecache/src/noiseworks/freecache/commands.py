"""What `noiseworks-freecache` runs: each verb is one of these functions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from noiseworks.core.artifacts import CONFIG_NAME, FolderKind, check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Hardware, Seed, Spread
from noiseworks.core.output import lines_of, results, write_json, write_rows
from noiseworks.freecache.options import Asked, Caching, Guidance, Sampling, Timing

_TIMES = FolderKind("freecache/times", ("metrics.csv", "completions.json", CONFIG_NAME))
_DRIFT = FolderKind("freecache/drift", ("drift.csv", "drift.png", CONFIG_NAME))


def generate(
    *,
    model: str,
    prompt: str,
    guide: str | None = None,
    sampling: Spread[Sampling] = Sampling(),
    caching: Spread[Caching] = Caching(),
    guidance: Spread[Guidance] = Guidance(),
    chat: bool = False,
    seed: Seed = 0,
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Complete a prompt, or every line of a text file.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: The prompt, or a text file with one prompt a line.
        guide: A causal language model with the same vocabulary; with it, decoding is guided.
        sampling: How tokens are drawn and revealed.
        caching: What is frozen.
        guidance: When the guide accepts.
        chat: Whether to wrap prompts in the tokenizer's chat template.
        seed: Row i draws with seed + i.
        hardware: Where the models run.

    Returns:
        The texts, and what they cost.
    """
    prompts = lines_of(prompt)
    _resolve(model, guide)
    from noiseworks.freecache.data import encode, texts
    from noiseworks.freecache.running import complete, load

    loaded = load(model, guide, hardware)
    ids, mask = encode(loaded.tokenizer, prompts, loaded.spec, loaded.device, chat)
    output = complete(loaded, ids, mask, sampling, caching, guidance if guide else None, seed=seed)
    found = texts(loaded.tokenizer, output.sequences[:, ids.shape[1] :], loaded.spec)
    return {"texts": found, **output.stats.cost()}


def compare(
    *,
    model: str,
    out: Path,
    guide: str | None = None,
    prompt: str | None = None,
    timing: Spread[Timing] = Timing(),
    sampling: Spread[Sampling] = Sampling(),
    caching: Spread[Caching] = Caching(),
    guidance: Spread[Guidance] = Guidance(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Time decodings at several prompt lengths, in turn; prompts are random tokens and no text ends early.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        out: Folder for `metrics.csv`, `config.json` and, with a prompt, `completions.json`.
        guide: A causal language model with the same vocabulary, for the modes guide and both.
        prompt: A text whose completion by each mode is shown beside the times.
        timing: What is timed.
        sampling: How tokens are revealed.
        caching: What is frozen in the modes cache and both.
        guidance: When the guide accepts.
        hardware: Where the models run.

    Returns:
        One line a length and mode: seconds, speed-up over no cache, ratio of rows, steps, calls of the model, peak
        memory of its tensors in MiB, tokens a step; and the completions of the prompt.
    """
    check_folder(out, _TIMES, sources=(model, guide))
    if {"guide", "both"} & set(timing.names) and guide is None:
        raise InputError("the modes guide and both need a guide; name one with --guide")
    _resolve(model, guide)
    from noiseworks.freecache.running import completions, load, time_modes

    loaded = load(model, guide, hardware)
    rows = time_modes(loaded, timing, replace(sampling, early_stop=0), caching, guidance)
    said = {} if prompt is None else completions(loaded, prompt, timing, sampling, caching, guidance)
    config: dict[str, Any] = {"model": model, "guide": guide}
    for group in (timing, sampling, caching, guidance, hardware):
        config |= vars(group)
    with results(out, _TIMES, config) as folder:
        write_rows(folder / "metrics.csv", rows)
        if said:
            write_json(folder / "completions.json", {"prompt": prompt, **said})
    shown = {f"{mode} says": text for mode, text in said.items()}
    return {"out": str(out), **{f"{row['prompt']} {row['mode']}": row for row in rows}, **shown}


def probe(
    *,
    model: str,
    prompt: str,
    out: Path,
    sampling: Spread[Sampling] = Sampling(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Measure how much keys and values change from step to step, by layer and kind of position.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        prompt: The prompt, or a text file with one prompt a line.
        out: Folder for `drift.csv`, `drift.png` and `config.json`.
        sampling: Lengths and draws; tokens are revealed by a schedule, by default one a step.
        hardware: Where the model runs.

    Returns:
        Mean relative change by kind of position, one number a layer.
    """
    check_folder(out, _DRIFT, sources=(model, prompt))
    prompts = lines_of(prompt)
    _resolve(model)
    from noiseworks.freecache.data import encode
    from noiseworks.freecache.plots import plot_drift
    from noiseworks.freecache.probe import probe_drift
    from noiseworks.freecache.running import load

    loaded = load(model, None, hardware)
    ids, mask = encode(loaded.tokenizer, prompts, loaded.spec, loaded.device, False)
    drift = probe_drift(loaded.model, ids, sampling, attention_mask=mask, spec=loaded.spec)
    with results(out, _DRIFT, {"model": model, "prompts": len(prompts), **vars(sampling)}) as folder:
        plot_drift(drift, folder / "drift.png")
        write_rows(folder / "drift.csv", drift.rows())
    return {"out": str(out), **drift.means()}


def evaluate(
    *,
    model: str,
    task: str,
    guide: str | None = None,
    asked: Spread[Asked] = Asked(),
    sampling: Spread[Sampling] = Sampling(),
    caching: Spread[Caching] = Caching(),
    guidance: Spread[Guidance] = Guidance(),
    chat: bool = False,
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Count the right answers of a decoding on a task.

    Args:
        model: A LLaDA or Dream model: a directory, a hub id or testbed:<name>.
        task: countdown (the testbed's problems), or a JSON-lines file with `question` and `answer`, as GSM8K has
            them: the last number of the text is compared.
        guide: A causal language model with the same vocabulary; with it, decoding is guided.
        asked: Which problems are asked.
        sampling: How tokens are drawn and revealed.
        caching: What is frozen.
        guidance: When the guide accepts.
        chat: Whether to wrap prompts in the tokenizer's chat template.
        hardware: Where the models run.

    Returns:
        The share of right answers, and the cost summed over batches.
    """
    _resolve(model, guide)
    from noiseworks.freecache.data import load_task
    from noiseworks.freecache.running import count_right, load

    questions = load_task(task, asked.problems, asked.seed, asked.examples)
    loaded = load(model, guide, hardware)
    settings = (sampling, caching, guidance if guide else None)
    return count_right(loaded, questions, asked.batch_size, chat, *settings, seed=asked.seed)


def _resolve(*names: str | None) -> None:
    """Refuse names of no model before anything heavy is imported."""
    for name in names:
        if name is not None:
            resolve_model(name)
