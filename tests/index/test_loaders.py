"""Loaders: every format gives its text, every hostile file fails alone with a reason."""

import io
import os
import zipfile
from email.message import EmailMessage

import pytest

from indexer.errors import LoaderError
from indexer.loaders import load, sandbox, supported


@pytest.fixture(scope="module", autouse=True)
def end_worker():
    yield
    sandbox.close()


def put(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def archive(members) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def only(path, root):
    documents = load(path, root)
    assert len(documents) == 1
    return documents[0]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("héllo wörld", "utf-8-sig"),
        ("hello wörld", "utf-16"),
        ("hello wörld again", "utf-16-le"),
        ("Der Bär läuft über die Straße und frißt große Äpfel.", "latin-1"),
        ("数据库系统是用于存储和管理数据的软件。我们今天学习如何使用它。", "gb18030"),
        ("これは日本語のテキストです。しりとりは言葉遊びです。", "shift_jis"),
        ("이것은 한국어 텍스트입니다. 게임을 하고 싶습니다.", "euc-kr"),
        ("Это русский текст в старой кодировке. Он должен быть прочитан.", "cp1251"),
    ],
)
def test_encodings(tmp_path, text, encoding):
    assert only(put(tmp_path, "a.txt", text.encode(encoding)), tmp_path).text == text


CHINESE = "北京是中华人民共和国的首都，是全国的政治中心、文化中心。\n"
GERMAN = "Die Straßenbahn fährt über die Brücke nach Köln. Müller grüßt schön.\n"


@pytest.mark.parametrize("before", ["", "a", "ab", "abc"])  # one of them moves a character onto the cut
@pytest.mark.parametrize(
    ("line", "encoding"),
    [
        (CHINESE, "gb18030"),
        ("東京は日本の首都であり、世界最大の都市圏を形成しています。これは長い文章です。\n", "shift_jis"),
        ("台北市是中華民國的首都，也是全國的政治中心。\n", "big5"),
        ("서울은 대한민국의 수도이며 가장 큰 도시이다. 한강이 흐른다.\n", "euc_kr"),
    ],
)
def test_long_texts_in_old_encodings(tmp_path, line, encoding, before):
    text = before + line * 1_200
    assert only(put(tmp_path, "a.txt", text.encode(encoding)), tmp_path).text == text


@pytest.mark.parametrize("text", [CHINESE * 50, GERMAN * 50])
def test_damaged_utf8_is_still_utf8(tmp_path, text):
    data = text[:100].encode() + b"\xff" + text[100:].encode()
    assert only(put(tmp_path, "a.txt", data), tmp_path).text == f"{text[:100]}\ufffd{text[100:]}"
    data = text.encode()
    end = data.rindex("ö".encode() if text.startswith("Die") else "中".encode())
    cut = only(put(tmp_path, "b.txt", data[: end + 1]), tmp_path).text
    assert cut == data[:end].decode() + "\ufffd"
    quotes = "“A text” with ‘few’ letters beyond ASCII… and a lot of others that are plain. " * 2
    assert only(put(tmp_path, "d.txt", quotes.encode() + b"\xe2"), tmp_path).text == quotes + "\ufffd"
    rare = "A plain English text without any accents. " * 50 + "Café."
    assert only(put(tmp_path, "c.txt", rare.encode("cp1252")), tmp_path).text == rare


def test_text_that_begins_or_goes_on_like_another_format(tmp_path):
    for name, text in {
        "a.md": "# PDF\n\nA file starts with `%PDF-1.7` and ends with %%EOF.\n",
        "b.txt": "ID3 is an algorithm that builds decision trees.",
    }.items():
        assert only(put(tmp_path, name, text), tmp_path).text == text
    with pytest.raises(LoaderError, match="it is an audio file"):
        load(put(tmp_path, "c.txt", b"ID3\x03\x00"), tmp_path)


def test_plain_text_is_kept_with_unix_line_ends(tmp_path):
    (tmp_path / "sub").mkdir()
    document = only(put(tmp_path / "sub", "a.txt", "a\r\nb\rc"), tmp_path)
    assert (document.id, document.uri, document.title) == ("sub/a.txt", "sub/a.txt", "a.txt")
    assert document.text == "a\nb\nc"


