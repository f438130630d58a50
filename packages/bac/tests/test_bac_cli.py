"""What the commands do, beside the contract: resumed profiles, the plan that is shown and drawn, the best plan."""

import json
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from noiseworks.bac import Schedule, attach, best_plan, candidates, make_plan, offline, profile
from noiseworks.bac.cli import app
from noiseworks.bac.data import load_observations
from noiseworks.bac.plan import CachePlan
from noiseworks.bac.profiling import FeatureProfile
from noiseworks.core.cli import run
from noiseworks.core.errors import NonFiniteError
from noiseworks.kits.policies.native import NativePolicy, PolicyConfig

K = 10
MARK = re.compile(r'width="([\d.]+)" height="[\d.]+" fill="#1f5daa"')


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies")
    torch.manual_seed(0)
    config = PolicyConfig(network="transformer", n_layer=2, n_head=2, n_emb=16, num_train_timesteps=K)
    policy = NativePolicy(config).eval()
    policy.save_pretrained(folder / "policy")
    rng = np.random.default_rng(0)
    np.savez(folder / "obs.npz", obs=rng.normal(size=(4, 2, 33)).astype(np.float32))
    obs = load_observations(folder / "obs.npz", policy, 2, 0)
    found = profile(policy, obs, generator=torch.Generator().manual_seed(0))
    found.save_pretrained(folder / "profile")
    make_plan(found, Schedule(updates=3, bubble=1)).save_pretrained(folder / "plan")
    return folder


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        run(app, [str(word) for word in words])
    return stop.value.code, *capsys.readouterr()


def test_profile_goes_on_where_it_was_stopped_and_with_nothing_else(home, tmp_path, capsys, monkeypatch):
    words = [
        "profile",
        "--model",
        home / "policy",
        "--data",
        home / "obs.npz",
        "--observations",
        "3",
        "--json",
    ]
    status, printed, error = call(capsys, *words, "--out", tmp_path / "all")
    assert (status, json.loads(printed)["observations"]) == (0, 3), error
    whole, calls = offline.profile, []

    def stopping(*args, **kwargs):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(offline, "profile", stopping)
    out = tmp_path / "stopped"
    assert call(capsys, *words, "--out", out)[0] == 130
    assert FeatureProfile.from_pretrained(out).observations == 1
    fewer = ["2" if word == "3" else word for word in words]
    cases = [(["--solver", "ddim"], "solver"), (["--seed", "12"], "seed"), (["--metrics", "l1"], "metrics")]
    for other, named in [*(([*words, *more], named) for more, named in cases), (fewer, "observations")]:
        status, _, error = call(capsys, *other, "--out", out)
        assert (status, error.count("\n")) == (2, 1)
        assert f"another {named}" in error
    assert call(capsys, *words, "--out", out)[0] == 0
    resumed, expected = (FeatureProfile.from_pretrained(path) for path in (out, tmp_path / "all"))
    assert (resumed.observations, len(calls)) == (3, 4)
    assert np.array_equal(resumed.matrices["cosine"], expected.matrices["cosine"])


def test_plan_shows_a_table_and_writes_what_it_shows(home, tmp_path, capsys):
    words = ["plan", "--profile", home / "profile", "--updates", "3", "--bubble", "1"]
    status, printed, error = call(capsys, *words, "--method", "block")
    assert status == 0, error
    assert "layer1.ff" in printed
    assert "updates" in printed
    for method in ("uniform", "unified", "block"):
        more = ["--method", method, "--json", "--out", tmp_path / "plan"]
        status, printed, error = call(capsys, *words, *more)
        assert status == 0, error
        loaded, shown = CachePlan.from_pretrained(tmp_path / "plan"), json.loads(printed)
        assert shown["method"] == loaded.method
        assert loaded.method.startswith(method)
        assert shown["schedules"] == {name: loaded.schedule(name) for name in loaded.blocks}


def test_pictures_have_a_mark_for_each_update(home, tmp_path, capsys):
    plan = home / "plan"
    call(capsys, "heatmap", plan, "--out", tmp_path / "plan.svg")
    more = ["--model", home / "policy", "--data", home / "obs.npz", "--observations", "2"]
    status, printed, error = call(
        capsys, "errors", "--plan", plan, *more, "--out", tmp_path / "errors.svg", "--json"
    )
    assert status == 0, error
    assert json.loads(printed)["action_error"] > 0
    for name in ("plan.svg", "errors.svg"):
        widths = [
            float(w) for w in MARK.findall((tmp_path / name).read_text())
        ]  # neighbours are drawn as one
        assert sum(widths) / min(widths) == pytest.approx(CachePlan.from_pretrained(plan).table.sum())


def test_compare_tells_reuse_from_lean_code(home, capsys):
    words = ["compare", "--model", home / "policy", "--profile", home / "profile", "--data", home / "obs.npz"]
    words += ["--observations", "2", "--updates", "3", "--bubble", "1", "--repeats", "1", "--json"]
    status, printed, error = call(capsys, *words)
    assert status == 0, error
    rows = json.loads(printed)
    assert rows["full"]["times_faster"] == 1
    assert rows["lean"]["error"] < 1e-6
    assert 0 < rows["bac"]["share"] < 1
    assert rows["bac"]["error"] > 0


