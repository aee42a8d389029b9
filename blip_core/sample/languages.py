"""The words of the sample world's texts in English, Spanish and Chinese. In code shapes, colours and backgrounds go by their English
names. The lists of a language are as long as those of the others, so that the same draws say the same."""

from collections.abc import Callable
from dataclasses import dataclass

from blip_core.config.sample import SampleLanguage
from blip_core.sample.scenes import COLOURS, SHAPES


@dataclass(frozen=True)
class Language:
    """`phrase`: of a shape, its colour or None, and whether with an article. `shapes`, `colours` and `backgrounds`: what a word that a
    text may have names; "" is a colour that nothing here has. `breaks`: words that end a phrase."""

    phrase: Callable[[str, str | None, bool], str]
    prefixes: tuple[str, ...]
    joiners: tuple[str, ...]
    terse_joiners: tuple[str, ...]
    places: dict[str, tuple[str, ...]]
    boilerplate: tuple[str, ...]
    general: tuple[str, ...]
    shapes: dict[str, str]
    colours: dict[str, str]
    backgrounds: dict[str, str]
    breaks: tuple[str, ...]
    space: str = " "

    def sentence(self, *parts: str) -> str:
        return self.space.join(part for part in parts if part)

    def tokens(self, text: str) -> list[str]:
        return text.split() if self.space else list(text)


def _english(shape: str, colour: str | None, article: bool) -> str:
    words = f"{colour} {shape}" if colour else shape
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}" if article else words


ENGLISH = Language(
    phrase=_english,
    prefixes=("", "", "there is", "a photo of"),
    joiners=("and", "next to", "with", "near", "beside"),
    terse_joiners=("and", "with"),
    places={
        "grass": ("on grass", "on the grass", "on a lawn"),
        "sand": ("on sand", "on the sand", "at the beach"),
        "sky": ("in the sky", "up in the sky"),
        "night": ("at night", "in the dark"),
        "snow": ("in the snow", "on snow"),
    },
    boilerplate=(
        "click here to enlarge",
        "free shipping on all orders",
        "image not available",
        "img {n} jpg",
        "dsc {n}",
        "photo {n} of {n}",
        "home page",
        "buy now best price",
        "click to see more",
        "all rights reserved",
        "stock photo {n}",
        "sign up for our newsletter",
        "product view {n}",
        "untitled",
        "share on social media",
        "loading please wait",
    ),
    general=(
        "a thing",
        "an object",
        "a nice picture",
        "something {place}",
        "a toy {place}",
        "two things",
        "some objects {place}",
        "a cute toy",
        "a view {place}",
    ),
    shapes={shape: shape for shape in SHAPES},
    colours={
        **{colour: colour for colour in COLOURS},
        **dict.fromkeys(("black", "white", "grey", "gray", "brown", "pink", "gold", "silver", "violet", "cyan"), ""),
    },
    backgrounds={
        **{"grass": "grass", "lawn": "grass", "sand": "sand", "beach": "sand"},
        **{"sky": "sky", "night": "night", "dark": "night", "snow": "snow"},
    },
    breaks=("and", "with", "near", "beside", "by", "next"),
)

_NOUNS_ES = {  # with the definite article
    **{"ball": "la pelota", "box": "la caja", "house": "la casa", "tree": "el árbol", "boat": "el barco", "fish": "el pez"},
    **{"car": "el coche", "star": "la estrella", "kite": "la cometa", "flower": "la flor", "ring": "el anillo"},
    **{"heart": "el corazón", "moon": "la luna", "cross": "la cruz"},
}
_COLOURS_ES = {  # of masculine and of feminine nouns
    "red": ("rojo", "roja"),
    "orange": ("naranja", "naranja"),
    "yellow": ("amarillo", "amarilla"),
    "green": ("verde", "verde"),
    "blue": ("azul", "azul"),
    "purple": ("morado", "morada"),
}
_OTHERS_ES = "negro negra blanco blanca gris marrón rosa dorado dorada plateado plateada violeta cian"


def _spanish(shape: str, colour: str | None, article: bool) -> str:
    """The colour stands behind the noun, in its gender."""
    definite, noun = _NOUNS_ES[shape].split()
    feminine = definite == "la"
    words = f"{noun} {_COLOURS_ES[colour][feminine]}" if colour else noun
    return f"{'una' if feminine else 'un'} {words}" if article else words


