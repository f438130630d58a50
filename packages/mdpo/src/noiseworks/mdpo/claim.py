"""The claim: RCR answers more problems at equal network calls, and MDPO teaches the model what RL is to teach it.

On the masked language model of `countdown`, low-confidence, random-order and RCR decoding are compared at
several numbers of steps; then the model is trained with MDPO and, on the same loop and for as many updates,
with terminal rewards, with diffu-GRPO's estimator and with further supervised training.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from noiseworks.bench.claims import Arm, Claim, Context, Measurement, Scale, ScaleName, Target
from noiseworks.bench.runner.session import DEFAULT_OUT, BenchResult, bench
from noiseworks.bench.testbeds.countdown import Problem, problems, verify
from noiseworks.core.artifacts import load_artifact, save_artifact
from noiseworks.core.errors import InputError
from noiseworks.core.noise import SeedSpec, permutation
from noiseworks.kits.masked_lm import load_host
from noiseworks.mdpo.config import MDPOConfig
from noiseworks.mdpo.policy import add_lora
from noiseworks.mdpo.remasking import Decoding
from noiseworks.mdpo.rewards import RewardFunction, bundled_reward
from noiseworks.mdpo.rollouts import Rollouts, Scoring, roll_out, row_seeds
from noiseworks.mdpo.task_data import load_rows
from noiseworks.mdpo.training import MDPOTrainer
from torch import nn

HOST = "testbed:countdown"
SHIPPED = Path(__file__).parent / "shipped"
SHIPPED_KIND = "mdpo/claim"
TEST_VARIABLE, TRAIN_VARIABLE = "NOISEWORKS_MDPO_TEST", "NOISEWORKS_MDPO_TRAIN"
RANGE = (0.05, 0.95)  # accuracy of the base model between which there is something to gain and to lose
LORA = {
    "lora_rank": 8,
    "lora_alpha": 16.0,
    "lora_dropout": 0.0,
    "lora_targets": ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj"),
}


# The authors' adapters and learning rate for LLaDA-8B, at the full scale.
FULL_LORA = {"lora_rank": 128, "lora_alpha": 64.0, "lora_dropout": 0.05}
FULL_LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Setup:
    """The model and the problems of a run.

    Attributes:
        host: The model.
        device: Where it runs.
        dtype: Its type.
        length: Tokens of an answer.
        rows: Completions in one forward.
        temperature: Of the rollouts that are trained on.
        test: File of the problems that are judged on, in MATH-500's form; None for the testbed's.
        train: The same, of the problems that are trained on.
    """

    host: str
    device: str
    dtype: str
    length: int
    rows: int
    temperature: float
    test: str | None = None
    train: str | None = None

    @property
    def reward(self) -> RewardFunction:
        """What counts as right."""
        return right_answer if self.test is None else bundled_reward("math")


def setup_of(context: Context) -> Setup:
    """Return the set-up of a scale; at the full one on the user's problems.

    Raises:
        InputError: At the full scale without problems.
    """
    sizes, files = context.settings, {}
    if context.scale == "full":
        missing = [name for name in (TEST_VARIABLE, TRAIN_VARIABLE) if not os.environ.get(name)]
        if missing:
            wanted = f"{TEST_VARIABLE} and {TRAIN_VARIABLE}, files with problem and answer such as MATH-500's"
            raise InputError(f"the full scale needs {wanted}; {' and '.join(missing)} not set")
        files = {"test": os.environ[TEST_VARIABLE], "train": os.environ[TRAIN_VARIABLE]}
    fields = {name: sizes[name] for name in ("dtype", "length", "rows", "temperature")}
    return Setup(context.model or HOST, context.device, **fields, **files)


@dataclass(frozen=True)
class Recipe:
    """How an arm is trained; chosen on seeds below 1000.

    Attributes:
        learning_rate: Of AdamW.
        settings: Further fields of MDPOConfig.
    """

    learning_rate: float
    settings: Mapping[str, Any]


RECIPES = {
    "mdpo": Recipe(2e-4, {"objective": "mdpo"}),
    "final": Recipe(5e-4, {"objective": "mdpo", "advantage": "final"}),
    "diffu_grpo": Recipe(1e-3, {"objective": "diffu_grpo", "clip": 0.5, "beta": 0.04}),
    "sft": Recipe(2e-3, {"objective": "sft"}),
}
SAMPLERS = {
    "base": {"remask": "low_confidence"},
    "random": {"remask": "low_confidence", "confidence": "random"},
    "rcr": {"remask": "rcr"},
}


@cache
def host(name: str, device: str = "cpu", dtype: str = "float32") -> tuple[nn.Module, Any, Any]:
    """Return model, tokenizer and contract, loaded once a process."""
    model, tokenizer, spec = load_host(name, dtype=getattr(torch, dtype))
    return model.to(device), tokenizer, spec


def host_of(setup: Setup) -> tuple[nn.Module, Any, Any]:
    """Return a set-up's model, tokenizer and contract."""
    return host(setup.host, setup.device, setup.dtype)