def test_an_empty_file_is_a_document_without_text(tmp_path):
    assert only(put(tmp_path, "empty.md", ""), tmp_path).text == ""


@pytest.mark.parametrize("kind", ["pdf", "docx", "pptx", "xlsx", "epub"])
def test_an_empty_file_of_a_format_that_is_never_empty_is_damaged(tmp_path, kind):
    with pytest.raises(LoaderError, match=rf"^empty\.{kind}: it is damaged: a {kind} file is never empty$"):
        load(put(tmp_path, f"empty.{kind}", ""), tmp_path)


def test_markdown_front_matter(tmp_path):
    source = (
        '---\ntitle: "My doc"\nyear: 2020\ntags: [a, b]\nx: !!python/object:os.system\n---\n# Head\n\nText'
    )
    document = only(put(tmp_path, "a.md", source), tmp_path)
    assert (document.title, document.text) == ("My doc", "# Head\n\nText")
    assert document.metadata == {"year": 2020, "tags": ["a", "b"], "x": "!!python/object:os.system"}
    rule = "---\nThe first: a text before a rule.\nMore of it.\n\n---\nThe second.\n"
    assert only(put(tmp_path, "c.md", rule), tmp_path).text == rule
    nested = "---\n# set by hand\nauthor:\n  name: Me\n\ntags:\n- a\n- b\nlangs: [\n  de,\n]\ntítulo: x\n---\nText"
    assert only(put(tmp_path, "d.md", nested), tmp_path).text == "Text"
    assert only(put(tmp_path, "b.md", "Intro\n\nTitle\n===\nText"), tmp_path).title == "Title"


def test_html(tmp_path):
    source = (
        "<html><head><title>T &amp; t</title><meta name=author content=Me></head><body>"
        "<nav>menu</nav><h1>Big</h1>"
        "<p>One<br>line <b>two</b></p><ul><li>x</li><li>y</li></ul><script>bad()</script></body></html>"
    )
    document = only(put(tmp_path, "a.html", source), tmp_path)
    assert (document.title, document.metadata) == ("T & t", {"author": "Me"})
    assert document.text == "# Big\n\nOne\nline two\n\n- x\n- y"


def test_a_page_inside_a_form_has_its_text(tmp_path):
    source = (
        "<html><body><form><h1>Title</h1><p>All of it.</p><select><option>x</select><textarea>y</textarea>"
        "<button>Go</button></form></body></html>"
    )
    assert only(put(tmp_path, "a.html", source), tmp_path).text == "# Title\n\nAll of it."


@pytest.mark.parametrize(
    ("name", "content", "language"),
    [
        ("a.md", "---\nlang: pt-BR\n---\nOi", "pt"),
        ("a.md", "---\nlang: zh-Hant\n---\n人", "zh"),
        ("a.md", "---\nlanguage: [de, fr]\n---\nHallo", None),
        ("a.md", "---\nlanguage: english\nlang: und\n---\nHello", None),
        ("a.html", '<!doctype html><html lang="gn"><body>Mba\'éichapa</body></html>', "gn"),
        ("a.html", "<!doctype html><html><body>Hello</body></html>", None),
        ("a.jsonl", '{"text": "Habari", "language": "sw"}', "sw"),
        ("a.csv", "text,lang\nHei,fi\n", "fi"),
        ("a.txt", "Hello", None),
    ],
)
def test_a_declared_language_is_the_documents(tmp_path, name, content, language):
    assert only(put(tmp_path, name, content), tmp_path).language == language


def test_office_files(tmp_path):
    import docx
    import openpyxl
    import pptx

    word = docx.Document()
    word.add_heading("Big title", 0)
    word.add_paragraph("Hello world.")
    word.save(tmp_path / "a.docx")
    show = pptx.Presentation()
    slide = show.slides.add_slide(show.slide_layouts[1])
    slide.shapes.title.text, slide.placeholders[1].text = "Slide one", "Body text"
    show.save(tmp_path / "a.pptx")
    book = openpyxl.Workbook()
    book.active.append(["x", 2.0])
    book.save(tmp_path / "a.xlsx")
    texts = {name: only(tmp_path / name, tmp_path).text for name in ("a.docx", "a.pptx", "a.xlsx")}
    assert texts == {
        "a.docx": "# Big title\n\nHello world.",
        "a.pptx": "# Slide one\n\nBody text",
        "a.xlsx": "# Sheet\n\nx | 2",
    }
    (tmp_path / "a.docx").rename(tmp_path / "word.txt")
    assert only(tmp_path / "word.txt", tmp_path).title == "Big title"  # read as what it is


