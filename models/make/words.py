# SPDX-License-Identifier: Apache-2.0
"""The lexicon of the tale generator: names, work, places, things, seasons, and the phrases that all plots share."""

# In each list the first SMALL[...] names are the small cast, which training ends with (corpus.py).
WOMEN = """Mara Zoé Renée Greta Bríd Nora Hanna Odile Élise Clara Yuki Amira Ida Flora Vera Thérèse Elin Anaïs Lotte Wilma
Tilda Frida Céline Maud Agnes Petra Rosa Alba Ines Lúcia Sanna Maja Judith Edda Marta Dora Pia Signe Astrid
Linnea Ottilie Josefa Bea Carmen Noor Leila Hana Mei Asha Tara Ruth Esther Hazel Ivy Beatrix Gwen""".split()
MEN = """Tom Jonas André Jürgen Noël Émile Søren Otto Bruno Hugo Felix Björn Silas Kenji Viktor Pavel Karl Luc René Anton
Emil Jakob Lars Nils Peter Simon Tobias Aaron Basil Conrad Edgar Gustav Henrik Ivo Jules Kaspar Leon Matteo
Oskar Quentin Rufus Stefan Theo Ulrich Walter Yusuf Samir Ravi Arun Omar Idris Finn Rowan Gregor Hamish""".split()

VALLEYS = """Aubrel Tolmere Élande Fairholt Kestrin Müren Rosmere Venn Marenne Bramwell Dunmarrow Hollin Iselle Lorne Orrin
Pellam Quill Sarn Tarrow Ullin Wexley Ysolde Calder Arden""".split()
RIVERS = """Linnet Alder Sorrel Teal Wren Rosée Ember Otter Brindle Marrow Isel Fennel Amble Lark Tansy Vesper Grünach Hazel
Willow Heron Clatter Silver Moth Bracken""".split()
VILLAGES = [
    "Harrowmill", "Stonebridge", "Millbrook", "Weirside", "Larkhill", "Château-Bas", "Damhead", "Thornby",
    "Brückendorf", "Greywater", "Alderford", "Undercliff", "Three Elms", "Oakhollow", "Whitewater", "Farrow",
    "Elmstead", "Penrose", "Quarry End", "Reedham", "Windle", "Saint-Aurèle", "Nether Poole", "Applecross"]
SMALL = {"people": 16, "valleys": 8, "rivers": 8, "villages": 10}

