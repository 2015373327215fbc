# SPDX-License-Identifier: Apache-2.0
"""Template engine of the tale generator.

A template is plain text with three marks, which nest freely:

    [one|two|three]   one of the alternatives, each as likely as the others (an empty one may be among them)
    {key}             a value of the tale; {key.attr} an attribute of it; a list gives one of its templates
    {h?}              the person h, by name or by pronoun; {H...} the same with a capital first letter

A sentence that begins with `?` is left out half of the time. The article "a" becomes "an" where needed, and the
first letter of every sentence a capital, after expansion.
"""

import random
import re
from typing import Any

Value = Any

PRONOUNS = {
    "m": {"he": "he", "him": "him", "his": "his", "hisn": "his", "oneself": "himself", "child": "boy", "kin": "son"},
    "f": {"he": "she", "him": "her", "his": "her", "hisn": "hers", "oneself": "herself", "child": "girl",
          "kin": "daughter"},
    "n": {"he": "it", "him": "it", "his": "its", "hisn": "its", "oneself": "itself", "child": "one", "kin": "young"},
}


class Entity:
    """Something that a tale names more than once: a bag of attributes, each a template."""

    def __init__(self, **attributes: Value) -> None:
        self.__dict__.update(attributes)


class Person(Entity):
    """A person: `name`, `gender` (m, f or n) and whatever else a plot needs to know of them."""

    def __init__(self, name: str, gender: str, **attributes: Value) -> None:
        super().__init__(name=name, gender=gender, **PRONOUNS[gender], **attributes)


class Grammar:
    """Expands templates with the values of one tale and the rules that all tales share."""

    def __init__(self, rng: random.Random, rules: dict[str, Value]) -> None:
        self.rng = rng
        self.rules = rules
        self.values: dict[str, Value] = {}

    def expand(self, template: str) -> str:
        text, end = self._sequence(template, 0, "")
        assert end == len(template), template
        return text

    def _sequence(self, s: str, i: int, stop: str) -> tuple[str, int]:
        out: list[str] = []
        while i < len(s) and s[i] not in stop:
            if s[i] == "[":
                branches, i = self._branches(s, i + 1)
                out.append(self.expand(self.rng.choice(branches)))
            elif s[i] == "{":
                end = s.index("}", i)
                out.append(self._value(s[i + 1:end]))
                i = end + 1
            else:
                out.append(s[i])
                i += 1
        return "".join(out), i

    def _branches(self, s: str, i: int) -> tuple[list[str], int]:
        """Splits `a|b|c]...` at its own level without expanding, so that only the chosen branch draws numbers."""
        branches, start, depth = [], i, 0
        while True:
            c = s[i]
            if c == "[":
                depth += 1
            elif c == "]" and depth:
                depth -= 1
            elif c in "|]" and not depth:
                branches.append(s[start:i])
                start = i + 1
                if c == "]":
                    return branches, i + 1
            i += 1

    def _value(self, key: str) -> str:
        capital = key[0].isupper() and key not in self.values and key not in self.rules
        if capital:
            key = key[0].lower() + key[1:]
        maybe_pronoun = key.endswith("?")
        head, _, attribute = key.rstrip("?").partition(".")
        value = self.values[head] if head in self.values else self.rules[head]
        if attribute:
            value = getattr(value, attribute)
        elif isinstance(value, Person):
            value = value.he if maybe_pronoun and self.rng.random() < 0.75 else value.name
        if isinstance(value, (list, tuple)):
            value = self.rng.choice(value)
        text = self.expand(value)
        return text[:1].upper() + text[1:] if capital else text

    def paragraph(self, sentences: list[str]) -> str:
        kept = [s.lstrip("?") for s in sentences if not s.startswith("?") or self.rng.random() < 0.5]
        return tidy(" ".join(self.expand(s) for s in kept))


VOWEL = re.compile(r"\b([Aa]) (?=(?:[aeiouéÉAEIO]|hour|honest|heir))(?!(?:one|once|use|usual|uni|Uni|eu))")
SENTENCE = re.compile(r"((?:^|[.!?] |\.” )“?)([a-zéèêàüö])")


def tidy(text: str) -> str:
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r" ([,.;!?])", r"\1", text)
    text = re.sub(r"([?!])[,.]”", r"\1”", text)
    text = re.sub(r"(?<![.?!])”\.", ".”", text)
    text = VOWEL.sub(r"\1n ", text)
    return SENTENCE.sub(lambda m: m[1] + m[2].upper(), text)
