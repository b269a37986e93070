"""Word, PowerPoint and Excel files (the zip formats of Office 2007 and later)."""

import io
from collections.abc import Iterator
from typing import Any

from indexer.loaders.archive import open_archive, refuse_entities
from indexer.loaders.part import Part


def parse_docx(data: bytes, name: str) -> list[Part]:
    """Paragraphs and tables in reading order; heading styles become `# …`, list styles `- …`."""
    import docx

    refuse_entities(open_archive(data))
    document = docx.Document(io.BytesIO(data))
    _unwrap(document.element.body)
    blocks: list[str] = []
    title = None
    for item in document.iter_inner_content():
        if hasattr(item, "rows"):
            rows = (_row(cell.text for cell in _unmerged(row.cells)) for row in item.rows)
            blocks.append("\n".join(row for row in rows if row))
            continue
        text, style = item.text.strip(), (item.style.name or "") if item.style is not None else ""
        if not text:
            continue
        level = 1 if style == "Title" else _heading_level(style)
        if level:
            title = title or text
        blocks.append(f"{'#' * level} {text}" if level else f"- {text}" if style.startswith("List") else text)
    properties = document.core_properties
    return [
        Part("\n\n".join(blocks), title=properties.title or title, metadata=_properties(properties)),
    ]


def parse_pptx(data: bytes, name: str) -> list[Part]:
    """Each slide's title as a heading, then its texts, tables and notes."""
    import pptx

    refuse_entities(open_archive(data))
    presentation = pptx.Presentation(io.BytesIO(data))
    blocks: list[str] = []
    first_title = None
    for number, slide in enumerate(presentation.slides, start=1):
        title = slide.shapes.title
        heading = (title.text_frame.text.strip() if title is not None else "") or f"{number}"
        first_title = first_title or (heading if title is not None else None)
        blocks.append("# " + " ".join(heading.split()))
        blocks += [
            text
            for shape in slide.shapes
            if title is None or shape.shape_id != title.shape_id
            for text in _shape(shape)
        ]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            blocks.append(slide.notes_slide.notes_text_frame.text.strip())
    properties = presentation.core_properties
    text = "\n\n".join(block for block in blocks if block)
    return [Part(text, title=properties.title or first_title, metadata=_properties(properties))]


def parse_xlsx(data: bytes, name: str) -> list[Part]:
    """Each sheet as a heading and a line per row, `value | value`. Formulas give their last value."""
    import openpyxl

    refuse_entities(open_archive(data))
    workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    blocks: list[str] = []
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # some programs write A1 there, and only that cell would be read
        rows = (_row(_cell(value) for value in row) for row in sheet.iter_rows(values_only=True))
        lines = [row for row in rows if row]
        if lines:
            blocks.append(f"# {sheet.title}\n\n" + "\n".join(lines))
    return [
        Part("\n\n".join(blocks), title=workbook.properties.title, metadata=_properties(workbook.properties))
    ]


def _unwrap(body: Any) -> None:
    """Replace content controls, tracked insertions and the like by what they hold: python-docx skips them."""
    from docx.oxml.ns import qn

    wrappers = ("w:sdt", "w:ins", "w:moveTo", "w:smartTag", "w:customXml", "w:fldSimple")
    for wrapper in list(body.iter(*map(qn, wrappers))):
        content = wrapper.find(qn("w:sdtContent")) if wrapper.tag == qn("w:sdt") else wrapper
        for element in list(content if content is not None else ()):
            wrapper.addprevious(element)
        wrapper.getparent().remove(wrapper)


def _heading_level(style: str) -> int:
    """1 to 6 for "Heading 1" to "Heading 9"; 0 for any other style."""
    number = style.removeprefix("Heading ")
    return min(6, int(number)) if number != style and number.isdigit() else 0


def _unmerged(cells: Any) -> Iterator[Any]:
    """A merged cell is reported once per column it covers; give it once."""
    last = None
    for cell in cells:
        if cell._tc is not last:
            yield cell
        last = cell._tc


def _shape(shape: Any) -> Iterator[str]:
    if shape.has_text_frame:
        yield shape.text_frame.text.strip()
    elif getattr(shape, "has_table", False) and shape.has_table:
        yield "\n".join(_row(cell.text for cell in row.cells) for row in shape.table.rows)
    for inner in getattr(shape, "shapes", ()):  # a group
        yield from _shape(inner)


def _row(values: Any) -> str:
    texts = [" ".join(value.split()) for value in values]
    return " | ".join(texts).strip(" |") and " | ".join(texts)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) and value.is_integer() else str(value)


def _properties(properties: Any) -> dict[str, str]:
    """The document's own author and keywords, where it has them."""
    author = getattr(properties, "author", None) or getattr(properties, "creator", None)
    fields = {"author": author, "keywords": getattr(properties, "keywords", None)}
    # The libraries' own names in files that never had an author.
    return {key: value for key, value in fields.items() if value and value not in ("python-docx", "openpyxl")}
