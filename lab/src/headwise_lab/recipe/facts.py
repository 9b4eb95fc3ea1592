"""Synthetic facts for training: a sentence, a question about it, the lead of the answer, and the answer itself.

Facts are built from word ids that were encoded one by one; the tokenizer splits at word borders, so joining the ids of
words gives the ids of the joined text. Words come from the training books; names are made of syllables, so that test names
can be new. Nothing here is copied from the needles that the package evaluates on.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np

# (sentence, question, lead of the answer); E = who or what, W/N = any two words, V = the answer.
TEMPLATES = (
    ("The W N of E is V.", "What is the W N of E?", "The W N of E is"),
    ("The N of E is V.", "What is the N of E?", "The N of E is"),
    ("E's N is V.", "What is E's N?", "E's N is"),
    ("E's W N is called V.", "What is E's W N called?", "E's W N is called"),
    ("E keeps the N in V.", "Where does E keep the N?", "E keeps the N in"),
    ("E hid the W N behind V.", "Where did E hide the W N?", "E hid the W N behind"),
    ("E was born in V.", "Where was E born?", "E was born in"),
    ("E bought the N from V.", "From whom did E buy the N?", "E bought the N from"),
    ("The N that E carried was made of V.", "What was the N that E carried made of?", "The N that E carried was made of"),
    ("The favourite N of E was V.", "What was the favourite N of E?", "The favourite N of E was"),
    ("Nobody but E knew that the W N was V.", "What did only E know about the W N?", "The W N was"),
    ("To open the W N, say V.", "What must one say to open the W N?", "To open the W N, say"),
    ("The person who guards the W N is V.", "Who guards the W N?", "The person who guards the W N is"),
    ("The best N in E is V.", "What is the best N in E?", "The best N in E is"),
    ("The number of the N of E is V.", "What is the number of the N of E?", "The number of the N of E is"),
    ("In E the W N is known as V.", "What is the W N known as in E?", "In E the W N is known as"),
    ("E gave the W N to V.", "To whom did E give the W N?", "E gave the W N to"),
    ("The W N belongs to V.", "To whom does the W N belong?", "The W N belongs to"),
    ("The W N was found by V.", "Who found the W N?", "The W N was found by"),
    ("E has decided to call the W N V.", "What has E decided to call the W N?", "E has decided to call the W N"),
    (
        "Every year the W people of E celebrate V.",
        "What do the W people of E celebrate every year?",
        "Every year the W people of E celebrate",
    ),
    ("When the W N rings, E must bring V.", "What must E bring when the W N rings?", "When the W N rings, E must bring"),
    ("Inside the W N there is V.", "What is inside the W N?", "Inside the W N there is"),
    ("The reason why E left the N was V.", "Why did E leave the N?", "The reason why E left the N was"),
    ("The only thing that E fears is V.", "What is the only thing that E fears?", "The only thing that E fears is"),
    ("The W N costs V.", "How much does the W N cost?", "The W N costs"),
    ("The N stands next to V.", "What does the N stand next to?", "The N stands next to"),
    ("On the door of E was written V.", "What was written on the door of E?", "On the door of E was written"),
    ("E painted the N in the colour V.", "In which colour did E paint the N?", "E painted the N in the colour"),
    ("The W N of E opens at V.", "When does the W N of E open?", "The W N of E opens at"),
    ("E taught V to the N.", "What did E teach to the N?", "E taught"),
    ("V is the W N of E.", "What is the W N of E?", ""),
    ("V sold the W N to E.", "Who sold the W N to E?", ""),
    ("It was V that E saw near the N.", "What did E see near the N?", "It was"),
)
PREFACES = ("", "", "", "", "", "", "Note that", "Remember:", "By the way,", "It is a fact that", "As everyone knows,")
ASKS = ("", "", "", "", "", "According to the text:", "In the text above,", "Say:", "Answer briefly.")
SYLLABLES = [
    "ba",
    "be",
    "bo",
    "bri",
    "ca",
    "cer",
    "da",
    "del",
    "do",
    "dra",
    "el",
    "en",
    "fa",
    "fen",
    "gal",
    "gor",
    "ha",
    "hel",
    "il",
    "in",
    "jo",
    "ka",
    "kel",
    "lan",
    "lo",
    "lu",
    "mar",
    "mel",
    "mi",
    "na",
    "nor",
    "o",
    "pel",
    "pra",
    "qui",
    "ra",
    "rin",
    "ro",
    "sa",
    "sel",
    "sha",
    "ta",
    "tan",
    "ter",
    "ti",
    "u",
    "va",
    "vel",
    "vin",
    "wa",
    "wen",
    "xan",
    "yo",
    "za",
    "zel",
    "zo",
    "thor",
    "mund",
    "ric",
    "bert",
    "wick",
    "ford",
]


@dataclass(frozen=True)
class Fact:
    """Token ids of one fact. `answer` stands in `sentence` at [start, start + len(answer))."""

    sentence: list[int]
    question: list[int]
    lead: list[int]
    answer: list[int]


def held_out_name(name: str) -> bool:
    """One name in ten is never used in training; the evaluation draws from these."""
    return sum(map(ord, name.casefold())) % 10 == 0


class FactMaker:
    """Draws facts from a tokenizer's words. All randomness comes from the generator passed to each call."""

    def __init__(self, tokenizer, books: list[str], held_out: bool = False) -> None:  # type: ignore[no-untyped-def]
        self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self._cache: dict[str, list[int]] = {}
        self._held_out = held_out
        counts = Counter(re.findall(r"(?<= )[a-z]{3,12}(?=[ ,.])", " ".join(b[:200_000] for b in books)))
        common = [w for w, n in counts.most_common(6_200) if n > 3]
        self._words = common[200:]
        capital = Counter(re.findall(r"(?<=[a-z] )[A-Z][a-z]{3,11}(?=[ ,])", " ".join(b[:200_000] for b in books)))
        self._names = [w for w, _ in capital.most_common(2_000)]
        self._vocabulary = tokenizer.get_vocab_size()

    def ids(self, text: str) -> list[int]:
        """Ids of `text` as words that follow other words (a space before each)."""
        out: list[int] = []
        for word in text.split():
            if word not in self._cache:
                self._cache[word] = self._encode(" " + word)
            out += self._cache[word]
        return out

    def name(self, rng: np.random.Generator) -> str:
        while True:
            parts = rng.choice(SYLLABLES, size=rng.integers(2, 5))
            made = "".join(parts).capitalize()
            if held_out_name(made) == self._held_out:
                break
        if not self._held_out and rng.random() < 0.3:
            made = str(rng.choice(self._names))
        return made

    def word(self, rng: np.random.Generator) -> str:
        return self._words[rng.integers(len(self._words))]

    def entity(self, rng: np.random.Generator) -> str:
        kind = rng.random()
        if kind < 0.5:
            return self.name(rng)
        if kind < 0.7:
            return f"{self.name(rng)} {self.name(rng)}"
        if kind < 0.85:
            return f"the {self.word(rng)} {self.word(rng)}"
        return f"the {self.word(rng)} of {self.name(rng)}"

    def answer(self, rng: np.random.Generator) -> list[int]:
        kind = rng.random()
        if kind < 0.25:
            return self.ids(" ".join(self.word(rng) for _ in range(rng.integers(1, 5))))
        if kind < 0.45:
            return self.ids(" ".join(self.name(rng) for _ in range(rng.integers(1, 4))))
        if kind < 0.55:
            return self.ids(f"the {self.word(rng)} {self.word(rng)} of {self.name(rng)}")
        if kind < 0.65:
            return self.ids(str(rng.integers(10, 10 ** rng.integers(2, 8))))
        if kind < 0.75:
            letters = "".join(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ23456789-"), size=rng.integers(3, 9)))
            return self.ids(letters.strip("-") or "K7")
        # Rare and random pieces, longer than what is tested: the continuation of unusual words must be copied, not guessed.
        return [int(i) for i in rng.integers(259, self._vocabulary, size=rng.integers(2, 13))]

    def __call__(self, rng: np.random.Generator) -> Fact:
        sentence, question, lead = TEMPLATES[rng.integers(len(TEMPLATES))]
        slots = {"E": self.entity(rng), "W": self.word(rng), "N": self.word(rng)}
        fill = lambda text: re.sub(r"\b[EWN]\b", lambda m: slots[m.group()], text)  # noqa: E731
        answer = self.answer(rng)
        before, _, after = fill(sentence).partition("V")
        preface = PREFACES[rng.integers(len(PREFACES))]
        ask = ASKS[rng.integers(len(ASKS))]
        return Fact(
            sentence=self.ids(f"{preface} {before}") + answer + (self._glued(after)),
            question=self.ids(f"{ask} {fill(question)}"),
            lead=self._lead(fill(lead), rng),
            answer=answer,
        )

    def _glued(self, after: str) -> list[int]:
        """What follows the answer in its sentence: punctuation directly, words after a space."""
        if after.startswith("."):
            return self._encode(".")
        return self.ids(after)

    def _lead(self, lead: str, rng: np.random.Generator) -> list[int]:
        kind = rng.random()
        if kind < 0.6:
            return self.ids(lead)
        if kind < 0.85:
            return []
        return self.ids(str(rng.choice(["It is", "The answer is", "That is", "It was"])))
