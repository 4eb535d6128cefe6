"""
Pretraining on unrelated text: words of docstrings, or of a file, some of them hidden as in BERT.

    python -m figures.words                    1,500 steps, 10 minutes of one core, into out/words
    python -m figures.words --corpus=FILE      another text; any dial of train.py
    python train.py --preset=vanilla --n_layer=6 --init_from=out/words     learn LEGO from there
"""
import ast
import itertools
import json
import os
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
from typing import NamedTuple

import torch
from tqdm import tqdm

import train
from lego import NO_VALUE, Batch, InputError, make_task
from model import Transformer, loss_of, predict

UNKNOWN, MASK, END = range(3)  # ids: a word that has none, a hidden one, the end of a document
LIBRARIES = ("torch", "numpy", "matplotlib")  # their docstrings are always at hand
DIALS = dict(attention="vanilla", tied=False, n_layer=6, lr=1e-3, muon_lr=1e-2, ema=0.95,
             batch_size=128, warmup_steps=100, schedule="constant", max_steps=1500, stop_at=0.0,
             eval_every=100, eval_size=500, out_dir="out/words")
DOCUMENTED, CODE = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef), (">>>", "...")


@dataclass
class Words(train.Config):
    corpus: str = ""  # a UTF-8 text file; "": the docstrings of LIBRARIES
    n_tokens: int = 60  # T


class Corpus(NamedTuple):
    vocab: tuple[str, ...]  # [UNKNOWN], [MASK], [END], the tokens of `sign`, the most common words
    train: torch.Tensor  # (N,) int64: documents in a row, as word ids
    test: torch.Tensor  # (N,) int64: every 20th document, held out


@lru_cache
def word_pattern() -> re.Pattern:
    """A word is letters with their accents; a digit, a Chinese character, any other sign is one."""
    marks = [c for c in map(chr, range(sys.maxunicode)) if unicodedata.category(c)[0] == "M"]
    chinese = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # as BERT has it
    letters = rf"[^\W\d_](?:[^\W\d_{chinese}]|[{''.join(marks)}\u200c\u200d])*"
    return re.compile(rf"[{chinese}]|{letters}|\d|[^\w\s]|_")


def split_words(text) -> list[str]:
    """Lower-case words and single signs, see `word_pattern`; spaces go."""
    return [*map(sys.intern, word_pattern().findall(unicodedata.normalize("NFC", text.lower())))]


@lru_cache(maxsize=1)
def read_corpus(path="", n_tokens=1, n_words=8192) -> Corpus:
    """
    The words of a UTF-8 text file, or without a path of the docstrings of LIBRARIES, n_words of
    which have an id. InputError if there are too few for n_tokens to train on, or to test on.
    """
    texts = dict.fromkeys(read_paragraphs(path) if path else read_docstrings())  # equal ones once
    bar = tqdm(texts, "splitting into words", leave=False, disable=None)
    documents = [words for text in bar if (words := split_words(text))]
    count = Counter(itertools.chain.from_iterable(documents))
    special = ("[UNKNOWN]", "[MASK]", "[END]", *make_task("sign").vocab)
    common = sorted(count.keys() - {*special}, key=lambda word: (-count[word], word))
    vocab = (*special, *common)[: max(n_words, len(special))]
    index, parts = {word: i for i, word in enumerate(vocab)}, ([], [])
    for i, words in enumerate(documents):
        parts[i % 20 == 0].extend(index.get(word, UNKNOWN) for word in (*words, "[END]"))
    if not 1 <= n_tokens <= min(map(len, parts)):
        raise InputError(f"n_tokens={n_tokens}: the text has {[*map(len, parts)]} words to use")
    return Corpus(vocab, *map(torch.tensor, parts))


def read_paragraphs(path) -> list[str]:
    """What empty lines separate, or the lines if that gives fewer than 20 paragraphs."""
    text = Path(path).read_text(encoding="utf-8-sig")
    paragraphs = re.split(r"\n\s*\n", text)
    return paragraphs if len(paragraphs) >= 20 else text.split("\n")


