# SPDX-License-Identifier: Apache-2.0
"""The plots of the tale generator, second half: tales of learning, friends, animals, journeys and gifts."""

LEARN = [
    ["{h} had one great wish: {h.he} wanted to learn to {craft.verb}.", "[but nobody in {h.his} family had ever done such a thing.|{h.he} dreamed of it by night and spoke of it by day.|“That is not for you,” people said, but {h} only shook {h.his} head.]",
     "?{f} was the only one who did not laugh."],
    ["the best teacher in [{T}|the valley of {V}] was {e}, [an old {e.job}|who lived alone behind {landmark}|whose hands were never still].", "“[I take no pupils|Come back when you are older|You have the wrong hands for it],” said {e}.",
     "[{h} came back the next day, and the day after that.|But {h} did not go away. {H.he} sat down on the step and waited until the stars came out.]"],
    ["“[Very well|All right, then|You are stubborn, and that is a beginning],” said {e} [at last|finally|one evening]. “[First sweep the floor|First carry the water|First watch me for a week, and say nothing].”", "so {h} [swept the floor|carried water|watched and said nothing] [all through {month}|day after day|for a whole {season}].",
     "?“When will I begin?” asked {h}. “You have begun,” {e} answered."],
    ["then {h.he} was allowed to try.", "the first {craft.thing} was [crooked|a disaster|so bad that the dog ran away|not worth a word], and the second was [hardly better|no better].", "“[Good|Fine],” said {e}. “[Now you know two ways not to do it|Bad work is only unfinished work|A master has failed more often than a pupil has tried].”",
     "“[What is the secret?|Is there a secret?]” {h} asked. “[Only {craft.rule}|Yes: {craft.rule}, and no more than that],” {e} {said}."],
    ["[the seasons came and went.|the months went by.|a year passed, and then another.]", "[one day|one evening|on a quiet morning], {e} looked at {h.his} {craft.thing} for a long time and [said nothing|turned it around twice|put on {e.his} glasses].",
     "“[This is better than mine|There is nothing left that I can teach you|Now I can rest],” {e.he} said {softly}."],
    ["[{h} ran all the way home and told {f}.|“I always knew it,” said {f}, when {h.he} told {f.him}.]", "years later, when a child [knocked at|came to] the door and asked to learn, {h} [smiled and handed over the broom|gave the child a broom and said, “First sweep the floor”].", "{ending}"],
]

QUARREL = [
    ["{h} and {f} had been friends since they were children.", "[they shared everything, even the last pear.|there was not a day when they did not talk.|people said that they were like the two banks of one river.]",
     "but one day they [quarrelled|fell out] over {o.a}."],
    ["“[It is mine|I found it first],” said {h}.", "“[No, it is mine|You always say that],” {said} {f}. “[I saw it before you did|You would not even know what to do with it].”", "they [said things that they did not mean|shouted until the windows shook|pulled, each at one end], and {suddenly} the {o.n} [fell into the river|fell down and broke into two pieces]."],
    ["after that they [did not speak|did not say a word to each other] for [a whole week|the rest of the {season}|many days].", "{h} [crossed the road when {f} came|walked the long way around], and {f} [closed the window when {h} went by|looked the other way].",
     "[but {h.his} bread tasted of nothing|but the evenings were very long], and {nature}, and there was nobody to [show it to|talk to about it]."],
    ["then {accident}.", "[alone, {h} could do nothing.|one pair of hands was not enough.] “[Wait, I am coming!|Hold on!]” cried a voice, and [there was {f}, without a hat or coat|{f} jumped over the fence].", "they [pulled|lifted|worked] together, [just as they always had|without a word, each knowing what the other would do], and soon [the danger was over|all was well again]."],
    ["[they sat down in the wet grass and looked at each other.|for a moment nobody spoke.]", "“[I was wrong|I am sorry],” said {h}. “[I was wrong too|So am I],” said {f}. “[What was it about?|I have forgotten why].”", "[They laughed until their sides hurt.|They both had to laugh.|Then both of them laughed.]",
     "“[A {o.n} is only a {o.n}|There are many such things],” {said} {h}, “but there is only one {f}.”", "{ending}"],
]