@cache
def rows_of(setup: Setup, count: int, seed: int, split: Literal["train", "test"]) -> list[dict[str, Any]]:
    """Return problems as data rows, drawn once a process; a file of fewer problems gives all of them."""
    file = setup.test if split == "test" else setup.train
    if file is None:
        found = problems("countdown", count, seed, split)
        return [{"prompt": one.prompt, "answer": one.answer, "problem": one} for one in found]
    rows = load_rows(file, "math")
    order = permutation(SeedSpec(seed).keys([0]), len(rows))[0][:count].tolist()
    # Supervised training reads `answer`, in the form that the prompt asks for.
    return [rows[i] | {"answer": f"\\boxed{{{rows[i]['solution']}}}"} for i in order]


def right_answer(
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    problem: Sequence[Problem],
    **columns: Sequence[Any],
) -> list[float]:
    """Return 1 where the testbed's verifier accepts a completion, else 0."""
    return [float(verify(one, text)) for one, text in zip(problem, completions, strict=True)]


def decode(model: nn.Module, setup: Setup, count: int, seed: int, decoding: Decoding) -> Rollouts:
    """Return scored completions of a seed's held-out problems."""
    _, tokenizer, spec = host_of(setup)
    rows = rows_of(setup, count, seed, "test")
    scoring = Scoring(tokenizer, spec, [setup.reward])
    return roll_out(model, scoring, rows, decoding, seeds=row_seeds(seed, len(rows)), max_rows=setup.rows)


@cache
def base_rollouts(setup: Setup, count: int, seed: int, steps: int) -> Rollouts:
    """Return what the untrained model answers with low-confidence decoding."""
    decoding = Decoding(setup.length, setup.length, steps, remask="low_confidence")
    return decode(host_of(setup)[0], setup, count, seed, decoding)


def config_of(arm: str, seed: int, settings: Mapping[str, Any], setup: Setup) -> MDPOConfig:
    """Return the training settings of an arm."""
    recipe, full = RECIPES[arm], setup.train is not None
    length, steps = setup.length, settings["train_steps"]
    return MDPOConfig(
        Decoding(length, length, steps, setup.temperature, remask="low_confidence"),
        updates=settings["updates"],
        num_generations=8,
        prompts_per_update=settings["prompts"],
        sample_train_steps=8 if full else min(3, steps),
        learning_rate=FULL_LEARNING_RATE if full else recipe.learning_rate,
        rollout_rows=setup.rows,
        micro_batch_prompts=1 if full else settings["prompts"],
        accelerator="cpu" if setup.device == "cpu" else "gpu",
        seed=seed,
        **(FULL_LORA if full else LORA),
        **{"beta": 0.0, **recipe.settings},
    )


@cache
def trained(
    arm: str, seed: int, setup: Setup, settings: tuple[tuple[str, int], ...]
) -> tuple[nn.Module, tuple[float, ...]]:
    """Train an arm, once a process; returns the model with its adapter and the reward of every update."""
    model, tokenizer, spec = host_of(setup)
    values = dict(settings)
    rows = rows_of(setup, values["updates"] * values["prompts"], seed, "train")
    config = config_of(arm, seed, values, setup)
    trainer = MDPOTrainer(copy.deepcopy(model), tokenizer, [setup.reward], config, rows, spec=spec)
    rewards = []
    while not trainer.finished:
        rewards.append(trainer.round()["reward"])
    return trainer.policy.model.eval(), tuple(rewards)


def model_of(arm: str, seed: int, context: Context) -> tuple[nn.Module, tuple[float, ...]]:
    """Return an arm's model: the host itself, or trained on it, or (at the quick scale) as shipped."""
    setup = setup_of(context)
    if arm in SAMPLERS:
        return host_of(setup)[0], ()
    if context.scale == "quick":
        return load_shipped(arm, setup.host)
    settings = {key: context.settings[key] for key in ("updates", "prompts", "train_steps")}
    return trained(arm, seed, setup, tuple(settings.items()))


