"""The claim: RCR answers more problems at equal network calls, and MDPO teaches the model what RL is to teach it.

On the masked language model of `countdown`, low-confidence, random-order and RCR decoding are compared at
several numbers of steps; then the model is trained with MDPO and, on the same loop and for as many updates,
with terminal rewards, with diffu-GRPO's estimator and with further supervised training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from noiseworks.bench import shipped
from noiseworks.bench.claims import (
    Arm,
    Ceiling,
    Claim,
    Context,
    Data,
    Floor,
    Measurement,
    Scale,
    at_least,
    at_most,
)
from noiseworks.mdpo.options import Decoding, MDPOConfig, RolloutDecoding

if TYPE_CHECKING:
    from noiseworks.kits.masked_lm import HostSpec
    from noiseworks.mdpo.rollouts import Rollouts
    from torch import Tensor, nn


PACKAGE = "noiseworks.mdpo"
LORA = {
    "lora_rank": 8,
    "lora_alpha": 16.0,
    "lora_dropout": 0.0,
    "lora_targets": ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj"),
}
# The authors' adapters and learning rate for LLaDA-8B, at the full scale.
FULL = {"lora_rank": 128, "lora_alpha": 64.0, "lora_dropout": 0.05, "learning_rate": 1e-5}
# Learning rate and objective of each trained arm, chosen on seeds below 1000.
RECIPES: dict[str, dict[str, Any]] = {
    "mdpo": {"learning_rate": 2e-4},
    "final": {"learning_rate": 5e-4, "advantage": "final"},
    "diffu_grpo": {"learning_rate": 1e-3, "objective": "diffu_grpo", "clip": 0.5, "beta": 0.04},
    "sft": {"learning_rate": 2e-3, "objective": "sft"},
}
SAMPLERS = {
    "base": {"remask": "low_confidence"},
    "random": {"remask": "low_confidence", "confidence": "random"},
    "rcr": {"remask": "rcr"},
}


@dataclass
class Shared:
    """What the arms of a seed share.

    Attributes:
        model: The untrained model, its tokenizer and contract.
        reward: What counts as right.
        test: The problems that are judged on, as data rows.
        train: The same, of the problems that are trained on.
        seed: Of training and decoding.
        trained: Arm -> model with its adapter and the reward of every update; MDPO is decoded in two ways.
        answers: The untrained model's completions with low-confidence decoding, once they are needed.
    """

    model: "tuple[nn.Module, Any, HostSpec]"
    reward: Callable[..., list[float]]
    test: Sequence[Mapping[str, Any]]
    train: Sequence[Mapping[str, Any]]
    seed: int
    trained: "dict[str, tuple[nn.Module, Sequence[float]]]" = field(default_factory=dict)
    answers: "Rollouts | None" = None


def prepare(seed: int, context: Context) -> Shared:
    """Load the model, and draw the problems of a seed: the testbed's, or at the full scale from the user's files."""
    import torch
    from noiseworks.kits.masked_lm import load_host
    from noiseworks.mdpo.rewards import bundled_reward

    sizes = context.settings
    dtype = getattr(torch, sizes["dtype"])
    model, tokenizer, spec = load_host(context.model or "testbed:countdown", dtype=dtype)
    counts = {"test": sizes["problems"], "train": sizes.get("updates", 0) * sizes.get("prompts", 0)}
    if context.data:
        rows = {name: file_rows(context.data[name], count, seed) for name, count in counts.items()}
        reward = bundled_reward("math")
    else:
        rows = {name: testbed_rows(name, count, seed) for name, count in counts.items()}
        reward = right_answer
    return Shared((model.to(context.device), tokenizer, spec), reward, rows["test"], rows["train"], seed)


def testbed_rows(split: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return problems of the testbed as data rows."""
    from noiseworks.bench.testbeds.countdown import problems

    found = problems("countdown", count, seed, split) if count else []
    return [{"prompt": one.prompt, "answer": one.answer, "problem": one} for one in found]


