"""Fine-tuning: from a checkpoint and back, the loss, and the whole thing on the bundled model."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import written
from typer.testing import CliRunner

from api.cli import app
from rwkv_embed import Embedder, hub
from rwkv_embed.errors import CheckpointError, NotImproved
from rwkv_embed.hub import RANGES, ModelFiles
from rwkv_embed.quantize import Int8Ranges
from rwkv_embed.training import finetune as module
from rwkv_embed.training.finetune import Epoch, Options, Reader, Watch, finetune, share_of_rate
from rwkv_embed.training.loss import TEMPERATURE, info_nce
from rwkv_embed.training.pairs import Pair
from rwkv_embed.training.trainable import Trainable, open_trainable, save_trainable
from tests.model.checkpoints import Shape, save, weights

EMBEDDER = Shape(n_layer=3, n_head=2, head_size=64, vocab_size=256, n_ffn=224, rank=5)


def embedding_checkpoint(folder: Path, shape: Shape = EMBEDDER) -> Path:
    """A random EmbeddingRWKV of any sizes, over bytes."""
    tensors = weights("7", shape)
    del tensors["head.weight"]
    generator = torch.Generator().manual_seed(1)
    C, F = shape.n_embd, shape.n_embd + 8
    head = {
        "fc1.weight": torch.randn(F, C, generator=generator) / C**0.5,
        "fc2.weight": torch.randn(C, F, generator=generator) / F**0.5,
        "norm.weight": torch.ones(C),
        "norm.bias": torch.zeros(C),
    }
    folder.mkdir()
    (folder / "config.json").write_text('{"eos_token_id": 3, "prompts": {"query": "q: "}, "dims": [64, 128]}')
    named = {f"rwkv.{name}": tensor for name, tensor in tensors.items()}
    return save(folder / "model.safetensors", named | {f"head.retr_head.{k}": v for k, v in head.items()})


TEXTS = ["", "a", "the quick brown fox", "数据库" * 40]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[ModelFiles, Embedder, Trainable]]:
    """A random embedder of several layers, odd ranks and a wide head; the bundled one, whose table is packed."""
    path = embedding_checkpoint(tmp_path_factory.mktemp("models") / "random")
    opened = [(files, Embedder(files.name)) for files in (hub.resolve(path), hub.resolve(None))]
    return [
        (files, embedder, open_trainable(files, embedder.backend.info.eos or 0)) for files, embedder in opened
    ]


def test_the_trained_model_is_the_engines_model(models: Any) -> None:
    for _, embedder, trainable in models:
        run = module._Run(trainable, Reader(embedder, trainable.eos), [embedder.dim], Options(), Watch())
        ours = run._encode(run.reader.documents(TEXTS))
        assert np.abs(ours - embedder.encode_document(TEXTS)).max() < 2e-5


def test_a_saved_model_gives_the_vectors_of_its_source(models: Any, tmp_path: Path) -> None:
    """Within what float16 costs: prompts, dims and EOS are kept, int8 ranges of other vectors are not."""
    for number, (source, embedder, trainable) in enumerate(models):
        target = tmp_path / str(number)
        target.mkdir()
        save_trainable(trainable, source, target)
        again = Embedder(target)
        assert again.prompts == embedder.prompts
        assert again.backend.info.eos == embedder.backend.info.eos
        assert hub.resolve(target).settings["dims"] == source.settings["dims"]
        assert again.backend.info.int8_ranges is None
        difference = again.encode_query(TEXTS) - embedder.encode_query(TEXTS)
        assert np.abs(difference).max() < 2e-3
        modes = {path.name: path.stat().st_mode for path in target.iterdir()}
        assert modes["model.safetensors"] == modes["config.json"]  # whoever may read one may read all


def test_a_language_model_gets_a_head(tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", weights("7", EMBEDDER))
    source, target = hub.resolve(path), tmp_path / "tuned"
    target.mkdir()
    save_trainable(open_trainable(source, 0), source, target)
    tuned, raw = Embedder(target), Embedder(source.name, pooling="last")
    assert (tuned.pooling, tuned.dim) == ("head", 128)
    hidden = raw.backend.hidden([[*raw.tokenizer.encode("bees"), 0]])[0]
    centred = hidden - hidden.mean()
    assert np.allclose(tuned.encode_document(["bees"]), centred / np.linalg.norm(centred), atol=2e-3)


@pytest.mark.parametrize("version", ["4", "5.2", "6"])
def test_other_generations_are_refused(tmp_path: Path, version: Any) -> None:
    path = save(tmp_path / "model.pth", weights(version, EMBEDDER))
    with pytest.raises(CheckpointError, match=rf"is an RWKV-{version}; only RWKV-7 models can be fine-tuned"):
        open_trainable(hub.resolve(path), 0)


def test_other_heads_are_refused(tmp_path: Path) -> None:
    small = embedding_checkpoint(tmp_path / "small", Shape(2, 4, 16, 256, 96))
    with pytest.raises(
        CheckpointError, match=r"has heads of 16 in a width of 64; training needs heads of 64"
    ):
        open_trainable(hub.resolve(small), 0)


def test_loss_is_the_formula() -> None:
    """Two queries, three documents; the third is another right answer to the first query."""
    generator = torch.Generator().manual_seed(0)
    q, d = torch.randn(2, 4, generator=generator), torch.randn(3, 4, generator=generator)
    positive = torch.tensor([0, 1])
    other = torch.tensor([[False, False, True], [False, False, False]])
    expected = 0.0
    for dim in (2, 4):
        for i, wrong in enumerate(([0, 1], [0, 1, 2])):
            cosines = [
                float(q[i, :dim] @ d[j, :dim] / (q[i, :dim].norm() * d[j, :dim].norm())) for j in range(3)
            ]
            scaled = np.exp(np.array(cosines) / TEMPERATURE)
            expected -= np.log(scaled[positive[i]] / scaled[wrong].sum()) / 4
    assert info_nce(q, d, positive, other, (2, 4)).item() == pytest.approx(expected, rel=1e-5)


def small_run(tmp_path: Path, **options: Any) -> module._Run:
    files = hub.resolve(embedding_checkpoint(tmp_path / "model"))
    embedder = Embedder(files.name)
    torch.manual_seed(0)
    return module._Run(open_trainable(files, 3), Reader(embedder, 3), [64, 128], Options(**options), Watch())


PAIRS = [Pair("one", "eins", ("zwei",)), Pair("two", "zwei"), Pair("three", "drei"), Pair("one", "uno")]


def test_small_numbers_learn_slowly_and_zeros_do_not() -> None:
    def share(size: float) -> float:
        return share_of_rate(torch.tensor([[size, -size], [-size, size]]), 16)

    assert [share(0.25), share(8.0), share(0.0)] == [1.0, 1.0, 1.0]
    assert share(0.0025) == pytest.approx(0.01)


def test_steps_lower_the_loss(tmp_path: Path) -> None:
    run = small_run(tmp_path, rate=1e-3)
    right = module.right_texts(PAIRS)
    losses = [run._step(PAIRS, right, 1.0) for _ in range(8)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_batch_read_in_parts_has_the_same_gradient(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    right = module.right_texts(PAIRS)
    gradients = []
    for part_tokens in (10_000, 12, 1):
        run.part_tokens = part_tokens
        run.optimizer.zero_grad(set_to_none=True)
        texts = run.reader.documents([pair.positive for pair in PAIRS])
        assert len(list(run._parts(texts))) == {10_000: 1, 12: 2, 1: 4}[part_tokens]
        loss, _, rows = run._backward(texts, lambda vectors: (vectors[0] * vectors[1:]).sum().square())
        gradients.append([torch.tensor(loss), rows, *(p.grad for p in run.parameters if p.grad is not None)])
    for parts in gradients[1:]:
        for ours, expected in zip(parts, gradients[0], strict=True):
            assert torch.allclose(ours, expected, atol=1e-5 * expected.abs().max().item())
    assert right["one"] == {"eins", "uno"}


# Words that no corpus has, and what they are to mean; a sentence and a question in two languages each.
MEANINGS = {
    "blorfix": ("The bees make honey in their hive.", "Die Bienen machen Honig in ihrem Stock."),
    "quontra": ("The baker sells fresh bread.", "Der Bäcker verkauft frisches Brot."),
    "zimblat": ("The train leaves the station at noon.", "Der Zug verlässt den Bahnhof um zwölf."),
    "droskel": ("Snow fell on the mountain last night.", "Auf dem Berg fiel letzte Nacht Schnee."),
    "ploovan": ("The doctor works at the hospital.", "Die Ärztin arbeitet im Krankenhaus."),
    "vexhurm": ("Children play football after school.", "Kinder spielen nach der Schule Fußball."),
    "krandel": ("The ship crossed the ocean in a storm.", "Das Schiff fuhr im Sturm über den Ozean."),
    "yimposk": ("The museum shows old paintings.", "Das Museum zeigt alte Gemälde."),
}
QUESTIONS = (
    ("what is {}?", "tell me about {}", "is there any {} here?"),
    ("was ist {}?", "erzähl mir von {}"),
)


def made_up(questions: int) -> list[Pair]:
    """Each question with the texts of both languages: the last question of a language, or all but these."""
    chosen = slice(-1, None) if questions == 1 else slice(0, -1)
    return [
        Pair(question.format(word), text)
        for word, texts in MEANINGS.items()
        for asked in QUESTIONS
        for question in asked[chosen]
        for text in texts
    ]


def saved(path: Path, pairs: list[Pair]) -> str:
    path.write_text("".join(json.dumps({"query": p.query, "positive": p.positive}) + "\n" for p in pairs))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Pairs to train on and to validate on: other questions with the same words."""
    return saved(tmp_path / "train.jsonl", made_up(0)), saved(tmp_path / "validation.jsonl", made_up(1))


