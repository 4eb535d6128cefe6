"""
lego.py: tasks are groups, the solver is right by hand, all else is right by the solver, the cases
of a proof are all that a sentence has, and what does not fit is refused in one line.
"""
import collections
import contextlib
import functools
import random
import re
import runpy
import sys

import pytest
import torch

import lego

TASKS = ["sign", "d3", "d4", "c2", "c7", "s3", "s4", "a4"]
SIGN = lego.make_task("sign")


def draw(name, size=50, n=6, branch=0.0, seed=0):
    """A task, and a batch of random sentences of it."""
    task, generator = lego.make_task(name), torch.Generator().manual_seed(seed)
    return task, lego.sample(task, lego.random_graphs(size, n, branch, generator), generator)


def each(task, batch):
    """Of every sentence the clauses and the solution, and its rows of the batch as lists."""
    for row in zip(*(x.tolist() for x in batch)):
        text = lego.decode(torch.tensor(row[0]), task)
        assert lego.encode(text, task).tolist() == row[0]
        yield lego.parse(text, task), lego.solve(text, task), *row


# ---- groups, and the solver by hand


ORDERS = {  # how many operations have which order tells small groups apart
    "sign": {1: 1, 2: 1}, "d3": {1: 1, 2: 3, 3: 2}, "s3": {1: 1, 2: 3, 3: 2},
    "c6": {1: 1, 2: 1, 3: 2, 6: 2}, "d4": {1: 1, 2: 5, 4: 2}, "s4": {1: 1, 2: 9, 3: 8, 4: 6},
    "a4": {1: 1, 2: 3, 3: 8}, "a5": {1: 1, 2: 15, 3: 20, 5: 24}}


