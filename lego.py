"""
LEGO (Learning Equality and Group Operations), a synthetic task of reasoning: sentences, their text, and a solver.

A group G acts on a set X. A clause `variable = operation argument` gives a variable the value of its argument, which is
another variable or the root element of X, with the operation applied to it. The clauses are shuffled. The task is to
give every value.

    b=-a; c=+b; a=+1;            one sentence of the task `sign`: G = {+, -} acts on X = {+1, -1}, the root is 1

    chain       a=+1   ->   b=-a   ->   c=+b          follow the chain from the root ...
    values      a: +1       b: -1       c: -1         ... applying each clause's operation to the value before it

    position    0  1  2  3  4    5  6  7  8  9    10 11 12 13 14
    token       b  =  -  a  ;    c  =  +  b  ;    a  =  +  1  ;        five tokens per clause, as in the paper
    label      -1                -1               +1                   read at the variable on the left-hand side

`sample` gives everything in order of depth, the number of links from the root: positions [10, 0, 5], values [0, 1, 1],
which are indices into task.values = +1, -1, and depths [1, 2, 3]. The paper's sentences are chains. With `branch` a
clause may also take any earlier variable, or the root, so that chains, trees, stars and forests are one family:

    branch=0    1 -> a -> b -> c -> d          branch>0    1 -> a -> b -> d        depths a 1, b 2, c 2, d 3, e 1
                                                           |     `-> c
                                                           `--> e

    python lego.py "b=-a; c=+b; a=+1"              solve a sentence
    python lego.py --task=d3 --n_clauses=100       print a few random sentences of a task, solved

The task and its tokens are the paper's (arXiv 2206.04301) and its official code's; tasks beyond `sign` and `d3`,
branches, distractor chains and dropped clauses are ours.
"""
import difflib
import itertools
import os
import re
import signal
import string
import sys
import textwrap
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import torch

IGNORE = -100  # the label of a variable that has none; also the default `ignore_index` of F.cross_entropy
TOKENS_PER_CLAUSE = 5  # variable, =, operation, argument, ;
MAX_NAMES = 1024  # the most variables that a task can have


# ---- tasks: a group, the set that it acts on, and the symbols to write both in ---------------------------------------


@dataclass(frozen=True, eq=False)
class Task:
    """A group G acting on a set X, and the vocabulary of its sentences. Made by `make_task`."""

    name: str
    operations: tuple[str, ...]  # the symbols of G
    values: tuple[str, ...]  # the symbols of X; values[0] is the root element
    root_symbol: str  # how a clause writes the root element
    action: torch.Tensor  # (|G|, |X|) int64: action[g, x] is the index of g.x
    names: tuple[str, ...]  # the variables: a to z, then v26, v27, ...
    first_operation = 3  # token id of operations[0]; the ids of the others follow
    first_name = property(lambda self: self.first_operation + len(self.operations))  # token id of names[0]

    @cached_property
    def vocab(self) -> tuple[str, ...]:
        """The symbol of every token id. Names come last: a larger alphabet leaves the other ids as they were."""
        return ("=", ";", self.root_symbol, *self.operations, *self.names)