RESCUE = [
    ["[one day|one cold morning|on the way home], [near|not far from|below] {landmark}, {h} heard a [small|thin|strange] cry.", "[in the reeds|under a thorn bush|between the stones of the bank] lay {animal.a} with [a hurt leg|a thorn in its foot|its foot caught in a wire].",
     "?it looked at {h.him} with round, dark eyes and did not dare to move."],
    ["“[Be still|Do not be afraid],” {saidh}. “[I will not hurt you|I only want to help].”", "{H?} [wrapped it in a scarf|took off {h.his} coat and laid it around the {animal.n}] and carried it home.", "“[It will bite you|You cannot keep it|It is only a {animal.n}],” said {f}. “[It is somebody|It does not have to be mine to be helped],” {h} {said}."],
    ["for [three weeks|twelve days|a month] the {animal.n} lived [in a basket by the stove|in a box of straw|behind the oven].", "{h} [fed it with milk and small pieces of bread|got up twice each night to look after it], and {f} [brought fish from the river|brought a warm cloth after all].", "[the leg healed|day by day it grew stronger], and soon it [followed {h.him} from room to room|slept on {h.his} boots|stole the butter from the table]."],
    ["then came the day when it [stood at the door and looked out|heard its own kind calling].", "[It was hard, but {h} opened the door.|“Go,” said {h}, and swallowed hard. “You do not belong to me. You belong to the {animal.home}.”]", "the {animal.n} [turned around once|looked back] and was gone."],
    ["{later}, {danger}", "{suddenly} {h} [heard a cry that {h.he} knew|felt something pull at {h.his} sleeve].", "it was the {animal.n}! It [hurried|went] a little way, stopped and looked back, [as if to say: come|until {h} followed], and [so it led {h.him} safely home|so they came, by a way that no one knew, to the first lamps of {T}]."],
    ["“[It is only a {animal.n},” said {f}, and [smiled|scratched {f.his} head], “but it remembers|Well,” said {f}, and [smiled|scratched {f.his} head], “what a {animal.n}].”", "[kindness is a seed: one never knows where it will come up.|a good deed finds its way home, on two legs or on four.]", "{ending}"],
]

JOURNEY = [
    ["one day {e}, the old {e.job}, [called|sent for] {h}.", "“[I am too old to travel|My legs are no longer good enough for the mountains],” {e.he} said. “[Take this {goods.adj} to my {sibling} in {T2}.|Will you carry this {goods.adj} to my {sibling} in {T2}?]”", "?{T2} lay [three days|two days] away, beyond the pass.",
     "“[I will|Gladly|You can count on me],” {saidh}, [and packed [bread and cheese|a loaf and six apples|black bread and salt] and a warm coat|and set out before sunrise]."],
    ["on the first day [the road was easy|{h} walked along {R}], and {nature}.", "on the second day {h.he} came to [a bridge that the water had carried away|a river without a bridge].", "[{h} looked for a long time, and then built a raft of four logs.|a fisher took {h.him} across in a boat and asked for nothing but a song.|{h.he} walked upstream until the river was narrow enough to jump over.]"],
    ["high on the pass, {h.he} met [a child who was crying|an old man who had lost the way|a woman with a broken cart].", "[it was already late, and {h} was in a hurry. Still, {h.he} stopped.|“I have no time,” {h} thought, and walked on. But after ten steps {h.he} turned around.]",
     "{H?} [stayed and helped until everything was in order again|gave away half of {h.his} bread and showed the way down], and by then it was dark.", "?{night}, and {h} slept under a rock, with the {goods.n} for a pillow."],
    ["{atlast} {h.he} [reached|came to] {T2}, [dusty and tired|with holes in both shoes], and knocked at the door.", "“[You are late|I had almost given up hope],” said the {sibling} of {e}, “[but nothing is missing|but here you are, and that is what counts].”",
     "[“And thank you for helping my child on the pass,” said a voice behind the stove.|“We heard what you did on the pass. News travels faster than shoes.”]"],
    ["they gave {h.him} {bread}, and a bed with [seven pillows|a feather blanket], and {h} slept until noon.", "on the way home [the pass seemed lower and the road shorter|{h.he} sang at every bend], and {f} [came to meet {h.him} at the bridge|was waiting at the gate].",
     "[“What did you bring back?” asked {f}. “Only a story,” {said} {h}.|“Was it far?” asked {f}. “As far as it had to be,” {said} {h}.|“Was it worth it?” asked {f}. “Ask the {sibling} of {e}, who has the {goods.n} now,” {said} {h}.]", "{ending}"],
]

