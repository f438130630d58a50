"""What the claim trains and measures: a pipeline of `shapes` that is to keep a rule which no caption states.

Winners are scenes that keep the rule well (object in the middle, in strong contrast), with captions that leave place
and background open; losers, which Diffusion-DPO alone sees, are scenes of the same captions that do not. What is drawn
for captions of the winners is measured by two scorers of the rule that share no code: `quality` chose the winners,
`quality_read` is the oracle's reading, and the one that is judged. The control's winners are what the untuned pipeline
draws for the same captions: images among which nobody preferred any.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from noiseworks.bench.claims import Context, Measurement
from noiseworks.bench.testbeds import shapes
from noiseworks.bench.testbeds.shapes import tastes
from noiseworks.core.errors import InputError
from noiseworks.core.noise import mix64
from noiseworks.kits.diffusers_hosts import encode_images, load_pipeline
from noiseworks.kits.image_tuning import Draws, Policy, Rollout, Trial, draw_scored, win_rate
from noiseworks.kits.pictures import strip, to_pixels, write_picture
from noiseworks.seppo.objective import adaptive_flip
from noiseworks.seppo.options import Objective, Opponents, Training
from noiseworks.seppo.rivals import Examples, Plan, rival
from noiseworks.seppo.training import SePPO
from torch import Tensor

ROLLOUT = Rollout(num_inference_steps=10, guidance_scale=1.0, rollout_batch=32)
# Chosen on tuning seeds: a small model's errors differ by more than Stable Diffusion's, in tens of updates.
KAPPA, LEARNING_RATE, RANK = 200.0, 1e-2, 4
KEEPS = 0.75  # of `quality`: a scene that is a winner


@dataclass(frozen=True, eq=False)
class Shared:
    """What the arms of a seed share: the data, the trial and what the untuned pipeline draws in it."""

    seed: int
    model: str
    examples: Examples
    own: Examples
    trial: Trial
    base: Draws


def scenes_in_pairs(count: int, seed: int) -> tuple[list[str], Tensor]:
    """Return captions without place and background, and two images of each, winner first [count, 2, 3, 32, 32].

    Args:
        count: Pairs.
        seed: Of the scenes.

    Raises:
        InputError: When there are no scenes for so many.
    """
    scenes = [one for one in shapes.sample_scenes(60 * count, seed) if one.kind == "single"]
    images = torch.from_numpy(shapes.render(scenes)).permute(0, 3, 1, 2)
    keeps = tastes.quality(images) > KEEPS
    halves: tuple[dict[str, list[int]], ...] = ({}, {})
    for number, scene in enumerate(scenes):
        first = scene.objects[0]
        text = f"a {scene.size} {first.color} {first.shape}"
        halves[0 if keeps[number] else 1].setdefault(text, []).append(number)
    found = [
        (text, pair)
        for text, winners in halves[0].items()
        for pair in zip(winners, halves[1].get(text, []), strict=False)
    ]
    if len(found) < count:
        raise InputError(f"seed {seed} has scenes for {len(found)} pairs, not {count}")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [found[i][0] for i in order], torch.stack([images[list(found[i][1])] for i in order])


def prepare(seed: int, context: Context) -> Shared:
    """Choose the data of a seed and draw the trial with the untuned pipeline."""
    sizes = {name: int(value) for name, value in context.settings.items()}
    model = context.model or "testbed:shapes"
    texts, images = scenes_in_pairs(sizes["winners"], seed)
    pipe = load_pipeline(model, context.device)
    latents = encode_images(pipe, images.flatten(0, 1)).unflatten(0, (-1, 2))
    prompts = list(dict.fromkeys(texts))
    ids = torch.tensor([prompts.index(text) for text in texts])
    trial = Trial(per_prompt=sizes["per_prompt"], trial_seed=seed * 1000)
    seeds = [mix64(seed, number, 7) >> 2 for number in range(len(ids))]
    own = Policy(pipe, prompts, ROLLOUT).roll_out(ids, seeds, seeds).latents[:, -1]
    policy = Policy(pipe, prompts[: sizes["prompts"]], ROLLOUT)
    return Shared(
        seed,
        model,
        Examples(prompts, latents[:, 0], ids, latents[:, 1]),
        Examples(prompts, own, ids),
        trial,
        draw_scored(policy, tastes.quality, trial),
    )


def trained(arm: str, shared: Shared, context: Context) -> tuple[Draws, Mapping[str, float]]:
    """Train an arm, and return what it draws in the trial and the figures of its last step."""
    sizes = {name: int(value) for name, value in context.settings.items()}
    options = Training(
        max_steps=sizes["updates"] * sizes["iterations"],
        batch_size=sizes["batch"],
        minibatch=sizes["batch"],
        learning_rate=LEARNING_RATE,
        lora_rank=RANK,
        seed=shared.seed,
        device=context.device,
    )
    pipe = options.pipeline(shared.model)
    plan = Plan(options, Objective(kappa=KAPPA), Opponents(updates_per_checkpoint=sizes["updates"]), ROLLOUT)
    name, examples = ("seppo", shared.own) if arm == "own" else (arm, shared.examples)
    trainer = rival(name, pipe, examples, plan)
    trainer.fit(progress=False)
    policy = Policy(pipe, shared.examples.prompts[: sizes["prompts"]], ROLLOUT)
    found = dict(trainer.last)
    if arm == "seppo" and isinstance(trainer, SePPO):
        found["truth"] = flip_and_truth(trainer, 2 * sizes["prompts"])
    return draw_scored(policy, tastes.quality, shared.trial), found


def flip_and_truth(trainer: SePPO, count: int) -> float:
    """Return the correlation of the flip with what it stands for: that the opponent's image is the better one.

    Both draw for the same winners from the same noise, and what counts is the score by which winners were chosen. It is
    0 where the flip, or which is better, is always the same.

    Args:
        trainer: When it is done; the opponent is the last step's.
        count: Winners.
    """
    x0, ids = trainer.latents[:count], trainer.ids[:count]
    generator, seeds = torch.Generator().manual_seed(trainer.options.seed), list(range(len(ids)))
    timesteps = trainer.error.draw_timesteps(len(ids), generator)
    noise = torch.randn(x0.shape, generator=generator)

    def seen() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            errors = trainer.error(x0, ids, timesteps, noise)
        images = trainer.policy.decode(trainer.policy.roll_out(ids, seeds, seeds).latents[:, -1])
        return errors, tastes.quality(images)

    with trainer.pool.playing(int(trainer.last["opponent"])):
        opponent = seen()
    now = seen()
    flipped = adaptive_flip(opponent[0] - now[0], trainer.objective) < 0
    both = torch.stack([flipped, opponent[1] > now[1]]).double()
    return float(torch.corrcoef(both)[0, 1]) if bool((both.std(1) > 0).all()) else 0.0


def measured(arm: str, label: str, shared: Shared, context: Context) -> Measurement:
    """Return what an arm draws in the trial: wins against the untuned pipeline by both scorers, and captions."""
    draws, last = (shared.base, {}) if arm == "base" else trained(arm, shared, context)
    texts = [shared.examples.prompts[i] for i in draws.prompt_ids.tolist()]
    read, old = (tastes.quality_read(one.images) for one in (draws, shared.base))
    metrics: dict[str, float | list[float]] = {
        "wins": win_rate(read, old).tolist(),
        "quality": read.tolist(),
        "wins_pixels": win_rate(draws.rewards[:, 0], shared.base.rewards[:, 0]).tolist(),
        "fidelity": shapes.caption_score(draws.images, texts).tolist(),
    }
    metrics |= {"calls": last["calls"]} if last else {"calls": 0.0}
    metrics |= {name: last[name] for name in ("flipped", "truth") if name in last}
    return Measurement(metrics, images={label: save_strip(draws, context.folder / f"{arm}.png")})


def save_strip(draws: Draws, path: Path) -> Path:
    """Write the first image of eight prompts side by side."""
    first = draws.images[:: max(1, len(draws.images) // 8)][:8]
    return write_picture(strip(to_pixels(first), scale=2), path)
