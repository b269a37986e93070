"""From a model's name to files on this machine.

    None, "default"              the bundled multilingual model (also by its own name); no network
    PATH                         a weights file (.safetensors, .pth) or a folder that holds one
    ORG/REPO[:FILE][@REVISION]   Hugging Face: downloaded once, checked against the hub's checksum, cached
                                 where every Hugging Face tool looks (HF_HOME); HF_HUB_OFFLINE, HF_ENDPOINT
                                 and HF_TOKEN are respected

A folder may hold `config.json`, `tokenizer.json` and `int8_ranges.safetensors` beside the weights. Nothing
downloaded is executed: weights are safetensors, or `.pth` files read with `weights_only=True`.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rwkv_embed.errors import CheckpointError, DownloadError, ModelNotFound, RWKVEmbedError

DEFAULT = Path(__file__).parent / "default"
RANGES = "int8_ranges.safetensors"
SETTINGS = "settings"  # in the metadata of a converted .safetensors: what its source's config.json says, as JSON
COMPANIONS = ("config.json", "tokenizer.json", RANGES)  # taken along when they exist
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # beside the shards of one model
KINDS = ("*.safetensors", "*.pth", "pytorch_model*.bin")  # names of weights, the preferred first
REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(:(?P<file>[^@\s]+))?(@(?P<revision>[\w./-]+))?")
SHARD = re.compile(r"-of-(\d+)\.")
BLOCK = 1 << 20  # bytes read at a time when hashing


@dataclass(frozen=True)
class ModelFiles:
    """A model on this disk.

    `name` leads back to it through `resolve`. `weights` is a file, or a folder of several (sharded, Hugging
    Face layout). `tokenizer`, instead of the model's own: "world", "neox", "byte" or a tokenizer.json.
    """

    name: str
    weights: Path
    tokenizer: str | Path | None = None

    @property
    def folder(self) -> Path:
        return self.weights if self.weights.is_dir() else self.weights.parent

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The `config.json` beside the weights; without one what `convert` put into them, else empty."""
        path = self.folder / "config.json"
        if not path.is_file():
            return self._converted_settings()
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is not JSON ({error}); download the model again") from error
        if not isinstance(settings, dict):
            raise CheckpointError(f"{path} holds a {type(settings).__name__}, expected a JSON object")
        return settings

    def _converted_settings(self) -> Mapping[str, Any]:
        from safetensors import SafetensorError, safe_open

        if self.weights.suffix != ".safetensors" or not self.weights.is_file():
            return {}
        try:
            with safe_open(self.weights, framework="np") as file:
                settings = json.loads((file.metadata() or {}).get(SETTINGS, "{}"))
        except (OSError, ValueError, SafetensorError):
            return {}  # who loads the weights says what is wrong with them
        return settings if isinstance(settings, dict) else {}

    @cached_property
    def identity(self) -> str:
        """sha256 of weights and tokenizer, from the bytes of the files: 47 ms for the 70 MB of the bundled model.

        CheckpointError: the bundled model is not the one that its config.json states.
        """
        found = self._hashed()
        if self.folder == DEFAULT and self.tokenizer is None and self.settings.get("sha256") != found:
            raise CheckpointError(
                f"the bundled model in {self.folder} is damaged (its files are not those that config.json "
                "states); install rwkv-embed again"
            )
        return found

    def _hashed(self) -> str:
        from rwkv_embed.checkpoint import files_of
        from rwkv_embed.tokenizer import tokenizer_file

        tokenizer = tokenizer_file(self.tokenizer, self.weights)
        parts = [sha256(file) for file in files_of(self.weights)]
        parts.append(sha256(tokenizer) if tokenizer else str(self.tokenizer or "built in"))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class LocalModel:
    """One model that can be opened without the network."""

    name: str
    path: Path
    bytes: int
    source: Literal["bundled", "hub"]


