"""What `noiseworks-mdpo` runs: each verb is one of these functions."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter
from noiseworks.core.artifacts import HOST_FOLDER, atomic_write, check_folder, check_writable
from noiseworks.core.checks import check_choice, check_number
from noiseworks.core.devices import resolve_device, resolve_dtype
from noiseworks.core.errors import InputError
from noiseworks.kits.masked_lm import load_host
from noiseworks.mdpo.config import MDPOConfig
from noiseworks.mdpo.policy import load_adapter
from noiseworks.mdpo.prompts import decode_completions, encode_prompts
from noiseworks.mdpo.remasking import Decoding, rcr_generate
from noiseworks.mdpo.rewards import bundled_reward, check_columns
from noiseworks.mdpo.rollouts import Evaluation, Scoring, roll_out, row_seeds, summarize
from noiseworks.mdpo.selection import Selection, select_over_denoised
from noiseworks.mdpo.task_data import REWARD_OF, Task, load_rows
from noiseworks.mdpo.training import CHECKPOINT, MDPOTrainer, TrainResult
from rich.progress import Progress as Bars

Flat = Annotated[Decoding, Parameter(name="*")]
CONFIG_NAME = "config.yaml"
_SHORT = Decoding(gen_length=64, block_length=64, steps=64)


@dataclass(frozen=True)
class Generated:
    """What `generate` returns.

    Attributes:
        completions: One text a prompt.
        calls: Network calls.
        trace: The trace file, if one was asked for.
    """

    completions: list[str]
    calls: int
    trace: str | None


def _host(model: str, adapter: str | None, device: str, dtype: str) -> tuple[Any, Any, Any]:
    target, precision = resolve_device(device), resolve_dtype(dtype)
    loaded, tokenizer, spec = load_host(model, dtype=precision)
    loaded = loaded if adapter is None else load_adapter(loaded, adapter)
    return loaded.to(target).eval(), tokenizer, spec


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    with Bars(transient=True) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def generate(
    *,
    model: str,
    prompt: list[str],
    decoding: Flat = _SHORT,
    trace: Path | None = None,
    adapter: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
) -> Generated:
    """Complete prompts with RCR or the standard sampler.

    Args:
        model: A directory, a hub id or testbed:<name>.
        prompt: A prompt; repeat the option for several, which run in one batch.
        decoding: How to decode.
        trace: JSON file for what every step read and predicted; `viz` shows it.
        adapter: LoRA adapters that `train` left, a directory or a hub id.
        seed: Prompt i is drawn with seed + i.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Returns:
        The completions and the number of network calls.
    """
    check_number("seed", seed, low=0, integer=True)
    if trace is not None:
        check_writable(trace.parent)
    host, tokenizer, spec = _host(model, adapter, device, dtype)
    ids, mask = encode_prompts(tokenizer, spec, [{"prompt": text} for text in prompt])
    target = next(host.parameters()).device
    made = rcr_generate(
        host,
        ids.to(target),
        decoding,
        attention_mask=mask.to(target),
        spec=spec,
        seeds=[seed + i for i in range(len(prompt))],
        record=trace is not None,
    )
    if trace is not None:
        made.trace.with_words(tokenizer).save(trace)
    texts = decode_completions(tokenizer, spec, made.sequences[:, ids.shape[1] :].cpu())
    return Generated(texts, made.calls, None if trace is None else str(trace))


def evaluate(
    *,
    model: str,
    task: Task = "countdown",
    data: str = "testbed:countdown",
    decoding: Flat = _SHORT,
    reward: str | None = None,
    num: int | None = None,
    batch_size: int = 64,
    out: Path | None = None,
    adapter: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
) -> Evaluation:
    """Measure the accuracy on a task, and how often a right prediction is denoised away again.

    Args:
        model: A directory, a hub id or testbed:<name>.
        task: countdown, math (or math500), sudoku, or rows for your own data.
        data: A .jsonl, .json or .csv file, or testbed:countdown.
        decoding: How to decode.
        reward: A bundled reward instead of the task's own; 1 or more is right.
        num: Prompts taken from the data.
        batch_size: Prompts a forward.
        out: JSON file for the figures.
        adapter: LoRA adapters that `train` left, a directory or a hub id.
        seed: Of sampling, and of the testbed's problems.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Returns:
        Accuracy, share right at any step, and share over-denoised.
    """
    if out is not None:
        check_writable(out.parent)
    name = _reward_name(task, reward)
    rows = load_rows(data, task, num=num, seed=seed)
    check_columns(name, rows[0])
    host, tokenizer, spec = _host(model, adapter, device, dtype)
    scoring = Scoring(tokenizer, spec, [bundled_reward(name)])
    with _bar("evaluating") as progress:
        rollouts = roll_out(
            host,
            scoring,
            rows,
            decoding,
            seeds=row_seeds(seed, len(rows)),
            max_rows=batch_size,
            progress=progress,
        )
    found = summarize(rollouts)
    if out is not None:
        atomic_write(out, json.dumps({"model": model, "task": task, **asdict(found)}, indent=2) + "\n")
    return found


def select(
    *,
    model: str,
    data: str,
    out: Path,
    task: Task = "countdown",
    decoding: Flat = _SHORT,
    block_lengths: tuple[int, ...] = (),
    reward: str | None = None,
    num: int | None = None,
    batch_size: int = 64,
    adapter: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Find the prompts that the model over-denoises: right at some step, wrong at the last one.

    Args:
        model: A directory, a hub id or testbed:<name>.
        data: A .jsonl, .json or .csv file, or testbed:countdown (its training problems).
        out: JSON file of the selection, for the key `selection` of a training configuration.
        task: countdown, math, sudoku, or rows for your own data.
        decoding: How to decode; temperature 0 is the authors' choice (0.1 for Dream).
        block_lengths: Block length of each prompt is drawn from these.
        reward: A bundled reward instead of the task's own.
        num: Prompts taken from the data.
        batch_size: Prompts a forward.
        adapter: LoRA adapters that `train` left, a directory or a hub id.
        seed: Of block lengths, sampling, and the testbed's problems.
        device: auto, cpu, cuda or cuda:<n>.
        dtype: float32, bfloat16 or float16.

    Returns:
        How many prompts were kept, of how many, and the file.
    """
    check_writable(out.parent)
    name = _reward_name(task, reward)
    rows = load_rows(data, task, num=num, seed=seed, split="train")
    check_columns(name, rows[0])
    host, tokenizer, spec = _host(model, adapter, device, dtype)
    with _bar("selecting") as progress:
        found = select_over_denoised(
            host,
            Scoring(tokenizer, spec, [bundled_reward(name)]),
            rows,
            decoding,
            block_lengths=block_lengths,
            temperature=decoding.temperature,
            seed=seed,
            max_rows=batch_size,
            progress=progress,
        )
    found.save(out)
    return {"out": str(out), "kept": len(found.indices), "pool": len(rows), "rate": found.rate}


