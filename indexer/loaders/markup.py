"""HTML and XML to text. lexbor expands no XML entities, defusedxml refuses them."""

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

from indexer.loaders.part import Part, UnreadableFile
from indexer.loaders.plain import decode

_SKIPPED_TAGS = (
    "script style noscript template svg math nav iframe object button select datalist textarea head "
    "canvas audio video"
)
_BLOCK_TAGS = (
    "p div section article main aside header footer ul ol table blockquote figure figcaption dl details "
    "summary address hr body fieldset form"
)
_SKIPPED, _BLOCKS, _LINES = set(_SKIPPED_TAGS.split()), set(_BLOCK_TAGS.split()), {"br", "tr", "dt", "dd"}
_HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_BLANKS = re.compile(r"[^\S\n]+")
_LINE_EDGES = re.compile(r" *\n *")
_EMPTY_LINES = re.compile(r"\n{3,}")
_MAX_DEPTH = 2_000  # a page is some dozens deep; lexbor accepts millions


def parse_html(data: bytes, name: str) -> list[Part]:
    """A page's text with its title, its description, author and keywords, and the language it declares."""
    tree = LexborHTMLParser(_decode_html(data))
    title, heading = tree.css_first("title"), tree.css_first("h1")
    metadata = {}
    for node in tree.css("meta[name][content]"):
        key = (node.attributes.get("name") or "").lower()
        if key in ("description", "author", "keywords") and node.attributes.get("content"):
            metadata[key] = str(node.attributes["content"])
    chosen = next(
        (node.text().strip() for node in (title, heading) if node is not None and node.text().strip()), None
    )
    language = tree.root.attributes.get("lang") if tree.root else None
    return [Part(_text(tree), title=chosen, metadata=metadata, language=language)]


def html_text(source: str) -> str:
    """The text of a page. Menus, scripts and the controls of forms are left out; headings become `# …`."""
    return _text(LexborHTMLParser(source))


def _text(tree: LexborHTMLParser) -> str:
    return _render(tree.body) if tree.body else ""


def _render(body: LexborNode) -> str:
    """Walk the tree without recursion and write text with line breaks where a browser would break."""
    pieces: list[str] = []
    stack: list[tuple[LexborNode | None, str, int]] = [
        (body, "", 0)
    ]  # a node, or text to write on the way out
    while stack:
        node, closing, depth = stack.pop()
        if node is None:
            pieces.append(closing)
            continue
        tag = node.tag or ""
        if tag == "-text":
            pieces.append(_BLANKS.sub(" ", (node.text_content or "").replace("\n", " ")))
            continue
        if tag in _SKIPPED or tag.startswith(("-", "_", "!")):
            continue
        if depth > _MAX_DEPTH:
            raise UnreadableFile(f"its elements are nested more than {_MAX_DEPTH:,} deep")
        if tag == "pre":
            pieces.append(f"\n\n{node.text()}\n\n")
            continue
        opening, closing = _breaks(tag)
        pieces.append(opening)
        stack.append((None, closing, depth))
        stack += [(child, "", depth + 1) for child in reversed(list(node.iter(include_text=True)))]
    text = _LINE_EDGES.sub("\n", _BLANKS.sub(" ", "".join(pieces)))
    return _EMPTY_LINES.sub("\n\n", text).strip()


def _breaks(tag: str) -> tuple[str, str]:
    """What to write before and after the content of an element."""
    if tag in _HEADINGS:
        return f"\n\n{_HEADINGS[tag]} ", "\n\n"
    if tag in _BLOCKS:
        return "\n\n", "\n\n"
    if tag == "li":
        return "\n- ", ""
    if tag in ("td", "th"):
        return " ", " |"
    return ("\n", "") if tag in _LINES else ("", "")


def _decode_html(data: bytes) -> str:
    """The declared encoding if the bytes agree with it, else as for plain text."""
    declared = _CHARSET.search(data[:2048])
    if declared and not data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        try:
            return data.decode(declared.group(1).decode("ascii"))
        except (LookupError, UnicodeDecodeError):
            pass
    return decode(data)


def parse_xml(data: bytes, name: str) -> list[Part]:
    """The character data of an XML file, one line per element that has some."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        root = fromstring(data, forbid_dtd=False, forbid_entities=True, forbid_external=True)
    except DefusedXmlException:
        raise UnreadableFile(
            "it declares XML entities, which are refused because they can be bombs"
        ) from None
    lines = [" ".join(piece.split()) for piece in root.itertext()]
    title = next(
        (" ".join(e.text.split()) for e in root.iter() if e.text and e.tag.split("}")[-1] == "title"), None
    )
    return [Part("\n".join(line for line in lines if line), title=title)]
