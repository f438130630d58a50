"""Training: the loss, frozen routers, the rate, optimizers, and runs from the data to a policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from noiseworks.core.errors import InputError
from noiseworks.kits.policies import Episodes
from noiseworks.mode.commands import finetune, train
from noiseworks.mode.config import Demonstrations, Recipe, SmallArchitecture, Training
from noiseworks.mode.model import MoDEModel
from noiseworks.mode.policy import EDMPolicy
from noiseworks.mode.routing import Routing
from noiseworks.mode.runs import new_model
from noiseworks.mode.task_data import load_task_data
from noiseworks.mode.training import MoDEModule, three_stage_rate

TINY = SmallArchitecture(width=16, num_layers=1, num_heads=2, num_experts=3, chunk=4)


@pytest.fixture
def data(tmp_path):
    """A folder of demonstrations: walk towards a goal that the text tells."""
    rng = np.random.default_rng(0)
    tasks = rng.integers(2, size=24)
    obs, actions, ends = [], [], []
    for task in tasks:
        position = rng.uniform(-1, 1, 2)
        for _ in range(8):
            move = np.clip((1.0 if task else -1.0) - position, -0.2, 0.2)
            obs.append(np.concatenate((position, np.eye(2)[task])))
            actions.append(move / 0.2)
            position = position + move
        ends.append(len(obs))
    folder = tmp_path / "data"
    folder.mkdir()
    Episodes(
        np.array(obs, np.float32), np.array(actions, np.float32), np.array(ends), tasks.astype(np.int64)
    ).save(folder / "episodes.npz")
    np.save(folder / "goals.npy", rng.standard_normal((2, 3, 5)))
    return folder


def options(**changes):
    return Training(**({"max_steps": 6, "batch_size": 16, "device": "cpu"} | changes))


def trained(data, out, architecture=TINY, recipe=Recipe(), **changes):
    """Train and return the report."""
    source = Demonstrations(str(data))
    return train(
        source=source, out=out, architecture=architecture, recipe=recipe, training=options(**changes)
    )


def module_of(data, **changes):
    found = load_task_data(Demonstrations(str(data)))
    model = new_model(found, TINY).train()
    module = MoDEModule(model, Recipe(**changes), total_steps=10)
    table = {name: value[:16] for name, value in found.table(4).items()}
    return module, table


def test_the_three_stages_of_the_rate():
    rates = [three_stage_rate(step, 1000) for step in (0, 10, 20, 99, 550, 1000, 5000)]
    assert rates == pytest.approx([0.1, 0.55, 1.0, 1.0, 0.5, 1e-6, 1e-6], abs=2e-3)
    assert rates[5] == pytest.approx(1e-6)


def test_the_balancing_loss_is_added_unless_routers_are_frozen(data):
    module, table = module_of(data, gamma=0.5, z_weight=0.1)
    module.log = lambda *args: logged.update({args[0]: float(args[1])})
    logged = {}
    torch.manual_seed(0)
    total = float(module.loss(table).detach())
    assert logged["balance"] == pytest.approx(2.0, abs=0.05)  # k at first, when routers are even
    assert total == pytest.approx(
        logged["edm_loss"] + 0.5 * logged["balance"] + 0.1 * np.log(3) ** 2, abs=0.02
    )
    module.host.freeze_routers()
    torch.manual_seed(0)
    loss = module.loss(table)
    assert float(loss.detach()) == logged["edm_loss"]
    loss.backward()
    router = module.host.denoiser.blocks[0].router
    assert all(p.grad is None for p in router.parameters())
    trained = {id(p) for g in module.configure_optimizers()["optimizer"].param_groups for p in g["params"]}
    assert not trained & {id(p) for p in router.parameters()}


def test_an_expert_that_nobody_uses_is_warned_of(data, monkeypatch):
    module, _ = module_of(data)
    ids = torch.tensor([[0, 1]]).expand(300, 2)
    routing = Routing(torch.zeros(1, 3), torch.zeros(1, 3), ids, torch.zeros(300, 2))
    module.watch([routing])
    monkeypatch.setattr(MoDEModule, "global_step", 999)
    with pytest.warns(UserWarning, match=r"expert 2 of layer 0 took 0\.00% of the tokens .*: raise gamma"):
        module.watch([routing])
    assert int(module.used.sum()) == 0
    module.host.config = replace(module.host.config, argmax_routing=True)
    with pytest.warns(UserWarning, match="only the softmax's balance reaches it"):
        module.watch([routing])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_optimizer_s_state_is_restored_to_the_same_numbers(data, name):
    torch.manual_seed(0)
    module, _ = module_of(data, optimizer=name, learning_rate=1e-2)
    parameters = [p for p in module.host.parameters() if p.requires_grad]
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in parameters}

    def step(seed):
        generator = torch.Generator().manual_seed(seed)
        for p in parameters:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        schedule.step()

    step(0)
    weights, state = [p.detach().clone() for p in parameters], optimizer.state_dict()
    state = torch.load(_saved(state), weights_only=True)
    rates = schedule.state_dict()
    step(1)
    after = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, old in zip(parameters, weights, strict=True):
            p.copy_(old)
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    schedule.load_state_dict(rates)
    optimizer.load_state_dict(state)
    step(1)
    assert all(torch.equal(p, q) for p, q in zip(parameters, after, strict=True))


def _saved(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_finetuning_keeps_frozen_routers_and_refuses_data_that_do_not_fit(data, tmp_path):
    base, source = trained(data, tmp_path / "base").model, Demonstrations(str(data))
    made = finetune(
        source=source, model=str(base), out=tmp_path / "tuned", training=options(), freeze_routers=True
    )
    before, after = (MoDEModel.from_pretrained(folder).state_dict() for folder in (base, made.model))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(".router." in name for name in changed)
    assert any(".experts." in name for name in changed)
    np.save(data / "goals.npy", np.zeros((2, 3, 7)))
    with pytest.raises(InputError, match="use data that fit"):
        finetune(source=source, model=str(base), out=tmp_path / "other", training=options())
    assert not (tmp_path / "other").exists()


def test_training_lowers_the_loss_and_the_policy_follows_its_goal(data, tmp_path):
    shape = SmallArchitecture(width=32, num_layers=2, num_heads=2, num_experts=3, chunk=4)
    recipe = Recipe(learning_rate=1e-2, ema_decay=0.8)
    report = trained(data, tmp_path / "run", shape, recipe, max_steps=50, batch_size=32)
    policy = EDMPolicy(MoDEModel.from_pretrained(report.model))
    obs = torch.tensor([[0.0, 0, 1, 0], [0, 0, 0, 1]]).repeat_interleave(32, dim=0)[:, None]
    actions = policy.predict_chunk({"obs": obs}, torch.Generator().manual_seed(0)).actions
    left, right = actions[:, 0].unflatten(0, (2, 32)).mean(dim=1)
    assert bool((right - left > 0.3).all())


def test_data_and_settings_that_do_not_fit_are_refused_before_anything_is_written(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(InputError, match="at most num_experts 4, got 9"):
        SmallArchitecture(top_k=9)
    with pytest.raises(InputError, match="gamma"):
        Recipe(gamma=-1)
    with pytest.raises(InputError, match="batch_size 500 needs"):
        trained(data, out, batch_size=500)
    (data / "goals.npy").unlink()
    with pytest.raises(InputError, match=r"lacks goals\.npy"):
        trained(data, out)
    assert not out.exists()
