"""model.py: a block is torch's, loops and losses are those by hand, a proof sees every fault."""
import re
import weakref
from dataclasses import replace

import pytest
import torch
import torch.nn as nn

import lego
import train
from attention import HybridAttention, LegoAttention, VanillaAttention
from model import (SURE, Block, Transformer, answer, can_be_proved, draw_answer, in_words, load,
                   loss_of, loss_of_one_loop, predict, prove, task_of)

SIGN = lego.make_task("sign", 150)  # of its names those beyond 26 are new to a model
STATE = dict(facts=False)
VANILLA = dict(attention="vanilla")


def config_of(**dials):
    """The default of train.py, made small."""
    return train.Config(**{"n_clauses": 5, "n_embd": 16, "n_layer": 3, **dials}).complete()


def model_of(std=1.0, **dials):
    """With random numbers for all parameters, also for those that begin as zeros and ones."""
    model = train.make_model(config_of(**dials))
    for p in model.parameters():
        nn.init.normal_(p, std=std)
    return model


def example(B=2, T=11):
    return torch.randint(31, (B, T)), torch.arange(T) >= torch.tensor([T, T - 4])[:, None]


def sentences(task="sign", size=6, n=5):
    return lego.sample(lego.make_task(task), lego.random_graphs(size, n, 0.5))


# ---- the block and the model


@pytest.mark.parametrize("norm", ["first", "last"])
def test_the_block_is_torchs_encoder_layer(norm):
    (block,) = model_of(0.3, **VANILLA, norm=norm).double().blocks
    layer = nn.TransformerEncoderLayer(16, 4, 64, 0.0, "gelu", batch_first=True,
                                       norm_first=norm == "first", dtype=torch.float64)
    projections = block.attn.query, block.attn.key, block.attn.value
    layer.self_attn.in_proj_weight.data = torch.cat([m.weight for m in projections])
    layer.self_attn.in_proj_bias.data = torch.cat([m.bias for m in projections])
    for theirs, ours in [(layer.self_attn.out_proj, block.attn.proj), (layer.norm1, block.norm1),
                         (layer.linear1, block.mlp.up), (layer.linear2, block.mlp.down),
                         (layer.norm2, block.norm2)]:
        theirs.load_state_dict(ours.state_dict())
    tokens, padding_mask = example()
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    ours, _ = block(x, tokens, padding_mask)
    expected = layer(x, src_key_padding_mask=padding_mask)
    torch.testing.assert_close(ours[~padding_mask], expected[~padding_mask])


@pytest.mark.parametrize("dials", [
    dict(), STATE, dict(norm="first"), dict(positions="learned"), dict(tied=False),
    dict(VANILLA, norm="last", share_names=True)], ids=str)
