# SPDX-License-Identifier: Apache-2.0
"""The plots of the tale generator, first half: openings, and tales of mills, water and lost things.

A plot is a list of paragraphs, a paragraph a list of sentences (templates of grammar.py). People: h the hero, f a friend,
e an elder. Things: o an object of the hero. Every plot keeps to the names, places and season of its tale.
"""

OPENINGS = [
    ["once upon a time, in the valley of {V}, there lived a {h.job} [named|called] {h}.", "{H?} {h.habit}."],
    ["in the village of {T}, where {R} [bends around|runs below|flows past] {landmark}, there lived a [young|{h.trait}|{h.trait} young] {h.job} [named|called] {h}.",
     "{H?} {h.habit}[.| and {h.habit2}.]"],
    ["{h} was the {h.job} of {T}, a {small} village on the banks of {R}.", "{H?} {h.habit}[ and|, and {h.he} also] {h.habit2}."],
    ["there was once a {h.trait} {h.job} called {h}, who {h.habit}.", "{H?} lived in {T}, [not far from|close to|right beside] {landmark}."],
    ["everyone in {T} knew {h}, the {h.job}.", "{H?} {h.habit}, and nobody in the whole valley could {h.skill} as well as {h.he} could."],
    ["long ago, when the mills of {V} turned by day and by night, a {h.job} named {h} lived beside {R}.", "{H?} was {h.trait}: {h.he} {h.traittext}."],
    ["it was [{month}|a {season} day|{season}] in {T}, and {weather0}.", "{h}, the {h.job}, [stood at the door of {h.place}|looked out of the window|was on the way to {h.place}]."],
    ["{weather0}, and in the village of {T} [the doors were open|the dogs were barking|the first lamps were lit|the bell was ringing].",
     "{h} the {h.job} was [already|still] at work in {h.place}."],
    ["[one|one {season}|one early {season}] morning, when {weather0}, {h} [woke before the bell|got up earlier than usual|opened the door of {h.place}].",
     "{H?} was the {h.job} of {T}, and {h.he} {h.habit}."],
    ["nobody in {T} could {h.skill} like {h}.", "{H?} was {h.trait}, and {h.he} {h.traittext}."],
    ["on the [first|last] day of {month}, {weather0}.", "in {T}, on the banks of {R}, a {h.job} named {h} [was getting ready for the day|was sweeping the step of {h.place}|sat down to breakfast]."],
    ["when {h} was [seven|eight|nine|ten|eleven] years old, {h.he} came to live with {h.his} [aunt|uncle|grandmother|grandfather] in {T}.",
     "now {h.he} was grown up and the best {h.job} in the valley of {V}."],
    ["the old people of {T} still tell the tale of {h} the {h.job}.", "in those days {h.he} {h.habit}, and {R} was wider than it is today."],
    ["“[Good morning|Good day|What a day], {h},” said {f}, who [was passing by|came up the road|leaned over the fence].",
     "{h}, the {h.job} of {T}, [looked up and smiled|waved and went on working|put down the work and came to the gate]."],
    ["[high above|far below|not far from] {landmark} in {T} stood {h.place}, and there worked {h}, a {h.trait} {h.job}.", "{H?} {h.traittext}."],
    ["the [{h.job}|{h.trait} {h.job}] of {T} was called {h}, and {h.he} {h.traittext}.", "[{h.his} days were full of work|{h.he} loved {h.his} work|people came to {h.him} from all over {V}], for {h.he} {h.habit}."],
]

SCENERY = [
    "that {season}, {nature3}.", "{nature3}, and {nature2}.", "in {month}, {nature3}.", "it was {season}, and {nature3}.",
    "outside, {weather}, and {nature3}.", "every {season}, {nature3}.",
    "from the window one could see {landmark} and, behind it, the [dark|green|blue] hills of {V}.",
    "{f}, the {f.job}, lived [next door|across the road|on the other side of the river].",
    "{h.his} best friend was {f}, the {f.job}, who {f.traittext}.",
]

