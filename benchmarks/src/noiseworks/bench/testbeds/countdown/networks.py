"""The small networks of `countdown`: LLaDA and Dream style, and a causal companion on the same tokens."""

from typing import TYPE_CHECKING

from noiseworks.bench.testbeds.countdown.tokens import EOS_ID, MASK_ID, PAD_ID, WORDS

if TYPE_CHECKING:
    from noiseworks.kits.masked_lm import DreamModel, LLaDAModelLM
    from transformers import LlamaForCausalLM

MAX_LENGTH = 2048
_SIZES = {"d_model": 128, "n_layers": 6, "n_heads": 4, "mlp_hidden_size": 384}


def _ids() -> dict[str, int]:
    return {"mask_token_id": MASK_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}


def make_masked() -> "LLaDAModelLM":
    """Return the untrained `countdown`: six LLaDA blocks of width 128, 1.3 M parameters."""
    from noiseworks.kits.masked_lm import make_llada

    return make_llada(len(WORDS), **_SIZES, **_ids(), max_sequence_length=MAX_LENGTH)


def make_shifted() -> "DreamModel":
    """Return the untrained `countdown-dream`: six Dream blocks of width 128, two key heads, 1.2 M parameters."""
    from noiseworks.kits.masked_lm import make_dream

    return make_dream(len(WORDS), **_SIZES, n_kv_heads=2, **_ids(), max_sequence_length=MAX_LENGTH)


def make_causal() -> "LlamaForCausalLM":
    """Return the untrained `countdown-ar`: three causal Llama blocks of width 96, 0.3 M parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()