def test_word_content_controls_and_tracked_changes(tmp_path):
    import docx
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    def run(text, tag="t"):
        return f"<w:r><w:{tag} xml:space='preserve'>{text}</w:{tag}></w:r>"

    def control(content):
        return f"<w:sdt><w:sdtPr><w:text/></w:sdtPr><w:sdtContent>{content}</w:sdtContent></w:sdt>"

    def cell(text):
        return f"<w:tc><w:p>{run(text)}</w:p></w:tc>"

    deleted = f"<w:del w:id='2' w:author='x'>{run('gone', 'delText')}</w:del>"
    blocks = [
        control(control(f"<w:p>{run('in two controls')}</w:p>")),
        f"<w:p>{run('kept ')}<w:ins w:id='1' w:author='x'>{run('inserted')}{deleted}</w:ins>{deleted}</w:p>",
        f"<w:p>{control(run('inline '))}<w:smartTag>{run('tag')}</w:smartTag></w:p>",
        "<w:tbl><w:tblPr/><w:tblGrid><w:gridCol/><w:gridCol/></w:tblGrid>"
        + control(f"<w:tr>{cell('a')}{control(cell('b'))}</w:tr>")
        + "</w:tbl>",
    ]
    document = docx.Document()
    for block in reversed(blocks):
        document.element.body.insert(0, parse_xml(block.replace(">", f" {nsdecls('w')}>", 1)))
    document.save(tmp_path / "a.docx")
    expected = "in two controls\n\nkept inserted\n\ninline tag\n\na | b"
    assert only(tmp_path / "a.docx", tmp_path).text == expected


def test_a_sheet_with_a_wrong_dimension(tmp_path):
    import openpyxl

    book, buffer = openpyxl.Workbook(), io.BytesIO()
    book.active.append(["a", "b"])
    book.active.append(["c", "d"])
    book.save(buffer)
    with zipfile.ZipFile(buffer) as file:
        members = {name: file.read(name) for name in file.namelist()}
    sheet = members["xl/worksheets/sheet1.xml"]
    assert b'ref="A1:B2"' in sheet
    members["xl/worksheets/sheet1.xml"] = sheet.replace(b'ref="A1:B2"', b'ref="A1"')
    assert only(put(tmp_path, "a.xlsx", archive(members)), tmp_path).text == "# Sheet\n\na | b\nc | d"


def test_epub(tmp_path):
    container = (
        '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="O/c.opf"/></rootfiles></container>'
    )
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        "<dc:title>Book</dc:title><dc:creator>Writer</dc:creator></metadata><manifest>"
        '<item id="a" href="a%20b.xhtml"/></manifest><spine><itemref idref="a"/></spine></package>'
    )
    page = "<html><body><h1>One</h1><p>hi</p></body></html>"
    data = archive({"META-INF/container.xml": container, "O/c.opf": package, "O/a b.xhtml": page})
    document = only(put(tmp_path, "b.epub", data), tmp_path)
    assert (document.title, document.text, document.metadata) == ("Book", "# One\n\nhi", {"author": "Writer"})


def test_a_table_gives_a_document_per_row(tmp_path):
    rows = load(put(tmp_path, "t.csv", 'id;title;text;year\n7;A;hello;2020\n7;B;"two;parts";x\n'), tmp_path)
    assert [(d.id, d.title, d.text, d.metadata) for d in rows] == [
        ("t.csv#7", "A", "hello", {"year": 2020}),
        ("t.csv#row2", "B", "two;parts", {"year": "x"}),
    ]
    facts = only(put(tmp_path, "f.tsv", "name\tage\nBob\t3\n"), tmp_path)
    assert (facts.id, facts.title, facts.text) == ("f.tsv#1", "Bob", "name: Bob\nage: 3")


