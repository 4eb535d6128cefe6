"""model.py: the block is torch's, a loop and its loss are what a slow loop says, pretrained weights are in place."""
import json
import math
import weakref

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import attention
import lego
import train
from figures import show
from model import Block, Transformer, logits_at, loss_of, loss_of_one_loop, mimic_loss


def config_of(**dials):
    """The default of train.py, made small."""
    return train.Config(**{"n_embd": 16, "n_layer": 3, **dials})


def model_of(vocab_size=13, n_out=3, block_size=40, **dials):
    return Transformer(config_of(**dials), vocab_size, n_out, block_size)


def example(B=2, T=11):
    return torch.randint(13, (B, T)), torch.arange(T) >= torch.tensor([T, T - 4])[:, None]


@pytest.mark.parametrize("norm_first", [True, False])
def test_block_is_torchs_encoder_layer(norm_first):
    """Same weights, same output, padding too: fails if a norm, a residual or the GELU is not where it should be."""
    block = Block(config_of(attention="vanilla", norm_first=norm_first)).double()
    layer = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, activation="gelu", batch_first=True,
                                       norm_first=norm_first, dtype=torch.float64)
    for parameter in block.parameters():  # biases and norms too, which begin as zeros and ones
        nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        projections = block.attn.query, block.attn.key, block.attn.value
        layer.self_attn.in_proj_weight.copy_(torch.cat([m.weight for m in projections]))
        layer.self_attn.in_proj_bias.copy_(torch.cat([m.bias for m in projections]))
        for theirs, ours in [(layer.self_attn.out_proj, block.attn.proj), (layer.linear1, block.mlp.up),
                             (layer.linear2, block.mlp.down), (layer.norm1, block.norm1), (layer.norm2, block.norm2)]:
            theirs.load_state_dict(ours.state_dict())
    tokens, padding_mask = example()
    x = torch.randn(2, 11, 16, dtype=torch.float64)
    ours, theirs = block(x, tokens, padding_mask)[0], layer(x, src_key_padding_mask=padding_mask)
    torch.testing.assert_close(ours[~padding_mask], theirs[~padding_mask])


@pytest.mark.parametrize("dials", [
    {}, dict(norm_first=False, attention="vanilla")], ids=["default", "albert"])
def test_tied_is_untied_with_copied_weights(dials):
    dials = dict(dials, carry="none")
    tied, untied = model_of(**dials), model_of(tied=False, **dials)
    weights = tied.state_dict()
    untied.load_state_dict({name: weights[name.replace("blocks.1.", "blocks.0.").replace("blocks.2.", "blocks.0.")]
                            for name in untied.state_dict()})
    tokens, padding_mask = example()
    torch.testing.assert_close(tied(tokens, padding_mask=padding_mask), untied(tokens, padding_mask=padding_mask))
    assert untied.n_parameters() > 2 * tied.n_parameters()


@pytest.mark.parametrize("carry", ["beliefs", "state", "none"])
def test_loops_at_call_time(carry):
    """n_loops=None is n_layer, every further loop goes on from the one before, and an untied model refuses."""
    model, (tokens, _) = model_of(carry=carry), example()
    states = [x for x, _ in model.layers(tokens, n_loops=5)]
    torch.testing.assert_close(model(tokens), model.to_logits(states[2]))
    torch.testing.assert_close(model(tokens, n_loops=5), model.to_logits(states[4]))
    for n_loops, tied in [(0, True), (-1, True), (2, False)]:
        with pytest.raises(ValueError, match=f"n_loops={n_loops}: expected"):
            model_of(tied=tied)(tokens, n_loops=n_loops)


