"""The trainer: what a round does, baselines, LoRA, reference, data order, folders, bad settings."""

from dataclasses import replace

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError, NonFiniteError
from noiseworks.kits.training import Run, open_run
from noiseworks.mdpo import (
    Decoding,
    MDPOConfig,
    MDPOTrainer,
    RolloutDecoding,
    Scoring,
    roll_out,
    select_over_denoised,
)
from noiseworks.mdpo.micro_batches import diffu_grpo_micro_batches, mdpo_micro_batches, sft_micro_batch
from noiseworks.mdpo.rollouts import join_rollouts, row_seeds, summarize
from noiseworks.mdpo.selection import Selection

ROWS = [{"prompt": f"{i}+{j}=", "answer": "ab"} for i in range(4) for j in (3, 12)]
CONFIG = MDPOConfig(
    decoding=RolloutDecoding(8, 8, 4, 1.0, remask="rcr"),
    max_steps=3,
    num_generations=4,
    batch_size=4,
    sample_train_steps=2,
    learning_rate=1e-3,
    micro_batch_prompts=2,
    device="cpu",
)


def some_zeros(prompts, completions, **columns):
    return [text.count("0") / 8 for text in completions]


@pytest.fixture
def make_trainer(make_host, tokenizer):
    def make(kind="llada", eval_data=(), **changes):
        return MDPOTrainer(
            make_host(kind), tokenizer, [some_zeros], replace(CONFIG, **changes), ROWS, eval_data
        )

    return make


def weights(trainer):
    return torch.cat([p.detach().float().flatten() for p in trainer.policy.trainable().values()])


def test_reward_grows(make_trainer):
    trainer = make_trainer(max_steps=12, learning_rate=3e-3, beta=0.0)
    rewards = [trainer.round(step)["reward"] for step in range(12)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.15


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "diffu_grpo"},
        {"objective": "sft"},
        {"advantage": "final"},
        {"num_iterations": 2},
        {"block_lengths": (4, 8)},
        {"confidence_weights": False, "kl": "k3"},
        {"precision": "bf16-true"},
        {"precision": "bf16-mixed"},
        {"decoding": RolloutDecoding(8, 4, 4, 1.0, remask="rcr")},
        {"lora_rank": 2, "lora_dropout": 0.1},
        {"kind": "dream"},
        {"kind": "dream", "lora_rank": 2},
    ],
    ids=str,
)
def test_every_kind_of_run_updates_the_weights(make_trainer, changes):
    trainer = make_trainer(**changes)
    before = weights(trainer)
    figures = [trainer.round(0)]
    assert bool(weights(trainer).isfinite().all())
    assert not torch.equal(weights(trainer), before)
    assert figures[0]["grad_norm"] > 0


def test_micro_batches_hold_the_chosen_steps(make_trainer):
    trainer = make_trainer()
    rollouts = trainer.roll_out(*trainer._next_prompts())
    batches = list(mdpo_micro_batches(rollouts, trainer.config))
    assert sum(batch.share for batch in batches) <= 1 + 1e-9
    batch = batches[0]
    assert batch.groups[1] == 4
    masked = batch.inputs.ids[:, -8:] == 2
    assert torch.equal(masked.sum(dim=1), batch.mask.sum(dim=1))
    places = batch.inputs.positions - (batch.inputs.ids.shape[1] - 8)
    assert bool(masked.gather(1, places)[batch.mask].all())
    assert bool((batch.weight[batch.mask] > 0).all())
    # The same step for the rollouts of a prompt: equally many masks in each group.
    assert len(set(masked[:4].sum(dim=1).tolist())) == 1


def test_first_pass_has_ratio_one_and_the_second_compares_with_it(make_trainer):
    trainer = make_trainer(beta=0.0, learning_rate=1e-2)
    rollouts = trainer.roll_out(*trainer._next_prompts())
    batches = list(mdpo_micro_batches(rollouts, trainer.config))
    first = trainer._update(batches)
    assert first["ratio"] == pytest.approx(1.0)
    stored = [batch.old.clone() for batch in batches]
    second = trainer._update(batches)
    assert second["ratio"] != pytest.approx(1.0, abs=1e-6)
    assert all(torch.equal(old, batch.old) for old, batch in zip(stored, batches, strict=True))


