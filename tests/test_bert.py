"""figures/bert.py: a BERT is read as the transformers library has it; all else is one line."""
import json
import runpy
import sys

import pytest
import torch

import train
from figures.bert import read_bert
from lego import InputError
from model import Transformer, read_checkpoint

WORDS = ["[PAD]", "##s", "a", "b", "c", "d", "e", "f", "=", ";", "+", "-", "1", "the"]
SHAPE = dict(vocab_size=len(WORDS) + 2, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
             intermediate_size=32, max_position_embeddings=40, hidden_act="gelu")


def bert_folder(folder, **dials):
    """A folder as the library once wrote it, of a tiny BERT with random weights."""
    shapes = {"embeddings.word_embeddings": (16, 8), "embeddings.position_embeddings": (40, 8),
              "embeddings.token_type_embeddings": (2, 8), "embeddings.LayerNorm": (8,),
              "pooler.dense": (8, 8)}
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}.attention.{name}"] = (8, 8)
        shapes |= {f"{layer}.intermediate.dense": (32, 8), f"{layer}.output.dense": (8, 32),
                   f"{layer}.attention.output.LayerNorm": (8,), f"{layer}.output.LayerNorm": (8,)}
    weights = {}
    for name, shape in shapes.items():
        weight, bias = ("gamma", "beta") if "LayerNorm" in name else ("weight", "bias")
        weights[f"bert.{name}.{weight}"] = torch.randn(shape).half()
        if not name.endswith("_embeddings"):
            weights[f"bert.{name}.{bias}"] = torch.randn(shape[0]).half()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(SHAPE, model_type="bert") | dials))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    torch.save(weights, folder / "pytorch_model.bin")
    return folder, weights


def model_of(folder):
    config, vocab, weights = read_bert(folder)
    model = Transformer(config, vocab, len(weights["token_embedding.weight"]), 1, 40)
    head = {name: x for name, x in model.state_dict().items() if name.startswith("head.")}
    model.load_state_dict(weights | head)
    return model.eval()


def test_a_bert_becomes_a_run_to_begin_from(tmp_path, monkeypatch):
    """Of an older layout, in half precision, with rows to spare; the first segment is added."""
    folder, weights = bert_folder(tmp_path / "bert")
    monkeypatch.setattr(sys, "argv", ["bert", str(folder), str(tmp_path / "out")])
    monkeypatch.delitem(sys.modules, "figures.bert")
    runpy.run_module("figures.bert", run_name="__main__")
    assert read_checkpoint(tmp_path / "out")["vocab"] == WORDS
    dials = dict(attention="vanilla", tied=False, norm="last", n_layer=2, n_embd=8, n_head=2)
    model = train.make_model(train.Config(**dials, n_clauses=6, init_from=str(tmp_path / "out")))
    theirs = {name.removeprefix("bert."): x.float() for name, x in weights.items()}
    first = theirs["embeddings.token_type_embeddings.weight"][0]
    positions = theirs["embeddings.position_embeddings.weight"][:30]
    assert torch.equal(model.position_embedding.weight, positions + first)
    row = model.token_embedding.weight[model.vocab.index("c")]
    assert torch.equal(row, theirs["embeddings.word_embeddings.weight"][WORDS.index("c")])
    assert torch.equal(model.norm_embedding.weight, theirs["embeddings.LayerNorm.gamma"])
    down = theirs["encoder.layer.1.output.dense.weight"]
    assert torch.equal(model.blocks[1].mlp.down.weight, down)


@pytest.mark.parametrize("break_it, expected", [
    (lambda f: (f / "config.json").unlink(), "No such file"),
    (lambda f: (f / "vocab.txt").unlink(), "No such file"),
    (lambda f: (f / "config.json").write_text("{"), "Expecting property name"),
    (lambda f: (f / "config.json").write_text("{}"), "'model_type'"),
    (lambda f: (f / "pytorch_model.bin").write_bytes(b"no"), ""),
    (lambda f: torch.save({}, f / "pytorch_model.bin"), "token_type_embeddings"),
    (dict(model_type="albert"), "expected bert with gelu, no decoder"),
    (dict(is_decoder=True), "expected bert with gelu, no decoder"),
    (dict(hidden_act="gelu_new"), "expected bert with gelu, no decoder"),
    (dict(num_attention_heads=4.0), "n_head=4.0: expected int"),
    (dict(num_attention_heads=3), "n_head=3: expected a divisor"),
    (dict(hidden_size=None), "n_embd=None: expected int")])
def test_what_is_no_bert_is_one_line(tmp_path, break_it, expected):
    dials = break_it if isinstance(break_it, dict) else {}
    folder, _ = bert_folder(tmp_path / "bert", **dials)
    if not dials:
        break_it(folder)
    with pytest.raises(InputError, match=f"bert: expected a BERT's files .*{expected}") as info:
        read_bert(folder)
    assert "\n" not in str(info.value)


def test_a_bert_has_the_states_of_the_transformers_library(tmp_path):
    """At random weights, after every layer; with the epsilon of our norms."""
    reason = "needs the optional packages transformers and safetensors"
    transformers = pytest.importorskip("transformers", reason=reason)
    pytest.importorskip("safetensors", reason=reason)
    config = transformers.BertConfig(**SHAPE, layer_norm_eps=1e-5)
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    for p in theirs.parameters():  # biases are 0 and norms 1 at first, which would hide mistakes
        torch.nn.init.normal_(p, std=0.5)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    model, tokens = model_of(tmp_path), torch.randint(16, (3, 20))
    with torch.no_grad():
        expected = theirs(tokens, output_hidden_states=True).hidden_states
        torch.testing.assert_close(model.embed(tokens), expected[0], atol=1e-4, rtol=1e-4)
        for (x, _), y in zip(model.layers(tokens), expected[1:], strict=True):
            torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-4)
