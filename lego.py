"""
LEGO (Learning Equality and Group Operations), a synthetic task of reasoning: sentences, their text,
and a solver.

A group G acts on a set X. A clause `variable = operation argument` gives a variable the value of
its argument, which is another variable or the root element of X, with the operation applied to it.
The clauses are shuffled. The task is to give every value.

    b=-a; c=+b; a=+1;         one sentence of the task `sign`: G = {+, -} acts on X = {+1, -1}

    chain     a=+1   ->   b=-a   ->   c=+b           follow the chain from the root, 1 ...
    values    a: +1       b: -1       c: -1          ... applying one operation after the other

    position  0  1  2  3  4    5  6  7  8  9    10 11 12 13 14
    token     b  =  -  a  ;    c  =  +  b  ;    a  =  +  1  ;        five a clause, as in the paper
    label    -1                -1               +1                   read at the left-hand side

`sample` gives everything in order of depth, the number of links from the root: positions [10, 0,
5], values [0, 1, 1], which are indices into task.values = +1, -1, and depths [1, 2, 3]. The paper's
sentences are chains. With `branch` a clause may take any earlier variable, or the root, so that
chains, trees and forests are one family:

    a chain       root -- a -- b -- c -- d              depths 1, 2, 3, 4

    with branch   root -- a -- b -- d                   depths of a to e: 1, 2, 2, 3, 1
                    |     |
                    e     c

    python lego.py "b=-a; c=+b; a=+1"          solve a sentence
    python lego.py --task=d3 --n_clauses=100   print a few random sentences of a task, solved

The task and its tokens are the paper's (arXiv 2206.04301) and its official code's. Tasks beyond
`sign` and `d3`, and branches, are ours.
"""
import argparse
import itertools
import re
import string
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch

NO_VALUE = -100  # in place of a value that can't be known; F.cross_entropy leaves it out
TOKENS_PER_CLAUSE = 5  # variable, =, operation, argument, ;
ARGUMENT = 3  # the place of the argument in a clause
MAX_NAMES = 1024  # the most variables that a task can have


class InputError(ValueError):
    """What a user gave is not what is expected. Scripts show it as one line, and any slip whole."""


# ---- tasks: a group, the set that it acts on, and the symbols to write both in -------------------


@dataclass(frozen=True, eq=False)
class Task:
    """
    A group G acting on a set X, and the vocabulary of its sentences; `make_task` has those by name.
    InputError if two symbols of the vocabulary are the same.
    """

    name: str
    operations: tuple[str, ...]  # the symbols of G
    values: tuple[str, ...]  # the symbols of X; values[0] is the root element
    root_symbol: str  # how a clause writes the root element
    action: torch.Tensor  # (|G|, |X|) int64: action[g, x] is the index of g.x
    names: tuple[str, ...]  # the variables: a to z, then v26, v27, ...

    def __post_init__(self):
        twice = {symbol for symbol in self.vocab if self.vocab.count(symbol) > 1}
        if twice:
            raise InputError(f"task {self.name}: {twice} twice in the vocabulary, expected once")

    @cached_property
    def vocab(self) -> tuple[str, ...]:
        """The symbol of every token id. Names come last: more of them leave the other ids alone."""
        return ("=", ";", self.root_symbol, *self.operations, *self.names)

    @property
    def first_operation(self) -> int:
        """The token id of operations[0]; the ids of the others follow."""
        return 3

    @property
    def first_name(self) -> int:
        """The token id of names[0]; the ids of the others follow."""
        return 3 + len(self.operations)


def table_of(elements, product):
    """The action (n, n) of a group on itself, for its elements and their product."""
    index = {element: i for i, element in enumerate(elements)}
    return torch.tensor([[index[product(g, x)] for x in elements] for g in elements])


