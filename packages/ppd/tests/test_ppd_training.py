"""Embeddings, and the training: what is reserved, who is told what, what learns and what stays."""

import math

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.diffusers_hosts import tiny_pipeline
from noiseworks.kits.image_tuning import denoising_delta, encode_files, preference_link
from noiseworks.kits.image_tuning.choices import Choice
from noiseworks.ppd import (
    PPD,
    Support,
    Taste,
    Training,
    Users,
    describe_choices,
    embed_users,
    identified,
    preferred,
)
from noiseworks.ppd.chosen import left_to_train
from PIL import Image

PROMPTS = ("a red circle", "a blue square")


def people(embeddings=2, reserved=4):
    g = torch.Generator().manual_seed(0)
    names = [f"u{i % 3}" for i in range(30)]
    described = torch.randn(30, 6, generator=g) + 2 * torch.nn.functional.one_hot(torch.arange(30) % 3, 6)
    support = Support(choices_each=2, reserved=reserved, embeddings=embeddings)
    return names, described, embed_users(names, described, "e", support)


def trainer(users=None, **changes):
    names, _, found = people()
    users = found if users is None else users
    reserved = {row for numbers in users.reserved for row in numbers}
    rows = [i for i in range(30) if i not in reserved]
    latents = torch.randn(len(rows), 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    who = torch.tensor([users.number(names[i]) for i in rows])
    settings = {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "device": "cpu"} | changes
    dropout = settings.pop("user_dropout", 0.1)
    pipe = settings.pop("pipe", None) or tiny_pipeline("sd")
    taste = Taste(kappa=50.0, user_dropout=dropout)
    ids = torch.arange(len(rows)) % 2
    return PPD(pipe, PROMPTS, latents, ids, who, users, Training(**settings), taste)


def test_embeddings_are_means_of_reserved_choices_only(tmp_path):
    names, described, users = people()
    assert users.names == ("u0", "u1", "u2")
    for number, mine in enumerate(users.reserved):
        assert {names[i] for i in mine} == {users.names[number]}
        assert len(mine) == 4
        changed = described.clone()
        outside = torch.tensor([i for i in range(30) if i not in mine])
        changed[outside] = 99.0
        again = embed_users(names, changed, "e", Support(2, 4, 2))
        assert torch.equal(again.embeddings[number], users.embeddings[number])
    flat = users.standard.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(flat.std(0, correction=0), torch.ones(6), atol=1e-5, rtol=0)
    users.save(tmp_path / "users")
    loaded = Users.load(tmp_path / "users")
    assert torch.equal(loaded.embeddings, users.embeddings)
    assert loaded.reserved == users.reserved
    new = embed_users(["n"] * 4, described[:4], "e", Support(2, 4), users)
    assert torch.equal(new.mean, users.mean)
    with pytest.raises(InputError, match="encoder"):
        embed_users(["n"] * 4, described[:4], "other", Support(2, 4), users)
    with pytest.raises(InputError, match="nobody made 11"):
        embed_users(names, described, "e", Support(2, 11))
    with pytest.raises(InputError, match="reserved"):
        Support(choices_each=5, reserved=4)


def test_the_order_of_the_choices_behind_an_embedding_does_not_matter():
    names, described, users = people(embeddings=1)
    mine = torch.tensor(users.reserved[0])
    order = torch.arange(30)
    order[mine] = mine.flip(0)
    support = Support(4, 4, 1)
    found, again = (
        embed_users(names, one, "e", support).embeddings[0] for one in (described, described[order])
    )
    torch.testing.assert_close(again, found)
    torch.testing.assert_close(found[0], described[mine].mean(0))


def test_what_is_trained_on_is_none_of_what_people_are_known_by(tmp_path):
    """Three people with 6, 5 and 2 choices on disk: the last one is left out, of the others three are reserved."""
    names, g = ["u0", "u1"] * 5 + ["u0", "u2", "u2"], torch.Generator().manual_seed(0)
    given = []
    for number, name in enumerate(names):
        files = [tmp_path / f"{number}{kind}.png" for kind in "ab"]
        for file in files:
            color = tuple(torch.randint(256, (3,), generator=g).tolist())
            Image.new("RGB", (32, 32), color).save(file)
        given.append(Choice(PROMPTS[number % 2], *files, name))
    users = embed_users(names, torch.randn(13, 6, generator=g), "e", Support(3, 3))
    pipe = tiny_pipeline("sd")
    prompts, latents, ids, who = left_to_train(pipe, given, users)
    reserved = {row for numbers in users.reserved for row in numbers}
    kept = [one for row, one in enumerate(given) if row not in reserved and one.user != "u2"]
    assert (len(reserved), len(kept)) == (6, 5)
    expected = encode_files(pipe, [file for one in kept for file in (one.winner, one.loser)])
    assert torch.equal(latents, expected.unflatten(0, (5, 2)))
    assert [prompts[i] for i in ids] == [one.prompt for one in kept]
    assert [users.names[i] for i in who] == [one.user for one in kept]


def test_how_often_people_are_trained_on():
    """By default each choice once an epoch; with equal_users each person as often as another, their choices in turn."""
    *_, users = people()
    who = torch.tensor([0] * 6 + [1] * 3 + [2])
    latents = torch.zeros(10, 2, 4, 8, 8)
    drawn = {}
    for equal in (False, True):
        options = Training(max_steps=9, batch_size=5, device="cpu")
        one = PPD(
            tiny_pipeline("sd"), PROMPTS, latents, who % 2, who, users, options, Taste(equal_users=equal)
        )
        rows = []
        for step in range(12):
            one.done = step
            rows.append(one.draw_rows(10, 5))
        drawn[equal] = torch.cat(rows)
    assert drawn[False].bincount(minlength=10).tolist() == [6] * 10
    assert who[drawn[True]].bincount().tolist() == [20] * 3
    counts = drawn[True].bincount(minlength=10)
    assert counts[9] == 20
    assert int(counts[:6].max() - counts[:6].min()) <= 1
    assert int(counts[6:9].max() - counts[6:9].min()) <= 1
    assert sorted(who[drawn[True][:3]].tolist()) == [0, 1, 2]
    assert drawn[True][:9].tolist() != drawn[True][9:18].tolist()


def test_the_loss_of_a_choice_on_numbers():
    """Wallace et al., eq. 14, at kappa 2500: the argument is 1, and -1 when winner and loser are exchanged."""
    errors, kept = (
        torch.tensor([pair], dtype=torch.float64) for pair in ((0.1200, 0.1503), (0.1201, 0.1500))
    )
    for first, second, loss in ((errors, kept, 0.3132617), (errors.flip(1), kept.flip(1), 1.3132617)):
        z = -denoising_delta(first, second)
        assert float(preference_link(z, 2500.0)) == pytest.approx(loss, abs=1e-6)


def test_mixtures_run_from_one_to_the_other():
    *_, users = people()
    a, b = (users.profile(name) for name in ("u0", "u1"))
    assert torch.equal(a, users.standard[0, 0])
    half = users.profile({"u0": 0.5, "u1": 0.5})
    torch.testing.assert_close(half, (a + b) / 2)
    torch.testing.assert_close(users.profile({"u0": 1.0, "u1": 0.0}), a)
    torch.testing.assert_close(half, users.profile({"u1": 0.5, "u0": 0.5}))
    for wrong, word in (
        ({"u0": 0.5}, "sum to 1"),
        ({"u0": 1.5, "u1": -0.5}, "at least 0"),
        ({"u0": math.nan, "u1": 0.5}, "sum to 1"),
        ("u9", "unknown user"),
    ):
        with pytest.raises(InputError, match=word):
            users.profile(wrong)


def test_swapping_winner_and_loser_negates_the_first_block():
    winners, losers = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    features = lambda images: images.flatten(2).mean(2)  # noqa: E731
    found, swapped = describe_choices(features, winners, losers), describe_choices(features, losers, winners)
    torch.testing.assert_close(found[:, :3], -swapped[:, :3])
    torch.testing.assert_close(found[:, 3:], features(winners))
    with pytest.raises(InputError, match="returns"):
        describe_choices(lambda images: images.flatten(1).mean(1), winners, losers)
    with pytest.raises(NonFiniteError, match="encoder"):
        describe_choices(lambda images: features(images) / 0, winners, losers - winners)


def test_people_are_recognised_where_their_choices_tell_them_apart():
    names, described, _ = people()
    assert identified(names, described, 2, 2)["top1"] == 1
    noise = torch.randn(4000, 6, generator=torch.Generator().manual_seed(3))
    found = identified([f"u{i % 200}" for i in range(4000)], noise, 4, 16)
    assert found["top"] == pytest.approx(16 / 200, abs=0.06)
    assert found["chance"] == 16 / 200
    with pytest.raises(InputError, match="fewer than two"):
        identified(names, described, 9, 2)


def opposed():
    """Return two people of opposite tastes, 24 choices to train on and 24 others."""
    g = torch.Generator().manual_seed(4)
    names = [f"u{i % 2}" for i in range(8)]
    direction = torch.randn(4, 8, 8, generator=g)
    described = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 1)
    users = embed_users(names, described, "e", Support(2, 4, 1))
    who = torch.arange(48) % 2
    sign = torch.tensor([1.0, -1.0])[:, None, None, None] * direction
    latents = torch.stack([sign[who], -sign[who]], 1) + torch.randn(48, 2, 4, 8, 8, generator=g)
    return users, who, latents


