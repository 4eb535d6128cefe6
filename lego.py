"""
LEGO, a synthetic task of following a chain of reasoning: every sentence that a model sees, its text form, and a solver.

A group G acts on a set X. A sentence is a set of clauses `variable = operation argument`, where the argument is another
variable or the root element of X. The clauses form one chain and are shuffled; the task is to give every value.

    b=-a; c=+b; a=+1;            one sentence of the task `sign`: G = {+, -} acts on X = {+1, -1}, the root is 1

    chain       a=+1   ->   b=-a   ->   c=+b          follow the chain from the root ...
    values      a: +1       b: -1       c: -1         ... and every clause applies its operation to the value before it

    position    0  1  2  3  4    5  6  7  8  9    10 11 12 13 14
    token       b  =  -  a  ;    c  =  +  b  ;    a  =  +  1  ;        five tokens per clause, as in the paper
    label      -1                -1               +1                   read at the variable on the left-hand side

`sample` gives everything in chain order: positions [10, 0, 5], values [0, 1, 1], indices into task.values = +1, -1.

    python lego.py "b=-a; c=+b; a=+1"              solve a sentence
    python lego.py --task=d3 --n_clauses=100       print a few random sentences of a task, solved

Sources: the task and its tokens are the paper's (arXiv 2206.04301) and its official code's; tasks beyond `sign` and
`d3`, distractor chains and dropped clauses are ours.
"""
import ast
import hashlib
import itertools
import os
import re
import string
import sys
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

IGNORE = -100  # the label of a variable that has none; also the default `ignore_index` of F.cross_entropy
TOKENS_PER_CLAUSE = 5  # variable, =, operation, argument, ;
MAX_NAMES = 1024  # variables of a task

# ----------------------------------------------------------------------------------------------------------------------
# tasks: a group, the set that it acts on, and the symbols to write both in


@dataclass(frozen=True, eq=False)
class Task:
    """A group G acting on a set X, and the vocabulary of its sentences. Made by `make_task`."""

    name: str
    operations: tuple[str, ...]  # the symbols of G
    values: tuple[str, ...]  # the symbols of X
    action: torch.Tensor  # (|G|, |X|) int64: action[g, x] is the index of g.x
    root: int  # index of the root element in X ...
    root_symbol: str  # ... and how a clause writes it
    names: tuple[str, ...]  # the variables: a to z, then v26, v27, ...

    @cached_property
    def vocab(self) -> tuple[str, ...]:
        """The symbol of every token id. Names come last: a larger alphabet leaves the other ids as they were."""
        return ("=", ";", self.root_symbol, *self.operations, *self.names)

    @property
    def first_operation(self) -> int:  # token id of operations[0]; the ids of the others follow
        return 3

    @property
    def first_name(self) -> int:  # token id of names[0]; the ids of the others follow
        return 3 + len(self.operations)