def resolve(name: str | Path | None = None, *, progress: bool = False) -> ModelFiles:
    """Find a model, downloading it when it is a hub name that is not cached yet.

    Raises ModelNotFound when nothing has this name or several files have, and DownloadError.
    """
    if name in (None, "default", _bundled_name()):
        return _bundled()
    path = _local(name)
    if path is not None:
        return ModelFiles(str(path.resolve()), _weights_in(path))
    match = REPOSITORY.fullmatch(str(name))
    if match is None or (_is_weights(Path(name).name) and match["file"] is None):
        raise ModelNotFound(
            f"no model {str(name)[:200]!r}: it is not a file or folder here, and a hub name looks like "
            "ORG/REPO or ORG/REPO:FILE"
        )
    repo, file, revision = match["repo"], match["file"], match["revision"] or "main"
    with _hub_errors(repo):
        found = _cached(repo, file, revision)
        if found is None:
            _refuse_offline(repo)
            found = _download(repo, file, revision, progress)
        return found


def list_models() -> list[LocalModel]:
    """The bundled model and every cached file of Hugging Face, of each revision, that is named as weights are.

    Nothing is opened: a file may be of a model that is no RWKV.
    """
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    models = []
    if DEFAULT.is_dir():
        bundled = _bundled()
        models.append(LocalModel(bundled.name, bundled.weights, bundled.weights.stat().st_size, "bundled"))
    try:
        repos = scan_cache_dir().repos
    except CacheNotFound:
        repos = frozenset()
    files = {
        _hub_name(
            repo.repo_id,
            file.file_path.relative_to(revision.snapshot_path).as_posix(),
            "main" if "main" in revision.refs else min(revision.refs, default=revision.commit_hash),
        ): file
        for repo in repos
        if repo.repo_type == "model"
        for revision in repo.revisions
        for file in revision.files
        if _is_weights(file.file_name)
    }
    models += [
        LocalModel(name, file.file_path, file.size_on_disk, "hub") for name, file in sorted(files.items())
    ]
    return models


def sha256(path: Path) -> str:
    """Of a file's bytes. A blob of the hub's cache carries it in its name, checked when it was downloaded."""
    blob = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", blob):
        return blob
    return _hash(path, hashlib.sha256())


def weight_files(folder: Path) -> list[Path]:
    """The weights in a folder, by name; of several kinds the preferred one."""
    for kind in KINDS:
        found = sorted(file for file in folder.glob(kind) if file.name != RANGES)
        if found:
            return found
    return []


def _hub_name(repo: str, file: str | None, revision: str) -> str:
    return repo + (f":{file}" if file else "") + (f"@{revision}" if revision != "main" else "")


def _local(name: str | Path) -> Path | None:
    """The file or folder of this name; None when there is none."""
    with suppress(OSError, RuntimeError):  # longer than a file's name may be; ~ of a user who does not exist
        path = Path(name).expanduser()
        if path.exists():
            return path
    return None


def _is_weights(name: str) -> bool:
    return name != RANGES and any(fnmatch(name, kind) for kind in KINDS)


def _bundled() -> ModelFiles:
    path = DEFAULT / "model.safetensors"
    if not path.is_file():
        raise ModelNotFound(f"the bundled model is missing at {path}; install rwkv-embed again")
    return ModelFiles(_bundled_name() or "default", path)


def _bundled_name() -> str | None:
    name = ModelFiles("default", DEFAULT).settings.get("name")
    return None if name is None else str(name)


def _weights_in(path: Path) -> Path:
    if path.is_file():
        return path
    files = weight_files(path)
    if not files:
        raise ModelNotFound(f"no weights in {path}: expected a .safetensors or .pth file")
    if any((path / index).is_file() for index in INDEXES) or _is_hugging_face(path):
        return path  # its config.json, and its shards, belong to the weights
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files)
    raise ModelNotFound(f"{path} holds {len(files)} models; name one of its files: {names}")


