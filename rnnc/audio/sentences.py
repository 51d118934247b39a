"""Sentences for the spoken corpus: our own words, drawn from a small grammar.

A sentence belongs to exactly one split, by a checksum of its text: no text of `test` is ever read in `train`.
"""

import re
import zlib
from collections.abc import Callable

import numpy as np

SPLITS = ("train", "valid", "test")

WHOLE = (
    """
Could you open the window a little, please?|I never said that she borrowed my bicycle.
What time does the last ferry leave?|Thank you, that would be lovely.
Hold on, someone is knocking at the door.|We should measure twice and cut once.
The judge chose a huge orange jersey.|Why would anyone whisper in an empty hall?
Pleasure and leisure rarely measure the same.|Shall we share the cheese, or save it for Sunday?
Boil the oil, then toss in the noisy beans.|How now, said the owl, and down he flew.
Both brothers loathe the southern weather.|Think of three things that thrill you.
Yes, I know exactly what you mean.|Vera heaved five heavy vases over the fence.
Please pass me the pepper and a paper plate.|No, the blue one; the other is broken.
Jack caught a fat cat and patted its back.|Go slowly over the low stone bridge.
Who knew the moon could look so blue?|Bring a warm coat, because the wind is fierce.
Sing a long song while the young king is away.|Good cooks look at books.
We were early, yet the third bird had already left.|Is there fresh air near the square?
Here we cheer for the pioneers.|Maybe they will stay and play a great game today.
I like to ride my white bike at night.|Put the cushion on the wooden stool.
Six slim swimmers slipped past the silver ship.|Zebras graze as the breeze rises.
Which witch watched the wide white wall?|Dad did not dig the deep ditch, did he?
Ten tall tents stood at the top of the track.|Big brown bags bulged beside the boat.
Keep calm, and count the clocks again.|My mother makes marvellous mushroom meals.
Nine nurses knew the new neighbour.|Roaring rivers run round the red rocks.
Little yellow lilies fell along the lane.|Your uncle used to yell at the yachts.
""".strip()
    .replace("\n", "|")
    .split("|")
)

TEMPLATES = (
    "{who} {did} {what} {where}.",
    "{when}, {who} {did} {what}.",
    "{who} {did} {what} {when}, and {clause}.",
    "If {clause}, {then}.",
    "{when}, {clause}, but {clause}.",
    "Did {who} really {do} {what} {where}?",
    "Could you {do} {what} before {clause}?",
    "I think {clause}, because {clause}.",
    "{who} and {who} {did} {what}, although {clause}.",
    "Please {do} {what} {how}.",
    "Nobody {where} wanted to {do} {what}.",
    "{clause}; {who} {did} {what} {how}.",
    "There was {what} {where}, and {who} {did} it {how}.",
    "We would rather {do} {what} than {do} {what}.",
)

