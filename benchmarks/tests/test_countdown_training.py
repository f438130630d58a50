"""Training of the `countdown` models: rows, losses against written-out loops, and a short run that is resumed."""

import json

import pytest
import torch
from noiseworks.bench.testbeds.countdown import evaluation, problems, recipes
from noiseworks.bench.testbeds.countdown.networks import make_causal, make_masked, make_shifted
from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, make_tokenizer
from noiseworks.bench.testbeds.countdown.training import ANSWER, PROMPT, TextTrainer
from noiseworks.bench.testbeds.training import train_testbed
from noiseworks.kits.masked_lm import load_host
from safetensors.torch import load_file

WIDTH = PROMPT + ANSWER
TINY = {"rows": 200, "tune_sample": 2, "card_sample": 2, "device": "cpu"}
MAKERS = {"masked": make_masked, "shifted": make_shifted, "causal": make_causal}


@pytest.fixture(scope="module")
def rows():
    return recipes.prepare("noisy", 200)["ids"].long()


def trainer(kind: str) -> TextTrainer:
    """Return the trainer of a model whose output layer is not at its start, so that losses differ."""
    model = MAKERS[kind]()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return TextTrainer(model, shift=int(kind == "shifted"), causal=kind == "causal")


def test_rows_are_questions_answers_and_ends(rows):
    assert rows.shape == (200, WIDTH)
    tokenizer = make_tokenizer()
    shown = problems("countdown", 180, recipes.TRAIN_SEED, "train")
    for row, problem in zip(rows, shown, strict=False):
        assert tokenizer.decode(row[:PROMPT]) == problem.prompt
        assert tokenizer.decode(row[PROMPT:][row[PROMPT:] != EOS_ID]) == problem.answer
    assert (rows[:, -1] == EOS_ID).all()
    assert not ((rows == MASK_ID) | (rows == PAD_ID)).any()


@pytest.mark.parametrize("kind", ["masked", "shifted"])
@pytest.mark.parametrize("pack", [1, 4])
def test_masked_loss_is_the_written_out_sum(rows, kind, pack):
    """Every row: the mean cross-entropy of its k masked tokens, each from the logits that predict it."""
    module, ids = trainer(kind), rows[:8]
    with torch.no_grad():
        found = module.masked_loss(ids, pack, torch.Generator().manual_seed(3))
        generator = torch.Generator().manual_seed(3)
        counts = torch.randint(1, ANSWER + 1, (8, 1), generator=generator).squeeze(1).tolist()
        scores = torch.rand(8, ANSWER, generator=generator)
        noisy = ids.clone()
        for row in range(8):
            noisy[row, PROMPT + scores[row].argsort()[: counts[row]]] = MASK_ID
        assert [(noisy[row] == MASK_ID).sum() for row in range(8)] == counts
        assert torch.equal(noisy[:, :PROMPT], ids[:, :PROMPT])
        total = 0.0
        for first in range(0, 8, pack):
            logits = module.model(noisy[first : first + pack].reshape(1, -1)).logits[0].double()
            for row in range(first, first + pack):
                for place in (noisy[row] == MASK_ID).nonzero().squeeze(1).tolist():
                    at = (row - first) * WIDTH + place - module.shift
                    total -= float(logits[at].log_softmax(-1)[ids[row, place]]) / counts[row] / 8
    assert float(found) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("pack", [1, 4])
def test_causal_loss_is_the_written_out_mean(rows, pack):
    """Answers and their first ends are predicted from what stands before them; later ends count nothing."""
    module, ids = trainer("causal"), rows[:8]
    with torch.no_grad():
        found = module.causal_loss(ids, pack)
        losses = []
        for first in range(0, 8, pack):
            logits = module.model(ids[first : first + pack].reshape(1, -1)).logits[0].double()
            for row in range(first, first + pack):
                end = PROMPT + ids[row, PROMPT:].tolist().index(EOS_ID)
                for place in range(PROMPT, end + 1):
                    at = (row - first) * WIDTH + place - 1
                    losses.append(-float(logits[at].log_softmax(-1)[ids[row, place]]))
    assert float(found) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_packed_rows_are_asked_for_the_same_tokens_as_single_rows(rows):
    """A model that sees nothing but the token at a place has the same loss however rows are packed."""

    class Local(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(200, 200)

        def forward(self, ids, attention_mask=None):
            return type("Output", (), {"logits": self.table(ids)})

    for causal in (False, True):
        module = TextTrainer(Local(), causal=causal)
        losses = [
            (
                module.causal_loss(rows[:64], pack)
                if causal
                else module.masked_loss(rows[:64], pack, torch.Generator().manual_seed(1))
            ).item()
            for pack in (1, 4, 16, 64)
        ]
        assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)