def _download(repo: str, file: str | None, revision: str, progress: bool) -> ModelFiles:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision)
    names = [sibling.rfilename for sibling in info.siblings or []]
    weights = _choose(repo, names, file)
    beside = [str(Path(weights[0]).with_name(companion)) for companion in COMPANIONS]
    # Weights last: once they are in the cache the model is complete.
    indexes = [name for name in names if name in INDEXES and len(weights) > 1]
    for name in [*(name for name in beside if name in names), *weights, *indexes]:
        _fetch(repo, name, revision, progress)
    found = _cached(repo, file, revision)
    assert found is not None, "what has just been downloaded is in the cache"
    return found


def _refuse_offline(repo: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            f"{repo} is not in the cache ({constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set; "
            "unset it to download"
        )


def _cached(repo: str, file: str | None, revision: str) -> ModelFiles | None:
    """The model from the cache, without asking the hub whether there is a newer one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    try:
        weights = _choose(repo, names, file)
    except ModelNotFound:
        return None
    if file is None and not _is_whole(weights, names):
        return None
    hub_name = _hub_name(repo, file, revision)
    if len(weights) > 1 or (file is None and _is_hugging_face(folder)):
        return ModelFiles(hub_name, folder)
    return ModelFiles(hub_name, folder / weights[0])


def _is_whole(weights: list[str], names: list[str]) -> bool:
    """Whether no shard and no index is missing: an interrupted download leaves some of them."""
    shard = SHARD.search(weights[0])
    count = int(shard[1]) if shard else 1
    return count == 1 or (len(weights) == count and any(index in names for index in INDEXES))


def _is_hugging_face(folder: Path) -> bool:
    """Whether the folder is in the layout of `transformers`, which keeps facts in its config.json."""
    return "model_type" in ModelFiles("", folder).settings


def _choose(repo: str, names: list[str], file: str | None) -> list[str]:
    """Which files of a repository are the weights."""
    if file is not None:
        if file not in names:
            raise ModelNotFound(f"{repo} has no file {file!r}; it has: {_some(names)}")
        return [file]
    for kind in KINDS:
        found = [name for name in names if fnmatch(Path(name).name, kind) and Path(name).name != RANGES]
        sharded = any(index in names for index in INDEXES) and all("-of-" in name for name in found)
        if len(found) == 1 or (found and sharded):
            return found
        if found:
            raise ModelNotFound(
                f"{repo} holds {len(found)} models; name one of them, as {repo}:{found[0]}: {_some(found)}"
            )
    raise ModelNotFound(f"{repo} holds no .safetensors or .pth weights; it has: {_some(names)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "nothing"


def _fetch(repo: str, name: str, revision: str, progress: bool) -> None:
    """Download one file unless it is cached, and compare it with the hub's checksum."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if isinstance(try_to_load_from_cache(repo, name, revision=revision), str):
        return
    (enable_progress_bars if progress else disable_progress_bars)()
    _check(Path(hf_hub_download(repo, name, revision=revision)), f"{repo}:{name}")


def _check(path: Path, name: str) -> None:
    """The hub names a blob after its checksum: sha256 for large files, Git's own sha1 for small ones."""
    blob = path.resolve()
    expected = blob.name
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        found = _hash(blob, hashlib.sha256())
    elif re.fullmatch(r"[0-9a-f]{40}", expected):
        found = _hash(blob, hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False))
    else:
        return  # a file system without links, or a mirror without checksums: its size was checked
    if found != expected:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise DownloadError(
            f"{name} arrived damaged: checksum {found[:12]}…, expected {expected[:12]}…; "
            "nothing was kept, try again"
        )


def _hash(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return str(digest.hexdigest())


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence with the next step."""
    from huggingface_hub import errors

    try:
        yield
    except RWKVEmbedError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repo} is gated: accept its terms on its page and set HF_TOKEN to a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFound(f"{repo} has no such revision; leave @REVISION out for the newest") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"the hub has no model {repo}, or it is private: check the spelling, or set HF_TOKEN"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelNotFound(f"{repo}: {_first_line(error)}") from error
    except Exception as error:  # of an HTTP library that is another one in each major version of the client
        raise DownloadError(
            f"downloading {repo} failed ({_first_line(error)}); try again, or give the path of a local copy"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