def test_log_probs_of_the_policy_are_those_the_sampler_drew_with(make_trainer):
    """Standard sampler, no filters: the recorded confidence is exp of the training log-probability."""
    trainer = make_trainer(
        decoding=RolloutDecoding(8, 4, 8, 0.7, remask="low_confidence"), sample_train_steps=8
    )
    rollouts = trainer.roll_out(*trainer._next_prompts())
    for batch in mdpo_micro_batches(rollouts, trainer.config):
        logp = trainer.policy(*batch.inputs)
        torch.testing.assert_close(
            logp.exp()[batch.mask].detach(), batch.weight[batch.mask], atol=2e-3, rtol=2e-3
        )


def test_rcr_gives_no_weight_to_blocks_that_are_still_to_come(make_trainer):
    trainer = make_trainer(decoding=RolloutDecoding(8, 4, 4, 1.0, remask="rcr"))
    rollouts = trainer.roll_out(*trainer._next_prompts())
    assert not rollouts.trace.scores[0, :, 4:].any()
    assert bool((rollouts.trace.scores[0, :, :4] > 0).all())
    assert bool((rollouts.trace.scores[2, :, 4:] > 0).all())


def test_diffu_grpo_masks_the_completion_and_some_of_the_prompt(make_trainer):
    trainer = make_trainer(objective="diffu_grpo", prompt_mask_prob=0.5)
    rollouts = trainer.roll_out(*trainer._next_prompts())
    batches = list(diffu_grpo_micro_batches(rollouts, trainer.config, seed=1))
    for batch in batches:
        prompt = batch.inputs.ids[:, :-8]
        assert bool((batch.inputs.ids[:, -8:] == 2).all())
        real = batch.inputs.attention_mask[:, :-8].bool()
        assert 0.2 < (prompt == 2)[real].double().mean() < 0.8
        assert not bool((prompt == 2)[~real].any())
    again = list(diffu_grpo_micro_batches(rollouts, trainer.config, seed=1))
    assert torch.equal(again[0].inputs.ids, batches[0].inputs.ids)


def test_masks_of_a_prompt_do_not_depend_on_its_padding(make_trainer):
    trainer = make_trainer(objective="diffu_grpo", prompt_mask_prob=0.5)
    short, long = {"prompt": "1+2="}, {"prompt": "123456+7="}
    alone = trainer.roll_out([short], [8])
    padded = join_rollouts([alone, trainer.roll_out([long], [8])])
    found = []
    for rollouts in (alone, padded):
        (batch,) = diffu_grpo_micro_batches(rollouts, replace(trainer.config, micro_batch_prompts=2), seed=3)
        found.append(batch.inputs.ids[:4, -12:])
    assert torch.equal(*found)
    assert bool((found[0][:, :4] == 2).any())


def test_supervised_rows_mask_the_answer_alone():
    prompt, answer = torch.full((64, 3), 5), torch.full((64, 6), 7)
    batch = sft_micro_batch(prompt, torch.ones_like(prompt), answer, 2, seed=0, share=1.0)
    assert torch.equal(batch.inputs.ids[:, :3], prompt)
    assert torch.equal(batch.inputs.ids[:, 3:] == 2, batch.mask)
    assert abs((batch.mask.double().mean(dim=1) - batch.advantages.double()).mean()) < 0.05


def test_groups_that_were_rewarded_alike_are_skipped(make_host, tokenizer):
    trainer = MDPOTrainer(
        make_host(), tokenizer, [lambda prompts, completions, **c: [1.0] * len(prompts)], CONFIG, ROWS
    )
    before = weights(trainer)
    with pytest.warns(UserWarning, match=r"rounds 1 to 5 taught the model nothing.*\(mean 1\)") as warned:
        assert sum(trainer.round(step)["micro_batches"] for step in range(8)) == 0
    assert len(warned) == 1
    assert torch.equal(weights(trainer), before)


# --- Reference ---


