# SPDX-License-Identifier: Apache-2.0
"""Makes the training text of penstock-tales: short tales of a river valley, sampled from a grammar.

Every tale is a pure function of (seed, index): `python corpus.py --seed 1 --tales 3` prints the same three tales
everywhere. Nothing is read from anywhere else; the text is this project's own.
"""

import argparse
import random

import plots
import plots_more
import plots_third
import words
from grammar import Entity, Grammar, Person

PLOTS = plots.PLOTS + plots_more.PLOTS + plots_third.PLOTS

WRONGS = [  # what stops the mill wheel, and how that ends when the water comes
    ("a thick log had jammed between the wheel and the wall.", "the water lifted the log and carried it away,"),
    ("the wheel was locked in ice from top to bottom.", "the ice cracked, broke and sailed away in big white plates,"),
    ("a great heap of [leaves and branches|mud and stones] lay in front of the wheel.", "the heap moved, fell apart and was washed away,"),
    ("an old fishing net had wound itself around the axle.", "the net was torn loose and danced away down the river,"),
]
TRIES = ["pushed with all {h.his} strength", "pulled with a rope until the rope broke", "hit the wood with a hammer", "called ten strong men to help",
         "poured hot oil on the axle", "harnessed two oxen to it", "put a long beam under the wheel"]
ACCIDENTS = ["one night the roof of {h.place} caught fire", "a cart slid into the river, and {h} was holding it with one hand",
             "the storm tore the door from {h.place}, and the rain came in", "one of the goats fell into the old well",
             "a wall of the mill channel broke, and water poured into the gardens", "the ice broke under a child's feet, right in front of {h}"]
DANGERS = ["{h} lost the way in the wood while {night}.", "{h} was caught by a storm, far from any house.", "{h} was crossing the hills when fog came up and hid the path.",
           "night fell before {h} could reach the valley, and the path was full of holes."]


ONSETS, VOWELS, CODAS = "b br d dr f fl g gr h j k kr l m n p pr r s st t tr v w z".split(), "a e i o u".split(), "l m n r s".split()


def invented_name(rng: random.Random, gender: str = "n") -> str:
    """A name that nobody has, so that the model learns to keep to any name and not only to those in the lists."""
    name = rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS + [""]) + rng.choice(ONSETS)
    if rng.random() < 0.3:
        name += rng.choice(VOWELS) + rng.choice(CODAS)
    endings = {"f": ["a", "ia", "ine", "elle"], "m": ["o", "an", "er", "ik"], "n": ["en", "or", "ow", "ey", "al"]}
    return (name + rng.choice(endings[gender])).capitalize()


def sample_values(rng: random.Random, plot: str, wide: bool) -> dict:
    """Draws the people, places and things of one tale; they stay the same until its end.

    A wide cast takes every name of the lists and some that nobody has, the small one a few names only.
    """
    small = words.SMALL

    def cast(names: list[str], kind: str) -> list[str]:
        return names if wide else names[:small[kind]]

    names: set[str] = set()

    def person(gender: str) -> Person:
        while True:
            name = rng.choice(cast(words.WOMEN if gender == "f" else words.MEN, "people"))
            if wide and rng.random() < 0.2:
                name = invented_name(rng, gender)
            if name[:2] not in names:  # names that look alike would confuse a reader too
                names.add(name[:2])
                break
        job, place, skill, habits, tool = rng.choice(words.JOBS)
        habit, habit2 = rng.sample(habits, 2)
        trait = rng.choice(list(words.TRAITS))
        return Person(name, gender, job=job, place=place, skill=skill, habit=habit, habit2=habit2, tool=tool, trait=trait,
                      traittext=words.TRAITS[trait])

    gender = rng.choice("mf")
    other = "f" if gender == "m" else "m"
    h = person(gender)
    f = person(other if rng.random() < 0.85 else gender)
    e = person(rng.choice("mf"))
    while f.job == h.job:
        f.job = rng.choice(words.JOBS)[0]
    while e.job in (h.job, f.job):
        e.job = rng.choice(words.JOBS)[0]
    season = rng.choice(words.PLOT_SEASONS.get(plot, list(words.SEASONS)))
    months, weathers, natures = words.SEASONS[season]
    if plot == "flood":
        weathers = [w for w in weathers if "rain" in w]
    if season != "winter":  # ice belongs to winter
        wrongs, accidents = [w for w in WRONGS if "ice" not in w[0]], [a for a in ACCIDENTS if "ice" not in a]
    else:
        wrongs, accidents = WRONGS, ACCIDENTS
    weather0, weather = rng.sample(weathers, 2)
    nature, nature2, nature3 = rng.sample(natures, 3)
    noun, phrase = rng.choice(words.THINGS)
    animal, animal_phrase, homes = rng.choice(words.ANIMALS)
    verb, made, rule = rng.choice([c for c in words.CRAFTS if h.job not in words.OWN_CRAFT.get(c[0], ())])
    goods = [Entity(adj=a, a="a " + a, n=n) for a, n in rng.sample([g for g in words.GOODS if g[1] != noun], 3)]
    s1, s2, s3 = rng.sample(words.SEARCH, 3)
    t1, t2 = rng.sample(cast(words.VILLAGES, "villages"), 2)
    if wide and rng.random() < 0.15:
        t1 = invented_name(rng) + rng.choice(["", "", "ford", "mill", "bridge"])
    river = invented_name(rng) if wide and rng.random() < 0.15 else rng.choice(cast(words.RIVERS, "rivers"))
    valley = invented_name(rng) if wide and rng.random() < 0.15 else rng.choice(cast(words.VALLEYS, "valleys"))
    wrong1, wrong2 = rng.choice(wrongs)
    try1, try2 = rng.sample(TRIES, 2)
    hiding = rng.choice(words.HIDING)
    return {
        "h": h, "f": f, "e": e, "V": valley, "R": "the " + river, "T": t1, "T2": t2,
        "season": season, "month": rng.choice(months), "weather0": weather0, "weather": weather, "night": rng.choice(words.NIGHTS[season]), "nature": nature,
        "nature2": nature2, "nature3": nature3, "o": Entity(n=noun, a="a " + phrase), "animal": Entity(n=animal, a="a " + animal_phrase, home=rng.choice(homes)),
        "craft": Entity(verb=verb, thing=made, rule=rule), "goods": goods[0], "goods2": goods[1], "goods3": goods[2],
        "sibling": rng.choice(["sister", "brother"]), "s1": s1, "s2": s2, "s3": s3, "wrong1": wrong1, "wrong2": wrong2, "try1": try1, "try2": try2,
        "lord": rng.choice(["count", "duke", "baron"]), "proverb": rng.choice(words.PROVERBS), "accident": rng.choice(accidents), "danger": rng.choice(DANGERS), "hiding": hiding, "landmark": rng.choice(words.RULES["landmark"]),
        "lostday": rng.choice(["one morning", "one evening", "on market day", "one day in {month}", "the day after the fair"]),
    }