@lru_cache
def make_task(name: str, n_names: int = 26) -> Task:
    """
    The task of that name, with `n_names` variables to draw from. InputError for another name, or
    another number of names than 1 to 1,024.

        sign    {+, -} acting on {+1, -1}: the paper's Task 1 (chance 1/2)
        d<k>    the dihedral group of order 2k, k = 3 to 256: d3 is the paper's Task 2 (chance 1/6)
        c<k>    the cyclic group of order k = 2 to 512, written additively (chance 1/k)
        s<k>    the permutations of k = 2 to 6 things (chance 1/k!)
        a<k>    the even ones, k = 3 to 6 (chance 2/k!); a5 is the smallest that is not solvable

    No two operations take the root to the same value, so the values of a random sentence are
    uniform too.
    """
    if not 1 <= n_names <= MAX_NAMES:
        raise InputError(f"n_names={n_names}: expected 1 to {MAX_NAMES}")
    names = tuple(string.ascii_lowercase[i] if i < 26 else f"v{i}" for i in range(n_names))
    kind, k = name[:1], 0
    if re.fullmatch("[1-9][0-9]{0,2}", name[1:]):
        k = int(name[1:])

    if name == "sign":
        return Task(name, ("+", "-"), ("+1", "-1"), "1", torch.tensor([[0, 1], [1, 0]]), names)
    elif kind == "c" and 2 <= k <= 512:
        action = table_of(range(k), lambda g, x: (g + x) % k)
        values = tuple(map(str, range(k)))
        return Task(name, tuple("+" + x for x in values), values, "0", action, names)
    elif kind == "d" and 3 <= k <= 256:
        # r<i> rotates by i/k of a turn, s<i> reflects first and then rotates: x -> i + sign * x on
        # the corners
        elements = [(sign, i) for sign in (1, -1) for i in range(k)]
        symbols = tuple("rs"[sign < 0] + str(i) for sign, i in elements)
        action = table_of(elements, lambda g, x: (g[0] * x[0], (g[1] + g[0] * x[1]) % k))
    elif kind == "s" and 2 <= k <= 6 or kind == "a" and 3 <= k <= 6:
        # [213] sends place 1 to 2, 2 to 1 and 3 to 3; the product g.x does x first and then g
        n_swaps = lambda p: sum(a > b for a, b in itertools.combinations(p, 2))
        elements = [p for p in itertools.permutations(range(k))
                    if kind == "s" or n_swaps(p) % 2 == 0]
        symbols = tuple("[" + "".join(str(i + 1) for i in p) + "]" for p in elements)
        action = table_of(elements, lambda g, x: tuple(g[i] for i in x))
    else:
        raise InputError(f"task={name}: expected sign, c<k> with k = 2 to 512, d<k> with k = 3 to "
                         "256, s<k> with k = 2 to 6, or a<k> with k = 3 to 6")
    return Task(name, symbols, symbols, "1", action, names)


# ---- sentences: first the graphs, then what is written along them --------------------------------


class Batch(NamedTuple):
    """A batch of sentences and what is asked about each of them, in order of depth."""

    tokens: torch.Tensor  # (B, T) int64, T = 5 clauses
    positions: torch.Tensor  # (B, n) int64: where to read, a left-hand side unless said otherwise
    values: torch.Tensor  # (B, n) int64: what to find there, index into task.values, or NO_VALUE
    depths: torch.Tensor  # (B, n) int64: how many links lead from the root to the clause's variable
    facts: torch.Tensor  # (B, T) int64: what is known at each token, 0: nothing, 1 + v: value v

    def ask(self, columns):
        """The same sentences, asked about these columns alone."""
        positions, values, depths = (x[:, columns] for x in self[1:4])
        return Batch(self.tokens, positions, values, depths, self.facts)

    def split(self, size):
        """Parts of at most `size` sentences."""
        return map(Batch._make, zip(*(x.split(size) for x in self)))

    def rows(self, which):
        """These sentences alone."""
        return Batch(*(x[which] for x in self))

    def to(self, device):
        return Batch(*(x.to(device) for x in self))


def random_graphs(batch_size, n_clauses, branch=0.0, generator=None):
    """
    Where each of n variables has its argument from, (B, n): 0 is the root, j + 1 is variable j,
    which comes before it. With probability `branch`, a number or one per sentence (B,), it is any
    of these, equally likely; else the variable just before. 0 gives chains: [0, 1, 2, ...].
    """
    B, n, device = batch_size, n_clauses, "cpu" if generator is None else generator.device
    if n < 1:
        raise InputError(f"n_clauses={n}: expected at least 1")
    rand = lambda: torch.rand(B, n, generator=generator, device=device, dtype=torch.float32)
    before = torch.arange(n, device=device)
    branch = torch.as_tensor(branch, device=device, dtype=torch.float32).expand(B)[:, None]
    if not ((0 <= branch) & (branch <= 1)).all():
        raise InputError(f"branch={branch.flatten().tolist()}: expected 0 to 1")
    return torch.where(rand() < branch, (rand() * (before + 1)).long(), before)


