"""From a question to a cited answer, in one file, in the order in which it happens.

question -> standalone query (the turns before it) -> search -> passages (no duplicates, within a token
budget, in reading order, numbered) -> generator -> text with [n] marks -> citations with verbatim quotes
and offsets.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from indexer.answers.evidence import standalone_query, text_terms
from indexer.answers.generators import make_generator
from indexer.answers.generators.base import Generator, Passage, Quote, Request
from indexer.answers.generators.extractive import rank_sentences
from indexer.answers.marks import CitationMarks, without_thoughts
from indexer.answers.prompts import without_marks
from indexer.answers.words import says_silence, silence
from indexer.chunking import sentences
from indexer.errors import InvalidQuery, LimitExceeded
from indexer.language import identify_language
from indexer.limits import MAX_QUERY_CHARS
from indexer.types import Answer, Citation, Embedder, Message, SearchHit, SearchOptions

MAX_PASSAGE_TOKENS = 2_000
MAX_HISTORY_TOKENS = 1_000
NEAR_DUPLICATE = 0.9  # Jaccard similarity of the terms of two passages
CLAIM_CHARS = 400


class Searchable(Protocol):
    """What answering needs of a collection."""

    @property
    def embedder(self) -> Embedder: ...
    def search(self, query: str, options: SearchOptions = ...) -> list[SearchHit]: ...


def answer(
    collection: Searchable,
    question: str,
    *,
    generator: str | Generator = "extractive",
    history: Sequence[Message] = (),
    top_k: int = 8,
    where: Any = None,
    max_passage_tokens: int = MAX_PASSAGE_TOKENS,
) -> Answer:
    """The whole answer at once; see `answer_stream`."""
    *_, last = answer_stream(
        collection,
        question,
        generator=generator,
        history=history,
        top_k=top_k,
        where=where,
        max_passage_tokens=max_passage_tokens,
    )
    assert isinstance(last, Answer)
    return last


def answer_stream(
    collection: Searchable,
    question: str,
    *,
    generator: str | Generator = "extractive",
    history: Sequence[Message] = (),
    top_k: int = 8,
    where: Any = None,
    max_passage_tokens: int = MAX_PASSAGE_TOKENS,
) -> Iterator[str | Answer]:
    """Pieces of the answer's text as they are written, then the `Answer`, whose text is all pieces joined.

    Searching is done before this returns, so its errors (InvalidQuery, InvalidFilter, LimitExceeded) come
    from the call and only GeneratorError can come from the iteration. Closing the iterator stops the
    generator before its next token; an empty piece says that a generator is still reading, so that a
    reader who has left can be noticed. `top_k` passages are looked up and as many of them as fit
    `max_passage_tokens` (tokens of the embedder) are read. `generator` may be a specification as in
    `make_generator`; one that loads a model is better made once and passed as an object.
    """
    if not question.strip():
        raise InvalidQuery("the question is empty; ask something")
    if len(question) > MAX_QUERY_CHARS:
        raise LimitExceeded(
            f"the question has {len(question)} characters; at most {MAX_QUERY_CHARS} are allowed"
        )
    if max_passage_tokens < 1:
        raise InvalidQuery(f"max_passage_tokens is {max_passage_tokens}; at least 1 is needed")
    writer = make_generator(generator) if isinstance(generator, str) else generator
    query = standalone_query(question, history)[-MAX_QUERY_CHARS:]
    hits = collection.search(query, SearchOptions(top_k=top_k, where=where))
    passages = pack(hits, collection.embedder, max_passage_tokens)
    recent = recent_turns(history, collection.embedder, MAX_HISTORY_TOKENS)
    return _write(writer, Request(question, query, passages, recent, collection.embedder))


# --- passages ------------------------------------------------------------------------------------


def pack(hits: Sequence[SearchHit], embedder: Embedder, max_tokens: int) -> list[Passage]:
    """The best hits that fit the budget, without near-duplicates, in reading order and numbered from 1.

    Reading order puts neighbouring passages of a document together, and it makes the prompt depend on which
    passages were found and not on their rank: the states a generator keeps are found again.
    """
    kept = _distinct(hits)
    counts = embedder.count_tokens([hit.text for hit in kept])
    chosen: list[tuple[SearchHit, str]] = []
    left = max_tokens
    for hit, tokens in zip(kept, counts, strict=True):
        if tokens <= left:
            chosen.append((hit, hit.text))
            left -= tokens
    if kept and not chosen:
        chosen.append((kept[0], _beginning(kept[0].text, counts[0], max_tokens, embedder)))
    chosen.sort(key=lambda pair: (pair[0].document_id, pair[0].start))
    return [Passage(n, hit, text) for n, (hit, text) in enumerate(chosen, start=1)]


def _distinct(hits: Sequence[SearchHit]) -> list[SearchHit]:
    kept: list[tuple[SearchHit, frozenset[str]]] = []
    for hit in hits:
        own = text_terms(hit.text)
        if hit.text.strip() and not any(_same(hit, own, other, its) for other, its in kept):
            kept.append((hit, own))
    return [hit for hit, _ in kept]


def _same(hit: SearchHit, own: frozenset[str], other: SearchHit, its: frozenset[str]) -> bool:
    inside = hit.document_id == other.document_id and other.start <= hit.start and hit.end <= other.end
    return inside or hit.text == other.text or (len(own & its) >= NEAR_DUPLICATE * max(1, len(own | its)))


def _beginning(text: str, tokens: int, max_tokens: int, embedder: Embedder) -> str:
    """The first sentences of `text` within the budget; a part of the first one if even that is too long."""
    spans = sentences(text)
    end, left = 0, max_tokens
    for (_, stop), count in zip(spans, embedder.count_tokens([text[a:b] for a, b in spans]), strict=True):
        if count > left:
            break
        end, left = stop, left - count
    indent = len(text) - len(text.lstrip())
    return text[: end or indent + max(1, (len(text) - indent) * max_tokens // tokens)]


def recent_turns(history: Sequence[Message], embedder: Embedder, max_tokens: int) -> list[Message]:
    """The latest turns that fit the budget, in order."""
    counts = embedder.count_tokens([message.content for message in history])
    start = len(history)
    while start and counts[start - 1] <= max_tokens:
        start -= 1
        max_tokens -= counts[start]
    return list(history[start:])


# --- writing -------------------------------------------------------------------------------------


def _write(generator: Generator, request: Request) -> Iterator[str | Answer]:
    marks = CitationMarks({passage.n for passage in request.passages})
    quoted: list[Citation] = []
    pieces = generator.generate(request) if request.passages else iter(())
    try:
        for piece in without_thoughts(pieces):
            text = _show(piece, marks, quoted) if isinstance(piece, Quote) else marks.feed(piece)
            if text or not piece:
                yield text
    finally:
        if close := getattr(pieces, "close", None):
            close()
    if rest := marks.finish():
        yield rest
    text = marks.text
    if not text.strip():
        text = silence(identify_language(request.question))
        yield text
        yield Answer(text, abstained=True, citations=())
        return
    abstained = says_silence(without_marks(text))
    if not abstained and not marks.places and not quoted and (source := _unmarked_source(text, request)):
        mark = f" {marks.cite(source)}"
        marks.text = text = text + mark
        yield mark
    yield Answer(text, abstained, () if abstained else quoted or _supporting_quotes(marks, request))


def _show(quote: Quote, marks: CitationMarks, quoted: list[Citation]) -> str:
    """A quoted sentence on a line of its own with its mark; every quote is a citation."""
    n = len(quoted) + 1
    quoted.append(_citation(n, quote))
    text = ("\n" if n > 1 else "") + f"{' '.join(quote.text.split())} [{n}]"
    marks.text += text
    return text


def _supporting_quotes(marks: CitationMarks, request: Request) -> list[Citation]:
    """For each passage that the text cites: its sentence nearest to the statement that carries the mark."""
    by_number = {passage.n: passage for passage in request.passages}
    citations = []
    for passage_n, (n, place) in marks.places.items():
        passage = by_number[passage_n]
        spans = sentences(passage.text)
        claim = _claim(marks.text[:place]) or request.question
        vectors = request.embedder.encode_document([claim, *(passage.text[a:b] for a, b in spans)])
        similarities = vectors[1:] @ vectors[0]
        best = int(similarities.argmax())
        score = float(min(1.0, max(0.0, similarities[best])))
        citations.append(_citation(n, Quote(passage, *spans[best], score=score)))
    return citations


def _unmarked_source(text: str, request: Request) -> int | None:
    """The number of the passage that a text without marks rests on, if one answers to it.

    Small models forget the marks. What they wrote is then looked for like a question: a text that no passage
    supports stays without a source.
    """
    ranking = rank_sentences(_claim(text), request.passages, request.embedder)
    return ranking.quotes[0].passage.n if ranking.supported else None


def _claim(text: str) -> str:
    """The last sentence of the text before a mark, without other marks."""
    tail = " ".join(without_marks(text[-CLAIM_CHARS:]).split())
    spans = sentences(tail)
    return tail[slice(*spans[-1])] if spans else tail


def _citation(n: int, quote: Quote) -> Citation:
    hit = quote.passage.hit
    return Citation(
        n=n,
        document_id=hit.document_id,
        chunk_id=hit.chunk_id,
        title=hit.title,
        uri=hit.uri,
        quote=quote.text,
        start=hit.start + quote.start,
        end=hit.start + quote.end,
        score=quote.score,
    )
