"""
Reads a pretrained BERT or ALBERT in Hugging Face layout, for --init_from=FOLDER and Transformer.from_pretrained.

    config.json                                 -> the dials of train.py: its shape, init_std
    vocab.txt or tokenizer.json                 -> the words, in the order of their ids
    model.safetensors or pytorch_model.bin      -> {name in model.py: tensor}
"""
import json
import re
from pathlib import Path

import torch

from lego import expect, one_line

BERT_NAMES = {  # what turns names of BERT and ALBERT into ours, one replacement after another
    "albert.": "", "bert.": "", "gamma": "weight", "beta": "bias", "embeddings.word_embeddings": "token_embedding",
    "embeddings.position_embeddings": "position_embedding", "embeddings.LayerNorm": "norm_embedding",
    "encoder.embedding_hidden_mapping_in": "widen", "encoder.layer.": "blocks.",
    "encoder.albert_layer_groups.0.albert_layers.": "blocks.", "attention.output.": "attention.",
    "attention.self.": "attn.", "attention.dense": "attn.proj", "attention.LayerNorm": "norm1", "attention.": "attn.",
    "full_layer_layer_norm": "norm2", "ffn_output": "mlp.down", "ffn.": "mlp.up.", "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down", "output.LayerNorm": "norm2"}
OUR_NAMES = re.compile(r"((token|position|norm)_embedding|widen|"
                       r"blocks\.\d+\.(attn\.(query|key|value|proj)|norm[12]|mlp\.(up|down)))\.(weight|bias)")


def read_bert(folder):
    """
    The dials, vocabulary and weights, under the names of Transformer, of a BERT or an ALBERT in Hugging Face layout:
    config.json, vocab.txt or tokenizer.json, and model.safetensors (needs the package safetensors) or
    pytorch_model.bin. The embedding of the first segment, which they add everywhere, goes into the positions. Words are
    written as in BERT: the inside of a word begins with ##. Raises ValueError for anything else.
    """
    folder = Path(folder)
    with one_line(f"{folder}: expected the out_dir of a run, or a BERT's folder"):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dials = dict(n_layer=config["num_hidden_layers"], n_embd=config["hidden_size"],
                     n_head=config["num_attention_heads"], norm_eps=config.get("layer_norm_eps", 1e-12),
                     init_std=config.get("initializer_range", 0.02))
        expect(all(isinstance(value, (int, float)) and value > 0 for value in dials.values()), f"found {dials}")
        dials["n_factor"] = config["embedding_size"] if config["model_type"] == "albert" else 0
        found = (config["model_type"], config["hidden_act"], config.get("position_embedding_type", "absolute"),
                 config["intermediate_size"] / config["hidden_size"],
                 config.get("is_decoder", False) or config.get("is_causal", False),
                 config.get("num_hidden_groups", 1) * config.get("inner_group_num", 1))
        expect(found in (("bert", "gelu", "absolute", 4, False, 1), ("albert", "gelu_new", "absolute", 4, False, 1)),
               f"bert with gelu or albert with gelu_new, absolute, MLP of 4 C, no decoder, one group, not {found}")
        vocab = read_words(folder)
    path = folder / "model.safetensors"
    if not path.exists() and (folder / "pytorch_model.bin").exists():
        path = folder / "pytorch_model.bin"
    with one_line(f"{path}: expected the weights of a BERT"):
        with path.open("rb") as file:
            expect(file.read(8) != b"version ", "this is a pointer of Git LFS, git lfs pull fetches the file")
        if path.suffix == ".bin":
            theirs = torch.load(path, map_location="cpu", weights_only=True)
        else:
            from safetensors.torch import load_file
            theirs = load_file(path)
        weights = {}
        for their_name, tensor in theirs.items():
            name = their_name
            for old, new in BERT_NAMES.items():
                name = name.replace(old, new)
            if OUR_NAMES.fullmatch(name):
                expect(tensor.is_floating_point() and tensor.isfinite().all(), f"{their_name}: expected finite floats")
            else:
                expect(not name.startswith(("blocks.", "base_model.")), f"{their_name} is of another kind of model")
            weights[name] = tensor.to_dense().float()
        weights["position_embedding.weight"] += weights["embeddings.token_type_embeddings.weight"][0]
        expect(weights["position_embedding.weight"].isfinite().all(), "token_type_embeddings: expected finite floats")
        n_rows = len(weights["token_embedding.weight"])
        expect(n_rows >= len(vocab), f"{n_rows} rows for {len(vocab)} words")
    return dials | dict(tied=dials["n_factor"] > 0, norm_first=False, carry="none", positions="learned",
                        attention="vanilla"), vocab, weights


def read_words(folder) -> list[str]:
    """The words of a vocabulary, in the order of their ids; the inside of a word begins with ##, as in BERT."""
    if (folder / "vocab.txt").exists() or not (folder / "tokenizer.json").exists():
        return (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    pieces = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    if isinstance(pieces, dict):
        by_id = {i: word for word, i in pieces.items()}
        return [by_id.get(i, "") for i in range(max(by_id) + 1)]
    words = [piece for piece, _ in pieces]  # of SentencePiece: what begins a word has a low line before it
    return [word[1:] if word[0] == "▁" else word if word[0] in "[<" else "##" + word for word in words]