@lru_cache
def make_task(name: str, n_names: int = 26) -> Task:
    """
    The task of that name, with `n_names` variables to draw from.

        sign    {+, -} acting on {+1, -1}: the paper's Task 1 (chance 1/2)
        d<k>    the dihedral group of order 2k acting on itself, k >= 3: d3 is the paper's Task 2 (chance 1/6)
        c<k>    the cyclic group of order k >= 2, written additively, acting on itself (chance 1/k)
        s<k>    the permutations of k = 2 to 6 things acting on themselves (chance 1/k!); s5 is the first not solvable

    Every operation of G moves the root to a different value, so the values of a uniform sentence are uniform too.
    Raises ValueError for another name or a size out of range.
    """
    if not 1 <= n_names <= MAX_NAMES:
        raise ValueError(f"n_names={n_names}: expected 1 to {MAX_NAMES}")
    names = tuple(string.ascii_lowercase[:n_names]) + tuple(f"v{i}" for i in range(26, n_names))
    if name == "sign":
        return Task(name, ("+", "-"), ("+1", "-1"), torch.tensor([[0, 1], [1, 0]]), 0, "1", names)

    kind, k = name[:1], int(name[1:]) if re.fullmatch(r"[1-9]\d{0,2}", name[1:]) else 0
    if kind == "c" and 2 <= k <= 512:
        operations, values = tuple(f"+{g}" for g in range(k)), tuple(str(x) for x in range(k))
        action = torch.tensor([[(g + x) % k for x in range(k)] for g in range(k)])
        return Task(name, operations, values, action, 0, "0", names)
    if kind == "d" and 3 <= k <= 256:
        # r<i> rotates by i/k of a turn, s<i> reflects first and then rotates: each is x -> i + sign * x on the corners
        elements = [(sign, i) for sign in (1, -1) for i in range(k)]
        symbols = [("r" if sign > 0 else "s") + str(i) for sign, i in elements]
        compose = lambda g, x: (g[0] * x[0], (g[1] + g[0] * x[1]) % k)
    elif kind == "s" and 2 <= k <= 6:
        # [213] sends place 1 to 2, 2 to 1 and 3 to 3; the product g.x does x first and then g
        elements = list(itertools.permutations(range(k)))
        symbols = ["[" + "".join(str(i + 1) for i in p) + "]" for p in elements]
        compose = lambda g, x: tuple(g[i] for i in x)
    else:
        raise ValueError(f"task={name}: expected sign, c<k> with k = 2 to 512, d<k> with k = 3 to 256, "
                         "or s<k> with k = 2 to 6")
    index = {element: i for i, element in enumerate(elements)}  # the identity comes first in both lists
    action = [[index[compose(g, x)] for x in elements] for g in elements]
    return Task(name, tuple(symbols), tuple(symbols), torch.tensor(action), 0, "1", names)


# ----------------------------------------------------------------------------------------------------------------------
# sampling


class Batch(NamedTuple):
    """A batch of sentences; `positions` and `values` are in chain order, whatever the order of the clauses."""

    tokens: torch.Tensor  # (B, T) int64, T = 5 clauses
    positions: torch.Tensor  # (B, n) int64: where each variable is on the left-hand side (0 if its clause is dropped)
    values: torch.Tensor  # (B, n) int64: index into task.values, or IGNORE where the sentence does not determine it


def sample(task, batch_size, n_clauses, generator=None, device="cpu", n_distractor=0, drop=None) -> Batch:
    """
    Random sentences: operations, names and the order of the clauses are uniform and independent.

    task          a Task
    n_clauses     the length n of the chain
    generator     a torch.Generator on `device`, None for the default one
    n_distractor  length of a second, independent chain with its own root clause, its own variables and no labels,
                  shuffled into the same sentence; 0 for none
    drop          the chain index of a clause to leave out (0 is the root clause, n - 1 the last): an int for the whole
                  batch, (B,) int64 below n for one each, or "random" to draw one each; None for none. From there on
                  no value is determined: the labels are IGNORE. The dropped variable still is the next argument.

    Returns a Batch with T = 5 (n + n_distractor), 5 less if a clause is dropped.
    Raises ValueError if a length is out of range.
    """
    n_names, B, n = len(task.names), batch_size, n_clauses
    if not (n >= 1 and n_distractor >= 0 and n + n_distractor <= n_names):
        raise ValueError(f"n_clauses={n}, n_distractor={n_distractor}: expected at least 1 and 0, and in all at most "
                         f"n_names={n_names}")
    N = n + n_distractor
    if isinstance(drop, str) and drop == "random" and N > 1:
        drop = torch.randint(n, (B,), generator=generator, device=device)
    elif isinstance(drop, (int, str)):
        if drop not in range(n) or N == 1:
            raise ValueError(f"drop={drop}: expected random or a chain index up to {n - 1}, and a clause that remains")
        drop = torch.full((B,), drop, device=device)

    # the chain: operation g_i takes the value of variable i - 1 to that of variable i
    operations = torch.randint(len(task.operations), (B, N), generator=generator, device=device)
    values = follow(task, operations[:, :n])

    # the clauses in chain order, the distractor's behind; the first of each chain has the root as its argument
    names = torch.rand(B, n_names, generator=generator, device=device).argsort(dim=1)[:, :N] + task.first_name
    clauses = names.new_empty(B, N, TOKENS_PER_CLAUSE)
    clauses[..., 0] = names
    clauses[..., 1] = task.vocab.index("=")
    clauses[..., 2] = operations + task.first_operation
    clauses[:, 1:, 3] = names[:, :-1]
    clauses[:, 0, 3] = task.vocab.index(task.root_symbol)
    if n_distractor:
        clauses[:, n, 3] = task.vocab.index(task.root_symbol)
    clauses[..., 4] = task.vocab.index(";")

    # shuffle: clause i of the chain goes to the place of its rank among random keys; a dropped one goes last, and off
    key = torch.rand(B, N, generator=generator, device=device)
    if drop is not None:
        key.scatter_(1, drop[:, None], 2.0)
        values = values.masked_fill(torch.arange(n, device=device) >= drop[:, None], IGNORE)
    order = key.argsort(dim=1)  # (B, N): order[b, place] is a chain index, its inverse the places
    positions = TOKENS_PER_CLAUSE * order.argsort(dim=1)[:, :n]
    tokens = clauses.gather(1, order[..., None].expand_as(clauses)).flatten(1)  # (B, N, 5) -> (B, 5 N)
    if drop is not None:
        tokens = tokens[:, :-TOKENS_PER_CLAUSE]
        positions = positions.masked_fill(positions >= tokens.size(1), 0)
    return Batch(tokens, positions, values)