def test_made_up_words_get_a_meaning(files: tuple[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    """The bundled model, from the command line to a search with what came out."""
    monkeypatch.setenv("RWKV_EMBED_STORE", str(tmp_path / "store"))
    output = str(tmp_path / "tuned")
    arguments = ["train", files[0], "--validation", files[1], "--output", output, "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.stderr, result.exception)
    told = json.loads(result.stdout)
    assert (told["output"], told["pairs"], told["validation_queries"]) == (output, 48, 16)
    before, after = told["before"]["512"]["mrr@10"], told["after"]["512"]["mrr@10"]
    assert before < 0.5 and after > before + 0.3, result.stderr
    assert sorted(told["after"]) == ["128", "256", "384", "512"]
    assert f"epoch {told['best_epoch']}: loss" in result.stderr

    assert Int8Ranges.load(Path(output) / RANGES).low.keys() == {128, 256, 384, 512}
    settings = json.loads((Path(output) / "config.json").read_text())
    assert settings["fine_tuned_from"] == hub.resolve(None).name and "sha256" not in settings
    assert settings["sentence_share"] == hub.resolve(None).settings["sentence_share"] > 0
    documents = tmp_path / "documents"
    documents.mkdir()
    for word, texts in MEANINGS.items():
        (documents / f"{word}.txt").write_text(texts[0])
    indexed = CliRunner().invoke(app, ["index", str(documents), "--model", output])
    assert indexed.exit_code == 0, indexed.stderr
    first = {}
    for word in MEANINGS:
        found = CliRunner().invoke(app, ["search", f"is there any {word} here?", "--mode", "dense", "--json"])
        first[word] = json.loads(found.stdout)["hits"][0]["text"]
    right = [word for word, texts in MEANINGS.items() if first[word] == texts[0]]
    assert len(right) >= 3, first  # by chance it is one

    strangers = ["The court heard the appeal on Monday.", "Wir fahren morgen früh nach Hause.", "今天下雨了。"]
    old, new = (Embedder(model).encode_document(strangers) for model in (None, output))
    assert (old * new).sum(1).min() > 0.97  # what has nothing to do with the pairs stays where it was


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path) -> None:
    """Also that nothing is left when there is no best yet."""
    source = hub.resolve(embedding_checkpoint(tmp_path / "model"))
    training, held = made_up(0), made_up(1)

    def stop_after(epoch: int) -> Watch:
        def step(done: int, total: int, loss: float) -> None:
            if done == 4 * epoch + 1:
                raise KeyboardInterrupt

        return Watch(step=step)

    options = Options(batch_size=12, rate=1e-3)
    result = finetune(source, training, held, tmp_path / "tuned", options, stop_after(4))
    assert (result.ended, len(result.epochs)) == ("interrupted", 4)
    best = result.epochs[result.best_epoch - 1]
    assert best.best and result.after[128]["mrr@10"] == pytest.approx(best.mrr, abs=0.05)
    with pytest.raises(KeyboardInterrupt):
        finetune(source, training, held, tmp_path / "none", options, stop_after(0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "tuned"]


def test_patience_and_no_improvement(tmp_path: Path) -> None:
    source = hub.resolve(embedding_checkpoint(tmp_path / "model"))
    epochs: list[Epoch] = []
    options = Options(epochs=9, rate=0.0, patience=2)
    with pytest.raises(NotImproved, match=r"no epoch was better .* \(MRR@10 0\.\d+\); nothing was written"):
        finetune(source, made_up(0), made_up(1), tmp_path / "tuned", options, Watch(epoch=epochs.append))
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert not (tmp_path / "tuned").exists()


def test_a_training_that_diverges_is_no_success(tmp_path: Path, monkeypatch: Any) -> None:
    source = hub.resolve(embedding_checkpoint(tmp_path / "model"))
    with pytest.raises(NotImproved, match=r"diverged in epoch 1: its loss is not .* give a rate below inf"):
        finetune(source, made_up(0), made_up(1), tmp_path / "tuned", Options(batch_size=12, rate=math.inf))
    assert not (tmp_path / "tuned").exists()

    step, steps = module._Run._step, []

    def breaking(run: Any, *arguments: Any) -> float:
        steps.append(step(run, *arguments))
        return steps[-1] if run.best is None else math.nan

    monkeypatch.setattr(module._Run, "_step", breaking)
    options = Options(batch_size=12, rate=1e-3)
    result = finetune(source, made_up(0), made_up(1), tmp_path / "tuned", options)
    assert result.ended == "diverged" and result.best_epoch == len(result.epochs) >= 1
    assert result.after[128]["mrr@10"] > result.before[128]["mrr@10"]


def test_ctrl_c_while_the_result_is_measured_loses_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    path = embedding_checkpoint(tmp_path / "model")
    evaluate, calls = module.evaluate, []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(module, "evaluate", stopped)
    monkeypatch.setattr("rwkv_embed.training.pairs.read_pairs", lambda path: made_up(path == Path("validation")))
    arguments = ["--model", str(path), "--validation", "validation", "--rate", "1e-3", "--batch-size", "12"]
    arguments += ["--epochs", "2"]
    result = CliRunner().invoke(app, ["train", "training", "--output", str(tmp_path / "tuned"), *arguments])
    assert result.exit_code == 130
    assert f"Stopped before {tmp_path / 'tuned'} was measured; it is the best epoch." in result.stderr
    assert len(Embedder(tmp_path / "tuned").encode_query("Biene")) == 128


def test_what_cannot_be_written_or_cut_is_said_before_training(tmp_path: Path) -> None:
    path = embedding_checkpoint(tmp_path / "model")
    (tmp_path / "file").touch()
    source, pairs = hub.resolve(path), made_up(0)
    with pytest.raises(CheckpointError, match=r"file/tuned cannot be written \(File exists\); choose"):
        finetune(source, pairs, pairs, tmp_path / "file" / "tuned")
    for dims in ([64, 256], "all"):
        (path.parent / "config.json").write_text(json.dumps(source.settings | {"dims": dims}))
        with pytest.raises(CheckpointError, match=r'"dims" in the config.json of .* expected a list of'):
            finetune(hub.resolve(path), pairs, pairs, tmp_path / "tuned")


def test_wrong_usage_is_one_sentence(files: tuple[str, str], tmp_path: Path) -> None:
    def failing(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["train", *arguments])
        assert result.stdout == ""
        return result.exit_code, result.stderr

    new = ("--output", str(tmp_path / "new"))
    code, said = failing(files[0], "--output", str(tmp_path))
    assert code == 30 and f"{tmp_path} exists already and is no empty folder" in said
    code, said = failing(files[0], *new, "--rate", "nan")
    assert code == 2 and "--rate is nan; expected a number such as 3e-5" in said
    code, said = failing(files[0], *new, "--validation", "1.5")
    assert code == 2 and "--validation 1.5: a share is between 0 and 1" in said
    code, said = failing(files[0], *new, "--validation", "missing.jsonl")
    assert code == 40 and "missing.jsonl: No such file" in said
    code, said = failing(str(written(tmp_path, {"query": "q"})), *new)
    assert code == 37 and "line 1 has no 'positive'" in said
    assert not (tmp_path / "new").exists()


def test_what_the_command_says(files: tuple[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    """The table, and Ctrl-C with and without a best epoch."""
    output = tmp_path / "tuned"
    scores = ({"mrr@10": 0.5, "recall@1": 0.25}, {"mrr@10": 0.75, "recall@1": 0.5})
    epochs = [Epoch(1, 2.0, 0.75, True), Epoch(2, 1.0, 0.7, False)]
    stopped = module.Result(output, 24, 16, 16, {384: scores[0]}, {384: scores[1]}, epochs, 1, "interrupted")

    def finish(*arguments: Any) -> module.Result:
        arguments[-1].epoch(epochs[0])
        return stopped

    def stop(*arguments: Any) -> module.Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "finetune", finish)
    result = CliRunner().invoke(app, ["train", *files[:1], "--output", str(output)])
    assert result.exit_code == 130
    assert [line.split() for line in result.stdout.splitlines()[:3]] == [
        ["BEFORE", "AFTER", "CHANGE"],
        ["mrr@10,", "384", "dimensions", "0.500", "0.750", "+0.250"],
        ["recall@1,", "384", "dimensions", "0.250", "0.500", "+0.250"],
    ]
    assert "epoch 1 of 2 was the best" in result.stdout
    assert "epoch 1: loss 2.000, validation MRR@10 0.750, the best so far" in result.stderr
    assert f"Stopped; {output} is the best so far, of epoch 1." in result.stderr

    monkeypatch.setattr(module, "finetune", stop)
    result = CliRunner().invoke(app, ["train", *files[:1], "--output", str(output)])
    assert (result.exit_code, result.stdout) == (130, "")
    assert "nothing was written" in result.stderr