def test_frozen_reference_stays_and_sync_moves_it(make_trainer):
    trainer = make_trainer(reference_sync_every=2, learning_rate=1e-2)
    start = weights(trainer)
    trainer.round(0)
    frozen = torch.cat([p.flatten() for p in trainer.reference.copy.parameters()])
    assert torch.equal(frozen, start)
    trainer.round(1)
    moved = torch.cat([p.flatten() for p in trainer.reference.copy.parameters()])
    torch.testing.assert_close(moved, start + 0.6 * (weights(trainer) - start))


def test_reference_of_an_adapted_model_is_the_model_without_adapter(make_trainer):
    trainer = make_trainer(lora_rank=2, learning_rate=1e-2)
    rollouts = trainer.roll_out(*trainer._next_prompts())
    batch = next(mdpo_micro_batches(rollouts, trainer.config))
    before = trainer.policy(*batch.inputs).detach()
    trainer._update([batch])
    assert trainer.reference.copy is None
    torch.testing.assert_close(trainer.reference.log_probs(*batch.inputs), before)
    trainer.module.eval()
    assert not torch.allclose(trainer.policy(*batch.inputs), before)


# --- Data ---


def test_an_epoch_uses_every_prompt_once(make_trainer):
    trainer = make_trainer(max_steps=None, batch_size=2)
    seen = []
    for _ in range(4):
        rows, lengths = trainer._next_prompts()
        seen += [row["prompt"] for row in rows]
        assert lengths == [8, 8]
    assert sorted(seen) == sorted(row["prompt"] for row in ROWS)
    assert (trainer.rounds_in_all(), trainer.order.epoch) == (4, 1)
    assert [row["prompt"] for row in ROWS] != seen


def test_rollouts_of_two_block_lengths_join(make_trainer):
    trainer = make_trainer(block_lengths=(4, 8))
    short, long = [{"prompt": "1="}], [{"prompt": "123456="}]
    parts = [trainer.roll_out(rows, [length]) for rows, length in ((short, 4), (long, 8))]
    joined = join_rollouts(parts)
    assert joined.prompt.shape == (8, 7)
    assert joined.prompt_mask[:4, :5].sum() == 0
    assert joined.rewards.shape == (8, 4)
    assert torch.equal(joined.trace.final[:4], parts[0].trace.final)


def test_selection_keeps_what_was_right_and_ended_wrong(host, tokenizer, make_trainer, tmp_path):
    scoring = Scoring(tokenizer, make_trainer().scoring.spec, [some_zeros])
    decoding = Decoding(8, 8, 8)
    rollouts = roll_out(host, scoring, ROWS, decoding, seeds=row_seeds(0, 8))
    found = summarize(rollouts)
    assert (found.prompts, found.calls) == (8, 8)

    def third_zero(prompts, completions, **columns):
        return [float(text == wanted) for text, wanted in zip(completions, columns["answer"], strict=True)]

    texts = [tokenizer.decode(ids.long(), skip_special_tokens=True) for ids in rollouts.trace.predictions[0]]
    last = [tokenizer.decode(ids.long(), skip_special_tokens=True) for ids in rollouts.trace.final]
    rows = [{"prompt": row["prompt"], "answer": text} for row, text in zip(ROWS, texts, strict=True)]
    expected = tuple(i for i in range(8) if texts[i] != last[i])
    assert expected
    scoring = replace(scoring, functions=[third_zero])
    chosen = select_over_denoised(host, scoring, rows, decoding)
    assert chosen.indices == expected
    assert chosen.rate == len(expected) / 8
    chosen.save(tmp_path / "s.json")
    assert Selection.load(tmp_path / "s.json", rows) == chosen
    with pytest.raises(ArtifactError, match="other data"):
        Selection.load(tmp_path / "s.json", ROWS)
    with pytest.raises(ArtifactError, match="gone"):
        Selection.load(tmp_path / "gone.json", ROWS)


