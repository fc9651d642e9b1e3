"""The words of the world, in English and in Chinese.

Data only. Lists are ordered so that a world with few people, places or things
takes the first ones and still has something to say (a container among the
things, a plural among the nouns).
"""

from typing import NamedTuple

END = "<eos>"
"""The word after the last full stop of a story: nothing follows it."""

LANGUAGES = ("en", "zh")


class Person(NamedTuple):
    name: str
    zh: str
    she: bool


class Place(NamedTuple):
    name: str
    zh: str
    preposition: str


class Thing(NamedTuple):
    """A thing has an attribute and a noun; both words always appear."""

    adjective: str
    noun: str
    zh_adjective: str
    zh_noun: str
    classifier: str
    plural: bool = False
    container: bool = False

    @property
    def name(self) -> str:
        return f"{self.adjective} {self.noun}"


class Verb(NamedTuple):
    """Base form, third person singular, past; and the Chinese verb."""

    base: str
    third: str
    past: str
    zh: str


PEOPLE = (
    Person("Anna", "安娜", True),
    Person("Tom", "汤姆", False),
    Person("Lucy", "露西", True),
    Person("Jack", "杰克", False),
    Person("Mary", "玛丽", True),
    Person("Peter", "彼得", False),
    Person("Emma", "艾玛", True),
    Person("David", "大卫", False),
)

PLACES = (
    Place("kitchen", "厨房", "in"),
    Place("garden", "花园", "in"),
    Place("school", "学校", "at"),
    Place("park", "公园", "in"),
    Place("market", "市场", "at"),
    Place("library", "图书馆", "in"),
    Place("station", "车站", "at"),
    Place("office", "办公室", "in"),
)

THINGS = (
    Thing("red", "ball", "红", "球", "个"),
    Thing("old", "book", "旧", "书", "本"),
    Thing("blue", "box", "蓝", "盒子", "个", container=True),
    Thing("black", "shoes", "黑", "鞋子", "双", plural=True),
    Thing("green", "apple", "绿", "苹果", "个"),
    Thing("big", "basket", "大", "篮子", "个", container=True),
    Thing("new", "hat", "新", "帽子", "顶"),
    Thing("yellow", "gloves", "黄", "手套", "副", plural=True),
    Thing("blue", "ball", "蓝", "球", "个"),
    Thing("new", "book", "新", "书", "本"),
    Thing("red", "box", "红", "盒子", "个", container=True),
    Thing("red", "shoes", "红", "鞋子", "双", plural=True),
    Thing("yellow", "apple", "黄", "苹果", "个"),
    Thing("small", "basket", "小", "篮子", "个", container=True),
    Thing("old", "hat", "旧", "帽子", "顶"),
    Thing("black", "gloves", "黑", "手套", "副", plural=True),
)

VERBS = {
    "be": (Verb("are", "is", "was", "在"),),
    "have": (Verb("have", "has", "had", "有"),),
    "go": (Verb("go", "goes", "went", "去"), Verb("walk", "walks", "walked", "走到")),
    "take": (
        Verb("take", "takes", "took", "拿起"),
        Verb("grab", "grabs", "grabbed", "抓起"),
    ),
    "drop": (
        Verb("drop", "drops", "dropped", "扔下"),
        Verb("leave", "leaves", "left", "留下"),
    ),
    "give": (
        Verb("give", "gives", "gave", "送给"),
        Verb("hand", "hands", "handed", "递给"),
    ),
    "put": (
        Verb("put", "puts", "put", "放进"),
        Verb("pack", "packs", "packed", "装进"),
    ),
    "out": (
        Verb("take", "takes", "took", "拿出"),
        Verb("pull", "pulls", "pulled", "取出"),
    ),
}

FRAMES = {
    "past": (("Yesterday", ","), ("昨天",)),
    "present": (("Today", ","), ("今天",)),
}

TIMES = (
    (("Then",), ("随后",)),
    (("Later", ","), ("后来",)),
    (("Soon", ","), ("很快",)),
)

MANNERS = (("quietly", "悄悄地"), ("slowly", "慢慢地"), ("happily", "高兴地"))

NO_NAMES = {"nobody": "没有人", "unknown": "不知道"}
"""Answers that are not the name of a person or a place."""