# noun, place of work, skill ("nobody could ..."), habits ("who ..."), tool
JOBS = [
    ("miller", "the mill", "grind finer flour", ["ground the corn of three villages", "knew every tooth of every wheel",
     "woke before the birds to open the mill gate", "swept the mill floor twice a day"], "millstone"),
    ("baker", "the bakery", "bake better bread", ["baked dark bread before sunrise", "gave the last loaf of the day away",
     "sang to the dough so that it would rise", "could tell the hour by the smell of the oven"], "oven"),
    ("ferry keeper", "the ferry house", "steer a boat", ["carried carts and cattle over the river",
     "never asked a child for a coin", "knew where the water was deep and where it was shallow"], "boat"),
    ("dam keeper", "the house on the dam", "read the water", ["watched over the reservoir above the village",
     "wrote the height of the water in a blue book every evening", "opened the gates in spring and closed them in autumn",
     "walked along the dam each night with a lamp"], "gate wheel"),
    ("lamplighter", "the lamp shed", "climb a ladder", ["lit forty lamps every evening", "knew all the cats of the village by name",
     "counted the stars on the way home"], "ladder"),
    ("weaver", "the weaving room", "weave brighter cloth", ["wove blankets of grey and blue wool",
     "hid a small bird in the corner of every cloth", "worked by the window as long as there was light"], "loom"),
    ("beekeeper", "the orchard", "care for bees", ["kept twelve hives under the apple trees",
     "told the bees all the news of the village", "sold honey at the market in yellow jars"], "hive"),
    ("shepherd", "the hut on the high meadow", "find a lost lamb", ["kept sixty sheep on the high meadow",
     "played a wooden flute when the fog came", "could smell rain a day before it fell"], "staff"),
    ("carpenter", "the workshop", "build a stronger door", ["made tables, doors and water wheels",
     "always carried a pencil behind one ear", "never threw away a piece of good oak"], "plane"),
    ("smith", "the forge", "mend iron", ["made hooks, hinges and horseshoes", "kept a fire that had not gone out in ten years",
     "mended ploughs for nothing when the harvest was poor"], "hammer"),
    ("potter", "the pottery", "shape a rounder bowl", ["made jugs from the red clay of the river bank",
     "painted small fish on every cup", "kept the cracked pots and loved them best"], "wheel"),
    ("boatbuilder", "the boat shed", "build a lighter boat", ["built narrow boats for narrow rivers",
     "gave every boat a name before it touched the water", "bent the planks over steam"], "saw"),
    ("clockmaker", "the little shop by the bridge", "mend a clock", ["mended clocks that others had given up",
     "kept the tower clock of the village in time", "could not bear to be late"], "lens"),
    ("gardener", "the walled garden", "grow sweeter pears", ["grew pears along a warm brick wall",
     "talked to the beans when nobody was near", "saved seeds in paper bags with careful labels"], "spade"),
    ("fisher", "the cottage by the weir", "cast a net", ["caught trout below the weir",
     "threw the small ones back", "mended nets on the steps in the evening sun"], "net"),
    ("bookbinder", "the bindery", "mend an old book", ["bound old books in green leather",
     "read one page of every book before closing it", "smelled of glue and paper"], "needle"),
    ("letter carrier", "the post house", "find the shortest path", ["carried letters up to the farms on the hill",
     "knew every dog between the bridge and the pass", "read letters aloud to those who could not see well"], "bag"),
    ("glassblower", "the glass house", "blow a clearer glass", ["blew lamps and bottles of green glass",
     "kept a shelf of glass birds in the window", "worked only at night, when the fire could be seen best"], "pipe"),
    ("cheesemaker", "the dairy", "make milder cheese", ["made round cheeses and turned them every morning",
     "kept nine goats, all of them clever"], "kettle"),
    ("rope maker", "the long shed", "twist a stronger rope", ["twisted ropes for boats and bells and swings",
     "tested every rope by hanging from it", "walked backwards half of the day"], "rope"),
    ("mapmaker", "the room above the inn", "draw a truer map", ["drew maps of every path and stream",
     "measured the valley with a chain and a great deal of patience", "left one corner of each map empty for surprises"], "compass"),
    ("bell ringer", "the tower", "ring the hour", ["rang the bell at dawn, at noon and at dusk",
     "lived at the top of ninety-nine steps", "knew the weather by the sound of the bell"], "bell rope"),
    ("cobbler", "the shop on the square", "mend a boot", ["mended boots while their owners waited",
     "could guess a person's work from a pair of shoes", "whistled with three nails between the lips"], "awl"),
    ("stonecutter", "the quarry", "cut a straighter stone", ["cut stones for bridges and dams",
     "tapped each rock and listened before the first blow", "carved a small star into every corner stone"], "chisel"),
    ("healer", "the house with the blue door", "calm a fever", ["dried herbs under the roof",
     "came at any hour, in any weather", "made a bitter tea that cured nearly everything"], "basket"),
    ("innkeeper", "the inn", "tell a longer story", ["kept a warm inn at the crossroads",
     "put an extra spoon on the table for a late guest", "remembered the name of every traveller"], "key"),
]

ANIMALS = [
    ("fox", "young fox", ["den", "hollow"]), ("heron", "grey heron", ["nest", "reeds"]), ("otter", "small otter", ["bank", "den"]),
    ("crow", "black crow", ["oak", "tower"]), ("hare", "brown hare", ["field", "grass"]), ("owl", "white owl", ["barn", "tower"]),
    ("swan", "wild swan", ["reeds", "lake"]), ("badger", "old badger", ["den", "wood"]), ("goat", "young goat", ["hill", "meadow"]),
    ("dog", "thin dog", ["barn", "yard"]), ("deer", "little deer", ["wood", "thicket"]), ("stork", "tired stork", ["roof", "chimney"]),
    ("hedgehog", "small hedgehog", ["hedge", "leaves"]), ("cat", "grey cat", ["barn", "loft"]),
    ("swallow", "young swallow", ["eaves", "barn"]),
]