def test_given_selection_means_rows_of_the_whole_data(make_host, tokenizer):
    rows = [{"prompt": "1" * 30}, *ROWS]
    chosen = Selection((0, 1, 3), (8, 8, 4), "", 0.5)
    config = replace(CONFIG, max_prompt_length=20, batch_size=2, block_lengths=(4, 8))
    trainer = MDPOTrainer(make_host(), tokenizer, [some_zeros], config, rows, selection=chosen)
    found, lengths = trainer._next_prompts()
    pairs = {(row["prompt"], length) for row, length in zip(found, lengths, strict=True)}
    assert pairs == {(rows[1]["prompt"], 8), (rows[3]["prompt"], 4)}
    unfit = replace(chosen, block_lengths=(8, 8, 3))
    with pytest.raises(InputError, match="multiple of block_length"):
        MDPOTrainer(make_host(), tokenizer, [some_zeros], config, rows, selection=unfit)


def test_training_can_select_before_each_epoch(make_host, tokenizer, tmp_path):
    def good_early(prompts, completions, **columns):
        return [1.0 if len(set(text)) < 3 else 0.5 * (len(text) % 2) for text in completions]

    config = replace(CONFIG, select=True, max_steps=2, batch_size=1, decoding=RolloutDecoding(8, 8, 8, 1.0))
    trainer = MDPOTrainer(make_host(seed=3), tokenizer, [good_early], config, ROWS)
    trainer.run = Run(tmp_path)
    trainer.given_selection = Selection((2, 5), (4, 8), "", 0.25)
    rows, lengths = trainer._next_prompts()
    assert (rows[0], lengths[0]) in [(ROWS[2], 4), (ROWS[5], 8)]
    trainer.given_selection = None
    indices, _ = trainer._choose(1)
    assert Selection.load(tmp_path / "selection-1.json", ROWS).indices == indices


# --- Folders, bad settings ---


def test_run_leaves_a_model_that_loads(make_trainer, tmp_path):
    from noiseworks.kits.masked_lm import load_host

    trainer = make_trainer(eval_data=ROWS, eval_every=3)
    with open_run(tmp_path, {"config": trainer.config}) as run:
        result = trainer.fit(run, progress=False)
    assert (result.steps, result.reward) == (3, trainer.last["reward"])
    assert result.evaluation.prompts == 8
    loaded, _, spec = load_host(tmp_path / "model")
    assert spec.mask_id == 2
    for name, value in trainer.policy.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_nan_weights_stop_the_run(make_trainer):
    trainer = make_trainer(beta=0.1)
    trainer.round(0)
    batches = list(mdpo_micro_batches(trainer.roll_out(*trainer._next_prompts()), trainer.config))
    with torch.no_grad():
        next(iter(trainer.policy.trainable().values())).fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="loss is not finite at step 1"):
        trainer._update(batches)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"decoding": RolloutDecoding(8, 8, 4, 0.0)}, "temperature must be above 0"),
        ({"num_generations": 1}, "num_generations"),
        ({"sample_train_steps": 9}, "sample_train_steps"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"objective": "ppo"}, "ppo"),
        ({"advantage": "best"}, "best"),
        ({"beta": -0.1}, "beta"),
        ({"reference_sync_every": 5, "lora_rank": 2}, "no LoRA"),
        ({"block_lengths": (16,)}, "block_lengths"),
        ({"block_lengths": (3,)}, "multiple of block_length"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(changes, word):
    with pytest.raises(InputError, match=word):
        replace(CONFIG, **changes)


def test_data_that_does_not_fit_is_refused(make_host, tokenizer):
    def trainer(rows, **changes):
        return MDPOTrainer(make_host(), tokenizer, [some_zeros], replace(CONFIG, **changes), rows)

    with pytest.raises(InputError, match="at most 2 tokens"):
        trainer(ROWS, max_prompt_length=2)
    with pytest.raises(InputError, match="'answer'"):
        trainer([{"prompt": "1="}], objective="sft")
    with pytest.raises(InputError, match="lora_targets"):
        trainer(ROWS, lora_rank=2, lora_targets=("no_such_layer",))
    with pytest.raises(InputError, match="gen_length"):
        trainer([{"prompt": "1=", "answer": "a" * 30}], objective="sft")
    with pytest.raises(InputError, match="mask id"):
        trainer([{"prompt": "1[MASK]="}])
    with pytest.raises(InputError, match="the model takes 512"):
        trainer([{"prompt": "1" * 510}], max_prompt_length=511)
    with pytest.raises(InputError, match="evaluation data"):
        trainer(ROWS).evaluate()