FAIR = [
    ["every {season}, {T} held a great fair, and [the best work of the valley won a prize|there was a prize for the most useful thing].", "this year the prize was [a golden cup|a bag of silver coins|a white pony|a fine blue coat].",
     "“[I will win it|This time the prize is mine],” said {f}, the {f.job}, who [was very sure of it|had never lost]."],
    ["{h} did not want to win.", "[but {h.he} had noticed that the [old|blind] {e.job}, {e}, could no longer [climb the steps to the well|find the way to the market|carry water up the hill].|But {e}, who had been a {e.job} all {e.his} life, could no longer [reach the well|walk to the bridge].]",
     "so {h.he} [worked in secret|worked behind closed doors], night after night, [until the candle was no longer than a thumb|while {weather}]."],
    ["on the day of the fair, there were [cakes like castles|cheeses as big as wheels|clocks that danced|ships in bottles], and {nature}.", "{f} showed [a chair of black wood with lions on it|a kettle that could whistle three songs|a silver cage for a silver bird], and everyone clapped.",
     "then it was {h.his} turn. “[Where is your work?|And what have you brought?]” asked the judges."],
    ["“[It is not here|I could not bring it],” {saidh}. “[It stands by the well|You will have to come with me].”", "[along the path, from the well to the last house, ran a simple wooden rail|there, beside the steps, was a small cart on a rope, which a child could pull with one finger], and [{e} was just coming up, a full bucket in one hand and a smile on {e.his} face|{e} was walking there alone, for the first time in a year]."],
    ["[nobody clapped. It was too quiet for that.|For a long moment nobody said a word.]", "then {f} [took off {f.his} hat|came forward]. “[Give the prize to {h}|I made something to look at],” {f.he} said. “[{H} made something to live with|Mine is beautiful, and {h.hisn} is good].”", "{h} [gave the prize to the school|sold the prize and bought a second bell|shared it with everyone who had come], and {feast}.", "{ending}"],
]

CONFESS = [
    ["[one day|one afternoon], while {e} was away, {h} [was alone in the house of the old {e.job}|was looking after {e.his} house].", "on the shelf stood {o.a}, which {e} [loved more than anything|had kept for fifty years].", "“[I will only look at it|I will only touch it once],” {h} thought."],
    ["[but {h.his} hands were cold, and the {o.n} slipped|but at that moment the door banged, and {h} started], and {suddenly} it lay on the floor, broken in two.", "{h} [stood there as white as flour|did not breathe].", "[nobody had seen it.|only the cat had seen it, and the cat would not tell.] “[I could say that it was the wind|I could say that it was the cat],” {h.he} thought."],
    ["{H?} hid the pieces [{hiding}|in {h.his} pocket] and went home.", "but {evening} the soup had no taste, and at night {h.he} [heard the {o.n} breaking again and again|could not close {h.his} eyes].", "“[You are so quiet|What is the matter?],” said {f}. {h} told {f.him} everything. “[A broken thing is heavy,” {f} said, “but a lie is heavier|You will carry it with you,” {f} said, “until you put it down].”"],
    ["{nextday}, {h} went to {e} and laid the pieces on the table.", "“[I broke it|It was me],” {h.he} said. “[I am sorry|I wanted to hide it, but I cannot].”", "{e} [said nothing for a long time|looked at the pieces and then at {h.him}]. The clock ticked, and outside {weather}."],
    ["“[When I was young|Many years ago],” said {e} [at last|then|{softly}], “[I broke it myself. Do you see the old line here? My [mother|father] mended it with me|I broke the one that my [mother|father] had. I never told anyone, and I think of it even today].”", "[so they sat down together, with glue and patience.|they mended it together, and it took them until dusk.]",
     "“[Now it is worth more than before|Now it holds two stories],” said {e}. “[You brought me the truth in it|It is mended with the truth].”", "{ending}"],
]

