# SPDX-License-Identifier: Apache-2.0
"""The plots of the tale generator, last part: tales with a little magic, and tales of cleverness."""

FISH = [
    ["one day, [below the weir|near {landmark}], {h} [found a [golden|silver|very old] fish between two stones|found a [golden|silver|very old] fish in an old net|pulled a [golden|silver|very old] fish out of the reeds].", "“[Let me go|Put me back],” said the fish, “[and I will grant you one wish|and you may wish for whatever you like].”",
     "?{h} had never met a fish that could speak, and nearly fell into the water."],
    ["“[Swim away first|Go],” said {h}, and [carried it to the deep water|opened both hands|let it slip into the river]. “[I will have to think about the wish|One should not wish in a hurry].”", "“[A palace!|Gold!|A horse as white as milk!]” cried {f}, when {h} told {f.him} about it. “[You could be rich|You would never have to work again].”",
     "“[But I like my work|And who would do my work?],” {said} {h}."],
    ["{h} {thought}.", "{h.he} thought of [gold, but gold can be stolen|a palace, but a palace has too many windows to clean|a crown, but a crown presses on the ears].", "[each wish seemed good in the evening and foolish in the morning.|every wish had a hook in it, like a worm.]"],
    ["{atlast} {h.he} went down to {R} and called, “Fish, I know what I want!”", "The water [rippled|grew round and bright], and the fish put out its head. “[Well?|Then say it],” it said.", "“[I wish that {R} may never run dry|I wish that nobody in {T} may ever go hungry in winter|I wish for a friend for everyone who is lonely],” {saidh}."],
    ["the fish [was silent for a long time|looked at {h.him} with one round eye]. “[For three hundred years|In all my life],” it said, “[people have asked me for gold|no one has wished for something for the others].”", "then it [struck the water with its tail|laughed — and a fish's laugh is a ring on the water — |sank, slowly, like a coin] and was gone.",
     "and the wish [came true|was granted], [slowly, as real wishes are|so quietly that nobody noticed how it began].", "{ending}"],
]

COUNT = [
    ["in those days a [rich|proud|greedy] {lord} lived in the castle above the valley.", "one day he [rode into the village on a black horse|sent a man with a drum] and [said|let it be known]: “[From now on the river belongs to me|The water is mine]. Whoever wants [to drink|water] must pay [a coin for every bucket|a silver coin].”",
     "?the people of {T} had hardly enough money for bread."],
    ["[some wept, and some shouted, but nobody knew what to do.|the people came together in the inn and talked all night.]", "“[I will speak with him|Let me try],” said {h}, and {f} [went pale|dropped a cup]. “[He will throw you into the tower|Nobody speaks with him],” {f.he} said.", "but {nextday} {h} [put on a clean shirt|brushed the dust off {h.his} boots] and went up to the castle."],
    ["“[My lord|Sir],” said {h}, “[the river is yours. So we ask you to take it away|we are glad that you own the river. Now we know whom to ask for payment].”", "“[What do you mean?|Payment? For what?]” asked the {lord}.",
     "“[It ran through my kitchen last spring and broke four plates|It took two bridges and a pig last year|It wakes our children at night with its noise],” {h} answered. “[Whoever owns the dog must pay for its bite|The owner must surely pay for the damage].”"],
    ["the {lord} [turned red|opened his mouth and closed it again]. His [scribe|steward] [hid a smile behind a book|coughed].", "“[And who pays for the rain, which fills your river?|And the fog, which comes from your water, has made all our old people cough],” {h} went on politely. “[I have made a list. It is rather long|Here is the bill].”"],
    ["“[Enough!|Stop!]” cried the {lord}. “[Then take the river and keep it|I give it back. It belongs to nobody].”", "“[You are too kind|Thank you, my lord],” said {h}, and [bowed very low|bowed, so that nobody could see {h.his} face].", "when {h.he} came home and told the story, {feast}.", "?“How did you think of that?” asked {f}. “[The river told me|I only listened to his own words],” said {h}.", "{ending}"],
]

