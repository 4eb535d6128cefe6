"""
Reads a pretrained BERT in Hugging Face layout: config.json, vocab.txt, and model.safetensors (needs
the package safetensors) or pytorch_model.bin. The epsilon of its norms becomes ours, 1e-5.

    python -m figures.bert FOLDER OUT      writes it as a run of train.py, for others to begin from
    python train.py --preset=vanilla --norm=last --n_layer=12 --n_embd=768 --n_head=12 \\
        --init_from=OUT
"""
import json
import sys
from pathlib import Path

import torch

import train
from lego import InputError

NAMES = {  # what turns names of BERT into ours, one replacement after another
    "bert.": "", "gamma": "weight", "beta": "bias", "embeddings.word_embeddings": "token_embedding",
    "embeddings.position_embeddings": "position_embedding", "encoder.layer.": "blocks.",
    "embeddings.LayerNorm": "norm_embedding", "attention.output.LayerNorm": "norm1",
    "attention.output.dense": "attn.proj", "attention.self.": "attn.", "output.dense": "mlp.down",
    "intermediate.dense": "mlp.up", "output.LayerNorm": "norm2"}
OURS = ("token_embedding.", "position_embedding.", "norm_embedding.", "blocks.")


def read_bert(folder):
    """The config, vocabulary and weights {our name: tensor}; InputError for what is no BERT."""
    folder, weights = Path(folder), {}
    try:
        c = json.loads((folder / "config.json").read_text())
        found = c["model_type"], c["hidden_act"], c.get("is_decoder", False)
        if found != ("bert", "gelu", False):
            raise InputError(f"found {found}: expected bert with gelu, no decoder")
        config = train.Config(attention="vanilla", tied=False, norm="last", n_embd=c["hidden_size"],
                              n_layer=c["num_hidden_layers"], n_head=c["num_attention_heads"])
        vocab = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if (folder / "model.safetensors").exists():
            from safetensors.torch import load_file
            theirs = load_file(folder / "model.safetensors")
        else:
            theirs = torch.load(folder / "pytorch_model.bin", "cpu", weights_only=True)
        for name, x in theirs.items():
            for old, new in NAMES.items():
                name = name.replace(old, new)
            weights[name] = x.float()
        first = weights["embeddings.token_type_embeddings.weight"][0]  # BERT adds it everywhere
        weights["position_embedding.weight"] += first
        return config.complete(), vocab, {k: x for k, x in weights.items() if k.startswith(OURS)}
    except Exception as error:  # foreign files break a reader in countless ways
        raise InputError(f"{folder}: expected a BERT's files ({str(error)[:120]!r})") from error


if __name__ == "__main__":
    _, folder, out_dir = sys.argv
    try:
        config, vocab, weights = read_bert(folder)
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    Path(out_dir).mkdir(parents=True, exist_ok=True)
    torch.save(dict(config=vars(config), vocab=vocab, model=weights), f"{out_dir}/checkpoint.pt")