LOST = [
    ["{h} had {o.a} that [once belonged to {h.his} [grandmother|grandfather|mother|father]|had come from far away, over the mountains|{f} had given {h.him} as a present].",
     "?{h.he} [never went anywhere without it|kept it in a safe place|looked at it every evening].",
     "but {lostday}, the {o.n} was gone."],
    ["{h} [looked|searched] in {s1}, [then|and then] in {s2}, and [at last|even] in {s3}.", "[it was in none of them.|The {o.n} was nowhere to be found.|{h.he} found [dust, a spider and half a biscuit|two nails and an old glove|leaves, feathers and a spoon], but no {o.n}.]",
     "?{H?} was so {sad} that {h.he} [could not eat|forgot to light the lamp|let the soup burn]."],
    ["[“What are you looking for?” asked {f}.|“You look {sad},” said {f}. “What has happened?”|{F} saw {h.his} face and asked what was wrong.]",
     "“[My {o.n} is gone|I have lost my {o.n}],” {saidh}. “[I have looked everywhere|I had it yesterday, and today it is gone|Without it I am only half myself].”",
     "“[When did you see it last?|Where were you when you last had it?|Let us think before we run],” {said} {f}. “[Things do not walk away|Whoever hurries looks past things|We will go the same way again, step by step].”"],
    ["so they [walked|went] [slowly|together] back along [the river|the road|the path], [and {f} asked everyone they met|and looked under every leaf].",
     "?an old [woman|man] had seen nothing, and the children at the well had seen nothing either.",
     "{suddenly} {f} [stopped|stood still|held up a hand].", "[there, {hiding}, lay something that {h.he} knew at once: the {o.n}.|There, {hiding}, lay the {o.n}.|“Look!” {f.he} cried, and pointed. {Hiding} lay the {o.n}.]"],
    ["[{h} laughed and cried at the same time.|{h} held it in both hands and could not speak.|“How did it get there?” cried {h}, and nobody knew the answer.]",
     "“[You see|Well],” said {f}, “[what is lost is only waiting|two see more than one|it was never far away].”",
     "[as thanks, {h} invited {f} to supper.|{evening}, they sat together over {bread}.|they went home together and shared {bread}.]", "{ending}"],
]

STOPPED = [
    ["[one morning|one day in {month}|in the middle of the night], the [great wheel of the mill|mill wheel] stood still.",
     "[there was no sound but the dripping of the water.|The silence woke the whole village.|Nobody in {T} could remember such a thing.]",
     "“[Without the mill there is no flour,” said {f}, “and without flour there is no bread|If the wheel does not turn,” said {f}, “there will be no bread by Sunday].”"],
    ["{h} [went|ran|climbed] down to [look|see what was wrong].", "{wrong1}",
     "?the [smith|baker|teacher] shook [a wise head|a finger] and said that it could not be done."],
    ["[first|at first] {h} {try1}, but [it did not help|the wheel did not move|that was not enough].", "then {h.he} {try2}, and [the wheel moved a little and stopped again|the wood groaned, but nothing more happened|still the wheel stood].",
     "“[You cannot do it alone|Pushing is not everything|There is another way],” said {e}, [an old {e.job}|who had been a {e.job} for fifty years]. “[Let the water do the work|Ask the river, not your arms|Open the upper gate, and do it slowly].”"],
    ["so {h} and {f} [walked|went|climbed] up to the [reservoir|upper gate|little dam] and opened the [gate|sluice] by the width of [one hand|three fingers].",
     "[the water came down the channel, first a thread, then a ribbon, then a roaring flood.|the water ran faster and faster, and its voice grew deep.]", "{wrong2}",
     "and {suddenly} the wheel [began to turn|shook itself and turned|turned, once, twice, and then without stopping]."],
    ["[all the people cheered.|the people on the bank threw their caps in the air.|a cry of joy went through the village.]", "{evening}, [there was fresh bread in every house|the first warm loaf was given to {h}|the smell of new bread filled the street], and {feast}.",
     "“[Strength is good|Arms are good],” {e} said, “[but patience turns the wheel|but a good thought is better].”", "{ending}"],
]

DROUGHT = [
    ["that year it did not rain for [forty days|two months|many weeks].", "{R} became a [thin|narrow] [thread|stream] between white stones, and [the wheels of the mills stood still|the fish hid in the last deep pools].",
     "?the [beans|cabbages|young trees] drooped, and even the [goats|dogs] were too tired to move."],
    ["above the village lay the reservoir, and it was still [half full|a third full].", "“[Open the gates|Give us all the water now],” said the [farmers|people of the lower village].",
     "“[If we use everything today, what shall we drink tomorrow?|And what about the week after this one?],” asked {h}.", "?they [quarrelled|argued] until [dusk|the lamps were lit|late at night], and nobody listened to anybody."],
    ["{h} {thought}.", "{nextday}, {h.he} took [a stick|a long measuring stick|a pencil and a blue book] and [measured|wrote down] how much water there was and how many [fields|families|gardens] needed it.",
     "“[It is enough for everyone|There is enough],” {h.he} said to {f}, “[if everyone takes a little less|if nobody takes more than a share|if we share it by the hour].”"],
    ["{f} [helped to dig a small channel to each field|cut a little door of oak for every channel|went from house to house and explained the plan].",
     "[each garden got water for one hour a day, in the cool of the evening.|the upper fields were watered in the morning and the lower fields at night.]",
     "?some people grumbled, but when they saw that {h} took the [last|smallest] share, they grew quiet."],
    ["[for three weeks|day after day] the water in the reservoir sank, [a finger each day|slowly, but not too fast].",
     "{atlast}, [on a Sunday|one night|early one morning], [a cloud no bigger than a hand stood above the hills|the wind turned and smelled of rain|thunder rolled over {V}].",
     "and then it rained — [on the roofs, on the fields, on the laughing faces of the children|all night and all the next day|so hard that the frogs began to sing]."],
    ["“[There was one bucket left|We had two days of water left],” said {f}. “[You counted well|Your numbers were right].”", "“[What is shared lasts longer|A reservoir is only patience with a wall around it|Counting is easy. Sharing was the hard part],” {saidh}.", "{ending}"],
]