def test_averaged_weights_are_in_evaluation_mode_and_not_trained():
    module = trainer("causal").train()
    assert module.model.training
    assert not module.average.training
    assert not any(p.requires_grad for p in module.average.parameters())


def test_muon_takes_the_matrices_of_the_blocks_and_every_weight_has_one_optimizer():
    for kind in MAKERS:
        module = trainer(kind)
        muon, adamw = module.configure_optimizers()
        taken = [
            p for optimizer in (muon, adamw) for group in optimizer.param_groups for p in group["params"]
        ]
        assert len(taken) == len({id(p) for p in taken}) == len(list(module.model.parameters()))
        ends = {
            id(module.model.get_input_embeddings().weight),
            id(module.model.get_output_embeddings().weight),
        }
        inner = [p for group in muon.param_groups for p in group["params"]]
        assert all(p.ndim == 2 for p in inner)
        assert not ends & {id(p) for p in inner}
        assert sum(p.numel() for p in inner) > 0.7 * sum(p.numel() for p in taken)


def test_examples_fill_the_prompt_and_the_question_stands_last():
    tokenizer, asked = make_tokenizer(), problems("countdown", 3, 0, "test")
    prompts = evaluation.few_shot_prompts(asked, 200, seed=5)
    for prompt, problem in zip(prompts, asked, strict=True):
        length = len(tokenizer(prompt)["input_ids"])
        assert 200 - WIDTH < length <= 200
        assert prompt.endswith(problem.prompt)
        assert (length - PROMPT) % WIDTH == 0
    assert evaluation.few_shot_prompts(asked, 10, seed=5) == [problem.prompt for problem in asked]


def test_answers_end_at_the_first_end_and_are_verified():
    tokenizer, asked = make_tokenizer(), problems("countdown", 4, 0, "test")
    table = torch.full((4, ANSWER), EOS_ID)
    for row, problem in enumerate(asked):
        ids = tokenizer(problem.answer)["input_ids"]
        table[row, : len(ids)] = torch.tensor(ids)
    table[:, -1] = tokenizer.convert_tokens_to_ids("7")  # after the end, so not part of the answer
    assert evaluation.right(tokenizer, table, asked).all()
    assert not evaluation.right(tokenizer, table.roll(1, dims=0), asked).any()


@pytest.mark.parametrize("name", ["countdown", "countdown-ar"])
def test_a_short_run_ends_with_a_model_and_is_resumed(tmp_path, name):
    first = train_testbed(name, budget=0.005, out=tmp_path, **TINY)
    command = f"noiseworks bench train-testbed {name} --budget"
    assert first["training"]["steps"] > 0
    assert first["training"]["commands"] == [f"{command} 0.005 --processes 1"]
    data, before = (tmp_path / "data.safetensors").stat().st_mtime_ns, weights(tmp_path)
    second = train_testbed(name, budget=0.01, out=tmp_path, **TINY)
    assert (tmp_path / "data.safetensors").stat().st_mtime_ns == data
    assert second["training"]["steps"] > first["training"]["steps"]
    assert second["training"]["commands"] == [f"{command} {b} --processes 1" for b in (0.005, 0.01)]
    assert before.keys() == weights(tmp_path).keys()
    assert any(not torch.equal(value, before[key]) for key, value in weights(tmp_path).items())
    assert json.loads((tmp_path / "model" / "card.json").read_text()) == second
    answered = {name: row for name, row in second["quality"].items() if name.startswith("countdown answered")}
    assert len(answered) >= 2
    assert all(row["low"] <= row["value"] <= row["high"] for row in answered.values())


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def test_masked_models_are_published_and_measured(tmp_path):
    """Published weights are the averaged ones in half precision, and every figure of the card is counted."""
    module = trainer("shifted")
    recipes.publish(module, tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    model, _, _ = load_host(tmp_path)  # by its own type
    for name, p in model.state_dict().items():
        assert torch.equal(p, module.average.state_dict()[name].half().float())
    figures = evaluation.measure_masked(tmp_path, 2)
    assert {row["n"] for name, row in figures.items() if "prompts" not in name} == {2}
    assert {"countdown answered, prompts of 512 tokens", "sort answered, 16 steps"} <= set(figures)
    assert set(evaluation.tune_masked(tmp_path, 2)) == {"share_right", "share_right_8"}
