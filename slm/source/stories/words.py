"""People, places and common phrases of the embedded stories; ``stories`` explains the format."""

WORDS = """
rule hero child
- girl ; she ; {home_child} ; [little|little|young|small|{trait}] girl
- boy ; he ; {home_child} ; [little|little|young|small|{trait}] boy

rule hero animal
- rabbit ; {gender} ; in a [warm|snug] burrow under a hill ; [little|small|young|white|{trait}]
  rabbit
- fox ; {gender} ; in a den [between two rocks|under an old pine tree] ;
  [little|small|young|red|{trait}] fox
- mouse ; {gender} ; in a tiny [hole behind the bakery|nest of straw in a barn] ;
  [little|tiny|gray|brown|{trait}] mouse
- bear ; {gender} ; in a [deep|cozy] cave on the side of a mountain ; [little|young|brown|{trait}]
  bear
- squirrel ; {gender} ; in a hollow oak tree ; [little|small|red|{trait}] squirrel
- hedgehog ; {gender} ; under a pile of dry leaves ; [little|small|round|{trait}] hedgehog
- duck ; {gender} ; among the reeds of a quiet pond ; [little|small|yellow|{trait}] duck
- kitten ; {gender} ; in a basket on the porch of a farmhouse ; [little|striped|black|{trait}]
  kitten
- puppy ; {gender} ; in a [wooden|blue] kennel beside a farmhouse ; [little|spotted|brown|{trait}]
  puppy
- turtle ; {gender} ; on the muddy bank of a stream ; [little|small|green|{trait}] turtle
- badger ; {gender} ; in a tunnel under the roots of a beech tree ; [little|young|striped|{trait}]
  badger
- raccoon ; {gender} ; in the trunk of a fallen tree ; [little|young|{trait}] raccoon

rule hero old
- old woman ; she ; {home_old} ; [kind|cheerful|gentle|wise] old woman
- old man ; he ; {home_old} ; [kind|cheerful|gentle|wise] old man

rule hero robot
- robot ; {gender} ; in the [dusty|bright|messy] workshop of an inventor ;
  [little|small|shiny|silver|rusty|{trait}] robot

rule gender
- he
- she

rule home_child
- in a small village [near the sea|by a river|among green hills]
- in a [yellow|white|red|blue] house at the end of a quiet street
- on a farm with [cows and hens|sheep and geese|two horses and a goat]
- in a [tall|narrow] house with a [green|purple] door
- above a [bakery|shoe shop|bookshop|flower shop]
- in a [busy|big] town [with a clock tower|near the railway]
- in a cottage [near the woods|with roses around the door|beside an old mill]

rule home_old
- in a [tiny|stone|wooden] cottage at the edge of the village
- in a little house with [blue shutters|a crooked chimney|ivy on its walls]
- next to the old [mill|church|lighthouse|bridge]

rule name child she
- [Lily|Mia|Anna|Rose|Emma|Clara|Ella|Nora|Sara|Lucy|Amy|Zoe|Ruby|Ivy|Molly|Daisy|Maya|Lena|Tina]
- [Julia|Sophie|Alice|Hannah|Grace|Nina|Lola|Eva|Kate|Jane|Leila|Priya|Aisha|Mei|Yuki|Carmen]
- [Olga|Freya|Greta|Heidi|Ingrid|Bella|Penny|Poppy|Stella|Violet|Wendy|Abby|Beth|Chloe|Dora]

rule name child he
- [Tom|Ben|Max|Sam|Tim|Leo|Jack|Finn|Noah|Adam|Oscar|Hugo|Felix|Luke|Peter|Paul|Mark|David]
- [Omar|Ravi|Kenji|Diego|Pablo|Marco|Ivan|Lars|Nils|Otto|Emil|Anton|Simon|Daniel|Jacob|Henry]
- [Billy|Charlie|Eddie|Freddy|George|Harry|Jimmy|Kevin|Liam|Milo|Ned|Owen|Patrick|Robin|Toby]

rule name animal she
- [Hazel|Clover|Willow|Pippa|Dot|Maple|Honey|Fern|Nutmeg|Mimi|Tilly|Cinnamon|Olive|Bramble]
- [Pearl|Sunny|Fluff|Minnie|Ginger|Peach|Bonnie|Luna|Coco|Trixie|Pebble|Juniper|Betty|Winnie]

rule name animal he
- [Pip|Rusty|Bruno|Chip|Scout|Teddy|Basil|Patch|Jasper|Rufus|Barney|Biscuit|Acorn|Buster]
- [Mossy|Ollie|Dusty|Chester|Monty|Rocky|Bertie|Pepper|Waffle|Digby|Norman|Tuck|Alfie|Gus]

rule name old she
- [Martha|Agnes|Edith|Rosa|Matilda|Ruth|Dorothy|Esther|Irene|Helga|Beatrice|Florence]

rule name old he
- [Albert|Walter|Arthur|Ernest|Victor|Samuel|Theodore|Gustav|Harold|Joseph|Leonard|Frank]

rule name robot she
- [Tink|Dottie|Ada|Sparky|Pixel|Zeta|Nova|Echo]

rule name robot he
- [Bolt|Cog|Beep|Zip|Tin|Robbie|Gizmo|Turbo|Klank|Buzz]

rule trait
- kind
- curious
- cheerful
- clever
- gentle
- lively
- friendly
- quiet
- shy
- merry

rule elder child
- [mother|mom|grandmother|grandma|aunt] ; she
- [father|dad|grandfather|grandpa|uncle] ; he

rule elder animal
- [mother|grandmother|aunt] ; she
- [father|grandfather|uncle] ; he

rule elder old
- [neighbor|sister] ; she
- [neighbor|brother] ; he

rule elder robot
- [inventor|teacher] ; she
- [inventor|teacher] ; he

rule helper child she
- {name_she}
rule helper child he
- {name_he}
rule name_she
- [Lily|Mia|Anna|Rose|Emma|Clara|Ella|Nora|Lucy|Zoe|Ruby|Molly|Maya|Sophie|Alice|Hannah|Polly]
rule name_he
- [Tom|Ben|Max|Sam|Leo|Jack|Finn|Noah|Oscar|Hugo|Felix|Peter|Omar|Ravi|Diego|Emil|Andy|Jonas]
rule helper grown she
- [baker|painter|gardener|shepherd|nurse|teacher|librarian|sailor|farmer|weaver|beekeeper]
rule helper grown he
- [baker|painter|gardener|shepherd|postman|carpenter|fisherman|farmer|miller|clockmaker|fiddler]
rule look grown
- [kind|friendly|tall|cheerful|young|old|jolly|patient|gray-haired]
rule look animal
- [kind|friendly|wise|old|small|clever|gentle|cheerful|plump]

rule helper animal woods
- [owl|deer|woodpecker|badger|squirrel|beetle|hedgehog|robin|porcupine]
rule helper animal park
- [pigeon|squirrel|sparrow|dog|cat|swan|blackbird]
rule helper animal beach
- [crab|seagull|seal|pelican|sandpiper]
rule helper animal farm
- [horse|goat|sheep|donkey|pig|calf|sheepdog|swallow]
rule helper animal lake
- [frog|swan|otter|heron|beaver|duck|dragonfly]
rule helper animal garden
- [snail|robin|ladybug|toad|butterfly|caterpillar|wren]
rule helper animal meadow
- [lark|calf|grasshopper|mole|hare|butterfly|pony]
rule helper animal hill
- [marmot|eagle|sheep|hare|donkey|crow]
rule helper animal river
- [beaver|otter|kingfisher|frog|heron|toad]
rule helper animal market
- [cat|dog|pigeon|donkey|parrot|monkey]
rule helper animal orchard
- [blackbird|pig|squirrel|magpie|hedgehog]
rule helper animal harbor
- [seagull|seal|cat|pelican|parrot]
rule helper animal home
- [cat|dog|sparrow|robin|parrot]

rule place any
- woods
- woods
- woods
- park
- park
- beach
- farm
- lake
- garden
- meadow
- hill
- river
- market
- orchard
- harbor

rule place woods
- the woods
rule place park
- the park
rule place beach
- the beach
rule place farm
- the farm
rule place lake
- the lake
rule place garden
- the garden
rule place meadow
- the meadow
rule place hill
- the big hill
rule place river
- the river
rule place market
- the market
rule place orchard
- the orchard
rule place harbor
- the harbor
rule place home
- the kitchen

rule scene woods
- The trees were [tall|thick|old] and the air smelled of [pine|moss|wet leaves].
- The sun shone through the branches and made golden spots on the ground.
- It was cool and quiet there, and soft moss grew on every stone.
- A woodpecker was knocking on a trunk: tap, tap, tap.
- Mushrooms with [red|brown] caps stood along the path like little umbrellas.
- The leaves whispered in the wind as if they were telling secrets.
rule scene park
- Children were [playing on the swings|sliding down the slide|throwing balls], and dogs ran across
  the grass.
- The grass had just been cut, and it smelled [sweet|fresh].
- Pigeons walked around the fountain and looked for crumbs.
- A man was selling balloons of every color beside the gate.
- There was a pond, a sandbox, and a bench under a chestnut tree.
rule scene beach
- The waves rolled in and out, and the sand was [warm|soft|golden].
- White gulls sailed over the water and called to each other.
- Shells and smooth stones lay everywhere, and the air tasted of salt.
- Far away, a ship with white sails crossed the blue water.
- The tide was low, and small pools shone between the rocks.
rule scene farm
- Hens were scratching in the dust, and a pig was sleeping in the mud.
- The barn was [full of hay|big and red], and swallows flew in and out of it.
- It smelled of hay and [fresh milk|warm bread].
- A rooster stood on the fence and crowed as loudly as he could.
- Cows were chewing slowly, as if they had all the time in the world.
rule scene lake
- The water was as [smooth|clear] as a mirror, and clouds floated in it.
- Green frogs sat on lily pads, and dragonflies danced above them.
- A wooden boat rocked gently at the end of the dock.
- The reeds rustled softly, and a fish jumped with a splash.
- Little waves licked the shore, and the water sparkled in the sun.
rule scene garden
- Roses, tulips, and [daisies|sunflowers|lilies] were blooming along the path.
- Bees hummed from flower to flower, and the air smelled of [honey|mint|roses].
- There were rows of carrots, peas, and [pumpkins|lettuce|beans].
- A stone fountain bubbled in the middle, and ivy climbed up the wall.
- Dew drops shone on every leaf like tiny diamonds.
rule scene meadow
- The grass was high, and there were [poppies|buttercups|daisies] everywhere.
- Butterflies fluttered around, and crickets chirped in the grass.
- A lark sang high up in the blue sky.
- The wind made long waves in the grass, like a green sea.
- It smelled of clover and warm earth.
rule scene hill
- From the top, one could see [the whole valley|the roofs of the village|all the way to the sea].
- The wind was strong up there, and the clouds looked very near.
- Sheep were grazing on the slope, and their bells rang softly.
- The path was steep and full of stones.
- Yellow flowers grew between the rocks, and the sky was wide and blue.
rule scene river
- The water rushed over the stones and sang a [merry|bubbling] song.
- Silver fish darted to and fro in the clear water.
- Willow branches hung down and tickled the water.
- An old stone bridge led to the other side.
- The river was wide and slow, and a leaf sailed by like a boat.
rule scene market
- There were baskets of [apples|cherries|oranges], wheels of cheese, and jars of honey.
- People were talking, laughing, and carrying heavy bags.
- It smelled of fresh bread, fish, and [flowers|cinnamon|roasted nuts].
- A man was playing the accordion, and coins clinked in his hat.
- The stalls had striped roofs, red and white, green and white.
rule scene orchard
- The branches were heavy with [red apples|yellow pears|purple plums].
- Rows and rows of fruit trees stood in the sunshine.
- Wooden ladders leaned against the trees, and baskets stood below.
- White petals drifted down like snow.
- The grass was full of fallen fruit, and it smelled sweet.
rule scene harbor
- Fishing boats rocked side by side, and ropes creaked.
- The masts of the ships looked like a forest without leaves.
- Nets were drying in the sun, and it smelled of salt and tar.
- A big ship was blowing its horn: toot, toot!
- Sailors were carrying boxes and barrels and singing a loud song.
rule scene home
- It was warm and cozy there.

rule errand woods
- to pick berries
- to look for mushrooms
- to gather pine cones
- to listen to the birds
rule errand park
- to feed the ducks
- to play in the sandbox
- to fly a paper plane
- to sit under the trees
rule errand beach
- to collect shells
- to dig in the sand
- to watch the ships
- to look for smooth stones
rule errand farm
- to buy some eggs
- to visit the animals
- to fetch a jug of milk
- to see the new lambs
rule errand lake
- to watch the frogs
- to throw stones into the water
- to look at the lilies
- to have a picnic on the shore
rule errand garden
- to water the flowers
- to pick some peas
- to watch the butterflies
- to smell the roses
rule errand meadow
- to pick flowers
- to chase grasshoppers
- to lie in the grass
- to watch the clouds
rule errand hill
- to see the view
- to pick wild flowers
- to visit the sheep
- to feel the wind
rule errand river
- to look for pretty stones
- to watch the fish
- to sail a paper boat
- to sit on the old bridge
rule errand market
- to buy some apples
- to buy a loaf of bread
- to look at all the stalls
- to listen to the music
rule errand orchard
- to pick apples
- to gather plums
- to climb the trees
- to collect the fallen pears
rule errand harbor
- to look at the ships
- to buy a fresh fish
- to count the boats
- to wave to the sailors
rule errand home
- to rest

rule spot woods
- under a [big|green] fern
- between the roots of an oak tree
- behind a mossy log
- beside a ring of mushrooms
rule spot park
- under the bench
- behind the slide
- at the foot of the chestnut tree
- beside the fountain
rule spot beach
- behind a big rock
- under some seaweed
- next to a rock pool
- beside an old wooden boat
rule spot farm
- in a pile of hay
- behind the barn
- beside the water trough
- under an old cart
rule spot lake
- among the reeds
- under the wooden dock
- behind a willow tree
- beside a gray stone on the shore
rule spot garden
- under the rose bush
- behind the watering can
- between two pumpkins
- beside the stone wall
rule spot meadow
- in the tall grass
- beside a molehill
- among the poppies
- behind the wooden fence
rule spot hill
- behind a thorn bush
- between two gray rocks
- under a crooked pine tree
- beside the steep path
rule spot river
- under the stone bridge
- among the willow roots
- behind a wet rock
- on the sandy bank
rule spot market
- under a fruit stall
- behind a stack of crates
- between two baskets
- beside the old well
rule spot orchard
- at the foot of a ladder
- behind a wheelbarrow
- in the grass under a plum tree
- beside an empty basket
rule spot harbor
- behind a barrel
- under a fishing net
- between two coils of rope
- beside a rusty anchor
rule spot home
- under the bed
- behind the door

rule nook woods
- in the bushes
- behind every tree
- under the dry leaves
rule nook park
- near the swings
- around the pond
- in the flower beds
rule nook beach
- along the water
- in the sand
- between the beach towels
rule nook farm
- in the hen house
- around the pigsty
- along the fence
rule nook lake
- along the shore
- near the boats
- between the water plants
rule nook garden
- among the vegetables
- along the path
- in the shed
rule nook meadow
- around the flowers
- near the ditch
- along the hedge
rule nook hill
- along the path
- around the rocks
- in the heather
rule nook river
- along the water
- in the mud
- near the old mill
rule nook market
- between the stalls
- around the fountain
- near the bread oven
rule nook orchard
- around the trees
- along the hedge
- near the beehives
rule nook harbor
- along the dock
- around the crates
- near the fish market
rule nook home
- in the cupboard
- on the shelf

rule day
- One day,
- One [sunny|bright|fine|quiet|windy|fresh|lovely] [day|morning|afternoon],
- One [Monday|Saturday|Sunday|Friday] [morning|afternoon],
- One [spring|summer|autumn] day,
- Early one morning,

rule open home
- {intro}

rule intro
- Once upon a time, there was {a who} named {name}. {habit}
- Once upon a time, there lived {a who} named {name}. {He} lived {home}.
- Once there was {a who} called {name}, who lived {home}.
- {Name} was {a who}. {He} lived {home}. {habit}
- {A who} named {name} lived {home}. {habit}
- {Home}, there lived {a who} named {name}. {habit}
- Not so long ago, {a who} named {name} lived {home}.
- {Home} lived {a who}. {His} name was {name}, and {he} loved {love}.
- There was once {a who} whose name was {name}. {habit}

rule open place
- {intro} {day} {name} went to {place}. {scene}
- {intro} {day} {name} [walked|hurried|set out] to {place}. {scene}
- {A who} went to {place}. {His} name was {name}. {scene}
- {A who} went to {place}. {His} name was {name}, and {he} loved {love}. {scene}
- {A who} named {name} went to {place}. {scene}
- {day} {a who} named {name} went to {place}. {scene}
- {day} {a who} went to {place}. {His} name was {name}. {scene}
- {Name} was {a who}. {day} {he} went to {place}. {scene}
- {Name} loved to go to {place}. {scene} {day} {he} went there [again|once more|all alone].

rule open errand
- {intro} {day} {name} went to {place} {errand}. {scene}
- {A who} went to {place} {errand}. {His} name was {name}. {scene}
- {A who} went to {place}. {His} name was {name}. {He} wanted {errand}. {scene}
- {A who} named {name} went to {place} {errand}. {scene}
- {day} {a who} named {name} went to {place} {errand}. {scene}
- {day} {name} said to {his} {elder}, "I am going to {place} {errand}." "[Be home before dark|Have
  fun|Be careful]," said {his} {elder}. So {the_who} set out. {scene}

rule the_who
- the [little|happy|cheerful] {kind}

rule habit
- {He} loved {love}.
- {He} loved {love} and {love_two}.
- Every day, {he} [smiled at|waved to|greeted] everybody {he} met.
- Everybody liked {him}, because {he} was always [kind|polite|cheerful|ready to help].
- What {he} liked best was {love_ing}.
- {He} had [bright|big|dark|clever] eyes and a [warm|merry|shy] smile.
- {He} asked a hundred questions every day.
- {He} had a [drawer|box|shelf] full of [feathers|buttons|maps|postcards|acorns|ribbons|keys].
- {He} was [not very tall|always on the move|often lost in thought|never in a hurry], but {he} had a
  [big heart|sharp mind|good memory|head full of ideas].
- {His} best friend was {his} {elder}, who [told jokes|knew many songs|made the best soup].
- In the [morning|evening], {he} liked to [hum|sit on the steps|look out of the window|water the
  herbs].
- People said that {he} had [a voice like a bell|more ideas than hairs on {his} head|nimble
  fingers].

rule love
- to [bake|paint|hike|climb|read|whistle|gallop around|tell jokes|solve puzzles|hum|daydream]
- to [watch birds|listen to the radio|watch the trains|pick flowers|sleep in the sun|tell riddles]
- to sing in the morning
- to watch the clouds
- to hear stories about [pirates|dragons|giants|the stars]
- to run with the wind
- to make new friends
- to collect [feathers|buttons|pretty stones]
- to look at the moon
- to dance when nobody was watching
- to explore new places

rule love_two
- to laugh
- to play all day
- to learn new things
- to help others
- to dream

rule love_ing
- [listening to stories|telling jokes|drawing pictures|whistling little tunes|counting the stars]
- [playing outside|looking for treasures|sitting in the sun|splashing in puddles]

rule glad
- happy
- glad
- very happy
- full of joy
- delighted

rule cried
- {He} sat down and [cried|began to cry|wept].
- Big tears ran down {his} [cheeks|face].
- {His} [lip|chin] trembled, and {his} eyes filled with tears.
- {He} felt a lump in {his} throat.

rule hero
- {name}
- {name}
- {name}
- {name}
- the {kind}

rule meet
- Just then, {a_pal} came [along|by|around the corner].[| {pal_detail}]
- At that moment, {a_pal} came near.[| {pal_detail}]
- {A_pal} [saw|noticed|heard] {him} and [came closer|stopped].[| {pal_detail}]
- Then {name} met {a_pal}.[| {pal_detail}]

rule detail child
- {Pal} had [freckles|curly hair|red cheeks|long braids|a missing tooth] and wore {clothes}.
- {Pal} was [eating a pear|carrying a bucket|bouncing a ball|chewing on a blade of grass].
- {Pal} lived [next door|near the bridge|by the mill] and was [seven|eight|nine] years old.
- {Pal} had [a skipping rope|a slingshot|a toy boat|a comic book] under {pal_his} arm.
rule clothes
- [a striped shirt|a straw hat|yellow boots|a raincoat|a woolly sweater|a cap with a feather]
- [muddy sandals|a jacket with big buttons|a scarf with stars on it]
rule detail animal
- {Pal} wore [a tiny hat|a checked vest|a bow tie|round spectacles|a silk ribbon], which looked
  [funny|elegant|very smart].
- {Pal} was known for [giving good advice|telling tall tales|being polite|knowing every path].
- {Pal} had just [had breakfast|taken a nap|finished a long journey|come home from a feast].
- {Pal} had [a scratch on the nose|bright little eyes|a voice like a rusty hinge|a gentle voice].
rule detail grown
- {Pal} carried [a basket of eggs|a heavy sack|an umbrella|a lantern|a bundle of wood|a ladder].
- {Pal} had [a deep voice|strong hands|twinkling eyes|a loud laugh|a wrinkled face].
- {Pal} was on the way [to work|to the post office|home|to a wedding|back from the station].
- {Pal} wore [an apron|big boots|a patched coat|a wide hat|thick gloves].

rule coda
- The [moon|evening star] rose above the [roofs|trees|hills], and [all was quiet|the world was at
  peace].
- And if you ever [pass by|go there], you may [see|meet] {name} and {pal} [laughing|sitting]
  together.
- That [evening|night], there was [pumpkin pie|vegetable soup|roast chicken|fresh bread and
  jam|noodle soup] for supper, and it tasted [wonderful|delicious|better than ever].
- {Name} wrote it all down in a [diary|little notebook], so that it would not be forgotten.
- It had been [a long day|quite an adventure|a day to remember], and {name} yawned and
  [stretched|smiled].
- Years later, {name} still [told|remembered] this story [by the fire|on winter evenings|with a
  smile].
- [Crickets chirped|An owl hooted|A dog barked|Bells rang] somewhere far away, and {name} was
  {glad}.
- The end of the day was [golden|pink|calm], and {name} [hummed a song|waved to the sun|felt at
  home].
- {His} {elder} [winked|nodded|chuckled] and said, "[Well done|I am proud of you|Good for you]!"

rule thanks
- "Thank you, thank you!" [said|cried|shouted] {name}.
- "Thank you so much," said {name}. "You are [very kind|a true friend|so clever]."
- "I will never forget this," said {name}. "Thank you!"
- {Name} thanked {pal} with all {his} heart.
- {Name} gave {pal} a big hug.

rule home_say
- That evening, {name} told {his} {elder} all about it.
- When the sun went down, {name} went home with a [smile|happy heart|song].
- {Name} [skipped|danced|ran] all the way home.
- On the way home, {name} [hummed|whistled] a [merry|new|soft] tune.
- At home, {name} could not stop [smiling|talking|beaming].

rule home_end
- That evening, {name} told {his} {elder} all about it.
- When the sun went down, {name} went home with a [smile|happy heart|song].
- That night, {name} fell asleep with a smile.
- {Name} [skipped|danced|ran] all the way home.
- "What a day!" thought {name}, and {he} smiled.

rule after
- From that day on,
- After that,
- From then on,
"""