@lru_cache
def make_task(name: str, n_names: int = 26) -> Task:
    """
    The task of that name, with `n_names` variables to draw from. Raises ValueError for another name or size.

        sign    {+, -} acting on {+1, -1}: the paper's Task 1 (chance 1/2)
        d<k>    the dihedral group of order 2k acting on itself, k = 3 to 256: d3 is the paper's Task 2 (chance 1/6)
        c<k>    the cyclic group of order k = 2 to 512, written additively, acting on itself (chance 1/k)
        s<k>    the permutations of k = 2 to 6 things acting on themselves (chance 1/k!)
        a<k>    the even ones, k = 3 to 6 (chance 2/k!); a5 is the smallest group that is not solvable

    No two operations take the root to the same value, so the values of a random sentence are uniform too.
    """
    expect(1 <= n_names <= MAX_NAMES, f"n_names={n_names}: expected 1 to {MAX_NAMES}")
    names = (*string.ascii_lowercase[:n_names], *(f"v{i}" for i in range(26, n_names)))
    kind, k = name[:1], int(name[1:]) if re.fullmatch(r"[1-9]\d{0,2}", name[1:]) else 0
    if name == "sign":
        return Task(name, ("+", "-"), ("+1", "-1"), "1", torch.tensor([[0, 1], [1, 0]]), names)
    elif kind == "c" and 2 <= k <= 512:
        action = (torch.arange(k)[:, None] + torch.arange(k)) % k
        return Task(name, tuple(f"+{g}" for g in range(k)), tuple(map(str, range(k))), "0", action, names)
    elif kind == "d" and 3 <= k <= 256:
        # r<i> rotates by i/k of a turn, s<i> reflects first and then rotates: each is x -> i + sign * x on the corners
        elements = [(sign, i) for sign in (1, -1) for i in range(k)]
        symbols = tuple(f"{'r' if sign > 0 else 's'}{i}" for sign, i in elements)
        compose = lambda g, x: (g[0] * x[0], (g[1] + g[0] * x[1]) % k)
    elif kind == "s" and 2 <= k <= 6 or kind == "a" and 3 <= k <= 6:
        # [213] sends place 1 to 2, 2 to 1 and 3 to 3; the product g.x does x first and then g
        n_swaps = lambda p: sum(a > b for a, b in itertools.combinations(p, 2))
        elements = [p for p in itertools.permutations(range(k)) if kind == "s" or n_swaps(p) % 2 == 0]
        symbols = tuple("[" + "".join(str(i + 1) for i in p) + "]" for p in elements)
        compose = lambda g, x: tuple(g[i] for i in x)
    else:
        raise ValueError(f"task={name}: expected sign, c<k> with k = 2 to 512, d<k> with k = 3 to 256, "
                         "s<k> with k = 2 to 6, or a<k> with k = 3 to 6")
    index = {element: i for i, element in enumerate(elements)}  # the identity comes first in both lists
    action = torch.tensor([[index[compose(g, x)] for x in elements] for g in elements])
    return Task(name, symbols, symbols, "1", action, names)


# ---- sampling --------------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """A batch of sentences and what is asked about each of them, in order of depth."""

    tokens: torch.Tensor  # (B, T) int64, T = 5 clauses
    positions: torch.Tensor  # (B, n) int64: where to read: left-hand sides, then arguments if asked; 0 if dropped
    values: torch.Tensor  # (B, n) int64: what to find there, index into task.values; IGNORE where there is no label
    depths: torch.Tensor  # (B, n) int64: how many links lead from the root to the variable of that clause