@pytest.mark.parametrize("positions", ["none", "learned"])
@pytest.mark.parametrize("carry", ["beliefs", "state", "none"])
def test_loop_by_hand(carry, positions):
    """
    A loop is the block, applied to the embedding of the tokens and, added to it, the mean embedding of what was said of
    them, or the last state at a fixed size. Without positions what the block reads is normalised.
    """
    model, (tokens, padding_mask) = model_of(carry=carry, positions=positions), example()
    embedded = model.token_embedding(tokens) + (model.position_embedding.weight[:11] if positions == "learned" else 0)
    normalise = lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    said, state = torch.full((2, 11, 3), 1 / 3), torch.zeros(2, 11, 16)
    if carry != "none":
        assert torch.equal(model.nothing_known(tokens), said if carry == "beliefs" else state)
    for loop, (x, _) in enumerate(model.layers(tokens, padding_mask=padding_mask)):
        start = embedded + torch.einsum("btv,vc->btc", said, model.value_embedding.weight) if carry == "beliefs" else (
            embedded + state if carry == "state" or not loop else last)
        last, _ = model.blocks[0](normalise(start) if positions == "none" else start, tokens, padding_mask)
        torch.testing.assert_close(x, last)
        said, state = model.to_logits(last).softmax(-1), normalise(last)
        if carry != "none":
            torch.testing.assert_close(model.hand_on(x), said if carry == "beliefs" else state)
    assert loop == 2


@pytest.mark.parametrize("carry", ["beliefs", "state", "none"])
def test_gradient_does_not_cross_loops_that_hand_something_on(carry):
    """That of the third loop is that of a single loop from what it was handed; without a carry it is another."""
    model, (tokens, _) = model_of(carry=carry), example()
    *_, (second, _), (third, _) = model.layers(tokens)
    if carry == "none":
        alone, _ = model.blocks[0](F.layer_norm(second.detach(), (16,)), tokens)
    else:
        (alone, _), = model.layers(tokens, 1, model.hand_on(second))
    parameters = list((model.blocks if carry == "none" else model).parameters())
    gradient = lambda x: torch.autograd.grad(model.to_logits(x).square().sum(), parameters)
    torch.testing.assert_close(alone, third)
    same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradient(third), gradient(alone)))
    assert same == (carry != "none")


def test_one_loop_at_a_time_is_all_of_them():
    """What a loop hands on is all that the next one needs."""
    for carry in ("beliefs", "state"):
        model, (tokens, _) = model_of(carry=carry), example()
        carried = None
        for x, _ in model.layers(tokens, 4):
            (alone, _), = model.layers(tokens, 1, carried)
            torch.testing.assert_close(alone, x)
            carried = model.hand_on(alone)


def test_ids_beyond_the_vocabulary_share_its_last_row():
    model, tokens = model_of(vocab_size=4), torch.tensor([[0, 3, 1, 5, 2, 3, 9, 5]])
    other = torch.tensor([[0, 8, 1, 3, 2, 8, 4, 3]])  # the same but for the names
    torch.testing.assert_close(model(tokens), model(other))
    assert not torch.allclose(model(tokens), model(torch.tensor([[0, 8, 1, 3, 2, 3, 4, 8]])))  # who is who still counts


@pytest.mark.parametrize("dials", [
    dict(attention="vanilla"), dict(carry="none"), dict(carry="beliefs"), dict(carry="state")], ids=str)
def test_dropout_is_on_everything_that_is_added_to_the_state(dials):
    """Dropping all leaves nothing: not of the embedding, not of what is handed on, and of no part of a block."""
    model, (tokens, _) = model_of(dropout=1.0, **dials), example()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    assert all(x.any() for x, _ in model.eval().layers(tokens))
    assert not any(x.any() for x, _ in model.train().layers(tokens))


def test_many_loops_without_positions_do_not_drown_the_block():
    """Its input keeps its size, so the hundredth loop writes as much as the second."""
    model, (tokens, _) = model_of(carry="none"), example()
    states = [x for x, _ in model.layers(tokens, n_loops=100)]
    size = lambda i: (states[i] - F.layer_norm(states[i - 1], (16,))).std()
    assert size(99) > 0.3 * size(1)


