"""model.py: the block is torch's, tied is untied with equal weights, and FLOPs are what torch counts."""
import json
from dataclasses import fields

import pytest
import torch
import torch.nn as nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import train
from model import Block, ModelConfig, Transformer


def model_config(**dials):
    """The default of train.py, made small."""
    default = {f.name: getattr(train.Config(), f.name) for f in fields(ModelConfig) if hasattr(train.Config(), f.name)}
    small = dict(vocab_size=13, n_out=3, block_size=40, n_embd=16, n_layer=3)
    return ModelConfig(**{**default, **small, **dials})


def example(B=2, T=11):
    return torch.randint(13, (B, T)), torch.arange(T) >= torch.tensor([T, T - 4])[:, None]


@pytest.mark.parametrize("norm_first", [True, False])
def test_block_is_torchs_encoder_layer(norm_first):
    """Same weights, same output, padding too: fails if a norm, a residual or the GELU is not where it should be."""
    block = Block(model_config(attention="vanilla", norm_first=norm_first)).double()
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
    {}, dict(norm_first=False, norm_state=False, positions="learned", attention="vanilla")], ids=["default", "albert"])
def test_tied_is_untied_with_copied_weights(dials):
    dials = dict(dials, self_condition=False)
    tied, untied = Transformer(model_config(**dials)), Transformer(model_config(tied=False, **dials))
    weights = tied.state_dict()
    untied.load_state_dict({name: weights[name.replace("blocks.1.", "blocks.0.").replace("blocks.2.", "blocks.0.")]
                            for name in untied.state_dict()})
    tokens, padding_mask = example()
    torch.testing.assert_close(tied(tokens, padding_mask=padding_mask), untied(tokens, padding_mask=padding_mask))
    assert untied.n_parameters() > 2 * tied.n_parameters()


def test_loops_at_call_time():
    """n_loops=None is n_layer, every further loop goes on from the one before, and an untied model refuses."""
    model, (tokens, _) = Transformer(model_config()), example()
    states = [x for x, _ in model.trace(tokens, n_loops=5)]
    torch.testing.assert_close(model(tokens), model.readout(states[2]))
    torch.testing.assert_close(model(tokens, n_loops=5), model.readout(states[4]))
    for n_loops, tied in [(0, True), (-1, True), (2, False)]:
        with pytest.raises(ValueError, match=f"n_loops={n_loops}: expected"):
            Transformer(model_config(tied=tied))(tokens, n_loops=n_loops)


def test_self_conditioned_loop_sees_tokens_and_predictions_and_sends_no_gradient_back():
    """A loop is the block, applied to the embedding of the tokens and the mean embedding of what was said of them."""
    model, (tokens, padding_mask) = Transformer(model_config()), example()
    states = [x for x, _ in model.trace(tokens, 3, padding_mask)]
    said = model.readout(states[1]).softmax(-1).detach()  # (B, T, n_out)
    start = model.token_embedding(tokens) + torch.einsum("btv,vc->btc", said, model.value_embedding.weight)
    alone, _ = model.blocks[0](nn.functional.layer_norm(start, start.shape[-1:]), tokens, padding_mask)
    alone = nn.functional.layer_norm(alone, alone.shape[-1:])
    torch.testing.assert_close(states[2], alone)
    gradient = lambda x: torch.autograd.grad(model.readout(x).square().sum(), list(model.parameters()))
    for in_trace, of_one_loop in zip(gradient(states[2]), gradient(alone)):
        torch.testing.assert_close(in_trace, of_one_loop)


def test_ids_beyond_the_vocabulary_share_its_last_row():
    model, tokens = Transformer(model_config(vocab_size=4)), torch.tensor([[0, 3, 1, 5, 2, 3, 9, 5]])
    other = torch.tensor([[0, 8, 1, 3, 2, 8, 4, 3]])  # the same but for the names
    torch.testing.assert_close(model(tokens), model(other))
    assert not torch.allclose(model(tokens), model(torch.tensor([[0, 8, 1, 3, 2, 3, 4, 8]])))  # who is who still counts


@pytest.mark.parametrize("attention", ["vanilla", "lego"])
def test_dropout_is_on_everything_that_is_added_to_the_state(attention):
    """Dropping all leaves nothing: not of the embedding, and of no part of a block."""
    model, (tokens, _) = Transformer(model_config(attention=attention, norm_state=False, dropout=1.0)), example()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    assert all(x.any() for x, _ in model.eval().trace(tokens))
    assert not any(x.any() for x, _ in model.train().trace(tokens))


def test_normalised_state_keeps_its_size_over_loops():
    model, (tokens, _) = Transformer(model_config(self_condition=False)), example()
    for x, _ in model.trace(tokens, n_loops=20):
        torch.testing.assert_close(x.mean(-1), torch.zeros(2, 11), atol=1e-5, rtol=0)
        torch.testing.assert_close(x.std(-1, correction=0), torch.ones(2, 11), atol=0.05, rtol=0)
    model = Transformer(model_config(norm_state=False))
    sizes = [x.std() for x, _ in model.trace(tokens, n_loops=2)]
    assert not torch.isclose(sizes[1], torch.ones(()), atol=0.2)  # and the switch is not stuck


