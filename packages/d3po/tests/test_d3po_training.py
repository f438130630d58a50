"""The trainers on a tiny pipeline: what an update does, what stays as it was."""

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.d3po import D3PO, LabelledD3PO, Preference, Training
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.image_tuning import Policy, Rollout, reference

ROLLOUT = Rollout(num_inference_steps=3, guidance_scale=2.0)
PROMPTS = ("a red circle", "a blue square")


def brightness(images, prompts):
    return images.flatten(1).mean(1)


def online(judge=brightness, **changes):
    settings = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-2, "device": "cpu"} | changes
    return D3PO(tiny_pipeline("sd"), PROMPTS, judge, Training(**settings), ROLLOUT, Preference(beta=1.0))


def test_the_members_of_a_pair_start_alike_and_the_first_loss_is_ln_2():
    seen = {}
    trainer = online(minibatch=4, learning_rate=1e-9)
    learn = trainer.learn
    trainer.learn = lambda drawn, *rest: seen.update(drawn=drawn) or learn(drawn, *rest)
    figures = trainer.round(0)
    latents = seen["drawn"].latents
    assert torch.equal(latents[0, 0], latents[1, 0])
    assert not torch.equal(latents[0, 1], latents[1, 1])
    assert figures["loss"] == pytest.approx(0.6931472, abs=1e-5)
    assert figures["grad_norm"] > 0
    assert figures["queries"] == 4


def test_an_update_widens_the_gap_of_its_pair_and_leaves_the_base():
    trainer = online()
    trainer.optimizer = torch.optim.SGD(trainer.trainable.values(), lr=1e-3)
    drawn = trainer.roll_out(torch.tensor([0, 0]), [0, 0])
    before, h = trainer.policy.log_probs(drawn), torch.tensor([[1.0]])
    kept = trainer.reference_log_probs(drawn)
    assert torch.equal(before, kept)
    trainer.learn(drawn, h, kept, torch.tensor([0]))
    after = trainer.policy.log_probs(drawn) - before
    assert (after[0] - after[1]).mean() > 0
    with reference(trainer.denoiser):
        assert torch.equal(trainer.policy.log_probs(drawn), kept)


def test_images_without_an_order_teach_nothing():
    trainer = online(lambda images, prompts: torch.zeros(len(images)))
    before = [p.detach().clone() for p in trainer.trainable.values()]
    assert trainer.round(0)["ties"] == 1
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.trainable.values(), strict=True))


def test_labels_train_as_the_order_that_they_state():
    pipe = tiny_pipeline("sd")
    policy = Policy(pipe, PROMPTS, ROLLOUT)
    ids, seeds = torch.arange(2).repeat_interleave(3), range(6)
    drawn = policy.roll_out(ids, [9, 9, 9, 8, 8, 8], seeds)
    labels = torch.tensor([[2.0, 1, 0], [0, 0, 1]])
    settings = Training(max_steps=15, batch_size=2, minibatch=2, learning_rate=3e-3, device="cpu")
    trainer = LabelledD3PO(pipe, drawn, labels, settings, ROLLOUT, Preference(copies=3, beta=1.0))
    trainer.fit(progress=False)
    assert trainer.last["accuracy"] > 0.9
    assert trainer.last["ties"] == pytest.approx(1 / 6)
    gain = trainer.policy.log_probs(drawn) - trainer.reference
    assert gain[0].mean() > gain[2].mean()
    assert gain[5].mean() > gain[4].mean()
    for wrong, word in ((torch.zeros(2, 3), "no image"), (labels[:1], "do not fit")):
        with pytest.raises(InputError, match=word):
            LabelledD3PO(tiny_pipeline("sd"), drawn, wrong, settings, ROLLOUT, Preference(copies=3))