def adapter_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's adapter."""
    return {key: value for key, value in model.state_dict().items() if "lora_" in key}


def load_shipped(arm: str, name: str = HOST, folder: Path = SHIPPED) -> tuple[nn.Module, tuple[float, ...]]:
    """Return the host with the adapter of the last laptop run, and the rewards of its training."""
    config, tensors = load_artifact(folder / arm, SHIPPED_KIND)
    targets = LORA["lora_targets"]
    model = add_lora(copy.deepcopy(host(name)[0]), LORA["lora_rank"], LORA["lora_alpha"], 0.0, targets)
    model.load_state_dict(tensors, strict=False)
    return model.eval(), tuple(config["rewards"])


def ship_adapters(folder: Path, target: Path = SHIPPED) -> None:
    """Copy the adapters of one seed's laptop folder to the package, for the quick scale.

    Args:
        folder: The folder of a finished (claim, seed), which holds one artifact an arm.
        target: Where the package keeps them.
    """
    for arm in RECIPES:
        config, tensors = load_artifact(folder / arm, SHIPPED_KIND)
        save_artifact(target / arm, SHIPPED_KIND, config, tensors)


def run_arm(arm: str, seed: int, context: Context) -> Measurement:
    """Measure one arm on a seed's held-out problems."""
    settings, setup = context.settings, setup_of(context)
    kind = arm.removesuffix("_rcr")
    context.progress(0, 1, f"{arm}: training" if kind in RECIPES else f"{arm}: decoding")
    model, rewards = model_of(kind, seed, context)
    if kind in RECIPES and kind == arm and context.scale != "quick":
        tensors = {key: value.half() for key, value in adapter_of(model).items()}
        record = {"rewards": rewards, "seed": seed, "updates": settings["updates"]}
        save_artifact(context.folder / arm, SHIPPED_KIND, record, tensors)
    count, at = settings["problems"], settings["train_steps"]
    sampler = SAMPLERS["rcr" if arm.endswith("rcr") else kind if kind in SAMPLERS else "base"]
    decoding = Decoding(setup.length, setup.length, at, **sampler)
    made = decode(model, setup, count, seed, decoding)
    metrics = {
        "accuracy_trained": made.right[:, -1].double().tolist(),
        "over_denoised_trained": made.over_denoised.double().tolist(),
    }
    metrics |= _stress(made, base_rollouts(setup, count, seed, at))
    series = {"reward over updates": (list(range(1, len(rewards) + 1)), rewards)} if rewards else {}
    if arm in SAMPLERS:
        more, curve = over_steps(model, setup, seed, decoding, settings)
        metrics, series = metrics | more, series | curve
    return Measurement(metrics=metrics, series=series)


def over_steps(
    model: nn.Module, setup: Setup, seed: int, decoding: Decoding, settings: Mapping[str, Any]
) -> tuple[dict[str, list[float]], dict[str, tuple]]:
    """Return each problem's mean over the numbers of steps, with one block, with two and over both; and curves."""
    metrics, curve = {}, {}
    for blocks, suffix in ((1, "_whole"), (2, "_blocks")):
        width = setup.length // blocks
        runs = [
            decode(
                model, setup, settings["problems"], seed, replace(decoding, steps=steps, block_length=width)
            )
            for steps in settings["steps"]
        ]
        right = torch.stack([run.right[:, -1].double() for run in runs])
        over = torch.stack([run.over_denoised.double() for run in runs])
        metrics["accuracy" + suffix], metrics["over_denoised" + suffix] = right.mean(dim=0), over.mean(dim=0)
        curve[f"accuracy over steps, {blocks} block{'s' * (blocks > 1)}"] = (
            list(settings["steps"]),
            right.mean(dim=1).tolist(),
        )
    for kind in ("accuracy", "over_denoised"):
        metrics[kind] = (metrics[f"{kind}_whole"] + metrics[f"{kind}_blocks"]) / 2
    return {key: value.tolist() for key, value in metrics.items()}, curve


def _stress(made: Rollouts, base: Rollouts) -> dict[str, list[float]]:
    """Return the accuracy on the problems that the base model over-denoises."""
    chosen = base.over_denoised
    return {"stress": made.right[chosen, -1].double().tolist()} if bool(chosen.any()) else {}


