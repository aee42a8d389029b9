"""Penn Treebank tokenisation as coco-caption applies it before scoring: Stanford's PTBTokenizer (CoreNLP 3.4.1, lower case),
then punctuation dropped. Scores after another tokenisation are not comparable with published ones.

Start at `tokenize`. The tokenizer takes the longest match at each position, the first rule among equals; so does this. Habits
that look like faults are kept: brackets stay as `-lrb-`, `!!` and `:-rrb-` stay while `!` and `:` go, a space within a phone
number, a tag or "1 1/2" becomes a no-break space. What it matches was found by asking the tokenizer itself.
"""

import re

# "-LRB-" never occurs, for the text is lower case by then. coco-caption lists it so, and published scores count brackets
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

# Unicode beyond what `\w` says: marks that act as letters, numerals that do not, symbols that make a token. All else is a space
_MARKS = "\u02c2-\u02ff\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u0618-\u061a\u064b-\u065e\u0900-\u0903\u093c-\u094d\u0e31-\u0e4e"
_SYMBOLS = (
    "\u0080\u0091-\u0094\u0096\u0097\u00a1-\u00ac\u00ae-\u00bf\u00d7\u00f7\u060c\u061b\u061f\u06d4\u0964\u0965\u0e3f"
    "\u2010\u2011\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2044\u20a0\u20a4\u20ac\u2100-\u214f\u2190-\u2bff"
    "\u3001\u3002\u3012\u30fb\uff01-\uff65\uffe0-\uffe6"
)
_NUMERALS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u208e\u2153-\u215e\u2460-\u249b\u24ea-\u24ff\u2776-\u2793"
_FOREIGN = "\u2150-\u2152\u215f-\u2189\u3007\u3021-\u3029\u3192-\u33ff\U00010000-\U0010ffff"
_SPACE = re.compile(rf"[^!-~\w{_MARKS}{_SYMBOLS}{_NUMERALS}]|[{_FOREIGN}]|&nbsp;")

_L = rf"(?:[^\W\d_{_NUMERALS}]|[{_MARKS}]|&(?i:[aeiou](?:acute|grave|uml));)"  # a letter
_A = rf"(?:{_L}|\d)"  # a letter or digit
_Q = "(?:['\u0092\u2019]|&apos;)"  # an apostrophe
_SUFFIX = "(?i:ll|re|ve|[sdm])"
_DOTTED = rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)*"  # no space after the full stop: "left.he" is one token
_ELISION = "(?:['\u0092\u2018\u2019]|&apos;)"
_PREFIX = rf"(?:[dDoOlL]{_ELISION}(?={_A}{{2}})|[A-HJ-XZn]{_ELISION}(?={_L}{{2}})|{_L}*(?i:qu){_ELISION})"
_COMPOUND = rf"{_PREFIX}?{_A}+(?:[-_\u058a\u2010\u2011]{_A}+)*"
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_HOST = r"[^\s\"`'<>|.!?(){},_$/-]"
_TAIL = r"[^\s\"<>|.!?(){},-]"  # the last character of an address

# Words that keep a full stop. TITLES go before a name, CLOSING may end a sentence, CAPITALISED are such but words in lower case,
# BEFORE_NUMBER keep it only when a number follows
_TITLES = (
    "adj adm adv alex assoc asst attys? ave brig capt cf cie co?mdr col cpl dept det drs? elec ens ft gen govs? hon insp invt jos "
    "lieut lt maj messrs m[ft]g mlle mme mrs? ms msgr mt natl pfc ph pres profs? pvt reps? rev sens? sfc sgt spc ste? supts? treas vs wm"
)
_CLOSING = (
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif colo conn corp cos? ct dak dec esq est etc ext feb fla fri ga inc ind "
    "intl jan jr jul jun kans? ky ltd mar md mich minn mon? mont neb nev nov oct okla penn plc pp?tes? pp?tys? rd rt sept? seq sq sr "
    "sys tel tenn thu(?:rs)? tues? univ va vt wed wisc? wyo (?:ph|ed)\\.d"
)
_CAPITALISED = "A(?i:rk|z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass|iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
_BEFORE_NUMBER = "art ca figs? nos? op pp prop"
# Before one of these a single letter's full stop ends the sentence
_STARTERS = (
    "A An About According Additionally After As At But Earlier He Her Here However If In It Last Many More Now Once One Other Our She "
    "Since So Some Such That The Their Then There These They This We What When While Yet You"
)


def _any(words: str) -> str:
    return "|".join(words.split())