# noun, with adjective, what it is for
THINGS = [
    ("whistle", "silver whistle"), ("lamp", "brass lamp"), ("key", "iron key"), ("watch", "gold watch"), ("ring", "plain silver ring"),
    ("scarf", "red scarf"), ("knife", "little folding knife"), ("flute", "wooden flute"), ("compass", "brass compass"),
    ("spoon", "carved spoon"), ("button", "blue glass button"), ("book", "book of songs"), ("coin", "old copper coin"),
    ("bell", "small bell"), ("map", "hand-drawn map"), ("cap", "green wool cap"), ("needle", "long steel needle"),
    ("bowl", "white bowl"), ("mirror", "round mirror"), ("box", "walnut box"), ("feather", "white feather"), ("violin", "dark old violin"),
    ("lens", "polished lens"), ("kettle", "copper kettle"), ("basket", "willow basket"), ("candle", "tall candle"), ("locket", "tiny locket"),
    ("letter", "folded letter"), ("hammer", "good hammer"), ("jug", "painted jug"),
]

HIDING = ["under the [old|broken|wooden] bench [behind|beside] the oven", "in the grass [by|near|beside] the weir", "between two stones of the bridge",
          "in the pocket of an old coat", "under the snowdrops by the gate", "in the hollow of the [old|great|crooked] willow",
          "at the bottom of the flour bin", "in the nest of a magpie", "behind the rain barrel", "on the third step of the tower",
          "in the hay above the stable", "inside the grandfather clock", "under a loose board of the landing stage",
          "in a basket of clean wool", "among the roots of an elder tree", "in the sleeve of the scarecrow"]

SEARCH = ["the attic", "the stable", "the garden", "the boat shed", "the orchard", "the market square", "the church",
          "the hay barn", "the old quarry", "the woodshed", "the kitchen", "the cellar", "the wood", "the shed under the bridge"]

CRAFTS = [  # verb phrase, thing made, rule of the craft
    ("build violins", "violin", "dry wood and a quiet ear"), ("bake bread", "loaf", "warm water and cold patience"),
    ("build a boat", "boat", "straight wood and a curved mind"), ("read the stars", "map of the sky", "dark nights and open eyes"),
    ("weave cloth", "blanket", "a thousand small steps"), ("carve wood", "wooden bird", "a sharp knife and a soft touch"),
    ("make candles", "candle", "clean wax and a steady wick"), ("make glass", "glass bowl", "one breath, neither long nor short"),
    ("mend clocks", "clock", "clean hands and no hurry"), ("keep bees", "jar of honey", "slow steps and white clothes"),
    ("draw maps", "map", "long walks and short lines"), ("make paper", "sheet of paper", "clear water and old linen"),
    ("shape clay", "jug", "wet hands and a steady wheel"), ("forge iron", "hinge", "a hot fire and a cool head"),
]

OWN_CRAFT = {  # a craft is no wish for those who live by it
    "bake bread": ("baker",), "build a boat": ("boatbuilder",), "weave cloth": ("weaver",), "carve wood": ("carpenter",), "make glass": ("glassblower",),
    "mend clocks": ("clockmaker",), "keep bees": ("beekeeper",), "make candles": ("beekeeper",), "draw maps": ("mapmaker",), "shape clay": ("potter",),
    "forge iron": ("smith",), "make paper": ("bookbinder",),
}

PROVERBS = ["a closed gate fills the pond", "one candle can light a hundred others", "whoever sleeps by the river learns its language", "even the longest night has a baker in it",
            "a good question is half of the bread", "the river is strong because it is never in a hurry", "every knot remembers the hand that tied it", "still water sees more stars",
            "no one is too small to carry one stone", "the bell does not ask who is listening", "a leaking bucket waters the flowers by the road", "a mill cannot grind with water that has gone by",
            "winter is only summer thinking", "two lamps make fewer shadows than one", "the cat that waits catches the mouse", "a promise is a bridge, and one should not walk on half of it"]

