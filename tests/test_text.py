"""figures/text.py: words of any script, documents held out, hidden words as in BERT, bad files are refused."""
import unicodedata

import pytest
import torch

import figures.text
import lego
from figures.text import END, MASK, read_corpus, sample_words, split_words


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def corpus(tmp_path):
    """Four different documents over few words, and one word that the vocabulary has no room for."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(f"Alpha{i % 3}, x = beta;" for i in range(60)) + " rare", encoding="utf-8")
    return read_corpus(str(path), n_words=39)


def test_words():
    words = split_words("Don't x=-1; v26_a  Été")
    assert words == ["don", "'", "t", "x", "=", "-", "1", ";", "v", "2", "6", "_", "a", "été"]


@pytest.mark.parametrize("text, n_words", [
    ("été naïve garçon", 3), ("tiếng Việt", 2), ("हिन्दी में", 2), ("שָׁלוֹם", 1),
    ("İstanbul", 1), ("がぎぐ", 1), ("می‌خواهم", 1),
    ("我们今天去学校", 7), ("我们2天, ok", 6)])
def test_words_of_other_scripts_keep_their_marks(text, n_words):
    """Composed or decomposed accents make the same words; a Chinese character is a word, as in BERT."""
    composed, decomposed = (split_words(unicodedata.normalize(form, text)) for form in ("NFC", "NFD"))
    assert composed == decomposed and len(composed) == n_words


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_sentences_do_not_depend_on_the_default_dtype(corpus, dtype):
    """In bfloat16 a random number has 8 bits, in which many variables would tie."""
    task = lego.make_task("sign", 500)
    draw = lambda: (*lego.sample(task, 4, 300, generator(), branch=0.3), *sample_words(corpus, 4, 9, generator()))
    expected = draw()
    try:
        torch.set_default_dtype(dtype)
        assert all(torch.equal(x, y) for x, y in zip(draw(), expected))
    finally:
        torch.set_default_dtype(torch.float32)


def test_corpus_keeps_the_symbols_and_holds_documents_out(corpus):
    assert corpus.vocab[:3] == ("[UNKNOWN]", "[MASK]", "[END]") and corpus.vocab[3:34] == lego.make_task("sign").vocab
    assert {"alpha", "beta"} <= set(corpus.vocab) and "rare" not in corpus.vocab and len(corpus.vocab) == 39
    words = [corpus.vocab[i] for i in corpus.train]
    assert words[:9] == ["alpha", "1", ",", "x", "=", "beta", ";", "[END]", "alpha"]  # the first document is held out
    assert (corpus.test == END).sum() == 1 and (corpus.train == END).sum() == 3  # equal documents count once


def test_text_without_empty_lines_is_taken_by_lines(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"line {chr(97 + i)}" for i in range(26)))
    corpus = read_corpus(str(path))
    assert [corpus.vocab[i] for i in corpus.test] == ["line", "a", "[END]", "line", "u", "[END]"]
    assert len(corpus.train) == 24 * 3


def test_hidden_words_are_as_in_bert(tmp_path):
    """15% of a window; of these 80% read [MASK], 10% another word, 10% themselves; all else is the text."""
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}" for i in range(5000)))
    path.write_text("held out\n\n" + path.read_text())
    corpus = read_corpus(str(path), n_words=1000)
    batch = sample_words(corpus, 500, 40, torch.Generator().manual_seed(0))
    assert batch.tokens.shape == (500, 40) and batch.positions.shape == batch.values.shape == (500, 6)
    assert all(len(set(row.tolist())) == 6 for row in batch.positions)
    read = batch.tokens.gather(1, batch.positions)
    known = batch.values != lego.IGNORE
    share = lambda x: x[known].float().mean().item()
    assert abs(share(read == MASK) - 0.8) < 0.03 and abs(share(read == batch.values) - 0.1) < 0.03
    restored = batch.tokens.scatter(1, batch.positions, torch.where(known, batch.values, read))
    text = " ".join(map(str, corpus.train.tolist()))
    assert all(" ".join(map(str, row.tolist())) in text for row in restored)
    assert len(set(batch.tokens[:, 0].tolist())) > 300  # from anywhere


@pytest.mark.parametrize("content, expected", [
    (None, "No such file"), (b"", "this is empty"), (b"  \n ", "this is empty"),
    (b"one line", "expected at least 2"), (b"\x80\x81\xff", "expected UTF-8 text"), (b"a\0b", "or binary")])
def test_bad_corpus_is_named(tmp_path, content, expected):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"corpus={path}: .*{expected}"):
        read_corpus(str(path))


def test_docstrings_are_the_text_that_is_always_there(tmp_path, monkeypatch):
    """Collected once; the file is read again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures.text, "LIBRARIES", ("tqdm",))
    corpus = read_corpus.__wrapped__()
    assert len(corpus.train) > 1000 and {"progress", "bar", "iterable"} <= set(corpus.vocab)
    monkeypatch.setattr(figures.text.ast, "parse", None)  # would fail
    again = read_corpus.__wrapped__()
    assert again.vocab == corpus.vocab and torch.equal(again.train, corpus.train)