@pytest.mark.filterwarnings("ignore")
def test_roll_outs_with_a_plan_become_a_dataset_of_lerobots_with_the_executed_actions(home, tmp_path, capsys):
    lengths, actions = {}, {}
    for name, more in {"full": [], "cached": ["--plan", home / "plan"]}.items():
        kept = ["--record", tmp_path / f"{name}.npz", "--dataset", tmp_path / name]
        words = ["eval", "--model", home / "policy", "--tasks", "3,11", "--episodes", "2", *more, *kept]
        status, _, error = call(capsys, *words)
        assert status == 0, error
        with np.load(tmp_path / f"{name}.npz") as file:
            expected, lengths[name] = file["actions"], np.diff(file["ends"], prepend=0)
        table = pq.read_table(tmp_path / name / "data")
        actions[name] = np.array(table["action"].to_pylist(), np.float32)
        assert np.array_equal(actions[name], expected)
        episodes = np.array(table["episode_index"].to_pylist())
        assert np.bincount(episodes).tolist() == lengths[name].tolist()
        assert len(pq.read_table(tmp_path / name / "meta" / "tasks.parquet")) == 2
    first = min(lengths["full"][0], lengths["cached"][0])
    assert not np.array_equal(actions["full"][:first], actions["cached"][:first])


def test_a_plan_of_another_policy_is_refused(home, tmp_path, capsys):
    torch.manual_seed(1)
    config = PolicyConfig(network="transformer", n_layer=2, n_head=2, n_emb=16, num_train_timesteps=K)
    NativePolicy(config).save_pretrained(tmp_path / "other")
    status, _, error = call(capsys, "eval", "--model", tmp_path / "other", "--plan", home / "plan")
    assert status == 2
    assert "weights" in error


def test_the_best_plan_is_the_cheapest_within_the_budget_and_uniform_where_that_does(home):
    policy, found = (
        NativePolicy.from_pretrained(home / "policy"),
        FeatureProfile.from_pretrained(home / "profile"),
    )
    plans = candidates(found, (2, 3, 5), Schedule(bubble=2))
    costs = [plan.cost for plan in plans]
    assert costs == sorted(costs)
    assert plans[-1].share == 1
    assert {plan.method for plan in plans} == {"uniform", "unified", "block", "block+bubble", "full"}
    noise = {seed: torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)}

    def outcome(errors):
        """Return runs in which a plan is off by what is said of its number of updates."""

        def run(seed):
            handle = attached[-1] if attached else None
            return noise[seed] + (0 if handle is None else errors(handle))

        return run

    attached = []

    class Watched:
        """Notes which plan is attached, so that the errors can be chosen by the test."""

        def __init__(self, plan):
            self.plan = plan

        def __enter__(self):
            attached.append(self.plan)

        def __exit__(self, *stopped):
            attached.pop()

    spread = float((noise[0] - noise[1]).square().mean())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noiseworks.bac.choosing.attach", lambda policy, plan: Watched(plan))
        run = outcome(lambda plan: (spread * (0.01 if plan.method == "uniform" else 0.9)) ** 0.5)
        plan, tried = best_plan(policy, plans, run, 0.25)
        assert plan.method == "uniform"
        assert tried[-1].plan is plan
        assert [one.error for one in tried[:-1]] == pytest.approx([0.9] * (len(tried) - 1))
        plan, tried = best_plan(policy, plans, outcome(lambda plan: plan.share < 1), 0.25)
        assert plan.method == "full"
        assert len(tried) == len(plans)
        with pytest.raises(NonFiniteError, match="plan"):
            best_plan(policy, plans, outcome(lambda plan: float("nan")))


def test_the_best_plan_of_a_policy_keeps_its_budget(home, tmp_path, capsys):
    words = ["plan", "--profile", home / "profile", "--model", home / "policy", "--data", home / "obs.npz"]
    words += ["--observations", "4", "--budget", "1e-3", "--json", "--out", tmp_path / "plan"]
    status, printed, error = call(capsys, *words)
    assert status == 0, error
    tried = json.loads(printed)["tried"]
    assert tried[-1]["error"] <= 1e-3
    assert all(one["error"] > 1e-3 for one in tried[:-1])
    policy = NativePolicy.from_pretrained(home / "policy")
    checking = offline.Checking(str(home / "obs.npz"), 4)
    run_seed = offline.actions_of(policy, checking, K)
    full, other = run_seed(0), run_seed(1)
    plan = CachePlan.from_pretrained(tmp_path / "plan")
    with attach(policy, plan):
        error = float((run_seed(0) - full).square().mean() / (full - other).square().mean())
    assert error == pytest.approx(tried[-1]["error"], rel=1e-3, abs=1e-9)