@pytest.mark.parametrize("attention", ["vanilla", "lego", "hybrid"])
def test_padded_sentence_is_answered_like_the_bare_one(attention):
    model, (tokens, padding_mask) = model_of(attention=attention), example()
    bare = model(tokens[1:, :7])
    torch.testing.assert_close(model(tokens, padding_mask=padding_mask)[1:, :7], bare, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention, n_map", [("vanilla", 4), ("lego", 2), ("hybrid", 4)])
def test_layers_give_the_attention_map_of_every_layer(attention, n_map):
    model, (tokens, padding_mask) = model_of(attention=attention), example()
    maps = [weights for _, weights in model.layers(tokens, padding_mask=padding_mask, need_weights=True)]
    assert [tuple(weights.shape) for weights in maps] == 3 * [(2, n_map, 11, 11)]
    assert all(weights is None for _, weights in model.layers(tokens))


@pytest.mark.parametrize("attention", ["vanilla", "lego", "hybrid"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_every_parameter_learns(attention, norm_first):
    """A parameter without gradient is a forgotten one."""
    tokens, _ = example()
    model = model_of(attention=attention, norm_first=norm_first, positions="learned")
    model(tokens).square().sum().backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in untouched if not name.endswith("key.bias")] == []  # softmax cancels a bias of the keys


@pytest.mark.parametrize("dials, expected", [
    (dict(attention="foo"), "attention=foo: expected vanilla, lego or hybrid"),
    (dict(association_share=2.0), "association_share=2.0: expected 0 to 1"),
    (dict(attention="vanilla", n_head=5), "n_head=5: expected a divisor of the 16 channels"),
    (dict(attention="hybrid", n_head=1), "n_head=1: expected an even divisor of n_embd=16"),
])
def test_bad_shapes_are_named(dials, expected):
    with pytest.raises(ValueError, match=expected):
        model_of(**dials)


def test_sentence_longer_than_learned_positions_is_refused():
    model = model_of(positions="learned", block_size=10)
    model(torch.zeros(1, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="11 tokens: expected at most the 10 learned positions"):
        model(torch.zeros(1, 11, dtype=torch.int64))


def test_dials_reach_the_attention():
    """Each of them, in the model that is built."""
    lego_part = model_of(association_share=0.25, chained=False).blocks[0].attn
    assert lego_part.n_associated == 4 and not lego_part.chained
    hybrid = model_of(attention="hybrid", association_share=0.25, chained=False, dropout=0.3).blocks[0].attn
    assert hybrid.lego.n_associated == 2 and not hybrid.lego.chained and hybrid.vanilla.dropout == 0.3
    vanilla = model_of(attention="vanilla", n_head=2, dropout=0.3).blocks[0].attn
    assert vanilla.n_head == 2 and vanilla.dropout == 0.3


# ---- losses


def sentences(task="sign", size=6, n=5, branch=0.5, **more):
    return lego.sample(lego.make_task(task), size, n, branch=branch, **more)


def test_loss_is_the_cross_entropy_of_all_labels_after_the_last_layer():
    """One label at a time. What has no label counts neither in the sum nor in the number."""
    model = model_of(vocab_size=6, n_out=2)
    batch = sentences(branch=0.0, drop=torch.tensor([0, 1, 2, 3, 4, 4]))
    log_p, terms = model(batch.tokens, 4).log_softmax(-1), []
    for b, i in (batch.values != lego.IGNORE).nonzero().tolist():
        terms.append(-log_p[b, batch.positions[b, i], batch.values[b, i]])
    loss, n, logits = loss_of(model, batch, 4)
    assert n == len(terms) == 0 + 1 + 2 + 3 + 4 + 4
    torch.testing.assert_close(loss, torch.stack(terms).sum())
    for b, i in ((0, 0), (5, 3)):
        torch.testing.assert_close(logits[b, i].log_softmax(-1), log_p[b, batch.positions[b, i]])


def test_batch_without_a_label_has_no_loss():
    model = model_of(vocab_size=6, n_out=2)
    loss, n, _ = loss_of(model, sentences(branch=0.0, drop=torch.zeros(6, dtype=torch.int64)))
    assert loss == n == 0


@pytest.mark.parametrize("unknown_weight", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("task, carry", [("sign", "beliefs"), ("d3", "beliefs"), ("d3", "state")])
def test_loss_of_one_loop_by_hand(task, carry, unknown_weight):
    """
    One position at a time: the cross-entropy of what so many loops can have reached, and unknown_weight times the
    divergence of the prediction from equal probabilities where they cannot. Only the first are counted. A sentence in
    its first loop is handed nothing, whatever the one before it in its row has left.
    """
    batch, k = sentences(task, arguments=True), 6 if task == "d3" else 2
    model = model_of(vocab_size=40, n_out=k, carry=carry)
    carried, loop = model.hand_on(torch.randn(6, 25, 16)), torch.tensor([1, 2, 3, 1, 5, 9])
    handed = torch.where((loop == 1)[:, None, None], model.nothing_known(batch.tokens), carried)
    (x, _), = model.layers(batch.tokens, 1, handed)
    total, n_due = 0.0, 0
    for b in range(6):
        for position, value, depth in zip(batch.positions[b], batch.values[b], batch.depths[b]):
            p = model.to_logits(x[b, position]).softmax(-1)
            if depth <= loop[b]:
                total, n_due = total - p[value].log(), n_due + 1
            else:
                total = total + unknown_weight * sum(1 / k * (1 / k / p_i).log() for p_i in p)
    loss, n, handed_on = loss_of_one_loop(model, batch, carried, loop, unknown_weight)
    assert n == n_due and 6 < n_due < 60
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(handed_on, model.hand_on(x))
    assert not handed_on.requires_grad
    first = [loss_of_one_loop(model, batch, before, torch.ones(6), unknown_weight) for before in (carried, None)]
    torch.testing.assert_close(*first)


def test_prediction_of_equal_probabilities_costs_nothing_before_it_is_due():
    """A head of zeros says just that; then only what is due costs, ln 2 a label."""
    batch, model = sentences(branch=0.0), model_of(vocab_size=6, n_out=2)
    nn.init.zeros_(model.head.weight)
    loss, n, _ = loss_of_one_loop(model, batch, None, torch.full((6,), 2), 1e6)
    assert n == 6 * 2 and loss.item() == pytest.approx(6 * 2 * math.log(2), rel=1e-4)


def test_predictions_do_not_depend_on_how_a_batch_is_cut():
    model = model_of(vocab_size=6, n_out=2)
    batch = sentences(size=9)
    whole = model(batch.tokens, 4).gather(1, batch.positions[..., None].expand(-1, -1, 2)).argmax(-1)
    for size in (4, 100):
        assert torch.equal(show.predict(model, batch, 4, size), whole)


@torch.no_grad()
def test_loss_keeps_the_states_of_no_more_than_a_few_loops(monkeypatch):
    """Those of all loops of a long sentence would not fit in memory."""
    model, batch, states, alive = model_of(), sentences(size=2), [], []

    def watched(*arguments):
        for x, weights in Transformer.layers(model, *arguments):
            states.append(weakref.ref(x))
            alive.append(sum(state() is not None for state in states))
            yield x, weights
    monkeypatch.setattr(model, "layers", watched)
    loss_of(model, batch, 9)
    assert len(alive) == 9 and max(alive) <= 3


def test_logits_at_positions_are_those_of_all():
    model, x, positions = model_of(), torch.randn(2, 11, 16), torch.tensor([[3, 0, 3], [10, 1, 2]])
    expected = torch.stack([model.to_logits(x)[b][positions[b]] for b in range(2)])
    torch.testing.assert_close(logits_at(model, x, positions), expected)


def test_mimicking_is_at_its_aim_where_the_maps_are_the_patterns():
    """A stand-in model: with the patterns as its maps the loss is 0; with uniform ones the divergence by hand."""
    batch = sentences(size=4, n=3)
    maps = attention.target_maps(batch.tokens)
    floor = lambda x: (x + 1e-3) / (x + 1e-3).sum(-1, keepdim=True)

    class Model:
        def layers(self, tokens, n_loops, need_weights):
            yield from [(None, self.weights)] * 2

    Model.weights = torch.cat((maps, torch.rand(4, 1, 15, 15)), 1)  # a third head is free
    assert mimic_loss(Model(), batch)[0].item() == pytest.approx(0, abs=1e-4)
    Model.weights = torch.full((4, 2, 15, 15), 1 / 15)
    by_hand = sum((1 / 15 * math.log(1 / 15 / p)) for p in floor(maps).flatten().tolist()) / 15  # of all sentences
    loss, n, nothing = mimic_loss(Model(), batch)
    assert loss.item() == pytest.approx(2 * by_hand, rel=1e-4) and n == 4 and nothing is None


# ---- pretrained weights


def test_shared_embedding_of_the_names_goes_to_each_of_them_and_back():
    """Variables start alike where the weights are from a model in which they were alike, and the other way about."""
    vocab = lego.make_task("sign").vocab
    for n_there, n_here in [(6, 31), (31, 6), (6, 6), (31, 31)]:
        there, here = (model_of(vocab_size=n, n_out=2) for n in (n_there, n_here))
        here.init_from(there.state_dict(), vocab, vocab)
        expected = there.token_embedding.weight[[min(i, n_there - 1) for i in range(n_here)]]
        torch.testing.assert_close(here.token_embedding.weight, expected)


def bert_folder(folder, **dials):
    """A folder as the Hugging Face libraries write it, of a tiny BERT with random weights, old names and all."""
    config = dict(model_type="bert", hidden_act="gelu", num_hidden_layers=2, hidden_size=8, num_attention_heads=2,
                  intermediate_size=32, layer_norm_eps=1e-12, initializer_range=0.02) | dials
    words = ["[PAD]", "a", "=", "+", "1", ";"]
    shapes = {"embeddings.word_embeddings.weight": (6, 8), "embeddings.position_embeddings.weight": (16, 8),
              "embeddings.token_type_embeddings.weight": (2, 8), "embeddings.LayerNorm.gamma": (8,),
              "embeddings.LayerNorm.beta": (8,), "pooler.dense.weight": (8, 8)}
    for i in range(2):
        for name, shape in {"attention.self.query": (8, 8), "attention.self.key": (8, 8),
                            "attention.self.value": (8, 8), "attention.output.dense": (8, 8),
                            "attention.output.LayerNorm": (8,), "intermediate.dense": (32, 8),
                            "output.dense": (8, 32), "output.LayerNorm": (8,)}.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.save({f"bert.{name}": torch.randn(shape) for name, shape in shapes.items()}, folder / "pytorch_model.bin")
    return folder


def change_weights(folder, name, value=torch.ones(2)):
    path = folder / "pytorch_model.bin"
    torch.save(torch.load(path) | {name: value}, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bert_with_spare_rows_in_half_precision_is_read(tmp_path, dtype):
    """More rows than words, as of a padded vocabulary; and its sums are made in float32."""
    folder = bert_folder(tmp_path / "bert")
    weights = {name: x.to(dtype) for name, x in torch.load(folder / "pytorch_model.bin").items()}
    name = "bert.embeddings.word_embeddings.weight"
    weights[name] = torch.cat((weights[name], weights[name]))
    torch.save(weights, folder / "pytorch_model.bin")
    model = Transformer.from_pretrained(folder, ["a"], n_out=3)
    assert torch.equal(model.token_embedding.weight[0], weights[name][1].float())
    parts = [weights[f"bert.embeddings.{kind}_embeddings.weight"].float() for kind in ("position", "token_type")]
    assert torch.equal(model.position_embedding.weight, parts[0] + parts[1][0])


def test_bert_of_an_older_layout_is_read(tmp_path):
    """Names with a prefix, gamma and beta; each symbol gets its row, and one that is not there a random one."""
    folder = bert_folder(tmp_path / "bert")
    model = Transformer.from_pretrained(folder, ["1", "a", "unheard"], n_out=3)
    theirs = torch.load(folder / "pytorch_model.bin")
    rows = theirs["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(model.token_embedding.weight[:2], rows[[4, 1]])
    assert model.token_embedding.weight[2].abs().max() < 0.2  # init_std 0.02, theirs is 1
    assert torch.equal(model.norm_embedding.weight, theirs["bert.embeddings.LayerNorm.gamma"])
    assert torch.equal(model.blocks[1].mlp.down.weight, theirs["bert.encoder.layer.1.output.dense.weight"])
    assert model(torch.tensor([[0, 1, 2]])).shape == (1, 3, 3)


@pytest.mark.parametrize("break_it, expected", [
    (lambda f: (f / "config.json").unlink(), "bert: expected the out_dir of a run, or a BERT's folder .*config.json"),
    (lambda f: (f / "vocab.txt").unlink(), "bert: expected the out_dir of a run, or a BERT's folder .*vocab.txt"),
    (lambda f: (f / "pytorch_model.bin").unlink(), "model.safetensors: expected"),
    (lambda f: (f / "config.json").write_text("{"), "or a BERT's folder .Expecting property name"),
    (lambda f: (f / "config.json").write_text("{}"), "or a BERT's folder .'num_hidden_layers'"),
    (lambda f: (f / "config.json").write_text("[]"), "or a BERT's folder .list indices"),
    (lambda f: bert_folder(f, hidden_size=0), "or a BERT's folder .found .*'n_embd': 0"),
    (lambda f: bert_folder(f, layer_norm_eps="x"), "or a BERT's folder .found .*'norm_eps': 'x'"),
    (lambda f: (f / "pytorch_model.bin").write_bytes(b"no"), "pytorch_model.bin: expected the weights of a BERT"),
    (lambda f: (f / "model.safetensors").write_bytes(b"no"), "model.safetensors: expected the"),
    (lambda f: (f / "vocab.txt").write_text("\n".join("abcdefg")), "6 rows for 7 words"),
    (lambda f: bert_folder(f, is_decoder=True), "no decoder, one group, not .*True"),
    (lambda f: bert_folder(f, is_causal=True), "no decoder, one group, not .*True"),
    (lambda f: change_weights(f, "bert.embeddings.token_type_embeddings.weight", torch.ones(2, 8) / 0), "finite"),
    (lambda f: bert_folder(f, hidden_act="gelu_new"), "bert with gelu or albert with gelu_new, .*, not"),
    (lambda f: (f / "pytorch_model.bin").write_text("version https://git-lfs.github.com"), "pointer of Git LFS"),
    (lambda f: change_weights(f, "encoder.layer.0.crossattention.self.query.weight"), "crossattention.* another kind"),
    (lambda f: change_weights(f, "base_model.model.encoder.layer.0.lora_A.weight"), "lora_A.* another kind"),
    (lambda f: change_weights(f, "encoder.layer.0.output.dense.SCB"), "SCB is of another kind"),
    (lambda f: change_weights(f, "bert.encoder.layer.0.output.dense.weight", torch.ones(8, 32).char()), "floats"),
    (lambda f: change_weights(f, "bert.encoder.layer.0.output.dense.bias", torch.full((8,), math.nan)), "finite"),
    (lambda f: bert_folder(f, position_embedding_type="relative_key"),
     "absolute, MLP of 4 C, no decoder, one group, not .*relative_key"),
    (lambda f: torch.save({}, f / "pytorch_model.bin"), "expected the weights of a BERT .'position_embedding.weight'"),
    (lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('layers": 2', 'layers": 3')),
     "init_from=.*bert: expected weights that fit .*blocks.2"),
    (lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('layers": 2', 'layers": 1')),
     "init_from=.*bert: expected weights that fit .*blocks.1"),
])
def test_broken_bert_is_one_line(tmp_path, break_it, expected):
    folder = bert_folder(tmp_path / "bert")
    break_it(folder)
    with pytest.raises(ValueError, match=expected) as error:
        dials = train.implied("init_from", str(folder))
        train.make_model(train.Config(init_from=str(folder), n_clauses=3, **dials))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["Bert", "Albert"])
def test_bert_has_the_states_of_the_transformers_library(tmp_path, kind):
    """BERT and ALBERT at random weights, after every layer; the words of ALBERT come from tokenizer.json."""
    transformers = pytest.importorskip("transformers", reason="needs the optional packages transformers, safetensors")
    pytest.importorskip("safetensors", reason="needs the optional packages transformers and safetensors")
    shape = dict(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
    config = getattr(transformers, f"{kind}Config")(**shape, **dict(embedding_size=10) if kind == "Albert" else {})
    reference = getattr(transformers, f"{kind}Model")(config, add_pooling_layer=False).eval()
    for parameter in reference.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    words = [f"word{i}" for i in range(49)] + ["##end"]
    if kind == "Albert":
        pieces = [[f"\u2581{word}" if word[0] != "#" else word[2:], -1.0] for word in words]
        (tmp_path / "tokenizer.json").write_text(json.dumps(dict(model=dict(vocab=pieces))))
    else:
        (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = Transformer.from_pretrained(tmp_path, words, n_out=2)
    tokens = torch.randint(50, (2, 20))
    with torch.no_grad():
        theirs = reference(tokens, output_hidden_states=True).hidden_states[1:]
        for (ours, _), expected in zip(model.layers(tokens), theirs, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)  # the other GELU differs by more


@pytest.mark.parametrize("positions", ["rope", "none"])
def test_dial_positions_gives_the_heads_rotary_ones(positions):
    vanilla, hybrid = (train.make_model(train.Config(attention=kind, positions=positions)).blocks[0].attn
                       for kind in ("vanilla", "hybrid"))
    assert vanilla.rope == hybrid.vanilla.rope == (positions == "rope")
