"""The subjects of the demo's posts: classes of three taxonomy levels with their words, and words of mood.

The first-level names are the public ones of SMPD. Some names occur under several parents, as in SMPD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Subcategory:
    """A second-level class: its name, the shape its images show, its third-level names and its words."""

    name: str
    shape: str  # in popularity.demo.images.SHAPES
    concepts: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """A first-level class: its share of posts (percent), images' hue (0-1) and texture, words, and subcategories."""

    name: str
    share: float
    hue: float
    texture: str  # in popularity.demo.images.TEXTURES
    words: tuple[str, ...]
    subcategories: tuple[Subcategory, ...]


def _category(
    name: str,
    share: float,
    hue: float,
    texture: str,
    words: str,
    *subcategories: tuple[str, str, str, str],
) -> Category:
    return Category(
        name,
        share,
        hue,
        texture,
        tuple(words.split()),
        tuple(
            Subcategory(title, shape, tuple(concepts.split()), tuple(own.split()))
            for title, shape, concepts, own in subcategories
        ),
    )


# Most frequent first: a demo with few subcategories keeps the large classes.
CATEGORIES: tuple[Category, ...] = (
    _category(
        "Travel&Active&Sports", 22, 0.58, "waves",
        "travel trip tourist adventure journey sport outdoor active vacation explorer",
        ("Beach", "circle", "surfing sand swimming", "ocean sea shore wave coast island palm lagoon"),
        ("Hiking", "triangle", "mountain trail camping", "peak summit backpack valley cliff tent ridge glacier"),
        ("Football", "ring", "stadium goal match", "soccer team player ball league referee champion kick"),
    ),
    _category(
        "Holiday&Celebrations", 18, 0.98, "dots",
        "holiday celebration festive party gift candle tradition cheer greeting family",
        ("Christmas", "star", "party tree lights", "santa reindeer ornament sleigh carol stocking mistletoe december"),
        ("Wedding", "heart", "bride dance cake", "groom ceremony bouquet vows marriage chapel bridesmaid reception"),
        ("Halloween", "diamond", "costume pumpkin party", "ghost witch skeleton haunted spooky candy vampire october"),
    ),
    _category(
        "Fashion", 16, 0.86, "stripes",
        "fashion style outfit designer clothing model trend elegant vogue wardrobe",
        ("Dress", "hourglass", "gown runway portrait", "skirt silk lace satin velvet fabric sleeve couture"),
        ("Shoes", "wedge", "sneakers boots heels", "leather sandal footwear sole lace pair slipper suede"),
        ("Jewelry", "diamond", "necklace ring earrings", "gold silver gem bracelet pearl pendant sapphire emerald"),
    ),
    _category(
        "Entertainment", 10, 0.75, "rays",
        "entertainment show performance audience stage fun celebrity ticket artist spotlight",
        ("Music", "ring", "concert guitar dance", "band singer drums song melody orchestra album festival"),
        ("Movie", "rectangle", "cinema premiere actor", "film director screen trailer scene drama hollywood popcorn"),
        ("Games", "cross", "arcade chess console", "player score level joystick puzzle dice board quest"),
    ),
    _category(
        "Social&People", 8, 0.08, "gradient",
        "people friends together social crowd smile community face conversation youth",
        ("Friends", "pair", "party selfie reunion", "laugh buddy group hug picnic companion gathering memories"),
        ("Portrait", "ellipse", "woman man child", "eyes hair beard expression pose gaze freckles profile"),
        ("Protest", "bars", "march banner police", "demonstration rights justice activist slogan megaphone rally"),
    ),
    _category(
        "Whether&Season", 7, 0.50, "flakes",
        "weather season sky cloud wind temperature forecast climate nature horizon",
        ("Winter", "flake", "snow ice frost", "cold blizzard snowman icicle frozen sledge january mitten"),
        ("Autumn", "leaf", "leaves harvest fog", "fall maple orange acorn foliage rake november chestnut"),
        ("Storm", "bolt", "lightning rain rainbow", "thunder tornado hail flood umbrella puddle dark gust"),
    ),
    _category(
        "Animal", 6, 0.30, "fur",
        "animal wildlife creature pet cute zoo habitat species paw tail",
        ("Dog", "ellipse", "puppy retriever walk", "terrier bark leash collar hound fetch kennel spaniel"),
        ("Bird", "wedge", "eagle owl parrot", "feather wing nest beak flight songbird sparrow heron"),
        ("Cat", "pair", "kitten tabby sleep", "whiskers purr meow feline siamese claw yarn persian"),
    ),
    _category(
        "Food", 5, 0.13, "checker",
        "food delicious meal kitchen recipe taste restaurant chef dinner plate",
        ("Dessert", "rectangle", "cake chocolate cream", "sugar cookie pie sweet pastry vanilla pudding caramel"),
        ("Fruit", "circle", "apple berry orange", "banana grape juice ripe peach melon mango lemon"),
        ("Seafood", "leaf", "fish shrimp sushi", "salmon oyster lobster crab tuna grill squid clam"),
    ),
    _category(
        "Urban", 5, 0.64, "grid",
        "city urban downtown skyline building metropolis concrete pavement avenue district",
        ("Architecture", "bars", "tower bridge church", "facade column arch window cathedral brick dome skyscraper"),
        ("Street", "cross", "traffic graffiti market", "road taxi sidewalk crosswalk alley bicycle vendor tram"),
        ("Night", "bolt", "neon lights club", "midnight lamp glow darkness reflection nightlife billboard moon"),
    ),
    _category(
        "Electronics", 2, 0.42, "circuit",
        "electronics technology digital gadget device battery wireless circuit hardware innovation",
        ("Computer", "rectangle", "laptop keyboard server", "processor software monitor code desktop memory mouse"),
        ("Phone", "bars", "smartphone screen selfie", "mobile call app charger android message touch signal"),
        ("Camera", "ring", "lens tripod film", "shutter aperture zoom photograph focus sensor flash exposure"),
    ),
    _category(
        "Family", 1, 0.04, "gradient",
        "family home love parents children mother father sibling grandmother house",
        ("Baby", "heart", "newborn toddler sleep", "infant crib diaper cradle rattle stroller lullaby milk"),
        ("Birthday", "star", "cake balloon party", "candles present anniversary age wish surprise confetti guests"),
        ("Portrait", "triangle", "child grandparents twins", "reunion generations album cousin aunt uncle ancestors"),
    ),
)  # fmt: skip


