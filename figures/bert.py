"""
Reads a pretrained BERT in Hugging Face layout.

    python -m figures.bert FOLDER out/bert                    writes it as a run of train.py
    python train.py --preset=vanilla --n_layer=12 --n_embd=768 --n_head=12 --norm=last --init_from=out/bert
"""
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import train

BERT_NAMES = {  # what turns names of BERT into ours, one replacement after another
    "bert.": "", "gamma": "weight", "beta": "bias", "embeddings.word_embeddings": "token_embedding",
    "embeddings.position_embeddings": "position_embedding", "embeddings.LayerNorm": "norm_embedding",
    "encoder.layer.": "blocks.", "attention.output.": "attention.", "attention.self.": "attn.",
    "attention.dense": "attn.proj", "attention.LayerNorm": "norm1", "intermediate.dense": "mlp.up",
    "output.dense": "mlp.down", "output.LayerNorm": "norm2"}
OUR_NAMES = re.compile(r"((token|position|norm)_embedding|blocks\.\d+\.(attn\.(query|key|value|proj)|norm[12]|mlp\.(up|down)))"
                       r"\.(weight|bias)")


def read_bert(folder):
    """
    The dials, vocabulary and weights, under the names of Transformer: of config.json, vocab.txt, and model.safetensors
    (needs the package safetensors) or pytorch_model.bin. The embedding of the first segment, which BERT adds
    everywhere, goes into the positions. The inside of a word begins with ##.
    """
    folder = Path(folder)
    c = json.loads((folder / "config.json").read_text())
    found = c["model_type"], c["hidden_act"], c["intermediate_size"] // c["hidden_size"], c.get("is_decoder", False)
    if found != ("bert", "gelu", 4, False):
        raise ValueError(f"{folder}: expected a BERT with gelu, an MLP of 4 C, no decoder, not {found}")
    dials = dict(attention="vanilla", tied=False, norm="last", n_layer=c["num_hidden_layers"],
                 n_embd=c["hidden_size"], n_head=c["num_attention_heads"], init_std=c.get("initializer_range", 0.02))
    if (folder / "model.safetensors").exists():
        from safetensors.torch import load_file
        theirs = load_file(folder / "model.safetensors")
    else:
        theirs = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    weights = {}
    for name, tensor in theirs.items():
        for old, new in BERT_NAMES.items():
            name = name.replace(old, new)
        weights[name] = tensor.float()
    weights["position_embedding.weight"] += weights["embeddings.token_type_embeddings.weight"][0]
    vocab = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return dials, vocab, {name: x for name, x in weights.items() if OUR_NAMES.fullmatch(name)}


if __name__ == "__main__":
    folder, out_dir = sys.argv[1:]
    dials, vocab, weights = read_bert(folder)
    config = train.Config(**dials, out_dir=out_dir).complete()
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    torch.save(dict(config=asdict(config), vocab=vocab, model=weights), Path(out_dir) / "checkpoint.pt")
