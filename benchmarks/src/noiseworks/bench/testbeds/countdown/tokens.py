"""The tokenizer of `countdown`: one token a number or sign."""

from typing import TYPE_CHECKING

from noiseworks.bench.testbeds.countdown.tasks import LIMIT, TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("<pad>", "<eos>", "<mask>", "<unk>")
PAD_ID, EOS_ID, MASK_ID, UNKNOWN_ID = range(4)
SIGNS = ("+", "-", "*", "/", "=", ",", ":", "(", ")")
WORDS = (*SPECIAL, *SIGNS, *TASKS, *map(str, range(LIMIT + 1)))


def make_tokenizer() -> "PreTrainedTokenizerFast":
    """Return the tokenizer: words apart by blanks, numbers 0 … 99 and signs; other words become `<unk>`.

    Mask, end and padding tokens are those of the shipped models; padding goes to the left.
    """
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    signs = Split(Regex(r"[-+*/=,:()]"), "isolated")
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), signs])
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        mask_token="<mask>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
