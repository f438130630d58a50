"""RCR and the standard sampler: scripted traces, invariants, batches, hosts, precision, bad input."""

import pytest
import torch
from noiseworks.core.errors import InputError, NonFiniteError
from noiseworks.kits.masked_lm import HostSpec, aligned_logits, detect_host
from noiseworks.mdpo import Decoding, rcr_generate
from noiseworks.mdpo.remasking import predict, running_confidence_remask, update_running

SCRIPT = [[0.5, 0.9, 0.6, 0.8], [0.95, 0.85, 0.97, 0.7], [0.99, 0.99, 0.55, 0.96], [0.98] * 4]
SPEC = HostSpec(mask_id=4, eos_ids=(), pad_id=3, shift=0, vocab_limit=None, max_length=None, kind="llada")


@pytest.fixture
def scripted(scripted_host):
    def run(decoding, script=SCRIPT):
        return rcr_generate(scripted_host(script), torch.tensor([[0]]), decoding, spec=SPEC, record=True)

    return run


@pytest.mark.parametrize(
    ("name", "length", "steps", "expected"),
    [
        ("linear", 16, 8, [2] * 8),
        ("linear", 10, 4, [3, 2, 3, 2]),
        ("linear", 12, 7, [2, 2, 2, 1, 2, 2, 1]),
        ("cosine", 16, 8, [1, 1, 1, 2, 3, 2, 3, 3]),
        ("cosine", 32, 8, [1, 2, 3, 4, 5, 5, 6, 6]),
        ("pow2", 10, 4, [1, 2, 3, 4]),
        ("log", 16, 8, [4, 4, 3, 1, 2, 1, 1, 0]),
        ("exp", 16, 8, [2, 0, 1, 1, 2, 2, 4, 4]),
        ("log", 1, 3, [1, 0, 0]),
    ],
)
def test_schedules_reveal_the_known_counts(name, length, steps, expected):
    assert Decoding(length, length, steps, schedule=name).reveal_counts() == expected


@pytest.mark.parametrize(
    ("remask", "inputs", "final"),
    [
        ("low_confidence", ["4444", "4044", "4014", "2014"], "2013"),
        ("rcr", ["4444", "4044", "1414", "4212"], "3212"),
    ],
)
def test_scripted_host_gives_the_known_trace(remask, inputs, final, scripted):
    made = scripted(Decoding(4, 4, 4, remask=remask))
    assert ["".join(map(str, step.tolist())) for step in made.trace.inputs[:, 0]] == inputs
    assert "".join(map(str, made.sequences[0, 1:].tolist())) == final
    assert made.trace.final[0].tolist() == made.sequences[0, 1:].tolist()


@pytest.mark.parametrize("remask", ["low_confidence", "rcr"])
def test_two_blocks_of_the_scripted_host_end_alike(remask, scripted):
    assert scripted(Decoding(4, 2, 4, remask=remask)).sequences[0, 1:].tolist() == [1, 0, 3, 2]


def test_rcr_opens_a_position_of_an_earlier_block_again(scripted):
    script = [[0.5, 0.6, 0.9, 0.9], [0.4, 0.4, 0.9, 0.9], [0.9, 0.9, 0.95, 0.99], [0.9] * 4]
    inputs = scripted(Decoding(4, 2, 4), script).trace.inputs[:, 0]
    # Block one ends with scores .4 and .6; in block two the .4 of position 0 is the lowest of all.
    assert inputs[2].tolist() == [1, 0, 4, 4]
    assert inputs[3].tolist() == [4, 0, 2, 2]


@pytest.mark.parametrize(
    ("track", "expected"), [("latest", [0.2, 0.6]), ("max", [0.5, 0.6]), ("min", [0.2, 0.3])]
)
def test_running_score_is_tracked_as_asked(track, expected):
    old, new = torch.tensor([0.5, 0.3]), torch.tensor([0.2, 0.6])
    torch.testing.assert_close(update_running(old, new, track), torch.tensor(expected))
    unset = torch.full((2,), torch.inf)
    torch.testing.assert_close(update_running(unset, new, track), new)


@pytest.mark.parametrize("track", ["latest", "max", "min"])
def test_tracks_differ_where_a_position_is_predicted_twice(track, scripted):
    script = [[0.9, 0.3, 0.5, 0.6], [0.9, 0.8, 0.7, 0.4], [0.5, 0.5, 0.5, 0.5], [0.9] * 4]
    inputs = scripted(Decoding(4, 4, 4, track=track), script).trace.inputs[2, 0]
    kept = {"latest": {0, 1}, "max": {0, 1}, "min": {0, 2}}[track]
    assert set((inputs != 4).nonzero()[:, 0].tolist()) == kept