@pytest.mark.parametrize("attention", ["vanilla", "lego", "hybrid"])
def test_padded_sentence_is_answered_like_the_bare_one(attention):
    model, (tokens, padding_mask) = Transformer(model_config(attention=attention)), example()
    bare = model(tokens[1:, :7])
    torch.testing.assert_close(model(tokens, padding_mask=padding_mask)[1:, :7], bare, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention, n_map", [("vanilla", 4), ("lego", 2), ("hybrid", 4)])
def test_trace_gives_the_attention_map_of_every_layer(attention, n_map):
    model, (tokens, padding_mask) = Transformer(model_config(attention=attention)), example()
    maps = [weights for _, weights in model.trace(tokens, padding_mask=padding_mask, need_weights=True)]
    assert [tuple(weights.shape) for weights in maps] == 3 * [(2, n_map, 11, 11)]
    assert all(weights is None for _, weights in model.trace(tokens))


@pytest.mark.parametrize("attention", ["vanilla", "lego", "hybrid"])
@pytest.mark.parametrize("norm_first", [True, False])
def test_every_parameter_learns(attention, norm_first):
    """A parameter without gradient is a forgotten one."""
    tokens, _ = example()
    model = Transformer(model_config(attention=attention, norm_first=norm_first, positions="learned"))
    model(tokens).square().sum().backward()
    untouched = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in untouched if not name.endswith("key.bias")] == []  # softmax cancels a bias of the keys


@pytest.mark.parametrize("T", [37, 160])
@pytest.mark.parametrize("dials", [
    dict(attention="vanilla"), dict(attention="hybrid", vanilla_share=0.25), dict(attention="lego"),
    dict(attention="lego", association="dense"), dict(attention="lego", association="segment"),
    dict(attention="lego", chained=False),
    dict(attention="vanilla", tied=False, positions="learned"), dict(attention="vanilla", n_out=29, n_embd=32),
], ids=str)
def test_flops_agree_with_torchs_count(dials, T):
    """Within 2%: what train.py logs and figures compare. (The sums of `segment` are in ours only.)"""
    model = Transformer(model_config(**{"n_embd": 64, "block_size": 200, **dials}))
    tokens = torch.randint(13, (1, T))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(tokens)
    assert abs(model.flops(T) / counter.get_total_flops() - 1) < 0.02
    if model.config.tied:
        assert model.flops(T, n_loops=6) > 1.9 * model.flops(T)


@pytest.mark.parametrize("dials, expected", [
    (dict(n_layer=0), "n_layer=0: expected at least 1"),
    (dict(n_embd=-4), "n_embd=-4: expected at least 1"),
    (dict(positions="sinus"), "positions=sinus: expected learned or none"),
    (dict(attention="foo"), "attention=foo: expected vanilla, lego or hybrid"),
])
def test_bad_shapes_are_named(dials, expected):
    with pytest.raises(ValueError, match=expected):
        Transformer(model_config(**dials))


def test_sentence_longer_than_learned_positions_is_refused():
    model = Transformer(model_config(positions="learned", block_size=10))
    model(torch.zeros(1, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match="11 tokens: expected at most block_size=10"):
        model(torch.zeros(1, 11, dtype=torch.int64))


# ---- pretrained weights


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
    (lambda f: (f / "config.json").unlink(), "config.json: expected this file of a pretrained BERT"),
    (lambda f: (f / "vocab.txt").unlink(), "vocab.txt: expected this file of a pretrained BERT"),
    (lambda f: (f / "pytorch_model.bin").unlink(), "model.safetensors: expected"),
    (lambda f: (f / "config.json").write_text("{"), "expected config.json and vocab.txt of a pretrained BERT, one is"),
    (lambda f: (f / "config.json").write_text("{}"), "expected that of a BERT with num_hidden_layers above 0"),
    (lambda f: (f / "config.json").write_text("[]"), "expected that of a BERT with num_hidden_layers above 0"),
    (lambda f: bert_folder(f, hidden_size=0), "expected that of a BERT with hidden_size above 0, found 0"),
    (lambda f: bert_folder(f, layer_norm_eps="x"), "expected that of a BERT with layer_norm_eps above 0, found x"),
    (lambda f: (f / "pytorch_model.bin").write_bytes(b"no"), "pytorch_model.bin: expected the weights of a pretrained"),
    (lambda f: (f / "model.safetensors").write_bytes(b"no"), "model.safetensors: expected the"),
    (lambda f: (f / "vocab.txt").write_text("a"), "vocab.txt: expected 6 words, one for each row of the embedding"),
    (lambda f: bert_folder(f, position_embedding_type="relative_key"), "expected bert with gelu, absolute positions"),
    (lambda f: torch.save({}, f / "pytorch_model.bin"), "'position_embedding.weight' is missing"),
    (lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('layers": 2', 'layers": 3')),
     r"expected blocks.2.norm1.weight \[8\], found nothing"),
    (lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace('layers": 2', 'layers": 1')),
     "expected 1 layers, found blocks.1"),
])
def test_broken_bert_is_one_line(tmp_path, break_it, expected):
    folder = bert_folder(tmp_path / "bert")
    break_it(folder)
    with pytest.raises(ValueError, match=expected) as error:
        Transformer.from_pretrained(folder, ["1", "a"], n_out=2)
    assert "\n" not in str(error.value)


def test_bert_has_the_states_of_the_transformers_library(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the optional packages transformers, safetensors")
    pytest.importorskip("safetensors", reason="needs the optional packages transformers and safetensors")
    shape = dict(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96)
    reference = transformers.BertModel(transformers.BertConfig(**shape), add_pooling_layer=False).eval()
    for parameter in reference.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.3)
    reference.save_pretrained(tmp_path)
    words = [f"word{i}" for i in range(50)]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    model = Transformer.from_pretrained(tmp_path, words, n_out=2)
    tokens = torch.randint(50, (2, 20))
    with torch.no_grad():
        theirs = reference(tokens, output_hidden_states=True).hidden_states[1:]
        for (ours, _), expected in zip(model.trace(tokens), theirs, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