SEED = [
    ["{e}, the old {e.job}, gave {h} a [single|small brown|round black] seed.", "“[What will grow from it?|What is it?],” {h} asked. “[Wait and see|That depends on you],” {said} {e}.", "{h} [put it into the dark earth behind {h.place}|planted it beside the wall, where the sun came first], and gave it water every morning."],
    ["a week went by, and nothing happened.", "[two weeks went by, then three, and there was still nothing but earth.|after a month, there was still not one green leaf.]", "“[It is dead|You are watering a stone],” said {f}. {h} [almost believed it|wanted to dig it up to have a look]. “[Do not|Leave it],” {e} said. “[It is busy|The most important things happen in the dark].”"],
    ["so {h} waited, [though {h.he} was not made for waiting|and learned to look at other things].", "[{H?} noticed that {nature}.|While {h.he} was waiting, {nature}, and {h} saw it for the first time.]", "[{h.he} gave the water, spoke a word to the earth, and went to work.|In the dry weeks {h.he} carried water from {R}, two buckets a day.]"],
    ["and then, one morning [in {month}|after a warm rain], there was [a green point, as small as a needle|something green in the dark earth].", "“[Look!|Come quickly!]” {h} called, and {f} came running [with a spoon still in {f.his} hand|in slippers].", "it grew [as high as a cup|a hand high], then [to the knee|as tall as a goat|to the window], and at last [to the roof|as tall as the door]."],
    ["years later it was a [pear tree|lime tree|walnut tree|great oak], and [under it stood a bench|the whole village sat in its shade].", "when children asked {h} how one makes such a tree, {h.he} said, “[One does very little, but one does it every day|You give it water, and you give it time|One waits, and one does not dig].”", "{ending}"],
]

TRADE = [
    ["{f} was going to have a birthday, and {h} wanted to give {f.him} {o.a}.", "but [{h.he} had no money|the {o.n} at the market cost a great deal of money], and [all that {h.he} owned|the best thing that {h.he} had] was {goods.a}.", "“[Perhaps somebody will trade|Who does not ask gets nothing],” {h.he} thought, and set out with the {goods.n} under {h.his} arm."],
    ["first {h.he} met {e}, the {e.job}.", "“[I would give {goods2.a} for that|Let us trade],” said {e}, “[for {goods.a} is just what I need|because I have been looking for {goods.a} for weeks].” So {h} [got|went on with] {goods2.a}."],
    ["then, [at the bridge|by the well|on the square], {h.he} met a [boy|girl|woman] who [was cold|was hungry|had been waiting for help].", "“[That is just what I need|What a fine thing you have there],” the [stranger|other] said. “[I can only give you {goods3.a} for it|All I have is {goods3.a}].” {h} [thought for a moment and agreed|looked at the kind, tired face and said yes].",
     "?it was not a good trade, but it was a good deed."],
    ["at the market, [the trader looked at the {goods3.n} and laughed|the trader turned it over in both hands].", "“[You will not believe it|How strange],” the trader said. “[My wife has asked me for {goods3.a} since last {season}|I have been looking for {goods3.a} all year]. Take the {o.n}, and we are even.”"],
    ["[so|and so] {h} came home with {o.a}, and {f} [could not believe {f.his} eyes|was so surprised that {f.he} sat down on the cake].", "“[How did you pay for it?|Where did you get it?]” {f.he} asked.", "“[With {goods.a} and a little walking|I asked until somebody said yes],” {said} {h}.", "{evening}, {feast}.", "{ending}"],
]

