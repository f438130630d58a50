"""Where the next window starts, and ends, under guidance: `prompt`, `block`, `token`, `sliding`."""

from noiseworks.freecache.options import Windows


def next_window(
    mode: Windows | None,
    clean: tuple[int, int],
    committed: int,
    *,
    prompt: int,
    length: int,
    block_length: int,
    shift: int,
    sliding: int,
) -> tuple[int, int]:
    """Return the next window [start, end).

    The mode proposes a start; it never lies beyond the commit index, so that tokens written since the last
    forward are computed once with their final values before they are frozen. With `shift`, the row before the
    first mask is needed too, and since at least one token is written a step, it lies after the commit index.

    Args:
        mode: `prompt`: everything after the prompt; `block`: from the block of the first mask on; `token`: from
            the first mask on; `sliding`: `sliding` tokens to both sides of the last clean one, which also hides
            masks further right; None: everything.
        clean: Clean positions at the start of the canvas, in the slowest and in the fastest row of the batch.
        committed: The commit index.
        prompt: Length P of the prompts.
        length: Positions N of the canvas.
        block_length: Tokens a block.
        shift: The host's shift.
        sliding: Tokens to each side.
    """
    slowest, fastest = clean
    if mode is None:
        return 0, length
    if mode == "sliding":
        return max(0, min(slowest - 1 - sliding, committed)), min(length, fastest - 1 + sliding)
    block = prompt + (slowest - prompt) // block_length * block_length
    start = {"prompt": prompt, "block": block, "token": slowest}[mode]
    return max(0, min(start - shift, committed)), length
