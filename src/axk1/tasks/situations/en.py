"""English."""

from axk1.tasks.situations.grammar import Language

LANGUAGE = Language(
    people=tuple(
        "Mia she her|Tom he his|Anna she her|Ben he his|Lucy she her|Sam he his|Emma she her|Jack he his|Nora she her|"
        "Max he his|Ella she her|Leo he his|Ruth she her|Paul he his|My sister she her|My brother he his|"
        "The teacher she her|The farmer he his|My mom she her|Grandpa he his|Carlos he his|Priya she her|Kim she her|"
        "Yuki she her|Omar he his|Zoe she her|My friend he his|The shop owner she her|Uncle Joe he his|"
        "Mrs. Green she her|Mr. Lee he his|A boy he his|A girl she her|Daniel he his|Sophie she her".split("|")
    ),
    people_slots=("who", "he", "his"),
    things=tuple(
        "apple apples|book books|coin coins|pencil pencils|sticker stickers|marble marbles|card cards|stamp stamps|"
        "egg eggs|shell shells|button buttons|cookie cookies|orange oranges|balloon balloons|flower flowers|"
        "ticket tickets|photo photos|cupcake cupcakes|bottle bottles|chair chairs|box boxes|toy toys|pen pens|"
        "rose roses|muffin muffins|candy candies|puzzle puzzles|tomato tomatoes|notebook notebooks|plate plates|"
        "sandwich sandwiches|brick bricks|peach peaches|nut nuts|lamp lamps|tree trees|fish fish|kite kites|"
        "shirt shirts|sheet sheets|bean beans|rock rocks|cup cups|seed seeds|game games|doll dolls|towel towels".split(
            "|"
        )
    ),
    thing_slots=("one", "obj"),
    small=("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    signs={
        "+": ("plus", "plus", "and", "added to"),
        "-": ("minus", "minus", "take away", "less"),
        "*": ("times", "times", "multiplied by", "by"),
        "/": ("divided by", "divided by", "over"),
    },
    ask=(
        "[What is|What's|whats|what does|Calculate|Compute|Work out|Solve|How much is|tell me|Find|Evaluate|] {e}[?|.|]",
        "{e} [equals|is|makes|gives] [what|how much][?|]",
        "[What do you get for|What do I get if I do|I need|Please do|Can you do|Could you work out|Help me with] {e}[?|]",
        "{e}[=|= ?| = ?|=?|?|]",
        "{e}",
    ),
    frames={
        "add": (
            "[What is|What's|Find|Give me|Tell me|I need|Calculate] the [sum|total] of {a} and {b}[.|?|]",
            "[Add|Can you add|Please add|Could you add] {a} [and|to|plus] {b}[ for me| together|][.|?|]",
            "[If I|When you] add {b} to {a}, what [do I get|is the result|comes out]?",
            "[What number is|Which number is] {b} [more|bigger|greater] than {a}?",
        ),
        "add3": (
            "[What is|What's|Find|Give me|I want] the [sum|total] of {a}, {b}[,|] and {c}[?|.|]",
            "[Add up|Add|Please add|Sum up] [the numbers |]{a}, {b}[,|] and {c}[ together|][.|]",
            "{a} [plus|and] {b} [plus|and] {c}[, how much is that|, what's that|][?|]",
        ),
        "subtract": (
            "[Subtract|Take|Take away|Can you subtract] {b} from {a}[.|?|, please.|]",
            "[What is|What's|Find] the difference [between|of] {a} and {b}[?|.|]",
            "[If I|When you] [take|subtract] {b} [away |]from {a}, what [remains|is left|do I get]?",
            "[What number is|What is] {b} [less|smaller] than {a}?",
            "{a} [reduced by|without|and take away] {b}[?|]",
            "What's left [when|if] {b} is [taken|subtracted] from {a}?",
        ),
        "multiply": (
            "[What is|What's|Find|Calculate] the product of {a} and {b}[?|.|]",
            "[Multiply|Can you multiply|Please multiply] {a} [by|with|and] {b}[.|?|]",
            "[If I|When you] multiply {a} by {b}, what [do I get|is the result]?",
            "[How much is|What are|What is] {b} [times|groups of|lots of] {a}?",
        ),
        "multiply2": (
            "[Multiply|Can you multiply|Please multiply] {a} [by|with|and] {b}[.|?|]",
            "[What is|What's] the product of {a} and {b}[?|]",
        ),
        "divide": (
            "[Divide|Can you divide|Please divide|Could you divide] {a} by {b}[ for me|][.|?|]",
            "[If I|When you] divide {a} by {b}, what [do I get|is the result|comes out]?",
            "[How many times does|How often does] {b} [go|fit] into {a}?",
            "Split {a} into {b} [equal |]parts[, how big is each|. How big is each part|][?|]",
        ),
        "double": (
            "[What is|What's|Find|How much is|Calculate] [twice|double|two times] {a}[?|.|]",
            "[Double|Can you double|Please double] {a}[.|?|]",
        ),
        "triple": ("[What is|What's|How much is] [three times|triple] {a}[?|]", "[Triple|Please triple] {a}[.|]"),
        "half": (
            "[What is|What's|whats|Find|How much is] [half of|a half of|half] {a}[?|.|]",
            "[Halve|Please halve|Cut in half:|Take half of] {a}[.|]",
        ),
        "percent": (
            "[What is|What's|How much is|Find|Calculate] {b}[%| %| percent] of {a}[?|.|]",
            "{b}[%| percent] of {a}[ is what| =|][?|]",
        ),
        "bigger": (
            "[How much|By how much] [bigger|larger|greater|more] is {a} than {b}?",
            "[How much|By how much] [smaller|less] is {b} than {a}?",
            "[How much is missing|How far is it|How much do I need to get|What do I add to get] from {b} to {a}?",
            "What [must|do] I add to {b} to [get|make|reach] {a}?",
        ),
        "sub_times": (
            "[Take|Subtract] {b} [away |]from {a}[, then|. Then|, and then|. Now] multiply [the result |that |it |]by {c}[. What do you get?|.|]",
            "Start with {a}, [subtract|take away] {b}, [then |]multiply by {c}. [What do you get?|Result?|What is it?]",
        ),
        "add_times": (
            "[Add {b} to {a}|Add {a} and {b}|Start with {a}, add {b}][, then|. Then|, and] multiply [the result |the sum |that |it |]by {c}[. What do you get?|.|]",
        ),
        "times_add": (
            "[Multiply {a} by {b}|Take {a} times {b}|If I multiply {a} by {b}][ and|, then|, and then] add {c}[, what's the result?|. What do you get?|.|]",
        ),
        "times_sub": (
            "[Multiply {a} by {b}|Take {a} times {b}|If I multiply {a} by {b}][ and|, then|, and then] [subtract|take away] {c}[, what do I get?|. What do you get?|.|]",
        ),
        "average": ("[What is|What's|Find|Calculate] the [average|mean] of {a}, {b}[,|] and {c}[?|.|]",),
        "total2": (
            "{who} [has|owns|found|bought|made|collected|picked|counted] {a} {obj} [and|and then] [{he} [gets|buys|found|made|picked] |]{b} more[ later| in the afternoon| today|]. How many [{obj} |][is that|are there|does {he} have] [in total|altogether|in all|now]?",
            "[There are|I see|I have|We have] {a} [red|small|old|green|sweet] {obj} and {b} [blue|big|new|yellow|sour] [ones|{obj}][ on the table| in the box| at home|]. [How many {obj} are there [altogether|in total|in all|]|What's the total|How many is that]?",
            "{who} [walked|drove|cycled|ran|traveled] {a} [km|miles|kilometers|meters] [on Monday|in the morning|on Saturday|first|yesterday] and {b} [km |miles |][on Tuesday|in the evening|on Sunday|afterwards|today]. [How far is that [in total|altogether]|What is the total distance|How many did {he} do in all]?",
            "{who} [read|wrote|sold|baked|delivered|typed] {a} [pages|letters|cakes|papers] [yesterday|last week|on Friday] and {b} [today|this week|on Saturday]. How many [altogether|in total|in all]?",
            "{who} spent {a} [dollars|euros|bucks] on [food|shoes|a bag] and {b} on [a book|a gift|a hat]. How much [did {he} spend|is that] [in total|altogether]?",
        ),
        "total3": (
            "[A farm|A farmer|The zoo|A farmer in our village] has {a} [cows|pigs|goats], {b} [sheep|horses|ducks][,|] and {c} [hens|rabbits|cats]. How many animals [are there|live there|is that] [altogether|in total|in all|]?",
            "{who} [has|bought|sold|found] {a} {obj}, {b} [cakes|lemons|keys][,|] and {c} [maps|bells|hats]. How many [things|items] [is that|are there|in total|altogether]?",
            "[In|On] [the first|day one], {who} [made|sold|counted] {a} {obj}, then {b}, then {c}. How many [in total|in all|altogether]?",
            "[The bill has|I paid] {a} for [lunch|gas], {b} for [coffee|the bus][,|] and {c} for [a movie|parking]. What's the total?",
        ),
        "left": (
            "{who} [has|had|bought|baked|picked] {a} {obj}[ and|. {he}| but] [eats|ate|lost|gave away|sold|used|broke|threw away|dropped] {b}[ of them|]. How many [{obj} |][are left|remain|does {he} have left|are there now|does {he} still have]?",
            "[There were|There are|We had|I had] {a} {obj} [in the box|on the shelf|in the shop|in the fridge|]. {b} [were sold|were taken|got lost|were eaten|are broken|are gone]. How many [are left|remain|are still there|{obj} are left]?",
            "[My|The|This|{who}'s] book has {a} pages[ and|.] [I'm|I am|{he} is] on page {b}. How many pages [are left|do I still have to read|remain|are missing]?",
            "I [need|want] {a} {obj} [but I have only|and I already have|and have] {b}. How many [more do I need|are missing|more]?",
            "The [trip|road|race] is {a} [km|miles] long[ and|.] {who} [did|drove|ran|has done] {b}[ already| so far|]. How [many are left|far is it still|much is left]?",
            "{who} had {a} [dollars|euros] and spent {b}[ on a gift| at the market|]. How much [is left|money is left|does {he} have now]?",
        ),
        "left2": (
            "{who} [has|had] {a} {obj}, [gives|gave|sold] {b} to [a friend|her cousin|the neighbor] and [loses|lost|ate|kept aside] {c}. How many [are left|remain|does {he} have now]?",
            "[There were|We had] {a} {obj}. {b} [were sold|were eaten] [in the morning|on Monday] and {c} [in the evening|on Tuesday|later]. How many [are left|remain]?",
            "I [have|had] {a} dollars[ and|.] [I |][spent|spend] {b} on [food|a toy] and {c} on [the bus|a drink]. [How much is left|What do I have left]?",
        ),
        "more_than": (
            "{who} [is|weighs|has|scored|owns] {a}[ years old|]. [{his} [brother|sister|friend|cousin]|Ray|The other one] [is {b} years older|has {b} more|weighs {b} more|scored {b} more]. [How old is [he|she]|How many is that|How much is that]?",
            "{who} is {a}[ years old|]. {his} [brother|sister|cousin|dad] is {b} years older. How old is [he|she|{his} brother]?",
            "{who} has {a} {obj}[ and|.] [Ray|Ina|{his} friend] has {b} more [than {who}|than that|]. How many [{obj} |]does [Ray|Ina|the friend|the other] have?",
        ),
        "less_than": (
            "{who} has {a} {obj}[ and|.] [Ray|Ina|{his} friend] has {b} [fewer|less][ than {who}|]. How many [{obj} |]does [Ray|Ina|the friend|the other] have?",
            "{who} is {a}[ years old|][ and|.] {his} [brother|sister|cousin] is {b} years younger. How old is [he|she|the other one]?",
        ),
        "both_more": (
            "{who} has {a} {obj} and [Ray|Ina|{his} friend] has {b} more[ than {who}|]. How many do they have [together|in total|altogether]?",
        ),
        "before_loss": (
            "[After giving away|After losing|After eating|After selling] {a} [{obj}|of my {obj}], [I have|{who} has|there are] {b} left. How many [did I have|were there|did {he} have] [at first|before|at the start|to begin with]?",
            "{who} [gave away|lost|sold|ate] {a} {obj} and [now has|has|is left with] {b}[ left|]. How many [did {he} start with|did {he} have before|were there at first]?",
            "I [spent|paid] {a} dollars and [have|there are] {b} left. How much [did I have|money did I have at first|was it before]?",
        ),
        "before_gain": (
            "{who} had [some|a few] {obj}, [got|found|bought] {a} more and now has {b}. How many [did {he} have|were there] [before|at first|at the start]?",
            "After [buying|getting|finding] {a} {obj}, {who} has {b}. How many [were there|did {he} have] before?",
        ),
        "out_in": (
            "[A bus|The bus|A train|The tram] [has|left with|is carrying|had] {a} [people|passengers][ on board|]. [At the [next|first] stop |][{b} get off and {c} get on|{b} got off and {c} got on|{b} leave and {c} come in]. How many [people |passengers |][are|were] on [the bus|it|board] [now|then|]?",
            "{who} [has|had] {a} {obj}, [lost|gave away|sold|ate] {b}[, and|, then| and then] [got|bought|found] {c}[ more| new ones| for {his} birthday|]. [How many now|How many does {he} have now|Count them now]?",
            "[There were|A jar has|The box holds] {a} {obj}. [The kids|Somebody|We] [took|ate|used] {b} [of them |]and [grandma|dad|someone] [put in|added|brought] {c}[ more| new ones|]. How many [{obj} |]are [there|in it] now?",
        ),
        "in_out": (
            "[A bus|The train|The boat] has {a} people[ on board|]. [{b} get on and {c} get off|{b} more come in and {c} leave]. How many [are on it|people are there] now?",
            "{who} [has|had] {a} {obj}, [buys|got|found] {b} more[, then| and then|, and] [gives|gave|lost|sold|ate] {c}[ away|]. How many [{obj} |][are left|does {he} have|remain][ now|]?",
        ),
        "price": (
            "[A|One|Each] {one} costs {a} [dollars|euros|bucks|cents|pounds]. [How much are {B}|How much for {B} [of them|{obj}|]|What do {B} {obj} cost|What's the price of {B}]?",
            "{obj} [cost|are] {a} [dollars|euros|bucks] each. [How much [do I pay|is it] for {B}|What do {B} cost]?",
            "[What do|How much do] {B} {obj} [cost|come to] at {a} [dollars|cents|euros] [each|apiece|per piece]?",
            "{who} buys {B} {obj} [at|for] {a} [dollars|euros] each. [How much does {he} pay|What is the total|How much is that]?",
        ),
        "price_plus": (
            "[We|I|They] [ordered|bought|got|had] {A} {obj} [at|for] {b} [dollars|euros|bucks] each and [one|a] [salad|drink|bag|soup|lamp] for {c}[ dollars|]. [How much was [it|the bill|everything]|What's the total|How much in total|What do we pay]?",
            "{A} {obj} cost {b} [dollars|euros] each[ and|,] [delivery|a cake|a coffee] costs {c}. [What is the total|How much [is|do I pay] altogether]?",
        ),
        "two_prices": (
            "{who} buys {A} {obj} at {b} [dollars|euros] each and {C} [drinks|hats|bags|cakes] at {d}[ each|]. [How much [is it|does {he} pay]|What is the total]?",
            "{A} [coffees|teas] for {b} each and {C} [cakes|cookies] for {d} each[, how much|: how much|. How much] [is that|altogether|in total]?",
        ),
        "change": (
            "[I|{who}] [paid|pays|pay] [with|with a bill of] {a} [dollars|euros|bucks] for [a|some] [shirt|book|food|hat|lunch] that [cost|costs|was] {b}[ dollars| euros|]. [How much change|What change] [should I get|do I get|is there|comes back]?",
            "The [lunch|book|toy|hat] costs {b} [dollars|euros]. [I give|{who} gives|I pay with] {a}. [How much do I get back|What's the change|How much change]?",
        ),
        "change_times": (
            "[I|{who}] [bought|buys|buy] {B} {obj} [at|for] {c} [dollars|euros] each and [paid|pay|pays] with {a}. [How much change|What's the change|How much comes back]?",
            "{who} has {a} dollars. {he} buys {B} {obj} for {c} each. How much [is left|does {he} have left|money remains]?",
        ),
        "discount": (
            "[The|A|This] [phone|bag|coat|bike|{one}] [costs|is normally|was] {a} [dollars|euros][, but|. Today|, now] it is {b} [off|cheaper|less][ today|]. [What do I pay|How much is it|What's the price now]?",
            "[With|There's] a discount of {b} [dollars|euros] on [a|the] [bag|coat|bike] of {a}[, what do I pay|. What do I pay| how much is it][?|]",
        ),
        "coins": (
            "[I've got|I have|{who} has|There are] {A} [{b}-dollar bills|{b} dollar bills|bills of {b}|coins of {b}] and {C} [{d}-dollar bills|bills of {d}|coins of {d}]. [How much [money |]is that|How much in total]?",
        ),
        "packs": (
            "[Eggs|{obj}] come {a} to a [box|carton|pack]. [We bought|How many are in|I need|{who} gets] {B} [boxes|cartons|packs]. How many [{obj} |][is that|are there]?",
            "[Each|A|One|Every] [box|bag|pack|crate|basket|shelf] [holds|has|contains] {a} {obj}. How many [{obj} |][are in|are there in|fit in] {B}[ of them| boxes| bags|]?",
            "{who} [has|bought|filled] {B} [boxes|bags|packs|baskets] [with|of] {a} {obj}[ each| in each|]. How many [{obj} |][is that|in all|in total|does {he} have]?",
            "[There are|I have] {B} [bags|boxes|groups|tables] with {a} {obj} [each|in each][. How many|, how many] [{obj} |][altogether|in total|are there]?",
        ),
        "packs_plus": (
            "{who} has {B} [boxes|bags|packs] [of|with] {a} {obj}[ each|] and {c} [loose ones|single ones|extra {obj}|more]. How many [{obj} |][is that|in total|altogether]?",
        ),
        "packs_less": (
            "{who} [bought|has] {B} [boxes|bags|packs] [of|with] {a} {obj}[ each|] and [ate|used|lost|sold|gave away] {c}[ of them|]. How many [{obj} |][are left|remain]?",
        ),
        "seats_free": (
            "[A|The] [hall|parking garage|theater|train] has {A} [rows|floors|cars|sections] [with|of] {b} [seats|spaces|places][ each|]. {c} are [taken|full|occupied|sold]. How many [seats |spaces |][are free|are left|are empty]?",
        ),
        "bags": (
            "{who} [made|has|baked|picked] {a} {obj} and [packs|puts] them in [bags|boxes] of {b}. How many [bags|boxes] [does {he} [fill|need]|are there|is that]?",
            "{a} [students|people|kids|guests] [are going|go] on a trip[ and|.] [each|every] [van|car|boat|taxi] [takes|holds|seats] {b}. How many [vans|cars|boats] [do we need|are needed]?",
            "{a} {obj} [are packed|go|fit] {b} to a [box|bag]. How many [boxes|bags]?",
            "How many [teams|groups|boxes|piles] of {b} can [you|we] make [from|with|out of] {a} [kids|{obj}|people]?",
        ),
        "share": (
            "{who} [shares|divides|splits] {a} {obj} [equally |evenly |fairly |][among|between|with] {B} [friends|kids|people|cousins]. How many [does each [one |]get|{obj} for each|per person]?",
            "{B} [friends|children|brothers] share {a} {obj}[ equally| evenly| fairly|]. How many [each|does each get|for each of them]?",
            "[If|When] {a} {obj} are [shared|split|divided] [among|between] {B} [people|kids], how many [does each get|are there for each]?",
        ),
        "share_money": (
            "{B} [friends|people|of us] [split|share] a [bill|dinner|taxi|gift] of {a} [dollars|euros][ evenly| equally|]. [What does each [person |]pay|How much each|How much per person]?",
            "{B} [friends|people] [split|share] a {a} [dollar|euro] [dinner|bill|lunch][ evenly| equally|]. [What does each [person |]pay|How much each]?",
        ),
        "share_rest": (
            "{who} has {a} {obj}, [eats|keeps|loses] {b} and [shares|divides] the rest [equally |][among|between] {C} [friends|kids]. How many does each[ one|] get?",
        ),
        "share_sum": (
            "{who} has {a} [red|big] and {b} [blue|small] {obj} and [puts them in|divides them into|makes] {C} equal [groups|boxes|piles]. How many [are in each|per group|each]?",
        ),
        "unit_price": (
            "{B} {obj} cost {a} [dollars|euros|cents]. [How much is one|What does one [{one} |]cost|What is the price of one|How much per {one}]?",
            "[I|{who}] paid {a} [dollars|euros] for {B} {obj}. [How much is|What did] [one|each][ cost|]?",
        ),
        "times": (
            "{who} has {a} {obj}[ and|.] [Ray|Ina|{his} friend] has {B} times as many. How many [{obj} |]does [Ray|Ina|the friend] have?",
            "[Our cat|A bag|The small box] weighs {a} [kg|kilos|pounds] and [the dog|a chair|the big box] [weighs|is] {B} times [as much|as heavy|heavier]. [How heavy is [it|the dog|the big one]|How much does it weigh]?",
            "[Today|This week] {who} [made|sold|read] {a} {obj}, [tomorrow|next week] {B} times as many. How many [will that be|is that]?",
        ),
        "times_total": (
            "{who} has {a} {obj} and [Ray|Ina|{his} friend] has {B} times as many. How many do they have [together|in total]?",
            "A shop sold {a} {obj} in the morning and {B} times as many in the afternoon. How many [in all|that day|in total]?",
        ),
        "per_day": (
            "{who} [runs|reads|makes|writes|drinks|sells|does] {a} [km|pages|cups|lines|miles|{obj}] [every day|a day|each day|every morning|per day]. How many [in|after|is that in] {B} days?",
            "[If|When] {who} [reads|solves|plants|paints] {a} [pages|{obj}] [a|per|every] [day|hour|week], how many [in|after] {B} [days|hours|weeks]?",
            "A machine makes {a} {obj} [per|an|every] hour. How many [in|does it make in] {B} hours?",
        ),
        "saving": (
            "{who} saves {a} [dollars|euros] [a|every|per|each] [week|month|day]. [After|In] {B} [weeks|months|days] {he} spends {c}. How much [is left|does {he} have]?",
            "{who} earns {a} [dollars|euros] [a|every|per] [week|hour|day] [and works|for] {B} [weeks|hours|days], then [pays|spends] {c}. How much [is left|remains]?",
        ),
        "cut": (
            "A [rope|ribbon|board|wire] is {a} [cm|m|meters|inches] long. [I|{who}] [cut|cuts] off {B} pieces of {c}[ cm|]. How [long is the rest|much is left|much remains]?",
        ),
        "uses": (
            "{who} has {a} {obj} and [uses|needs|eats] {c} [for each|per|every] [shirt|day|cake|kite]. [After|For] {B} [shirts|days|cakes|kites], how many [are left|remain]?",
            "{who} gives {C} {obj} to each of {B} [friends|kids|cousins][ and|.] [had|{he} had] {a}. How many [are left|remain]?",
        ),
        "speed": (
            "[A car|The train|{who}|A ship] [drives|goes|travels|moves] {a} [km|miles] [an|per|each|every] hour. How far [does it go |is that |]in {B} hours?",
            "How far do you [get|go] in {B} hours at {a} [km/h|miles per hour|kilometers an hour]?",
        ),
        "score": (
            "[Our|The home] team [scored|got] {a} [points |][in the first half|first] and {b} [in the second half|then][;|.|,] the other team [scored|got] {c}[ in all|]. [By how much did we win|How many more points do we have|How big is our lead]?",
        ),
        "cooler": (
            "[Yesterday|At noon|In the morning] it was {a} degrees[, today| and now|. Now|, in the evening] it [is|got] {b} [degrees |][cooler|colder|less]. [What's the temperature|How warm is it][ now| today|]?",
        ),
        "warmer": (
            "[Yesterday|At night|In the morning] it was {a} degrees[, today| and now|. Now] it is {b} [degrees |][warmer|hotter|more]. [What's the temperature|How warm is it][ now| today|]?",
        ),
        "class": (
            "[In a class of|Our class has|Of] {a} [students|kids|people][ there are|,] {b} [are |][girls|boys|tall]. How many [boys|girls|others|are not] [are there|]?",
        ),
        "rows": (
            "[A garden|The hall|A field|A wall] has {B} rows [with|of] {a} {obj}[ each|]. How many [{obj} |][are there|is that][ in all|]?",
        ),
        "rectangle": (
            "[What is|What's|Find] the area of a [rectangle|room|field] [of|that is] {a} [m |cm |][by|x] {B}[ m| cm|]?",
            "A [room|garden|field] is {a} m long and {B} m wide. [What's its area|How many square meters is it]?",
        ),
        "border": (
            "A [garden|field|rectangle] is {a} m long and {b} m wide. [How long is the fence around it|What is its perimeter]?",
        ),
        "how_many_more": (
            "{who} has {a} {obj} and [Ray|Ina|{his} friend] has {b}. How many more does {who} have?",
            "[There are|I count] {a} {obj} and {b} [cups|keys|bells]. How many more {obj} [are there|than the others]?",
        ),
        "how_much_dearer": (
            "[A|The] [red|big|new] {one} costs {a} [dollars|euros] and [a|the] [blue|small|old] [one|{one}] {b}. How much [more expensive is the [red|big|new] one|cheaper is the [blue|small|old] one|is the difference]?",
        ),
        "age_in": (
            "[I was|{who} was] born in {a}. How old [am I|is {he}|will {he} be|do I turn] in {b}?",
            "How [old is someone|many years is it] from {a} [to|till|until] {b}?",
            "A [house|bridge|shop] was built in {a}. How old [is|was] it in {b}?",
        ),
        "age_later": (
            "{who} is {a}[ years old|][ now|]. How old [will {he} be|is {he}] in {b} years?",
            "[I'm|I am] {a}[ years old|]. How old will I be in {b} years?",
        ),
        "age_other": ("{who} is {a}[ years old|][ now|]. How old was {he} {b} years ago?",),
        "days_between": (
            "How many days [are there |]from [May|March|June|the] {a}[th|] [to|until] [May|March|June|the] {b}[th|]?",
            "[The trip|The course|It] [starts|begins] on the {a}th and ends on the {b}th. How many days [later is that|between them]?",
        ),
    },
    events={
        "open": (
            "{who} [has|had|starts with|owns|bought|got] {a} {obj}[ at first| in the morning| in a box|].",
            "[There are|There were|I have] {a} {obj} [in the box|on the table|at home|in the shop].",
        ),
        "gain": (
            "[Then|Later|After that|Next|Now|] [{b} more are added|{he} [buys|finds|gets|wins|makes] {b} more|a friend brings {b}|{b} [new ones |]come in].",
        ),
        "lose": (
            "[Then|Later|After that|Next|Now|] [{b} are [gone|sold|eaten|lost|given away]|{he} [gives away|loses|sells|uses|eats] {b}|a friend takes {b}].",
        ),
        "packs": (
            "[Then|Later|After that|] [{c} boxes of {b} arrive|{he} [buys|gets|finds] {c} [bags|packs|boxes] [of|with] {b}[ each|]].",
        ),
        "double": ("[Then|Later|] [the number doubles|{he} doubles them|there are twice as many].",),
        "ask": (
            "How many [{obj} |][are there|are left|does {he} have|is that|remain][ now| in the end|]?",
            "[How many now|What is the number now|Count them]?",
        ),
    },
    other={
        "letter": (
            "How many [{x}'s|{x}s|times {x}|letters {x}] [are there |are |]in [the word |]{w}?",
            "[Count|Please count] [the letter |the |]{x}[s|'s|] in [the word |]{w}[.|]",
            "[In the word|In] {w}, how [often|many times] [does|do you see] [the letter |]{x}[ appear| occur|]?",
            "How [often|many times] [is|does] [the letter |]{x} [in|occur in|appear in|show up in] {w}?",
        ),
        "length": (
            "How many letters [are in|does|are there in|has] [the word |]{w}[ have|]?",
            "[Count the letters [in|of]|How long is the word|Number of letters in] {w}[.|?|]",
        ),
        "up": (
            "[Sort|Order|Arrange|Put in order|Put|Can you sort|Please sort] [these |the numbers |these numbers |]{l} [from smallest to [largest|biggest]|in ascending order|from low to high|in increasing order|, smallest first][.|]",
            "[Sort from low to high|Put these in order from smallest to biggest|Ascending order|Order from small to large|Sort these, smallest first]: {l}[.|]",
        ),
        "down": (
            "[Sort|Order|Arrange|Put in order|Put|Can you sort|Please sort] [these |the numbers |these numbers |]{l} [from [largest|biggest] to smallest|in descending order|from high to low|in decreasing order|, largest first][.|]",
            "[Sort from high to low|Put these in order from biggest to smallest|Descending order|Order from large to small|Sort these, biggest first]: {l}[.|]",
        ),
        "least": (
            "[Which|What] [number |one |][of these |of them |]is [the |][smallest|lowest|least|minimum][ number|][?|:|? ]{gap}{l}[?|]",
            "[What is|What's|Find|Tell me] the [smallest|lowest] [of|number of|number in|among] {l}[.|?|]",
        ),
        "most": (
            "[Which|What] [number |one |][of these |of them |]is [the |][largest|biggest|highest|greatest|maximum][ number|][?|:|? ]{gap}{l}[?|]",
            "[What is|What's|Find|Tell me] the [largest|biggest|highest] [of|number of|number in|among] {l}[.|?|]",
        ),
        "larger": (
            "[Which|What] [number |one |]is [larger|bigger|greater|more][,|:|] {a} or {b}[?|]",
            "{a} or {b}, which [one |]is [bigger|larger|more]?",
        ),
        "smaller": (
            "[Which|What] [number |one |]is [smaller|less|lower][,|:|] {a} or {b}[?|]",
            "{a} or {b}, which [one |]is [smaller|less]?",
        ),
        "is_more": ("Is {a} [greater|bigger|more|larger|higher] than {b}?",),
        "is_less": ("Is {a} [less|smaller|lower] than {b}?",),
        "who_more": (
            "{p} has {a} {obj}[ and|,|.] {q} has {b}. Who has [more|the most|more {obj}]?",
            "{p} [scored|got|ran|read] {a} and {q} {b}. Who [won|has more|did more]?",
        ),
        "who_less": ("{p} has {a} {obj}[ and|,|.] {q} has {b}. Who has [fewer|less|fewer {obj}]?",),
        "day_after": (
            "[Today's|Today is|It is|It's|If today is|Suppose today is] {d}[.|,|] [What|Which|what] day [is it|will it be|comes] [in {n} days|{n} days later|{n} days from now|after {n} days]?",
            "[What|Which] day is {n} days after {d}?",
            "[My appointment|The party|The test|My birthday] is {n} days after {d}. [Which|What] day is [that|it]?",
        ),
        "day_before": (
            "[Today's|Today is|It is|If today is] {d}[.|,|] [What|Which|what] day was [it |]{n} days ago?",
            "[What|Which] day is {n} days before {d}?",
        ),
        "tomorrow": ("[If today is|Today is|It's] {d}[.|,|] what day is [it |]tomorrow?", "What day comes after {d}?"),
        "yesterday": (
            "[If today is|Today is|It's] {d}[.|,|] what day was [it |]yesterday?",
            "What day comes before {d}?",
        ),
        "over": (
            "[If yesterday was|Yesterday was] {d}[.|,|] what day is [it |]tomorrow?",
            "[If today is|Today is] {d}[.|,|] what day is the day after tomorrow?",
        ),
        "clock": (
            "[The movie|A film|The class|A meeting|The train ride|My shift] [starts|begins] at {t} and [lasts|takes] {n} minutes. [When|At what time] [does it end|is it over]?",
            "[It is|It's|Now it is] {t}. What time [is it|will it be] in {n} minutes?",
            "What time is {n} minutes after {t}?",
        ),
        "unit_down": (
            "How many {s} [are in|are|are there in|is|make] {a} {b}?",
            "[Convert|Change|Turn] {a} {b} [to|into] {s}[.|]",
            "{a} {b} [in|to|is how many|equals how many] {s}[?|]",
            "[I waited|It takes|I have|We need] {a} {b}. How many {s} is that?",
        ),
        "unit_mixed": ("How many {s} are {a} {b} and {c} {s}?", "[Convert|Change] {a} {b} {c} {s} [to|into] {s}[.|]"),
        "unknown": (
            "Who [won|invented|painted|wrote|discovered|built] [the [world cup|election|race|radio|telephone|first book]|that song|Hamlet|the tower][ in {y}|]?",
            "[Write|Write me|Can you write|Compose] a [poem|story|song|letter|joke] [about|for] [the moon|love|my dog|spring|a city].",
            "[What is|What's|Tell me] the [capital|population|president|history] of [France|Brazil|Japan|Egypt|Canada][?|.|]",
            "[Why|How] [is the sky blue|do birds fly|does a computer work|do I cook rice|do planes fly|can I sleep better]?",
            "[Tell me|What do you know] about [history|music|the ocean|football|the news|dogs|art][?|.|]",
            "[What's the weather|Will it rain] [today|tomorrow|in Paris|in Seoul]?",
            "[Recommend|Give me|Suggest] a [movie|book|restaurant|recipe|name for my cat][.|]",
            "[Translate|Explain|Summarize] [this text|this article|democracy|gravity|my email][.|]",
        ),
    },
    units=(
        ("hours", "minutes", 60),
        ("minutes", "seconds", 60),
        ("days", "hours", 24),
        ("weeks", "days", 7),
        ("km", "meters", 1000),
        ("kilometers", "meters", 1000),
        ("meters", "centimeters", 100),
        ("m", "cm", 100),
        ("kg", "grams", 1000),
        ("kilograms", "g", 1000),
        ("liters", "milliliters", 1000),
        ("L", "mL", 1000),
        ("dozen", "pieces", 12),
        ("dozen eggs", "eggs", 12),
        ("feet", "inches", 12),
        ("yards", "feet", 3),
        ("years", "months", 12),
        ("dollars", "cents", 100),
        ("cm", "mm", 10),
        ("centuries", "years", 100),
    ),
    aside=(
        "It [is|was] a [sunny|rainy|nice|long] day.",
        "{who} [likes|loves] [music|dogs|tea|the color blue].",
        "The [shop|box|room] is [new|old|very big|green].",
        "[Everyone|{who}] [is|was] [happy|tired|hungry].",
    ),
    before=("Hey, ", "Hi, ", "hello! ", "Please: ", "Quick question: ", "OK, ", "So, ", "Question: ", "hmm, "),
    after=(" Thanks!", " please", " Thank you.", " I forgot.", " Just the number please."),
    yes_no=("Yes.", "No."),
)
