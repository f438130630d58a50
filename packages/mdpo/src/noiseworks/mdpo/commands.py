"""What `noiseworks-mdpo` runs: each verb is one of these functions."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noiseworks.core.artifacts import check_folder
from noiseworks.core.errors import InputError
from noiseworks.core.models import resolve_model
from noiseworks.core.options import Hardware, Spread
from noiseworks.core.output import check_file, write_json
from noiseworks.kits.training import check_run, open_run
from noiseworks.kits.training.progress import Bar
from noiseworks.mdpo.options import MODEL_FOLDER, Batching, BlockLengths, Decoding, MDPOConfig, Problems
from noiseworks.mdpo.results import Comparison, Evaluation, Generated, TrainResult
from noiseworks.mdpo.rewards import bundled_reward, check_columns
from noiseworks.mdpo.task_data import load_rows

if TYPE_CHECKING:
    from noiseworks.mdpo.rollouts import Scoring


def _host(model: str, adapter: str | None, hardware: Hardware) -> tuple[Any, Any, Any]:
    from noiseworks.kits.masked_lm import load_host
    from noiseworks.mdpo.policy import load_adapter

    target = hardware.torch_device()
    loaded, tokenizer, spec = load_host(model, dtype=hardware.torch_dtype() or "auto")
    loaded = loaded if adapter is None else load_adapter(loaded, adapter)
    return loaded.to(target).eval(), tokenizer, spec


def generate(
    *,
    model: str,
    prompt: list[str],
    decoding: Spread[Decoding] = Decoding(),
    batching: Spread[Batching] = Batching(),
    hardware: Spread[Hardware] = Hardware(),
    trace: Path | None = None,
) -> Generated:
    """Complete prompts with RCR or the standard sampler.

    Args:
        model: A directory, a hub id or testbed:NAME.
        prompt: A prompt; repeat the option for several. Prompt i is drawn with seed + i.
        decoding: How to decode.
        batching: How prompts go through the model.
        hardware: Where the model runs.
        trace: JSON file for what every step read and predicted; viz shows it. All prompts then are one batch.

    Returns:
        The completions and the number of network calls.
    """
    if trace is not None:
        check_file(trace)
    resolve_model(model)
    from noiseworks.mdpo.prompts import decode_completions, encode_prompts
    from noiseworks.mdpo.remasking import rcr_generate

    host, tokenizer, spec = _host(model, batching.adapter, hardware)
    device = next(host.parameters()).device
    size, texts, calls = len(prompt) if trace is not None else batching.batch_size, [], 0
    for start in range(0, len(prompt), size):
        rows = [{"prompt": text} for text in prompt[start : start + size]]
        ids, mask = (part.to(device) for part in encode_prompts(tokenizer, spec, rows))
        seeds = [batching.seed + start + i for i in range(len(rows))]
        made = rcr_generate(
            host, ids, decoding, attention_mask=mask, spec=spec, seeds=seeds, record=trace is not None
        )
        texts += decode_completions(tokenizer, spec, made.sequences[:, ids.shape[1] :].cpu())
        calls += made.calls
        if trace is not None:
            made.trace.with_words(tokenizer).save(trace)
    return Generated(texts, calls, None if trace is None else str(trace))


def compare(
    *,
    model: str,
    prompt: list[str],
    decoding: Spread[Decoding] = Decoding(),
    batching: Spread[Batching] = Batching(),
    hardware: Spread[Hardware] = Hardware(),
    out: Path | None = None,
) -> Comparison:
    """Try RCR on your own model: the same prompts by the standard sampler and by RCR, from the same seeds.

    Args:
        model: A directory, a hub id or testbed:NAME.
        prompt: A prompt; repeat the option for several.
        decoding: How both decode, but for remask.
        batching: How prompts go through the model.
        hardware: Where the model runs.
        out: JSON file for the table and the completions.

    Returns:
        For each sampler network calls, seconds, peak memory of its tensors in MiB, and the completions.
    """
    if decoding.remask != "rcr":
        raise InputError("compare runs both values of remask; leave the option out")
    if out is not None:
        check_file(out)
    resolve_model(model)
    from noiseworks.mdpo.comparison import compare_samplers

    host, tokenizer, spec = _host(model, batching.adapter, hardware)
    found = Comparison(compare_samplers(host, tokenizer, spec, prompt, decoding, batching))
    if out is not None:
        write_json(out, {"model": model, **found.to_dict()})
    return found


def _pool(problems: Problems, seed: int, split: str) -> list[dict[str, Any]]:
    rows = load_rows(problems.data, problems.task, num=problems.num, seed=seed, split=split)
    check_columns(problems.reward_name, rows[0])
    return rows


def _scoring(tokenizer: Any, spec: Any, problems: Problems) -> "Scoring":
    from noiseworks.mdpo.rollouts import Scoring

    return Scoring(tokenizer, spec, [bundled_reward(problems.reward_name)])


def evaluate(
    *,
    model: str,
    problems: Spread[Problems] = Problems(),
    decoding: Spread[Decoding] = Decoding(),
    batching: Spread[Batching] = Batching(),
    hardware: Spread[Hardware] = Hardware(),
    out: Path | None = None,
) -> Evaluation:
    """Measure the accuracy on a task, and how often a right prediction is denoised away again.

    Args:
        model: A directory, a hub id or testbed:NAME.
        problems: The task and its data.
        decoding: How to decode.
        batching: How prompts go through the model.
        hardware: Where the model runs.
        out: JSON file for the figures.

    Returns:
        Accuracy, share right at any step, and share over-denoised.
    """
    if out is not None:
        check_file(out)
    resolve_model(model)
    rows = _pool(problems, batching.seed, "test")
    from noiseworks.mdpo.rollouts import roll_out, row_seeds, summarize

    host, tokenizer, spec = _host(model, batching.adapter, hardware)
    scoring, seeds = _scoring(tokenizer, spec, problems), row_seeds(batching.seed, len(rows))
    with Bar("evaluating", len(rows)) as bar:
        found = summarize(
            roll_out(
                host, scoring, rows, decoding, seeds=seeds, max_rows=batching.batch_size, progress=bar.done
            )
        )
    if out is not None:
        record = {"model": model, "task": problems.task, **asdict(found)}
        write_json(out, record)
    return found


def select(
    *,
    model: str,
    out: Path,
    problems: Spread[Problems] = Problems(),
    decoding: Spread[Decoding] = Decoding(),
    block_lengths: BlockLengths = None,
    batching: Spread[Batching] = Batching(),
    hardware: Spread[Hardware] = Hardware(),
) -> dict[str, Any]:
    """Find the prompts that the model over-denoises: right at some step, wrong at the last one.

    Args:
        model: A directory, a hub id or testbed:NAME.
        out: JSON file of the selection, for train.
        problems: The task and its data; of the testbed its training problems.
        decoding: How to decode; temperature 0 is the authors' choice (0.1 for Dream).
        block_lengths: Block length of each prompt is drawn from these, such as 32,512.
        batching: How prompts go through the model.
        hardware: Where the model runs.

    Returns:
        How many prompts were kept, of how many, and the file.
    """
    check_file(out)
    resolve_model(model)
    rows = _pool(problems, batching.seed, "train")
    from noiseworks.mdpo.selection import select_over_denoised

    host, tokenizer, spec = _host(model, batching.adapter, hardware)
    with Bar("selecting", len(rows)) as bar:
        found = select_over_denoised(
            host,
            _scoring(tokenizer, spec, problems),
            rows,
            decoding,
            block_lengths=block_lengths or (),
            temperature=decoding.temperature,
            seed=batching.seed,
            max_rows=batching.batch_size,
            progress=bar.done,
        )
    found.save(out)
    return {"out": str(out), "kept": len(found.indices), "pool": len(rows), "rate": found.rate}


def train(
    *,
    model: str,
    out: Path,
    problems: Spread[Problems] = Problems(),
    config: Spread[MDPOConfig] = MDPOConfig(),
    dtype: Literal["float32", "bfloat16"] = "float32",
    selection: Path | None = None,
    eval_data: str | None = None,
) -> TrainResult:
    """Train with MDPO or with one of the baselines; the same command goes on with a run that was stopped.

    Args:
        model: A directory, a hub id or testbed:NAME.
        out: Folder for config.json, metrics.csv, TensorBoard, checkpoint, selections and the trained model.
        problems: The task and its data; of the testbed its training problems.
        config: The training.
        dtype: Type of the weights: float32, or bfloat16 under LoRA.
        selection: A file of select, whose prompts the first epoch takes.
        eval_data: Data of the evaluations along the batching.

    Returns:
        Rounds done, last reward, last evaluation and the trained model's folder.
    """
    settings = {"model": model, "problems": problems, "config": config, "dtype": dtype}
    settings |= {"selection": selection, "eval_data": eval_data}
    check_run(out, settings)
    check_folder(out / "model", MODEL_FOLDER, sources=(model,))
    resolve_model(model)
    rows, held = _pool(problems, config.seed, "train"), []
    if eval_data is not None:
        held = _pool(replace(problems, data=eval_data, num=None), config.seed, "test")
    if config.eval_every and not held:
        raise InputError("eval_every needs evaluation data; name them with eval_data, or set it to 0")
    import torch
    from noiseworks.kits.masked_lm import load_host
    from noiseworks.mdpo.selection import Selection
    from noiseworks.mdpo.training import MDPOTrainer

    chosen = None if selection is None else Selection.load(selection, rows)
    host, tokenizer, spec = load_host(model, dtype=getattr(torch, dtype))
    rewards = [bundled_reward(problems.reward_name)]
    trainer = MDPOTrainer(host, tokenizer, rewards, config, rows, held, spec=spec, selection=chosen)
    with open_run(out, settings) as run:
        return trainer.fit(run)