def test_cells_are_kept_as_written(tmp_path):
    rows = load(put(tmp_path, "a.csv", "id,text,size\n1.1,1.50,2.50\n1.10,two,007\n"), tmp_path)
    assert [(d.id, d.text, d.metadata) for d in rows] == [
        ("a.csv#1.1", "1.50", {"size": 2.5}),
        ("a.csv#1.10", "two", {"size": "007"}),
    ]
    facts = only(put(tmp_path, "b.csv", "name,version,price\n1.0,1.10,19.90\n"), tmp_path)
    assert (facts.title, facts.text) == ("1.0", "name: 1.0\nversion: 1.10\nprice: 19.90")
    assert facts.metadata == {"name": 1.0, "version": 1.1, "price": 19.9}


def test_no_cell_is_lost(tmp_path):
    twice = only(put(tmp_path, "a.csv", "id,text,note,note,note 2,\n1,x,a,b,c,d\n"), tmp_path)
    assert twice.metadata == {"note": "a", "note 2": "b", "note 2 2": "c", "column 6": "d"}
    rows = load(put(tmp_path, "b.csv", "id,text\n1,Hello, dear world\n2,Bye,,\n3\n"), tmp_path)
    assert [(d.id, d.text) for d in rows] == [
        ("b.csv#1", "Hello, dear world"),
        ("b.csv#2", "Bye"),
        ("b.csv#3", "id: 3"),
    ]


def test_json_lines(tmp_path):
    lines = '{"_id": "p0", "text": "x\\ud800y", "metadata": {"a": NaN, "b": 1}}\n\n{"text": "z"}\n'
    first, second = load(put(tmp_path, "l.jsonl", lines), tmp_path)
    assert (first.id, first.text, first.metadata) == ("l.jsonl#p0", "x\ufffdy", {"a": None, "b": 1})
    assert (second.id, second.title, second.text) == ("l.jsonl#2", None, "z")
    assert only(put(tmp_path, "o.json", '{"a": {"b": [1, "c"]}}'), tmp_path).text == "a.b: 1\na.b: c"


def test_mail(tmp_path):
    headers = "From: a@b.c\nSubject: =?utf-8?b?SMOpbGxv?=\nDate: Mon, 1 Jan 2024 10:00:00 +0000\n"
    source = headers + "Content-Type: text/html\n\n<p>Hi"
    document = only(put(tmp_path, "m.eml", source), tmp_path)
    assert (document.title, document.text) == ("Héllo", "Hi")
    assert document.metadata == {"from": "a@b.c", "date": "2024-01-01T10:00:00+00:00"}


def multipart(kind, *parts) -> str:
    return (
        f'From: a@b.c\nMIME-Version: 1.0\nContent-Type: multipart/{kind}; boundary="x"\n\n'
        + "".join(f"--x\n{part}\n" for part in parts)
        + "--x--\n"
    )


PICTURE = (
    'Content-Type: image/png\nContent-Disposition: inline; filename="a.png"\n'
    "Content-Transfer-Encoding: base64\n\naGk="
)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (multipart("alternative", "\n \n", "Content-Type: text/html\n\n<p>The body</p>"), "The body"),
        (multipart("alternative", "\nplain", "Content-Type: text/html\n\n<p>html</p>"), "plain"),
        (multipart("mixed", "\nfirst", PICTURE, "\nsecond"), "first\n\nsecond"),
        (multipart("mixed", "Content-Type: text/html\n\n<p>body</p>", "\nfooter"), "body\n\nfooter"),
        (multipart("mixed", "\nbody", "Content-Disposition: attachment\n\nunread"), "body"),
        ('From: a@b.c\nContent-Type: text/plain; charset="x-foo"\n\nhello wörld\n', "hello wörld"),
    ],
)
def test_the_text_of_a_mail_is_what_is_shown(tmp_path, source, text):
    assert only(put(tmp_path, "m.eml", source), tmp_path).text == text


def forwarded(levels: int) -> EmailMessage:
    """A message that holds a message that holds ... `levels` of them."""
    message = EmailMessage()
    message["Subject"] = f"Subject {levels}"
    message.set_content(f"Text {levels}.")
    if levels:
        message.add_attachment(forwarded(levels - 1))
        message.add_attachment(b"unread", maintype="application", subtype="x", filename="a.bin")
    return message