def test_only_the_branch_is_trained_and_it_learns_who_chose():
    users, who, latents = opposed()
    options = Training(max_steps=14, batch_size=12, minibatch=12, learning_rate=3e-2, device="cpu")
    taste = Taste(kappa=50.0, user_dropout=0.0)
    ids, old, new = torch.arange(48) // 2 % 2, slice(0, 24), slice(24, 48)
    one = PPD(tiny_pipeline("sd"), PROMPTS, latents[old], ids[old], who[old], users, options, taste)
    frozen = {n: p.detach().clone() for n, p in one.denoiser.named_parameters() if not p.requires_grad}
    first = one.round(0)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    one.fit(progress=False)
    names = dict(one.denoiser.named_parameters())
    assert all(torch.equal(names[name], value) for name, value in frozen.items())
    assert all(name.endswith("weight") for name in one.trainable)
    told = users.standard[who[new], 0]
    margins, others = (
        preferred(one.error, one.branch, latents[new], ids[new], asked, draws=3)
        for asked in (told, users.standard[1 - who[new], 0])
    )
    nobody = preferred(one.error, one.branch, latents[:2], ids[:2], torch.zeros(2, 2), draws=1)
    assert float((margins > 0).float().mean()) > 0.85
    assert float((others > 0).float().mean()) < 0.15
    assert torch.equal(nobody, torch.zeros(2))


def test_dropout_is_of_the_pair_and_as_often_as_said():
    one = trainer(user_dropout=0.5)
    rows = torch.arange(len(one.who)).repeat(60)
    further = one.further(rows, torch.Generator().manual_seed(0))
    told = further(torch.arange(len(rows)))["added_cond_kwargs"]["image_embeds"][0][:, 0]
    nobody = (told == 0).all(1)
    assert float(nobody.float().mean()) == pytest.approx(0.5, abs=0.06)
    places = torch.arange(len(rows)).repeat_interleave(2)
    both = further(places)["added_cond_kwargs"]["image_embeds"][0][:, 0].view(len(rows), 2, -1)
    assert torch.equal(both[:, 0], both[:, 1])
    own = one.users.standard[one.who[rows]]
    assert bool((nobody | (told[:, None] == own).all(2).any(1)).all())
    with pytest.raises(InputError, match="mixed precision"):
        Training(device="cpu", weights="bfloat16")
