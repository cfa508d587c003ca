#!/usr/bin/env python3
"""Makes the tasks in data/tasks from data/corpus/test.txt, text that the models in data/ have not seen.

    scripts/tasks.py data/corpus/test.txt data/tasks

Both are multiple choice with four choices; an example is some words of a paragraph and how they go on.

- cloze.jsonl: 48 words, and 4 that follow. The other choices are as many words from other documents of the same source
  (Moby Dick or addresses), so that neither length nor style gives the answer away.
- word-order.jsonl: 32 words, and 8 that follow. The other choices are the same words with two neighbours exchanged.

Needs nothing but the standard library; draws are multiplications of a 64-bit generator that is written out here, so that
any version of Python gives the same bytes.
"""

import json
import sys
from pathlib import Path

EXAMPLES, CHOICES = 60, 4


class Draws:
    """splitmix64."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        x = self.state
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return (x ^ (x >> 31)) * n >> 64

    def take(self, pieces, fits):
        """Removes one of the pieces that fit."""
        fitting = [i for i, piece in enumerate(pieces) if fits(piece)]
        return pieces.pop(fitting[self.below(len(fitting))])


def pieces(documents, context, words):
    """Disjoint runs of words within one paragraph: (whether of Moby Dick, document, context, continuation)."""
    for number, document in enumerate(documents):
        for paragraph in document.split("\n"):
            run = paragraph.split()
            for at in range(0, len(run) - context - words, context + words):
                middle = at + context
                # After the end of a sentence nearly anything may come.
                if run[middle - 1][-1].isalnum():
                    yield document.startswith("CHAPTER"), number, run[at:middle], run[middle : middle + words]


def cloze(documents, draws):
    left = list(pieces(documents, 48, 4))
    for number in range(EXAMPLES):
        novel, document, context, right = draws.take(left, lambda piece: piece[0] == number % 2)
        others = [
            draws.take(left, lambda piece: piece[0] == novel and piece[1] != document)[3] for _ in range(CHOICES - 1)
        ]
        yield context, right, others


def word_order(documents, draws):
    left = list(pieces(documents, 32, 8))
    for number in range(EXAMPLES):
        _, _, context, right = draws.take(left, lambda piece: piece[0] == number % 2)
        others = []
        while len(others) < CHOICES - 1:
            at = draws.below(len(right) - 1)
            other = right[:at] + [right[at + 1], right[at]] + right[at + 2 :]
            if other != right and other not in others:
                others.append(other)
        yield context, right, others


def main(text, out):
    documents = Path(text).read_text(encoding="utf-8").split("<|endoftext|>\n")
    for name, make, seed in [("cloze", cloze, 1), ("word-order", word_order, 2)]:
        draws = Draws(seed)
        lines = []
        for context, right, choices in make(documents, draws):
            answer = draws.below(CHOICES)
            choices.insert(answer, right)
            choices = [" ".join(choice) for choice in choices]
            lines.append(json.dumps({"context": " ".join(context), "choices": choices, "answer": answer}) + "\n")
        (Path(out) / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
