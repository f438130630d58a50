"""Answers: which of two images of a prompt somebody found better, and the labels that follow."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noiseworks.core.artifacts import atomic_write
from noiseworks.core.errors import InputError
from noiseworks.core.output import read_text

SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Question:
    """Two images of a prompt.

    Attributes:
        number: Of the question, from 0.
        prompt: Number of the prompt.
        best: The image that was best until now, counted within the prompt.
        other: The one it is compared with.
    """

    number: int
    prompt: int
    best: int
    other: int


class Answers:
    """The answers of one person: of each prompt the best image meets the next one, K - 1 questions a prompt.

    That finds the best image with the fewest questions. It is better than all others by what was said, since the
    image that it beat had beaten those before; the others are not ordered among each other.

    Args:
        prompts: Number of prompts.
        copies: Images of a prompt, K.
        better: For each question answered the better image, or None where they are equally good.
    """

    def __init__(self, prompts: int, copies: int, better: Sequence[int | None] = ()) -> None:
        self.prompts, self.copies, self.better = prompts, copies, []
        for image in better:
            self.answer(image)

    @property
    def total(self) -> int:
        """Number of questions."""
        return self.prompts * (self.copies - 1)

    @property
    def question(self) -> Question | None:
        """The question to be asked, None when all are answered."""
        number = len(self.better)
        if number == self.total:
            return None
        prompt, place = divmod(number, self.copies - 1)
        return Question(number, prompt, self._best(prompt)[0], place + 1)

    def answer(self, better: int | None) -> None:
        """Answer the question.

        Args:
            better: The better image, None for neither.

        Raises:
            InputError: When there is no question, or it is about other images.
        """
        asked = self.question
        if asked is None or better not in (None, asked.best, asked.other):
            raise InputError(f"the answer {better} does not fit the question {asked}")
        self.better.append(better)

    def undo(self) -> None:
        """Take the last answer back, if there is one."""
        del self.better[-1:]

    def labels(self) -> list[list[float]]:
        """Return 1 for the best image of each prompt (or those equally good) and 0 for the others, as `train` reads.

        A prompt that was not finished has 0 for all, and so teaches nothing.
        """
        done = len(self.better) // (self.copies - 1)
        best = [self._best(prompt) if prompt < done else [] for prompt in range(self.prompts)]
        return [[float(image in found) for image in range(self.copies)] for found in best]

    def _best(self, prompt: int) -> list[int]:
        first = prompt * (self.copies - 1)
        found = [0]
        for other, better in enumerate(self.better[first : first + self.copies - 1], 1):
            if better is None:
                found.append(other)
            elif better == other:
                found = [other]
        return found


def save_answers(file: Path, answers: Answers, data: str) -> None:
    """Write answers whole: a line about what was labelled, then one a question.

    Args:
        file: To be written.
        answers: What was said.
        data: Fingerprint of the folder that was labelled.
    """
    head = {"data": data, "prompts": answers.prompts, "copies": answers.copies}
    lines = [head, *({"better": image} for image in answers.better)]
    atomic_write(file, "".join(json.dumps(line) + "\n" for line in lines))


def load_answers(file: Path, data: str | None = None) -> Answers:
    """Read what `save_answers` wrote.

    Args:
        file: The file.
        data: Fingerprint that it must have; any by default.

    Raises:
        InputError: When it is no such file, or is about other images.
    """
    try:
        head, *lines = [json.loads(line) for line in read_text(file).splitlines()]
        found = Answers(head["prompts"], head["copies"], [line["better"] for line in lines])
    except (ValueError, KeyError, TypeError, InputError) as error:
        raise InputError(f"{file} holds no answers of label: {error}") from None
    if data is not None and head["data"] != data:
        raise InputError(f"{file} holds answers about other images; name another file")
    return found
