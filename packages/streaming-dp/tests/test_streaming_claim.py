"""What the claim's arms share: the states that their episodes start in."""

from types import SimpleNamespace

from noiseworks.bench.claims import Context
from noiseworks.kits.policies import evaluation
from noiseworks.streaming_dp import claim


def test_arms_of_a_seed_act_in_the_same_episodes(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluation, "evaluate", lambda policy, env, tasks, seeds, record: (tasks, seeds))
    settings = claim.CLAIM.scales["quick"].settings
    context = Context("quick", settings, None, "cpu", tmp_path, lambda *step: None)

    def episodes(arm, seed, count):
        shared = SimpleNamespace(policy=lambda name, rows: None, seed=seed)
        return list(zip(*map(list, claim.episodes(arm, shared, context, count)), strict=True))

    all_of_them = episodes("dp", 500, 4)
    assert len(set(all_of_them)) == 4 * len(settings["tasks"])
    assert episodes("sdp", 500, 4) == all_of_them
    # Arms of the side comparisons act in fewer, which are among them.
    assert set(episodes("cold", 500, 2)) < set(all_of_them)
    assert not set(episodes("dp", 501, 4)) & set(all_of_them)
