"""
Turns a model file of ours (or of llm.c) into a folder that Hugging Face's transformers loads: a
safetensors file and config.json.

    python3 safetensors_export.py log/model_00001000.bin FOLDER

A safetensors file is 8 bytes with the length of a JSON text, that text (name, type, shape and
place of each tensor), and the data. Two things differ from our layout: Hugging Face keeps the
weight of a linear layer as (input channels, output channels), the transpose of ours, and wte
without padding rows.
"""
import json
import os
import struct
import sys

from gpt2_reference import model_read

# Our names and theirs; True marks the linear weights, which are stored transposed.
BLOCK_NAMES = [
    ("ln1w", "ln_1.weight", False), ("ln1b", "ln_1.bias", False),
    ("qkvw", "attn.c_attn.weight", True), ("qkvb", "attn.c_attn.bias", False),
    ("attprojw", "attn.c_proj.weight", True), ("attprojb", "attn.c_proj.bias", False),
    ("ln2w", "ln_2.weight", False), ("ln2b", "ln_2.bias", False),
    ("fcw", "mlp.c_fc.weight", True), ("fcb", "mlp.c_fc.bias", False),
    ("fcprojw", "mlp.c_proj.weight", True), ("fcprojb", "mlp.c_proj.bias", False),
]


def huggingface_tensors(model):
    """name -> tensor, in Hugging Face's GPT-2 layout."""
    ours = dict(model.tensors())
    tensors = {"transformer.wte.weight": ours["wte"][0][:model.config.V],
               "transformer.wpe.weight": ours["wpe"][0]}
    for layer in range(model.config.L):
        for our_name, their_name, transposed in BLOCK_NAMES:
            values = ours[our_name][layer]
            tensors[f"transformer.h.{layer}.{their_name}"] = values.t() if transposed else values
    tensors["transformer.ln_f.weight"] = ours["lnfw"][0]
    tensors["transformer.ln_f.bias"] = ours["lnfb"][0]
    return {name: values.detach().contiguous().numpy() for name, values in tensors.items()}


def safetensors_write(path, tensors):
    table, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, values in tensors.items():
        table[name] = {"dtype": "F32", "shape": list(values.shape),
                       "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    text = json.dumps(table).encode()
    text += b" " * (-len(text) % 8)         # the data begin at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            values.tofile(file)


def config_write(path, c):
    config = {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "torch_dtype": "float32",
        "vocab_size": c.V, "n_positions": c.max_T, "n_embd": c.C, "n_layer": c.L, "n_head": c.NH,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "bos_token_id": c.V - 1, "eos_token_id": c.V - 1,
    }
    with open(path, "w") as file:
        json.dump(config, file, indent=2)


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: python3 safetensors_export.py MODEL.bin FOLDER")
    model = model_read(sys.argv[1])
    os.makedirs(sys.argv[2], exist_ok=True)
    config_write(os.path.join(sys.argv[2], "config.json"), model.config)
    safetensors_write(os.path.join(sys.argv[2], "model.safetensors"), huggingface_tensors(model))
    print(f"{sys.argv[2]}: model.safetensors and config.json of a {model.config}")


main()
