"""The pool and the trainer on tiny pipelines: who plays, what a step is made of, and what it equals."""

import pytest
import torch
from noiseworks.core.errors import ArtifactError, InputError
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.image_tuning import DiffusionDPO, PairLoss, Policy, Rollout, add_lora, save_lora
from noiseworks.kits.training import open_run
from noiseworks.seppo import CheckpointPool, Objective, Opponents, SePPO, Training

PROMPTS = ("a red circle", "a blue square")
ROLLOUT = Rollout(num_inference_steps=2, guidance_scale=2.0, rollout_batch=4)


def made(family="sd", objective=Objective(kappa=100.0), opponents=Opponents(), **changes):
    settings = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu"} | changes
    pipe = tiny_pipeline(family)
    shape = shape_of(pipe)
    latents = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))
    ids = torch.tensor([0, 1, 0, 1, 1])
    return SePPO(pipe, PROMPTS, latents, ids, Training(**settings), objective, opponents, ROLLOUT)


def shape_of(pipe):
    return Policy(pipe, PROMPTS, ROLLOUT).conditions.shape


def moved(denoiser, seed=0):
    """Give the trained adapter values that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in denoiser.named_parameters():
            if ".default." in name:
                p.copy_(0.2 * torch.randn(p.shape, generator=generator))


def outputs(trainer, at):
    with torch.no_grad():
        return trainer.error(*at)


def test_checkpoints_come_back_bit_for_bit():
    trainer = made()
    at = (trainer.latents, trainer.ids, torch.full((5,), 400), torch.randn(trainer.latents.shape))
    base, found = outputs(trainer, at), []
    for seed in range(2):
        moved(trainer.denoiser, seed)
        trainer.pool.add()
        found.append(outputs(trainer, at))
    moved(trainer.denoiser, 9)
    now = outputs(trainer, at)
    for index, expected in enumerate([base, *found]):
        with trainer.pool.playing(index):
            assert torch.equal(outputs(trainer, at), expected)
        assert torch.equal(outputs(trainer, at), now)
    trained = {name for name, p in trainer.denoiser.named_parameters() if p.requires_grad}
    assert trained == set(trainer.trainable)
    other = made()
    other.load_method_state(trainer.method_state())
    for index, expected in enumerate([base, *found]):
        with other.pool.playing(index):
            assert torch.equal(outputs(other, at), expected)
    with pytest.raises(InputError, match="checkpoint 3 of 3"), trainer.pool.playing(3):
        pass
    with pytest.raises(ArtifactError, match="another adapter"):
        made(lora_rank=2).load_method_state(trainer.method_state())
    with pytest.raises(ArtifactError, match="empty pool"):
        trainer.load_method_state(trainer.method_state())


def test_an_exception_leaves_the_trained_adapter_on():
    pipe = tiny_pipeline("sd")
    trainable = add_lora(pipe.unet, 2)
    pool = CheckpointPool(pipe.unet)
    pool.add()
    for index in range(2):
        with pytest.raises(KeyError), pool.playing(index):
            raise KeyError
        assert pipe.unet.active_adapters() == ["default"]
        assert all(p.requires_grad for p in trainable.values())


def test_against_itself_the_loss_is_ln_2_and_the_gradient_is_not_0():
    for rule in ("all", "latest"):
        trainer = made(opponents=Opponents(rule, updates_per_checkpoint=1))
        figures = trainer.round(0)
        assert figures["loss"] == pytest.approx(0.6931472, abs=1e-7)
        assert figures["grad_norm"] > 0
        assert figures["opponent"] == 0
    trainer.done = 1
    figures = trainer.round(1)
    assert figures["opponent"] == 1
    assert figures["loss"] == pytest.approx(0.6931472, abs=1e-7)
    assert figures["winner_error"] == 0


def test_without_flips_and_with_losers_for_images_it_is_diffusion_dpo():
    trainer = made(objective=Objective(kappa=100.0, flip="none"), opponents=Opponents("initial", 1))
    losers = torch.randn(trainer.latents.shape, generator=torch.Generator().manual_seed(3))
    trainer.play = lambda opponent, rows: losers[rows]
    pairs = torch.stack([trainer.latents, losers], 1)
    dpo = DiffusionDPO(
        tiny_pipeline("sd"), PROMPTS, pairs, trainer.ids, trainer.options, PairLoss(kappa=100.0)
    )
    for one in (trainer, dpo):
        one.fit(progress=False)
    for name, p in dpo.trainable.items():
        assert torch.equal(trainer.trainable[name], p), name


def test_one_call_for_winner_and_opponent_equals_two():
    trainer = made()
    moved(trainer.denoiser)
    played = trainer.play(0, torch.arange(5))
    noise = torch.randn(trainer.latents.shape, generator=torch.Generator().manual_seed(5))
    t = torch.tensor([1, 200, 400, 600, 999])
    with torch.no_grad():
        both = trainer.error.of_groups(torch.stack([trainer.latents, played], 1), trainer.ids, t, noise)
        each = [trainer.error(x, trainer.ids, t, noise) for x in (trainer.latents, played)]
    torch.testing.assert_close(both, torch.stack(each, 1), rtol=0, atol=1e-5)


def test_kept_images_are_those_that_would_be_drawn(tmp_path):
    trainer, rows = made(opponents=Opponents(reuse=True)), torch.tensor([3, 1, 3, 0])
    with open_run(tmp_path, {}) as run:
        trainer.run = run
        first = trainer.play(0, rows)
        calls = trainer.policy.calls
        assert torch.equal(trainer.play(0, rows), first)
        assert trainer.policy.calls == calls
        assert torch.equal(first[0], first[2])
        again = made(opponents=Opponents(reuse=True))
        again.run = run
        assert torch.equal(again.play(0, rows), first)
        assert again.policy.calls == 0
    fresh = made(opponents=Opponents(reuse=True)).play(0, rows)
    assert torch.equal(fresh, first)
    anew = made()
    assert not torch.equal(anew.play(0, rows)[0], anew.play(0, rows)[2])


@pytest.mark.parametrize(
    ("objective", "calls"),
    [(Objective(shared_noise=False), 32), (Objective(anchor_samples=3), 48), (Objective(flip="soft"), 32)],
)
def test_variants_train(objective, calls):
    trainer = made(objective=objective, opponents=Opponents("all", 1, "update"))
    trainer.fit(progress=False)
    assert trainer.last["calls"] == 3 * (calls - 16) + 3 * 16
    assert len(trainer.pool) == 3


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_other_hosts_learn_and_load(family, tmp_path):
    trainer = made(family, opponents=Opponents("latest", 1), max_steps=2, batch_size=2)
    before = {name: p.detach().clone() for name, p in trainer.trainable.items()}
    trainer.fit(progress=False)
    assert any(not torch.equal(before[name], p) for name, p in trainer.trainable.items())
    assert trainer.last["opponent"] == 1
    save_lora(trainer.pipe, tmp_path / "lora")
    fresh = tiny_pipeline(family)
    fresh.load_lora_weights(tmp_path / "lora", weight_name="pytorch_lora_weights.safetensors")
    denoiser = fresh.unet if family == "sdxl" else fresh.transformer
    found = {n: p for n, p in denoiser.named_parameters() if "lora_" in n}
    assert len(found) == len(trainer.trainable)


def test_winners_of_another_size_are_refused():
    pipe = tiny_pipeline("sd")
    shape = shape_of(pipe)
    with pytest.raises(InputError, match="give size"):
        SePPO(pipe, PROMPTS, torch.zeros(1, shape[0], 2, 2), torch.tensor([0]), Training(device="cpu"))


def test_a_flip_that_never_happens_is_worth_a_word():
    trainer = made()
    for _ in range(19):
        trainer._watch(0.0)
    with pytest.warns(UserWarning, match="in each of 20 steps"):
        trainer._watch(0.0)
