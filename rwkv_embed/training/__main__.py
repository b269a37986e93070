"""Train the bundled model: `python -m rwkv_embed.training CORPUS WORK`.

Stages, each of which keeps its result in WORK and is skipped when that is there: draw the mixture, choose the
vocabulary, cache the teacher's targets, tokenise, train the bag with a token network and then without one, finish
it, align its tokens with their translations, widen it, take whole words in and the stems of others, learn what two
teachers' vectors of whole texts say about each token, draw rare tokens to those that are read alike, round the
rows that are kept and make the other tokens sums of them, train the delta rule that pools tokens, export. WORK is
a model folder then: model.safetensors, tokenizer.json, config.json and the ranges of int8 vectors. With
`--layers 2` or more, blocks are trained on top of the aligned bag instead of what follows.

A run that was stopped goes on when it is given the same corpus and options.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from rwkv_embed.embedder import Embedder
from rwkv_embed.hub import RANGES
from rwkv_embed.tokenizer import Tokenizer
from rwkv_embed.training import contrast, corpus, data, export, loop, vocabulary, wkv7, words
from rwkv_embed.training.align import OF_PIECES, moved
from rwkv_embed.training.axes import Pairings, principal_axes
from rwkv_embed.training.delta import DeltaBag
from rwkv_embed.training.enlarge import enlarge, translations_of
from rwkv_embed.training.finish import TRAINED_WHITENING, centre, mix, nest, turn, whiten, widen
from rwkv_embed.training.languages import centre_by_language, usage_by_language
from rwkv_embed.training.minilm import MiniLM
from rwkv_embed.training.model import Bag, RWKV7Embedder, importance_of
from rwkv_embed.training.quantize import quantize
from rwkv_embed.training.stages import replacing, saved_tokenizer
from rwkv_embed.training.table import TokenNetwork, TokenTable
from rwkv_embed.training.teacher import WIDTH, Teacher, cache_targets
from rwkv_embed.training.views import Counted, Draw, fitted, in_english, join, learn
from rwkv_embed.training.vocabulary import FIRST_PIECE

RARITY = 3e-5  # a token of probability p starts with importance RARITY / (RARITY + p)
CAP = 12_000  # texts of a language that are counted for the vocabulary
DELTA = loop.Mixture(256, 192, 128, 64, weights=(0.8, 0.4, 0.7, 0.4))
BLOCKS = loop.Mixture(distilled=160, translations=96, surroundings=32, questions=24)
NETWORK_HIDDEN = 768
SHIPPED_WIDTH = 512  # 384 trained numbers, and what more tells words apart
# No stage draws what another has learned; resumed at step n, a stage draws with its seed + n.
NETWORK_SEED, BAG_SEED, BLOCKS_SEED, DELTA_SEED, VIEWS_SEED = 0, 1_000_000, 2_000_000, 3_000_000, 4_000_000
ONE_LAYER_FFN = 64  # nothing is asked of its channel mixing
MEASURED_TEXTS = 6_000
ENCODED_AT_ONCE = 1_000  # passages take gigabytes
ENGLISH_VIEW = 0.5  # what the second teacher's view of a token counts beside the first one's

log = logging.getLogger("rwkv_embed.training")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m rwkv_embed.training", description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--targets", type=int, default=262_144, help="lines the teacher reads, at most")
    parser.add_argument("--network-minutes", type=float, default=10, help="the bag, all rows moved by a rule")
    parser.add_argument("--bag-minutes", type=float, default=60, help="the bag, each row for itself")
    parser.add_argument("--view-minutes", type=float, default=30, help="each teacher's view of all tokens")
    parser.add_argument("--delta-minutes", type=float, default=20, help="how the bag's tokens are pooled")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="for the blocks, if there are more layers")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if wkv7.kernel() is None:
        log.warning(wkv7.NO_KERNEL)
    if options.layers == 1:
        MiniLM()  # if it is missing, it is better said now than after hours
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)

    lines = draw(options.corpus, work)[: options.targets]
    chosen = choose_vocabulary(lines, work)
    cache_targets(lines, work)
    targets = data.load_targets(work, lines)
    kept = work / "pieces"
    sources = loop.Sources(
        tokenize(lines, chosen.tokenizer, kept), targets, read_rows(options.corpus, chosen.tokenizer, kept)
    )
    pieces = slice(FIRST_PIECE, None)
    usage = usage_by_language(sources.rows, len(chosen.vectors))[pieces]
    rarity = chosen.importance[pieces]
    for vectors in (chosen.vectors, chosen.read):
        centre_by_language(vectors[pieces], usage, rarity)
    chosen.vectors[pieces] = chosen.vectors[pieces] @ np.load(work / "projection.npy")
    chosen.read[pieces] @= principal_axes(chosen.read[pieces], data.WHITENING, usage.sum(1) * rarity)

    bag = Bag(torch.from_numpy(chosen.vectors), torch.from_numpy(chosen.importance))
    network = TokenNetwork(torch.from_numpy(chosen.scripts), WIDTH, NETWORK_HIDDEN)
    rows = TokenTable(bag.emb, network, coarse=True)
    schedule = loop.Schedule(rate=2e-3, table_rate=2e-3, minutes=options.network_minutes)
    network_log = loop.append_json(work / "network.jsonl")
    loop.train(bag, rows, sources, schedule, work / "network.pt", network_log, NETWORK_SEED)
    rows = rows.folded()
    schedule = loop.Schedule(rate=3e-4, table_rate=1e-3, minutes=options.bag_minutes)
    loop.train(bag, rows, sources, schedule, work / "bag.pt", loop.append_json(work / "bag.jsonl"), BAG_SEED)
    rows.weight[pieces] = mix(bag.emb.detach()[pieces], rows.weight[pieces])
    # The last number, the importance, says nothing of translations.
    importance = importance_of(bag, rows.weight)
    translations = translations_of(sources.rows, rows.weight[:, :-1], importance, OF_PIECES, kept)
    lengths = rows.weight[:, :-1].norm(dim=1, keepdim=True)
    rows.weight[:, :-1] = moved(rows.weight[:, :-1], translations, OF_PIECES) * lengths
    read = moved(torch.from_numpy(chosen.read), translations, OF_PIECES)
    whiten(bag.head, pairings(bag, rows, sources).texts, TRAINED_WHITENING)
    if options.layers == 1:
        counted = np.concatenate([np.zeros(FIRST_PIECE, np.float32), usage.sum(1) * rarity])
        trained = rows.read(torch.arange(len(rows.weight)), rows.weight)
        bag = widen(bag, trained, read, torch.from_numpy(counted), SHIPPED_WIDTH)
        large = enlarge(
            bag, chosen.pieces, chosen.teacher_vectors, torch.sparse.sum(translations, 0).to_dense(), sources.rows,
            lambda tokenizer, kept: (tokenize(lines, tokenizer, kept), read_rows(options.corpus, tokenizer, kept)),
            lambda found: read_words(found, chosen, work),
            lambda tokens, tokenizer, texts, rows, table: learn_views(
                tokens, tokenizer, texts, rows, table, targets, options.view_minutes, work
            ),
            work,
        )  # fmt: skip
        sources = loop.Sources(large.texts, targets, large.rows)
        bag = large.bag
        tokens = TokenTable(bag.emb, sums=large.sums)
        turn(bag, lambda: pairings(bag, tokens, sources))
        delta = DeltaBag(bag)
        schedule = loop.Schedule(rate=3e-3, table_rate=0, minutes=options.delta_minutes, mixture=DELTA)
        delta_log = loop.append_json(work / "delta.jsonl")
        loop.train(delta, tokens, sources, schedule, work / "delta.pt", delta_log, DELTA_SEED)
        nest(bag, nearby(delta, tokens, sources))
        centre(bag.head, pairings(delta, tokens, sources).texts)
        export.export(delta.as_rwkv(loop.EOS, ONE_LAYER_FFN), large.table, large.sums, work, loop.EOS)
    else:  # the teacher's targets have the axes of the trained numbers, not of the wide table
        bag.emb.data.copy_(rows.weight)
        model = RWKV7Embedder.from_bag(bag, loop.EOS, options.layers, 4 * WIDTH)
        schedule = loop.Schedule(rate=6e-4, table_rate=3e-4, minutes=options.minutes, mixture=BLOCKS)
        blocks_log = loop.append_json(work / "rwkv.jsonl")
        loop.train(model, rows, sources, schedule, work / "rwkv.pt", blocks_log, BLOCKS_SEED)
        saved_tokenizer(chosen.pieces, work)
        export.export(model, quantize(rows.weight.numpy()), None, work, loop.EOS)
    fit_ranges(work, sources.rows)


def read_words(found: list[words.Word], chosen: "Vocabulary", work: Path) -> NDArray[np.float32]:
    """(n, 384) what the teacher makes of each word."""
    path = work / "words.npy"
    if not path.exists():
        teacher = Teacher()
        spelled = [[int(chosen.of_teacher[token - FIRST_PIECE]) for token in word] for word in found]
        vectors = teacher.encode_tokens([[teacher.bos, *tokens, teacher.eos] for tokens in spelled])
        with replacing(path) as partial:
            np.save(partial, vectors.astype(np.float16))
    return np.load(path).astype(np.float32)


def learn_views(
    tokens: Counted, tokenizer: Tokenizer, texts: data.Texts, rows: contrast.Rows, translations: torch.Tensor,
    targets: NDArray[np.float32], minutes: float, work: Path,
) -> Counted:  # fmt: skip
    """The tokens joined with what both teachers' vectors of whole texts teach about them."""
    sampler = data.Sampler(texts, len(targets), VIEWS_SEED, shortest=2)
    pairs = contrast.Pairs(rows, VIEWS_SEED)
    number, english, axes = read_english(rows, tokenizer, work)
    goals = torch.from_numpy(targets)

    def of_lines(count: int) -> tuple[list[contrast.Tokens], NDArray[np.int64]]:
        drawn = sampler.draw(count)
        return [texts.text(i) for i in drawn], texts.line[drawn].astype(np.int64)

    def of_english(count: int) -> tuple[list[contrast.Tokens], NDArray[np.int64]]:
        return pairs.of_english(count, number)

    def first_in_english() -> torch.Tensor:
        used = torch.sparse.sum(translations, 0).to_dense() > 0
        alone = [tokenizer.decode([token]).strip() for token in used.nonzero()[:, 0].tolist()]
        read = centred(MiniLM().encode(alone)) @ axes
        return in_english(fitted(tokens, of_english, english), used, read, translations)

    # Before the views draw theirs: what is drawn must not depend on whether a view is there already.
    measured, translated = of_lines(MEASURED_TEXTS)[0], pairs.translations(MEASURED_TEXTS)

    def view(name: str, start: Callable[[], torch.Tensor], draw: Draw, goals: torch.Tensor) -> torch.Tensor:
        path = work / name
        if not path.exists():
            log.info("learning %s", path.stem)
            with replacing(path) as partial:
                torch.save(learn(start(), tokens.importance, draw, goals, minutes).half(), partial)
        learned: torch.Tensor = torch.load(path, weights_only=True)
        return learned

    views = [
        (view("view.pt", lambda: fitted(tokens, of_lines, goals), of_lines, goals), 1.0),
        (view("english.pt", first_in_english, of_english, english), ENGLISH_VIEW),
    ]
    return join(tokens, views, measured, (translated.left, translated.right), SHIPPED_WIDTH - 1)