def precondition(measurements: Mapping[str, Sequence[Measurement]]) -> str | None:
    """Return why the claim says nothing here: the base model solves nearly nothing or nearly everything."""
    values = [v for m in measurements["base"] for v in m.metrics["accuracy_trained"]]
    accuracy = sum(values) / len(values)
    if not RANGE[0] <= accuracy <= RANGE[1]:
        return f"the base model answers {accuracy:.0%} of the problems: too few or too many to compare on"
    return None


def _beats(name: str, arm: str, against: str, threshold: float, metric: str = "accuracy_trained") -> Target:
    return Target(name, metric, arm, against, "difference", threshold, "higher")


_HERE = {"length": 16, "rows": 256, "dtype": "float32", "temperature": 0.7}  # the testbed's answers
_SMOKE = _HERE | {"problems": 16, "steps": (4,), "updates": 1, "prompts": 2, "train_steps": 4}
_QUICK = _HERE | {"problems": 64, "steps": (4, 6, 8, 12), "train_steps": 8}
_LAPTOP = _HERE | {
    "problems": 300,
    "steps": (4, 6, 8, 12),
    "updates": 100,
    "prompts": 8,
    "train_steps": 8,
}
_FULL = {
    "length": 512,
    "rows": 8,
    "dtype": "bfloat16",
    "temperature": 0.4,
    "problems": 500,
    "steps": (64, 128, 256),
    "updates": 100,
    "prompts": 16,
    "train_steps": 128,
}

CLAIM = Claim(
    method="mdpo",
    paper=(
        "MDPO: Overcoming the Training-Inference Divide of Masked Diffusion Language Models, 2025, "
        "arXiv 2508.13148"
    ),
    statement=(
        "Remasking the least confident tokens (RCR) answers more problems at equal network calls, and MDPO, "
        "with rewards at every denoising step, beats earlier RL at equal updates (paper: +9.6 % on MATH-500 "
        "and +54.2 % on Countdown)."
    ),
    testbed="countdown",
    arms=(
        Arm("base", "low-confidence decoding", "baseline"),
        Arm("random", "random order", "naive"),
        Arm("sft", "further supervised training", "baseline"),
        Arm("diffu_grpo", "diffu-GRPO", "baseline"),
        Arm("final", "RL on the final reward", "baseline"),
        Arm("rcr", "RCR", "method"),
        Arm("mdpo", "MDPO", "method"),
        Arm("mdpo_rcr", "MDPO with RCR", "method"),
    ),
    targets=(
        _beats("RCR's accuracy, mean over steps and blocks", "rcr", "base", 0.02, "accuracy"),
        _beats("MDPO's accuracy after training", "mdpo", "base", 0.05),
        _beats("MDPO against final-reward RL", "mdpo", "final", 0.0),
        _beats("MDPO against diffu-GRPO", "mdpo", "diffu_grpo", 0.0),
        _beats("MDPO against supervised training", "mdpo", "sft", 0.0),
        Target("over-denoised under RCR", "over_denoised", "rcr", "base", "difference", 0.0, "lower"),
    ),
    scales={
        "smoke": Scale((1000,), 120, _SMOKE),
        "quick": Scale((1000,), 120, _QUICK),
        "laptop": Scale((1000, 1001, 1002), 2400, _LAPTOP),
        "full": Scale((1000,), 1_000_000, _FULL),
    },
    run=run_arm,
    units="problem",
    columns={
        "accuracy": "right, mean over 4 to 12 steps, 1 and 2 blocks",
        "over_denoised": "over-denoised, the same mean",
        "accuracy_whole": "right, one block",
        "accuracy_blocks": "right, two blocks",
        "accuracy_trained": "right, 8 steps",
        "over_denoised_trained": "over-denoised, 8 steps",
        "stress": "right where base over-denoises",
    },
    precondition=precondition,
)


def run_claim(*, scale: ScaleName = "quick", out: Path = DEFAULT_OUT, jobs: int | None = None) -> BenchResult:
    """Run the paper's claim: RCR against low-confidence decoding, MDPO against other training.

    Args:
        scale: smoke, quick (shipped adapters), laptop (trains, about 15 minutes on two cores) or full.
        out: Folder of results and report.
        jobs: Processes at a time.
    """
    return bench(methods=["mdpo"], scale=scale, out=out, jobs=jobs)