def make_tale(seed: int, index: int, wide: bool = False) -> str:
    rng = random.Random(seed * 1_000_003 + index)
    plot, body = rng.choice(PLOTS)
    grammar = Grammar(rng, words.RULES)
    grammar.values = sample_values(rng, plot, wide)
    # In the tale of the bridge the friend is still a stranger, so nothing before the plot may know them.
    known = [t for t in plots.OPENINGS if plot != "bridge" or "{f}" not in t[0]]
    scenery = [s for s in plots.SCENERY if plot != "bridge" or "{f}" not in s]
    opening = list(rng.choice(known))
    if rng.random() < 0.6:
        opening.append(rng.choice(scenery))
    paragraphs = [opening] + [list(p) for p in body]
    if rng.random() < 0.6:  # never after the first paragraph of the plot or in the last, where something is being told
        asides = plots.ASIDES_ANYWHERE if plot in ("flood", "fog", "night", "journey") else plots.ASIDES + plots.ASIDES_ANYWHERE
        paragraphs[rng.randrange(2, len(paragraphs) - 1)].append(rng.choice(asides))
    if rng.random() < 0.5:  # some tales come with fewer, longer paragraphs
        paragraphs[0:2] = [paragraphs[0] + paragraphs[1]]
    if rng.random() < 0.4:  # the last sentence on its own
        paragraphs.append([paragraphs[-1].pop()])
    title = [[rng.choice(plots.TITLES[plot])]] if rng.random() < 0.12 else []
    return "\n\n".join(grammar.paragraph(p) for p in title + paragraphs)


def drill_sentences() -> tuple[list[str], list[str]]:
    """Sentences of the plots that name the hero alone, and those that name the hero or the friend or both."""
    everything = [s.lstrip("?").replace("{h?}", "{h}").replace("{H?}", "{H}") for _, body in PLOTS for p in body for s in p]
    one = [s for s in everything if "{h}" in s + "{h}" * ("{H}" in s) and "{f" not in s and "{e" not in s]
    two = [s for s in everything if ("{h}" in s or "{f}" in s or "{F}" in s) and "{e" not in s]
    return one, two


ONE, TWO = drill_sentences()


def make_drill(seed: int, index: int, wide: bool = False) -> str:
    """Unconnected sentences about one or two people, always by name: practice in keeping to names, not a tale."""
    rng = random.Random(seed * 1_000_003 + index)
    grammar = Grammar(rng, words.RULES)
    grammar.values = sample_values(rng, rng.choice(PLOTS)[0], wide)
    return grammar.paragraph(rng.sample(ONE if rng.random() < 0.6 else TWO, rng.randrange(4, 9)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="index of the first tale")
    parser.add_argument("--tales", type=int, default=3)
    args = parser.parse_args()
    for index in range(args.first, args.first + args.tales):
        print(make_tale(args.seed, index), end="\n\n* * *\n\n")


if __name__ == "__main__":
    main()