def test_full_confidence_never_masks_what_was_not_predicted():
    running = torch.tensor([[1.0, 1.0, torch.inf, torch.inf]])
    tokens = running_confidence_remask(torch.tensor([[3, 3, 4, 4]]), running, 1, 4)
    assert tokens.tolist() == [[3, 4, 4, 4]]
    entropy = torch.tensor([[-0.0, -2.0, torch.inf]])
    assert running_confidence_remask(torch.tensor([[3, 3, 4]]), entropy, 1, 4).tolist() == [[3, 4, 4]]


def test_constant_scores_make_rcr_the_standard_sampler(scripted):
    script = [[0.7, 0.9, 0.6, 0.9, 0.8, 0.5]] * 6
    runs = [
        scripted(Decoding(6, 6, steps, remask=kind), script)
        for steps in (3, 6)
        for kind in ("rcr", "low_confidence")
    ]
    for rcr, standard in (runs[:2], runs[2:]):
        assert torch.equal(rcr.sequences, standard.sequences)
        assert torch.equal(rcr.trace.inputs, standard.trace.inputs)


@pytest.mark.parametrize("remask", ["rcr", "low_confidence"])
@pytest.mark.parametrize("confidence", ["llada", "entropy", "topk_margin", "random"])
@pytest.mark.parametrize(("block", "schedule"), [(12, "cosine"), (4, "linear"), (6, "exp")])
def test_mask_counts_follow_the_schedule_and_prompts_stay(remask, confidence, block, schedule, host):
    decoding = Decoding(12, block, 12, 0.8, schedule, confidence, remask)
    ids = torch.randint(3, 23, (3, 5), generator=torch.Generator().manual_seed(1))
    made = rcr_generate(host, ids, decoding, seeds=[1, 2, 3], record=True)
    counts, expected = decoding.reveal_counts(), []
    for left in range(decoding.blocks, 0, -1):
        expected += [sum(counts[t:]) + (left - 1) * block for t in range(len(counts))]
    masked = (made.trace.inputs == 2).sum(dim=2)
    assert torch.equal(masked, torch.tensor(expected)[:, None].expand(-1, 3))
    assert torch.equal(made.sequences[:, :5], ids)
    assert not bool((made.sequences == 2).any())
    assert not bool((made.trace.predictions == 2).any())


def test_one_step_of_rcr_is_one_shot_decoding(host):
    ids = torch.tensor([[5, 6, 7]])
    made = rcr_generate(host, ids, Decoding(6, 6, 1))
    canvas = torch.cat([ids, torch.full((1, 6), 2)], dim=1)
    with torch.no_grad():
        logits = aligned_logits(host, canvas, spec=detect_host(host))
    assert torch.equal(made.sequences[:, 3:], logits[:, 3:].argmax(dim=-1))
    assert made.calls == 1


@pytest.mark.parametrize("kind", ["llada", "dream"])
@pytest.mark.parametrize("remask", ["rcr", "low_confidence"])
def test_left_padded_batch_equals_single_runs(kind, remask, make_host):
    model = make_host(kind)
    prompts = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15]]
    ids = torch.tensor([[0] * (6 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (6 - len(p)) + [1] * len(p) for p in prompts])
    decoding = Decoding(8, 4, 8, 0.7, remask=remask)
    batch = rcr_generate(model, ids, decoding, attention_mask=mask, seeds=[7, 8, 9])
    for row, prompt in enumerate(prompts):
        single = rcr_generate(model, torch.tensor([prompt]), decoding, seeds=[7 + row])
        assert batch.sequences[row, 6:].tolist() == single.sequences[0, len(prompt) :].tolist()


def test_dream_logits_are_aligned_before_decoding(make_host):
    model = make_host("dream")
    made = rcr_generate(model, torch.tensor([[5, 6]]), Decoding(3, 3, 1))
    canvas = torch.tensor([[5, 6, 2, 2, 2]])
    with torch.no_grad():
        raw = model(canvas).logits[:, 1:4, :]
    raw[..., 2] = -torch.inf
    assert torch.equal(made.sequences[:, 2:], raw.argmax(dim=-1))


def test_recording_changes_nothing_but_the_record(host):
    ids = torch.randint(3, 23, (4, 3), generator=torch.Generator().manual_seed(0))
    decoding = Decoding(8, 4, 4, 1.0)
    with_record = rcr_generate(host, ids, decoding, seeds=range(4), record=True)
    without = rcr_generate(host, ids, decoding, seeds=range(4))
    assert torch.equal(with_record.sequences, without.sequences)
    assert without.trace is None
    assert with_record.trace.inputs.shape == (4, 4, 8)


def test_generator_makes_runs_repeatable(host):
    ids, decoding = torch.tensor([[5, 6]] * 3), Decoding(8, 8, 4, 1.0)
    runs = [rcr_generate(host, ids, decoding, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(runs[0].sequences, runs[1].sequences)
    assert not torch.equal(runs[0].sequences, runs[2].sequences)
    assert len({tuple(row) for row in runs[0].sequences.tolist()}) > 1


def test_drawn_tokens_have_the_tempered_filtered_probability():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -torch.inf]]]).expand(1, 4000, -1)
    keys = torch.arange(4000)[None]
    for decoding, allowed in ((Decoding(4, 4, 4, 0.5), 3), (Decoding(4, 4, 4, 0.5, top_k=2), 2)):
        found = predict(logits, decoding, keys, call=0)
        p = torch.tensor([4.0, 2.0, 0.0])[:allowed].softmax(dim=0)
        torch.testing.assert_close(found.probability[0], p[found.tokens[0]])
        share = torch.bincount(found.tokens[0], minlength=3)[:allowed] / 4000
        torch.testing.assert_close(share, p, atol=0.02, rtol=0)