SLOTS = {
    "who": """
        the old fisherman|my younger sister|a tired engineer|the village choir|Doctor Shaw
        our neighbour Hugh|every child|the night watchman|a cheerful plumber|Aunt Beatrice
        the chief librarian|one of the judges|George|a curious fox|the whole orchestra
        my favourite teacher|the pilot|a young shepherd|Julia|the grumpy baker|some visitors|Yusuf
        the gardener's cousin|two thin strangers|the captain|a famous violinist|Veronica
        the boy with the yellow hat
    """,
    "did": """
        painted|carried|forgot|measured|borrowed|repaired|noticed|polished|described|hid|chose|washed
        lifted|sold|admired|moved|weighed|shook|covered|found|threw away|photographed|brought|judged
        finished|opened|watched
    """,
    "do": """
        paint|carry|forget|measure|borrow|repair|notice|polish|describe|hide|choose|wash|lift|sell|admire
        move|weigh|shake|cover|find|throw away|photograph|bring|judge|finish|open|watch
    """,
    "what": """
        a rusty bucket|the green umbrella|three heavy boxes|an enormous pumpkin|the broken clock
        a jar of honey|the wooden ladder|fresh bread and cheese|a strange letter|the leather suitcase
        an ancient map|seven shiny coins|the garden gate|a bowl of thick soup|the kitchen floor
        a pair of gloves|the noisy engine|a basket of cherries|the mirror|a quiet piano|the longest rope
        some useful advice|a bag of sugar|the tower bell|a pale blue vase|the television
        a picture of the ocean|the usual breakfast|a small telescope|the evening paper|both oars
    """,
    "where": """
        near the harbour|in the narrow street|behind the church|on the third floor|under the bridge
        at the market|beside the frozen lake|in the middle of the field|outside the theatre
        along the northern shore|at the bus station|in a quiet corner|on top of the hill
        between the two houses|by the fireplace|in the school yard|across the valley
        at the edge of the forest|in my grandfather's workshop|on the train to the coast
    """,
    "when": """
        yesterday morning|late in the autumn|just before midnight|after a long silence
        on Thursday afternoon|early in July|once a year|during the storm|a few weeks ago|as usual
        in the end|every other Wednesday|shortly after breakfast|at the very last moment
        when the rain stopped|on the first warm day
    """,
    "how": """
        with great care|as quickly as possible|without a word|once again|in a rather foolish way
        for the first time|very gently|with both hands|just for pleasure|in spite of the noise
        as loudly as ever|one by one|by mistake
    """,
    "clause": """
        the weather changed|nobody knew the answer|the music was far too loud|the road was closed
        it began to snow|the children were asleep|we had enough time|the coffee tasted bitter
        the lights went out|the view was beautiful|the shop opened at eight|the dog refused to move
        her voice sounded different|the price was reasonable|the ship had already sailed
        they missed the early train|the soup was getting cold|he could hear the sea
        the village looked empty|the wheels began to turn|she laughed at the idea
        the path led through the woods
    """,
    "then": """
        we shall go home|I would choose the other road|everyone should stay inside|please call me at once
        you may keep the change|they will join us later|the journey takes an hour
        nothing else matters much|it might be wiser to wait|somebody must tell the owner
    """,
}
_SLOTS = {name: [w.strip() for w in re.split(r"[|\n]", words.strip())] for name, words in SLOTS.items()}


def split_of(sentence: str) -> str:
    """The one split that may read a sentence: 8 of 10 `train`, 1 `valid`, 1 `test`, by CRC-32 of the text.

    Example:
        >>> split_of("Could you open the window a little, please?")
        'train'
    """
    return {8: "valid", 9: "test"}.get(zlib.crc32(sentence.encode()) % 10, "train")


def draw(rng: np.random.Generator, split: str) -> str:
    """One sentence of a split; one in eight is from the fixed list, the others from the grammar.

    Args:
        rng: consumed by a variable number of draws.
        split: `train`, `valid` or `test`.

    Returns:
        A sentence of 3 to about 25 words with its final punctuation, for which `split_of` is `split`.

    Raises:
        ValueError: no such split.

    Example:
        >>> split_of(draw(np.random.default_rng(0), "test"))
        'test'
    """
    if split not in SPLITS:
        raise ValueError(f"sentences.draw: unknown split {split!r}, allowed: {', '.join(SPLITS)}")
    while True:
        pick = _picker(rng)
        text = pick(WHOLE) if rng.random() < 0.125 else _grow(pick)
        if split_of(text) == split:
            return text


def _picker(rng: np.random.Generator) -> Callable[..., str]:
    return lambda words: words[int(rng.integers(len(words)))]


def _grow(pick: Callable[..., str]) -> str:
    """Fills one template; the sentence starts with a capital."""
    text = re.sub(r"\{(\w+)\}", lambda slot: pick(_SLOTS[slot[1]]), pick(TEMPLATES))
    return text[0].upper() + text[1:]
