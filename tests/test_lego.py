"""lego.py: tasks are groups, the solver is right by hand, `sample` is right by the solver, bad text is refused."""
import collections
import io
import re
import sys

import pytest
import torch

import lego
from figures import show

TASKS = ["sign", "d3", "d4", "c2", "c7", "s2", "s3", "s4", "a3", "a4"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# ---- groups


@pytest.mark.parametrize("name", TASKS + ["s5", "a5"])
def test_action_table_is_a_group_action(name):
    """The product read off the root acts like doing one operation after the other: fails if a table is no group."""
    task = lego.make_task(name)
    action, G = task.action, len(task.operations)
    assert action.shape == (G, len(task.values)) and action.dtype == torch.int64
    to_operation = action[:, 0].argsort()  # the operation that takes the root to a given value, the only one:
    assert action[:, 0].sort().values.tolist() == list(range(G))
    product = to_operation[action[:, action[:, 0]]]  # product[g, h] takes the root to g.(h.root)
    h = torch.arange(G)
    for g in range(0, G, max(1, G // 24)):  # g.(h.x) = (gh).x for all h and x
        assert torch.equal(action[g][action], action[product[g]][h])
    identity = to_operation[0]
    assert action[identity].tolist() == list(range(G))
    assert all(identity in product[g] for g in range(G))  # every operation has an inverse


def test_groups_are_the_ones_they_are_called():
    """Orders of the elements and commutativity tell the small groups apart: d3 is s3, not c6."""
    def orders(name):
        task = lego.make_task(name)
        found = collections.Counter()
        for g in range(len(task.operations)):
            x, n = task.action[g, 0], 1
            while x != 0:
                x, n = task.action[g, x], n + 1
            found[n] += 1
        return dict(found)

    assert orders("d3") == orders("s3") == {1: 1, 2: 3, 3: 2}
    assert orders("c6") == {1: 1, 2: 1, 3: 2, 6: 2}
    assert orders("d4") == {1: 1, 2: 5, 4: 2}
    assert orders("s4") == {1: 1, 2: 9, 3: 8, 4: 6}
    assert orders("sign") == orders("c2") == {1: 1, 2: 1}
    assert orders("a3") == orders("c3") and orders("a4") == {1: 1, 2: 3, 3: 8}
    assert orders("a5") == {1: 1, 2: 15, 3: 20, 5: 24} and len(lego.make_task("s5").operations) == 120


@pytest.mark.parametrize("name", ["c1", "c0", "c", "d2", "s1", "s7", "c513", "c03", "sine", "", "D3", "s-3"])
def test_unknown_task_is_refused(name):
    with pytest.raises(ValueError, match=f"task={name}: expected sign"):
        lego.make_task(name)


# ---- the solver, against sentences worked by hand


@pytest.mark.parametrize("task, text, expected", [
    ("sign", "b=-a; c=+b; a=+1", {"a": "+1", "b": "-1", "c": "-1"}),
    ("sign", "z=-1", {"z": "-1"}),
    ("sign", " q = - m ;m=-1 ; x=-q;", {"m": "-1", "q": "+1", "x": "-1"}),
    ("sign", "a=-1; b=-a; c=-a; d=-c", {"a": "-1", "b": "+1", "c": "+1", "d": "-1"}),  # a branch
    ("sign", "a=-1; y=-x; b=-a; x=+1", {"a": "-1", "x": "+1", "y": "-1", "b": "+1"}),  # two chains
    # d3 by its defining relations: r_i r_j = r_(i+j), r_i s_j = s_(i+j), s_i r_j = s_(i-j), s_i s_j = r_(i-j)
    ("d3", "a=r1 1; b=r2a; c=s1 b; d=r1 c", {"a": "r1", "b": "r0", "c": "s1", "d": "s2"}),
    ("d3", "b=s2 a; a=s1 1; d=s1 c; c=r2 b", {"a": "s1", "b": "r1", "c": "r0", "d": "s1"}),
    ("d3", "r=s0 1; s=r1 r; t=s0 s", {"r": "s0", "s": "s1", "t": "r2"}),  # variables named as the operations begin
    ("c12", "a=+111 ; b=+9a", None),  # no operation +111
    ("c12", "a=+110; b=+9a", {"a": "11", "b": "8"}),
    # s3 in one-line notation: [213] swaps 1 and 2, [231] sends 1 to 2, 2 to 3, 3 to 1; the clause's operation acts last
    ("s3", "a=[213]1; b=[231]a", {"a": "[213]", "b": "[321]"}),
    ("s3", "a=[231]1; b=[213]a", {"a": "[231]", "b": "[132]"}),
])
def test_solver_by_hand(task, text, expected):
    if expected is None:
        with pytest.raises(ValueError):
            lego.solve(text, lego.make_task(task))
    else:
        assert list(lego.solve(text, lego.make_task(task)).items()) == list(expected.items())  # and in chain order


@pytest.mark.parametrize("text, expected", [
    ("c=-b; a=-1; d=+c", {"a": "-1", "c": None, "d": None}),
    ("d=+c; a=-1; c=-b; e=-a", {"a": "-1", "e": "+1", "c": None, "d": None}),  # in order of depth there, too
    ("b=-a", {"b": None}),
])
def test_what_a_sentence_does_not_determine_comes_last_without_a_value(text, expected):
    assert list(lego.solve(text, lego.make_task("sign")).items()) == list(expected.items())


# ---- sample, against the solver


def check_against_solver(task, batch):
    """For each sentence its text, its solution, and the symbols that have a label, after label and depth are right."""
    for ids, positions, values, depths in zip(*(x.tolist() for x in batch)):
        text, labelled = lego.decode(ids, task), []
        solution = lego.solve(text, task)
        value_of = {**solution, task.root_symbol: task.values[0]}
        argument_of = {variable: argument for variable, _, argument in lego.parse(text, task)}
        for position, value, depth in zip(positions, values, depths):
            if value != lego.IGNORE:
                assert value_of[task.vocab[ids[position]]] == task.values[value], text
                symbol, n_links = task.vocab[ids[position - position % 5]], 0  # the variable of this clause
                while symbol != task.root_symbol:
                    symbol, n_links = argument_of[symbol], n_links + 1
                assert depth == n_links, text
                labelled.append(task.vocab[ids[position]])
        yield text, solution, labelled


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("n", [1, 2, 12, 26])
def test_sample_agrees_with_solver(name, n):
    """Labels, positions and chain order of 50 sentences each: fails if a model would learn from wrong labels."""
    task = lego.make_task(name)
    batch = lego.sample(task, 50, n, generator())
    assert batch.tokens.shape == (50, 5 * n) and batch.positions.shape == batch.values.shape == (50, n)
    assert (batch.depths == torch.arange(1, n + 1)).all()
    for _, solution, labelled in check_against_solver(task, batch):
        assert labelled == list(solution)


@pytest.mark.parametrize("graph, depths", [
    (dict(), [1, 2, 3, 4, 5, 6]), (dict(branch=0.3), None), (dict(branch=1), None),
    (dict(branch=torch.linspace(0, 1, 60)), None), (dict(parents=[0] * 6), [1] * 6),
    (dict(parents=[0, 1, 2, 0, 4, 5]), [1, 1, 2, 2, 3, 3]), (dict(parents=[0, 1, 1, 3, 3, 5]), [1, 2, 2, 3, 3, 4]),
], ids=["chain", "tree", "any graph", "all of them", "star", "side by side", "a tree that is given"])
@pytest.mark.parametrize("name", ["sign", "d3", "s4"])
def test_graphs_agree_with_solver_at_variables_and_arguments(name, graph, depths):
    """In order of depth; an argument shares its clause's depth, and what it has as a label is its own value."""
    task = lego.make_task(name)
    batch = lego.sample(task, 60, 6, generator(), arguments=True, **graph)
    assert batch.positions.shape == batch.values.shape == batch.depths.shape == (60, 12)
    assert (batch.positions[:, 6:] == batch.positions[:, :6] + 3).all()
    assert (batch.depths.view(60, 2, 6).diff() >= 0).all()
    assert depths is None or (batch.depths == torch.tensor(2 * depths)).all()
    for text, solution, labelled in check_against_solver(task, batch):
        arguments = {variable: argument for variable, _, argument in lego.parse(text, task)}
        assert set(labelled[:6]) == set(solution) and labelled[6:] == [arguments[v] for v in labelled[:6]]
    alone = lego.sample(task, 60, 6, generator(), **graph)
    assert all(torch.equal(x, y[:, : x.size(1)]) for x, y in zip(alone, batch))


def test_branch_is_how_often_any_earlier_variable_or_the_root_is_taken():
    """Of three variables: a chain takes the one before twice, and any of the 1, 2, 3 choices is equally likely."""
    branch = torch.tensor([0.0, 0.4, 1.0]).repeat(4000)
    batch = lego.sample(lego.make_task("sign"), 12_000, 3, generator(), branch)
    for k, chain in enumerate([1, (0.6 + 0.4 / 2) * (0.6 + 0.4 / 3), 1 / 6]):
        depths = batch.depths[k::3]
        assert (depths == torch.tensor([1, 2, 3])).all(1).float().mean().item() == pytest.approx(chain, abs=0.02)
    shares = [(depths == torch.tensor(row)).all(1).float().mean().item() for row in ([1, 1, 1], [1, 1, 2], [1, 2, 2])]
    assert shares == pytest.approx([1 / 6, 3 / 6, 1 / 6], abs=0.02)


def test_follow_by_hand():
    """Column 0 is the root; s1 r1 1, then r2 of that; and a second link from the root."""
    task = lego.make_task("d3")
    operations = torch.tensor([[task.operations.index(operation) for operation in ("r1", "s1", "r2", "s0")]])
    values, depths = lego.follow(task, operations, torch.tensor([[0, 1, 2, 0]]))
    assert [task.values[x] for x in values[0]] == ["r0", "r1", "s0", "s2", "s0"]
    assert depths.tolist() == [[0, 1, 2, 3, 1]]


@pytest.mark.parametrize("branch", [0.0, 1.0])
@pytest.mark.parametrize("name", TASKS)
def test_distractor_chain_is_independent_and_unlabelled(name, branch):
    task = lego.make_task(name)
    batch = lego.sample(task, 50, 7, generator(), branch, n_distractor=5)
    assert batch.tokens.shape == (50, 60) and batch.values.shape == (50, 7)
    for text, solution, labelled in check_against_solver(task, batch):
        assert len(solution) == 12 and len(labelled) == 7
        clauses = {variable: argument for variable, _, argument in lego.parse(text, task)}
        others = set(solution) - set(labelled)
        assert [clauses[v] for v in others].count(task.root_symbol) == 1 and len({clauses[v] for v in others}) == 5
        assert all(clauses[v] not in others for v in labelled) and all(clauses[v] not in labelled for v in others)


@pytest.mark.parametrize("drop", [0, 3, 7, "random"])
@pytest.mark.parametrize("n_distractor", [0, 4])
@pytest.mark.parametrize("name", ["sign", "d3", "s4"])
def test_dropped_clause_leaves_what_is_behind_it_without_label(name, n_distractor, drop):
    task = lego.make_task(name)
    which = torch.randint(8, (200,)) if drop == "random" else torch.full((200,), drop)
    batch = lego.sample(task, 200, 8, generator(), n_distractor=n_distractor, drop=which)
    assert batch.tokens.shape == (200, 5 * (7 + n_distractor))
    dropped = (batch.values == lego.IGNORE).int().argmax(1)  # the first without label
    assert torch.equal(dropped, which)
    for (text, solution, labelled), first, positions, ids in zip(
            check_against_solver(task, batch), dropped.tolist(), batch.positions.tolist(), batch.tokens.tolist()):
        assert len(labelled) == first and len(solution) == 7 + n_distractor
        behind = [task.vocab[ids[p]] for p in positions[first + 1 :]]  # still found where they stand, in chain order
        assert behind == [variable for variable, value in solution.items() if value is None]
        arguments = {variable: argument for variable, _, argument in lego.parse(text, task)}
        assert all(arguments[b] == a for a, b in zip(behind, behind[1:]))


def test_dropped_clause_is_not_asked_at_its_argument():
    """It stands nowhere, so what its argument is has no place either."""
    task = lego.make_task("sign")
    for drop in (0, 1, 3):
        batch = lego.sample(task, 20, 4, generator(), drop=torch.full((20,), drop), arguments=True)
        list(check_against_solver(task, batch))


def test_drop_can_differ_from_sentence_to_sentence():
    drop = torch.tensor([0, 4, 2])
    batch = lego.sample(lego.make_task("sign"), 3, 5, generator(), drop=drop)
    assert [(row != lego.IGNORE).sum().item() for row in batch.values] == drop.tolist()


def skew(ids, n):
    """How far counts of ids 0 to n - 1 are from uniform: chi-square in standard deviations, about 0 if they are."""
    counts = ids.bincount(minlength=n).double()
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum().item()
    return (chi_square - (n - 1)) / (2 * (n - 1)) ** 0.5


@pytest.mark.parametrize("name", ["sign", "d3", "c5"])
def test_values_names_and_order_are_uniform(name):
    """Every value at every chain index, every name, every place: fails if a model could profit from a skew."""
    task, n = lego.make_task(name), 4
    batch = lego.sample(task, 20_000, n, generator())
    for i in range(n):
        assert skew(batch.values[:, i], len(task.values)) < 6
        assert skew(batch.tokens.gather(1, batch.positions)[:, i] - task.first_name, 26) < 6
    assert skew(batch.values[:, 0] * len(task.values) + batch.values[:, -1], len(task.values) ** 2) < 6
    places = (batch.positions // 5 * torch.tensor([64, 16, 4, 1])).sum(1)
    orders, index = places.unique(return_inverse=True)
    assert len(orders) == 24 and skew(index, 24) < 6  # all 4! orders


def test_same_generator_same_sentences():
    task = lego.make_task("d3")
    first, again, other = (lego.sample(task, 8, 12, generator(seed)).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_larger_alphabet_goes_on_behind_z():
    """The sentences of chapter-long chains: v26, v27, ... behind a to z, and the other ids as they were."""
    small, large = lego.make_task("sign"), lego.make_task("sign", 100)
    assert large.vocab[: len(small.vocab)] == small.vocab and large.names[25:28] == ("z", "v26", "v27")
    batch = lego.sample(large, 3, 100, generator())
    list(check_against_solver(large, batch))
    assert torch.equal(lego.encode(lego.decode(batch.tokens[0], large), large), batch.tokens[0])


@pytest.mark.parametrize("arguments", [
    dict(n_clauses=0), dict(n_clauses=27), dict(n_clauses=20, n_distractor=7), dict(n_clauses=3, n_distractor=-1),
    dict(n_clauses=3, drop=torch.tensor([0, 3])), dict(n_clauses=3, drop=torch.tensor([0, -1])),
    dict(n_clauses=1, drop=torch.tensor([0, 0])), dict(n_clauses=3, drop=torch.tensor([0, 1]), branch=0.5),
    dict(n_clauses=3, drop=torch.tensor([0, 1]), parents=[0, 1, 2]),
])
def test_sample_refuses_lengths_out_of_range(arguments):
    with pytest.raises(ValueError, match="expected"):
        lego.sample(lego.make_task("sign"), 2, **arguments)


# ---- text


@pytest.mark.parametrize("name", TASKS)
def test_text_round_trip(name):
    task = lego.make_task(name)
    for ids in lego.sample(task, 50, 9, generator()).tokens:
        assert torch.equal(lego.encode(lego.decode(ids, task), task), ids)
    text = f"b={task.operations[-1]} a; a={task.operations[0]} {task.root_symbol}"
    once = lego.decode(lego.encode(text, task), task)
    assert lego.decode(lego.encode(once, task), task) == once and lego.solve(once, task) == lego.solve(text, task)


def test_worked_example_of_the_docstring():
    task = lego.make_task("sign")
    ids = lego.encode("b=-a; c=+b; a=+1;", task)
    assert [task.vocab[i] for i in ids] == list("b=-a;c=+b;a=+1;")
    assert lego.decode(ids, task) == "b=-a; c=+b; a=+1;"


@pytest.mark.parametrize("text, quoted, expected", [
    ("", "clause ''", "expected variable=operation argument"),
    (" ; ", "clause ''", "expected variable=operation argument"),
    ("a=+1; b*-a", "clause 'b*-a'", "expected variable=operation argument"),
    ("a=+1; b=~a", "clause 'b=~a'", "the operations +, -"),
    ("a=+1; b=-\x1ba", r"clause 'b=-\x1ba'", "expected variable=operation argument"),
    ("a=+1\nb=-\na c", "clause 'b=-'", "expected variable=operation argument"),
    ("a=+1; B=-a", "clause 'B=-a'", "variables a to z"),
    ("a=+1; b=-2", "clause 'b=-2'", "the root 1"),
    ("a=+1; b=a", "clause 'b=a'", "the operations +, -"),
    ("\n,;", "clause ''", "expected variable=operation argument"),
    ("v26=+1", "clause 'v26=+1'", "variables a to z"),
    ("a=+1; b=-a; a=-1", "clause 'a=-1'", "expected once"),
    ("a=+b; b=-a", "clause 'a=+b'", "expected to reach the root 1"),  # a cycle, no root
    ("a=-1; b=+c; c=+b", "clause 'b=+c'", "expected to reach the root 1"),
    ("a=-a", "clause 'a=-a'", "expected to reach the root 1"),
    ("d=+x; a=+1; b=+c; c=-b", "clause 'b=+c'", "expected to reach the root 1"),  # d is no error, the circle is
])
def test_bad_sentence_is_quoted_with_what_was_expected(text, quoted, expected):
    with pytest.raises(ValueError) as error:
        lego.solve(text, lego.make_task("sign"))
    message = str(error.value)
    assert quoted in message and expected in message and "\n" not in message


@pytest.mark.parametrize("text", [
    "a=+1,b=-a,c=+b", "a=+1\nb=-a\n\nc=+b\n", "a=+1\r\nb=-a\r\nc=+b", " a = + 1 ;; b=-a ,; c=+b;",
    "a=+1; b=\u2212a; c=+b", "a=+1; b=\u2013a; c=+b", "a = val 1; b = not a; c = val b", "a=val 1, b=not a, c=+b",
])
def test_sentence_in_another_notation_is_the_same_sentence(text):
    """Commas, lines, empty clauses, the minus signs of typesetting, and the words of the official code."""
    assert lego.parse(text, lego.make_task("sign")) == [("a", "+", "1"), ("b", "-", "a"), ("c", "+", "b")]


def test_words_of_the_official_code_are_for_its_task_alone():
    with pytest.raises(ValueError, match="clause 'a=val 1': expected"):
        lego.parse("a=val 1", lego.make_task("d3"))
    with pytest.raises(ValueError, match="clause 'a=notb': expected"):
        lego.parse("a=notb", lego.make_task("sign"))


def shown(text, task):
    """The form that the error line of a bad sentence shows."""
    with pytest.raises(ValueError) as error:
        lego.parse(text, task)
    return re.search("such as '(.*?)', with", str(error.value))[1]


@pytest.mark.parametrize("name, text, right", [
    ("sign", "a=1", "a=+1"), ("sign", "b=a", "b=+a"), ("sign", "a=+1; c -b", "c=-b"), ("sign", "b=~a", "b=+a"),
    ("sign", "a=+1=-b", "a=+b"), ("sign", "", "a=+1"), ("d3", "b=r2*a", "b=r2 a"), ("d3", "q=p", "q=r0 p"),
    ("c5", "b=+3-a", "b=+3 a"), ("s3", "b=[231]*a", "b=[231]a"),
])
def test_error_line_shows_the_right_form_of_that_very_clause(name, text, right):
    assert shown(text, lego.make_task(name)) == right


@pytest.mark.parametrize("name, text", [
    ("sign", "1=+a"), ("sign", "1 a=-b"), ("c5", "=+2 0"), ("c5", "ab=+0 c"), ("d3", "B=r1"), ("s3", "=[231]a")])
def test_form_that_an_error_line_shows_is_one_that_can_be_read(name, text):
    task = lego.make_task(name)
    assert len(lego.parse(shown(text, task), task)) == 1


# ---- the command line


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["lego.py", *arguments])
    lego.command_line(show.solutions)
    return capsys.readouterr().out


def test_command_line_solves_a_sentence_in_chain_order(monkeypatch, capsys):
    lines = run(monkeypatch, capsys, "b=-a; c=+b; a=+1").splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["a=+1", "a", "is", "+1"], ["b=-a", "b", "is", "-1"], ["c=+b", "c", "is", "-1"]]
    assert run(monkeypatch, capsys, "b=-a").split() == ["b=-a", "b=-a", "b", "is", "not", "determined"]


def test_command_line_without_sentence_prints_solved_ones(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--task=d3").count(" is ") == 3 * 6
    assert run(monkeypatch, capsys, "--n_clauses=100").count(" is ") == 3 * 100


@pytest.mark.parametrize("arguments", [["a=*1"], ["--task=c1"], ["--tusk=d3"], ["a=+1", "b=+1"], ["--n_clauses=x"],
                                       ["--n_clauses=1025"], ["--n_clauses=0"]])
def test_command_line_refuses_in_one_line(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, capsys, *arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and message.count("\n") == 1
    assert message.startswith("lego.py: ") and "expected" in message


@pytest.mark.parametrize("name, n_names", [("sign", 26), ("d3", 40), ("c5", 3), ("s4", 26)])
def test_mutated_sentence_is_solved_or_refused_in_one_line(monkeypatch, capsys, mutate, name, n_names):
    """500 each: what parses is read back from its own tokens, and every value follows from the one before it."""
    task, solved = lego.make_task(name, n_names), 0
    for ids in lego.sample(task, 500, min(n_names, 8), generator()).tokens:
        text = mutate(lego.decode(ids, task))
        try:
            values = lego.solve(text, task)
        except ValueError as error:
            assert "expected" in str(error) and "\n" not in str(error), ascii(text)
            continue
        clauses, solved = lego.parse(text, task), solved + 1
        assert lego.solve(lego.decode(lego.encode(text, task), task), task) == values, ascii(text)
        index = {task.root_symbol: 0, **{v: task.values.index(value) for v, value in values.items() if value}}
        for variable, operation, argument in clauses:
            assert (variable in index) == (argument in index), ascii(text)
            if argument in index:
                assert task.action[task.operations.index(operation), index[argument]] == index[variable], ascii(text)
    assert solved > 5
    for arguments in [[mutate(f"--task={name}"), "a=+1"] for _ in range(100)]:
        try:
            run(monkeypatch, capsys, *arguments)
        except SystemExit as stop:
            assert stop.code == 2 and len(capsys.readouterr().err.splitlines()) == 1, ascii(arguments)


def test_console_without_a_character_gets_its_escape(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    lego.command_line(lambda arguments: print("naïve 我"))
    assert sys.stdout.buffer.getvalue() == b"na\\xefve \\u6211\n"


def test_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "ada")
    monkeypatch.setenv("USERPROFILE", "ada")
    given = lego.override(["--task=~/runs", "--n_clauses=3"], show.Options)
    assert given == dict(task="ada/runs", n_clauses=3)
