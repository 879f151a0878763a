"""The Huffman code of HPACK (RFC 7541 appendix B): decoding only, nothing of headers or tables."""

from __future__ import annotations

# The code is canonical: a code's bits follow from the lengths alone, in order of length, then
# symbol. One byte a symbol 0 to 255, then the end-of-string symbol.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c"
    "060a0a0c0d06080b0a0a080b080606060505050606060606060607080f060c0a"
    "0d06070707070707070707070707070707070707070707070807080d130d0e06"
    "0f05060506050606060507070606060506070605050607070707070f0b0e0d1c"
    "1416141416161617161717171717181718181617181717171715161716171718"
    "1615141616171715171616181516171715151615171617171416161617161617"
    "1a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b"
    "14181415161515171616191918181a171a1b1a1a1b1b1b1b1b1c1b1b1b1b1b1a"
    "1e"
)
_END_OF_STRING = 256
_PADDING_BITS_MAX = 7


def _tree() -> list[list[int]]:
    # A node is [child for 0, child for 1]; a child >= 0 is a node, < 0 is ~symbol.
    nodes: list[list[int]] = [[0, 0]]
    code = 0
    length_before = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - length_before
        length_before = length
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes[node][bit] = len(nodes)
                nodes.append([0, 0])
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
        code += 1
    return nodes


_NODES = _tree()


def _ends() -> frozenset[int]:
    # RFC 7541 5.2: padding is at most 7 bits, all ones (the start of the end-of-string code).
    node = 0
    ends = {0}
    for _ in range(_PADDING_BITS_MAX):
        node = _NODES[node][1]
        ends.add(node << 8)
    return frozenset(ends)


_ENDS = _ends()


class _Steps(dict[int, tuple[bytes, int]]):
    """(node << 8 | byte) -> (bytes decoded, next node << 8), made when first asked for.

    The full table has 65,536 steps; ordinary headers touch a few hundred of them.
    """

    def __missing__(self, key: int) -> tuple[bytes, int]:
        node, byte = key >> 8, key & 0xFF
        decoded = bytearray()
        for shift in range(7, -1, -1):
            node = _NODES[node][byte >> shift & 1]
            if node < 0:
                if ~node == _END_OF_STRING:
                    raise ValueError("the end-of-string symbol inside a string (RFC 7541 5.2)")
                decoded.append(~node)
                node = 0
        step = (bytes(decoded), node << 8)
        self[key] = step
        return step


_STEPS = _Steps()


def decode(data: bytes) -> bytes:
    """Return the text that `data` encodes. ValueError: it is not legal (RFC 7541 5.2)."""
    state = 0
    steps = _STEPS
    parts = []
    for byte in data:
        part, state = steps[state | byte]
        parts.append(part)
    if state not in _ENDS:
        raise ValueError("Huffman padding is not the start of end-of-string (RFC 7541 5.2)")
    return b"".join(parts)