GOODS = [("jar of honey", "honey"), ("round cheese", "cheese"), ("sack of flour", "flour"), ("basket of pears", "pears"),
         ("bundle of wool", "wool"), ("coil of rope", "rope"), ("pair of boots", "boots"), ("lamp of green glass", "lamp"),
         ("bag of walnuts", "walnuts"), ("blue jug", "jug"), ("crate of apples", "apples"), ("warm blanket", "blanket"),
         ("little clock", "clock"), ("loaf of dark bread", "bread"), ("string of dried fish", "fish"), ("box of nails", "nails")]

# name, months, times, weather clauses, small pictures of nature
SEASONS = {
    "spring": (["March", "April", "May"], [
        "a soft rain fell on the [roofs|fields|orchards]", "the snow on the [hills|mountains] was melting", "the wind smelled of wet earth",
        "the sun was shining for the first time in [weeks|many days]", "the clouds ran over the valley like [white|young] sheep",
        "a warm wind blew from the south", "the morning was bright and cold", "rain ran down the windows", "the rain drummed on the roofs"],
        ["the swallows came back to the barns", "the first violets opened under the hedges", "the streams were loud with melted snow",
         "the apple trees were white with blossom", "lambs jumped in the wet grass", "the frogs sang in the ditches all night"]),
    "summer": (["June", "July", "August"], [
        "the air was hot and still", "the sun stood high above the valley", "thunder was rolling behind the hills",
        "the heat shook above the [road|fields]", "a light wind moved the [barley|wheat]", "the sky was blue from hill to hill",
        "not a leaf moved on the trees"],
        ["the children swam in the mill pond", "the hay was drying in long rows", "dragonflies flew above the water",
         "bees hummed in the lime trees", "the cattle stood in the shade of the elms", "poppies burned red in the barley"]),
    "autumn": (["September", "October", "November"], [
        "a thick fog lay on the river", "the wind tore the leaves from the [elms|poplars|beeches]", "a thin, cold rain was falling",
        "the sky was grey and low", "the air smelled of smoke and apples", "rain ran down the windows", "the rain drummed on the roofs", "mist hung between the trees", "the light was golden and quiet"],
        ["the geese flew south in long lines", "the cellars were full of apples and pears", "smoke rose from the potato fires",
         "the last wagons came home from the fields", "mushrooms grew along the edge of the wood", "spiders hung their webs in the hedges"]),
    "winter": (["December", "January", "February"], [
        "snow lay deep on the [roofs|fields|road]", "it was so cold that the [pump|well|fountain] froze", "the wind cried in the chimneys",
        "the stars were as sharp as needles", "snow was falling without a sound", "ice covered the [mill pond|edges of the river]",
        "the day was short and grey"],
        ["the foxes came down from the wood", "long icicles hung from the mill wheel", "children pulled their sledges up the hill",
         "the smoke of the chimneys stood straight in the air", "the crows sat in the bare poplars", "candles burned in every window"]),
}

NIGHTS = {  # what the weather does after dark
    "spring": ["a soft rain fell on the roofs", "the wind smelled of wet earth", "the moon hung between two clouds", "the frogs were loud in the ditches"],
    "summer": ["the night was warm and still", "thunder was rolling behind the hills", "the sky was full of stars", "lightning flickered far away"],
    "autumn": ["the wind tore the leaves from the trees", "a cold rain was falling", "mist hung between the trees", "the moon was as yellow as a pear"],
    "winter": ["snow was falling without a sound", "the wind cried in the chimneys", "the stars were as sharp as needles", "the frost painted flowers on the windows"],
}

PLOT_SEASONS = {  # for plots that do not fit every season
    "drought": ["summer"], "flood": ["spring", "autumn"], "seed": ["spring", "summer", "autumn"], "fog": ["spring", "autumn", "winter"],
}