def sample(task, batch_size, n_clauses, generator=None, branch=0.0, parents=None, n_distractor=0, drop=None,
           arguments=False) -> Batch:
    """
    Random sentences: operations, names and the order of the clauses are uniform and independent. Raises ValueError if
    a size is out of range, and for a clause dropped from anything but a chain.

    n_clauses     n, the variables that are asked for
    generator     a torch.Generator on the device of the batch; None for the default one of the CPU
    branch        probability, a number or one per sentence (B,), that the argument of a clause is drawn from all
                  earlier variables and the root, equally likely; else it is the variable before. 0 gives chains
    parents       (N,) the graph itself in place of a random one: what variable i has as its argument, 0 for the root,
                  j + 1 for variable j < i
    n_distractor  length of a second chain in the same sentence, with its own root clause and names, never asked for
    drop          chain index of a clause to leave out, a number or one per sentence (B,). Values from there on are not
                  determined, their labels are IGNORE; the dropped variable still is the next argument
    arguments     ask at the argument of every clause, too: (B, 2 n); its depth is that of the clause's variable, since
                  the value arrives there in the loop that takes it on to the variable
    """
    B, n, N, device = batch_size, n_clauses, n_clauses + n_distractor, generator.device if generator else "cpu"
    if not (n >= 1 and n_distractor >= 0 and N <= len(task.names)):
        raise ValueError(f"n_clauses={n}, n_distractor={n_distractor}: expected at least 1 and 0, and in all at most "
                         f"n_names={len(task.names)}")
    is_chain = parents is None and not torch.is_tensor(branch) and branch == 0
    drop = drop if drop is None else torch.as_tensor(drop, device=device).expand(B)
    if drop is not None and (N == 1 or not is_chain or drop.min() < 0 or drop.max() >= n):
        raise ValueError(f"drop={drop}: expected chain indices from 0 to {n - 1}, and None for 1 clause or branches")
    rand = lambda *size: torch.rand(*size, generator=generator, device=device, dtype=torch.float32)

    # the graph: column 0 is the root, column i + 1 variable i; so in a chain the argument of variable i is column i
    place = torch.arange(N, device=device)
    if parents is None:
        branch = torch.as_tensor(branch, device=device, dtype=torch.float32).expand(B)[:, None]
        parents = torch.where(rand(B, N) < branch, (rand(B, N) * (place + 1)).long(), place)  # (B, N)
        parents[:, n:] = place[n:].where(place[n:] > n, 0)  # the second chain, from the root
    else:
        parents = torch.as_tensor(parents, device=device).expand(B, N)
    operations = torch.randint(len(task.operations), (B, N), generator=generator, device=device)
    values, depths = follow(task, operations, parents)  # (B, N + 1)

    # the clauses
    names = rand(B, len(task.names)).argsort(1)[:, :N] + task.first_name
    roots = torch.full_like(names[:, :1], task.vocab.index(task.root_symbol))
    equals, end = (torch.full_like(names, task.vocab.index(symbol)) for symbol in "=;")
    clauses = torch.stack((names, equals, operations + task.first_operation,
                           torch.cat((roots, names), 1).gather(1, parents), end), -1)  # (B, N, 5)

    # shuffle by random keys; a dropped clause gets the largest, comes last, and is cut off
    key = rand(B, N)
    if drop is not None:
        key.scatter_(1, drop[:, None], 2.0)
        values[:, 1:] = values[:, 1:].masked_fill(place >= drop[:, None], IGNORE)
    order = key.argsort(1)  # (B, N): order[b, i] is the variable of clause i; argsort of it, the clause of a variable
    positions = TOKENS_PER_CLAUSE * order.argsort(1)
    tokens = clauses.gather(1, order[..., None].expand_as(clauses)).flatten(1)  # (B, N, 5) -> (B, 5 N)
    if drop is not None:
        tokens = tokens[:, :-TOKENS_PER_CLAUSE]
        positions = positions.masked_fill(positions >= tokens.size(1), 0)

    by_depth = depths[:, 1 : n + 1].argsort(dim=1, stable=True)  # (B, n)
    positions, depths = positions.gather(1, by_depth), depths[:, 1:].gather(1, by_depth)
    asked = values[:, 1:].gather(1, by_depth)
    if arguments:  # three tokens after the variable
        at_arguments = values.gather(1, parents.gather(1, by_depth)).masked_fill(asked == IGNORE, IGNORE)
        positions, depths = torch.cat((positions, positions + 3), 1), depths.repeat(1, 2)
        asked = torch.cat((asked, at_arguments), 1)
    return Batch(tokens, positions, asked, depths)


def follow(task, operations, parents):
    """
    The values, as indices into task.values, and the depths, both (B, N + 1), of the root and of the variables that
    apply `operations` (B, N) to `parents` (B, N): 0 for the root, j + 1 for variable j.
    """
    action, (B, N) = task.action.to(operations.device), operations.shape
    values, depths = operations.new_zeros(B, N + 1), operations.new_zeros(B, N + 1)
    for i in range(N):
        parent = parents[:, i : i + 1]
        values[:, i + 1] = action[operations[:, i], values.gather(1, parent)[:, 0]]
        depths[:, i + 1] = depths.gather(1, parent)[:, 0] + 1
    return values, depths


# ---- text, and a solver: symbolic, slow, independent of `sample`; the tests hold one against the other ---------------