# A rule with a group makes that group the token and goes on behind it; what follows the group only lengthens the match
_RULES = [
    re.compile(pattern)
    for pattern in (
        # tags
        r"</?[A-Za-z][\w.:-]*(?:\s+[A-Za-z][\w.:-]*(?:=\"[^\"]*\"|='[^']*')?)*\s*/?>|<[!?][A-Za-z-][^>]*>",
        # contractions: the stem here, what is left of the word comes next
        rf"(?i:(can)not|(gon|wan)na|(got)ta|(gim|lem)me)(?!{_Q}{_SUFFIX}(?!{_L}))|('[tT])(?i:is|was)(?!{_L})",
        rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_Q}[tT]|[nN]{_Q}[tT]",
        rf"({_L}{_A}*){_Q}{_SUFFIX}",
        # a letter that ends a sentence; words, with hyphens, with slashes, with an apostrophe inside (Hawai'i)
        rf"([A-Za-z])\.(?:\s*$|\s+(?=[A-Z])(?i:{_any(_STARTERS)})\s)",
        _DOTTED,
        r"[A-Za-z0-9][A-Za-z0-9.,]*(?:-[A-Za-z0-9]+)+",
        _COMPOUND,
        rf"{_PART}(?:\\?/{_PART}){{1,2}}",
        rf"{_L}+(?i:[aeiouy]){_ELISION}(?i:[aeiou]){_L}*",
        # words with their full stop: initials, before another mark, abbreviations
        rf"(?:{_A}+-)?(?:[A-Za-z]\.){{2,}}(?:-(?:[A-Za-z]\.){{2,}})?|[A-Za-z]\.",
        rf"((?:{_COMPOUND})\.)[,;:]",
        rf"((?:(?i:{_any(_CLOSING)})|{_CAPITALISED})\.)(?:..?)?|((?i:{_any(_BEFORE_NUMBER)})\.)\s*\d|(?i:{_any(_TITLES)})\.",
        # words that start or end with an apostrophe
        rf"'{_SUFFIX}(?![A-Za-z])|(?:[\u0092\u2019]|&apos;){_SUFFIX}|[yY]{_Q}(?={_L})|[dDlLjJ]{_Q}|{_Q}[nN]{_Q}?",
        rf"(?i:dunkin|somethin|ol){_Q}|{_Q}(?i:em|till?|cause)|{_Q}[2-9]0[sS]|{_Q}\d\d(?=\s|$)",
        rf"(?i:c'mon|[eno]e?{_Q}er|s'mores|ma{_Q}am|li{_Q}l|nat{_Q}l|cap{_Q}n|hallowe{_Q}en|ev{_Q}ry|c{_Q}est|wi{_Q}out)",
        # numbers: plain, dates and fractions, of telephones
        r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",
        r"[0-3]?\d/[0-3]?\d/[12]?\d{3}|(?:\d{1,4}[- ])?\d{1,4}/\d{1,4}",
        r"(?:\(\d{2,3}\) ?|\+{0,2}(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5}",
        # addresses and tags of the web
        rf"[hH][tT][tT][pP][sS]?://[^\s\"<>|(){{}}]+{_TAIL}",
        rf"(?:www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}|(?:{_HOST}+\.)+(?:com|net|org|edu))(?:/[^\s\"<>|()]+{_TAIL})?",
        r"[A-Za-z0-9][^\s\"<>|()@]*@(?:[^\s\"<>|().@]+\.)*[^\s\"<>|().@]+|@[A-Za-z_][A-Za-z_0-9]*",
        rf"#{_L}+|#+|@+|[cC]\+\+|[cCfF]#",
        # symbols: AT&T and US$, faces, entities, an opening quote, runs of one mark
        r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+|[A-Z]*\$",
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])|\(?[-^<>]_[-^<>]\)?",
        r"&(?i:amp|lt|gt|quot|[mn]dash);|&#\d{1,5};",
        r"(')[A-Za-z]{2}",
        r"-+|\.{3}|[?!]+|\*+|_+|<<|>>|''",
    )
]
_PLAIN = re.compile(r"[A-Za-z]+(?=\s)")  # most words: no rule but that of contracted words like "cannot" can say more
_CONTRACTED = frozenset(["cannot", "gonna", "wanna", "gotta", "gimme", "lemme"])
_ESCAPES = {
    **{"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&lt;": "<", "&gt;": ">", "\u00a2": "cents", "\u00a3": "#"},
    **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **dict.fromkeys("\u0080\u00a4\u20a0\u20ac", "$"),
    **dict.fromkeys(["---", "----", "&mdash;", "&ndash;", "\u0096", "\u0097", "\u2013", "\u2014", "\u2015"], "--"),
    **dict.fromkeys(['"', "&quot;", "\u0093", "\u0094", "\u00ab", "\u00bb", "\u201c", "\u201d"], "''"),
    **dict.fromkeys("\u0091\u0092\u2018\u2019\u201b\u2039\u203a", "'"),
    "\u2026": "...",
}


def tokenize(text: str) -> str:
    """The tokens joined by single spaces, as pycocoevalcap's PTBTokenizer gives them; "" for a text of punctuation alone."""
    text = _SPACE.sub(" ", text.replace("\u00ad", ""))
    tokens = []
    position = 0
    while position < len(text):
        if text[position] == " ":
            position += 1
            continue
        start, position = position, _end(text, position)
        token = _normal(text[start:position])
        if token not in PUNCTUATION:
            tokens.append(token)
    return " ".join(tokens)


def _end(text: str, start: int) -> int:
    """Where the token that starts at `start` ends."""
    plain = _PLAIN.match(text, start)
    if plain and plain.group().lower() not in _CONTRACTED:
        return plain.end()
    longest, end = 0, start + 1  # a character that no rule knows is a token
    for rule in _RULES:
        found = rule.match(text, start)
        if found and found.end() > longest:
            longest, end = found.end(), found.end(found.lastindex or 0)
    return end


def _normal(token: str) -> str:
    if token in _ESCAPES:
        return _ESCAPES[token]
    token = token.replace("(", "-lrb-").replace(")", "-rrb-").replace("&apos;", "'").replace(" ", "\u00a0")
    token = re.sub("(?i)&amp;", "&", token)
    if re.fullmatch(rf"[\u0092\u2019]{_SUFFIX}|[nN][\u0092\u2019][tT]", token):
        token = "'".join(re.split("[\u0092\u2019]", token))
    return token.lower()