def sample(task, parents, generator=None) -> Batch:
    """
    Random sentences along the graphs `parents` (B, n), see `random_graphs`: operations, names and
    the order of the clauses are uniform and independent; nothing is known. InputError for an
    argument that does not come before its variable, and for more variables than names.
    """
    (B, n), device = parents.shape, parents.device
    if ((parents < 0) | (parents > torch.arange(n, device=device))).any():
        raise InputError("parents: expected 0, or j + 1 for a variable j that comes before")
    if n > len(task.names):
        raise InputError(f"a sentence of {n} clauses: expected at most {len(task.names)} names")
    rand = lambda *size: torch.rand(*size, generator=generator, device=device, dtype=torch.float32)
    operations = torch.randint(len(task.operations), (B, n), generator=generator, device=device)
    values, depths = follow(task, operations, parents)  # (B, n + 1): the root, then the variables

    # the clauses, in the order of the graph
    names = rand(B, len(task.names)).argsort(1)[:, :n] + task.first_name
    roots = torch.full_like(names[:, :1], task.vocab.index(task.root_symbol))
    argument = torch.cat((roots, names), 1).gather(1, parents)
    equals, end = (torch.full_like(names, task.vocab.index(symbol)) for symbol in "=;")
    clauses = torch.stack((names, equals, operations + task.first_operation, argument, end), -1)

    # shuffled: order[b, i] is the variable of clause i; its argsort is the clause of a variable
    order = rand(B, n).argsort(1)
    tokens = clauses.gather(1, order[..., None].expand_as(clauses))  # (B, n, 5)
    tokens = tokens.flatten(1)  # (B, n, 5) -> (B, 5 n)
    positions = TOKENS_PER_CLAUSE * order.argsort(1)

    by_depth = depths[:, 1:].argsort(dim=1, stable=True)  # (B, n)
    asked = (x.gather(1, by_depth) for x in (positions, values[:, 1:], depths[:, 1:]))
    return Batch(tokens, *asked, torch.zeros_like(tokens))


def follow(task, operations, parents):
    """
    The values, as indices into task.values, and the depths, both (B, n + 1), of the root and of the
    variables that apply `operations` (B, n) to `parents` (B, n): 0 for the root, j + 1 for variable
    j.
    """
    action, (B, n) = task.action.to(operations.device), operations.shape
    values, depths = operations.new_zeros(B, n + 1), operations.new_zeros(B, n + 1)
    for i in range(n):
        parent = parents[:, i : i + 1]
        values[:, i + 1] = action[operations[:, i], values.gather(1, parent)[:, 0]]
        depths[:, i + 1] = depths.gather(1, parent)[:, 0] + 1
    return values, depths


def reveal(task, batch, generator=None) -> Batch:
    """
    The sentences of a batch (B, n) somewhere in the middle of an answer: for each variable a coin
    says whether it is known where it is defined, and another one whether it is known where it is
    used, too. Asks, (B, 2 n), at every left-hand side and at every argument, what the next loop can
    tell: a value if it is known already, or if the argument is; else NO_VALUE.
    """
    tokens, positions, values, depths, _ = batch
    coin = lambda: torch.rand(values.shape, generator=generator, device=values.device) < 0.5
    names, arguments = tokens.gather(1, positions), tokens.gather(1, positions + ARGUMENT)
    is_known = coin() & (values != NO_VALUE)
    tells = (arguments[:, :, None] == names[:, None]) & is_known[:, None]  # (B, n, n)
    is_told = tells.any(-1)
    of_arguments = torch.where(is_told, (tells * values[:, None]).sum(-1), NO_VALUE)
    has_root = arguments == task.vocab.index(task.root_symbol)
    labels = torch.where(is_known | is_told | has_root, values, NO_VALUE)
    facts = torch.cat((values.where(is_known, -1), of_arguments.where(is_told & coin(), -1)), 1) + 1
    positions = torch.cat((positions, positions + ARGUMENT), 1)  # (B, 2 n)
    facts = batch.facts.scatter(1, positions, facts)  # (B, T)
    labels = torch.cat((labels, of_arguments), 1)  # (B, 2 n)
    return Batch(tokens, positions, labels, depths.repeat(1, 2), facts)


