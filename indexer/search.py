"""Search a collection: dense, lexical or both, filtered, grouped, spread out, explained.

    query -> vector -> dense ranking ---+
      `----> terms --> lexical ranking -+-> fusion -> one per document -> rerank -> variety -> page -> hits

Filters never cost results. Each arm first ranks without the filter and keeps what passes, which is the right
answer whenever enough passes; only when too little does, the passing chunk ids are listed and the arm ranks
those alone. Every stage that drops candidates (filter, grouping) makes the search go deeper until `top_k`
hits are found or nothing is left. "phrases" and -exclusions of a query hold in every mode.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from indexer.analysis import query_terms
from indexer.best_sentence import raised, worth_reading
from indexer.chunking import Span, sentences
from indexer.db.ids import all_ids, among, as_json
from indexer.db.tables import ChunkRow, CollectionRow, DocumentRow
from indexer.errors import InvalidQuery, LimitExceeded
from indexer.fulltext import ParsedQuery, parse_query
from indexer.fusion import fuse, maximal_marginal_relevance
from indexer.languages import languages_of
from indexer.limits import MAX_QUERY_CHARS, MAX_TOP_K
from indexer.loaders.clean import clean_text
from indexer.types import SearchHit, SearchOptions
from indexer.writing import batched

if TYPE_CHECKING:
    from indexer.collection import Collection
    from indexer.filters import Filter

MIN_DEPTH = 200  # candidates of each arm
DEPTH_PER_HIT = 3
MAX_DEPTH = 100_000  # where the search for one more document gives up
MAX_OFFSET = 10_000
RERANK_DEPTH = 50
MMR_DEPTH = 5  # candidates per hit among which variety is looked for
SURE = 4  # an approximate index finds the first quarter of a ranking best: there must be enough that pass a filter
ANALYSED_PASSAGES = 1_000  # whose sentences' terms are remembered, about 10 kB each
MIN_LOOKED_UP = 50  # candidates at a time whose documents are asked for

Ranking = list[tuple[int, float]]  # (chunk id, score), best first
Arm = Callable[[int, NDArray[np.int64] | None], Ranking]  # (depth, the only chunk ids)


def search(collection: "Collection", query: str, options: SearchOptions | None = None) -> list[SearchHit]:
    """The best passages for `query`, best first.

    Scores are cosines (dense; levelled between the languages of a collection, `indexer.languages`, and mixed with
    that of a passage's best sentence, `indexer.best_sentence`), BM25 (lexical) or the sum of both on a common
    scale (hybrid, `fusion.fuse`); a reranker's own when it is asked for. Raises InvalidQuery, InvalidFilter or
    LimitExceeded; no text of a query is ever an error, unless it is empty, too long or only excludes.
    """
    options = options or SearchOptions()
    query = clean_text(query)
    _check(query, options)
    with collection.session() as session:
        request = _Request(collection, session, query, options)
        page = _page(request, options)
        if options.score_threshold is not None:
            page = [candidate for candidate in page if candidate.score >= options.score_threshold]
        return request.hits(page)


def _page(request: "_Request", options: SearchOptions) -> "list[_Candidate]":
    """The candidates of a page, cut from a sequence that does not depend on where the page begins.

    The sequence is what the arms find at the depth that the first page needs, then what they find besides at four
    times that depth, and so on. Each of these parts is cut into blocks, which are reranked and spread out alone.
    """
    end = options.offset + options.top_k
    size = _block_size(options)
    depth, pool = _first_depth(size), -(-end // size) * size
    blocks: list[list[_Candidate]] = []
    known: set[int] = set()
    while True:
        candidates, exhausted = request.candidates(depth, pool + len(known))
        at_end = exhausted or depth >= MAX_DEPTH
        if known or at_end or len(candidates) >= options.top_k:  # else even the first page wants more depth
            found = {request.key(candidate): candidate for candidate in candidates}
            blocks += batched([found[key] for key in found if key not in known], size)
            known.update(found)
            if at_end or len(known) >= end:
                break
            request.narrow = request.conditional  # nothing that passes is missed, however far the page
        depth *= 4
    ranking: list[_Candidate] = []
    for block in blocks:
        if len(ranking) >= end:
            break
        seen = len(ranking) + len(block) > options.offset
        ranking += request.ordered(block, len(ranking), end - len(ranking)) if seen else block
    return ranking[options.offset : end]


def arm_rankings(collection: "Collection", query: str, depth: int) -> dict[str, Ranking]:
    """What each arm ranks for a query, before fusion: what fusion is tuned on."""
    with collection.session() as session:
        request = _Request(collection, session, query, SearchOptions())
        dense, lexical = request._dense(depth, None), request._lexical(depth, None)
        return {"dense": request._closer(dense, lexical), "lexical": lexical}


@dataclass(slots=True)
class _Candidate:
    """A chunk that may become a hit, and where it came from."""

    chunk_id: int
    document_id: int
    score: float
    origin: dict[str, dict[str, float]]  # arm -> rank and score


def _check(query: str, options: SearchOptions) -> None:
    if not query.strip():
        raise InvalidQuery("the query is empty; expected some words to look for")
    if len(query) > MAX_QUERY_CHARS:
        raise LimitExceeded(
            f"the query has {len(query):,} characters; at most {MAX_QUERY_CHARS:,} are allowed"
        )
    if not 1 <= options.top_k <= MAX_TOP_K:
        raise InvalidQuery(f"top_k is {options.top_k}; expected 1 to {MAX_TOP_K}")
    if not 0 <= options.offset <= MAX_OFFSET:
        raise InvalidQuery(f"offset is {options.offset}; expected 0 to {MAX_OFFSET}")
    if options.mode not in ("dense", "lexical", "hybrid"):
        raise InvalidQuery(f"mode is {options.mode!r}; expected dense, lexical or hybrid")
    if options.group_by not in ("chunk", "document"):
        raise InvalidQuery(f"group_by is {options.group_by!r}; expected chunk or document")
    if options.score_threshold is not None and not isfinite(options.score_threshold):
        raise InvalidQuery(f"score_threshold is {options.score_threshold}; expected a finite number")
    if options.mmr_lambda is not None and not 0 <= options.mmr_lambda <= 1:
        raise InvalidQuery(f"mmr_lambda is {options.mmr_lambda}; expected 0 (variety) to 1 (relevance)")


def _first_depth(wanted: int) -> int:
    """How many candidates each arm starts with. Fused ranks depend on it, so it grows in few, large steps."""
    depth = MIN_DEPTH
    while depth < DEPTH_PER_HIT * wanted:
        depth *= 4
    return depth


def _block_size(options: SearchOptions) -> int:
    """How many candidates are reranked, or among how many variety is looked for, at a time."""
    if options.rerank:
        return max(RERANK_DEPTH, options.top_k)
    return options.top_k * (MMR_DEPTH if options.mmr_lambda is not None else 1)


class _Request:
    """One search: the parsed query and filter, and the arms that rank for it."""

    def __init__(
        self, collection: "Collection", session: Session, query: str, options: SearchOptions
    ) -> None:
        self.collection, self.session, self.query, self.options = collection, session, query, options
        self.parsed: ParsedQuery = parse_query(query)
        if not self.parsed.text.strip():
            raise InvalidQuery("the query only excludes; add something to look for")
        self.filter = self._filter()
        self.passes = self._condition()
        self.demanded = collection.store.fulltext.demanded(collection.id, query, ChunkRow.id.expression)
        self.conditional = self.passes is not None or self.demanded is not None
        self.by_document = options.group_by == "document"
        self.narrow = False  # whether an arm found too little that fulfils the condition
        # What loads or asks for a connection of its own comes before this request's first statement, which takes
        # one for as long as the request lasts: were each to ask for a second, all could wait for each other.
        self.index = collection.index
        self.vector: NDArray[np.float32] | None = None
        if options.mode != "lexical":
            self.vector = collection.embedder.encode_query(self.parsed.text)
        self.reranker = collection.reranker if options.rerank else None
        self.cosines: dict[int, float] = {}  # by chunk id, where the dense score is another
        self.nearest: dict[int, tuple[float, Span]] = {}  # by chunk id: a passage's best sentence

    def candidates(self, depth: int, wanted: int) -> tuple[list[_Candidate], bool]:
        """The best `wanted` candidates after fusion and grouping; and whether the arms have no more.

        Each arm ranks `depth` chunks.
        """
        arms = {"dense": self._dense, "lexical": self._lexical}
        names = list(arms) if self.options.mode == "hybrid" else [self.options.mode]
        rankings, exhausted = {}, True
        for name in names:
            rankings[name], at_end = self._passing(arms[name], depth)
            exhausted = exhausted and at_end
        if "dense" in rankings:
            rankings["dense"] = self._closer(rankings["dense"], rankings.get("lexical", []))
        if len(rankings) == 1:
            fused = next(iter(rankings.values()))
        else:
            fused = fuse(rankings["dense"], rankings["lexical"], self.parsed.size)
        return self._placed(fused, rankings, wanted), exhausted

    def key(self, candidate: _Candidate) -> int:
        """What a search gives only once."""
        return candidate.document_id if self.by_document else candidate.chunk_id

    def ordered(self, block: list[_Candidate], before: int, count: int) -> list[_Candidate]:
        """The first `count` of a block as they are shown; `before` candidates come before it."""
        if self.options.rerank:
            block = self._reranked(block, before)
        if self.options.mmr_lambda is not None:
            block = self._spread(block, count, self.options.mmr_lambda)
        return block

    def hits(self, page: Sequence[_Candidate]) -> list[SearchHit]:
        """The hits of a page, in its order."""
        ids = [candidate.chunk_id for candidate in page]
        rows = {row.id: row for row in self.session.execute(_HITS, {"ids": as_json(ids)})}
        wanted = frozenset(query_terms(self.parsed.text))
        return [self._hit(one, rows[one.chunk_id], wanted) for one in page if one.chunk_id in rows]

    def _hit(self, candidate: _Candidate, row: Any, wanted: frozenset[str]) -> SearchHit:
        return SearchHit(
            score=candidate.score,
            document_id=row.external_id,
            chunk_id=row.id,
            title=row.title,
            uri=row.uri,
            language=row.language,
            text=row.text,
            start=row.start,
            end=row.end,
            metadata=row.meta,
            highlights=highlights(wanted, row.text) or self._nearest_sentence(row.id),
            explain=candidate.origin if self.options.explain else None,
        )

    def _nearest_sentence(self, chunk_id: int) -> list[Span]:
        """The sentence of a passage that is nearest to the query, if its sentences were read."""
        return [self.nearest[chunk_id][1]] if chunk_id in self.nearest else []

    def _filter(self) -> "Filter | None":
        if self.options.where is None:
            return None
        from indexer.filters import parse

        return parse(self.options.where)

    def _condition(self) -> ColumnElement[bool] | None:
        if self.filter is None:
            return None
        from indexer.filters import to_sql

        return to_sql(self.filter, self.session.get_bind().dialect)

    def _passing(self, arm: Arm, depth: int) -> tuple[Ranking, bool]:
        """The arm's best chunks that fulfil the condition, up to `depth`; and whether there are no more."""
        if not self.narrow:
            ranking = arm(depth, None)
            at_end = len(ranking) < depth
            if not self.conditional:
                return ranking, at_end
            passing = self._fulfilling([chunk_id for chunk_id, _ in ranking])
            wanted = self.options.top_k
            surest = ranking[: max(depth // SURE, wanted)]
            if at_end or sum(chunk_id in passing for chunk_id, _ in surest) >= wanted:
                return [(chunk_id, score) for chunk_id, score in ranking if chunk_id in passing], at_end
            self.narrow = True  # the other arm need not try
        ranking = arm(depth, self._allowed_ids)
        return ranking, len(ranking) < depth

    def _dense(self, depth: int, allowed: NDArray[np.int64] | None) -> Ranking:
        assert self.vector is not None
        view = self.index.synchronised(self.session)
        ids, scores = view.search(self.vector, depth, allowed=allowed, exact=self.options.exact)
        ranking = list(zip(ids.tolist(), scores.tolist(), strict=True))
        leanings = self.index.memory.leanings(self.session, view).of(self.vector)
        return self._levelled(ranking, leanings) if leanings else ranking

    def _levelled(self, ranking: Ranking, leanings: Mapping[str, float]) -> Ranking:
        """Cosines without what they owe to the passages' languages."""
        self.cosines.update(ranking)
        languages = languages_of(self.session, [chunk_id for chunk_id, _ in ranking])
        levelled = [
            (chunk_id, cosine - leanings.get(languages.get(chunk_id) or "", 0.0))
            for chunk_id, cosine in ranking
        ]
        return sorted(levelled, key=lambda pair: (-pair[1], pair[0]))

    def _closer(self, dense: Ranking, lexical: Ranking) -> Ranking:
        """The dense ranking after a look at the sentences of its first passages."""
        share = self.collection.embedder.sentence_share
        if not share or self.vector is None:
            return dense
        scores = dict(dense)
        texts = self._texts(worth_reading(dense, lexical))
        nearest = self.index.memory.sentences.nearest(self.collection.embedder, self.vector, texts)
        self.nearest.update(nearest)
        gains = {id: best - self.cosines.setdefault(id, scores[id]) for id, (best, _) in nearest.items()}
        return raised(dense, gains, share)

    def _texts(self, ids: Iterable[int]) -> dict[int, str]:
        """The texts of those chunks that are there."""
        rows = self.session.execute(_TEXTS, {"ids": as_json(ids)})
        return {row.id: row.text for row in rows}

    def _lexical(self, depth: int, allowed: NDArray[np.int64] | None) -> Ranking:
        return self.collection.store.fulltext.search(
            self.session.connection(), self.collection.id, self.query, depth, allowed
        )

    @cached_property
    def _allowed_ids(self) -> NDArray[np.int64]:
        """The ids of all chunks that fulfil the condition, ascending."""
        version = self.session.scalar(
            select(CollectionRow.version).where(CollectionRow.id == self.collection.id)
        )
        # repr: as keys, x = 1 and x = true would be equal
        key = (version, repr(self.filter), self.parsed.phrases, self.parsed.excluded)
        return self.index.memory.listed(key, self._list)

    def _list(self) -> NDArray[np.int64]:
        """Documents first, as there are fewer."""
        chunks = select(ChunkRow.id).where(ChunkRow.collection_id == self.collection.id)
        if self.passes is not None:
            documents = select(DocumentRow.id).where(
                DocumentRow.collection_id == self.collection.id, self.passes
            )
            chunks = select(ChunkRow.id).where(ChunkRow.document_id.in_(documents))
        if self.demanded is not None:
            chunks = chunks.where(self.demanded)
        return all_ids(self.session, chunks)

    def _fulfilling(self, ids: Sequence[int]) -> set[int]:
        """Which of a few chunks fulfil the condition."""
        chunks = select(ChunkRow.id).where(among(ChunkRow.id, ids))
        if self.passes is not None:
            chunks = chunks.join(DocumentRow, DocumentRow.id == ChunkRow.document_id).where(self.passes)
        return set(self.session.scalars(chunks if self.demanded is None else chunks.where(self.demanded)))

    def _placed(self, fused: Ranking, rankings: dict[str, Ranking], wanted: int) -> list[_Candidate]:
        """The best `wanted` candidates, or documents with their best; without chunks deleted a moment ago."""
        ranks = {
            arm: {chunk_id: rank for rank, (chunk_id, _) in enumerate(ranking)}
            for arm, ranking in rankings.items()
        }
        found: dict[int, _Candidate] = {}
        for page in batched(fused, max(wanted, MIN_LOOKED_UP)):
            ids = [chunk_id for chunk_id, _ in page]
            rows = self.session.execute(_DOCUMENTS, {"ids": as_json(ids)})
            documents = {row.id: row.document_id for row in rows}
            for chunk_id, score in page:
                document_id = documents.get(chunk_id)
                if document_id is None or (key := document_id if self.by_document else chunk_id) in found:
                    continue
                origin = {
                    arm: {"rank": place + 1, "score": rankings[arm][place][1]}
                    for arm, places in ranks.items()
                    if (place := places.get(chunk_id)) is not None
                }
                if "dense" in origin and chunk_id in self.cosines:
                    origin["dense"]["cosine"] = self.cosines[chunk_id]
                if "dense" in origin and chunk_id in self.nearest:
                    origin["dense"]["sentence"] = self.nearest[chunk_id][0]
                found[key] = _Candidate(chunk_id, document_id, score, origin)
            if len(found) >= wanted:
                break
        return list(found.values())[:wanted]

    def _reranked(self, best: list[_Candidate], before: int) -> list[_Candidate]:
        """The candidates in the reranker's order and with its scores."""
        assert self.reranker is not None
        texts = self._texts(candidate.chunk_id for candidate in best)
        scores = self.reranker.score(self.parsed.text, [texts[candidate.chunk_id] for candidate in best])
        for rank, (candidate, score) in enumerate(zip(best, scores, strict=True), before + 1):
            candidate.origin["first"] = {"rank": rank, "score": candidate.score}
            candidate.score = float(score)
        return sorted(best, key=lambda candidate: (-candidate.score, candidate.chunk_id))

    def _spread(self, block: list[_Candidate], count: int, trade_off: float) -> list[_Candidate]:
        """The first `count` candidates in the order of maximal marginal relevance."""
        view = self.index.synchronised(self.session)
        vectors = view.get(np.array([candidate.chunk_id for candidate in block], np.int64))
        order = maximal_marginal_relevance([candidate.score for candidate in block], vectors, trade_off, count)
        return [block[position] for position in order]


# Made once: SQLAlchemy takes longer to put them together than a database to answer.
_DOCUMENTS = select(ChunkRow.id, ChunkRow.document_id).where(among(ChunkRow.id))
_TEXTS = select(ChunkRow.id, ChunkRow.text).where(among(ChunkRow.id))
_HITS = (
    select(
        ChunkRow.id,
        ChunkRow.text,
        ChunkRow.start,
        ChunkRow.end,
        func.coalesce(ChunkRow.language, DocumentRow.language).label("language"),
        DocumentRow.external_id,
        DocumentRow.title,
        DocumentRow.uri,
        DocumentRow.meta,
    )
    .join(DocumentRow, DocumentRow.id == ChunkRow.document_id)
    .where(among(ChunkRow.id))
)


def highlights(wanted: frozenset[str], text: str) -> list[tuple[int, int]]:
    """The sentence of `text` with most of the wanted terms, as (start, end); [] if none has any.

    A term counts the less, the more sentences have it.
    """
    spans, terms_of = _analysed_sentences(text)
    shared = [wanted & terms for terms in terms_of]
    counts = Counter(term for terms in shared for term in terms)
    if not counts:
        return []
    scores = [sum(1 / counts[term] for term in terms) for terms in shared]
    return [spans[max(range(len(spans)), key=scores.__getitem__)]]


@lru_cache(maxsize=ANALYSED_PASSAGES)
def _analysed_sentences(text: str) -> tuple[list[tuple[int, int]], list[frozenset[str]]]:
    """The sentences of a passage and the terms of each. Analysing ten hits takes as long as ranking some
    thousand passages, and the same few are found again and again."""
    spans = sentences(text)
    return spans, [frozenset(query_terms(text[start:end])) for start, end in spans]