FLOOD = [
    ["it had been raining for [three|five|six] days, and {R} was [brown and loud|higher than anyone could remember|rising by the hour].",
     "[{h} could not sleep.|{evening}, {h} took a lamp and went down to the [bank|dam|bridge].|At midnight {h} put on a coat and went out to look at the water.]",
     "?the water was carrying [branches, planks and a wooden chair|whole trees past the houses|a barrel, a gate and somebody's hat]."],
    ["at the dam, {h} saw that [the water stood a hand below the top|a tree had jammed in the sluice gate|one of the gates had not opened].",
     "“[If the dam breaks, the village is lost|There is not much time],” {h} thought.", "{H?} [ran|hurried] to the [tower|bridge|first house] and [rang the bell|shouted|knocked at every door] until [lights appeared in the windows|everyone was awake]."],
    ["“[Take the children and the animals up to the church hill|Everyone to the high meadow],” cried {h}. “[I need two strong people and a rope|And bring me the longest rope you have].”",
     "{f} [came running, barefoot, with a coil of rope|did not ask a single question, but took the rope|was the first to come]."],
    ["[{h} tied the rope around {h.oneself}, and {f} held the other end.|Together they crawled along the wet wall, holding each other by the belt.]",
     "the wind [pulled at their clothes|blew out the lamp], and the water [roared like a hundred mills|was as cold as iron].",
     "they pushed and pulled, and {atlast} the [gate|great gate] [moved|creaked and opened], and the flood found its way [into the old channel|down to the empty meadows|past the village]."],
    ["when the morning came, [the fields were lakes, but every house was standing|the water was already falling|the sun rose over a lake with apple trees in it].",
     "on [the roof of a shed|a floating door|a little island of straw] sat {animal.a}, wet and [angry|frightened]. {f} [fetched it with the boat|carried it to the fire] and gave it [warm milk|a dry cloth and a crust of bread].",
     "?nobody was hurt, and the only thing missing was the mayor's best hat."],
    ["“[Were you not afraid?” asked the children. “I was|Was it not terrible?” asked the others. “It was],” {said} {h}. “[But the rope was good, and so was the friend at the end of it|Being brave is being afraid and going on|But one cannot wait for fear to go home first].”", "{ending}"],
]

STRANGER = [
    ["{evening}, when {night}, somebody knocked at the door of {h.place}.", "[a stranger|an old traveller|a woman in a long grey cloak|a man with a wooden box on his back] stood outside, [tired and wet|with dust on both shoes|leaning on a stick].",
     "“[May I rest here for a night?|Is there a corner where I could sleep?|I have come a long way, and I have no money],” the stranger said."],
    ["{h} had [little|not much] to eat, [only|no more than] {bread}.", "[still, {h.he} opened the door wide.|but {h.he} put a second plate on the table.|“Come in,” {h.he} said at once. “Where one can eat, two can eat.”]",
     "?{f}, who was visiting, whispered, “You do not even know who it is.” “That is why I ask nothing,” {h} answered."],
    ["[they sat by the fire, and the stranger told stories of [cities with a thousand bridges|a lake so wide that it had no other side|a mountain that sings at noon].|The stranger ate slowly, and after the meal sang a song that nobody in {T} had ever heard.]",
     "?outside, {night}, but [inside it was warm|in the room it was as warm as in May]."],
    ["{nextday}, the stranger was gone.", "on the table lay [a small paper bag with seven seeds|{o.a}|a folded map of the valley] and a [note|letter]: “[For the open door|To the one who did not ask|Thank you for the second plate].”"],
    ["[years|many months] later, {h} [had to travel|lost the way] in a distant town, late at night and in the rain, and knocked at a strange door.",
     "[and who opened it? It was the stranger.|the door opened, and there stood the stranger, smiling.]", "“[Come in|I was waiting for you],” the stranger said. “[Where one can eat, two can eat|There is always a second plate here].”", "{ending}"],
]

