"""The device on which the Triton kernels are tested."""

import os

import pytest
import torch


@pytest.fixture
def device():
    """A CUDA device, or the CPU in the process where test_kernels_interpreter has Triton interpreted."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; test_kernels_interpreter runs the same test on the CPU")
    return "cuda"
