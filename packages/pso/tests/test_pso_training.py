"""Samplers and trainers on a tiny pipeline: steps against diffusers, what an update does, what stays as it was."""

from dataclasses import replace

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts import sample_generators, tiny_pipeline
from noiseworks.kits.image_tuning import Policy, reference
from noiseworks.pso import (
    OfflinePSO,
    OnlinePSO,
    Pairing,
    Personal,
    PersonalPSO,
    Preference,
    Sampler,
    few_step,
)
from noiseworks.pso.options import OFFLINE, ONLINE, PERSONAL
from noiseworks.pso.samplers import trained_timesteps

PROMPTS = ("a red circle", "a blue square")
DMD = (999, 749, 499, 249)


def brightness(images, prompts):
    return images.flatten(1).mean(1)


def policy_of(kind, n=4):
    sampler = Sampler(n, kind)
    return Policy(few_step(tiny_pipeline("sd"), sampler), PROMPTS, sampler.rollout())


def online(judge=brightness, **changes):
    options = replace(ONLINE, batch_size=2, learning_rate=1e-2, device="cpu", **changes)
    return OnlinePSO(
        tiny_pipeline("sd"), PROMPTS, judge, options, Sampler(4, "renoising"), Preference(beta=5.0)
    )


def test_timesteps_of_the_samplers():
    assert policy_of("renoising").chain.timesteps.tolist() == list(DMD)
    eight = [999, 874, 749, 624, 499, 374, 249, 124]
    assert policy_of("renoising", 8).chain.timesteps.tolist() == eight
    assert policy_of("ancestral").chain.timesteps.tolist() == list(DMD)
    pipe = few_step(tiny_pipeline("sd"), Sampler(4, "ancestral"))
    assert trained_timesteps(pipe, Sampler(4, "ancestral"), "sampler").tolist() == list(DMD)
    assert trained_timesteps(pipe, Sampler(4), "script").tolist() == [750, 500, 250, 0]
    assert trained_timesteps(pipe, Sampler(4), "all") is None
    with pytest.warns(UserWarning, match="do not divide"):
        few_step(tiny_pipeline("sd"), Sampler(3, "renoising"))
    with pytest.raises(InputError, match="own scheduler"):
        few_step(tiny_pipeline("sd"), Sampler(4))
    with pytest.raises(InputError, match="no 8 steps"):
        few_step(few_step(tiny_pipeline("sd"), Sampler(4, "renoising")), Sampler(8))


def test_log_probabilities_on_fixed_tensors():
    x, m, drawn = (
        torch.linspace(a, b, 8, dtype=torch.float64).view(1, 2, 2, 2)
        for a, b in ((-1, 1), (0.5, -0.5), (-0.8, 0.9))
    )
    expected = {
        "renoising": {0: -5.2380981, 2: -1.6037078},
        "ancestral": {0: -2.9466581, 1: -1.6548016, 2: -0.8102219},
    }
    for kind, values in expected.items():
        chain = policy_of(kind).chain
        for place, value in values.items():
            found = chain.step(m, x, torch.tensor([place]), sample=drawn)
            assert float(found.log_prob) == pytest.approx(value, abs=2e-5)
        assert chain.stochastic == 3
        assert float(chain.transition(m, x, torch.tensor([3])).std) == 0


def test_ancestral_constants():
    chain = policy_of("ancestral").chain
    sigma = chain.level.sigma_ve
    following = torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)])
    up = torch.stack(
        [chain.transition(*torch.zeros(2, 1, 1, 1, 1), torch.tensor([i])).std.flatten()[0] for i in range(4)]
    )
    down = (following.square() - up.square()).clamp(min=0).sqrt()
    assert up.tolist() == pytest.approx([3.9193, 1.4816, 0.6259, 0], abs=1e-4)
    assert down.tolist() == pytest.approx([1.1400, 0.6373, 0.2979, 0], abs=1e-4)


@pytest.mark.parametrize("kind", ["renoising", "ancestral"])
def test_the_chain_is_the_pipelines_own_and_noise_is_each_samples(kind):
    policy = policy_of(kind)
    drawn = policy.roll_out(torch.tensor([0, 0]), [5, 5], [1, 2])
    assert torch.equal(drawn.latents[0, 0], drawn.latents[1, 0])
    assert not torch.equal(drawn.latents[0, 1], drawn.latents[1, 1])
    scheduler, pipe = policy.pipe.scheduler, policy.pipe
    scheduler.set_timesteps(4)
    (generator,) = sample_generators([1])
    for place, t in enumerate(scheduler.timesteps):
        x = drawn.latents[:1, place]
        with torch.no_grad():
            inputs = scheduler.scale_model_input(x, t)
            embeds = policy.conditions.cond["encoder_hidden_states"][:1]
            output = pipe.unet(inputs, t, encoder_hidden_states=embeds).sample
        step = scheduler.step(output, t, x, generator=generator)
        torch.testing.assert_close(step.prev_sample, drawn.latents[:1, place + 1], rtol=1e-4, atol=1e-4)