def follow(task, operations) -> torch.Tensor:
    """The values (B, n) along chains of operations (B, n), from the root on; indices into task.values."""
    action = task.action.to(operations.device)
    values = [torch.full_like(operations[:, 0], task.root)]
    for operation in operations.unbind(1):
        values.append(action[operation, values[-1]])
    return torch.stack(values[1:], dim=1)


def count_operations(tokens, task) -> torch.Tensor:
    """
    The value (B,) of the operations in whole sentences (B, T), followed in the order of the text: what can be said
    without a look at the names. In `sign`, and where else the order does not matter, it is the value of the last
    variable of a sentence that is one whole chain, which makes it a shortcut: the parity of all minus signs.
    """
    return follow(task, tokens[:, 2::TOKENS_PER_CLAUSE] - task.first_operation)[:, -1]


def change_operation(batch, task, i, generator=None) -> Batch:
    """
    The same sentences with another operation in clause i of every chain, drawn at random, for `sign` the other sign;
    and with the values that follow from it. Raises ValueError for a clause that is not there.
    """
    if i not in range(batch.values.size(1)) or (batch.values == IGNORE).any():
        raise ValueError(f"clause {i}: expected 0 to {batch.values.size(1) - 1}, in sentences without a dropped clause")
    at, n_operations = batch.positions + 2, len(task.operations)  # (B, n), where the operations stand
    operations = batch.tokens.gather(1, at) - task.first_operation
    step = torch.randint(1, n_operations, at.shape[:1], generator=generator, device=at.device)
    operations[:, i] = (operations[:, i] + step) % n_operations
    return Batch(batch.tokens.scatter(1, at, operations + task.first_operation), batch.positions,
                 follow(task, operations))


# ----------------------------------------------------------------------------------------------------------------------
# text


