"""E-mail messages: subject as title, sender, recipients and date as metadata, the body as text."""

from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage, MIMEPart
from email.policy import default
from typing import Any

from indexer.loaders.markup import html_text
from indexer.loaders.part import Part, UnreadableFile
from indexer.loaders.plain import decode

_MAX_DEPTH = 20  # of messages in messages: more than people forward, less than Python's recursion


def parse_eml(data: bytes, name: str) -> list[Part]:
    """The text of the message and of the messages forwarded in it, each of these under its subject.

    A text is the plain body, else the HTML body. Other attachments are named in the metadata, not read.
    """
    message = message_from_bytes(data, policy=default)
    if not isinstance(message, EmailMessage) or not message.keys():
        raise UnreadableFile("it has no message headers")
    metadata: dict[str, object] = {
        key: str(message[header])
        for key, header in (("from", "From"), ("to", "To"), ("date", "Date"))
        if message[header]
    }
    if message["Date"] and message["Date"].datetime:
        metadata["date"] = message["Date"].datetime.isoformat()
    attachments = [part.get_filename() for part in message.iter_attachments() if part.get_filename()]
    if attachments:
        metadata["attachments"] = attachments
    text = "\n\n".join([_body(message), *_forwarded(message)])
    return [
        Part(text.strip(), title=str(message["Subject"]) if message["Subject"] else None, metadata=metadata)
    ]


def _body(part: MIMEPart) -> str:
    """What a mail program shows: of alternatives the plain one, or another if that is blank."""
    kind = part.get_content_type()
    if part.is_attachment() or part.get_content_maintype() == "message":
        return ""
    if part.is_multipart():
        parts = list(part.iter_parts())
        if kind == "multipart/alternative":
            parts.sort(key=lambda each: each.get_content_type() != "text/plain")
            return next(filter(None, map(_body, parts)), "")
        return "\n\n".join(filter(None, map(_body, parts)))
    if kind == "text/html":
        return html_text(_content(part))
    return _content(part).strip() if kind == "text/plain" else ""


def _content(part: MIMEPart) -> str:
    try:
        return str(part.get_content())
    except LookupError:  # a character set that Python does not know
        data: Any = part.get_payload(decode=True)
        return decode(data)


def _forwarded(message: EmailMessage, depth: int = 1) -> Iterator[str]:
    """The messages attached to this one and to those, as Markdown sections."""
    for part in message.iter_attachments():
        if part.get_content_type() != "message/rfc822":
            continue
        inner = part.get_content()
        if depth > _MAX_DEPTH:
            raise UnreadableFile(f"it has messages in messages, more than {_MAX_DEPTH} deep")
        yield f"# {inner['Subject'] or 'Forwarded message'}\n\n{_body(inner)}"
        yield from _forwarded(inner, depth + 1)
