"""The loop: gradients of the whole, resuming, several processes, bad rewards."""

import sys

import pytest
import torch
from noiseworks.core.errors import NonFiniteError
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.image_tuning import (
    DDPO,
    BestOfTwo,
    DDPOSettings,
    DenoisingError,
    Losses,
    Rollout,
    Tuning,
)
from noiseworks.kits.training import open_run
from noiseworks.kits.training.testing import check_resume

PROMPTS = ("a red circle", "a blue square", "a green cross")
ROLLOUT = Rollout(num_inference_steps=3, guidance_scale=2.0, size=32)


def brightness(images, prompts):
    return images.flatten(1).mean(1)


def double_pipeline():
    pipe = tiny_pipeline("sd")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        torch.nn.Module.to(part, torch.float64)
    return pipe


def tuner(reward=brightness, pipe=None, settings=DDPOSettings(copies=2, clip=0.2), **changes):
    options = {"max_steps": 3, "batch_size": 2, "learning_rate": 1e-2, "device": "cpu", "checkpoint_every": 0}
    pipe = tiny_pipeline("sd") if pipe is None else pipe
    return DDPO(pipe, PROMPTS, reward, Tuning(**options | changes), ROLLOUT, settings)


def test_best_of_two_learns_the_better_image_of_each_pair_at_any_timestep():
    options = Tuning(max_steps=1, batch_size=2, learning_rate=1e-2, device="cpu", minibatch=2, accumulate=1)
    trainer, ddpo = (
        kind(tiny_pipeline("sd"), PROMPTS, brightness, options, ROLLOUT) for kind in (BestOfTwo, DDPO)
    )
    seen, error = [], DenoisingError.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DenoisingError, "__call__", lambda *args: seen.append(args[1:4]) or error(*args))
        figures = trainer.round(0)
    drawn = ddpo.roll_out(ddpo.draw_prompts(2).repeat_interleave(2))
    ends, best = drawn.latents[:, -1].unflatten(0, (2, 2)), drawn.rewards.view(2, 2).argmax(1)
    better = {int(drawn.prompt_ids[2 * i]): ends[i, best[i]] for i in range(2)}
    assert len(better) == 2
    assert len(seen) == drawn.log_probs.shape[1]  # as many passes as steps
    for x0, ids, _ in seen:
        for row, number in zip(x0, ids.tolist(), strict=True):
            assert torch.equal(row, better[number])
    drawing = {int(t) for t in trainer.policy.chain.timesteps}
    assert {int(t) for *_, times in seen for t in times} - drawing
    assert figures["optimizer_steps"] == 1


def test_ddpo_raises_a_reward():
    trained, held = (
        tuner(batch_size=4, max_steps=5, minibatch=8, inner_epochs=2),
        (torch.arange(12) % 3, range(12)),
    )

    def reward():
        latents = trained.policy.roll_out(*held, range(100, 112)).latents[:, -1]
        return float(brightness(trained.policy.decode(latents), None).mean())

    before = reward()
    trained.fit(progress=False)
    assert reward() > before
    assert trained.queries == 8 * 5
    assert trained.done == 5


def test_steps_one_after_the_other_add_up_to_the_gradient_of_the_mean():
    def gradients(**changes):
        one = tuner(pipe=double_pipeline(), precision="64-true", max_grad_norm=1e9, **changes)
        drawn = one.roll_out(torch.tensor([0, 1, 2]))

        def losses(rows, places):
            return Losses(-one.log_prob(drawn, rows, places))

        one.optimizer.optimizer.step = lambda *args, **kwargs: None
        one.optimise(losses, torch.arange(3))
        found = torch.cat([p.grad.flatten() for p in one.trainable.values()])
        rows, places = (
            grid.flatten() for grid in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
        )
        one.optimizer.zero_grad()
        losses(rows, places).values.mean().backward()
        whole = torch.cat([p.grad.flatten() for p in one.trainable.values()])
        return found, whole

    for sizes in ({"minibatch": 1, "accumulate": 3}, {"minibatch": 2, "accumulate": 2}):
        found, whole = gradients(**sizes)
        torch.testing.assert_close(found, whole, rtol=1e-9, atol=1e-12)


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    remembering = DDPOSettings(copies=2, clip=0.2, min_count=2)

    def train(folder):
        trained = tuner(settings=remembering, timestep_fraction=0.7, pictures_every=2)
        with open_run(folder, {"options": trained.options}) as run:
            trained.fit(run, progress=False)
        assert (folder / "lora" / "pytorch_lora_weights.safetensors").is_file()
        assert (folder / "samples" / "00002.png").is_file()
        return {name: p.detach() for name, p in trained.trainable.items()}

    check_resume(train, tmp_path, stop_at=2)


def test_a_reward_that_is_no_number_stops_the_run(tmp_path):
    calls = []

    def breaking(images, prompts):
        calls.append(len(images))
        return torch.full((len(images),), float("nan") if len(calls) == 2 else 1.0)

    trained = tuner(breaking)
    with open_run(tmp_path, {}) as run, pytest.raises(NonFiniteError, match="the reward is"):
        trained.fit(run, progress=False)
    assert run.checkpoint is not None
    assert not (tmp_path / "lora").exists()


def train_rounds(**changes):
    """Two rounds in double precision; sums of another order then differ by 1e-16, which Adam cannot blow up."""
    one = tuner(pipe=double_pipeline(), precision="64-true", minibatch=4, **changes)
    figures = [one.round(step) for step in range(2)]
    weights = torch.cat([p.detach().flatten().double() for p in one.trainable.values()])
    return {"figures": figures, "weights": weights}, one.fabric.global_rank


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, warm):
    for done in warm.ranks("python", __file__, tmp_path, cwd=tmp_path):
        assert done.returncode == 0, done.stderr[-4000:]
    expected, _ = train_rounds()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(found[0]["weights"], found[1]["weights"])
    torch.testing.assert_close(found[0]["weights"], expected["weights"], atol=1e-6, rtol=1e-6)
    for part in found:
        for one, other in zip(part["figures"], expected["figures"], strict=True):
            for name in ("reward", "loss", "queries", "calls"):
                assert one[name] == pytest.approx(other[name], rel=1e-6, abs=1e-9), name


if __name__ == "__main__":
    result, rank = train_rounds(devices=2)
    torch.save(result, f"{sys.argv[1]}/{rank}.pt")