def read_english(
    rows: contrast.Rows, tokenizer: Tokenizer, work: Path
) -> tuple[NDArray[np.int64], torch.Tensor, torch.Tensor]:
    """What MiniLM makes of the English sides of translations, centred and whitened as the targets are: the number
    of each text's vector (texts,), -1 for other texts, the vectors (n, 384), and the axes they were turned to."""
    translated = rows.source[rows.row] < len(contrast.TRANSLATIONS)
    sides = np.flatnonzero(translated & (rows.language == rows.names["languages"].index("en")))
    number = np.full(len(rows.language), -1)
    number[sides] = np.arange(len(sides))
    path = work / "english.npy"
    if not path.exists():
        log.info("reading %d English texts", len(sides))
        read = MiniLM().encode([tokenizer.decode(rows.text(int(text)).tolist()) for text in sides])
        with replacing(path) as partial:
            np.save(partial, read.astype(np.float16))
    vectors = centred(np.load(path).astype(np.float32))
    axes = torch.from_numpy(principal_axes(vectors.numpy(), data.WHITENING))
    return number, F.normalize(vectors @ axes, dim=1), axes


def centred(vectors: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(vectors - vectors.mean(0))


@torch.no_grad()
def pairings(model: Bag | DeltaBag, rows: TokenTable, sources: loop.Sources) -> Pairings:
    """Vectors of texts as they are drawn in training, and of translations."""
    sampler = data.Sampler(sources.texts, len(sources.targets), seed=3)
    pairs = contrast.Pairs(sources.rows, seed=3).translations(MEASURED_TEXTS)
    drawn = [sources.texts.text(i) for i in sampler.draw(MEASURED_TEXTS)], pairs.left, pairs.right
    return Pairings(*(vectors_of(model, rows, texts) for texts in drawn))


def nearby(
    model: DeltaBag, rows: TokenTable, sources: loop.Sources
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Vectors of pairs of each kind."""
    pairs = contrast.Pairs(sources.rows, seed=4)
    drawn = (
        pairs.translations(4 * MEASURED_TEXTS),
        pairs.surroundings(2 * MEASURED_TEXTS),
        pairs.questions(MEASURED_TEXTS),
    )
    return [(vectors_of(model, rows, kind.left), vectors_of(model, rows, kind.right)) for kind in drawn]


@torch.no_grad()
def vectors_of(model: Bag | DeltaBag, rows: TokenTable, texts: list[contrast.Tokens]) -> torch.Tensor:
    """(n, C)"""
    found = []
    for first in range(0, len(texts), ENCODED_AT_ONCE):
        packed, starts = data.pack(texts[first : first + ENCODED_AT_ONCE], loop.EOS)
        found.append(loop.encode(model, rows, torch.from_numpy(packed), torch.from_numpy(starts))[2])
    return torch.cat(found)


def fit_ranges(folder: Path, rows: contrast.Rows) -> None:
    """Write the ranges of int8 vectors of the model in `folder`, whose tokens the rows are in."""
    embedder, pairs = Embedder(folder), contrast.Pairs(rows, seed=5)
    drawn = pairs.translations(MEASURED_TEXTS), pairs.surroundings(MEASURED_TEXTS), pairs.questions(MEASURED_TEXTS)
    texts = [embedder.tokenizer.decode(text.tolist()) for kind in drawn for text in (*kind.left, *kind.right)]
    embedder.fit_int8(texts, export.dims_of(embedder.dim)).save(folder / RANGES)


def draw(folder: Path, work: Path) -> list[corpus.Line]:
    path = work / "lines.jsonl.zst"
    if not path.exists():
        log.info("drawing the mixture")
        with replacing(path) as partial:
            corpus.save_lines(corpus.draw(folder), partial)
    return corpus.load_lines(path)


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer, its pieces and their numbers at the teacher's; of each token what the teacher makes of it
    (V, C), a first vector (V, C), the one that the teacher reads it with (V, C), a first importance (V,) and its
    script's number (V,)."""

    tokenizer: Tokenizer
    pieces: list[vocabulary.Piece]
    of_teacher: NDArray[np.int64]
    teacher_vectors: NDArray[np.float32]
    vectors: NDArray[np.float32]
    read: NDArray[np.float32]
    importance: NDArray[np.float32]
    scripts: NDArray[np.int64]


def choose_vocabulary(lines: list[corpus.Line], work: Path) -> Vocabulary:
    teacher, kept = Teacher(), work / "vocabulary.npz"
    if not kept.exists():
        log.info("choosing the vocabulary")
        counts = vocabulary.count_pieces(teacher.pieces, teacher.unk, capped(lines))
        chosen = vocabulary.by_use(teacher.pieces, counts)
        vectors = teacher.encode_tokens([[teacher.bos, i, teacher.eos] for i in chosen])
        with replacing(kept) as partial:
            np.savez(partial, chosen=chosen, counts=counts[chosen], vectors=vectors)
    with np.load(kept) as file:
        chosen, counts, vectors = file["chosen"], file["counts"], file["vectors"]
    pieces = [teacher.pieces[i] for i in chosen]
    tokenizer = saved_tokenizer(pieces, work / "pieces")
    probability = counts / counts.sum()
    rarity = RARITY / (RARITY + probability)
    read = teacher.weights["emb.word"][chosen].float().numpy()
    teacher_vectors = np.concatenate([np.zeros((FIRST_PIECE, WIDTH), np.float32), vectors])
    for table in (vectors, read):
        vocabulary.centre_by_script(table, pieces, probability * rarity)
    read /= np.linalg.norm(read, axis=1, keepdims=True)
    extra = np.random.default_rng(0).normal(scale=0.05, size=(FIRST_PIECE, WIDTH)).astype(np.float32)
    importance = np.concatenate([np.zeros(FIRST_PIECE), rarity]).astype(np.float32)
    scripts = np.unique(["", *vocabulary.scripts_of(pieces)], return_inverse=True)[1]
    return Vocabulary(
        tokenizer, pieces, chosen, teacher_vectors,
        np.concatenate([extra, vectors]),
        np.concatenate([extra, read]),
        importance,
        np.concatenate([np.full(FIRST_PIECE, scripts[0]), scripts[1:]]),
    )


def capped(lines: list[corpus.Line], block: int = 20_000) -> list[list[str]]:
    """The texts in batches, `CAP` of a language at most."""
    seen: dict[str, int] = {}
    texts = []
    for line in lines:
        for language, text in line.texts.items():
            seen[language] = seen.get(language, 0) + 1
            if seen[language] <= CAP:
                texts.append(text)
    return [texts[i : i + block] for i in range(0, len(texts), block)]


def tokenize(lines: list[corpus.Line], tokenizer: Tokenizer, work: Path) -> data.Texts:
    path = work / "texts.npz"
    if not path.exists():
        log.info("tokenising")
        with replacing(path) as partial:
            data.tokenize(lines, tokenizer).save(partial)
    return data.Texts.load(path)


def read_rows(folder: Path, tokenizer: Tokenizer, work: Path) -> contrast.Rows:
    path = work / "rows.npz"
    if not path.exists():
        log.info("tokenising pairs")
        with replacing(path) as partial:
            contrast.read_rows(folder, tokenizer).save(partial)
    return contrast.Rows.load(path)


if __name__ == "__main__":
    main()
