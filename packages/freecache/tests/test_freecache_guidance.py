"""Guided decoding: accept rules, runs, the guide's cache, windows, vocabularies."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.freecache import Caching, Guidance, GuidedDiffusion, Sampling
from noiseworks.freecache.baselines import guide_generate
from noiseworks.freecache.guidance import accepts, leading_run
from noiseworks.freecache.guide import Guide
from noiseworks.freecache.options import Strategy, Windows
from noiseworks.freecache.windows import next_window
from noiseworks.kits.masked_lm import aligned_logits, detect_host, make_dream, make_llada, pad_prompts
from transformers import LlamaConfig, LlamaForCausalLM

MAKERS = {"llada": make_llada, "dream": make_dream}
VOCABULARY, MASK, PAD, EOS = 9, 8, 7, 6
STRATEGIES, WINDOWS = get_args(Strategy), get_args(Windows)


def scaled(model):
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(10)
    return model.eval()


def make_host(kind, layers=2):
    ids = {"mask_token_id": MASK, "eos_token_id": EOS, "pad_token_id": PAD}
    return scaled(MAKERS[kind](VOCABULARY, d_model=32, n_layers=layers, n_heads=2, **ids))


def make_guide(vocabulary=VOCABULARY, longest=128):
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=longest,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return scaled(LlamaForCausalLM(config))


def guided_by(model, guide, rule=Guidance(), *, cache="block", sliding=None, **settings):
    """Guided decoding where `cache` names the windows, or is None."""
    taken = {key: settings.pop(key) for key in ("tokenizers",) if key in settings}
    guidance = replace(rule, **{"windows": cache or "block"} | settings)
    return GuidedDiffusion(model, guide, guidance, Caching(cache is not None, sliding=sliding), **taken)


def generate(guided, prompts, gen_length, *, block_length=4, early_stop=0, **options):
    return guided.generate(prompts, Sampling(gen_length, block_length, early_stop=early_stop), **options)


def prompts_of(batch, length, seed=0):
    return torch.randint(6, (batch, length), generator=torch.Generator().manual_seed(seed))


def accepted(strategy, q, draft, uniform=0.0, **options):
    """One verdict, from the rule written out in plain Python."""
    order = sorted(range(len(q)), key=lambda i: -q[i])
    top = options.get("top_k") or {"topk": 5, "topk_relative": 2, "aggressive": 5}.get(strategy)
    nucleus, mass = [], 0.0
    for i in order:
        nucleus.append(i)
        mass += q[i]
        if mass >= 0.95:
            break
    return {
        "deterministic": lambda: draft == order[0],
        "dynamic_threshold": lambda: q[draft] > 0.1,
        "topk": lambda: draft in order[:top],
        "topk_relative": lambda: draft in order[:top] and q[draft] >= 0.5 * q[order[0]],
        "aggressive": lambda: draft in order[:top] or q[draft] > 0.05 or draft in nucleus,
        "stochastic": lambda: uniform < q[draft],
    }[strategy]()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_accept_rules_equal_a_loop_in_plain_python(strategy):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(4, 50, 12, generator=generator)
    drafts = torch.randint(12, (4, 50), generator=generator)
    uniforms = torch.rand(4, 50, generator=generator)
    flags = accepts(Guidance(strategy), logits, drafts, uniforms)
    q = logits.softmax(dim=-1)
    for row in range(4):
        for j in range(50):
            expected = accepted(strategy, q[row, j].tolist(), int(drafts[row, j]), float(uniforms[row, j]))
            assert bool(flags[row, j]) == expected
    assert 0 < int(flags.sum()) < 200


def test_accept_rules_at_their_edges():
    logits = torch.tensor([[[0.5, 0.3, 0.2]] * 3]).log()
    flags = accepts(Guidance("topk_relative"), logits, torch.tensor([[0, 1, 2]]))
    assert flags.tolist() == [[True, True, False]]
    # Exactly 0.1 in float32 on both sides: a softmax of logits would round.
    even = torch.zeros(1, 1, 8)
    assert not accepts(Guidance("dynamic_threshold", accept_above=0.125), even, torch.tensor([[2]])).any()
    assert accepts(Guidance("dynamic_threshold", accept_above=0.1249), even, torch.tensor([[2]])).all()
    nucleus = torch.tensor([[[0.96, 0.02, 0.01, 0.005, 0.003, 0.002]]]).log()
    narrow = Guidance("aggressive", accept_top=1)
    assert not accepts(narrow, nucleus, torch.tensor([[1]])).any()
    assert accepts(narrow, nucleus, torch.tensor([[0]])).all()


def test_stochastic_acceptance_has_the_guides_probability():
    logits = torch.tensor([0.7, 0.2, 0.1]).log().expand(1, 20_000, 3)
    uniforms = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    drafts = torch.zeros(1, 20_000, dtype=torch.long)
    share = accepts(Guidance("stochastic"), logits, drafts, uniforms).float().mean()
    assert float(share) == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / 20_000))


def test_runs_end_at_the_first_rejection():
    flags = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert leading_run(flags).tolist() == [2, 0, 4]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"strategy": "always"}, "strategy"),
        ({"accept_above": 1.0}, "accept_above"),
        ({"accept_ratio": 2.0}, "accept_ratio"),
        ({"accept_nucleus": 0.0}, "accept_nucleus"),
        ({"accept_top": 0}, "accept_top"),
    ],
)
def test_bad_rules_are_refused(options, part):
    with pytest.raises(InputError, match=part):
        Guidance(**options)


def by_hand(model, guide, prompt, gen_length, acceptance, verify, mode):
    """Guided decoding of one prompt, everything computed anew; returns the text and accepted drafts by step."""
    spec, tokens, runs = detect_host(model), torch.cat([prompt, torch.full((gen_length,), MASK)]), []
    while (tokens == MASK).any():
        clean = int((tokens != MASK).long().cumprod(0).sum())
        last = min(clean + verify, len(tokens))
        drafts = aligned_logits(model, tokens[None], spec=spec)[0, clean:last].argmax(-1)
        read = torch.cat([tokens[:clean], drafts])[None]
        logits = guide(read).logits[0, clean - 1 : last - 1]
        flags = accepts(acceptance, logits[None], drafts[None])[0].tolist()
        run = flags.index(False) if False in flags else len(flags)
        runs.append(run)
        if mode == "speculative":
            tokens[clean : clean + run] = drafts[:run]
            if run < len(flags):
                own = logits[run].clone()
                own[MASK] = -torch.inf
                tokens[clean + run] = own.argmax()
        else:
            tokens[clean : clean + max(run, 1)] = drafts[: max(run, 1)]
    return tokens, runs


RULES = [Guidance(), Guidance("topk", accept_top=4), Guidance("dynamic_threshold", accept_above=0.05)]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("mode", "rule"),
    [*(("guided", rule) for rule in RULES), *(("speculative", rule) for rule in RULES[:2])],
    ids=lambda value: getattr(value, "strategy", value),
)
def test_guided_decoding_equals_the_loop_by_hand(kind, mode, rule):
    guide, lengths = make_guide(), set()
    for seed, (layers, window) in enumerate([(2, None), *((1, name) for name in WINDOWS)]):
        model = make_host(kind, layers)
        # A window as wide as the canvas hides nothing.
        guided = guided_by(model, guide, rule, verify=5, cache=window, sliding=40, mode=mode)
        prompts = prompts_of(1, 6, seed)
        expected, runs = by_hand(model, guide, prompts[0], 8, rule, 5, mode)
        found = generate(guided, prompts, 8)
        assert torch.equal(found.sequences[0], expected)
        assert found.stats.accepted_per_step == runs
        assert found.stats.written == [8]
        assert found.stats.row_steps == [len(runs)]
        assert found.stats.accepted == sum(runs)
        lengths.add(len(runs))
    assert len(lengths) > 1 or rule.strategy != "topk"


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("cache", [None, "block"])
def test_guides_that_always_and_never_agree(kind, cache):
    model, guide, prompts = make_host(kind, 1), make_guide(), prompts_of(1, 6)
    always, never = (
        Guidance("topk", accept_top=VOCABULARY),
        Guidance("dynamic_threshold", accept_above=0.9999999),
    )
    for verify, steps in ((8, 5), (32, 2), (None, 1)):
        guided = guided_by(model, guide, always, verify=verify, cache=cache)
        stats = generate(guided, prompts, 40).stats
        assert stats.steps == steps
        assert stats.acceptance_rate == 1
        assert sum(stats.accepted_per_step) == 40
    found = generate(guided_by(model, guide, never, cache=cache), prompts, 12)
    assert found.stats.steps == 12
    assert found.stats.acceptance_rate == 0
    tokens, spec = torch.cat([prompts, torch.full((1, 12), MASK)], dim=1), detect_host(model)
    for place in range(6, 18):
        tokens[0, place] = aligned_logits(model, tokens, spec=spec)[0, place].argmax()
    assert torch.equal(found.sequences, tokens)


def test_keys_of_the_guide_equal_those_of_a_fresh_prefix_after_every_step():
    model, guide, prompts = make_host("llada"), make_guide(), prompts_of(1, 6)
    guided = guided_by(model, guide, RULES[1], verify=5)
    kept, crop = [], guided.guide.crop

    def spying_crop(lengths):
        crop(lengths)
        kept.append((int(lengths), [keys.clone() for keys in guided.guide.cache.keys]))

    guided.guide.crop = spying_crop
    found = generate(guided, prompts, 12, record=True)
    assert len(kept) == len(found.history) == found.stats.steps > 2
    for (length, keys), canvas in zip(kept, found.history, strict=True):
        clean = int((canvas[0] != MASK).long().cumprod(0).sum())
        assert length == clean - 1
        fresh = Guide(guide)
        fresh.reset(canvas[:, :clean], None, 18)
        for mine, other in zip(keys, fresh.cache.keys, strict=True):
            assert torch.allclose(mine[:, :, :length], other[:, :, :length], atol=1e-5)


def test_the_guide_scores_after_a_rolled_back_prefix():
    guide, model = Guide(make_guide()), make_guide()
    prompts, mask = pad_prompts([[1, 2, 3], [3, 1, 4, 1, 5]], PAD)
    guide.reset(prompts, mask, 16)
    guide.score(torch.tensor([[3, 0, 0, 0], [5, 0, 0, 0]]))
    guide.crop(guide.lengths - 4 + torch.tensor([1, 2]))
    logits = guide.score(torch.tensor([[4, 2], [1, 1]]))
    for row, text in enumerate(([1, 2, 3, 4, 2], [3, 1, 4, 1, 5, 0, 1, 1])):
        assert torch.allclose(logits[row], model(torch.tensor([text])).logits[0, -2:], atol=1e-4)
    with pytest.raises(InputError, match="cannot crop"):
        guide.crop(guide.lengths + 1)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("cache", [None, "prompt"])
@pytest.mark.parametrize("rule", [Guidance(), Guidance("stochastic")], ids=["sure", "stochastic"])
def test_padded_batches_equal_single_prompts(kind, cache, rule):
    model, guide = make_host(kind, 1), make_guide()
    prompts = [row[-length:].tolist() for row, length in zip(prompts_of(3, 9), (3, 9, 6), strict=True)]
    ids, mask = pad_prompts(prompts, PAD)
    guided = guided_by(model, guide, rule, cache=cache, verify=6)
    batch = generate(guided, ids, 12, attention_mask=mask, seeds=[1, 2, 3])
    assert not (batch.sequences == MASK).any()
    assert batch.stats.written == [12, 12, 12]
    for row, prompt in enumerate(prompts):
        alone = generate(guided, torch.tensor([prompt]), 12, seeds=[1 + row])
        assert torch.equal(alone.sequences[0, -12:], batch.sequences[row, -12:])


def test_windows_start_where_their_mode_says_and_never_beyond_the_commit_index():
    common = {"prompt": 10, "length": 42, "block_length": 8, "sliding": 6}
    starts = {
        mode: next_window(mode, (21, 25), 20, shift=0, **common)[0] for mode in ("prompt", "block", "token")
    }
    assert starts == {"prompt": 10, "block": 18, "token": 20}
    assert next_window("token", (21, 25), 40, shift=1, **common) == (20, 42)
    assert next_window("sliding", (21, 25), 20, shift=0, **common) == (14, 30)
    assert next_window(None, (21, 25), 20, shift=0, **common) == (0, 42)


def test_sliding_windows_hide_far_masks_and_still_finish():
    model, guide, prompts = make_host("llada"), make_guide(), prompts_of(2, 6)
    guided = guided_by(model, guide, cache="sliding", sliding=8, verify=8)
    found = generate(guided, prompts, 40)
    assert not (found.sequences == MASK).any()
    everything = guided_by(model, guide, cache=None, verify=8)
    assert found.stats.rows < generate(everything, prompts, 40).stats.rows / 2


@pytest.mark.parametrize("early_stop", [True, False])
def test_written_ends_stop_a_row(early_stop):
    model, guide = make_host("llada"), make_guide()
    guided = guided_by(model, guide, Guidance("topk", accept_top=4))
    found = generate(guided, prompts_of(8, 6), 24, block_length=24, early_stop=int(early_stop))
    answers = found.sequences[:, 6:]
    assert not (answers == MASK).any()
    ends = (answers == EOS).long().cumsum(dim=1) > 0
    assert bool(ends.any())
    assert bool((answers[ends] == EOS).all()) == early_stop


def test_the_guide_alone_answers_greedily():
    guide, spec = make_guide(), detect_host(make_host("llada"))
    prompts = prompts_of(2, 6)
    found = guide_generate(guide, prompts, gen_length=5, spec=spec)
    tokens = prompts[:1]
    for _ in range(5):
        tokens = torch.cat([tokens, guide(tokens).logits[:, -1:].argmax(-1)], dim=1)
        if int(tokens[0, -1]) == EOS:
            break
    assert torch.equal(found.sequences[:1, : tokens.shape[1]], tokens)


def tokenizer_of(words):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>")


def test_guides_with_another_vocabulary_are_refused_or_mapped():
    model, guide = make_host("llada"), make_guide(12)
    mine = tokenizer_of(["<unk>", "a", "b", "c", "d", "e", "<eos>", "<pad>", "<mask>"])
    theirs = tokenizer_of(["<unk>", "b", "a", "d", "c", "x", "<eos>"])
    with pytest.raises(InputError, match="another vocabulary") as refused:
        GuidedDiffusion(model, guide, tokenizers=(mine, theirs))
    assert "\n" not in str(refused.value)
    GuidedDiffusion(model, guide, tokenizers=(mine, mine))
    mapped = guided_by(model, guide, tokenizers=(mine, theirs), allow_retokenize=True)
    assert mapped.guide.map.ids[[1, 2, 3, 4, 6]].tolist() == [2, 1, 4, 3, 6]
    assert mapped.guide.map.exact[:8].tolist() == [True, True, True, True, True, False, True, False]
    prompts, _ = pad_prompts([[1, 2, 3], [2, 4, 1]], PAD)
    found = generate(mapped, prompts, 8, early_stop=1)
    assert not (found.sequences == MASK).any()
    with pytest.raises(InputError, match="speculative"):
        guided_by(model, guide, tokenizers=(mine, theirs), allow_retokenize=True, mode="speculative")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"verify": 0}, "verify"),
        ({"cache": "all"}, "windows"),
        ({"cache": "sliding", "sliding": 8}, "sliding"),
        ({"mode": "blind"}, "mode"),
        ({"temperature": 0.5}, "leave out temperature"),
        ({"reveal": "schedule"}, "leave out reveal"),
        ({"guide": make_guide(8)}, "the guide knows 8 tokens"),
        ({"guide": make_guide().train()}, "training mode"),
        ({"guide": make_guide(longest=8)}, "the guide takes 8"),
    ],
)
def test_bad_guidance_is_refused_in_one_sentence(options, part):
    rest = dict(options)
    guide = rest.pop("guide", None) or make_guide()
    sampling = {key: rest.pop(key) for key in ("temperature", "reveal") if key in rest}

    def complete():
        return guided_by(make_host("llada"), guide, **rest).generate(
            prompts_of(1, 4), Sampling(8, 4, **sampling)
        )

    with pytest.raises(InputError, match=part) as refused:
        complete()
    assert "\n" not in str(refused.value)