def parse(text, task) -> list[tuple[str, str, str]]:
    """
    The clauses of a sentence as (variable, operation, argument), in the order of the text. Clauses end with semicolons,
    commas or lines; spaces are free. The official code's `val` and `not` are read as + and -, and so is the minus sign
    of typesetting. Raises ValueError quoting the first clause that has another form.
    """
    any_of = lambda symbols: "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
    name, root, operation = any_of(task.names), task.root_symbol, any_of(task.operations)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    if task.name == "sign":
        text = re.sub(r"\bnot\b", "-", re.sub(r"\bval\b", "+", text))
    clauses = [clause.strip() for clause in re.split("[;,\n]", text) if clause.strip()] or [""]
    matches = [re.fullmatch(rf"({name})\s*=\s*({operation})\s*({name}|{root})", clause) for clause in clauses]
    if None in matches:
        clause = clauses[matches.index(None)]
        symbols, meant = re.findall(rf"\b(?:{name}|{root})\b", clause), re.findall(operation, clause)
        variable = next((symbol for symbol in symbols if symbol != root), task.names[0])
        argument = symbols[-1] if symbols and symbols[-1] != variable else root
        right = write_clause(variable, meant[0] if meant else task.operations[0], argument)
        some = ", ".join(task.operations[:6]) + ", ..." * (len(task.operations) > 6)
        names = f"{task.names[0]} to {task.names[:26][-1]}" + f" and v26 to {task.names[-1]}" * (len(task.names) > 26)
        raise ValueError(f"clause {clause!r}: expected variable=operation argument, such as '{right}', with variables "
                         f"{names}, the operations {some}, and the root {root}")
    return [match.groups() for match in matches]


def write_clause(variable, operation, argument):
    return f"{variable}={operation}{' ' * operation[-1].isdigit()}{argument}"  # "b=r1 a" and not "b=r1a"


def encode(text, task) -> torch.Tensor:
    """The token ids (T,) of a sentence, T = 5 clauses. Raises ValueError as `parse` does."""
    index = {symbol: i for i, symbol in enumerate(task.vocab)}
    return torch.tensor([index[symbol] for variable, operation, argument in parse(text, task)
                         for symbol in (variable, "=", operation, argument, ";")])


def decode(ids, task) -> str:
    """The text of token ids (T,): "b=-a; c=+b; a=+1;". The inverse of `encode`."""
    symbols = [task.vocab[i] for i in ids]
    return " ".join(f"{write_clause(symbols[i], *symbols[i + 2 : i + 4])};"
                    for i in range(0, len(symbols), TOKENS_PER_CLAUSE))


def solve(text, task) -> dict[str, str | None]:
    """
    Every variable's value, {variable: symbol}, in order of depth; last, with None, those that the sentence does not
    determine because an argument is never assigned. Raises ValueError quoting the clause for a variable assigned twice,
    and for a circle.
    """
    clauses = {}
    for variable, operation, argument in parse(text, task):
        clause = write_clause(variable, operation, argument)
        expect(variable not in clauses, f"clause '{clause}': {variable} is assigned a second time, expected once")
        clauses[variable] = operation, argument
    values = {argument: None for _, argument in clauses.values() if argument not in clauses}  # never assigned
    values[task.root_symbol] = task.values[0]
    left = dict(clauses)
    while reached := [variable for variable, (_, argument) in left.items() if argument in values]:
        for variable in reached:
            operation, argument = left.pop(variable)
            x = values[argument]
            values[variable] = x and task.values[task.action[task.operations.index(operation), task.values.index(x)]]
    for variable, (operation, argument) in left.items():
        raise ValueError(f"clause '{write_clause(variable, operation, argument)}': following the arguments from here "
                         f"runs in a circle, expected to reach the root {task.root_symbol}")
    values = {variable: value for variable, value in values.items() if variable in clauses}
    return dict(sorted(values.items(), key=lambda item: item[1] is None))  # those without a value last


# ----------------------------------------------------------------------------------------------------------------------
# A reader can stop here. What follows serves every script: files, the command line, signals.


def expect(ok, message):
    """Raises ValueError(message) unless ok. Unlike an assert, it stays under python -O."""
    if not ok:
        raise ValueError(message)