def test_a_loop_is_the_one_by_hand(dials):
    """The block, on the tokens and the facts, or on the last state; with norm=both of one size."""
    model, (tokens, padding_mask) = model_of(**dials).double(), example()
    state = model.token_embedding.weight[tokens.clamp(max=5)]
    if model.config.positions == "learned":
        state = state + model.position_embedding.weight[:11]
    state = embedded = model.norm_embedding(state)
    known, facts, n_facts = None, torch.zeros_like(tokens), 0
    for i, (x, _) in enumerate(model.layers(tokens, 3, padding_mask=padding_mask)):
        if model.config.facts:
            state, known = embedded + model.fact_embedding.weight[facts], facts > 0
        if model.config.norm == "both":
            state = state - state.mean(-1, keepdim=True)
            state = state / (state.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        block = model.blocks[i % len(model.blocks)]
        state, _ = block(state, tokens, padding_mask, known=known)
        torch.testing.assert_close(x, state)
        facts = model.hand_on(state, tokens)
        n_facts += facts.count_nonzero()
    assert i == 2 and n_facts > 5 and len(model.blocks) == (1 if model.config.tied else 3)


def test_a_fact_is_a_value_that_the_model_is_sure_of_at_a_variable():
    model, tokens, x = model_of(), torch.arange(40)[None], torch.randn(1, 40, 16)
    p, facts = model.to_logits(x).softmax(-1)[0], model.hand_on(x, tokens)[0]
    for token in range(40):  # names are 5 to 30, and new ones beyond
        values = [v for v in range(2) if p[token, v] > SURE and token >= 5]
        assert facts[token] == (1 + values[0] if values else 0)
    assert {*facts[5:31].tolist()} == {0, 1, 2} and facts[31:].any() and SURE == 0.9


@pytest.mark.parametrize("dials", [dict(), STATE], ids=str)
def test_a_gradient_crosses_loops_only_where_they_hand_on_their_state(dials):
    *_, (second, _), (third, _) = model_of(**dials).layers(example()[0], 3)
    (gradient,) = torch.autograd.grad(third.square().sum(), second, allow_unused=True)
    assert (gradient is not None) == (dials == STATE)


@torch.no_grad()
def test_a_model_makes_the_loops_it_is_told_or_ends_where_one_adds_no_fact(proved):
    tokens, facts = example()[0], load(proved[0])
    n_made = lambda model, *arguments: len([*model.layers(*arguments)])
    assert n_made(model_of(**STATE), tokens) == n_made(model_of(**STATE, tied=False), tokens) == 3
    assert n_made(model_of(**STATE), tokens, 7) == n_made(facts, tokens, 7) == 7
    for parents, expected in [([0] * 12, 2), (range(12), 13), ([0, 1, 2, 0, 0, 0], 4)]:
        assert n_made(facts, lego.sample(SIGN, torch.tensor([[*parents]])).tokens) == expected
    assert n_made(facts, lego.encode("a=+b; b=-c; c=+d", SIGN)[None]) == 1


def test_new_names_are_read_if_they_share_an_embedding_and_positions_end():
    ours, others = torch.tensor([[0, 8, 1, 5, 8, 9, 5], [0, 99, 1, 6, 99, 7, 6]])[:, None]
    model = model_of(**STATE)
    torch.testing.assert_close(model(ours), model(others))
    assert not torch.allclose(model(ours), model(ours.where(ours != 8, 5)))  # who is who counts
    with pytest.raises(IndexError):
        model_of(**VANILLA)(others)
    with pytest.raises(lego.InputError, match="30 tokens: expected at most 25"):
        model_of(positions="learned")(sentences(n=6).tokens)


@pytest.mark.parametrize("dials", [dict(VANILLA, tied=False), STATE, dict()], ids=str)
def test_dropout_is_on_everything_that_is_added_to_the_state(dials):
    """Dropping all leaves nothing: not of tokens, not of facts, of no part of a block."""
    model, tokens = model_of(dropout=1.0, **dials), example()[0]
    assert all(x.any() for x, _ in model.eval().layers(tokens, 3))
    assert not any(x.any() for x, _ in model.train().layers(tokens, 3))


@pytest.mark.parametrize("attention, n_map", [("vanilla", 4), ("lego", 2), ("hybrid", 4)])
def test_padding_changes_nothing_and_every_layer_has_its_map(attention, n_map):
    model, (tokens, padding_mask) = model_of(0.3, attention=attention, **STATE), example()
    whole, maps = model(tokens, padding_mask=padding_mask), model.maps(tokens)
    torch.testing.assert_close(whole[1:, :7], model(tokens[1:, :7]))
    assert maps.shape == (3, 2, n_map, 11, 11)
    for i, (_, weights) in enumerate(model.layers(tokens, need_weights=True)):
        assert torch.equal(maps[i], weights)


@pytest.mark.parametrize("norm", ["first", "last", "both"])
@pytest.mark.parametrize("attention", ["vanilla", "lego", "hybrid"])
def test_every_parameter_learns(attention, norm):
    model = model_of(attention=attention, norm=norm, positions="learned")
    model(example()[0], 3).square().sum().backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [name for name in still if not name.endswith("key.bias")]  # softmax cancels that one


def test_dials_reach_the_attention():
    dials = dict(association_share=0.25, chained=False, dropout=0.3, n_head=2, positions="rope")
    of_lego, vanilla, hybrid = (model_of(attention=attention, **dials).blocks[0].attn
                                for attention in ("lego", "vanilla", "hybrid"))
    assert of_lego.n_associated == 4 and hybrid.lego.n_associated == 2
    assert not of_lego.chained and not hybrid.lego.chained
    assert vanilla.n_head == 2 and hybrid.vanilla.n_head == 1
    assert vanilla.dropout == hybrid.vanilla.dropout == 0.3
    assert vanilla.rope and hybrid.vanilla.rope and not model_of(**VANILLA).blocks[0].attn.rope
    with pytest.raises(lego.InputError, match="attention=foo: expected lego, vanilla or hybrid"):
        Block(replace(config_of(), attention="foo"))


# ---- losses


def test_the_loss_is_the_cross_entropy_of_all_labels_after_the_last_layer():
    """One label at a time. What has no label counts neither in the sum nor in the number."""
    model, batch = model_of(**STATE), sentences()
    values = batch.values.where(torch.rand(6, 5) < 0.6, lego.NO_VALUE)
    log_p, labelled = model(batch.tokens).log_softmax(-1), (values >= 0).nonzero().tolist()
    loss, n = loss_of(predict(model, batch), values)
    assert n == len(labelled) and 10 < n < 30
    torch.testing.assert_close(loss, -sum(log_p[b, batch.positions[b, i], values[b, i]]
                                          for b, i in labelled))
    assert loss_of(predict(model, batch), values.fill_(lego.NO_VALUE)) == (0, 0)


@pytest.mark.parametrize("task, unknown_weight", [("sign", 0.2), ("d3", 0.0), ("d3", 2.0)])
def test_the_loss_of_one_loop_is_the_one_by_hand(task, unknown_weight):
    """
    One place at a time: cross-entropy where a value can be told, and elsewhere unknown_weight times
    the divergence of the prediction from equal probabilities. Only the first are counted.
    """
    model = model_of(0.3, task=task, unknown_weight=unknown_weight)
    batch, k = lego.reveal(lego.make_task(task), sentences(task)), model.head.out_features
    (x, _), = model.layers(batch.tokens, 1, batch.facts)
    total, n_told = 0.0, 0
    for b in range(6):
        for position, value in zip(batch.positions[b], batch.values[b]):
            p = model.to_logits(x[b, position]).softmax(-1)
            if value >= 0:
                total, n_told = total - p[value].log(), n_told + 1
            else:
                total = total + unknown_weight * sum(1 / k * (1 / k / p_i).log() for p_i in p)
    loss, n = loss_of_one_loop(model, batch)
    assert n == n_told and 6 < n_told < 60
    torch.testing.assert_close(loss, total)


@torch.no_grad()
def test_no_more_than_a_few_states_are_kept(monkeypatch):
    """Those of all loops of a long sentence would not fit in memory."""
    model, states, alive = model_of(), [], []

    def watched(*arguments, **more):
        for x, weights in Transformer.layers(model, *arguments, **more):
            states.append(weakref.ref(x))
            alive.append(sum(state() is not None for state in states))
            yield x, weights
    monkeypatch.setattr(model, "layers", watched)
    predict(model, sentences(), 9)
    assert len(alive) == 9 and max(alive) <= 3


# ---- weights that come from elsewhere


@pytest.mark.parametrize("there, here", [(True, False), (False, True), (True, True)])
def test_the_embedding_that_names_share_goes_to_each_of_them_and_back(there, here):
    there, here = model_of(share_names=there), model_of(share_names=here, n_names=40)
    here.init_from(there.state_dict(), there.vocab)
    theirs, ours = (model.embed(torch.arange(31)[None])[0] for model in (there, here))
    n = min(len(model.token_embedding.weight) for model in (there, here))
    assert torch.equal(ours[:n], theirs[:n]) and (ours[n:] == theirs[n - 1]).all()
    assert torch.equal(here.head.weight, there.head.weight)  # of the same symbols, but for names
    assert torch.equal(here.fact_embedding.weight, there.fact_embedding.weight)


def test_weights_of_another_vocabulary_go_to_the_same_symbols():
    """Positions are cut to length; what has no row there stays random, and so does the head."""
    there, here = model_of(**VANILLA, task="c6", n_clauses=9), model_of(**VANILLA, task="d3")
    theirs, before = there.state_dict(), {name: x.clone() for name, x in here.state_dict().items()}
    here.init_from(theirs, there.vocab)
    after = here.state_dict()
    for i, symbol in enumerate(here.vocab):
        row = before["token_embedding.weight"][i]
        if symbol in there.vocab:
            row = theirs["token_embedding.weight"][there.vocab.index(symbol)]
        assert torch.equal(after["token_embedding.weight"][i], row)
    assert torch.equal(after["position_embedding.weight"], theirs["position_embedding.weight"][:25])
    assert torch.equal(after["blocks.0.mlp.up.weight"], theirs["blocks.0.mlp.up.weight"])
    assert torch.equal(after["head.weight"], before["head.weight"])  # of the same shape
    with pytest.raises(RuntimeError, match="position_embedding.weight"):  # has 45, not 50
        model_of(**VANILLA, n_clauses=10).init_from(theirs, there.vocab)


@pytest.mark.parametrize("dials", [dict(), dict(VANILLA, tied=False, norm="last")], ids=str)
def test_a_model_that_is_saved_answers_as_before_when_it_is_loaded(tmp_path, dials):
    run = dict(device="cpu", max_steps=1, eval_size=2, out_dir=str(tmp_path))
    model, tokens = model_of(**dials), sentences().tokens
    train.train(replace(model.config, **run), model)
    loaded = load(tmp_path)
    assert not loaded.training and loaded.vocab == model.vocab
    assert torch.equal(loaded(tokens), model(tokens))


def test_a_file_that_is_no_checkpoint_is_refused_and_runs_no_code(tmp_path):
    class Command:
        def __reduce__(self):
            return (tmp_path / "executed").mkdir, ()

    path = tmp_path / "checkpoint.pt"
    for write in (lambda: None, lambda: path.write_bytes(b"some text"),
                  lambda: torch.save(dict(model=Command()), path)):
        write()
        with pytest.raises(lego.InputError, match="checkpoint.pt: expected a (run|checkpoint) of"):
            load(tmp_path)
    assert not (tmp_path / "executed").exists()


# ---- the proof


@torch.no_grad()
def assert_knows_what_can_be_known(model, batch):
    """After loop d it is sure of every value of depth d or less, and of nothing else, ever."""
    for i, (x, _) in enumerate(model.layers(batch.tokens)):
        facts = model.hand_on(x, batch.tokens).gather(1, batch.positions)  # (B, n)
        can_be_known = (batch.depths <= i + 1) & (batch.values >= 0)
        assert torch.equal(facts, (1 + batch.values) * can_be_known)
    assert i >= batch.depths.max()
    said = predict(model, batch).argmax(-1)
    assert torch.equal(said[batch.values >= 0], batch.values[batch.values >= 0])


@pytest.mark.parametrize("size, n, branch, n_hubs", [
    (9, 1, 0.0, 1), (9, 12, 0.0, 12), (2, 40, 0.0, 40), (9, 26, 1.0, 26), (9, 40, 1.0, 2),
    (2, 150, 1.0, 150)])
def test_a_proved_model_knows_every_value_from_its_depth_on(proved, size, n, branch, n_hubs):
    """Chains and any graphs, longer than in training, with names that are new."""
    graphs = lego.random_graphs(size, n, branch).clamp(max=n_hubs)
    assert_knows_what_can_be_known(load(proved[0]), lego.sample(SIGN, graphs))


def test_a_proved_model_says_nothing_of_what_a_sentence_does_not_determine(proved):
    """Circles, missing definitions, and all that hangs on them, beside what is determined."""
    texts = ["a=+b; b=-a; c=+a; d=-c; e=-1; f=+e", "a=+a; b=-1; c=-z; d=+c; e=+b; f=-e"]
    for ids in lego.sample(SIGN, lego.random_graphs(30, 6, 0.7)).tokens:
        clauses = lego.parse(lego.decode(ids, SIGN), SIGN)
        i, j = torch.randint(6, (2,)).tolist()
        clauses[i] = *clauses[i][:2], clauses[j][0]  # another argument
        texts.append("; ".join(lego.write_clause(*clause) for clause in clauses))
    batch = lego.batch_of(texts, SIGN)
    assert 20 < (batch.values < 0).sum() < 150
    assert_knows_what_can_be_known(load(proved[0]), batch)


@pytest.mark.parametrize("k", range(4))  # at a definition, the first one, a use, the last one
def test_a_model_that_is_wrong_in_one_case_is_refused(proved, monkeypatch, k):
    """Where it has to know, where it may, where it can't: by a little more than the margins."""
    part = *_, value, must_know = [*lego.cases(SIGN)][k]
    monkeypatch.setattr(lego, "cases", lambda task: [part])
    model, kinds = load(proved[0]), dict(
        must=must_know, may=(value >= 0) & ~must_know, cannot=value < 0)
    for kind, p_true, n_wrong in [
            ("must", 0.94, 1), ("must", 0.96, 0), ("may", 0.24, 1), ("may", 0.26, 0),
            ("cannot", 0.76, 1), ("cannot", 0.24, 1), ("cannot", 0.74, 0), ("cannot", 0.26, 0)]:
        for row in kinds[kind].nonzero()[:, 0].tolist()[-1:]:
            def to_logits(x):
                p = Transformer.to_logits(model, x).softmax(-1)  # (N, 2)
                p[row] = torch.tensor([1 - p_true, p_true] if value[row] else [p_true, 1 - p_true])
                return p.log()
            monkeypatch.setattr(model, "to_logits", to_logits)
            proof = prove(model, SIGN)
            assert proof["n_wrong"] == n_wrong
            assert not n_wrong or f"{max(p_true, 1 - p_true):.2f}" in proof["example"]


def test_a_proof_is_said_in_words_and_what_is_not_proved_with_an_example(proved):
    n, proof = sum(len(part[0]) for part in lego.cases(SIGN)), prove(load(proved[0]), SIGN)
    assert proof == proved[1]["proof"] and proof["n_cases"] == n and proof["n_wrong"] == 0
    assert 0.95 <= proof["knows"] < 1 and 0.5 <= proof["doubts"] <= 0.75
    assert in_words(proof).startswith(f"proved: all {n} cases")
    proof, first = (prove(model_of(seed=1), SIGN, all_of_it) for all_of_it in (1, 0))
    assert proof["n_cases"] == n > first["n_cases"]
    assert proof["n_wrong"] >= first["n_wrong"] > 100
    assert lego.parse(re.match("in (.*;) know", proof["example"])[1], SIGN)
    assert in_words(proof).startswith(f"not proved: {proof['n_wrong']} of {n} cases are wrong; in ")
    assert in_words(None).startswith("not proved")


def someones(kind):
    """A class of someone's own, of which nothing can be known."""
    return type("Mine", (kind,), {})


@pytest.mark.parametrize("other", [
    LegoAttention(16, kernel_size=9), LegoAttention(16, causal=True), VanillaAttention(16, 4),
    LegoAttention(16, chained=False), HybridAttention(16, 4), someones(LegoAttention)(16),
    STATE, dict(positions="learned"), dict(share_names=False), dict(VANILLA, facts=True),
    "untied", "mine"], ids="kernel causal vanilla parallel hybrid attention state positions names "
                           "facts untied mine".split())
def test_a_model_that_sees_more_than_the_cases_show_is_not_proved(other):
    model = model_of(**other if isinstance(other, dict) else {})
    assert can_be_proved(model) == (not isinstance(other, dict))
    if isinstance(other, nn.Module):
        model.blocks[0].attn = other
    elif other == "untied":
        model.blocks.append(model.blocks[0])
    elif other == "mine":
        model = someones(Transformer)(model.config, SIGN.vocab, 6, 2, 25)
    with pytest.raises(lego.InputError, match="expected a tied model with chained LEGO attention"):
        prove(model, SIGN)


# ---- asking a model


def rows_of(out):
    """{variable: [answer, probability, truth, the loop since it is sure, wrong]} of an answer."""
    form = (r" *(\S+)   model (\S+) +probability (\S+)   truth (\S+|not determined)"
            r" *(?:   sure from loop (\d+) on)?(   wrong)?")
    rows = [re.fullmatch(form, line).groups() for line in out.splitlines() if "   model " in line]
    return {variable: row for variable, *row in rows}


def test_an_answer_says_value_probability_truth_and_loop(proved, capsys):
    model, text = load(proved[0]), "b=-a; v99=-b; a=+1; q=+b; x=-y; z=-1"
    batch, known = answer(model, text, task_of(model))
    first, *lines, last = capsys.readouterr().out.splitlines()
    rows, p = rows_of("\n".join(lines)), predict(model, batch)[0].softmax(-1).amax(-1)
    assert first == text and last == "6 of 6 right"
    assert rows.pop("x")[2:] == ["not determined", None, None]
    expected = dict(a=("+1", "1"), z=("-1", "1"), b=("-1", "2"), v99=("+1", "3"), q=("-1", "3"))
    assert [*rows] == [*expected]
    for i, (variable, (value, loop)) in enumerate(expected.items()):
        assert rows[variable] == [value, f"{p[i]:.4f}", value, loop, None]
        assert (known[:, i] >= 0).tolist() == [i + 1 >= int(loop) for i in range(4)]


def test_an_answer_to_a_long_sentence_is_its_mistakes_alone(proved, capsys):
    (ids,), model = lego.sample(SIGN, torch.arange(45)[None]).tokens, load(proved[0])
    text = lego.decode(ids, SIGN)
    answer(model, text, SIGN)
    assert capsys.readouterr().out.splitlines() == [text, "45 of 45 right"]
    model.head.weight.data.zero_()
    model.head.bias.data[:] = torch.tensor([9.0, 0.0])  # says +1 to everything
    answer(model, text, SIGN)
    out = capsys.readouterr().out
    assert 10 < len(rows_of(out)) == 45 - int(out.splitlines()[-1].split()[0])
    assert {(said, *row) for said, _, *row in rows_of(out).values()} == {
        ("+1", "-1", "1", "   wrong")}


def test_the_picture_of_an_answer_claims_only_what_is_so():
    """Its title; a cell for each value by loop, right or wrong; a line for each link of a chain."""
    known = torch.tensor([[0, -1, -1, -1], [0, 1, -1, -1], [0, 1, 1, -1], [0, 1, 1, -1]])
    text, clauses = "b=-a; a=+1; c=+b; x=-y", ["a=+1", "b=-a", "c=+b", "x=-y"]
    draw = lambda known: draw_answer(text, SIGN, lego.batch_of([text], SIGN), known).axes[0]
    axes = draw(known)
    title, cells = axes.get_title(), torch.tensor(axes.images[0].get_array().tolist())
    assert title.startswith("Every loop") and torch.equal(cells, (known >= 0).long())
    assert [[*map(float, line.get_xdata())] for line in axes.lines] == [[1, 2], [2, 3]]
    assert [[*map(float, line.get_ydata())] for line in axes.lines] == [[1, 2], [2, 3]]
    assert [label.get_text() for label in axes.get_xticklabels()] == clauses
    for row, column, value, cell in [(0, 1, 1, 1), (3, 3, 0, 2), (3, 0, -1, 0)]:
        other = known.clone()  # sooner, what can't be known, too late
        other[row, column] = value
        axes = draw(other)
        assert axes.get_title() != title and axes.images[0].get_array()[row, column] == cell
