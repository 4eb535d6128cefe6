"""
Pretraining on unrelated text: the words of docstrings, or of a file, some of them hidden as in BERT.

    python -m figures.words                                  1,500 steps, 10 minutes of one core, into out/words
    python -m figures.words --corpus=FILE                    another text; any dial of train.py
    python train.py --preset=vanilla --n_layer=6 --init_from=out/words     learn LEGO from there

    the mean of the [MASK] elements in the input             15% of the words are asked for; the label here is `all`
"""
import ast
import itertools
import json
import re
import sys
import tempfile
import unicodedata
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

import train
from lego import NO_VALUE, Batch, make_task
from model import Transformer, loss_of, predict

UNKNOWN, MASK, END = range(3)  # word ids: one outside the vocabulary, a hidden one, the end of a document
LIBRARIES = ("torch", "numpy", "matplotlib")  # their docstrings are the text that is always at hand


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents in a row, as word ids. Made by `read_corpus`."""

    vocab: tuple[str, ...]  # [UNKNOWN], [MASK], [END], the tokens of the task `sign`, then the most common words
    train: torch.Tensor  # (N,) int64
    test: torch.Tensor  # (N,) int64: every 20th document, held out


@lru_cache
def word_pattern() -> re.Pattern:
    """A word is letters with their accents; a digit, a Chinese character or any other sign is one by itself."""
    marks = "".join(c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] == "M")
    chinese = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # as BERT has it
    return re.compile(rf"[{chinese}]|[^\W\d_](?:[^\W\d_{chinese}]|[{marks}\u200c\u200d])*|\d|[^\w\s]|_")


def split_words(text) -> list[str]:
    """Lower-case words and single signs, see `word_pattern`; spaces go."""
    return word_pattern().findall(unicodedata.normalize("NFC", text.lower()))


@lru_cache(maxsize=1)
def read_corpus(path="", n_tokens=1, n_words=8192) -> Corpus:
    """
    The words of a UTF-8 text file, or without a path of the docstrings of LIBRARIES. The vocabulary has n_words:
    special ones, the tokens of LEGO, then the most common. Raises ValueError for a file that is not text, or too short
    for n_tokens.
    """
    texts = dict.fromkeys(read_paragraphs(path) if path else read_docstrings())  # equal ones count once
    texts = tqdm(texts, desc="reading words", leave=False, disable=not sys.stderr or None)
    documents = [words for text in texts if (words := [*map(sys.intern, split_words(text))])]
    count = Counter(itertools.chain.from_iterable(documents))
    special = ("[UNKNOWN]", "[MASK]", "[END]", *make_task("sign").vocab)
    common = sorted(count.keys() - {*special}, key=lambda word: (-count[word], word))
    vocab = (*special, *common)[: max(n_words, len(special))]
    index = {word: i for i, word in enumerate(vocab)}
    number = lambda documents: [i for words in documents for i in (*(index.get(word, UNKNOWN) for word in words), END)]
    held_out = number(documents[::20])
    del documents[::20]
    parts = number(documents), held_out
    if min(map(len, parts)) < n_tokens:
        raise ValueError(f"corpus={path}: expected at least 2 paragraphs or lines, one to hold out, and "
                         f"n_tokens={n_tokens} words in either part")
    return Corpus(vocab, *map(torch.tensor, parts))


def read_paragraphs(path) -> list[str]:
    """What empty lines separate, or the lines if that gives fewer than 20 paragraphs."""
    text = Path(path).read_text(encoding="utf-8-sig")
    paragraphs = re.split(r"\n\s*\n", text)
    return paragraphs if len(paragraphs) >= 20 else text.split("\n")


def read_docstrings() -> list[str]:
    """The docstrings in the sources of LIBRARIES, without their lines of code; collected in a minute, then kept."""
    cache = Path(tempfile.gettempdir()) / f"nanolego-{'-'.join(f'{name}-{version(name)}' for name in LIBRARIES)}.json"
    if not cache.exists():
        paths = [path for name in LIBRARIES for location in find_spec(name).submodule_search_locations
                 for path in sorted(Path(location).rglob("*.py"))]
        texts = []
        for path in tqdm(paths, desc="reading docstrings", leave=False, disable=not sys.stderr or None):
            with suppress(SyntaxError, ValueError):
                for node in ast.walk(ast.parse(path.read_bytes())):
                    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                        lines = (ast.get_docstring(node) or "").splitlines()
                        texts.append("\n".join(line for line in lines if not line.lstrip().startswith((">>>", "..."))))
        cache.write_text(json.dumps(texts))
    return json.loads(cache.read_text())


def sample_words(corpus, batch_size, n_tokens, generator=None, held_out=False, hidden=0.15) -> Batch:
    """
    Windows of n_tokens from anywhere in the text, with a share of the words hidden as in BERT: of these 80% read
    [MASK], 10% another word, 10% themselves. `values` are word ids, n = hidden T. The text is T words or more.
    """
    B, T, words = batch_size, n_tokens, corpus.test if held_out else corpus.train
    rand = lambda *size: torch.rand(*size, generator=generator, device=words.device, dtype=torch.float32)
    start = torch.randint(len(words) - T + 1, (B, 1), generator=generator, device=words.device)
    tokens = words[start + torch.arange(T, device=words.device)]  # (B, T)
    n = max(1, round(hidden * T))
    positions = (rand(B, T) + (tokens <= END)).argsort(dim=1)[:, :n]  # (B, n): unknown words and ends come last
    values, dice = tokens.gather(1, positions), rand(B, n)
    others = torch.randint(END + 1, len(corpus.vocab), (B, n), generator=generator, device=words.device)
    tokens = tokens.scatter(1, positions, torch.where(dice < 0.8, MASK, torch.where(dice < 0.9, others, values)))
    return Batch(tokens, positions, values.masked_fill(values <= END, NO_VALUE), torch.zeros_like(positions),
                 torch.zeros_like(tokens))


# ---- a run of train.py on these -------------------------------------------------------------------------------------


@dataclass
class Words(train.Config):
    corpus: str = ""  # a UTF-8 text file; "": the docstrings of torch, numpy and matplotlib
    n_tokens: int = 60  # T


DIALS = dict(attention="vanilla", tied=False, n_layer=6, branch=0.0, lr=1e-3, muon_lr=1e-2, batch_size=128,
             warmup_steps=100, schedule="constant", max_steps=1500, eval_every=100, eval_size=500, out_dir="out/words")


@torch.random.fork_rng(devices=[])
def make_model(config):
    config = config.complete()
    torch.manual_seed(train.seed_of(config, "weights"))
    vocab = read_corpus(config.corpus, config.n_tokens).vocab
    return Transformer(config, vocab, len(vocab), len(vocab), config.n_tokens)


def draw(config, size, step, device):
    corpus = read_corpus(config.corpus, config.n_tokens)
    batch = sample_words(corpus, size, config.n_tokens, train.make_generator(config, "sentences", step))
    return batch.to(device)


@torch.no_grad()
def evaluate(model, config, step):
    """The loss, and the share of all hidden words that are right, in documents held out."""
    corpus, generator = read_corpus(config.corpus, config.n_tokens), train.make_generator(config, "test", step)
    batch = sample_words(corpus, config.eval_size, config.n_tokens, generator, held_out=True)
    loss, n, right = 0, 0, 0
    for part in batch.to(model.head.weight.device).split(128):
        logits = predict(model, part)
        part_loss, part_n = loss_of(logits, part.values)
        loss, n, right = loss + part_loss, n + part_n, right + (logits.argmax(-1) == part.values).sum()
    return (loss / n).item(), [(right / n).item()]


def run(config, model=None, resume=False):
    return train.train(config, model or make_model(config), draw=draw, evaluate=evaluate, resume=resume)


if __name__ == "__main__":
    config, resume = train.parse(Words, **DIALS)
    train.run(config, resume, model=make_model(config), draw=draw, evaluate=evaluate)