# ---- all that a clause can meet, for a proof: see model.prove ------------------------------------


def cases(task, size=8192):
    """
    Yields, in batches of at most `size`, small sentences that show all that a place of a variable
    can meet in one loop, if it sees three tokens to either side and hears what other places of its
    token know:

        tokens, facts   (N, T): the sentence, and what is known: 0 nothing, 1 + v value v
        position        the place that is asked, the same for all
        value           (N,): the index of its value; NO_VALUE if what it sees and hears tells none
        must_know       (N,): whether it has to give its value now; else it may, or say nothing

    A clause c = g x is asked, at c and at x: at c with the clause before it, whose end c sees, at x
    with the clause after it, whose beginning x sees. Further clauses say what is known of these
    variables elsewhere. Facts come from definitions, so (itself, what it hears) is

        at a use          (nothing, nothing), (nothing, v) or (v, v): it knows no more than its
                          definition
        at a definition   (nothing, nothing), (v, nothing) or (v, v), the last two only where the
                          definition of its argument knows

    If a model is right in all of these cases, it is right after loop d at depth d in every
    sentence, by induction.
    """
    G, X = range(len(task.operations)), range(len(task.values))
    equals, end, root = map(task.vocab.index, ("=", ";", task.root_symbol))
    o, p, c, x, n, w = range(task.first_name, task.first_name + 6)  # any: they share an embedding
    nothing = [(0, 0)]  # pairs (itself, what it hears)
    use = lambda v: [(0, 1 + v), (1 + v, 1 + v)]
    definition = lambda v: [(1 + v, 0), (1 + v, 1 + v)]

    def write(variable, g, argument, fact, fact_of_argument):
        ids = variable, equals, task.first_operation + g, argument, end
        return list(zip(ids, (fact, 0, 0, fact_of_argument, 0)))

    def clause(variable, g, argument, known=(0, 0), told=(0, 0)):
        """A clause, and two more that say what is known of its variable and argument elsewhere."""
        elsewhere = write(w, 0, variable, 0, known[1]) + write(w, 0, argument, 0, told[1])
        return write(variable, g, argument, known[0], told[0]), elsewhere

    before = [clause(o, g, root) for g in G]
    before += [clause(o, g, p, told=told) for g in G for told in sum(map(use, X), nothing)]
    after = [clause(n, 0, root, known) for known in sum(map(definition, X), nothing)]
    rooted, others = [], []  # c = g 1 and c = g x, and the values of c and of x
    for g in G:
        value = int(task.action[g, 0])
        rooted += [(clause(c, g, root, known), value, NO_VALUE)
                   for known in nothing + definition(value)]
        others += [(clause(c, g, x), NO_VALUE, NO_VALUE)]
        for v in X:
            value = int(task.action[g, v])
            others += [(clause(c, g, x, known, told), value, v)
                       for known in nothing + definition(value) for told in use(v)]

    at_c = ((b[0] + m[0] + b[1] + m[1], value) for b in before for m, value, _ in rooted + others)
    first = ((m[0] + m[1], value) for m, value, _ in rooted + others)
    at_x = ((m[0] + a[0] + m[1] + a[1], value) for a in after for m, _, value in others)
    last = ((m[1] + m[0], value) for m, _, value in others)
    for rows, position in ((at_c, 5), (first, 0), (at_x, ARGUMENT), (last, 10 + ARGUMENT)):
        while part := list(itertools.islice(rows, size)):
            sentences, values = zip(*part)
            tokens, facts = torch.tensor(sentences).unbind(-1)  # (N, T) each
            values = torch.tensor(values)
            yield tokens, facts, position, values, (values >= 0) & (position % 5 == 0)


# ---- text, and a solver: symbolic, slow, independent of `sample`; the oracle of the tests ----------


