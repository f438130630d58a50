"""Hosts that need no files: a scripted one, tiny random LLaDA and Dream models, and a character tokenizer."""

from types import SimpleNamespace

import pytest
import torch
from noiseworks.kits.masked_lm import make_dream, make_llada
from torch import nn

CHARACTERS = "0123456789+-*/()=ab "
SPECIAL = ("[PAD]", "[EOS]", "[MASK]")


class ScriptedHost(nn.Module):
    """Vocabulary 0-3, mask 4: at call j every position predicts token j with a given probability.

    Args:
        probabilities: One list a call, one value a generated position; one prompt token stands before them.
    """

    def __init__(self, probabilities):
        super().__init__()
        self.probabilities, self.calls = probabilities, 0
        self.config = SimpleNamespace(model_type="llada")

    def forward(self, input_ids, attention_mask=None):
        chosen = torch.tensor([1.0, *self.probabilities[self.calls]])[:, None]
        token = torch.arange(5) == self.calls % 4
        p = torch.where(token, chosen, (1 - chosen) / 3)
        p[:, 4] = 0
        self.calls += 1
        return SimpleNamespace(logits=p.log().expand(len(input_ids), -1, -1))


def build_tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *CHARACTERS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", eos_token="[EOS]", mask_token="[MASK]", padding_side="left"
    )


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


def build_host(kind="llada", seed=0, **words):
    """Return a random host of about 20 thousand parameters; some head rows beyond the tokenizer."""
    make = {"llada": make_llada, "dream": make_dream}[kind]
    settings = {"d_model": 32, "n_layers": 2, "n_heads": 2, "mask_token_id": 2, "eos_token_id": 1}
    model = make(27, **{**settings, "pad_token_id": 0, "seed": seed, **words})
    with torch.no_grad():  # sharper than a fresh head, so that confidences differ
        model.get_output_embeddings().weight.mul_(8)
    return model


@pytest.fixture(scope="session")
def make_host():
    return build_host


@pytest.fixture(scope="session")
def scripted_host():
    return ScriptedHost


@pytest.fixture
def host():
    return build_host()