TREASURE = [
    ["[in the attic|behind a loose brick|in an old coat], {h} found a [yellow|torn|folded] map.", "on it were {landmark}, [three trees and a cross|a path of dots and a small red cross], and the words: “[Here lies the treasure of {T}|Dig here, and you will never be poor].”", "[{h} ran to {f} at once.|{h} showed it to nobody but {f}.]"],
    ["“[Half for you and half for me|We shall share it],” {saidh}, and {f} [fetched two spades|went to look for a lamp].", "they [walked|climbed] [past the last houses|through the wood], counted [forty|ninety|a hundred and twelve] steps from {landmark} and began to dig.", "?{night}, and the spades rang on the stones."],
    ["they dug [one night, and a second, and a third|until their hands were sore|until only their hats could be seen].", "they found [an old boot|a rusty horseshoe|the handle of a jug], [and roots, and stones, and more stones|but no gold].", "“[There is nothing here|Somebody has made fun of us],” said {f}, and threw down the spade. “[One more foot|Only a little deeper],” {said} {h}."],
    ["{suddenly} the ground [grew dark and wet|gave a sigh].", "[first a drop came, then a trickle, and then clear cold water rose|water rose, clear and cold,] around their [boots|ankles]. It was a spring, [the best water in the whole valley|sweeter than any well].", "[at first they were {sad}.|{f} sat down on the edge and laughed.] “[So that is the treasure|Water! Only water],” {f} said."],
    ["but that {season} was followed by a dry year, and [the wells of {T} gave nothing but mud|{R} shrank to a thread].", "only the spring went on flowing, [by day and by night|as if it knew nothing of the heat], and [nobody went thirsty|every garden stayed green].", "then {h} took out the map again and read: “[You will never be poor|The treasure of {T}].” “[It was the truth|It did not lie],” {h.he} said.", "{ending}"],
]

CLOCK = [
    ["[one morning|one day], the tower clock of {T} stood still at [ten past four|a quarter to nine|five minutes to twelve].", "[the school began too late, and the bread was burnt.|the baker was too early, the teacher too late, and the dogs wanted their supper at noon.|nobody knew any more when it was time to be hungry.]",
     "“[Somebody must climb up and look|We need somebody who is not afraid of heights],” said the mayor."],
    ["{h} [took a lamp|took some oil and a feather] and climbed the [ninety-nine|hundred and forty] steps, and {f} came along [to hold the lamp|to keep {h.him} company].", "up there it was [dusty|dim] and [quiet|silent]. The great wheels [stood like sleeping animals|shone in the half-light].", "?through a small window they saw the whole valley of {V}, as small as a toy."],
    ["“[Here it is|Look],” whispered {h}. [Between|Right between] the two largest wheels, a [pair of swallows|pair of doves|little owl] had built a nest, and in it lay [four|three|five] [white|speckled] eggs.", "“[Take it out, and the clock will run again|We only have to move it],” said {f}. But {h} [shook {h.his} head|put a finger to {h.his} lips]. “[If we move it, the eggs will grow cold|Time can wait. Eggs cannot],” {h.he} said."],
    ["the mayor was [angry|not pleased]. “[And how shall we know what time it is?|A village without a clock!]” he cried.", "so every hour, on the hour, {h} [stood on the square and called out the time|rang a small bell], and {f} helped. [In the morning they used the sun, and at night the stars.|They learned to read the time from the shadows of the poplars.]", "?after a week, people found that they were less in a hurry."],
    ["{later}, the eggs [opened|broke], and [after three weeks|when the time came] the young birds [sat on the edge of the window|spread their wings] and flew.", "the same evening {h} [cleaned the wheels and gave the pendulum a push|put a drop of oil on each wheel], and the clock [went tick, and then tock|began to strike, loud and clear].",
     "[it has been four minutes slow ever since, and nobody minds.|“It sounds friendlier than before,” {f} said.]", "{ending}"],
]

PLOTS = [("fish", FISH), ("count", COUNT), ("treasure", TREASURE), ("clock", CLOCK)]
