"""Tokenizers: taken apart into JSON and files, and the same again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from workshop import freeze_source

from zerowake.snapshot import tokenizer
from zerowake.snapshot.errors import DamagedSnapshot, SnapshotError
from zerowake.snapshot.rebuild import Builder
from zerowake.snapshot.skeleton import Skeleton
from zerowake.snapshot.tokenizer import keep, put_together, take_apart

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "été", "語", '"', "\\"]
TEXTS = ["unaffable été", '語 " \\ <new> [CLS] unknown', ""]


def word_piece(words: Sequence[str] = WORDS, **settings: Any) -> Tokenizer:
    vocab = {word: index for index, word in enumerate(words)}
    made = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", **settings))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]"])
    made.add_tokens([AddedToken("<new>", lstrip=True)])  # its id is past those of the model
    made.enable_padding(length=20)
    made.enable_truncation(16)
    return made


def byte_pairs(**settings: Any) -> Tokenizer:
    parts = ["<s>", "u", "n", "a", "f", "Ġ", "un", "aff", "af", "Ġun", "#version: 0.2"]
    vocab = {part: index for index, part in enumerate(parts)}
    merges = [("u", "n"), ("a", "f"), ("af", "f"), ("Ġ", "un")]
    made = Tokenizer(models.BPE(vocab, merges, **settings))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    made.add_special_tokens(["<s>", "<new>"])
    return made


@pytest.mark.parametrize(
    ("made", "names"),
    [
        (word_piece(), ["vocab.txt"]),
        (word_piece(max_input_chars_per_word=5, continuing_subword_prefix="%%"), ["vocab.txt"]),
        (byte_pairs(), ["vocab.json", "merges.txt"]),
        (
            byte_pairs(dropout=0.1, unk_token="<s>", fuse_unk=True, ignore_merges=True),
            ["vocab.json", "merges.txt"],
        ),
        (byte_pairs(byte_fallback=True, end_of_word_suffix="n"), ["vocab.json", "merges.txt"]),
    ],
)
def test_parts_give_the_same_again(made: Tokenizer, names: list[str]) -> None:
    text, files = take_apart(made)
    assert list(files) == names
    again = put_together(text, list(files.values()))
    assert again.to_str() == made.to_str()
    assert again.get_vocab(with_added_tokens=True) == made.get_vocab(with_added_tokens=True)
    if not getattr(made.model, "dropout", None):
        for sentence in TEXTS:
            assert again.encode(sentence).ids == made.encode(sentence).ids


@pytest.mark.parametrize(
    "made",
    [
        word_piece(["[UNK]", "ends in a blank "]),
        word_piece(["[UNK]", "ends\u3000in\u3000one\u3000"]),
        word_piece(["[UNK]", "two\nlines", "x"]),
        word_piece(["[UNK]", "line\r", "x"]),
        Tokenizer(models.WordPiece({"[UNK]": 0, "a": 7}, unk_token="[UNK]")),  # holes
        Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")),
        Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.5)], unk_id=0)),
    ],
)
def test_what_files_cannot_hold_stays_whole(made: Tokenizer) -> None:
    text, files = take_apart(made)
    assert (text.decode(), files) == (made.to_str(), {})
    assert put_together(text).to_str() == made.to_str()


def test_in_a_snapshot(tmp_path: Path) -> None:
    made = freeze_source(
        tmp_path,
        """
        from tokenizers import Tokenizer, models
        self.pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        self.levels = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        """,
    )
    for name in ("pieces", "levels"):
        old, new = getattr(made.original, name), getattr(made.restored, name)
        assert old.to_str() == new.to_str()
    assets = sorted(path.name for path in (made.path / "assets").iterdir())
    assert assets == ["1-tokenizer.json", "2-vocab.txt", "3-tokenizer.json"]


def _rebuild(text: bytes, *files: bytes) -> Any:
    """As a restore does it, from what a stranger may have written."""
    assets = {"text": text, **{str(i): data for i, data in enumerate(files)}}
    node = {"t": "tokenizer", "asset": "text", "files": [str(i) for i in range(len(files))]}
    return Builder(Skeleton([0], [node], [], []), [], assets.__getitem__, {}).build()


PIECES = take_apart(word_piece())[0]
PAIRS = take_apart(byte_pairs())[0]


@pytest.mark.parametrize(
    ("text", "files"),
    [
        (PIECES, [b"\xff\xfe"]),
        (PIECES, [b"a\n", b"b\n"]),
        (PIECES[:-9], [b"a\n"]),
        (b"", [b"a\n"]),
        (b"[" * 100_000, [b"a\n"]),
        (b'{"model":{"type":"WordPiece"}}', [b"a\n"]),
        (
            PIECES.replace(b'"max_input_chars_per_word":100', b'"max_input_chars_per_word":-1'),
            [b"a"],
        ),
        (PAIRS, [b'{"a":0}']),
        (PAIRS, [b"[1]", b""]),
        (PAIRS, [b'{"a":"x"}', b"a a\n"]),
        (PAIRS, [b'{"a":-1}', b""]),
        (PAIRS, [b'{"a":1e999}', b""]),
        (PAIRS, [b'{"a":0}', b"a b\n"]),
        (PAIRS, [b'{"a":0}', b"a\n"]),
        (PAIRS, [b'{"a":0}', b"\xff"]),
        (PAIRS, [b"{" * 100_000, b""]),
        (PAIRS.replace(b'"dropout":null', b'"dropout":7.5'), [b'{"a":0}', b""]),
    ],
)
def test_damaged_parts_are_refused(text: bytes, files: list[bytes]) -> None:
    with pytest.raises(SnapshotError, match="tokenizer"):
        _rebuild(text, *files)


def test_a_model_without_files_is_given_none() -> None:
    level = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")).to_str().encode()
    with pytest.raises(DamagedSnapshot, match="WordLevel, which has no files"):
        _rebuild(level, b"a\n")


@pytest.mark.parametrize("words", [b"", b"\n\n\n", b"a\na\na\n", b"\0\n", b"x" * 1_000_000])
def test_odd_vocabularies_do_no_harm(words: bytes) -> None:
    made = _rebuild(PIECES, words)
    for sentence in TEXTS:
        try:
            made.encode(sentence)
        except Exception as error:  # the library's own class: a token that must be there is not
            assert "[UNK]" in str(error)


def test_whole_json_is_still_read() -> None:
    made = word_piece()
    assert json.loads(_rebuild(made.to_str().encode()).to_str()) == json.loads(made.to_str())


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    """What is kept, nothing at first."""
    monkeypatch.setattr(tokenizer, "_kept", found := {})
    return found


@pytest.mark.parametrize("made", [word_piece(), byte_pairs()])
def test_a_kept_one_is_found_once(made: Tokenizer, kept: dict[Any, Any]) -> None:
    text, files = take_apart(made)
    keep(text, list(files.values()))
    (wanted,) = kept.values()
    keep(text, list(files.values()))  # again: it is not made again
    found, other = (put_together(text, list(files.values())) for _ in range(2))
    assert found is wanted is not other
    found.enable_padding(length=7)  # its user's alone
    assert other.to_str() == made.to_str()
    for sentence in TEXTS:
        assert other.encode(sentence).ids == made.encode(sentence).ids
        assert other.encode(sentence).offsets == made.encode(sentence).offsets


def test_other_parts_are_not_taken_for_kept_ones(kept: dict[Any, Any]) -> None:
    keep(PIECES, [b"[UNK]\na\n"])
    assert put_together(PIECES, [b"[UNK]\nb\n"]).token_to_id("b") == 1
    with pytest.raises(SnapshotError, match="tokenizer"):
        _rebuild(PIECES, b"\xff\xfe")
    assert len(kept) == 1


def test_what_is_kept_is_bounded(kept: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "MOST_KEPT_NBYTES", 2 * len(PIECES) + 20)
    for word in (b"a\n", b"b\n", b"a\n", b"c\n", b"x" * len(PIECES) * 2):
        keep(PIECES, [word])
    assert [files for _text, *files in kept] == [[b"a\n"], [b"c\n"]]


def test_what_is_damaged_is_not_kept(kept: dict[Any, Any]) -> None:
    with pytest.raises(Exception, match="UTF-8"):
        keep(PIECES, [b"\xff\xfe"])
    assert not kept