def test_forwarded_mail_is_read_too(tmp_path):
    document = only(put(tmp_path, "m.eml", forwarded(2).as_bytes()), tmp_path)
    assert document.text == "Text 2.\n\n# Subject 1\n\nText 1.\n\n# Subject 0\n\nText 0."
    assert (document.title, document.metadata) == ("Subject 2", {"attachments": ["a.bin"]})
    with pytest.raises(LoaderError, match="messages in messages, more than 20 deep"):
        load(put(tmp_path, "deep.eml", forwarded(25).as_bytes()), tmp_path)


def encrypted_pdf() -> bytes:
    from pypdf import PdfWriter

    writer, buffer = PdfWriter(), io.BytesIO()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret")
    writer.write(buffer)
    return buffer.getvalue()


ENTITY = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "b">]><w/>'
HOSTILE = {
    "bomb.docx": (lambda: archive({"word/document.xml": b"0" * 50_000_000}), "a decompression bomb"),
    "entity.docx": (lambda: archive({"word/document.xml": ENTITY}), "declares XML entities"),
    "entity.xml": (
        lambda: b'<!DOCTYPE l [<!ENTITY a "b"><!ENTITY c "&a;&a;">]><x>&c;</x>',
        "declares XML entities",
    ),
    "cut.docx": (lambda: archive({"word/document.xml": b"x" * 5000})[:80], "a damaged zip archive"),
    "damaged.pdf": (lambda: b"%PDF-1.7 nothing", "damaged or not a valid pdf file"),
    "locked.pdf": (encrypted_pdf, "it is encrypted; save it without a password"),
    "locked.txt": (encrypted_pdf, "it is encrypted"),  # a PDF whatever its name
    "text.pdf": (lambda: b"hello", "named .pdf but is not a pdf file"),
    "binary.txt": (lambda: bytes(range(256)) * 20, "binary data, not text"),
    "image.md": (lambda: b"\x89PNG\r\n", "it is a PNG image"),
    "plain.zip": (lambda: archive({"a.txt": b"x"}), "it is a zip archive; unpack it first"),
    "deep.json": (lambda: b"[" * 200_000, "nested too deeply"),
    "bad.jsonl": (lambda: b'{"a": 1}\nnope\n', "line 2 is not JSON"),
    "nothing.eml": (lambda: b"\n\nbody", "it has no message headers"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_fails_with_its_reason(tmp_path, name):
    make, reason = HOSTILE[name]
    with pytest.raises(LoaderError, match=reason) as caught:
        load(put(tmp_path, name, make()), tmp_path)
    assert caught.value.path == name
    assert only(put(tmp_path, "next.html", "<p>fine"), tmp_path).text == "fine"


def test_what_is_no_file(tmp_path):
    inside = tmp_path / "root"
    inside.mkdir()
    put(tmp_path, "secret.txt", "secret")
    put(inside, "real.txt", "real")
    (inside / "out.txt").symlink_to(tmp_path / "secret.txt")
    (inside / "in.txt").symlink_to(inside / "real.txt")
    (inside / "dangling.txt").symlink_to("nowhere")
    os.mkfifo(inside / "fifo.txt")
    (inside / "sparse.txt").touch()
    os.truncate(inside / "sparse.txt", 2 << 30)
    assert only(inside / "in.txt", inside).text == "real"
    for name, reason in {
        "out.txt": "it is a link to .*secret.txt, outside the folder",
        "dangling.txt": "no such file",
        "fifo.txt": "it is a FIFO, not a regular file",
        "sparse.txt": "2,147,483,648 bytes; a file may have 209,715,200",
        "missing.txt": "no such file",
    }.items():
        with pytest.raises(LoaderError, match=reason):
            load(inside / name, inside)


def test_a_parser_that_takes_too_long_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "LOADER_SECONDS", 0)
    path = put(tmp_path, "a.html", "<p>slow</p>" * 100_000)
    with pytest.raises(LoaderError, match="reading it took more than 0 seconds"):
        load(path, tmp_path)
    monkeypatch.undo()
    assert only(path, tmp_path).text.startswith("slow\n")


def test_supported_names(tmp_path):
    assert supported(tmp_path / "A.PDF") and supported(tmp_path / "README") and supported(tmp_path / "x.py")
    assert not supported(tmp_path / "x.png") and not supported(tmp_path / "x")