def file_rows(path: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Return problems of a file in MATH-500's form, drawn by seed; a file of fewer problems gives all of them."""
    from noiseworks.core.noise import SeedSpec, permutation
    from noiseworks.mdpo.task_data import load_rows

    rows = load_rows(path, "math")
    order = permutation(SeedSpec(seed).keys([0]), len(rows))[0][:count].tolist()
    # Supervised training reads `answer`, in the form that the prompt asks for.
    return [rows[i] | {"answer": f"\\boxed{{{rows[i]['solution']}}}"} for i in order]


def right_answer(
    prompts: Sequence[str], completions: Sequence[str], *, problem: Sequence[Any], **columns: Sequence[Any]
) -> list[float]:
    """Return 1 where the testbed's verifier accepts a completion, else 0."""
    from noiseworks.bench.testbeds.countdown import verify

    return [float(verify(one, text)) for one, text in zip(problem, completions, strict=True)]


def decode(model: "nn.Module", shared: Shared, decoding: Decoding, rows: int) -> "Rollouts":
    """Return scored completions of the seed's held-out problems, `rows` in one forward."""
    from noiseworks.mdpo.rollouts import Scoring, roll_out, row_seeds

    scoring = Scoring(*shared.model[1:], [shared.reward])
    seeds = row_seeds(shared.seed, len(shared.test))
    return roll_out(model, scoring, shared.test, decoding, seeds=seeds, max_rows=rows)


def config_of(arm: str, seed: int, context: Context) -> MDPOConfig:
    """Return the training settings of an arm."""
    sizes, full = context.settings, bool(context.data)
    length, steps = sizes["length"], sizes["train_steps"]
    settings = LORA | {"beta": 0.0} | RECIPES[arm] | (FULL if full else {})
    if full:
        settings.pop("lora_targets")
    return MDPOConfig(
        decoding=RolloutDecoding(length, length, steps, sizes["temperature"]),
        max_steps=sizes["updates"],
        batch_size=sizes["prompts"],
        num_generations=8,
        sample_train_steps=8 if full else min(3, steps),
        rollout_rows=sizes["rows"],
        micro_batch_prompts=1 if full else sizes["prompts"],
        device="cpu" if context.device == "cpu" else "cuda",
        seed=seed,
        **settings,
    )


def model_of(arm: str, shared: Shared, context: Context) -> "tuple[nn.Module, Sequence[float]]":
    """Return an arm's model and the reward of every update: the host itself, trained on it, or as shipped."""
    if arm in SAMPLERS:
        return shared.model[0], ()
    if arm not in shared.trained:
        quick = context.scale == "quick"
        shared.trained[arm] = shipped_model(arm, shared) if quick else train_arm(arm, shared, context)
    return shared.trained[arm]


def train_arm(arm: str, shared: Shared, context: Context) -> "tuple[nn.Module, list[float]]":
    """Train an arm, and keep its adapter in the task's folder."""
    import copy

    from noiseworks.mdpo.training import MDPOTrainer

    model, tokenizer, spec = shared.model
    config = config_of(arm, shared.seed, context)
    trainer = MDPOTrainer(copy.deepcopy(model), tokenizer, [shared.reward], config, shared.train, spec=spec)
    figures = [trainer.round(step) for step in range(config.max_steps)]
    rewards = [one.get("reward", float("nan")) for one in figures]
    record = {"rewards": rewards, "seed": shared.seed, "updates": config.max_steps}
    shipped.save(context.folder, arm, record, adapter_of(trainer.policy.model))
    return trainer.policy.model.eval(), rewards


def adapter_of(model: "nn.Module") -> "dict[str, Tensor]":
    """Return the tensors of a model's adapter."""
    return {key: value for key, value in model.state_dict().items() if "lora_" in key}


def shipped_model(arm: str, shared: Shared) -> "tuple[nn.Module, Sequence[float]]":
    """Return the host with the adapter of the last laptop run, and the rewards of its training."""
    import copy

    from noiseworks.mdpo.policy import add_lora

    config, tensors = shipped.load(PACKAGE, arm)
    host = copy.deepcopy(shared.model[0])
    model = add_lora(host, LORA["lora_rank"], LORA["lora_alpha"], 0.0, LORA["lora_targets"])
    model.load_state_dict(tensors, strict=False)
    return model.eval(), config["rewards"]


def run(arm: str, shared: Shared, context: Context) -> Measurement:
    """Measure one arm on a seed's held-out problems."""
    sizes, kind = context.settings, arm.removesuffix("_rcr")
    context.progress(0, 1, f"{arm}: training" if kind in RECIPES else f"{arm}: decoding")
    model, rewards = model_of(kind, shared, context)
    sampler = SAMPLERS["rcr" if arm.endswith("rcr") else kind if kind in SAMPLERS else "base"]
    length, steps = sizes["length"], sizes["train_steps"]
    made = decode(model, shared, Decoding(length, length, steps, **sampler), sizes["rows"])
    if shared.answers is None:
        plain = Decoding(length, length, steps, **SAMPLERS["base"])
        shared.answers = decode(shared.model[0], shared, plain, sizes["rows"])
    metrics = {
        "accuracy_trained": made.right[:, -1].double().tolist(),
        "over_denoised_trained": made.over_denoised.double().tolist(),
    }
    chosen = shared.answers.over_denoised
    if bool(chosen.any()):
        metrics["stress"] = made.right[chosen, -1].double().tolist()
    series = {"reward over updates": (list(range(1, len(rewards) + 1)), rewards)} if len(rewards) else {}
    if arm in SAMPLERS:
        more, curve = over_steps(model, shared, sampler, sizes)
        metrics, series = metrics | more, series | curve
    return Measurement(metrics=metrics, series=series)


def over_steps(
    model: "nn.Module", shared: Shared, sampler: Mapping[str, str], sizes: Mapping[str, Any]
) -> tuple[dict[str, list[float]], dict[str, tuple]]:
    """Return each problem's mean over the numbers of steps, with one block, with two and over both; and curves."""
    import torch

    metrics, curve = {}, {}
    for blocks, suffix in ((1, "_whole"), (2, "_blocks")):
        decoding = Decoding(sizes["length"], sizes["length"] // blocks, blocks, **sampler)
        runs = [
            decode(model, shared, replace(decoding, steps=steps), sizes["rows"]) for steps in sizes["steps"]
        ]
        right = torch.stack([run.right[:, -1].double() for run in runs])
        over = torch.stack([run.over_denoised.double() for run in runs])
        metrics["accuracy" + suffix], metrics["over_denoised" + suffix] = right.mean(dim=0), over.mean(dim=0)
        curve[f"accuracy over steps, {blocks} block{'s' * (blocks > 1)}"] = (
            list(sizes["steps"]),
            right.mean(dim=1).tolist(),
        )
    for kind in ("accuracy", "over_denoised"):
        metrics[kind] = (metrics[f"{kind}_whole"] + metrics[f"{kind}_blocks"]) / 2
    return {key: value.tolist() for key, value in metrics.items()}, curve


_HERE = {"length": 16, "rows": 256, "dtype": "float32", "temperature": 0.7}  # the testbed's answers
_SMOKE = _HERE | {"problems": 128, "steps": (4,), "updates": 1, "prompts": 2, "train_steps": 4}
_QUICK = _HERE | {"problems": 36, "steps": (4, 12), "train_steps": 8}
_LAPTOP = _HERE | {"problems": 300, "steps": (4, 6, 8, 12), "updates": 100, "prompts": 8, "train_steps": 8}
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
_PROBLEMS = "a file of problems and answers such as MATH-500's"

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
        at_least(
            "accuracy", "rcr", "base", difference=0.02, name="RCR's accuracy, mean over steps and blocks"
        ),
        at_least("accuracy_trained", "mdpo", "base", difference=0.05, name="MDPO's accuracy after training"),
        at_least("accuracy_trained", "mdpo", "final", difference=0.0, name="MDPO against final-reward RL"),
        at_least("accuracy_trained", "mdpo", "diffu_grpo", difference=0.0, name="MDPO against diffu-GRPO"),
        at_least("accuracy_trained", "mdpo", "sft", difference=0.0, name="MDPO against supervised training"),
        at_most("over_denoised", "rcr", "base", difference=0.0, name="over-denoised under RCR"),
    ),
    scales={
        "smoke": Scale((500,), 300, _SMOKE),
        "quick": Scale((500,), 120, _QUICK),
        "laptop": Scale((1000, 1001, 1002), 2400, _LAPTOP),
        "full": Scale((1000,), 1_000_000, _FULL),
    },
    prepare=prepare,
    run=run,
    preconditions=(
        Floor("base", "accuracy_trained", 0.05, "the base model answers {:.0%} of the problems: too few"),
        Ceiling("base", "accuracy_trained", 0.95, "the base model answers {:.0%} of the problems: too many"),
    ),
    data=(
        Data("test", f"{_PROBLEMS}, which is judged on"),
        Data("train", f"{_PROBLEMS}, which is trained on"),
    ),
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
)
