import json
import signal

import pytest
import torch
from noiseworks.bench.testbeds.shapes.architectures import NULL_CLASS, make_dit
from noiseworks.bench.testbeds.training import Budget, recipes, train_testbed
from noiseworks.core.errors import InputError

TINY = {"rows": 150, "tune_sample": 2, "card_sample": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"name": "shape"}, "name must be one of"),
        ({"name": "shapes", "budget": 0}, "budget must be"),
        ({"name": "shapes", "captions": "some"}, "captions must be"),
        ({"name": "shapes", "clean_until": 1.5}, "clean_until must be"),
        ({"name": "shapes", "processes": 0}, "processes must be"),
        ({"name": "shapes", "rows": 0}, "rows must be"),
        ({"name": "shapes", "tune_sample": 0}, "tune_sample must be"),
        ({"name": "shapes", "card_sample": 0}, "card_sample must be"),
        ({"name": "shapes", "device": "zz"}, "zz"),
        ({"name": "shapes", "evaluate_every": float("nan")}, "evaluate_every must be"),
    ],
)
def test_bad_options_are_refused_before_any_work(tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        train_testbed(out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_the_classes_of_the_transformer_are_learned_by_adamw():
    module = recipes()["shapes-dit"].build({})
    muon, adamw = (
        {id(p) for g in o.param_groups for p in g["params"]} for o in module.configure_optimizers()
    )
    assert muon | adamw == {id(p) for p in module.unet.parameters() if p.requires_grad}
    assert not muon & adamw
    block = module.unet.transformer_blocks[0]
    assert id(block.attn1.to_q.weight) in muon
    assert id(block.norm1.emb.class_embedder.embedding_table.weight) in adamw


def test_a_used_folder_is_refused_without_resume(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(InputError, match="holds a run already"):
        train_testbed("shapes-dit", out=tmp_path, resume=False)


def test_the_rate_warms_up_and_follows_the_budget(tmp_path):
    budget = Budget(
        recipes()["shapes"],
        10,
        tmp_path,
        every=1,
        checkpoint_every=1,
        captions="noisy",
        clean_until=0.0,
        sample=1,
        command="",
    )
    assert budget.factor(0) == pytest.approx(0.01)
    assert budget.factor(10_000) == pytest.approx(1.0)
    budget.share = 0.5
    assert budget.factor(10_000) == pytest.approx(0.51)
    budget.share = 1.3
    assert budget.factor(10_000) == pytest.approx(0.02)


def test_transformer_blocks_do_not_drop_labels_on_their_own():
    model = make_dit().train()
    latents, timesteps = torch.randn(64, 4, 8, 8), torch.full((64,), 500)
    labels = torch.arange(64) % 24
    with torch.no_grad():
        for block in model.transformer_blocks:
            torch.nn.init.normal_(block.norm1.linear.weight, std=0.5)
        first, second = (model(latents, timesteps, labels).sample for _ in range(2))
        null = model(latents, timesteps, torch.full_like(labels, NULL_CLASS)).sample
    assert torch.equal(first, second)
    assert not torch.allclose(first, null)


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from noiseworks.bench.testbeds.training import train_testbed

folder = Path(sys.argv[1])

def kill():
    while not (folder / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=kill, daemon=True).start()
train_testbed("shapes-dit", 30, folder, rows=150, checkpoint_every=0.01)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(tmp_path, warm):
    program = tmp_path / "program.py"
    program.write_text(KILLED)
    done = warm("python", program, tmp_path, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    # Lightning counts the steps of both optimizers.
    steps = saved["global_step"] // len(saved["optimizer_states"])
    data = (tmp_path / "data.safetensors").stat().st_mtime_ns

    card = train_testbed("shapes-dit", budget=0.001, out=tmp_path, **TINY)

    assert (tmp_path / "data.safetensors").stat().st_mtime_ns == data
    # The budget was used up before the kill: one batch more shows that it is, and the model is published.
    assert card["training"]["steps"] == steps + 1
    assert json.loads((tmp_path / "model" / "card.json").read_text()) == card
    assert card["quality"]["attributes right, guidance 4"]["n"] == 2
    assert [command.split("--budget ")[1] for command in card["training"]["commands"]] == [
        "30 --processes 1",
        "0.001 --processes 1",
    ]