def train(*, config: Path, out: Path, resume: bool = False) -> TrainResult:
    """Train with MDPO, or with one of the baselines, as a configuration file says.

    Args:
        config: YAML file with `model`, `data`, `task` and, if wanted, `dtype` (of the weights: float32, or
            bfloat16 under LoRA), `num`, `reward`, `selection`, `eval_data`, `eval_num`, and the sections
            `training` and `decoding`, whose keys are the fields of MDPOConfig and Decoding.
        out: Folder for config.yaml, metrics.csv, checkpoint, selections and the trained model.
        resume: Go on with the run that was begun in the folder, if there is one.

    Returns:
        Rounds done, last reward, last evaluation and the trained model's folder.
    """
    check_writable(out)
    run = _read_config(config)
    check_folder(out / "model", HOST_FOLDER, sources=(run["model"],))
    settings = _settings(run)
    reward, precision = (
        _reward_name(run["task"], run.get("reward")),
        resolve_dtype(run.get("dtype", "float32")),
    )
    if (out / CONFIG_NAME).is_file():
        if not resume:
            raise InputError(
                f"{out} already holds a run; add --resume to go on with it, or name another folder"
            )
        before = yaml.safe_load((out / CONFIG_NAME).read_text())
        if before != json.loads(json.dumps(run)):
            raise InputError(f"{out} was begun with another configuration; resume with {out / CONFIG_NAME}")
    rows = load_rows(run["data"], run["task"], num=run.get("num"), seed=settings.seed, split="train")
    held = load_rows(run["eval_data"], run["task"], num=run.get("eval_num")) if "eval_data" in run else []
    for part in filter(None, (rows, held)):
        check_columns(reward, part[0])
    selection = Selection.load(run["selection"], rows) if "selection" in run else None
    host, tokenizer, spec = load_host(run["model"], dtype=precision)
    functions = [bundled_reward(reward)]
    trainer = MDPOTrainer(
        host, tokenizer, functions, settings, rows, held, spec=spec, selection=selection, out=out
    )
    if trainer.fabric.is_global_zero:
        # JSON is YAML: the settings are readable as either.
        atomic_write(out / CONFIG_NAME, json.dumps(run, indent=2) + "\n")
    with Bars(transient=True) as bars:
        task = bars.add_task("training", total=None)

        def progress(done: int, total: int, text: str) -> None:
            bars.update(task, completed=done, total=total, description=text)

        return trainer.fit(resume=resume and (out / CHECKPOINT).is_file(), progress=progress)


def _reward_name(task: str, reward: str | None) -> str:
    if reward is None and task not in REWARD_OF:
        raise InputError(f"task {task} has no reward of its own; name one with reward")
    return reward or REWARD_OF[task]


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"no configuration at {path}; name a YAML file with model, data and task")
    try:
        run = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML: {error}") from error
    known = {
        "model",
        "data",
        "task",
        "dtype",
        "eval_data",
        "eval_num",
        "num",
        "reward",
        "selection",
        "training",
        "decoding",
    }
    for key in run if isinstance(run, dict) else ():
        check_choice(f"a key of {path}", key, sorted(known))
    missing = [key for key in ("model", "data", "task") if not isinstance(run, dict) or key not in run]
    if missing:
        raise InputError(f"{path} lacks the key {missing[0]!r}; it needs model, data and task")
    return run


def _settings(run: dict[str, Any]) -> MDPOConfig:
    parts = {}
    for name, kind in (("decoding", Decoding), ("training", MDPOConfig)):
        values = dict(run.get(name) or {})
        known = [field.name for field in fields(kind) if field.name != "decoding"]
        for key, value in values.items():
            check_choice(f"a key of {name}", key, known)
            values[key] = tuple(value) if isinstance(value, list) else value
        parts[name] = values
    decoding = replace(MDPOConfig().decoding, **parts["decoding"])
    return MDPOConfig(decoding=decoding, **parts["training"])
