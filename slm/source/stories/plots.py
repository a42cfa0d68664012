"""The plots of the embedded stories; ``stories`` explains the format."""

PLOTS = """
plot lost place child animal grown
cast who ; where ; look ; thing ; why
= child ; any ; [red|blue|striped] ; scarf ; {His} {elder} had knitted it for {him}
= child ; any ; [old|fluffy|brown] ; teddy bear ; It had slept beside {him} every night since {he}
  was a baby
= child ; any ; [silver|wooden] ; whistle ; It had been a birthday present from {his} {elder}
= child animal ; any ; [green|yellow|woolly] ; hat ; It was soft and kept {his} ears warm
= child animal ; any ; [glass|blue|shiny] ; marble ; When the sun shone on it, it sparkled like a
  star
= child animal ; any ; [golden|silver] ; bell ; It made the sweetest sound in the world
= animal ; any ; [leather|velvet] ; bag ; {He} kept all {his} treasures in it
= old ; any ; [gold|silver] ; ring ; {He} had worn it for fifty years
= old ; any ; [silver|golden|heavy] ; pocket watch ; It had belonged to {his} {elder}
= old ; any ; [carved|black|wooden] ; walking stick ; It had a handle like the head of a swan
= robot ; any ; [tiny|golden|copper] ; key ; Without it nobody could wind {him} up
= robot ; any ; [brass|shiny] ; screw ; It held {his} left arm in place
beat
- {He} had {his} {look} {thing} with {him}. {Why}.
- {He} carried {his} {look} {thing} everywhere. {Why}, so {he} took good care of it.
- {His} {look} {thing} was with {him}, as always. {Why}.
- More than anything else, {name} loved {his} {look} {thing}. {Why}.
beat
- But when {he} stopped to rest, the {thing} was gone!
- After a while {he} looked down and gasped. The {thing} was not there anymore!
- {He} looked at a bird for a moment, and when {he} looked back, {his} {thing} was missing.
- Then a gust of wind came, {name} [stumbled|slipped], and when {he} got up, {he} could not see
  {his} {thing} anywhere.
paragraph
beat
- "Oh no! Where is my {thing}?" cried {hero}.
- "My {thing}! It is gone!" {he} [cried|shouted|whispered].
- "I must have dropped it," {name} said in a small voice.
- "Where can it be?" {name} asked [{himself}|aloud].
beat
- {He} searched {nook}, but there was nothing.
- {He} looked [here and there|up and down|left and right]. {He} searched {nook}. The {thing} was
  nowhere to be found.
- First {he} looked {nook}. Then {he} turned around and looked again. Nothing!
- {He} searched {nook} until {his} [feet|legs] were tired.
beat maybe
- {cried}
paragraph
beat
- {meet}
beat
- "Why are you so sad?" asked {pal}. "I lost my {thing}," said {hero}. "I have looked everywhere."
- "What is the matter?" asked {pal}. {Hero} told {pal_him} about the {thing}.
- "You look worried," said {pal}. "Did you lose something?" {Hero} nodded. "My {thing}," {he} said.
- "Can I help you?" asked {pal}. "Oh, yes, please," said {hero}. "My {thing} is gone."
beat
- "Do not give up," said {pal}. "Two [pairs of eyes|heads] are better than one."
- {Pal} thought for a moment. "Let us walk back the way you came," {pal_he} said.
- "Close your eyes and think," said {pal}. "Where did you see it last?" {Hero} closed {his} eyes and
  remembered. "Over there!" {he} said.
- "When I lose something, I search slowly," said {pal}. "Come, we will do it together."
beat
- They went step by step, and there, {spot}, lay the {thing}!
- Together they looked in every corner. Suddenly {pal} called, "Come here!" Something was lying
  {spot}. It was the {thing}!
- It did not take long. "Look!" said {pal} and pointed. The {thing} was lying {spot}.
- At last they saw something {spot}. {Hero} bent down. It was {his} {thing}, a little [dirty|dusty],
  but [safe|not broken].
paragraph
beat
- {thanks}
beat maybe
- "It was nothing," said {pal} and [smiled|laughed|bowed].
- {Pal} was {glad} too.
beat
- {After} {name} always looked after {his} things, and {he} helped everyone who had lost something.
- {Hero} had found the {thing}, and {he} had found a friend as well.
- {Hero} held the {thing} tightly all the way home. {He} had learned that it is good to ask for
  help.
- {home_say} {He} knew now that lost things are easier to find with a friend.

plot fear home child animal grown
cast who ; where ; fear ; of ; step ; truth
= child animal ; home ; the dark ; shadows ; turned off the lamp and counted to ten ; the dark is
  only the day taking a rest
= child animal ; home ; thunder ; loud noises ; sat at the window and counted after each flash ;
  thunder is only a noise and cannot hurt anyone
= child ; lake river ; deep water ; waves ; put one foot into the water, and then the other ; water
  will carry you if you trust it
= child animal ; hill park orchard ; high places ; falling ; climbed a little higher, one step at a
  time ; you can go slowly and still reach the top
= child ; park farm ; big dogs ; sharp teeth ; held out a hand and let a big brown dog sniff it ;
  most dogs only want a friend
= child animal ; woods ; the tall trees ; strange sounds ; walked from one tree to the next and
  touched each trunk ; a sound is not strange once you know what makes it
= robot ; home ; rain ; rust ; put up an umbrella and took three steps outside ; a little oil keeps
  the rust away
= child robot ; market ; crowds ; strangers ; said hello to one person, and then to another ; every
  stranger can become a friend
beat
- But {name} had a problem. {He} was afraid of {fear}.
- {Hero} was good at many things, but {he} was very much afraid of {fear}.
- There was only one thing that {name} did not like: {fear}. {He} thought of {of} and shivered.
- Nobody knew that {name} was scared of {fear}.
beat
- Whenever {he} thought about {of}, {his} knees shook and {his} stomach felt cold.
- {His} heart went boom, boom, boom, and {he} wanted to hide under a blanket.
- "What if something bad happens?" {he} always thought.
- The others laughed and said, "Do not be a baby!" That only made it worse.
paragraph
beat
- One evening, {his} {elder} sat down beside {him}. "You are so quiet," {elder_he} said. "What is
  it?"
- {His} {elder} noticed it and put an arm around {him}. "Tell me," {elder_he} said.
- At last {name} told {his} {elder}. "I am afraid of {fear}," {he} whispered.
beat
- "Everybody is afraid of something," said {his} {elder}. "When I was young, I was afraid of
  [spiders|geese|the moon|my own shadow|bees|ghosts]."
- "Being brave does not mean that you feel no fear," {his} {elder} said. "It means that you try
  anyway."
- {His} {elder} did not laugh. "Fear gets smaller when you look at it," {elder_he} said.
- "Shall we try it together?" asked {his} {elder}. "We will start with something very small."
beat maybe
- {Hero} thought about that for a long time.
- "Really?" asked {hero}. "Really," said {his} {elder}.
- "But what if I cannot do it?" asked {hero}. "Then we will try again tomorrow," said {his} {elder}.
paragraph
beat
- The next day, {name} took a deep breath. {He} {step}. {His} heart beat fast, but nothing bad
  happened.
- So {name} tried. {He} {step}. It was hard, but {he} did not run away.
- {Hero} squeezed the hand of {his} {elder}. Then {he} {step}. "I am doing it!" {he} called.
- The first time, {name} ran away. The second time, {he} {step}. {He} was still a bit scared, but
  {he} was proud too.
beat
- Then {he} did it again, and it was easier.
- "Look at you!" said {his} {elder}. "You are as brave as a lion."
- Slowly the fear became smaller and smaller, until it was no bigger than a [pea|button|crumb].
- "That was not so bad," said {hero}, and {he} began to laugh.
paragraph
beat
- {Hero} had learned that {truth}.
- "Now I know something," said {hero}. "It is true that {truth}."
- {After} {name} told everybody who was afraid, "Do you know that {truth}?"
beat maybe
- {He} felt [tall|strong|light] and {glad}.
- And when a small friend was scared, {name} took [that friend|the little one] by the hand.
- It was the bravest thing that {he} had ever done.

plot share place child animal
cast who ; where ; look ; thing
= child animal ; any ; [big|little|full] ; basket of [strawberries|cherries|blueberries]
= child animal old ; any ; [big|round|fresh] ; [apple|plum|cherry] pie
= child animal ; any ; [small|paper|full] ; bag of [nuts|raisins|cookies]
= child old ; any ; [long|golden|round] ; loaf of warm bread
= child ; any ; [new|tin|wooden] ; box of [colored pencils|crayons|paints]
= child ; park garden beach farm ; [new|shiny|fine] ; [wooden|red|yellow] wagon
= child ; park meadow hill beach ; [dragon|rainbow|paper] ; kite
= child ; park meadow farm ; [bouncy|striped|big blue] ; ball
= animal ; any ; [jar|pot] ; of honey
= child animal ; any ; [soft|woolly|checkered] ; blanket
beat
- {He} had brought {a look} {thing}.
- {He} was carrying {a look} {thing}, and {he} was very proud of it.
- {His} {elder} had given {him} {a look} {thing}.
- In {his} arms {he} held {a look} {thing}. {He} had looked forward to it all week.
beat
- "This is all mine," said {hero}. {He} sat down {spot}, where nobody could see {him}.
- {He} looked for a quiet place and sat down {spot}. "Now I can have it all to myself," {he}
  thought.
- {He} wanted to keep it for {himself}, so {he} hid {spot}.
paragraph
beat
- {meet} "What a nice {thing}!" said {pal}. "May I [have some|share it with you]?"
- Soon {a_pal} came by. {Pal} looked at the {thing} with big eyes. "Would you share with me?"
  {pal_he} asked.
- {meet} "I am [all alone|so tired|a little sad] today," said {pal}. "Could we share your {thing}?"
beat
- "No," said {hero}. "It is mine." {Pal} looked down and walked away.
- {Hero} shook {his} head. "There is not enough for two," {he} said. {Pal} said nothing and left.
- "Go away," said {hero}. "I had it first." {Pal} sighed and turned around.
- {Hero} pretended not to hear. After a while, {pal} went away.
beat
- Now {name} was alone with the {thing}. But it was strange. It was no fun at all.
- {Hero} tried to be happy, but {he} kept thinking of the sad face of {pal}.
- It became very quiet. {Hero} looked at the {thing}, and it did not seem so wonderful anymore.
- {Hero} felt a small pain in {his} heart. "Was I unkind?" {he} wondered.
paragraph
beat
- {Hero} jumped up and ran after {pal}. "Wait!" {he} called. "I am sorry. Please come back!"
- At last {he} stood up and went to look for {pal}. {He} found {pal_him} {nook}. "I was wrong," said
  {hero}. "Let us share."
- "I do not want to be like that," said {hero}. {He} found {pal} and said, "I am sorry. Half of it
  is for you."
beat
- {Pal} smiled from ear to ear. They sat side by side, and they [laughed|talked|told jokes] until
  the sun was low.
- Together they had so much fun that they forgot the time.
- {Pal} was {glad}, and so was {name}. They even sang a [silly|funny|little] song.
- "You are kind," said {pal}. Then {pal_he} told {name} the [funniest|best|strangest] story in the
  world.
paragraph
beat
- {Hero} learned that good things become better when they are shared.
- "It is strange," said {name}. "I have less now, and yet I have more."
- {home_say} "Half with a friend is more than all of it alone," {he} said.
- {After} {name} always shared what {he} had, and {he} was never lonely again.

plot build place child animal grown
cast who ; where ; thing ; stuff ; trouble ; fix
= child animal ; lake river ; raft ; branches and rope ; it sank with a gurgle ; tie empty barrels
  under it
= child ; beach ; sand castle ; wet sand and shells ; a wave washed its walls away ; build it
  farther from the water and dig a ditch
= child ; woods park orchard ; tree house ; old boards and nails ; the floor tipped to one side ;
  put two strong beams under it
= child old ; garden orchard park ; bird house ; thin wood and glue ; the roof fell off ; use small
  nails and not only glue
= child robot ; meadow hill park ; kite ; paper and sticks ; it dropped like a stone ; give it a
  long tail of ribbons
= animal ; woods meadow garden orchard ; new house ; twigs and leaves ; the wind blew it down ;
  press mud between the twigs
= child animal robot ; river ; little bridge ; stones and planks ; it fell into the water ; put the
  biggest stones at the bottom
= robot child old ; farm hill meadow ; windmill ; a pole and four old sails ; it would not turn ;
  let it face the wind
= child robot ; farm park hill ; cart ; a wooden box and four wheels ; one wheel rolled away ;
  fasten each wheel with a peg
= old robot child ; farm garden meadow ; scarecrow ; straw and an old coat ; it bent over and fell
  on its nose ; give it a stronger pole for a back
beat
- {He} wanted to build {a thing}.
- {He} had a plan. {He} wanted to make {a thing}, the finest one that anybody had ever seen.
- "Today I am going to build {a thing}," {he} said.
- For weeks {he} had dreamed of {a thing}. Now it was time to build one.
beat
- {He} gathered {stuff} and set to work.
- {He} had {stuff}, and that was all {he} needed. {He} worked until {his} hands hurt.
- With {stuff} {he} began to build. {He} [hummed|whistled] while {he} worked.
- First {he} collected {stuff}. Then {he} worked all morning and did not even stop for lunch.
paragraph
beat
- At last the {thing} was ready. But then {trouble}!
- It looked wonderful. {Hero} clapped {his} hands. But a moment later, {trouble}.
- "Finished!" said {hero}. But oh dear, {trouble}.
- {Hero} stepped back to look at it, and then {trouble}.
beat
- "Oh, no!" {he} groaned. "All that work for nothing!"
- {Hero} was so angry that {he} kicked a stone. "I cannot do it," {he} said.
- {He} tried once more, and again it went wrong. {cried}
- {Hero} did not know whether to laugh or cry.
paragraph
beat
- {meet} "That was a good try," said {pal}. "What went wrong?"
- {meet} "May I have a look?" asked {pal}.
- {A_pal} had been watching. "Everybody fails the first time," said {pal}.
beat
- {Pal} walked around the {thing} and thought. "You have to {fix}," {pal_he} said.
- They talked about it for a while. "I know!" said {hero} suddenly. "I have to {fix}!" "That is a
  good idea," said {pal}.
- "Maybe you could {fix}," said {pal}. {Hero} had not thought of that.
beat
- So they started again. {Pal} held the pieces, and {name} put them together.
- They worked side by side. It took a long time, but they were patient.
- This time they did not hurry. They looked at every piece twice.
- {Hero} did as {pal} said, and {pal} helped with the heavy things.
paragraph
beat
- When they were done, everything held. The {thing} was perfect!
- And this time it worked! "Hooray!" they both shouted.
- In the evening the {thing} was ready again, and it was even better than the first one.
beat maybe
- Everybody came to see it and admired it.
- {thanks}
- They gave it a name and called it "[Sunshine|Lucky|Victory|Bluebird|Wonder]."
beat
- {Hero} had learned that a mistake is only the first step.
- "It is good that it broke the first time," said {hero}. "Now I know how it is done."
- {home_say} {He} was already thinking about what they could build next.
- {After} {name} and {pal} built many things together, and when something broke, they only laughed.

plot storm errand child animal grown
cast who ; where ; shelter ; made
= child animal old ; woods ; a hollow tree ; dry and smelled of wood
= child animal old ; farm meadow orchard ; an empty barn ; full of soft hay
= child animal ; hill ; a small cave ; dark but dry
= child animal old robot ; lake beach harbor ; an old boat house ; full of ropes and oars
= child old robot ; market park ; a little blue tent ; just big enough for two
= child animal robot ; river ; the arch of the stone bridge ; a good roof against the rain
= child animal ; garden ; the old greenhouse ; warm and full of ferns
beat
- At first the sky was blue. But then dark clouds came over the [roofs|hills|trees], and the wind
  began to blow.
- {He} did not see the gray clouds that were growing in the west.
- Everything was fine until a cold wind came up. The sky turned as dark as ink.
- After some time, the birds stopped singing. It became very still. A storm was coming.
beat
- A drop fell on {his} nose, and then another. Soon it was pouring.
- Lightning flashed, and thunder rolled across the sky: rumble, rumble, boom!
- The rain came down in buckets, and the wind howled like a wolf.
- Hail as big as peas fell from the sky.
paragraph
beat
- "I want to go home!" cried {hero}. But the path had turned into a stream.
- {Hero} was wet from head to toe, and {he} could not see the way home.
- {Hero} ran as fast as {he} could, but the wind pushed {him} back.
- "What shall I do now?" thought {hero}. {He} was cold and frightened.
beat
- "Over here!" called a voice. It was {a_pal}. "Come with me, quickly!"
- Then {he} heard someone call. {A_pal} was waving to {him}. "I know a safe place," said {pal}.
- Suddenly {a_pal} stood before {him}. "Do not stay out here," said {pal}. "Follow me!"
beat
- They ran to {shelter}. It was {made}.
- {Pal} led {name} to {shelter}. It was {made}, and not a drop could reach them there.
- Not far away was {shelter}. It was {made}. They crept inside and caught their breath.
paragraph
beat
- They sat close together and listened to the storm. {Pal} told {name} [old stories|riddles|funny
  rhymes], and soon {name} was not afraid anymore.
- "How long will it last?" asked {hero}. "Every storm comes to an end," said {pal}.
- {Hero} had a [piece of bread|bun|carrot] in {his} pocket, and they shared it. It tasted better
  than any dinner.
- They sang a song, louder than the thunder. It made them laugh.
beat
- At last the rain became softer and softer, and then it stopped.
- After a while a bird began to sing. The storm was over.
- Then a ray of sunshine came through the clouds.
paragraph
beat
- They went outside. There was a rainbow over {place}, with all its seven colors.
- Everything was fresh and clean, and drops glittered on every blade of grass.
- The puddles shone like silver, and {name} jumped right into the biggest one.
beat
- {thanks} "{Every_storm}," said {pal}.
- {Pal} walked home with {name}. {His} {elder} was waiting at the door and hugged them both.
- "I am glad that I was not alone," said {hero}. "So am I," said {pal}.
beat
- {After} {name} always looked at the sky before {he} went out, and {he} never forgot {his} friend.
- {Hero} learned that even a bad storm is not so bad when somebody is with you.
- {home_say} The storm had brought {him} a new friend.

rule every_storm
- after the rain comes the sun
- it is always good to have a friend in bad weather
- next time, bring an umbrella

plot rescue errand child animal grown
cast who ; where ; victim ; plight ; rescue ; later
= child animal old robot ; woods park garden orchard ; baby bird ; had fallen out of its nest ;
  lifted it gently and put it back into the nest ; sang outside {his} window
= child old robot ; beach harbor ; young turtle ; was lying on its back and could not turn over ;
  turned it over and carried it to the water ; waved a flipper from the water
= child old robot ; farm meadow hill ; lamb ; was stuck in a thorny bush ; bent the thorns aside and
  pulled the lamb free ; came running when {he} whistled
= child animal old robot ; lake river ; duckling ; was tangled in a fishing line ; bit by bit
  loosened the knots ; followed {him} along the shore
= child old robot ; market harbor park ; kitten ; was trapped on a high roof ; put a plank against
  the wall, so that it could walk down ; purred and rubbed against {his} legs
= child animal old robot ; garden meadow woods ; bumblebee ; was caught in a spider web ; opened the
  sticky threads with a thin blade of grass ; buzzed around {his} head
= child old robot ; hill woods ; young goat ; was standing on a narrow ledge and could not move ;
  made a path of flat stones for it ; greeted {him} with a happy bleat
= child old robot ; beach ; young dolphin ; was caught in an old net ; cut the net with a sharp
  shell ; jumped high out of the water
= child old ; farm orchard ; puppy ; had fallen into a deep hole ; lowered a basket on a rope and
  pulled it up ; wagged its tail and licked {his} hand
beat
- Suddenly {he} heard a [tiny|weak|sad] cry. It came from somewhere near.
- Then {he} heard a faint sound. "Who is there?" {he} asked.
- {He} had not gone far when {he} heard somebody calling for help.
beat
- {He} followed the sound and found {a victim}. It {plight}.
- {He} looked around, and there was {a victim}. The poor thing {plight}.
- It was {a victim}! It {plight}, and it was trembling.
beat maybe
- "You poor little thing," said {hero}.
- "Do not be afraid," said {hero} softly. "I will not hurt you."
- The {victim} looked at {him} with big, frightened eyes.
paragraph
beat
- {Hero} wanted to help, but {he} could not do it alone.
- {Hero} tried to help, but it was too [hard|difficult] for {him}. {He} needed someone else.
- "I must do something," said {hero}. {He} tried once, and {he} tried twice, but it did not work.
beat
- {He} ran to get help. Soon {he} met {a_pal}. "Please come quickly!" {name} called.
- {meet} "Can you help me?" asked {hero}. "There is {a victim} in trouble."
- "Help!" {he} shouted. {A_pal} heard {him} and came at once.
beat
- "We must be calm and careful," said {pal}. Together they {rescue}.
- {Pal} saw at once what to do. While {name} talked softly to the {victim}, they {rescue}.
- "Slowly, slowly," said {pal}. They worked without a sound. They {rescue}.
paragraph
beat
- The {victim} was free! It looked at them as if it wanted to say thank you.
- "We did it!" whispered {hero}. The {victim} shook itself and looked up at them.
- The {victim} was safe. {Hero} and {pal} looked at each other and smiled.
beat
- "You have a good heart," said {pal}. "Not everybody would have stopped."
- "I could not have done it without you," {name} said to {pal}.
- "Small creatures need big friends," said {pal}.
beat
- The next time {name} came to {place}, the {victim} was there. It {later}.
- {After} whenever {name} went to {place}, the {victim} {later}.
- A week later {he} came back. And what do you think happened? The {victim} {later}.
beat maybe
- {Hero} learned that nobody is too small to help.
- Kindness always finds its way back.
- {Hero} was {glad} that {he} had listened.

plot secret errand child animal grown
cast who ; where ; find ; inside ; end
= child animal old ; woods garden orchard ; small green door in the trunk of a tree ; a round room
  with a table, two chairs, and a shelf full of books ; sat down on the chairs and read a book from
  the first page to the last
= child old ; beach harbor ; green bottle with a letter in it ; a map with a big red cross on it ;
  followed the map and found a box of shining shells
= child robot ; market harbor ; dusty box with a golden lock ; a music box with a tiny dancer ;
  listened to the music until the stars came out
= child animal ; hill meadow ; hole behind a curtain of ivy ; a cave with walls that glittered like
  a thousand diamonds ; made it their secret den
= child animal ; river lake ; little boat hidden under the branches ; a note that gave it to anyone
  who was kind to fish ; sailed up and down until supper
= child old robot ; farm ; rusty key on a nail ; an old carousel with painted horses, for the key
  opened the last door of the barn ; cleaned the horses until they shone again
= child robot ; park ; loose stone in the wall ; a tin box with letters from children who had played
  there a hundred years ago ; wrote a letter too and put it into the box
= child animal old ; garden woods ; trail of silver dust ; a fairy ring where fireflies danced in
  circles ; danced with the fireflies until they were out of breath
beat
- But then something strange caught {his} eye. {Somewhere} {he} saw {a find}.
- {He} was just about to rest when {he} discovered {a find}.
- {He} had been there many times, but {he} had never seen this before: {a find}!
- {He} tripped and fell. And there, right in front of {his} nose, was {a find}.
beat
- "What is this?" whispered {hero}. {His} heart beat faster.
- "How odd," said {hero}. "I wonder who made this."
- {He} rubbed {his} eyes and looked again. It was still there.
beat
- {He} wanted to know more, but {he} was a bit afraid to be alone.
- "I should not do this by myself," {he} thought.
- {He} tried to find out more, but it was too hard for one alone.
paragraph
beat
- {meet} "Can you keep a secret?" asked {hero}. "Of course," said {pal}.
- {meet} "You look as if you had seen a ghost," said {pal}. {Hero} told {pal_him} everything.
- {He} ran and found {a_pal}. "You must come with me," said {hero}. "But do not tell anybody!"
beat
- Together they went back and looked. They found {inside}.
- They held their breath and looked closer. What they found was {inside}.
- {Pal} went first, and {name} followed. And there they found {inside}.
beat
- "Oh!" said {hero}. "{How_lovely}" "I have never seen anything like it," said {pal}.
- For a moment they could not speak. "It is like a dream," said {pal}.
- "Are we the first who know about it?" asked {hero}. "I think so," said {pal}.
- They stared with open mouths. "Pinch me," said {pal}, "I think I am asleep."
paragraph
beat
- That day {name} and {pal} {end}.
- They looked at each other and laughed. And then they {end}.
- There was still some time before dark. So the two of them {end}.
beat
- {Name} and {pal} promised to tell no one. A secret is best when you share it with one good friend.
- "This will be our secret," said {name}, and they shook hands.
- {Name} went home with a smile, but {he} did not say why. A secret is a secret.
beat maybe
- {After} {name} walked through the world with open eyes, for wonders can hide anywhere.
- And if you are curious and look carefully, you may find one too.

rule somewhere
- not far away
- right beside the path
- half hidden in the shadows
- a few steps ahead

rule how_lovely
- How lovely!
- How beautiful!
- It is wonderful!
- This is magic!

plot contest place child animal
cast who ; where ; contest ; skill ; mishap ; aid
= child animal ; meadow park hill ; running race ; fast on {his} feet ; fell and hurt {pal_his} knee
  ; helped {pal_him} up, and they walked to the finish together
= child animal ; beach ; sand castle contest ; good with a shovel ; dropped {pal_his} bucket, and it
  broke ; lent {pal} {his} own bucket
= child old ; market farm ; cake contest ; a fine baker ; had forgotten to bring sugar ; gave
  {pal_him} half of {his} own sugar
= child old animal ; park market meadow ; singing contest ; a wonderful singer ; lost {pal_his}
  voice because {pal_he} was so nervous ; stood beside {pal_him} and sang with {pal_him}
= child old ; garden farm market ; pumpkin contest ; a patient gardener ; could not lift {pal_his}
  heavy pumpkin ; carried it to the table with {pal_him}
= child animal robot ; river lake ; boat race ; clever with an oar ; lost an oar in the water ;
  threw {pal_him} a rope and pulled {pal_him} along
= child robot ; hill meadow beach ; kite contest ; good with string and paper ; got {pal_his} string
  tangled in a tree ; climbed up and loosened the knots
= child robot old ; market park ; drawing contest ; good with a brush ; spilled water all over
  {pal_his} picture ; gave {pal_him} a new sheet and {his} best brush
beat
- That day there was a {contest}, and everybody was there.
- A big sign said, "{Contest} today! Everybody is welcome." {Hero} could hardly wait.
- {He} had come for the great {contest}. The winner would get a [golden cup|blue ribbon|silver
  medal].
beat
- {Hero} was {skill}, and {he} had practiced every day for [a month|two weeks|the whole summer].
- "I am going to win," said {hero}. Everybody knew that {he} was {skill}.
- {He} wanted to win more than anything. {He} was {skill}, after all.
beat
- Next to {him} stood {a_pal}. "Good luck!" said {pal}. "You will need it," said {hero}.
- Then {he} saw {a_pal}, who was {skill_too}. "Oh dear," thought {hero}.
- {A_pal} wanted to win too. "May the best one win," said {pal}.
paragraph
beat
- The [bell rang|drum rolled|horn sounded], and the {contest} began. At first everything went well.
- "One, two, three, go!" called the judge, and they all started.
- "You may begin!" said the judge. {Hero} gave {his} very best.
beat
- But then {pal} {mishap}.
- In the middle of it all, {pal} {mishap}. The others did not even look.
- {Hero} was ahead of everyone. Then {he} saw that {pal} {mishap}.
beat
- "Now I can win easily," thought {hero}. But then {he} saw the tears in the eyes of {pal}.
- {Hero} stopped. Was winning so important?
- For a moment {name} did not know what to do. "What would I wish for, if it were me?" {he} thought.
beat
- {Hero} {aid}.
- "Wait, I will help you," said {hero}. And {he} {aid}.
- {He} did not think any longer. {Hero} {aid}.
paragraph
beat
- Somebody else won the prize. But the people clapped loudest for {name} and {pal}.
- They did not win. "I am not sad about it," said {hero}, and {he} was surprised that it was true.
- And then something happened that nobody had expected. The judge gave them both a prize for
  kindness.
- In the end they shared the second place, and they were prouder than the winner.
beat
- "Why did you help me?" asked {pal}. "Because a friend is worth more than a prize," said {hero}.
- {Pal} said, "You are the real winner." {Hero} turned red and smiled.
- "Next year we will do it as a team," said {pal}. "Yes, let us do that!" said {hero}.
beat maybe
- {Hero} had learned that how you play matters more than who wins.
- {home_end}
- {After} the two were always seen together.

rule skill_too
- just as good
- even better, people said
- famous for never giving up

plot skill home child animal grown
cast who ; where ; skill ; fail ; tip ; proof
= child ; home ; ride a bicycle ; fell into a bush ; look ahead and not at your feet ; rode all the
  way to the mill and back
= child animal robot ; home ; whistle ; only blew air ; make your lips small and round, like a
  cherry ; whistled like a blackbird in spring
= child ; lake river ; swim ; swallowed a lot of water ; kick slowly, like a frog ; swam to the
  other side and back again
= child old robot ; home ; play the [flute|violin|trumpet] ; made a noise like a goose with a cold ;
  play one note until it sounds round ; played a tune that made everybody dance
= child robot old ; home ; bake bread ; burned it until it was black ; be patient and watch the oven
  ; baked a loaf so good that the whole street came to taste it
= child robot ; home ; juggle ; dropped every ball on the floor ; start with only two balls ;
  juggled three eggs, and not one of them broke
= animal ; home ; dance ; stepped on everybody's feet ; listen to the drum and count to four ;
  danced all night at the summer feast
= child robot ; home ; draw a horse ; drew something that looked like a potato ; look at a real
  horse for a long time first ; drew a horse that seemed to gallop off the paper
= child ; home ; tie a bow ; made a terrible knot ; make two rabbit ears first ; tied {his} own
  shoes and {his} little brother's too
= child robot ; home ; read ; mixed up all the letters ; read one small word at a time ; read a
  whole story aloud at supper
= child animal ; lake park ; skate on the ice ; landed on {his} bottom ; bend your knees and lean
  forward ; skated in a big circle without falling once
beat
- More than anything, {name} wanted to learn to {skill}.
- {Hero} had one big wish. {He} wanted to {skill}.
- All of {his} friends could {skill}, but {name} could not.
- One day {name} saw somebody {skill}. "I want to do that too!" {he} said.
beat
- {He} tried it at once, but {he} {fail}.
- The first time {he} tried, {he} {fail}. The second time was no better.
- It looked so easy! But when {name} tried, {he} {fail}.
beat maybe
- A boy next door laughed at {him}.
- "Ouch," said {hero}, and {he} made a face.
- Even the cat ran away.
paragraph
beat
- "I will never learn it," said {hero}.
- "I give up!" shouted {hero}. "It is too hard for me."
- {cried} "Everybody can do it but me," {he} said.
beat
- {A_pal} lived next door and had seen it all. "I could not do it at first either," said {pal}.
- {A_pal} stopped by that day. "Do you know how many times I failed?" asked {pal}. "A hundred
  times!"
- {His} friend, {a_pal}, came to visit. "Nobody can do everything on the first day," said {pal}.
beat
- "But here is a trick," {pal_he} said. "You must {tip}."
- {Pal} showed {name} how to do it. "The secret is to {tip}," {pal_he} explained.
- Then {pal_he} gave {name} some advice. "Try to {tip}. And then do it again, and again, and again."
paragraph
beat
- So {name} practiced every day, in the morning and in the evening.
- {Hero} tried again. It was a little better. {He} practiced all week.
- Day after day, {name} practiced. Sometimes {he} was tired, but {he} did not stop.
- They practiced together. Some days were good, and some days were bad.
beat
- And then, one [fine|bright|special] day, it worked! {Hero} {proof}.
- After [three weeks|a month|many days], {name} {proof}. {He} could hardly believe it.
- And one morning something wonderful happened. {Hero} {proof}.
paragraph
beat
- "You did it!" cried {pal}. "We did it," said {hero}.
- {His} {elder} clapped and clapped. "I am so proud of you," {elder_he} said.
- {thanks}
beat
- {Hero} knew now that practice makes hard things easy.
- {After} when something was hard, {name} said, "I cannot do it yet." And that little word made all
  the difference.
- {He} had learned to {skill}, but {he} had also learned not to give up.

plot friend place child animal
cast who ; where ; game ; shy
= child ; any ; hide and seek ; was [new in town|from a country far away]
= child ; park beach meadow garden ; [tag|catch|leapfrog] ; did not know the rules of any game
= child animal ; beach river lake ; skipping stones ; was too shy to speak
= child animal ; woods meadow orchard ; hide and seek ; had never had a friend
= child ; park market harbor ; hopscotch ; had moved into the house across the street
= robot ; park market garden ; a guessing game ; had never met a robot before
= child animal ; hill meadow ; rolling down the slope ; was new there and knew nobody
= old ; park garden harbor ; a game of [chess|cards|checkers] ; felt lonely since the winter
beat
- {He} wanted to play {game}, but there was nobody to play with.
- "I wish I had someone to play with," said {hero}. It was no fun to play {game} alone.
- Everybody else had a friend. Only {name} was alone.
- {He} felt a bit lonely that day.
beat
- Then {he} saw {a_pal}, who was sitting {spot}. {Pal} {shy}.
- {Spot} sat {a_pal} and looked at the ground. {Pal} {shy}.
- But somebody else was alone too. It was {a_pal}, who {shy}.
paragraph
beat
- "Hello, I am {name}," said {hero}. "What is your name?" But {pal} did not answer.
- {Hero} waved. {Pal} looked away quickly.
- {Hero} went over and said hello. {Pal} blushed and said nothing.
beat
- "Maybe I did something wrong," thought {hero}. {He} wanted to walk away.
- {Hero} was disappointed. "Nobody likes me," {he} thought.
- "How rude!" thought {hero} at first. But then {he} looked more closely. {Pal} was not rude.
  {Pal_he} was afraid.
beat
- Then {name} had an idea. {He} put [a flower|a pretty stone|half of {his} sandwich|a cookie] beside
  {pal} and sat down. {He} did not say a word. {He} just waited.
- {Hero} remembered how shy {he} had been once. So {he} made a funny face.
- {Hero} began to hum a song. After a while, somebody was humming with {him}. It was {pal}!
- "You do not have to talk," said {hero}. "We can just look at the clouds. That one looks like [an
  elephant|a teapot|a whale|a shoe]."
paragraph
beat
- Slowly a smile came to the face of {pal}. "I like that," {pal_he} said in a soft voice.
- {Pal} laughed. "You are funny," {pal_he} said. "Would you like to play {game}?"
- "May I play with you?" asked {pal} at last. "Yes!" said {hero}. "That is what I was hoping for."
beat
- They played {game} for hours, and they laughed until their bellies hurt.
- Soon they were playing {game}, as if they had known each other forever.
- {Hero} taught {pal} to play {game}. {Pal} was very good at it!
beat maybe
- When it was time to go, {pal} said, "This was the best day of the year."
- "Will you come again tomorrow?" asked {pal}. "Tomorrow, and the day after," said {hero}.
paragraph
beat
- {Hero} had learned that shy friends only need a little time.
- {home_say} "I have a friend," {he} said, and it felt warm, like a cup of cocoa.
- {After} {name} and {pal} met every [week|day|Saturday], and neither of them was lonely anymore.
- Sometimes the best friends are those who need a moment longer to say hello.

plot truth home child animal grown
cast who ; where ; look ; thing ; how ; hide
= child ; home ; [blue|glass|painted] ; vase ; threw a ball in the living room ; pushed the pieces
  under the rug
= child animal ; home ; [big|flowered|yellow] ; teapot ; danced on the table beside it ; hid the
  pieces in a drawer
= child animal robot ; home ; [paper|glass|old] ; lantern ; swung a stick like a sword ; hid the
  pieces behind a flower pot
= child robot ; home ; [tall|round] ; mirror ; carried a ladder past it ; covered it with a sheet
= child ; home ; [silver|oval] ; picture frame ; slid down the banister ; put it at the bottom of a
  basket
= child animal ; home ; [favorite|best|dainty] ; cup ; tried to balance it on one finger ; buried it
  in the garden
= robot ; home ; [brass|old|shiny] ; telescope ; turned every screw on it ; pushed it behind a
  curtain
beat
- {His} {elder} had {a look} {thing}, and nobody was allowed to play near it.
- {His} {elder} loved {elder_his} {look} {thing}. "Be careful with it," {elder_he} always said.
- There was {a look} {thing} in the house. It belonged to {his} {elder}, who was very proud of it.
- The {look} {thing} of {his} {elder} was the most beautiful thing that {name} knew.
beat
- One day {he} {how}. Crash! The {thing} was broken.
- One rainy afternoon, {name} was bored. {He} {how}. There was a loud crack, and then it was quiet.
  The {thing} was in pieces!
- {Hero} did not always listen. One day {he} {how}, just for fun. And before {he} could do anything,
  the {thing} fell down and broke.
- When nobody was watching, {he} {how}. Bang! Clatter! And the {thing} lay on the floor, broken.
paragraph
beat
- "Oh, no!" whispered {hero}. {His} {elder} loved the {thing} so much!
- {Hero} turned pale. "What have I done?" {he} thought.
- {Hero} stood still as a statue. Nobody had seen it.
beat
- {He} was so scared that {he} {hide}.
- "Perhaps nobody will notice," {he} thought. Quickly {he} {hide}.
- {He} listened. Nobody was coming. So {he} {hide} and tiptoed away.
beat
- At dinner, {he} could not eat. There was a stone in {his} stomach.
- That night {he} could not sleep. {He} turned left, and {he} turned right.
- "Have you seen my {thing}?" asked {his} {elder}. "No," said {hero}, and {his} ears became hot.
paragraph
beat
- {Hero} talked about it with {a_pal}. "A secret like that gets heavier every day," said {pal}.
- The next day {he} met {a_pal} and told {pal_him} everything. "Tell the truth," said {pal}. "It
  hurts for a minute, but then it is over."
- "You look awful," said {a_pal} the next morning. When {pal} had heard the story, {pal_he} said, "I
  think you know what to do."
beat
- {Hero} took a deep breath and went to {his} {elder}. "I broke your {thing}, and I hid it," {he}
  said. "I am so sorry."
- So {name} went home and told {his} {elder} the whole truth. {His} voice was very small.
- At last {name} said, "It was me. I broke the {thing}." Then {he} waited and looked at {his} feet.
paragraph
beat
- {His} {elder} was silent for a moment. "I am sad about the {thing}," {elder_he} said. "But I am
  proud that you told me."
- "I knew it," said {his} {elder}. "I was only waiting for you to tell me." And {elder_he} was not
  angry at all.
- {His} {elder} took {him} in {elder_his} arms. "A {thing_word} can be mended," {elder_he} said.
  "Trust is harder to mend."
beat
- Together they glued it, piece by piece. It had a few cracks, but now it was special.
- {Hero} saved {his} coins and helped {his} {elder} to buy a new one.
- That evening they mended it at the table, and {name} held the lamp.
beat
- {Hero} felt as light as a feather. The truth is always lighter than a lie.
- {After} {name} told the truth, even when it was hard.
- And that night, {he} slept very well.

rule thing_word
- thing
- broken thing

plot seed home child animal grown
cast who ; where ; plant ; bloom
= child animal old robot ; home ; sunflower ; a flower as big as a dinner plate, and it always
  looked at the sun
= child animal old robot ; home ; pumpkin ; a pumpkin so round and heavy that three friends had to
  carry it
= child animal old ; home ; tomato ; nine round tomatoes, as red as a fire engine
= child animal old robot ; home ; bean ; a vine that climbed up to the roof, with beans as long as a
  hand
= child animal old ; home ; strawberry ; seven strawberries, sweet and red
= child old robot ; home ; rose ; a rose that was dark red and soft as velvet
beat
- One [spring|windy|rainy] morning, {name} found a tiny seed in {his} pocket.
- One day, {a_pal} gave {name} a small brown seed. "Take good care of it," said {pal}.
- At the end of winter, {name} got a seed from {his} {elder}. "This will be {a plant} one day,"
  {elder_he} said.
beat
- {He} dug a little hole behind the house, put the seed into it, and covered it with earth.
- {Hero} planted it in a clay pot and gave it some water.
- {He} chose the sunniest corner of the yard and planted it there.
paragraph
beat
- The next day {name} ran outside. But there was nothing to see.
- Every morning {he} looked, and every morning there was only brown earth.
- A day went by, then two, then a week. Nothing happened.
beat
- "Why does it not grow?" asked {hero}. {He} wanted to dig it up and look.
- "Grow, grow, grow!" {he} shouted at the brown earth. It did not help.
- "It must be a bad seed," said {hero}, and {he} stamped {his} foot.
beat
- "Do not dig it up," said {a_pal_again}. "The seed is busy under the ground. You cannot see it, but
  it is working."
- "You need patience," said {his} {elder}. "Good things grow slowly."
- {His} {elder} smiled. "Did you learn to walk in one day?" {elder_he} asked. {Hero} shook {his}
  head.
paragraph
beat
- So {name} waited. {He} watered the seed every morning, and when the nights were cold, {he} covered
  it with straw.
- {Hero} sang to the seed, and when it was dry, {he} brought it water. {He} waited and waited.
- {Hero} pulled out the weeds and chased away the [snails|crows]. It was hard to wait, but {he} did.
beat
- Then, one morning, a green tip looked out of the earth!
- And one day there it was: a tiny leaf, as green as could be. {Hero} danced around it.
- At last two small leaves came up. "Hello, little {plant}!" said {hero}.
beat maybe
- Once a storm bent it, and {name} tied it to a stick.
- A hungry rabbit came by, but {name} built a fence around it.
- It grew a little every day, so slowly that one could not see it.
paragraph
beat
- By the end of the summer, {he} saw what had become of it: {bloom}.
- Weeks and months went by. And then there it was, {bloom}.
- When the time was right, the plant gave {him} a wonderful gift: {bloom}.
beat
- "That was worth the wait," said {hero}.
- {His} {elder} came to look. "You were patient," {elder_he} said, "and this is your reward."
- Everyone who came by stopped and stared.
beat
- {Hero} kept the new seeds and gave one to each of {his} friends. "Be patient," {he} told them.
- {Hero} had learned that you cannot hurry {a plant}, but you can care for it.
- {After} {name} knew that waiting is easier when you do something kind each day.

rule a_pal_again
- a neighbor
- an old gardener
- a wise old farmer

plot astray errand child animal grown
cast who ; where ; lure ; mark
= child animal ; woods ; a blue butterfly ; [the big oak|the fallen tree|the stream]
= child animal robot ; hill ; a [goat|bird] with a strange call ; [the tall rock|the thorn bush|the
  little chapel]
= child animal ; meadow ; a hopping grasshopper ; [the scarecrow|the ditch|the lone tree]
= child robot ; market ; the sound of a drum ; [the clock tower|the well|the church steps]
= child robot ; harbor ; a green parrot ; [the lighthouse|the crane|the blue ship]
= child animal ; river ; a floating feather ; [the mill|the bridge|the bent willow]
= child animal robot ; woods ; a trail of tiny footprints ; [the hollow tree|the mossy rock|the
  pond]
beat
- Soon {he} noticed {lure}. {He} followed it a little way, and then a little more.
- Then {lure} made {him} curious. {He} followed it without looking where {he} was going.
- "Oh, how lovely!" said {hero} when {he} noticed {lure}. {He} followed it, this way and that way.
beat
- When {he} looked up, {he} did not know where {he} was.
- Suddenly everything looked different. {Hero} was lost!
- At last {he} stopped and turned around. Nothing looked the way it had before.
beat maybe
- The shadows grew long, and it was getting late.
- It was getting cold, and the sun was low.
- {He} called, but only the echo answered.
paragraph
beat
- {He} went to the left, and {he} went to the right, but every way looked the same.
- {He} tried to go back, but soon {he} was in the same spot again.
- {Hero} began to run, but that made it worse.
beat
- "I want to go home," {he} sobbed.
- {cried}
- "Hello? Can anybody hear me?" called {hero}.
paragraph
beat
- {meet} "Are you lost?" asked {pal}. {Hero} nodded and wiped {his} eyes.
- "Who is crying there?" asked a gentle voice. It was {a_pal}.
- {meet} "You are a long way from home," said {pal}. "I do not know the way," said {hero}.
beat
- "When you are lost, stay calm and look for something you know," said {pal}. "What did you see on
  your way?"
- "Think," said {pal}. "What was the last thing that you remember?"
- "Do not worry," said {pal}. "I know every path here. What did you pass before you got lost?"
beat
- {Hero} thought hard. "I came past {mark}!" {he} said. "I know where that is," said {pal}.
- "There was {mark}," said {hero}. "Very good!" said {pal}. "Then it is not far."
- {Hero} closed {his} eyes and remembered {mark}. "Then we must go this way," said {pal}.
paragraph
beat
- {Pal} took {name} there, and from there {name} knew the way.
- They walked side by side until they saw {mark}. Then {name} laughed with relief.
- Step by step they found {mark}, then the path, and at last the lights of home.
beat
- {His} {elder} was already looking for {him} and held {him} tight. "I was so worried!" {elder_he}
  said.
- {thanks} Then {he} ran into the arms of {his} {elder}.
- At home, {his} {elder} gave them both [hot soup|warm milk|pancakes].
beat
- "Next time I will look back while I walk," said {hero}, "so that I know the way home."
- {After} {name} never wandered off without telling anyone.
- {Hero} had learned to stay calm and to ask for help when {he} was lost.

plot gift home child animal grown
cast who ; where ; plan ; made ; need
= child animal ; home ; a silk scarf ; a necklace of [acorns|shells|berries] ; string
= child ; home ; a music box ; a song with three verses ; a tune
= child animal ; home ; a big cake ; a tiny pie with one candle ; flour
= child robot ; home ; a painting in a golden frame ; a picture of the whole family ; paint
= child animal robot ; home ; a soft chair ; a cushion filled with [feathers|dry grass|wool] ; cloth
= child robot ; home ; a gold watch ; a sundial made of a stick and twelve stones ; a good round
  stone
= child animal ; home ; a bunch of roses ; a wreath of wild flowers ; ribbon
beat
- It was almost the birthday of {his} {elder}, and {name} wanted to give {elder_him} something
  special.
- "Tomorrow is my birthday," said {his} {elder}. {Hero} had not thought of a present yet!
- {His} {elder} had been working hard and looked tired. {Hero} wanted to give {elder_him} a present.
beat
- "I will buy {plan}," {he} thought. But when {he} counted {his} coins, there were only
  [two|three|four].
- In a shop window {he} saw {plan}. It was perfect, but it cost far too much.
- {He} dreamed of {plan}. But {his} money box was empty.
paragraph
beat
- {Hero} walked through the village with {his} head down.
- "Without money I cannot give anything," said {hero}. {cried}
- {He} asked {himself} what to do. {He} thought until {his} head hurt.
beat
- {meet} "What are you thinking about?" asked {pal}.
- {meet} "You look so serious," said {pal}. "Tell me about it."
beat
- {Hero} explained. "The best presents do not come from a shop," said {pal}. "What can you make with
  your own hands?"
- "I have no money for a present," said {hero}. "But you have [time|good hands|a clever head]," said
  {pal}. "That is worth more."
- When {pal} heard about it, {pal_he} laughed. "Make something yourself! Nobody else can give that."
beat
- "I could make {made}!" said {hero}. "I only need {need}." "I can give you that," said {pal}.
- Suddenly {name} had an idea. {He} would make {made}. {Pal} gave {him} {need}, and {name} ran home.
paragraph
beat
- {He} worked in secret, behind a closed door. It was not easy, and once {he} had to start again.
- All evening {he} worked by the light of a candle.
- {He} worked until late at night. {He} made mistakes, but {he} did not stop.
beat
- In the morning, {name} gave {his} {elder} the present. It was {made}.
- "Close your eyes," said {hero} the next day. When {his} {elder} opened them again, there it was:
  {made}.
- With a red face, {name} held out {his} gift. "It is {made}," {he} said. "I made it myself."
paragraph
beat
- {His} {elder} could not speak for a moment. "This is the most beautiful present of my life,"
  {elder_he} said.
- Tears of joy came into the eyes of {his} {elder}. "You made this for me?" {elder_he} asked.
- {His} {elder} laughed and hugged {him}. "I would not trade it for {plan}," {elder_he} said.
beat
- {Hero} understood that love is the best part of any gift.
- {Hero} went and told {pal}, and they were both {glad}.
- {After} {name} made all {his} presents with {his} own hands.

plot grumpy place child animal grown
cast who ; where ; grump ; reason ; deed
= child animal ; woods hill ; troll ; a thorn was in his foot ; pulled out the thorn
= child animal ; lake river ; old fisherman ; he had not caught a fish for a month ; showed him
  where the fish liked to sleep
= child ; market ; cobbler ; nobody had said good morning to him for years ; said good morning to
  him every day
= child animal ; garden orchard ; gardener ; the crows had eaten all his seeds ; helped him to make
  a scarecrow
= child robot ; harbor beach ; captain ; his ship had a hole and could not sail ; helped him to mend
  it with boards and tar
= child robot ; park ; watchman ; he was cold and had no one to talk to ; brought him hot tea and
  sat with him
= child animal robot ; farm meadow ; giant ; everyone ran away when they saw him ; stayed and shook
  his big finger
beat
- A grumpy {grump} lived there. Everybody was afraid of him.
- Near the path sat {a grump} with a face like a thundercloud.
- People said that a bad-tempered {grump} lived there, and that one should not talk to him.
beat
- "Go away!" he growled when he saw {name}. "I do not like visitors!"
- "What do you want here?" shouted the {grump}. {Hero} jumped back.
- "Leave me alone!" the {grump} roared, and the birds flew up from the trees.
paragraph
beat
- {Hero} ran off, and {his} heart was pounding. On {his} way {he} met {a_pal}.
- {Hero} walked away quickly. {A_pal} was standing nearby and had heard it.
- {Hero} was hurt. "I did nothing wrong," {he} said to {a_pal}, who was passing by.
beat
- "Nobody is angry without a reason," said {pal}. "Have you asked him what is wrong?"
- "Perhaps he is only unhappy," said {pal}. "Anger is often sadness in a big coat."
- "Try it with kindness," said {pal}. "It opens more doors than a key."
beat
- {Hero} thought about it. Then {he} gathered all {his} courage and went back.
- "I will try," said {hero}, though {his} knees were weak.
- That made sense to {name}. {He} turned around and went back, step by step.
paragraph
beat
- "Excuse me," said {hero}. "Why are you so angry?" The {grump} stared at {him}. Nobody had ever
  asked him that.
- "I brought you a [bun|pear|flower]," said {hero}. "Are you all right?" The {grump} opened his
  mouth and closed it again.
beat
- Then the {grump} told {name} the reason. It was simple: {reason}.
- "Well," he mumbled. And then it came out that {reason}.
- A big tear rolled down his nose. {Hero} learned that {reason}.
beat
- So {name} {deed}.
- "We can do something about that," said {hero}. And {he} {deed}.
- {Hero} did not laugh. Together with {pal}, {he} {deed}.
paragraph
beat
- The {grump} smiled for the first time in years. It was a crooked smile, but a real one.
- "Nobody has ever been so kind to me," said the {grump}, and his voice was soft now.
- And what happened then? The {grump} began to laugh, so loudly that the windows shook.
beat
- {After} the {grump} waved whenever {name} came by, and nobody was afraid of him anymore.
- {Hero} learned that a kind question can melt a cold heart.
- They became good friends, and the {grump} told the best stories in the whole country.

plot noise home child animal grown
cast who ; where ; noise ; guess ; truth
= child animal ; home ; tap, tap, tap ; a woodpecker with a hammer ; a branch that knocked on the
  window in the wind
= child animal old ; home ; scratch, scratch, scratch ; a monster with long claws ; a hungry little
  hedgehog at the back door
= child old robot ; home ; drip, drop, drip ; somebody crying in the attic ; a hole in the roof, and
  the rain came in
= child old ; home ; hoo, hoo, hoo ; a ghost in a white sheet ; a young owl that had lost its way
  and sat in the chimney
= child animal robot ; home ; rattle, rattle, clank ; a robber with an iron chain ; a raccoon with
  its head in a tin can
= child robot old ; home ; squeak, squeak, squeak ; a rusty giant ; a family of mice that was having
  a party
= child animal ; home ; bump, bump, bump ; a giant on the stairs ; an apple that rolled from step to
  step
beat
- One [dark|stormy|cold|moonless] night, {name} lay in bed and could not sleep.
- It was late at night, and everyone was asleep. Only {name} was awake.
- One night {name} woke up with a start.
beat
- There was a noise. "{Noise}," it went.
- "{Noise}!" What was that? {Hero} held {his} breath.
- At first it was quiet. But then {he} heard it: "{noise}."
paragraph
beat
- "Is it {guess}?" {he} thought, and {he} pulled the blanket over {his} head.
- {Hero} imagined {guess}. {His} hair stood on end.
- "Perhaps it is {guess}," {he} whispered. It was quiet for a moment, and then it began again.
beat
- {He} wanted to call for help, but no sound came out of {his} mouth.
- {He} counted to twenty. The noise did not stop.
- {He} hid under the bed, but there it was even louder.
beat
- At last {he} crept to {a_pal}, who was staying as a guest. "Did you hear that?" {he} whispered.
- {A_pal} was visiting and slept in the next room. {Hero} went and woke {pal_him} up. "There is
  something out there!" {he} said.
paragraph
beat
- "Let us go and look," said {pal}. "A noise is only scary when you do not know what it is."
- {Pal} lit a candle. "We will find out together," {pal_he} said.
- "I am scared too," said {pal}, "but I am also curious. Come!"
beat
- They tiptoed through the dark, closer and closer. "{Noise}!" And then they saw what it was.
- They walked on the tips of their toes. {Hero} held on to {pal}. Then {he} lifted the light.
- Slowly they went on. Now the noise was very near. They counted to three and looked.
beat
- There was no danger at all. It was {truth}!
- It was not {guess}. It was only {truth}!
- What they found was {truth}. {Hero} had to laugh.
paragraph
beat
- "And that was all?" said {hero}. "That was all," said {pal}, and they laughed until they cried.
- "Poor thing, I was more afraid of my own thoughts," said {hero}.
- "I am glad that we looked," said {hero}. "Otherwise I would still be under the blanket."
beat
- {He} went back to bed, and soon {he} was fast asleep.
- They drank warm milk in the kitchen, and then they slept until late in the morning.
- {After} {name} was not afraid of noises in the night. {He} got up and looked.
beat maybe
- Many things are scary only until you turn on the light.
- And in the morning, they told the story at breakfast, and it became longer every time.

plot sick home child animal grown
cast who ; where ; chore ; gift
= child animal ; home ; feed the [hens|geese] ; a bowl of hot soup
= child animal ; home ; fetch water from the well ; a cup of tea with honey
= child robot ; home ; sweep the floor ; a bunch of daisies
= child robot ; home ; wash the dishes ; a plate of toast
= child robot ; home ; water the garden ; a drawing of a big yellow sun
= child animal ; home ; bring in the firewood ; an apple, cut into small pieces
beat
- One morning, {his} {elder} did not get up. "I have a cold," {elder_he} said. "My head is hot."
- One day {his} {elder} was ill and had to stay in bed.
- "Achoo!" That was the first thing that {name} heard that morning. {His} {elder} was sick.
beat
- "But who will do the work today?" {elder_he} asked. "I will," said {hero}. "You must rest."
- "Stay in bed," said {hero}. "Today I am going to take care of you."
- {Hero} put another pillow behind {elder_his} back. "I can do everything," {he} said proudly.
paragraph
beat
- First {he} wanted to {chore}. But it was harder than {he} had thought.
- {He} ran off to {chore}. But in a hurry, things go wrong, and soon everything was a mess.
- "How hard can it be to {chore}?" thought {hero}. It was very hard indeed!
beat
- {He} slipped, and there was a big splash. Now {his} [feet|clothes] were wet too.
- {He} tried to do three things at once, and none of them got done.
- By noon {he} was so tired that {he} had to sit down on the steps.
beat
- {meet} "You look as if you need a hand," said {pal}.
- {meet} "One thing after another," said {pal}. "That is how it is done."
- {A_pal} looked over the fence. "Shall I help you?" asked {pal}. "Please do," said {hero}.
paragraph
beat
- With {pal} it went much better. They [sang|joked|whistled] while they worked, and soon they were
  done.
- {Pal} showed {him} how to {chore}. After that, it was easy.
- {Pal} did one half, and {name} did the other. Before noon the house was in order.
beat
- Then {name} made something for {his} {elder}: {gift}.
- "And now the most important thing," said {hero}. {He} carried {gift} to the bed.
- In the afternoon, {name} knocked softly and brought {his} {elder} {gift}.
paragraph
beat
- "You are the best medicine," said {his} {elder}, and {elder_he} smiled.
- {His} {elder} looked around. "Did you do all this?" {elder_he} asked. "A friend helped me," said
  {hero}.
- "I feel better already," said {his} {elder}.
beat
- The next day {his} {elder} was well again. "Now I know how much you do every day," said {hero}.
- {Hero} learned how much work there is in a day, and how good it feels to help.
- {After} {name} helped a little every day, and not only when somebody was ill.

plot deliver place child animal grown
cast who ; where ; load ; guard ; need
= child animal ; woods hill ; jar of honey ; held it close to {his} chest ; sweeten {elder_his} tea
= child animal ; river lake meadow ; pot of soup ; walked slowly so that nothing would spill ; get
  strong again after a long cough
= child animal ; any ; basket of eggs ; counted them at every corner ; bake a birthday cake
= child robot ; market harbor park ; letter with a red seal ; kept it under {his} hat ; hear news
  from a cousin far away
= child robot ; farm orchard garden ; can of oil ; held it with both hands ; stop the gate from
  squeaking
= child animal old ; hill woods meadow ; warm blanket ; rolled it up and tied it to {his} back ;
  stay warm in the cold nights
= child old ; market park river ; pair of new shoes ; carried them in a box with a ribbon ; dance at
  a wedding
beat
- {He} was on an important errand. {He} had to bring {a load} to {his} {elder}, who lived not far
  from there.
- "Please take this {load} to your {elder}," somebody had told {him}, "and be careful with it."
- {His} {elder} was waiting for {a load}, and {name} had promised to come before
  [noon|supper|sunset].
beat
- {Hero} {guard}. {His} {elder} needed it to {need}.
- {His} {elder} needed it to {need}, so {hero} {guard}.
- {He} {guard}, and {he} sang a marching song: "Left and right, left and right, I will be there
  before night!"
paragraph
beat
- Soon {he} came to a [ditch|puddle|muddy spot] that was as wide as a street. "How shall I get
  across?" {he} wondered.
- Halfway there, the path was blocked by a fallen tree. {Hero} could not climb over it with {his}
  {load}.
- Then {he} came to a place where three paths met, and the sign had fallen down.
- After a while {his} arms were so tired that {he} could not carry the {load} one step farther.
beat
- "I promised to be on time," {he} said, and {he} bit {his} lip.
- {He} put the {load} down and scratched {his} head.
- {He} thought of turning back. But a promise is a promise.
beat
- {meet} "Where are you going with that {load}?" asked {pal}. {Hero} explained it.
- {meet} "That looks heavy," said {pal}. "It is for my {elder}," said {hero}, "and I am stuck."
- {A_pal} was resting nearby. {pal_detail} "Are you in trouble?" asked {pal}. "A little," said
  {hero}.
paragraph
beat
- "I know another way," said {pal}. "It is longer, but it is safe. Follow me."
- "Give me one end," said {pal}, "and you take the other. Then it is only half as heavy."
- {Pal} found a long board and laid it down like a bridge. "After you," {pal_he} said with a bow.
beat
- On the way they talked about [the weather|cheese|their dreams|far countries|birds], and the time
  flew by.
- They went carefully, step by step, and not a thing was lost or broken.
- Once they nearly fell, but they caught each other and giggled.
paragraph
beat
- At last they knocked at the door. "You are just in time!" cried {his} {elder}.
- {His} {elder} was already standing at the gate. "I knew that I could count on you," {elder_he}
  said.
- When {his} {elder} saw the {load}, {elder_he} beamed. "You brought it all that way?" {elder_he}
  asked.
beat
- "I had help," said {name}, and {he} pulled {pal} into the room. They all had [tea|cocoa|cake|plum
  juice] together.
- {Name} was tired, but {he} stood very straight. {Pal} got a cookie, and {name} got two.
- {thanks} "Any time," said {pal}.
beat
- {Name} had learned that a promise is easier to keep when you let others help.
- {After} people trusted {name} with important things.
- It is a fine feeling to keep a promise, thought {name}.

plot brag place child animal grown
cast who ; where ; boast ; fall
= child animal ; woods park orchard ; climb higher than anyone ; got stuck on a thin branch and
  could not get down
= child animal ; hill meadow ; run faster than the wind ; tripped over a root and rolled into a
  ditch
= child animal ; river lake ; jump over the widest stream ; landed in the middle with a mighty
  splash
= child robot ; farm market ; carry more than a donkey ; dropped everything and sat down in a heap
  of cabbages
= robot child ; park harbor garden ; count faster than lightning ; got mixed up at fifty and had to
  begin again
= child animal ; beach harbor ; dig deeper than a mole ; was stuck in the hole up to {his} neck
beat
- {Name} liked to boast. "I can {boast}!" {he} told everyone.
- "Nobody is as good as I am," said {name}. "I can {boast}. You will see!"
- There was one thing about {name} that was not so nice. {He} bragged. "I can {boast}," {he} said
  ten times a day.
beat
- {meet} "Can you really do that?" asked {pal}. "Of course," said {hero}. "I never fail."
- {meet} "It is better to be careful," said {pal}. But {hero} only laughed.
- {A_pal} heard it. {pal_detail} "Maybe you should practice first," said {pal}. "Practice is for
  others," said {hero}.
paragraph
beat
- "Watch me!" {he} shouted. {He} started at once, and {he} {fall}.
- {He} bowed to the left and to the right. Then {he} began. A moment later, {he} {fall}.
- Everybody came to watch. {Hero} waved proudly. And then {he} {fall}!
beat
- Some of the others giggled. {Hero} wished that the earth would swallow {him}.
- It was very quiet. {His} ears turned as red as [tomatoes|beets|poppies].
- "Help!" {he} called in a very small voice.
paragraph
beat
- But {pal} did not laugh. {Pal_he} came and [reached out a hand|helped {him} up]. "Are you hurt?"
  {pal_he} asked.
- {Pal} hurried over at once. "Hold on to me," {pal_he} said, and soon {hero} was safe.
- Only {pal} stayed serious. {Pal_he} helped {him} and brushed the dirt off {his} back.
beat
- "Only my pride," said {hero}. "Why are you nice to me? I was such a [show-off|fool|peacock]."
- "I am sorry that I did not listen," said {hero}. "I talked too much."
- {Hero} looked at the ground. "I cannot do everything," {he} said. "That was silly of me."
beat
- "Nobody can do everything," said {pal}. "I cannot even [whistle|swim|spell my own name|ride a
  pony]." And then they both laughed.
- "You are good at many things," said {pal}. "You do not need to shout about them."
- "Come," said {pal}, "let us practice together, just for fun."
paragraph
beat
- {After} {name} bragged less and listened more, and people liked {him} better.
- {Name} learned that a true friend is there when you fall.
- {Home_say} "Tomorrow I will try again," {he} said, "but I will not tell anyone beforehand."
- And do you know what? Without all that bragging, {name} became better and better every day.

plot team errand child animal grown
cast who ; where ; heavy ; blocked ; tried ; trick
= child animal ; woods ; fallen tree ; lay across the path, and nobody could pass ; pushed with both
  hands ; use a long pole as a lever
= child animal robot ; hill meadow ; round rock ; had rolled in front of the spring, and no water
  came out ; leaned against it ; dig away the earth on one side
= child old robot ; farm market ; hay wagon ; was stuck in the mud up to its axles ; pulled at the
  rope ; put dry branches under the wheels
= child robot old ; beach harbor ; rowing boat ; lay far up on the sand, and the sailors could not
  move it ; pushed from behind ; roll it over round logs
= child old robot ; garden farm ; giant turnip ; was sitting in the ground and would not come out ;
  pulled at its leaves ; pull all together on the count of three
= child animal ; river lake ; old raft ; was jammed under the bridge, and the ducks could not swim
  through ; tugged at the rope ; wait for the next wave and pull at that moment
beat
- But there was trouble that day. {A heavy} {blocked}.
- When {he} got there, {he} saw a crowd. "Look at that!" somebody said. {A heavy} {blocked}.
- On the way {he} stopped in surprise. {A heavy} {blocked}.
beat
- "I am strong," said {name}. {He} {tried}. The {heavy} did not move an inch.
- {Name} spat into {his} hands and {tried}. Nothing happened.
- "That should be easy," {he} said. {He} {tried} until {he} was red in the face. It was no use.
paragraph
beat
- {meet} "Let me try," said {pal}. But the {heavy} did not move for {pal} either.
- {meet} "May I help?" asked {pal}. They tried it together, but even two were not enough.
- {A_pal} came to help. {pal_detail} They groaned and puffed, but the {heavy} stayed where it was.
beat
- "We need more help," said {hero}. {He} called [the baker|a nurse|two brothers] and [a soldier|an
  old sailor|three sisters], and they all came.
- {Pal} whistled, and soon the neighbors came running from all sides.
- Then they asked everyone who passed by, the big ones and the small ones.
beat
- But everyone pulled in a different direction and shouted at the others. What a mess!
- "I am the boss!" cried one. "No, I am!" cried another. And so nothing got done.
- They pushed and pulled, but never at the same time.
paragraph
beat
- "Stop!" shouted {hero}. "I have an idea. We must {trick}."
- Then {pal} whispered something to {name}, and {hero} climbed on a box. "Listen!" {he} called. "Let
  us {trick}!"
- {Hero} had been thinking. "It is not enough to be strong," {he} said. "We have to {trick}."
beat
- So they did. "One, two, three, heave!" The {heavy} creaked, and it moved!
- Everybody took a place, and {name} gave the signal. Slowly, very slowly, the {heavy} began to
  move.
- They tried it once. They tried it twice. And the third time, it worked!
beat
- They all cheered and threw their [hats|caps] into the air.
- {Pal} danced with {name}, and somebody played the [drum|fiddle|harmonica].
- Then they all sat down to rest, and somebody brought [lemonade|sandwiches|watermelon|sausages] for
  everyone.
paragraph
beat
- {Name} learned that many hands can do what one cannot.
- "None of us could have done it alone," said {name}, and everyone nodded.
- {After} when something was too hard for one, {name} said, "Let us do it together!"
"""