SPANISH = Language(
    phrase=_spanish,
    prefixes=("", "", "hay", "una foto de"),
    joiners=("y", "junto a", "con", "cerca de", "al lado de"),
    terse_joiners=("y", "con"),
    places={
        "grass": ("sobre la hierba", "en la hierba", "en el césped"),
        "sand": ("sobre la arena", "en la arena", "en la playa"),
        "sky": ("en el cielo", "arriba en el cielo"),
        "night": ("de noche", "en la oscuridad"),
        "snow": ("en la nieve", "sobre la nieve"),
    },
    boilerplate=(
        "haz clic aquí para ampliar",
        "envío gratis en todos los pedidos",
        "imagen no disponible",
        "img {n} jpg",
        "dsc {n}",
        "foto {n} de {n}",
        "página de inicio",
        "compra ya al mejor precio",
        "haz clic para ver más",
        "todos los derechos reservados",
        "foto de archivo {n}",
        "suscríbete a nuestro boletín",
        "vista del producto {n}",
        "sin título",
        "comparte en redes sociales",
        "cargando espera por favor",
    ),
    general=(
        "una cosa",
        "un objeto",
        "una imagen bonita",
        "algo {place}",
        "un juguete {place}",
        "dos cosas",
        "unos objetos {place}",
        "un juguete bonito",
        "una vista {place}",
    ),
    shapes={words.split()[1]: shape for shape, words in _NOUNS_ES.items()},
    colours={
        **{word: colour for colour, words in _COLOURS_ES.items() for word in words},
        **dict.fromkeys(_OTHERS_ES.split(), ""),
    },
    backgrounds={
        **{"hierba": "grass", "césped": "grass", "arena": "sand", "playa": "sand"},
        **{"cielo": "sky", "noche": "night", "oscuridad": "night", "nieve": "snow"},
    },
    breaks=("y", "junto", "con", "cerca", "lado"),
)

_NOUNS_ZH = {  # with the measure word in front
    **{"ball": "个球", "box": "个箱子", "house": "座房子", "tree": "棵树", "boat": "艘船", "fish": "条鱼", "car": "辆汽车"},
    **{"star": "颗星星", "kite": "只风筝", "flower": "朵花", "ring": "个圆环", "heart": "颗爱心", "moon": "个月亮", "cross": "个十字"},
}
_COLOURS_ZH = {"red": "红色", "orange": "橙色", "yellow": "黄色", "green": "绿色", "blue": "蓝色", "purple": "紫色"}
_OTHERS_ZH = "黑色 白色 灰色 棕色 粉色 金色 银色 青色"


def _chinese(shape: str, colour: str | None, article: bool) -> str:
    measure, noun = _NOUNS_ZH[shape][0], _NOUNS_ZH[shape][1:]
    said = _COLOURS_ZH[colour] if colour else ""
    return f"一{measure}{said}{'的' if said else ''}{noun}" if article else f"{said}{noun}"


CHINESE = Language(
    phrase=_chinese,
    prefixes=("", "", "有", "照片里有"),
    joiners=("和", "旁边是", "以及", "挨着", "靠近"),
    terse_joiners=("和", "及"),
    places={
        "grass": ("在草地上", "在草坪上", "在草丛里"),
        "sand": ("在沙地上", "在沙子上", "在海滩上"),
        "sky": ("在天空中", "在天上"),
        "night": ("在夜里", "在黑暗中"),
        "snow": ("在雪地里", "在雪上"),
    },
    boilerplate=(
        "点击查看大图",
        "所有订单包邮",
        "暂无图片",
        "img {n} jpg",
        "dsc {n}",
        "照片 {n}/{n}",
        "首页",
        "立即购买，价格最优",
        "点击查看更多",
        "版权所有",
        "图库照片 {n}",
        "订阅我们的资讯",
        "产品视图 {n}",
        "无标题",
        "分享到社交媒体",
        "加载中，请稍候",
    ),
    general=(
        "一个东西",
        "一个物体",
        "一张好看的图片",
        "有东西{place}",
        "一个玩具{place}",
        "两个东西",
        "一些物品{place}",
        "可爱的玩具",
        "风景{place}",
    ),
    shapes={words[1:]: shape for shape, words in _NOUNS_ZH.items()},
    colours={**{word: colour for colour, word in _COLOURS_ZH.items()}, **dict.fromkeys(_OTHERS_ZH.split(), "")},
    backgrounds={
        **{"草地": "grass", "草坪": "grass", "草丛": "grass", "沙地": "sand", "沙子": "sand", "海滩": "sand"},
        **{"天空": "sky", "天上": "sky", "夜里": "night", "黑暗": "night", "雪地": "snow", "雪上": "snow"},
    },
    breaks=("和", "旁边", "以及", "及", "挨着", "靠近"),
    space="",
)

LANGUAGES: dict[SampleLanguage, Language] = {"en": ENGLISH, "es": SPANISH, "zh": CHINESE}
