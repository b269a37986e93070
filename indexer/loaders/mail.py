"""E-mail messages: subject as title, sender, recipients and date as metadata, the body as text."""

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

from indexer.loaders.markup import html_text
from indexer.loaders.part import Part, UnreadableFile


def parse_eml(data: bytes, name: str) -> list[Part]:
    """The plain-text body, else the HTML body as text. Attachments are named in the metadata, not read."""
    message = message_from_bytes(data, policy=default)
    if not isinstance(message, EmailMessage) or not message.keys():
        raise UnreadableFile("it has no message headers")
    body = message.get_body(preferencelist=("plain", "html"))
    content = str(body.get_content()) if body is not None else ""
    if body is not None and body.get_content_type() == "text/html":
        content = html_text(content)
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
    return [
        Part(
            content.strip(), title=str(message["Subject"]) if message["Subject"] else None, metadata=metadata
        )
    ]
