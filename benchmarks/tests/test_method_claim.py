"""Every installed method has the verb `claim`, which runs its claim."""

import pytest
from noiseworks.bench import method_claim
from noiseworks.core.cli import make_app, run


@pytest.fixture
def seen(monkeypatch):
    found = []
    monkeypatch.setattr(method_claim, "bench", lambda **options: found.append(options))
    return found


def test_method_gets_the_verb_and_its_options(seen):
    app = make_app("first-hitting", {})
    with pytest.raises(SystemExit) as end:
        run(app, ["claim", "--scale", "tune", "--data", "test=a", "--data", "train=b", "--no-open"])
    assert end.value.code == 0
    (options,) = seen
    assert options["methods"] == ["first-hitting"]
    assert (options["scale"], list(options["data"]), options["open_report"]) == (
        "tune",
        ["test=a", "train=b"],
        False,
    )


def test_only_methods_have_the_verb():
    assert "claim" in list(make_app("first-hitting", {}))
    assert "claim" not in list(make_app("bench", {}))