def parse(text, task) -> list[tuple[str, str, str]]:
    """
    The clauses of a sentence as (variable, operation, argument), in the order of the text. Spaces are free, and so is
    the last semicolon. Raises ValueError, with the clause quoted, where one does not have the form.
    """
    def listed(symbols):
        return " ".join(symbols) if len(symbols) <= 6 else f"{symbols[0]} {symbols[1]} ... {symbols[-1]}"
    either = lambda symbols: "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
    name, operation = either(task.names), either(task.operations)
    pattern = re.compile(rf"\s*({name})\s*=\s*({operation})\s*({name}|{re.escape(task.root_symbol)})\s*")
    clauses = text.split(";")
    if not clauses[-1].strip():
        clauses.pop()
    if not clauses:
        raise ValueError(f"sentence {text!r}: expected clauses such as '{_example(task)}'")
    parsed = [pattern.fullmatch(clause) for clause in clauses]
    for clause, match in zip(clauses, parsed):
        if not match:
            raise ValueError(f"clause {clause.strip()!r}: expected variable=operation argument, such as "
                             f"'{_example(task)}', with a variable of {listed(task.names)}, an operation of "
                             f"{listed(task.operations)}, and a variable or the root {task.root_symbol}")
    return [match.groups() for match in parsed]


def _example(task):
    return f"{task.names[0]}={task.operations[-1]} {task.root_symbol}".replace("- ", "-")


def encode(text, task) -> torch.Tensor:
    """The token ids (T,) int64 of a sentence, T = 5 clauses. Raises ValueError as `parse` does."""
    index = {symbol: i for i, symbol in enumerate(task.vocab)}
    return torch.tensor([index[symbol] for variable, operation, argument in parse(text, task)
                         for symbol in (variable, "=", operation, argument, ";")])


def decode(ids, task) -> str:
    """The text of token ids (T,): "b=-a; c=+b; a=+1;". `encode(decode(ids, task), task)` gives the ids back."""
    vocab = task.vocab
    spaced = {";", *(symbol for symbol in task.operations if symbol[-1].isdigit())}  # "b=r1 a" and not "b=r1a"
    symbols = [vocab[i] for i in ids]
    return "".join(symbol + " " * (symbol in spaced) for symbol in symbols).strip()


# ----------------------------------------------------------------------------------------------------------------------
# the solver: symbolic, slow, and independent of `sample`, so that the tests can hold one against the other


def solve(text, task, partial=False) -> dict[str, str]:
    """
    Every variable's value, {variable: symbol}, in chain order (chain after chain where the sentence has several).

    Raises ValueError, with the clause at fault quoted, for a variable assigned twice, for an argument never assigned,
    and for a chain that runs in a circle, as one must where no clause starts from the root. With `partial`, a variable
    that the sentence does not determine has the value None, behind the others, and only the first of these is an error.
    """
    clauses = {}
    for variable, operation, argument in parse(text, task):
        if variable in clauses:
            raise ValueError(f"clause '{_clause(variable, operation, argument)}': {variable} is assigned a second "
                             f"time, expected once")
        clauses[variable] = operation, argument
    if not partial:
        for variable, (operation, argument) in clauses.items():
            if argument != task.root_symbol and argument not in clauses:
                raise ValueError(f"clause '{_clause(variable, operation, argument)}': {argument} is never assigned, "
                                 f"expected another clause that assigns it")
    # follow every chain from its root; several clauses may have the same argument, then the chain branches
    values = {}
    reached = [variable for variable, (_, argument) in clauses.items() if argument == task.root_symbol][::-1]
    while reached:
        variable = reached.pop()
        operation, argument = clauses[variable]
        before = task.root if argument == task.root_symbol else task.values.index(values[argument])
        values[variable] = task.values[task.action[task.operations.index(operation), before]]
        reached += [v for v, (_, argument) in clauses.items() if argument == variable][::-1]
    for variable, (operation, argument) in clauses.items():
        if variable not in values and not partial:
            raise ValueError(f"clause '{_clause(variable, operation, argument)}': following the arguments from here "
                             f"runs in a circle, expected to reach the root {task.root_symbol}")
        values.setdefault(variable, None)
    return values


def _clause(variable, operation, argument):
    return f"{variable}={operation}{' ' * operation[-1].isdigit()}{argument}"


# ----------------------------------------------------------------------------------------------------------------------
# unrelated text to pretrain on: words of which some are hidden


UNKNOWN, MASK, END = range(3)  # word ids: one outside the vocabulary, a hidden one, the end of a document
LIBRARIES = ("torch", "numpy", "matplotlib")  # whose docstrings are the text that is always at hand


