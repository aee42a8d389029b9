"""Personal data in a text: e-mail addresses, phone numbers, numbers of payment cards."""

import re

import phonenumbers

# a retina picture, logo@2x.png, is no address
_EMAIL = re.compile(
    r"(?<![\w.+%-])[\w+%-][\w.+%-]*@(?:[\w-]+\.)+(?!(?:jpe?g|png|gif|webp|svg|avif|bmp|tiff?)(?!\w))[^\W\d_]{2,24}(?![\w@])", re.IGNORECASE
)
_DIGITS = re.compile(r"(?<![\w.,-])\d(?:[ -]?\d){12,18}(?![\w-])")
# issuer and length: Visa; Mastercard; American Express; Diners; Discover, JCB, UnionPay
_CARD = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11,16}|(?:6011|64[4-9]\d|65\d\d|35\d\d|62\d\d)\d{12,15}"
)
_FEWEST_DIGITS = 7  # of a phone number that is looked for


def has_email(text: str) -> bool:
    return "@" in text and _EMAIL.search(text) is not None


def has_phone(text: str, regions: tuple[str, ...]) -> bool:
    """A number that its country's plan has. `regions`: countries (ISO 3166) whose numbers count without +country code before them too."""
    if sum(c.isdecimal() for c in text) < _FEWEST_DIGITS:
        return False
    return any(phonenumbers.PhoneNumberMatcher(text, region).has_next() for region in regions or (None,))


def has_card(text: str) -> bool:
    """13 to 19 digits that an issuer gives and whose check digit is right (ISO/IEC 7812, Luhn)."""
    numbers = (re.sub(r"\D", "", found) for found in _DIGITS.findall(text))
    return any(_CARD.fullmatch(number) and _luhn(number) for number in numbers)


def _luhn(number: str) -> bool:
    digits = [int(d) for d in reversed(number)]
    return (sum(digits[::2]) + sum(sum(divmod(2 * d, 10)) for d in digits[1::2])) % 10 == 0