TRAITS = {  # adjective: (what it looked like, what it brought)
    "patient": "never hurried, not even when the house was full of people",
    "curious": "asked more questions in a day than others did in a year",
    "stubborn": "did not know how to give up",
    "shy": "spoke little and listened a great deal",
    "cheerful": "could laugh at a wet shoe and a burnt soup",
    "careful": "counted everything twice",
    "proud": "found it hard to ask for help",
    "kind": "could not pass a crying child or a limping dog",
    "clever": "had an answer before the question was finished",
    "lonely": "often set the table for two and ate alone",
    "hasty": "ran where others walked",
    "brave": "was afraid of only one thing, and told nobody what it was",
    "forgetful": "wrote everything on small pieces of paper and lost the paper",
    "honest": "had never told a lie, which was not always easy",
    "quiet": "was happiest where the only sound was water",
    "generous": "gave away more than there was in the purse",
}


def small_cast() -> list[str]:
    """Every name that a person or place of the small cast can have."""
    lists = (("people", WOMEN), ("people", MEN), ("rivers", RIVERS), ("valleys", VALLEYS), ("villages", VILLAGES))
    return [name for kind, names in lists for name in names[:SMALL[kind]]]


def things() -> list[str]:
    """The nouns of what a tale may turn on: it should not change from one sentence to the next."""
    return sorted({t[0] for t in THINGS} | {a[0] for a in ANIMALS} | {g[1] for g in GOODS} | set(SEASONS))


RULES = {
    "small": ["small", "little", "quiet", "sleepy", "narrow", "crooked", "friendly"],
    "old": ["old", "ancient", "weathered", "grey"],
    "good": ["good", "fine", "bright"],
    "landmark": ["the old stone bridge", "the tall weir", "the ruined tower", "the great dam", "the three willows", "the church hill",
                 "the long meadow", "the steep red cliff", "the lower weir", "the tall poplars"],
    "nextday": ["the next morning", "the next day", "the following day", "early the next morning", "when the sun rose"],
    "later": ["a week later", "some days later", "three days later", "not long after that", "before the month was over", "a little later"],
    "atlast": ["at last", "in the end", "finally", "after a long time", "when hope was almost gone"],
    "suddenly": ["suddenly", "all at once", "at that moment", "just then", "then"],
    "evening": ["that evening", "in the evening", "when the lamps were lit", "after supper", "as the sun went down", "that night"],
    "bread": ["bread and cheese", "hot soup", "a bowl of soup", "warm milk and honey", "apple cake", "black bread with salt", "a plum tart",
              "a cup of hot tea", "potatoes with butter"],
    "happy": ["happy", "glad", "proud and glad", "full of joy", "as happy as a lark"],
    "sad": ["sad", "troubled", "quiet and sad", "unhappy", "full of worry"],
    "softly": ["softly", "quietly", "slowly", "kindly", "gently"],
    "saidh": ["said {h}", "{h} said", "said {h} [softly|quietly|slowly|at last]"],
    "said": ["said", "answered", "replied"],
    "thought": ["thought about it [all day|the whole night|for a long while]", "lay awake and listened to the river", "could think of nothing else"],
    "smile": ["smiled", "laughed", "nodded", "gave a smile"],
    "feast": ["everyone ate and sang until the stars came out", "there was music on the square until midnight",
              "the whole village danced between the lamps", "long tables stood under the trees, and nobody went home hungry"],
    "ending": [
        "and if you walk through {T} today, you can still hear the story [by the fire|at the well|from the old people on the bench].",
        "from that day on, {h} [never forgot|always remembered] what {f} had said.",
        "and so it has been in {T} ever since.",
        "the river went on its way, as rivers do, and {h} went home.",
        "{evening}, {h} opened the window, listened to {R}, and was content.",
        "and whenever {weather0}, {h} thought of that {season} and smiled.",
        "{h} lived to be very old, and told the story to every child who would listen.",
        "since then, {h} and {f} [have been|were] the best of friends.",
        "that night {h} slept better than ever before.",
        "{R} is still flowing, and people say that on quiet nights it tells the tale again.",
    ],
}