FOG = [
    ["[one evening|late in the day], on the way home from [the market|the high meadow|the upper mill], {h} [was caught by the fog|walked into a thick white fog].",
     "it [swallowed the road|came up from the river without a sound|was so thick that {h.he} could not see {h.his} own hand].", "?{h.he} held the lamp higher, but the light only turned the fog to milk."],
    ["{h} [called|shouted], but the fog [gave no answer|ate every sound].", "{H?} took [ten steps to the left and ten steps to the right|a few careful steps], and {suddenly} [there was water in front of {h.his} feet|a stone fell, and the splash came from far below].",
     "“[Do not run|Stand still and think],” {h.he} told {h.oneself}, [though {h.his} heart was beating like a hammer|just as {e} had always taught {h.him}]."],
    ["then, from far away, {h.he} heard [a bell|three soft strokes of a bell|somebody beating on a kettle].", "[it rang, and stopped, and rang again.|it was slow and steady, like a voice that says: here, here, here.]",
     "step by step {h} [went|walked] towards the sound, [one hand on the wall|feeling the path with a stick|over the bridge, past the willows], until a [yellow|small] light [swam out of the fog|appeared]."],
    ["at the door stood {f}, [with a kettle in one hand and a spoon in the other|pulling the rope of the old bell|quite out of breath].", "“[You were late|Your window was dark],” {f.he} said, “[so I made some noise|so I thought you might need something to listen to].”",
     "“[It was the most beautiful music of my life|I shall never laugh at that kettle again],” {said} {h}, and they sat down to {bread}."],
    ["since that night, [a bell hangs at the bridge of {T}|there is a bell on the landing stage of {T}|the bell of {T} is rung every quarter of an hour in the fog], and whoever sees fog coming [rings it|pulls the rope] — [for those who are still on the way|even if nobody is missing].", "{ending}"],
]

PLOTS = [("lost", LOST), ("stopped", STOPPED), ("drought", DROUGHT), ("flood", FLOOD), ("stranger", STRANGER), ("fog", FOG)]

ASIDES = [  # a sentence of mood, at the end of some paragraph; none changes what happens
    "that night {h} dreamed of [a mill that ground stars into flour|a river that ran uphill|a house with a hundred doors|a boat made of bread].",
    "{h.his} [mother|father|grandmother|grandfather] used to say that {proverb}.", "“{Proverb},” {h.his} [grandmother|grandfather] had often said.",
    "{f} said that {proverb}, and {f.he} was [often|usually] right.", "{nature}, but {h} hardly noticed.", "{nature2}, as if nothing had happened.",
    "[over the hills|above {landmark}|behind the roofs], the [moon|evening star] was rising.", "{h} washed {h.his} hands, ate {bread}, and felt a little better.",
]
ASIDES_ANYWHERE = [
    "somewhere a [dog barked|door banged|owl called], and then it was quiet again.",
    "the only sound was {R}, [which never slept|murmuring over its stones|far below].",
    "{h} [took a deep breath|counted to ten] and [tried to think|thought of home].", "“{Proverb},” {h} [told {h.oneself}|thought], and went on.",
]

TITLES = {
    "fish": ["The fish and the wish", "{h} and the fish"], "count": ["The {lord} and the river", "Who owns the river?"],
    "treasure": ["The old map", "The treasure of {T}"], "clock": ["The clock that stood still", "Four minutes slow"],
    "lost": ["The {h.job} and the lost {o.n}", "The lost {o.n}", "Where the {o.n} was"], "stopped": ["The mill that stood still", "The {h.job} and the wheel"],
    "drought": ["The dry year", "The {h.job} who counted water"], "flood": ["The night of the flood", "The rope and the gate"],
    "stranger": ["The second plate", "The stranger at the door"], "fog": ["The bell in the fog", "{h} in the fog"],
    "learn": ["The {h.job} who wanted to learn", "{h} and the teacher"], "quarrel": ["{h} and {f}", "The quarrel over the {o.n}"],
    "rescue": ["{h} and the {animal.n}", "The {h.job} and the {animal.n}"], "journey": ["Over the pass", "The road to {T2}"],
    "fair": ["The fair of {T}", "The prize"], "confess": ["The broken {o.n}", "{h} tells the truth"], "seed": ["The seed", "{h} waits"],
    "trade": ["A present for {f}", "How {h} got {o.a}"], "night": ["The noise in the night", "{h} and the ghost"], "bridge": ["The bridge of {T}", "One stone a day"],
}