@pytest.mark.parametrize("name", sorted({*TASKS, *ORDERS, "s5"}))
def test_an_action_table_is_the_group_that_its_name_says(name):
    """The product read off the root acts like doing one operation after the other."""
    action = lego.make_task(name).action
    elements, orders = list(range(len(action))), collections.Counter()
    to_operation = action[:, 0].argsort()  # the operation that takes the root to a value: only one
    assert action[:, 0].sort().values.tolist() == elements
    product = to_operation[action[:, action[:, 0]]]  # product[g, h] takes the root to g.(h.root)
    for g in elements[:: max(1, len(elements) // 24)]:
        assert torch.equal(action[g][action], action[product[g]])  # g.(h.x) = (gh).x
    assert action[to_operation[0]].tolist() == elements  # the identity
    for permutation in action:
        x, order = permutation[0], 1
        while x != 0:  # without an inverse it never comes back
            x, order = permutation[x], order + 1
        orders[order] += 1
    assert orders == ORDERS.get(name, orders)


def test_a_larger_alphabet_goes_on_behind_z():
    """v26, v27, ...; the ids of all other symbols stay."""
    large = lego.make_task("sign", 100)
    assert large.vocab[: len(SIGN.vocab)] == SIGN.vocab
    assert large.names[25:28] == ("z", "v26", "v27")
    assert len(list(each(large, lego.sample(large, torch.arange(100)[None])))) == 1


@pytest.mark.parametrize("name, text, expected", [
    ("sign", "b=-a; c=+b; a=+1", dict(a="+1", b="-1", c="-1")),
    ("sign", "a=-1; b=-a; c=-a; d=-c", dict(a="-1", b="+1", c="+1", d="-1")),  # a branch
    ("sign", "a=-1; y=-x; b=-a; x=+1", dict(a="-1", x="+1", y="-1", b="+1")),  # two chains
    # r_i r_j = r_(i+j), r_i s_j = s_(i+j), s_i r_j = s_(i-j), s_i s_j = r_(i-j)
    ("d3", "a=r1 1; b=r2a; c=s1 b; d=r1 c", dict(a="r1", b="r0", c="s1", d="s2")),
    ("d3", "b=s2 a; a=s1 1; d=s1 c; c=r2 b", dict(a="s1", b="r1", c="r0", d="s1")),
    ("d3", "r=s0 1; s=r1 r; t=s0 s", dict(r="s0", s="s1", t="r2")),  # named as operations begin
    ("c12", "a=+110; b=+9a", dict(a="11", b="8")),
    # [213] swaps 1 and 2, [231] sends 1 to 2, 2 to 3, 3 to 1; the clause's operation acts last
    ("s3", "a=[213]1; b=[231]a", dict(a="[213]", b="[321]")),
    ("s3", "a=[231]1; b=[213]a", dict(a="[231]", b="[132]")),
    # what a sentence does not determine comes last
    ("sign", "d=+c; a=-1; c=-b; e=-a", dict(a="-1", e="+1", d=None, c=None)),
    ("sign", "b=-c; c=-b; a=-1; d=+d", dict(a="-1", b=None, c=None, d=None)),  # circles
])
def test_the_solver_is_right_by_hand_and_goes_by_depth(name, text, expected):
    assert list(lego.solve(text, lego.make_task(name)).items()) == list(expected.items())


# ---- sentences, against the solver


@pytest.mark.parametrize("parents, expected", [
    ([0], [1]), (range(26), range(1, 27)), ([0] * 6, [1] * 6),  # chains, a star
    ([0, 1, 2, 0, 4, 5], [1, 1, 2, 2, 3, 3]),  # two chains
    ([0, 1, 1, 3, 3, 5], [1, 2, 2, 3, 3, 4]), (None, None)])
@pytest.mark.parametrize("name", TASKS)
def test_random_sentences_and_a_batch_of_their_texts_agree_with_the_solver(name, parents, expected):
    """A variable is asked once, where it is defined, by depth; its value and depth are right."""
    task, batch = draw(name, branch=torch.linspace(0, 1, 50))
    if parents:
        batch = lego.sample(task, torch.tensor([parents] * 9))
        assert (batch.depths == torch.tensor(expected)).all()
    of_texts = lego.batch_of([lego.decode(ids, task) for ids in batch.tokens], task)
    for clauses, solution, ids, positions, values, depths, facts in [*each(task, batch),
                                                                     *each(task, of_texts)]:
        argument_of = {variable: argument for variable, _, argument in clauses}
        asked = [task.vocab[ids[i]] for i in positions]
        assert dict(zip(asked, (task.values[x] for x in values))) == solution
        assert sorted(positions) == list(range(0, len(ids), 5)) and not any(facts)
        links = {task.root_symbol: 0}
        for variable in solution:  # by depth, so its argument comes before
            links[variable] = links[argument_of[variable]] + 1
        assert depths == [links[variable] for variable in asked] == sorted(depths)


def test_a_batch_of_texts_is_right_by_hand():
    """Of the docstring's example; and what a sentence does not determine has no value, no depth."""
    batch = lego.batch_of(["b=-a; c=+b; a=+1;", "c=-b; d=+c; a=-1"], SIGN)
    assert [SIGN.vocab[i] for i in batch.tokens[0]] == list("b=-a;c=+b;a=+1;")
    assert batch.positions.tolist() == [[10, 0, 5], [10, 0, 5]]
    assert batch.values.tolist() == [[0, 1, 1], [1, lego.NO_VALUE, lego.NO_VALUE]]
    assert batch.depths.tolist() == [[1, 2, 3], [1, 0, 0]]


def test_any_earlier_variable_or_the_root_is_taken_as_often_as_branch_says():
    """At 1 the six graphs of three variables are equally likely; 0 gives chains."""
    branch = torch.tensor([0.0, 0.4, 1.0]).repeat(4000)
    graphs = lego.random_graphs(12_000, 3, branch, torch.Generator().manual_seed(0))
    is_chain = (graphs == torch.arange(3)).all(1).float().view(4000, 3).mean(0).tolist()
    assert is_chain == pytest.approx([1, (0.6 + 0.4 / 2) * (0.6 + 0.4 / 3), 1 / 6], abs=0.02)
    found, counts = graphs[2::3].unique(dim=0, return_counts=True)
    assert found.tolist() == [[0, i, j] for i in range(2) for j in range(3)]
    assert (counts / 4000).tolist() == pytest.approx([1 / 6] * 6, abs=0.02)


def skew(ids, n):
    """How far counts of ids 0 to n - 1 are from uniform: chi-square in standard deviations."""
    counts = ids.bincount(minlength=n).double()
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    return (chi_square - (n - 1)) / (2 * (n - 1)) ** 0.5


@pytest.mark.parametrize("name", ["sign", "d3", "c5"])
def test_values_names_and_order_are_uniform_and_as_the_seed_says(name):
    task, batch = draw(name, 20_000, 4)
    X, names = len(task.values), batch.tokens.gather(1, batch.positions) - task.first_name
    for i in range(4):
        assert skew(batch.values[:, i], X) < 6 and skew(names[:, i], 26) < 6
    assert skew(batch.values[:, 0] * X + batch.values[:, -1], X**2) < 6
    places = (batch.positions // 5 * torch.tensor([64, 16, 4, 1])).sum(1)
    orders, index = places.unique(return_inverse=True)
    assert len(orders) == 24 and skew(index, 24) < 6  # all 4! orders of the clauses
    again, other = (draw(name, 20_000, 4, seed=seed)[1].tokens for seed in (0, 1))
    assert torch.equal(again, batch.tokens) and not torch.equal(other, batch.tokens)


def test_a_batch_is_asked_about_less_split_and_picked_from():
    _, batch = draw("d3", 7)
    few, parts = batch.ask(slice(2)), list(batch.split(3))
    assert few.facts is batch.facts and all(torch.equal(few[i], batch[i][:, :2]) for i in (1, 2, 3))
    assert [len(part.tokens) for part in parts] == [3, 3, 1]
    assert all(torch.equal(torch.cat(x), y) for x, y in zip(zip(*parts), batch))
    assert all(torch.equal(x, y[1::2]) for x, y in zip(batch.rows(slice(1, None, 2)), batch))


# ---- facts: what is known in the middle of an answer


@pytest.mark.parametrize("n_asked", [6, 3])
@pytest.mark.parametrize("name", ["sign", "d3", "s4"])
def test_what_reveal_tells_is_true_and_its_labels_follow_in_one_loop(name, n_asked):
    """Against a slow loop over the clauses in symbols."""
    task, batch = draw(name, 60, 6, torch.linspace(0, 1, 60))
    revealed = lego.reveal(task, batch.ask(slice(n_asked)), torch.Generator().manual_seed(0))
    assert torch.equal(revealed.tokens, batch.tokens) and not batch.facts.any()
    for clauses, truth, ids, positions, values, _, facts in each(task, revealed):
        known = {i: task.values[fact - 1] for i, fact in enumerate(facts) if fact}
        assert all(truth[task.vocab[ids[i]]] == value for i, value in known.items())
        defined = {clauses[i // 5][0]: value for i, value in known.items() if i % 5 == 0}
        follows = {}
        for i, (variable, _, argument) in zip(range(0, 30, 5), clauses):
            is_told = variable in defined or argument in {task.root_symbol, *defined}
            follows[i] = truth[variable] if is_told else None
            follows[i + 3] = defined.get(argument)
            assert known.get(i + 3) in (None, follows[i + 3])  # no more than where it is defined
        values = [None if x == lego.NO_VALUE else task.values[x] for x in values]
        assert values == [follows[i] for i in positions] and known.keys() <= set(positions)
    first = batch.positions[:, :n_asked]
    assert torch.equal(revealed.positions, torch.cat((first, first + 3), 1))


def test_one_coin_is_for_the_definition_and_another_for_the_use():
    task, batch = draw("sign", 4000, 2)
    toss = lambda seed: lego.reveal(task, batch, torch.Generator().manual_seed(seed))
    a, b, _, use = toss(1).facts.gather(1, toss(1).positions).bool().T
    shares = [x.float().mean().item() for x in (a, b, a & b, use, use & b)]
    assert shares == pytest.approx([1 / 2, 1 / 2, 1 / 4, 1 / 4, 1 / 8], abs=0.03)
    assert not torch.equal(toss(1).facts, toss(2).facts)


# ---- cases: all that a proof has to try


def cases_of(task, size=8192):
    """All cases as numbers and lists: tokens, facts, position, value, must_know."""
    cases = []
    for tokens, facts, position, *answer in lego.cases(task, size):
        assert len(tokens) <= size and (tokens[:, position] >= task.first_name).all()
        positions = [position] * len(tokens)
        cases += zip(tokens.tolist(), facts.tolist(), positions, *(x.tolist() for x in answer))
    return cases


@pytest.mark.parametrize("name, n, step", [("sign", 572, 1), ("d3", 23_508, 16)])
def test_every_case_has_the_value_that_the_solver_finds(name, n, step):
    """From what is known of the argument. To know it is a must at a definition alone."""
    task = lego.make_task(name)
    cases, solve = cases_of(task), functools.cache(lambda text: lego.solve(text, task)["c"])
    of_root = {x: task.operations[g] for x, g in enumerate(task.action[:, 0].argsort())}
    assert len(cases) == n
    for ids, facts, position, value, must_know in cases[::step]:
        known = {task.vocab.index(task.root_symbol): 0}
        for token, fact in zip(ids, facts):
            assert not fact or known.setdefault(token, fact - 1) == fact - 1  # all places agree
        variable, _, operation, argument, _ = ids[position // 5 * 5 :][:5]
        follows = lego.NO_VALUE
        if argument in known:
            first = lego.write_clause("b", of_root[known[argument]], task.root_symbol)
            last = lego.write_clause("c", task.vocab[operation], "b")
            follows = task.values.index(solve(f"{first}; {last}"))
        assert known.get(variable, follows) == follows  # so it knows only if its argument does
        if position % 5:
            assert value == known.get(argument, lego.NO_VALUE) and not must_know
        else:
            assert value == follows and must_know == (argument in known)


def look(ids, facts, i, task):
    """What place i meets: three tokens to either side, what each knows, and hears of itself."""
    window = []
    for j in range(i - 3, i + 4):
        if not 0 <= j < len(ids):
            window.append(None)
        elif ids[j] < task.first_name:
            window.append(ids[j])
        else:
            heard = {facts[k] for k in range(len(ids)) if ids[k] == ids[j] and k != j} - {0}
            window.append(("a name", facts[j], *heard))
    return tuple(window)


@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("name", ["sign", "c3"])
def test_cases_show_all_that_a_place_can_meet_in_any_sentence(name, n):
    """Chains, trees, forests, a clause missing, after any loop, whichever uses have heard of it."""
    task, batch = draw(name, 150, n, torch.linspace(0, 1, 150))
    told, coin, root = {}, random.Random(0), task.vocab.index(task.root_symbol)
    for ids, facts, position, *answer in cases_of(task, 100):
        assert told.setdefault(look(ids, facts, position, task), answer) == answer
    lacking = lego.batch_of([lego.decode(ids[:-5], task) for ids in batch.tokens], task)
    for row, (*_, ids, positions, values, depths, _) in enumerate([*each(task, batch),
                                                                   *each(task, lacking)]):
        loop = row % 5  # as deep is known, and a use has heard of it one loop later
        known = {ids[i]: 1 + x for i, x, d in zip(positions, values, depths) if 0 < d <= loop}
        heard = {ids[i] for i, d in zip(positions, depths) if 0 < d < loop}
        facts = [known.get(token, 0) * (i % 5 == 0) for i, token in enumerate(ids)]
        for i in range(3, len(ids), 5):
            facts[i] = known.get(ids[i], 0) * (ids[i] in heard and coin.random() < 0.5)
        for i, value in zip(positions, values):
            if ids[i + 3] not in {root, *known}:
                value = lego.NO_VALUE
            assert told[look(ids, facts, i, task)] == [value, value >= 0]
            if ids[i + 3] != root:
                value = known.get(ids[i + 3], lego.NO_VALUE + 1) - 1
                assert told[look(ids, facts, i + 3, task)] == [value, False]


# ---- text, and what is refused


@pytest.mark.parametrize("text", [
    "a=+1,b=-a,c=+b", "a=+1\nb=-a\nc=+b\n", "a=+1\r\nb=-a\r\nc=+b", " a = + 1 ; b=-a ,c=+b;",
    "a=+1; b=\N{MINUS SIGN}a; c=+b"])
def test_commas_lines_spaces_and_the_minus_of_typesetting_can_be_read(text):
    assert lego.parse(text, SIGN) == [("a", "+", "1"), ("b", "-", "a"), ("c", "+", "b")]


def mine(operations, root):
    """A task of one's own, with the variables a and b."""
    return lego.Task("mine", tuple(operations), SIGN.values, root, SIGN.action, ("a", "b"))


@pytest.mark.parametrize("function, arguments, message", [
    *((lego.make_task, (name,), f"task={name}: expected sign")
      for name in "c1 c0 c d2 s1 s7 a2 c513 d257 c03 sine D3 s-3".split() + [""]),
    *((lego.make_task, ("sign", n), f"n_names={n}: expected 1 to 1024") for n in (0, 1025)),
    *((mine, symbols, "task mine: {'" + twice + "'}") for *symbols, twice in (
        ("+-", "a", "a"), ("++", "1", "+"), ("b-", "1", "b"), ("=-", "1", "="))),
    (lego.random_graphs, (2, 0), "n_clauses=0: expected at least 1"),
    (lego.random_graphs, (2, 3, -0.1), "branch="),
    (lego.random_graphs, (2, 3, torch.tensor([0.5, 1.5])), "branch=[0.5, 1.5]: expected 0 to 1"),
    *((lego.sample, (SIGN, torch.tensor([parents])), "for a variable j that comes before")
      for parents in ([0, 2, 0], [1, 1, 2], [0, -1, 2])),
    (lego.sample, (SIGN, torch.zeros(1, 27).long()), "27 clauses: expected at most 26"),
    (lego.batch_of, (["a=+1", "a=+1; b=-a"], SIGN), "sentences of [1, 2] clauses: expected"),
    (lego.batch_of, ([], SIGN), "expected"), (lego.batch_of, (["a=+1", "a=*1"], SIGN), "'a=*1'"),
    *((lego.solve, (text, SIGN), quoted) for text, quoted in (
        ("", "clause ''"), (" ; ", "clause ''"), ("a=+1; b*-a", "b*-a'"), ("a=+1; b=~a", "b=~a'"),
        ("a=+1; b=-\x1ba", r"b=-\x1ba'"), ("a=+1\nb=-\na c", "clause 'b=-'"), ("B=-1", "'B=-1'"),
        ("b=-2", "'b=-2'"), ("b=a", "'b=a'"), ("v26=+1", "clause 'v26=+1'"), ("1=+a", "'1=+a'"),
        ("a=+1 b=-a", "'a=+1 b=-a': expected a semicolon"), ("a=+1; a=-1", "a is assigned"))),
])
def test_what_does_not_fit_is_refused_in_one_line_that_quotes_it(function, arguments, message):
    with pytest.raises(lego.InputError) as error:
        function(*arguments)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["sign", "d3"])
def test_a_mutated_sentence_is_read_back_from_its_tokens_or_refused_in_one_line(name):
    odd = "=;+-19 abz'\"{}\\[].\0\n\r\x1b\u2028\u0301\ud800１²＝；−а😀"
    (task, batch), r, n_solved = draw(name, 300), random.Random(0), 0
    for ids in batch.tokens:
        text = list(lego.decode(ids, task))
        for _ in range(r.choice([1, 2, 8])):
            i, j = r.randrange(len(text)), r.randrange(len(text))
            text[i], text[j] = r.choice([(text[j], text[i]), ("", text[j]), (2 * text[i], text[j])])
            text[i] += r.choice(odd) * r.randrange(2)
        text = "".join(text)
        try:
            values = lego.solve(text, task)
        except lego.InputError as error:
            assert "expected" in str(error) and "\n" not in str(error), ascii(text)
            for example in re.findall("'(.*?)'", str(error).partition("such as")[2]):
                assert lego.parse(example, task)
            continue
        n_solved += 1
        assert lego.solve(lego.decode(lego.encode(text, task), task), task) == values, ascii(text)
    assert 5 < n_solved < 290


# ---- the command line


@pytest.mark.parametrize("arguments, shown, n_solved", [
    (["b=-a; a=+1; d=-e"], "a is +1\n    b=-a         b is -1\n    d=-e         d is not det", 3),
    (["--task=d3"], "is ", 3 * 6), (["--n_clauses", "100"], "v99", 3 * 100),
    (["a=*1"], "'a=*1'", 0), (["--task=c1"], "task=c1", 0), (["--tusk=d3"], "--tusk=d3", 0),
    (["a=+1", "b=+1"], "b=+1", 0), (["--n_clauses=x"], "'x'", 0), (["--n_clauses=0"], "=0: ", 0)])
def test_the_command_line_solves_sentences_or_refuses_in_one_line(
        monkeypatch, capsys, arguments, shown, n_solved):
    monkeypatch.setattr(sys, "argv", ["lego.py", *arguments])
    with contextlib.ExitStack() as stack:
        if not n_solved:
            stack.enter_context(pytest.raises(SystemExit, match="2"))
        runpy.run_path(lego.__file__, run_name="__main__")
    out, error = capsys.readouterr()
    assert shown in out + error and out.count(" is ") == n_solved
    assert n_solved and not error or error.startswith("lego.py: error:") and error.count("\n") == 1
