"""Tuning on finished images: the loss beside the example of diffusers, files of choices, resuming, two processes."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from noiseworks.core.errors import InputError
from noiseworks.kits.diffusers_hosts import decode_latents, encode_images, tiny_pipeline
from noiseworks.kits.image_tuning import (
    DenoisingError,
    DiffusionDPO,
    LoraTuning,
    PairLoss,
    Policy,
    Rollout,
    Supervised,
    encode_files,
    read_choices,
    reference,
)
from noiseworks.kits.training import open_run
from noiseworks.kits.training.testing import check_resume
from PIL import Image

PROMPTS = ("a red circle", "a blue square", "a green cross")


def table(rows=6, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    return torch.randn(rows, 2, 4, 8, 8, generator=g, dtype=dtype), torch.arange(rows) % 3


def tuner(cls=DiffusionDPO, pipe=None, **changes):
    options = {"max_steps": 3, "batch_size": 4, "minibatch": 2, "learning_rate": 1e-2, "device": "cpu"}
    latents, ids = table()
    pipe = tiny_pipeline("sd") if pipe is None else pipe
    options = LoraTuning(**options | {"checkpoint_every": 0} | changes)
    if cls is Supervised:
        return Supervised(pipe, PROMPTS, latents[:, 0], ids, options)
    return cls(pipe, PROMPTS, latents, ids, options, PairLoss(kappa=50.0))


def randomise(trained):
    g = torch.Generator().manual_seed(7)
    for parameter in trained.trainable.values():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=g)


def test_a_step_has_the_loss_of_the_example_of_diffusers():
    trained = tuner(minibatch=4, learning_rate=1e-9)
    randomise(trained)
    rows, timesteps, noise, _ = trained.draw()
    unet, scheduler = trained.denoiser, trained.pipe.scheduler
    # Its lines: winners before losers, one noise and one timestep a pair, mean squared errors, adapters off.
    latents = trained.latents[rows].transpose(0, 1).flatten(0, 1)
    noise, timesteps = noise.repeat(2, 1, 1, 1), timesteps.repeat(2)
    text = trained.policy.conditions.cond["encoder_hidden_states"][trained.ids[rows]].repeat(2, 1, 1)
    noisy = scheduler.add_noise(latents, noise, timesteps)

    def losses():
        prediction = unet(noisy, timesteps, text).sample
        return F.mse_loss(prediction.float(), noise.float(), reduction="none").mean((1, 2, 3))

    with torch.no_grad():
        won, lost = losses().chunk(2)
        with reference(unet):
            ref_won, ref_lost = losses().chunk(2)
    logits = (ref_won - ref_lost) - (won - lost)
    expected = -F.logsigmoid(50.0 * logits)
    found = trained.round(0)
    assert found["loss"] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert found["loss"] != pytest.approx(0.6931472, abs=1e-3)
    assert found["accuracy"] == float((logits > 0).float().mean())
    assert tuner().round(0)["loss"] == pytest.approx(0.6931472, abs=1e-6)


def test_groups_are_evaluated_as_single_images_are():
    policy = Policy(tiny_pipeline("sdxl"), PROMPTS, Rollout(2, 1.0, size=32))
    error, (latents, ids) = DenoisingError(policy), table(3)
    g = torch.Generator().manual_seed(1)
    timesteps, noise = error.draw_timesteps(3, g), torch.randn(3, 2, 4, 8, 8, generator=g)
    with torch.no_grad():
        for given in (noise, noise[:, 0]):
            found = error.of_groups(latents, ids, timesteps, given)
            for k in (0, 1):
                one = error(latents[:, k], ids, timesteps, given[:, k] if given.ndim == 5 else given)
                torch.testing.assert_close(found[:, k], one, rtol=1e-5, atol=1e-6)
    few = torch.tensor([999, 499])
    assert set(error.draw_timesteps(64, g, few).tolist()) == {999, 499}


def test_more_arguments_join_those_of_the_host():
    pipe = tiny_pipeline("sdxl")
    policy = Policy(pipe, PROMPTS, Rollout(2, 1.0, size=32))
    seen = {}
    pipe.unet.register_forward_pre_hook(lambda m, args, kwargs: seen.update(kwargs), with_kwargs=True)
    latents, ids = table(2)
    further = {"added_cond_kwargs": {"more": torch.ones(2, 1)}}
    with torch.no_grad():
        DenoisingError(policy)(latents[:, 0], ids, torch.tensor([3, 4]), latents[:, 1], further)
    assert {"more", "text_embeds", "time_ids"} <= seen["added_cond_kwargs"].keys()
    assert "more" not in policy.conditions.cond["added_cond_kwargs"]


@pytest.mark.parametrize("cls", [DiffusionDPO, Supervised])
def test_training_lowers_the_loss_and_leaves_the_base(cls):
    trained = tuner(cls, max_steps=25, batch_size=6, minibatch=6)
    before = trained.round(0)["loss"]
    with reference(trained.denoiser):
        base = trained.denoiser(torch.ones(1, 4, 8, 8), 5, torch.ones(1, 16, 32)).sample
    trained.fit(progress=False)
    assert trained.last["loss"] < before - (0.2 if cls is DiffusionDPO else 0.0)
    assert trained.last["calls"] == trained.policy.calls
    with reference(trained.denoiser):
        again = trained.denoiser(torch.ones(1, 4, 8, 8), 5, torch.ones(1, 16, 32)).sample
    assert torch.equal(base, again)


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    def train(folder):
        trained = tuner()
        with open_run(folder, {"options": trained.options}) as run:
            trained.fit(run, progress=False)
        assert (folder / "lora" / "pytorch_lora_weights.safetensors").is_file()
        return {name: p.detach() for name, p in trained.trainable.items()}

    check_resume(train, tmp_path, stop_at=2)


@pytest.mark.parametrize("family", ["sd", "sd3", "flux"])
def test_images_are_encoded_as_the_host_decodes_them(family):
    pipe = tiny_pipeline(family)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = encode_images(pipe, images)
    decoded = decode_latents(pipe, found)
    raw = pipe.vae.decode(pipe.vae.encode(images * 2 - 1).latent_dist.mode()).sample
    torch.testing.assert_close(decoded, (raw * 0.5 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-5)
    assert tuple(found.shape[1:]) == Policy(pipe, ["a red circle"], Rollout(2, 1.0, size=32)).conditions.shape


def write(folder, lines, sizes=(32, 32)):
    for number, size in enumerate(sizes):
        Image.new("RGB", (size, size), (40 * number, 90, 9)).save(folder / f"{number}.png")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "choices.jsonl").write_text(text)
    return folder


def test_choices_are_read_and_encoded(tmp_path):
    line = {"prompt": "a red circle", "winner": "0.png", "loser": "1.png", "user": "u"}
    folder = write(tmp_path, [line, line])
    found = read_choices(folder, ("loser", "user"))
    assert found == read_choices(folder / "choices.jsonl")
    assert [one.user for one in found] == ["u", "u"]
    pipe, files = tiny_pipeline("sd"), [found[0].loser, found[0].winner, found[1].loser]
    latents = encode_files(pipe, files)
    assert latents.shape == (3, 4, 8, 8)
    assert torch.equal(latents[0], latents[2])
    assert not torch.equal(latents[0], latents[1])
    assert encode_files(pipe, files, size=16).shape == (3, 4, 4, 4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"winner": "gone.png"}, "line 2: there is no image"),
        ({"loser": "0.png"}, "to itself"),
        ({"loser": None}, "needs the texts"),
        ({"prompt": " "}, "empty prompt"),
        ({"looser": "1.png"}, "unknown key 'looser'"),
    ],
)
def test_choices_that_are_none_are_refused(tmp_path, change, word):
    line = {"prompt": "a red circle", "winner": "0.png", "loser": "1.png"}
    with pytest.raises(InputError, match=word):
        read_choices(write(tmp_path, [line, line | change]))


def test_files_that_are_no_choices_are_refused(tmp_path):
    with pytest.raises(InputError, match="no choices at"):
        read_choices(tmp_path)
    for text, word in (("", "no choice"), ("{", "line 1 is no JSON")):
        with pytest.raises(InputError, match=word):
            read_choices(write(tmp_path, [text]))
    line = {"prompt": "a", "winner": "0.png", "loser": "1.png"}
    found = read_choices(write(tmp_path, [line], sizes=(32, 16)))[0]
    with pytest.raises(InputError, match="different sizes"):
        encode_files(tiny_pipeline("sd"), [found.winner, found.loser])
    found.loser.write_text("words")
    with pytest.raises(InputError, match="is no image"):
        encode_files(tiny_pipeline("sd"), [found.winner, found.loser])


def test_rows_that_do_not_fit_are_refused():
    latents, ids = table()
    options = LoraTuning(device="cpu")
    cases = [(latents[:0], ids[:0]), (latents, ids[:3]), (latents, ids + 1), (latents[:, 0], ids)]
    for one, numbers in cases:
        with pytest.raises(InputError):
            DiffusionDPO(tiny_pipeline("sd"), PROMPTS, one, numbers, options)
    with pytest.raises(InputError, match="minibatch must be a multiple of devices"):
        LoraTuning(device="cpu", devices=2, minibatch=3)


def train_steps(**changes):
    """Two steps in double precision, as in the test of the loop with rollouts."""
    pipe = tiny_pipeline("sd")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        torch.nn.Module.to(part, torch.float64)
    one = tuner(pipe=pipe, precision="64-true", **changes)
    figures = [one.round(0)]
    one.done = 1
    figures.append(one.round(1))
    weights = torch.cat([p.detach().flatten().double() for p in one.trainable.values()])
    return {"figures": figures, "weights": weights}, one.fabric.global_rank


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, warm):
    for done in warm.ranks("python", __file__, tmp_path, cwd=tmp_path):
        assert done.returncode == 0, done.stderr[-4000:]
    expected, _ = train_steps()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(found[0]["weights"], found[1]["weights"])
    torch.testing.assert_close(found[0]["weights"], expected["weights"], atol=1e-6, rtol=1e-6)
    for part in found:
        for one, other in zip(part["figures"], expected["figures"], strict=True):
            assert one == pytest.approx(other, rel=1e-6, abs=1e-9)


if __name__ == "__main__":
    result, rank = train_steps(devices=2)
    torch.save(result, f"{sys.argv[1]}/{rank}.pt")
