"""Which addresses of the network are public, for what strangers may make us ask."""

import ipaddress

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """`address`: as a resolver gives it; one of IPv4 may stand within one of IPv6. ValueError where it is none."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        within = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF) if number in _NAT64 else None
        number = number.ipv4_mapped or number.sixtofour or within or number
    return number.is_global and not number.is_multicast