@contextmanager
def one_line(message):
    """Turns any error inside into a ValueError of one line: foreign bytes break a reader in countless ways."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{message} ({textwrap.shorten(str(error) or repr(error), 160)})") from None


def write(path, save):
    """
    `save` writes a file beside `path`, which then takes its place: whatever stops the program, `path` is the old file
    or the new one, never half of one. Raises ValueError if it can't be written.
    """
    beside = Path(f"{path}.{uuid4().hex}.tmp")  # of this call alone, whatever else writes there
    with one_line(f"{path}: expected a file that can be written, the one before stays"):
        try:
            beside.parent.mkdir(parents=True, exist_ok=True)
            save(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def command_line(main):
    """
    Runs `main(arguments)`. Wrong input, a file that can't be used and a lack of memory are one line on stderr and exit
    code 2; so is a stop by signal n, with exit code 128 + n.
    """
    code = 2
    try:
        with suppress(AttributeError):  # not a stream that can: there is none, or another program's
            # not every console has every character; and a line that goes into a pipe is seen at once
            sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        main(sys.argv[1:])
        return sys.stdout and sys.stdout.flush()
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except KeyboardInterrupt as stop:  # train.train says where it stopped, and by which signal
        line, number = stop.args or ("stopped", 2)
        code = 128 + number
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate" not in str(error):
            raise
        line = "out of memory, expected smaller sizes (" + str(error).partition("\n")[0] + ")"
    except (ValueError, OSError) as error:
        line = str(error)
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)  # it may quote any character
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
    sys.exit(code)


def override(arguments, config_class, presets={}, implied=lambda dial, text: {}) -> dict:
    """
    The dials {name: value} that `--dial=value` arguments set; `--dial` alone switches a bool on, `--preset=name` sets
    presets[name], a dial brings those of implied(name, text), and what is given itself wins, whatever the order.
    Raises ValueError for any other argument.
    """
    kinds, preset, brought, given = {field.name: field.type for field in fields(config_class)}, {}, {}, {}
    for argument in arguments:
        key, equals, text = argument.removeprefix("--").partition("=")
        kind = kinds.get(key)
        if argument.startswith("--preset="):
            with one_line(f"preset={text}: expected {', '.join(presets)}"):
                preset |= presets[text]
            continue
        if not argument.startswith("--") or kind is None or not (equals or kind is bool):
            near = difflib.get_close_matches(key, kinds, n=1)
            raise ValueError(f"'{argument}': expected --dial=value, "
                             + (f"such as --{near[0]}=..." if near else "--help lists the dials"))
        text = os.path.expanduser(text) if kind is str else text  # a shell leaves the ~ of --out_dir=~/runs
        brought |= implied(key, text)
        with one_line(f"{key}={text}: expected {kind.__name__}"):
            given[key] = {"true": True, "false": False}[text.lower() or "true"] if kind is bool else kind(text)
    return preset | brought | given


def check(config, rules, **more):
    """Raises ValueError for a dial of another type, and for the first of the rules that the dials break."""
    values = {**vars(config), **more}
    for field in fields(config):
        kinds = (float, int) if field.type is float else (field.type,)
        if type(values[field.name]) not in kinds:
            raise ValueError(f"{field.name}={values[field.name]!s:.40}: expected {field.type.__name__}")
    for rule in map(str.strip, re.split(r"[;\n]", rules.strip())):
        if not eval(rule, {}, values):  # the rules are ours; what a user typed is only a value in them
            given = [f"{name}={values[name]}" for name in values if re.search(rf"\b{name}\b", rule)]
            raise ValueError(f"{', '.join(given)}: expected {rule}")


@contextmanager
def deferred_signals():
    """Yields a list that collects SIGINT and SIGTERM, for a loop to look at; a second signal acts as usual."""
    signals, usual = [], {}
    restore = lambda: [signal.signal(number, handler) for number, handler in usual.items()]

    def defer(number, frame):
        signals.append(number)
        restore()
        print("\nstopping soon; a second signal stops at once", file=sys.stderr)

    for number in (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ():
        if signal.getsignal(number) not in (signal.SIG_IGN, None):  # ignored, as under nohup, or not set by Python
            usual[number] = signal.signal(number, defer)
    try:
        yield signals
    finally:
        restore()


if __name__ == "__main__":
    from figures import show

    command_line(show.solutions)