def test_scores_are_margin_entropy_and_uniform_numbers():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    p, keys = logits.softmax(dim=-1), torch.arange(10).reshape(2, 5)
    top = p.topk(2, dim=-1).values
    for temperature in (0.0, 1.0):
        scores = {
            kind: predict(logits, Decoding(4, 4, 4, temperature, confidence=kind), keys, 3).score
            for kind in ("entropy", "topk_margin", "random")
        }
        torch.testing.assert_close(scores["entropy"], (p * p.log()).sum(-1))
        torch.testing.assert_close(scores["topk_margin"], top[..., 0] - top[..., 1])
        assert 0 <= scores["random"].min() < scores["random"].max() < 1


def test_bfloat16_host_is_decoded_with_float32_scores(make_host):
    model = make_host().to(torch.bfloat16)
    made = rcr_generate(model, torch.tensor([[5, 6, 7]]), Decoding(8, 4, 8, 0.5), seeds=[3], record=True)
    assert not bool((made.sequences == 2).any())
    assert bool(made.trace.scores.isfinite().all())


def test_lora_host_is_decoded_with_its_adapter(make_host):
    from noiseworks.mdpo.policy import add_lora

    model = make_host()
    ids, decoding = torch.tensor([[5, 6, 7]]), Decoding(8, 8, 8)
    before = rcr_generate(model, ids, decoding).sequences
    adapted = add_lora(model, 2, 4.0, 0.0)
    assert torch.equal(rcr_generate(adapted, ids, decoding).sequences, before)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    assert not torch.equal(rcr_generate(adapted, ids, decoding).sequences, before)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"gen_length": 10, "block_length": 4}, "multiple of block_length"),
        ({"gen_length": 8, "block_length": 4, "steps": 5}, "multiple of the 2 blocks"),
        ({"schedule": "quadratic"}, "quadratic"),
        ({"confidence": "luck"}, "luck"),
        ({"remask": "always"}, "always"),
        ({"track": "mean"}, "mean"),
        ({"temperature": float("nan")}, "nan"),
        ({"temperature": -1.0}, "-1"),
        ({"steps": 0}, "steps"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_k": 0}, "top_k"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, word):
    with pytest.raises(InputError, match=word):
        Decoding(**{"gen_length": 8, "block_length": 8, "steps": 4, **settings})


def test_prompts_that_cannot_be_completed_are_refused(host, make_host):
    decoding = Decoding(8, 8, 4)
    with pytest.raises(InputError, match="mask id 2"):
        rcr_generate(host, torch.tensor([[5, 2]]), decoding)
    with pytest.raises(InputError, match="pad id and mask id"):
        rcr_generate(make_host(pad_token_id=2), torch.tensor([[5]]), decoding)
    with pytest.raises(InputError, match="512"):
        rcr_generate(host, torch.full((1, 510), 5), decoding)
    with pytest.raises(InputError, match="one seed a row"):
        rcr_generate(host, torch.tensor([[5]]), decoding, seeds=[1, 2])


def test_more_steps_than_tokens_warn_and_still_finish(host):
    with pytest.warns(UserWarning, match="some reveal none"):
        made = rcr_generate(host, torch.tensor([[5]]), Decoding(3, 3, 6), record=True)
    assert not bool((made.sequences == 2).any())
    assert made.trace.steps == 6


def test_a_model_of_nan_stops_with_the_call(scripted_host):
    script = [[0.5, 0.9, 0.6, 0.8], [torch.nan] * 4]
    with pytest.raises(NonFiniteError, match="logit of a position is not finite at step 1"):
        rcr_generate(scripted_host(script), torch.tensor([[0]]), Decoding(4, 4, 4), spec=SPEC)
