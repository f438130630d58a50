"""Names of devices: what is unknown or absent is refused."""

import pytest
import torch
from noiseworks.core.devices import resolve_device
from noiseworks.core.errors import InputError


def test_the_cpu_is_always_there():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["zz", "meta", "xla", "cuda:99", ""])
def test_unknown_and_absent_devices_are_refused(name):
    with pytest.raises(InputError, match="device"):
        resolve_device(name)


def test_mps_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="'mps' is not present"):
        resolve_device("mps")