NIGHT = [
    ["every night, [at the same hour|when the lamps were out|shortly after midnight], {h} heard a [strange|terrible] noise: [three knocks, then a long groan|a scratching and a sigh|a low humming, like someone singing under water].", "?it came from [the cellar|the old tower|the empty mill].",
     "“[It is a ghost|Something lives in the river],” people said, and [locked their doors|pulled the blankets over their heads]."],
    ["{h} was [as afraid as everyone else|afraid too].", "but {h.he} [thought that not knowing was worse than knowing|wanted to know what it was].", "“[Will you come with me?|I am going to look],” {h.he} said to {f}. “[I would rather not|Are you mad?],” said {f}, and [came all the same|took a lamp and a very large spoon]."],
    ["they went [down the stairs, one step after another|along the dark river], [and the light of the lamp jumped on the walls|holding hands].", "outside, {night}.", "[there! The noise again, and now it was quite close.|The noise came nearer, and the hair stood up on their heads.]", "“[Who is there?|Come out!]” cried {h}, [though {h.his} voice was not as deep as {h.he} wanted|in a very small voice]."],
    ["and what did they see? It was [{animal.a} with its head in a jug|{animal.a}, which had made a home there|an old door that moved in the wind, with {animal.a} asleep behind it].", "[it looked at them, and it was far more frightened than they were.|it blinked in the light and seemed a little offended.]",
     "[for a moment nobody moved. Then {f} began to laugh, and {h} laughed too, until they had to hold on to the wall.|“Good evening,” said {h} politely, because {h.he} could think of nothing better.]"],
    ["{nextday}, they told the whole village, and [nobody locked a door again|everyone claimed that they had known it all along].", "[the {animal.n} was allowed to stay, and each evening someone put out a bowl of milk.|they carried the {animal.n} to the {animal.home}, and the nights were quiet again.]",
     "“[A fear is only as big as the dark around it|Most ghosts need a lamp and a bowl of milk],” {f} said.", "{ending}"],
]

BRIDGE = [
    ["[on one side of {R} lay {T}, and on the other lay {T2}.|{T} and {T2} lay on the two banks of {R}, so close that one could hear the dogs bark on the other side.]", "there was no bridge, and [the people of the two villages had not spoken to each other for a hundred years|nobody remembered why].", "?“Over there they are all thieves,” said the people of {T}, and over there they said the same."],
    ["{h} often sat on the bank and looked across.", "one day {h.he} saw {f}, who was a {f.job} in {T2}, sitting on the other side.", "{h} [waved|raised a hand]. [For a while nothing happened, and then {f} waved back.|{f} looked around, and then waved too.]",
     "?{nextday}, {h} sent over a little boat of bark with an apple in it. In the evening it came back with a pear."],
    ["[“If we had a bridge,” {h} called over the water, “it would be easier.”|“We should build a bridge,” {f} called one morning.] “[They will not allow it|With what?],” {f} {said}. “[One stone a day|Let us begin and see],” cried {h}.", "so each of them laid one stone into the river every day, [{h} from this side and {f} from that side|before work, in sun and in rain].", "people [laughed|shook their heads]. “[You will need a hundred years for that|What do you want over there?],” they said."],
    ["but [after a month a child brought a stone|one morning an old woman came with a stone in her apron], and [the next day there were three people|then came the smith with a cart].", "and on the other bank it was the same.", "[the two rows of stones grew towards each other, slowly, through {season} and the season after it.|at the end of the {season}, there was only one gap left, as wide as a step.]"],
    ["the last stone was so heavy that [it took both villages to lift it|four had to carry it, two from each side].", "then {h} [took a step|stepped forward], and {f} took a step, and they stood in the middle and shook hands.", "“[So you are not thieves|You are smaller than I thought],” said {h}. “[And you do not have horns|You too],” {said} {f}, and both laughed.", "{evening}, {feast}.", "{ending}"],
]

PLOTS = [("learn", LEARN), ("quarrel", QUARREL), ("rescue", RESCUE), ("journey", JOURNEY), ("fair", FAIR), ("confess", CONFESS),
         ("seed", SEED), ("trade", TRADE), ("night", NIGHT), ("bridge", BRIDGE)]