def test_an_untrained_adapter_changes_nothing_and_saved_ones_load(tmp_path):
    pipe = few_step(tiny_pipeline("sd"), Sampler(4, "renoising"))

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe(
            PROMPTS[0], num_inference_steps=4, guidance_scale=1.0, output_type="np", generator=generator
        ).images

    before = draw()
    trainer = OnlinePSO(pipe, PROMPTS, brightness, replace(ONLINE, device="cpu"), Sampler(4))
    assert (draw() == before).all()
    with torch.no_grad():
        for p in trainer.trainable.values():
            p.add_(0.1)
    tuned = draw()
    assert (tuned != before).any()
    trainer.save(tmp_path / "lora")
    pipe = few_step(tiny_pipeline("sd"), Sampler(4, "renoising"))
    pipe.load_lora_weights(tmp_path / "lora")
    assert abs(draw() - tuned).max() < 1e-5


def test_a_round_trains_the_steps_that_draw_and_widens_the_gap():
    trainer = online(minibatch=1, accumulate=1)
    calls, kept = [], trainer.log_prob
    trainer.log_prob = lambda drawn, rows, places: calls.append(places.tolist()) or kept(drawn, rows, places)
    figures = trainer.round(0)
    assert figures["optimizer_steps"] == 2
    assert len(calls) == 2 * 3
    assert {place for places in calls for place in places} == {0, 1, 2}
    trainer = online()
    trainer.optimizer = torch.optim.SGD(trainer.trainable.values(), lr=1e-4)
    seen, roll_out = {}, trainer.roll_out
    trainer.roll_out = lambda ids, starts=None: seen.setdefault("drawn", roll_out(ids, starts))
    trainer.round(0)
    drawn = seen["drawn"]
    with reference(trainer.denoiser):
        before = trainer.policy.log_probs(drawn)
    gain = (trainer.policy.log_probs(drawn) - before).mean(1).view(-1, 2)
    order = (drawn.rewards.view(-1, 2)[:, 0] - drawn.rewards.view(-1, 2)[:, 1]).sign()
    assert (order * (gain[:, 0] - gain[:, 1])).sum() > 0


def test_images_without_an_order_teach_nothing():
    trainer = online(lambda images, prompts: torch.zeros(len(images)))
    before = [p.detach().clone() for p in trainer.trainable.values()]
    assert trainer.round(0)["ties"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.trainable.values(), strict=True))


def test_given_pairs_train_at_the_samplers_timesteps_and_targets_gain():
    targets = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    options = replace(OFFLINE, max_steps=12, batch_size=2, learning_rate=1e-2, device="cpu")
    trainer = OfflinePSO(
        tiny_pipeline("sd"),
        PROMPTS,
        targets,
        torch.arange(2),
        None,
        options,
        Sampler(4, "renoising"),
        Pairing(kappa=20.0),
    )
    seen, error = set(), trainer.error.of_groups
    trainer.error.of_groups = lambda x, ids, t, *rest: seen.update(t.tolist()) or error(x, ids, t, *rest)
    trainer.fit(progress=False)
    assert seen <= set(DMD)
    assert trainer.last["accuracy"] > 0.9
    assert trainer.last["loss"] < 0.6
    with pytest.raises(InputError, match="differ"):
        OfflinePSO(
            tiny_pipeline("sd"),
            PROMPTS,
            targets,
            torch.arange(2),
            targets[..., :4],
            options,
            Sampler(4, "renoising"),
        )
    pairing = Pairing(refresh=2)
    with pytest.raises(InputError, match="refresh"):
        OfflinePSO(
            tiny_pipeline("sd"),
            PROMPTS,
            targets,
            torch.arange(2),
            targets,
            options,
            Sampler(4, "renoising"),
            pairing,
        )


def test_a_subject_is_learned_and_the_released_values_are_warned_of():
    pictures = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    options = replace(PERSONAL, max_steps=8, batch_size=2, learning_rate=1e-2, device="cpu")
    start = (tiny_pipeline("sd"), ("a red circle", "a circle"), pictures, options, Sampler(2, "renoising"))
    with pytest.warns(UserWarning, match="no effect"):
        trainer = PersonalPSO(*start, Personal(hold=0.5, negatives=3))
    first = trainer.round(0)["error"]
    trainer.fit(progress=False)
    assert trainer.last["error"] < first
    assert trainer.negatives.shape == (3, 4, 8, 8)
    with pytest.raises(InputError, match="negatives"):
        PersonalPSO(*start, Personal(negatives=1))