@dataclass(frozen=True, eq=False)
class Corpus:
    """Documents in a row, as word ids. Made by `read_corpus`; like a Task it has a vocabulary and values to predict."""

    vocab: tuple[str, ...]  # [UNKNOWN], [MASK], [END], the tokens of the task `sign`, then the most common words
    train: torch.Tensor  # (N,) int64
    test: torch.Tensor  # (N,) int64: every 20th document, held out

    @property
    def values(self) -> tuple[str, ...]:
        return self.vocab


def split_words(text) -> list[str]:
    """Lower-case words, single digits, and each other character by itself; spaces go."""
    return re.findall(r"[^\W\d_]+|\d|[^\w\s]|_", text.lower())


@lru_cache(maxsize=2)
def read_corpus(path="", n_words=8192, device="cpu", folder="out") -> Corpus:
    """
    The words of a UTF-8 text file, whose documents are separated by empty lines, or are its lines where that leaves
    fewer than 20; or, without a path, the prose of the docstrings of LIBRARIES, each docstring a document. The
    `n_words` most common ones are its vocabulary, with the tokens of LEGO always among them. It is kept in `folder`,
    and made anew for another file or other versions.

    Raises ValueError for a file that is missing, empty, not text, or a single document.
    """
    if path and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"corpus={path}: expected a text file, this is none")
    if path:
        try:
            stamp = f"{os.path.abspath(path)} {os.path.getsize(path)} {os.path.getmtime(path)}"
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            raise ValueError(f"corpus={path}: expected a text file ({reason})") from None
    else:
        stamp = " ".join(f"{name} {version(name)}" for name in LIBRARIES)
    cache = Path(folder) / f"corpus-{hashlib.sha256(f'{stamp} {n_words}'.encode()).hexdigest()[:12]}.pt"
    on_device = lambda kept: Corpus(tuple(kept["vocab"]), kept["train"].to(device), kept["test"].to(device))
    try:
        return on_device(torch.load(cache, weights_only=True))
    except Exception:  # not there, or half of one: it can be made again
        first = ("[UNKNOWN]", "[MASK]", "[END]", *make_task("sign").vocab)
        index = {word: i for i, word in enumerate(first)}  # every word, numbered as they come
        documents = []
        texts = tqdm(dict.fromkeys(_paragraphs(path) if path else _docstrings()), desc="splitting into words",
                     unit="document", leave=False, dynamic_ncols=True, disable=None)
        for words in filter(None, map(split_words, texts)):
            documents.append(torch.tensor([*(index.setdefault(word, len(index)) for word in words), END]))
        if len(documents) < 2:
            raise ValueError(f"corpus={path}: expected at least 2 paragraphs or lines, one of them to hold out")
        count = torch.cat(documents).bincount(minlength=len(index)).tolist()
        common = sorted(list(index)[len(first) :], key=lambda word: (-count[index[word]], word))
        vocab = (*first, *common)[: max(n_words, len(first))]
        number = torch.full((len(index),), UNKNOWN)  # from the numbers as they came to those of the vocabulary
        number[[index[word] for word in vocab]] = torch.arange(len(vocab))
        flat = lambda part: number[torch.cat(part)]
        held_out = documents[::20]
        del documents[::20]
        kept = dict(vocab=vocab, train=flat(documents), test=flat(held_out))
        try:
            beside = cache.with_suffix(f".{os.getpid()}.tmp")
            cache.parent.mkdir(parents=True, exist_ok=True)
            torch.save(kept, beside)
            os.replace(beside, cache)
        except (OSError, RuntimeError):  # torch.save has the latter for a full disk
            beside.unlink(missing_ok=True)  # then the next run makes it again
    return on_device(kept)


def _paragraphs(path):
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"corpus={path}: expected UTF-8 text ({error})") from None
    if "\0" in text or not text.strip():
        raise ValueError(f"corpus={path}: expected UTF-8 text, this is {'empty' if not text.strip() else 'binary'}")
    paragraphs = re.split(r"\n\s*\n", text)
    return paragraphs if len(paragraphs) >= 20 else text.split("\n")