def parse(text, task) -> list[tuple[str, str, str]]:
    """
    The clauses of a sentence as (variable, operation, argument), in the order of the text. Clauses
    end with semicolons, commas or lines; spaces are free. InputError quotes the first clause that
    has another form.
    """
    any_of = lambda symbols: "|".join(map(re.escape, sorted(symbols, key=len, reverse=True)))
    name, operation, root = any_of(task.names), any_of(task.operations), task.root_symbol
    clauses = []
    text = text.replace("\N{MINUS SIGN}", "-").strip("; ,\r\n\t")
    for clause in re.split(r"\s*[;,\n][;,\s]*", text):
        match = re.fullmatch(rf"\s*({name})\s*=\s*({operation})\s*({name}|{root})\s*", clause)
        if clause.count("=") > 1:
            raise InputError(f"{clause!r}: expected a semicolon between two clauses")
        if not match:
            raise InputError(f"clause {clause!r}: expected variable=operation argument, such as "
                             f"'{write_clause('a', task.operations[0], root)}' or "
                             f"'{write_clause('b', task.operations[-1], 'a')}'")
        clauses.append(match.groups())
    return clauses


def write_clause(variable, operation, argument):
    """ "b=-a", and "b=r1 a" where an operation ends in a digit. """
    space = " " * operation[-1].isdigit()
    return f"{variable}={operation}{space}{argument}"


def encode(text, task) -> torch.Tensor:
    """The token ids (T,) of a sentence, T = 5 clauses. InputError as of `parse`."""
    index = {symbol: i for i, symbol in enumerate(task.vocab)}
    return torch.tensor([index[symbol] for variable, operation, argument in parse(text, task)
                         for symbol in (variable, "=", operation, argument, ";")])


def decode(ids, task) -> str:
    """The text of token ids (T,): "b=-a; c=+b; a=+1;". The inverse of `encode`."""
    clauses = ids.view(-1, TOKENS_PER_CLAUSE)[:, [0, 2, ARGUMENT]].tolist()
    return " ".join(write_clause(*(task.vocab[i] for i in clause)) + ";" for clause in clauses)


def solve(text, task) -> dict[str, str | None]:
    """
    Every variable's value, {variable: symbol}, in order of depth; last, with None, those that the
    sentence does not determine. InputError for a variable that is assigned twice, and as of
    `parse`.
    """
    clauses = {}
    for variable, operation, argument in parse(text, task):
        if variable in clauses:
            raise InputError(f"{variable} is assigned a second time, expected once")
        clauses[variable] = operation, argument
    values = {task.root_symbol: task.values[0]}
    while reached := [v for v in clauses if clauses[v][1] in values and v not in values]:
        for variable in reached:
            operation, argument = clauses[variable]
            x = task.action[task.operations.index(operation), task.values.index(values[argument])]
            values[variable] = task.values[x]
    del values[task.root_symbol]
    return values | {variable: None for variable in clauses if variable not in values}


def batch_of(texts, task) -> Batch:
    """
    A batch of sentences of your own, all with as many clauses, asked about every variable; what is
    not determined has the value NO_VALUE and the depth 0. InputError as of `solve`, and for
    sentences of several lengths.
    """
    rows = []
    for text in texts:
        argument_of = {variable: argument for variable, _, argument in parse(text, task)}
        values, depth = solve(text, task), {task.root_symbol: 0}
        for variable, value in values.items():
            depth[variable] = depth[argument_of[variable]] + 1 if value else 0
        rows.append((encode(text, task).tolist(),
                     [TOKENS_PER_CLAUSE * list(argument_of).index(variable) for variable in values],
                     [task.values.index(x) if x else NO_VALUE for x in values.values()],
                     [depth[variable] for variable in values]))
    if len({len(ids) for ids, *_ in rows}) != 1:
        lengths = [len(values) for _, _, values, _ in rows]
        raise InputError(f"sentences of {lengths} clauses: expected as many in each")
    tokens, *asked = map(torch.tensor, zip(*rows))
    return Batch(tokens, *asked, torch.zeros_like(tokens))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentence", nargs="?", help="one to solve; without it three random ones")
    parser.add_argument("--task", default="sign")
    parser.add_argument("--n_clauses", type=int, default=6)
    args = parser.parse_args()
    try:
        task = make_task(args.task, MAX_NAMES if args.sentence else max(26, args.n_clauses))
        texts = [args.sentence]
        if args.sentence is None:
            batch = sample(task, random_graphs(3, args.n_clauses))
            texts = [decode(ids, task) for ids in batch.tokens]
        for text in texts:
            clauses = {clause[0]: write_clause(*clause) for clause in parse(text, task)}
            print(text)
            for variable, value in solve(text, task).items():
                print(f"    {clauses[variable]:<12} {variable} is {value or 'not determined'}")
    except InputError as error:
        parser.error(str(error))