def widened(category: Category, count: int) -> Category:
    """`category` with `count` subcategories: further ones repeat its own with numbered names and words."""
    own = category.subcategories
    further = (_numbered(own[index % len(own)], 1 + index // len(own)) for index in range(len(own), count))
    return replace(category, subcategories=(*own, *further))


def _numbered(subcategory: Subcategory, number: int) -> Subcategory:
    concepts, words = ([f"{word}{number}" for word in each] for each in (subcategory.concepts, subcategory.words))
    return Subcategory(f"{subcategory.name}{number}", subcategory.shape, tuple(concepts), tuple(words))


# Words that raise or lower the appeal of a title or a tag in any class; their weights add up.
MOODS: Mapping[str, float] = {
    "stunning": 1.0, "masterpiece": 1.0, "breathtaking": 1.0, "award-winning": 1.0, "gorgeous": 0.8,
    "beautiful": 0.7, "amazing": 0.7, "magical": 0.6, "perfect": 0.5, "lovely": 0.5,
    "boring": -0.7, "ugly": -0.8, "broken": -0.6, "blurry": -0.7, "random": -0.5,
    "test": -0.9, "untitled": -0.9, "receipt": -1.0, "scan": -0.8, "garbage": -1.0,
}  # fmt: skip

# Tags and titles without relation to the image.
NEUTRAL_TAGS = ("canon", "nikon", "iphone", "flickr", "photo", "2015", "2016", "raw", "50mm", "square")
CAMERA_TITLES = ("IMG", "DSC", "P", "DSCN")