def _docstrings():
    """The docstrings in the sources of LIBRARIES, without the lines of code in them."""
    paths = [path for name in LIBRARIES for folder in find_spec(name).submodule_search_locations
             for path in sorted(Path(folder).rglob("*.py"))]
    for path in tqdm(paths, desc="reading docstrings", unit="file", leave=False, dynamic_ncols=True, disable=None):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (ast.get_docstring(node) or "").splitlines()
                yield "\n".join(line for line in lines if not line.lstrip().startswith((">>>", "...")))


def sample_words(corpus, batch_size, n_tokens, generator=None, device="cpu", held_out=False, hidden=0.15) -> Batch:
    """
    Windows of n_tokens from anywhere in the text, a share of whose words is to be predicted, as in BERT: of these, 80%
    read [MASK], 10% are another word, and 10% stay as they are.

    Returns a Batch with T = n_tokens and n = hidden T, in random order: `values` are indices into corpus.vocab, IGNORE
    only where a window has fewer known words. Raises ValueError if the text is shorter than a window.
    """
    B, T, words = batch_size, n_tokens, corpus.test if held_out else corpus.train
    if len(words) < T:
        raise ValueError(f"a corpus with {len(words)} words {'held out' if held_out else 'to train on'}: expected at "
                         f"least n_tokens={T}")
    rand = lambda *size: torch.rand(*size, generator=generator, device=device)
    start = (rand(B, 1).double() * (len(words) - T + 1)).long()
    tokens = words[start + torch.arange(T, device=device)]  # (B, T)
    n = max(1, round(hidden * T))
    positions = (rand(B, T) + (tokens <= END)).argsort(dim=1)[:, :n]  # (B, n): unknown words and ends come last
    values = tokens.gather(1, positions)
    dice = rand(B, n)
    others = torch.randint(END + 1, len(corpus.vocab), (B, n), generator=generator, device=device)
    tokens = tokens.scatter(1, positions, torch.where(dice < 0.8, MASK, torch.where(dice < 0.9, others, values)))
    return Batch(tokens, positions, values.masked_fill(values <= END, IGNORE))


# ----------------------------------------------------------------------------------------------------------------------


def main(arguments):
    task, text, n_clauses = "sign", None, 6
    for argument in arguments:
        if argument.startswith("--task="):
            task = argument.removeprefix("--task=")
        elif re.fullmatch(r"--n_clauses=\d{1,9}", argument) and text is None:
            n_clauses = int(argument.removeprefix("--n_clauses="))
        elif argument.startswith("-") or text is not None:
            raise ValueError(f"'{argument}': expected one sentence, --task=NAME and --n_clauses=NUMBER")
        else:
            text = argument
    task = make_task(task, MAX_NAMES if text else min(max(26, n_clauses), MAX_NAMES))
    sentences = [text] if text is not None else [decode(ids, task) for ids in sample(task, 3, n_clauses).tokens]
    for text in sentences:
        values = solve(text, task)
        clauses = {clause[0]: _clause(*clause) for clause in parse(text, task)}
        print(text)
        for variable, value in values.items():
            print(f"    {clauses[variable]:<{max(map(len, clauses.values()))}}    {variable} is {value}")


def command_line(main):
    """
    Runs `main(arguments)`; whatever is wrong with what the user typed, with a file, or with sizes that the memory does
    not hold, is one line on stderr and exit code 2. So is Ctrl-C, with 130.
    """
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        line = str(error)
        if isinstance(error, (MemoryError, RuntimeError)):
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate" not in line:
                raise
            line = f"out of memory, expected smaller sizes ({line.partition(chr(10))[0]})"
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)  # it may quote any character
        print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:  # train.train says where it stopped, and by which signal
        line, number = stop.args or ("stopped", 2)
        print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
        sys.exit(128 + number)


if __name__ == "__main__":
    command_line(main)
