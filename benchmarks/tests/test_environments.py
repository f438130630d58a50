"""Environments by name."""

import pytest
from noiseworks.bench.testbeds.environments import make_env
from noiseworks.bench.testbeds.tabletop import TabletopBatch
from noiseworks.core.errors import InputError


def test_the_table_comes_with_its_options():
    env = make_env("tabletop", 3, latency=2)
    assert isinstance(env, TabletopBatch)
    assert (env.num_envs, env.latency) == (3, 2)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [("desk", {}, "env must be one of"), ("metaworld:reach-v3", {"disturb": True}, "leave them out")],
)
def test_unknown_environments_and_foreign_options_are_refused(name, options, words):
    with pytest.raises(InputError, match=words):
        make_env(name, 1, **options)
