"""The official layout of every RWKV generation, and the names other packagings use for it.

A checkpoint carries no header: its generation and sizes follow from the names and shapes of its tensors
alone, as in the reference implementation (https://github.com/BlinkDL/ChatRWKV). The tables below are the
whole knowledge of names; letters stand for sizes:

    V vocabulary   R rows of the token table: V but for tokens that are sums (sums.py)
    C n_embd   A attention width = H x N   H heads   N head size   F feed-forward width
    lower case: a rank (of a low-rank projection) that may differ from layer to layer

Nothing here needs torch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from rwkv_embed.config import Kind, ModelConfig, Version
from rwkv_embed.errors import CheckpointError
from rwkv_embed.packing import PACKINGS
from rwkv_embed.sums import DTYPES as SUMS
from rwkv_embed.sums import count_sums

Shape = tuple[int, ...]
Layout = Literal["official", "embedding-rwkv", "reranker", "transformers", "fla"]
Table = dict[str, tuple[str, ...]]


def _names(names: str, *dims: str) -> Table:
    return dict.fromkeys(names.split(), dims)


_NORMS = _names("ln1.weight ln1.bias ln2.weight ln2.bias", "C")
_LN0 = _names("ln0.weight ln0.bias", "C")
_PROJECTIONS = _names("att.receptance.weight att.key.weight att.value.weight", "A", "C") | _names(
    "att.output.weight", "C", "A"
)
_LN_X = _names("att.ln_x.weight att.ln_x.bias", "A")
_FFN = _names("ffn.key.weight", "F", "C") | _names("ffn.value.weight", "C", "F")
_FFN_GATED = _FFN | _names("ffn.receptance.weight", "C", "C")
_FFN_4 = _FFN_GATED | _names("ffn.time_mix_k ffn.time_mix_r", "C")
_MIX = _names("att.time_mix_k att.time_mix_v att.time_mix_r", "C")
_GATE = _names("att.gate.weight", "A", "C")

_RWKV_4 = _NORMS | _MIX | _names("att.time_decay att.time_first", "A") | _PROJECTIONS | _FFN_4
_RWKV_5_0 = _NORMS | _MIX | _names("att.time_decay att.time_first", "H") | _PROJECTIONS | _LN_X | _FFN_4
_RWKV_5_1 = _RWKV_5_0 | _GATE | _names("att.time_mix_g", "C")
_RWKV_5_2 = _RWKV_5_1 | _names("att.time_decay att.time_first", "H", "N")
_RWKV_6 = (
    _NORMS
    | _names(" ".join(f"att.time_maa_{x}" for x in "xwkvrg"), "C")
    | _names("att.time_maa_w2", "5", "m", "C")
    | _names("att.time_maa_w1", "C", "5m")
    | _names("att.time_decay", "A")
    | _names("att.time_decay_w1", "C", "d")
    | _names("att.time_decay_w2", "d", "A")
    | _names("att.time_first", "H", "N")
    | _PROJECTIONS
    | _GATE
    | _LN_X
    | _names("ffn.time_maa_k ffn.time_maa_r", "C")
    | _FFN_GATED
)
_VALUE_RESIDUAL = _names("att.v0", "A") | _names("att.v1", "C", "v") | _names("att.v2", "v", "A")
_RWKV_7 = (
    _NORMS
    | _names(" ".join(f"att.x_{x}" for x in "rwkvag"), "C")
    | _names("att.w0 att.a0 att.k_k att.k_a", "A")
    | _names("att.w1", "C", "w")
    | _names("att.w2", "w", "A")
    | _names("att.a1", "C", "a")
    | _names("att.a2", "a", "A")
    | _names("att.g1", "C", "g")
    | _names("att.g2", "g", "A")
    | _names("att.r_k", "H", "N")
    | _VALUE_RESIDUAL
    | _PROJECTIONS
    | _LN_X
    | _names("ffn.x_k", "C")
    | _FFN
)
_LAYER: dict[Version, Table] = {
    "4": _RWKV_4,
    "5.0": _RWKV_5_0,
    "5.1": _RWKV_5_1,
    "5.2": _RWKV_5_2,
    "6": _RWKV_6,
    "7": _RWKV_7,
}
_OUTER = _names("emb.weight", "R", "C") | _names("ln_out.weight ln_out.bias", "C")
_VOCABULARY_HEAD = _names("head.weight", "V", "C")
_RANKING_HEAD = (
    _names("head.0.weight", "C", "C") | _names("head.0.bias", "C") | _names("head.2.weight", "1", "C")
)
# Initial wkv state of a state-tuned RWKV-5 or 6, stored [value, key].
_TUNED_STATE = _names("att.time_state", "H", "N", "N")

# `time_faaaa` holds the bonus itself; `time_first` of RWKV-5 holds its logarithm. One tensor, two names.
BONUS_NAMES = ("att.time_first", "att.time_faaaa")


def squeezed(shape: Shape) -> Shape:
    """The shape without its ones: (1, 1, C) and (C,) are the same tensor to every RWKV implementation."""
    return tuple(size for size in shape if size != 1)


@dataclass(frozen=True, slots=True)
class Source:
    """Where an official tensor comes from: a tensor of the file, one `index` of it, or its transpose."""

    name: str
    transpose: bool = False
    index: int | None = None

    def shape(self, shape: Shape) -> Shape:
        """Shape of the official tensor, given the shape of the tensor in the file."""
        if self.index is not None:
            shape = shape[1:]
        return shape[::-1] if self.transpose else shape


def identify_layout(names: Iterable[str]) -> tuple[Layout, str]:
    """The packaging that a set of tensor names belongs to, and the prefix of its model tensors.

    Raises CheckpointError when no RWKV packaging has such names.
    """
    stems = ((name, *name.rpartition(".")[::2]) for name in names)
    found = {matrix if ending in PACKINGS else name for name, matrix, ending in stems}
    for prefix in ("", "rwkv.", "model.", "module."):
        if f"{prefix}emb.weight" in found and f"{prefix}blocks.0.ln1.weight" in found:
            if f"{prefix}head.0.weight" in found:
                return "reranker", prefix
            return ("embedding-rwkv" if prefix == "rwkv." else "official"), prefix
    if "reranker.blocks.0.ln1.weight" in found:
        return "reranker", "reranker."
    if "token.weight" in found and "head.0.weight" in found:
        return "reranker", ""
    for prefix in ("rwkv.", "model.", ""):
        if f"{prefix}embeddings.weight" in found:
            if f"{prefix}blocks.0.ln1.weight" in found:
                return "transformers", prefix
            if f"{prefix}layers.0.attn_norm.weight" in found:
                return "fla", prefix
    sample = ", ".join(repr(name) for name in sorted(found)[:4])
    raise CheckpointError(
        f"not an RWKV checkpoint: it has {len(found)} tensors ({sample}{', ...' if len(found) > 4 else ''})"
        " but no 'emb.weight' with 'blocks.0.ln1.weight'; give an official .pth, a .safetensors or a Hugging"
        " Face folder of an RWKV model"
    )


_TRANSFORMERS_NAMES = [
    (re.compile(r"^embeddings\."), "emb."),
    (re.compile(r"\.pre_ln\."), ".ln0."),
    (re.compile(r"\.attention\."), ".att."),
    (re.compile(r"\.feed_forward\."), ".ffn."),
    (re.compile(r"\.time_mix_key$"), ".time_mix_k"),
    (re.compile(r"\.time_mix_value$"), ".time_mix_v"),
    (re.compile(r"\.time_mix_receptance$"), ".time_mix_r"),
    (re.compile(r"\.time_mix_gate$"), ".time_mix_g"),
]
_FLA_NAMES = [
    (re.compile(r"^embeddings\."), "emb."),
    (re.compile(r"^norm\."), "ln_out."),
    (re.compile(r"^layers\."), "blocks."),
    (re.compile(r"\.pre_norm\."), ".ln0."),
    (re.compile(r"\.attn_norm\."), ".ln1."),
    (re.compile(r"\.ffn_norm\."), ".ln2."),
    (re.compile(r"\.attn\.g_norm\."), ".att.ln_x."),
    (re.compile(r"\.attn\.r_proj\."), ".att.receptance."),
    (re.compile(r"\.attn\.k_proj\."), ".att.key."),
    (re.compile(r"\.attn\.v_proj\."), ".att.value."),
    (re.compile(r"\.attn\.o_proj\."), ".att.output."),
    (re.compile(r"\.attn\.([wavg])_lora\.lora\.0\.weight$"), r".att.\g<1>1"),
    (re.compile(r"\.attn\.([wavg])_lora\.lora\.2\.weight$"), r".att.\g<1>2"),
    (re.compile(r"\.attn\.([wav])_lora\.lora\.2\.bias$"), r".att.\g<1>0"),
    (re.compile(r"\.attn\."), ".att."),
]


def _renamed(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name


def official_names(names: Iterable[str], layout: Layout, prefix: str) -> dict[str, Source]:
    """Official name -> source, for every tensor of the model; heads keep their own names.

    Heads of EmbeddingRWKV stay `head.retr_head.*` and so on. A vision tower (`vit.*`, `proj.*`) is left out.
    """
    sources: dict[str, Source] = {}
    for name in names:
        if name.startswith(("vit.", "proj.")) and layout in ("embedding-rwkv", "reranker"):
            continue
        if layout == "reranker" and not name.startswith(prefix):
            continue  # a training checkpoint: the embedder beside the reranker
        inner = name.removeprefix(prefix)
        if layout == "transformers":
            sources[_renamed(inner, _TRANSFORMERS_NAMES)] = Source(name)
        elif layout == "fla":
            sources.update(_fla_sources(name, inner))
        elif layout == "reranker":
            sources[re.sub(r"^token\.", "emb.", inner)] = Source(name)
        else:
            sources[inner] = Source(name)
    return {_without_alias(name): source for name, source in sources.items()}


def _without_alias(name: str) -> str:
    return "head.weight" if name == "lm_head.weight" else name


def _fla_sources(name: str, inner: str) -> dict[str, Source]:
    """fla keeps low-rank pairs as Linear layers (transposed), and in old files x_r ... x_g in one tensor."""
    official = _renamed(inner, _FLA_NAMES)
    if official.endswith(".att.x_x"):
        return {f"{official[:-1]}{x}": Source(name, index=i) for i, x in enumerate("rwkvag")}
    return {official: Source(name, transpose=re.search(r"\.att\.[wavg][12]$", official) is not None)}


def identify(shapes: Mapping[str, Shape]) -> ModelConfig:
    """Generation and sizes from official names and shapes.

    Raises CheckpointError when a tensor that sizes are read from is missing or has too few dimensions.
    """
    version = _version(shapes)
    needed = {"emb.weight": 2, "blocks.0.att.key.weight": 2, "blocks.0.ffn.key.weight": 2}
    needed |= {"5.0": {"blocks.0.att.time_decay": 1}, "5.1": {"blocks.0.att.time_decay": 1}}.get(version, {})
    needed |= {"5.2": {"blocks.0.att.time_decay": 2}, "7": {"blocks.0.att.r_k": 2}}.get(version, {})
    bad = [
        f"{name} is {shapes.get(name, 'missing')}, expected {rank} dimensions"
        for name, rank in needed.items()
        if len(shapes.get(name, ())) < rank
    ]
    if bad:
        raise CheckpointError(f"the sizes of this RWKV-{version} checkpoint cannot be read: {'; '.join(bad)}")
    rows, n_embd = shapes["emb.weight"][:2]
    n_att = shapes["blocks.0.att.key.weight"][0]
    n_head = _n_head(version, shapes)
    if n_head == 0 or n_att % n_head:
        raise CheckpointError(
            f"{n_head} heads do not divide the attention width {n_att} (blocks.0.att.key.weight)"
        )
    kind: Kind = "language-model"
    if "head.0.weight" in shapes:
        kind = "reranker"
    elif any(name.startswith("head.") and "_head." in name for name in shapes):
        kind = "embedder"
    return ModelConfig(
        version=version,
        n_layer=_n_layer(shapes),
        n_embd=n_embd,
        n_head=n_head,
        head_size=n_att // n_head,
        n_ffn=shapes["blocks.0.ffn.key.weight"][0],
        vocab_size=rows + count_sums(shapes),
        kind=kind,
    )


def _version(shapes: Mapping[str, Shape]) -> Version:
    layer = {
        name.removeprefix("blocks.0."): shape
        for name, shape in shapes.items()
        if name.startswith("blocks.0.")
    }
    if "att.r_k" in layer or "att.x_r" in layer:
        return "7"
    if any("time_maa" in name for name in layer):
        return "6"
    if "att.ln_x.weight" not in layer:
        return "4"
    if "att.gate.weight" not in layer:
        return "5.0"
    decay = layer.get("att.time_decay", ())
    return "5.2" if len(decay) > 1 and decay[1] > 1 else "5.1"


def _n_head(version: Version, shapes: Mapping[str, Shape]) -> int:
    if version == "4":
        return 1
    if version == "7":
        return shapes["blocks.0.att.r_k"][0]
    if version == "6":
        bonus = next((shapes[f"blocks.0.{name}"] for name in BONUS_NAMES if f"blocks.0.{name}" in shapes), ())
        if not bonus:
            raise CheckpointError(
                "the head size of this RWKV-6 checkpoint cannot be read: blocks.0.att.time_faaaa is missing"
            )
        return bonus[0]
    return shapes["blocks.0.att.time_decay"][0]


def _n_layer(shapes: Mapping[str, Shape]) -> int:
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
    highest = max(numbers)
    if highest >= 2 * len(numbers):
        raise CheckpointError(
            f"layers are missing: {len(numbers)} are present but the highest is blocks.{highest}"
        )
    return highest + 1


def expected_shapes(config: ModelConfig, shapes: Mapping[str, Shape]) -> dict[str, tuple[Shape, bool]]:
    """Official name -> (shape, required) for a model of these sizes.

    Ranks are taken from the tensors present; an absent one shows as 0.
    """
    sizes = {"V": config.vocab_size, "R": config.vocab_size - count_sums(shapes)}
    sizes |= {"C": config.n_embd, "A": config.n_att, "F": config.n_ffn}
    sizes |= {"H": config.n_head, "N": config.head_size, "1": 1, "5": 5}
    expected: dict[str, tuple[Shape, bool]] = {}

    def add(prefix: str, table: Table, required: bool, ranks: dict[str, int]) -> None:
        for name, dims in table.items():
            full = prefix + name
            for dim, size in zip(dims, shapes.get(full, ()), strict=False):
                if dim.islower():
                    ranks.setdefault(dim, size)
            ranks["5m"] = 5 * ranks.get("m", 0)
            shape = tuple(sizes.get(dim, ranks.get(dim, 0)) for dim in dims)
            expected[full] = (shape, required)

    add("", _OUTER, True, {})
    for name in SUMS:
        if name in shapes:  # what they must be is for sums.py to say
            expected[name] = (shapes[name], True)
    add("", _VOCABULARY_HEAD, config.kind == "language-model", {})
    if config.kind == "reranker":
        del expected["head.weight"]
        add("", _RANKING_HEAD, True, {})
    add("blocks.0.", _LN0, True, {})
    for layer in range(config.n_layer):
        prefix = f"blocks.{layer}."
        ranks: dict[str, int] = {}
        table = dict(_LAYER[config.version])
        if f"{prefix}att.time_faaaa" in shapes and "att.time_first" in table:
            table["att.time_faaaa"] = table.pop("att.time_first")
        add(prefix, table, True, ranks)
        if config.version == "7" and layer == 0:
            add(prefix, _VALUE_RESIDUAL, False, ranks)
        if config.version in ("5.0", "5.1", "5.2", "6"):
            add(prefix, _TUNED_STATE, False, ranks)
    for name in shapes:
        if match := re.fullmatch(
            r"head\.(\w+_head)\.(fc1\.weight|fc2\.weight|norm\.weight|norm\.bias)", name
        ):
            _add_embedding_head(expected, shapes, match[1], config.n_embd)
    return expected


def _add_embedding_head(
    expected: dict[str, tuple[Shape, bool]], shapes: Mapping[str, Shape], head: str, n_embd: int
) -> None:
    """EmbeddingRWKV's head: norm(fc2(relu(fc1(x))) + x), so it ends as wide as it begins."""
    hidden = (shapes.get(f"head.{head}.fc1.weight") or (n_embd,))[0]
    expected[f"head.{head}.fc1.weight"] = ((hidden, n_embd), True)
    expected[f"head.{head}.fc2.weight"] = ((n_embd, hidden), True)
    expected[f"head.{head}.norm.weight"] = ((n_embd,), True)
    expected[f"head.{head}.norm.bias"] = ((n_embd,), True)


def problems(expected: Mapping[str, tuple[Shape, bool]], shapes: Mapping[str, Shape]) -> list[str]:
    """Everything missing, misshapen or unknown, one phrase each; empty when the checkpoint is whole."""
    found = [
        f"{name} {shape} is missing"
        for name, (shape, required) in expected.items()
        if required and name not in shapes
    ]
    for name, shape in shapes.items():
        if name not in expected:
            found.append(f"{name} {shape} is not part of this architecture")
        elif squeezed(shape) != squeezed(expected[name][0]):
            found.append(f"{name} has shape {shape}, expected {expected[name][0]}")
    return found
