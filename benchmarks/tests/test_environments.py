"""Environments by name."""

import pytest
from noiseworks.bench.testbeds.environments import load_demonstrations, make_env
from noiseworks.bench.testbeds.tabletop import TabletopBatch
from noiseworks.core.errors import InputError


def test_the_table_comes_with_its_options():
    env = make_env("tabletop", 3, latency=2)
    assert isinstance(env, TabletopBatch)
    assert (env.num_envs, env.latency) == (3, 2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("desk", {}, "env must be one of"),
        ("metaworld:reach-v3", {"disturb": True}, "leave them out"),
        ("pusht", {"latency": 1}, "leave it out"),
        ("pusht:sound", {}, "sound"),
    ],
)
def test_unknown_environments_and_foreign_options_are_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        make_env(name, 1, **options)


def test_demonstrations_are_those_of_experts():
    assert len(load_demonstrations("tabletop", 1).tasks) == 12
    with pytest.raises(InputError, match="no scripted expert"):
        load_demonstrations("pusht:keypoints", 1)
    with pytest.raises(InputError, match="demonstrations must be one of"):
        load_demonstrations("desk", 1)