def read_docstrings() -> list[str]:
    """The docstrings in the sources of LIBRARIES, without their code; collected once, then kept."""
    versions = "-".join(f"{name}-{version(name)}" for name in LIBRARIES)
    cache, texts = Path(tempfile.gettempdir()) / f"nanolego-{versions}.json", []
    if cache.exists():
        return json.loads(cache.read_text())
    folders = itertools.chain(*(find_spec(name).submodule_search_locations for name in LIBRARIES))
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*.py"))]
    for path in tqdm(paths, "reading docstrings", leave=False, disable=None):
        with suppress(SyntaxError, ValueError):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, DOCUMENTED):
                    lines = (ast.get_docstring(node) or "").splitlines()
                    texts.append("\n".join(x for x in lines if not x.lstrip().startswith(CODE)))
    beside = cache.with_suffix(f".{os.getpid()}")  # other processes may look for it now
    beside.write_text(json.dumps(texts))
    os.replace(beside, cache)
    return texts


def sample_words(corpus, batch_size, n_tokens, generator=None, held_out=False) -> Batch:
    """Windows of the text; 15% of the words are asked for: 80% of them read [MASK], 10% another."""
    B, T, words = batch_size, n_tokens, corpus.test if held_out else corpus.train
    rand = lambda *size: torch.rand(*size, generator=generator, dtype=torch.float32)
    start = torch.randint(len(words) - T + 1, (B, 1), generator=generator)
    tokens = words[start + torch.arange(T)]  # (B, T)
    n = max(1, round(0.15 * T))
    positions = (rand(B, T) + (tokens <= END)).argsort(dim=1)[:, :n]  # (B, n): special ones last
    values, dice = tokens.gather(1, positions), rand(B, n)
    others = torch.randint(END + 1, len(corpus.vocab), (B, n), generator=generator)
    read = torch.where(dice < 0.8, MASK, torch.where(dice < 0.9, others, values))
    values, nothing = values.masked_fill(values <= END, NO_VALUE), torch.zeros_like(tokens)
    return Batch(tokens.scatter(1, positions, read), positions, values, nothing[:, :n], nothing)


@torch.random.fork_rng(devices=[])
def make_model(config):
    config = config.complete()
    torch.manual_seed(train.seed_of(config, "weights"))
    vocab = read_corpus(config.corpus, config.n_tokens).vocab
    return Transformer(config, vocab, len(vocab), len(vocab), config.n_tokens)


def draw(config, size, step, device, purpose="sentences"):
    """Windows of the text, or for the purpose "test" of what is held out of it."""
    corpus = read_corpus(config.corpus, config.n_tokens)
    generator = train.make_generator(config, purpose, step)
    batch = sample_words(corpus, size, config.n_tokens, generator, held_out=purpose == "test")
    return batch.to(device)


@torch.no_grad()
def evaluate(model, config, step):
    """The loss, and the share of all hidden words that are right, in documents held out."""
    batch = draw(config, config.eval_size, step, model.head.weight.device, "test")
    logits = torch.cat([predict(model, part) for part in batch.split(128)])  # (B, n, n_out)
    (loss, n), right = loss_of(logits, batch.values), logits.argmax(-1) == batch.values
    return (loss / n).item(), [(right.sum() / n).item()]


def run(config, model=None, resume=False):
    return train.train(config, model or make_model(config), draw, evaluate=evaluate, resume=resume)


if __name__ == "__main__":
    config, resume = train.parse(Words, **DIALS)
    try:
        model = make_model(config)
    except (InputError, OSError, UnicodeError) as error:
        print(f"corpus={config.corpus}: {error}", file=sys.stderr)
        sys.exit(2)
    train.run(config, resume, model=model, draw=draw, evaluate=evaluate)
