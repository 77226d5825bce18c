"""English text tables."""

from axk1.train.problems.types import Pool, Tables

TABLES = Tables(
    language="en",
    names=Pool(
        train=(
            "Mia",
            "Tom",
            "Anna",
            "Ben",
            "Lucy",
            "Sam",
            "Emma",
            "Jack",
            "Nora",
            "Max",
            "Ella",
            "Leo",
            "Ruth",
            "Paul",
        ),
        heldout=("Olga", "Felix", "Wendy", "Oscar", "Helen", "Victor"),
    ),
    items=tuple(
        {"item": item}
        for item in "apples books coins pencils stickers marbles cards stamps eggs shells buttons cookies".split()
    ),
    number_answer="The answer is {v}.",
    list_answer="The order is {v}.",
    weekday_answer="The day is {v}.",
    weekdays=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    arithmetic=Pool(
        train=(
            "{e}=?",
            "{e}=",
            "{e} = ?",
            "{e}",
            "What is {e}?",
            "what is {e}",
            "Calculate {e}.",
            "Please calculate {e}.",
            "How much is {e}?",
            "Compute {e}.",
            "Find the value of {e}.",
            "Can you tell me what {e} is?",
            "What do you get for {e}?",
            "Solve: {e}",
        ),
        heldout=(
            "{e} ?",
            "Tell me what {e} is.",
            "Can you calculate {e}?",
            "What is the value of {e}?",
            "Please find {e}.",
            "Please tell me how much {e} is.",
        ),
    ),
    follow_up={
        "add": Pool(
            train=("Now add {n}.", "Add {n} to that.", "And plus {n}?", "What if you add {n}?", "Please add {n} more."),
            heldout=("Now please add {n}.", "And if you add {n} to that?"),
        ),
        "subtract": Pool(
            train=(
                "Now subtract {n}.",
                "Subtract {n} from that.",
                "And minus {n}?",
                "What if you subtract {n}?",
                "Please subtract {n}.",
            ),
            heldout=("Now please subtract {n}.", "And if you subtract {n} from that?"),
        ),
    },
    opening=Pool(
        train=(
            "{name} has {n} {item}.",
            "{name} starts with {n} {item}.",
            "In the morning {name} has {n} {item}.",
            "There are {n} {item} on the table of {name}.",
            "{name} owns {n} {item}.",
            "{name} keeps {n} {item} in a bag.",
            "At first {name} has {n} {item}.",
            "At home {name} has {n} {item}.",
            "{name} has a bag with {n} {item}.",
            "On Monday {name} has {n} {item}.",
        ),
        heldout=(
            "At first there are {n} {item} in the bag of {name}.",
            "{name} has {n} {item} on the table.",
            "In the morning {name} starts with {n} {item}.",
            "{name} keeps {n} {item} at home.",
        ),
    ),
    opening_packed=Pool(
        train=(
            "{name} has {n} boxes with {m} {item} each.",
            "{name} has {n} boxes of {m} {item}.",
            "{name} owns {n} bags with {m} {item} in each.",
            "{name} starts with {n} bags of {m} {item}.",
            "There are {n} boxes on the table of {name}, each with {m} {item}.",
            "At home {name} has {n} bags, each with {m} {item}.",
        ),
        heldout=(
            "{name} keeps {n} boxes of {m} {item} at home.",
            "In the morning {name} has {n} boxes, each with {m} {item}.",
        ),
    ),
    events={
        "gain": Pool(
            train=(
                "{name} buys {n} more.",
                "Then {name} gets {n} more {item}.",
                "A friend gives {name} {n} {item}.",
                "{name} finds {n} {item}.",
                "Later {name} receives {n} more.",
                "After that {name} wins {n} {item}.",
                "Then {n} more {item} arrive for {name}.",
                "{name} then collects {n} more {item}.",
            ),
            heldout=(
                "Later a friend gives {name} {n} more.",
                "After that {name} buys {n} {item}.",
                "Then {name} finds {n} more.",
            ),
        ),
        "lose": Pool(
            train=(
                "{name} loses {n} of them.",
                "Then {name} gives {n} {item} away.",
                "{name} gives {n} {item} to a friend.",
                "{name} sells {n} of them.",
                "Later {name} uses up {n} {item}.",
                "After that {name} throws away {n}.",
                "Then {n} of the {item} get lost.",
                "{name} then sells {n} {item}.",
            ),
            heldout=(
                "Later {name} gives {n} to a friend.",
                "After that {name} loses {n} {item}.",
                "Then {name} sells {n}.",
            ),
        ),
        "double": Pool(
            train=(
                "Then the number of {item} doubles.",
                "{name} doubles the number of {item}.",
                "Later the number doubles.",
                "After that {name} has twice as many.",
                "Then {name} doubles that number.",
                "Now {name} has twice as many {item} as before.",
            ),
            heldout=("Later {name} has twice as many {item}.", "After that the number of {item} doubles."),
        ),
        "boxes": Pool(
            train=(
                "{name} buys {n} boxes of {m}.",
                "Then {name} gets {n} boxes with {m} {item} each.",
                "A friend gives {name} {n} bags of {m} {item}.",
                "Later {name} finds {n} bags with {m} {item} in each.",
                "After that {name} receives {n} boxes, each with {m}.",
                "Then {n} bags with {m} {item} each arrive for {name}.",
            ),
            heldout=(
                "Later {name} buys {n} bags of {m} {item}.",
                "Then a friend gives {name} {n} boxes with {m} in each.",
            ),
        ),
        "share": Pool(
            train=(
                "{name} shares all of them equally among {n} friends.",
                "Then {name} shares the {item} equally among {n} children.",
                "{name} divides all the {item} equally among {n} friends.",
                "Then all of them are divided equally into {n} groups.",
                "Later {name} puts all of them equally into {n} boxes.",
                "After that the {item} are shared equally by {n} people.",
            ),
            heldout=(
                "Later all the {item} are divided equally among {n} people.",
                "After that {name} shares all of them equally among {n} children.",
            ),
        ),
    },
    closing=Pool(
        train=(
            "How many {item} does {name} have now?",
            "How many are there now?",
            "How many {item} are left at the end?",
            "How many {item} are there in total?",
            "What is the number of {item} now?",
            "How many does {name} have in the end?",
        ),
        heldout=(
            "How many {item} are there in the end?",
            "What is the number of {item} at the end?",
            "How many {item} in total does {name} have?",
        ),
    ),
    closing_share=Pool(
        train=(
            "How many are there for each?",
            "How many {item} does each one get?",
            "How many does each get?",
            "What is the number of {item} for each one?",
            "How many {item} are in each share?",
        ),
        heldout=("How many {item} are there for each one?", "How many does each one get?"),
    ),
    labels={"start": "Start", "gain": "Gain", "lose": "Loss", "double": "Double", "boxes": "Boxes", "share": "Share"},
    sentence_gap=" ",
    count_words=(
        ("apple", "pear", "lemon", "plum", "fig"),
        ("red", "blue", "green", "black", "white"),
        ("cat", "dog", "bird", "fish", "horse"),
        ("a", "b", "c", "d", "e"),
    ),
    count_item=Pool(
        train=(
            "How many times does {x} occur in this list: {l}?",
            "How often is {x} in the list {l}?",
            "Count {x}: {l}",
            "List: {l}. How many times do you see {x}?",
            "In the list {l}, how often does {x} occur?",
            "How many {x} are there in: {l}?",
            "Count how often {x} occurs in {l}.",
            "Here is a list: {l}. How many are {x}?",
        ),
        heldout=(
            "Here is a list: {l}. How often do you see {x}?",
            "Count how many times {x} is in this list: {l}",
            "How many times do you see {x} in {l}?",
        ),
    ),
    count_above=Pool(
        train=(
            "How many of these numbers are greater than {x}: {l}?",
            "How many numbers are larger than {x}? {l}",
            "Count the numbers greater than {x}: {l}",
            "List: {l}. How many numbers are above {x}?",
            "In the list {l}, how many numbers are greater than {x}?",
            "Here is a list: {l}. Count the numbers above {x}.",
        ),
        heldout=(
            "Here is a list: {l}. How many are greater than {x}?",
            "Count how many numbers are larger than {x}: {l}",
        ),
    ),
    count_below=Pool(
        train=(
            "How many of these numbers are less than {x}: {l}?",
            "How many numbers are smaller than {x}? {l}",
            "Count the numbers less than {x}: {l}",
            "List: {l}. How many numbers are below {x}?",
            "In the list {l}, how many numbers are less than {x}?",
            "Here is a list: {l}. Count the numbers below {x}.",
        ),
        heldout=(
            "Here is a list: {l}. How many are less than {x}?",
            "Count how many numbers are smaller than {x}: {l}",
        ),
    ),
    list_gap=", ",
    sort_up=Pool(
        train=(
            "Sort these numbers in ascending order: {l}",
            "Sort from smallest to largest: {l}",
            "Put {l} in ascending order.",
            "Arrange these numbers from smallest to largest: {l}",
            "Please sort {l} in ascending order.",
            "Order the numbers {l} from small to large.",
        ),
        heldout=("Please arrange {l} from smallest to largest.", "Put these numbers in order from small to large: {l}"),
    ),
    sort_down=Pool(
        train=(
            "Sort these numbers in descending order: {l}",
            "Sort from largest to smallest: {l}",
            "Put {l} in descending order.",
            "Arrange these numbers from largest to smallest: {l}",
            "Please sort {l} in descending order.",
            "Order the numbers {l} from large to small.",
        ),
        heldout=("Please arrange {l} from largest to smallest.", "Put these numbers in order from large to small: {l}"),
    ),
    kth_small=Pool(
        train=(
            "What is the {k} smallest number in {l}?",
            "Find the {k} smallest number: {l}",
            "Which number is the {k} smallest: {l}?",
            "Here are some numbers: {l}. What is the {k} smallest?",
            "Of {l}, which is the {k} smallest?",
        ),
        heldout=("Here are some numbers: {l}. Find the {k} smallest.", "Which is the {k} smallest number of {l}?"),
    ),
    kth_large=Pool(
        train=(
            "What is the {k} largest number in {l}?",
            "Find the {k} largest number: {l}",
            "Which number is the {k} largest: {l}?",
            "Here are some numbers: {l}. What is the {k} largest?",
            "Of {l}, which is the {k} largest?",
        ),
        heldout=("Here are some numbers: {l}. Find the {k} largest.", "Which is the {k} largest number of {l}?"),
    ),
    median=Pool(
        train=(
            "What is the median of {l}?",
            "Find the median: {l}",
            "Here are some numbers: {l}. What is the median?",
            "Which number is the median of {l}?",
            "Of {l}, which is the median?",
        ),
        heldout=("Here are some numbers: {l}. Find the median.", "What is the median of these numbers: {l}?"),
    ),
    ordinals=("first", "second", "third", "fourth"),
    after=Pool(
        train=(
            "Today is {d}. What day is it in {n} days?",
            "If today is {d}, what day of the week is it {n} days from now?",
            "What weekday comes {n} days after {d}?",
            "It is {d} today. Which day will it be after {n} days?",
            "Which day of the week is {n} days after {d}?",
            "Today is {d}. Which weekday is it {n} days later?",
        ),
        heldout=(
            "If it is {d} today, which weekday is it in {n} days?",
            "It is {d}. What day of the week is it {n} days later?",
            "Today is {d}. Which day comes after {n} days?",
        ),
    ),
    before=Pool(
        train=(
            "Today is {d}. What day was it {n} days ago?",
            "If today is {d}, what day of the week was it {n} days ago?",
            "What weekday comes {n} days before {d}?",
            "It is {d} today. Which day was it {n} days before?",
            "Which day of the week is {n} days before {d}?",
            "Today is {d}. Which weekday was it {n} days earlier?",
        ),
        heldout=(
            "If it is {d} today, which weekday was it {n} days ago?",
            "It is {d}. What day of the week was it {n} days earlier?",
            "Today is {d}. Which day was it {n} days before?",
        ),
    ),
    after_twice=Pool(
        train=(
            "Today is {d}. The test is in {n} days, and the trip is {m} days after the test. What day is the trip?",
            "It is {d} today. In {n} days the work starts, and {m} days later it ends. Which weekday does it end?",
            "Start on {d}, go {n} days later, then {m} days later again. Which day is it?",
            "If today is {d}, what weekday is it {n} days and then {m} days later?",
        ),
        heldout=(
            "It is {d}. In {n} days the trip starts, and {m} days later it ends. What day does it end?",
            "Today is {d}. The work is in {n} days, and the test is {m} days after that. Which weekday is the test?",
        ),
    ),
    forward="Forward",
    back="Back",
)
