"""
GPT-2 in plain PyTorch: the outsider that our C and CUDA programs are compared with.

This file holds the model and its two files: the model file, which is llm.c's and ours, and the
state file, which holds what a correct program computes from that model (README.md draws its
bytes). It is written from the architecture, not from our C program, so that the two do not share
their mistakes.

Runs with PyTorch 1.13 (Debian 12's python3-torch) and later, on CPU and GPU.
"""
import dataclasses
import os
import re
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

MODEL_MAGIC, MODEL_VERSION_FP32, MODEL_VERSION_BF16 = 20240326, 3, 5
STATE_MAGIC, STATE_VERSION = 20240327, 2
HEADER_INTS = 256

FAMILY = {6: (384, 6), 12: (768, 12), 24: (1024, 16), 36: (1280, 20), 48: (1600, 25)}   # L: C, NH

# The 16 parameter tensors in file order, and where the module below keeps them. A name with {}
# exists once per layer; the file holds all layers of one tensor together.
TENSORS = [
    ("wte", "wte"), ("wpe", "wpe"),
    ("ln1w", "blocks.{}.ln1.weight"), ("ln1b", "blocks.{}.ln1.bias"),
    ("qkvw", "blocks.{}.qkv.weight"), ("qkvb", "blocks.{}.qkv.bias"),
    ("attprojw", "blocks.{}.attproj.weight"), ("attprojb", "blocks.{}.attproj.bias"),
    ("ln2w", "blocks.{}.ln2.weight"), ("ln2b", "blocks.{}.ln2.bias"),
    ("fcw", "blocks.{}.fc.weight"), ("fcb", "blocks.{}.fc.bias"),
    ("fcprojw", "blocks.{}.fcproj.weight"), ("fcprojb", "blocks.{}.fcproj.bias"),
    ("lnfw", "lnf.weight"), ("lnfb", "lnf.bias"),
]


def fail(message):
    sys.exit("error: " + message)


@dataclasses.dataclass
class Config:
    max_T: int      # longest sequence
    V: int          # vocabulary
    Vp: int         # V rounded up to a multiple of 128; the rows beyond V take no part in the loss
    L: int          # layers
    NH: int         # heads
    C: int          # channels


def config_from_string(text, T):
    """"tiny", "d12", or "layers=4,channels=128,heads=4,vocab=257"; context 1024 for dN, else T."""
    if text == "tiny":
        text = "layers=2,channels=32,heads=2,vocab=96"
    sizes = {"context": T}
    for part in text.split(","):
        preset = re.fullmatch(r"d(\d+)", part)
        setting = re.fullmatch(r"(layers|channels|heads|vocab|context)=(\d+)", part)
        if preset and int(preset[1]) in FAMILY:
            L = int(preset[1])
            C, NH = FAMILY[L]
            sizes.update(layers=L, channels=C, heads=NH, vocab=50257, context=1024)
        elif setting:
            sizes[setting[1]] = int(setting[2])
        else:
            fail(f"cannot read '{part}' in the model description '{text}'")
    missing = {"layers", "channels", "heads", "vocab"} - sizes.keys()
    if missing:
        fail(f"the model description '{text}' lacks {', '.join(sorted(missing))}")
    if T > sizes["context"]:
        fail(f"T = {T} is longer than the model's context of {sizes['context']}")
    Vp = (sizes["vocab"] + 127) // 128 * 128
    return Config(sizes["context"], sizes["vocab"], Vp, sizes["layers"], sizes["heads"],
                  sizes["channels"])


class Block(nn.Module):
    def __init__(self, c, flash):
        super().__init__()
        self.NH, self.flash = c.NH, flash
        self.ln1 = nn.LayerNorm(c.C, eps=1e-5)
        self.qkv = nn.Linear(c.C, 3 * c.C)          # output channels are (3, NH, HS)
        self.attproj = nn.Linear(c.C, c.C)
        self.ln2 = nn.LayerNorm(c.C, eps=1e-5)
        self.fc = nn.Linear(c.C, 4 * c.C)
        self.fcproj = nn.Linear(4 * c.C, c.C)

    def attention(self, x):
        """(B,T,C) -> (B,T,C): softmax(q k^T / sqrt(HS)) v over the present and the past."""
        B, T, C = x.shape
        HS = C // self.NH
        # (B,NH,T,HS) each
        q, k, v = self.qkv(x).view(B, T, 3, self.NH, HS).permute(2, 0, 3, 1, 4)
        if self.flash:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
            scores = (q @ k.transpose(-2, -1)) / HS ** 0.5
            y = scores.masked_fill(future, float("-inf")).softmax(-1) @ v
        return y.transpose(1, 2).reshape(B, T, C)

    def forward(self, x):
        x = x + self.attproj(self.attention(self.ln1(x)))
        return x + self.fcproj(F.gelu(self.fc(self.ln2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Pre-norm transformer, learned positions, no dropout; the head is wte again, without bias."""

    def __init__(self, config, flash=False):
        super().__init__()
        self.config = config
        self.wte = nn.Parameter(torch.zeros(config.Vp, config.C))
        self.wpe = nn.Parameter(torch.zeros(config.max_T, config.C))
        self.blocks = nn.ModuleList(Block(config, flash) for _ in range(config.L))
        self.lnf = nn.LayerNorm(config.C, eps=1e-5)

    def forward(self, tokens, targets):
        """tokens, targets (B,T) -> logits (B,T,V), mean loss."""
        x = F.embedding(tokens, self.wte) + self.wpe[:tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.lnf(x), self.wte[:self.config.V])
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def tensors(self):
        """(name, [parameter of layer 0, of layer 1, ...]) in file order; one entry for wte etc."""
        for name, path in TENSORS:
            layers = self.config.L if "{}" in path else 1
            yield name, [self.get_parameter(path.format(layer)) for layer in range(layers)]

    @torch.no_grad()
    def randomize(self, seed):
        """
        GPT-2's initialization, but nothing is left at 0 or 1: a bias or a LayerNorm weight that
        stays there would hide a program that forgets it. The standard deviation 0.02 is that of
        768 channels; at other widths it is scaled so that activations keep their size, else a
        narrow model has logits and attention scores near 0 and tests neither.
        """
        generator = torch.Generator().manual_seed(seed)
        std = 0.02 * (768 / self.config.C) ** 0.5
        for name, parameters in self.tensors():
            for p in parameters:
                normal = torch.randn(p.shape, generator=generator)
                if name in ("attprojw", "fcprojw"):
                    p.copy_(normal * std / (2 * self.config.L) ** 0.5)
                elif p.dim() == 2:
                    p.copy_(normal * std)
                elif name in ("ln1w", "ln2w", "lnfw"):
                    p.copy_(1 + 0.1 * normal)
                else:
                    p.copy_(0.05 * normal)
        self.wte[self.config.V:] = 0        # the padding


def adamw(model, lr, betas, eps, weight_decay, **options):
    """PyTorch's AdamW; weight decay on the 2-D tensors only: embeddings and linear weights."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay},
              {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, **options)


# -----------------------------------------------------------------------------------------------
# Files: 256 int32, then raw data, little-endian.

def header_write(file, *values):
    header = np.zeros(HEADER_INTS, "<i4")
    header[:len(values)] = values
    header.tofile(file)


def header_read(file, path, magic):
    header = np.fromfile(file, "<i4", HEADER_INTS)
    if len(header) < HEADER_INTS or header[0] != magic:
        fail(f"{path} does not begin with the magic number {magic}")
    return header


def values_read(file, path, shape, kind="<f4"):
    """The next prod(shape) values as a tensor; kind "<i2" means BF16, "<i4" integers."""
    count = int(np.prod(shape))
    values = np.fromfile(file, kind, count)
    if len(values) < count:
        fail(f"{path} is too short: it ends inside a tensor of shape {tuple(shape)}")
    if kind == "<i2":       # BF16 is the upper half of a float
        values = (values.astype("<i4") << 16).view("<f4")
    return torch.from_numpy(values.reshape(shape))


def check_at_end(file, path):
    if file.read(1):
        fail(f"{path} is too long: {os.path.getsize(path)} bytes, {file.tell() - 1} expected")


def model_write(path, model, bfloat16=False):
    c = model.config
    with open(path, "wb") as file:
        header_write(file, MODEL_MAGIC, MODEL_VERSION_BF16 if bfloat16 else MODEL_VERSION_FP32,
                     c.max_T, c.V, c.L, c.NH, c.C, c.Vp)
        for _, parameters in model.tensors():
            for p in parameters:
                p = p.detach().float().cpu()
                values = p.bfloat16().view(torch.int16) if bfloat16 else p
                values.numpy().tofile(file)


@torch.no_grad()
def model_read(path, flash=False):
    with open(path, "rb") as file:
        header = header_read(file, path, MODEL_MAGIC)
        if header[1] not in (MODEL_VERSION_FP32, MODEL_VERSION_BF16):
            fail(f"{path} has version {header[1]}; 3 (FP32) and 5 (BF16) are known")
        max_T, V, L, NH, C, Vp = (int(value) for value in header[2:8])
        model = GPT2(Config(max_T, V, Vp, L, NH, C), flash)
        kind = "<i2" if header[1] == MODEL_VERSION_BF16 else "<f4"
        for _, parameters in model.tensors():
            for p in parameters:
                p.copy_(values_read(file, path, p.shape, kind))
        check_at_end(file, path)
    return model


@dataclasses.dataclass
class State:
    """What a correct program computes; README.md says how each is defined."""
    tokens: torch.Tensor        # (B,T)
    targets: torch.Tensor       # (B,T)
    logits: torch.Tensor        # (B,T,V)
    loss: float
    gradients: list             # of the 16 tensors, each (layers, rows, cols) or (layers, rows)
    optimizer: tuple            # lr, beta1, beta2, eps, weight decay, largest gradient norm
    losses: list                # before each AdamW step
    norms: list                 # of the gradient before each AdamW step, before clipping


def state_write(path, s):
    B, T = s.tokens.shape
    settings = np.array(s.optimizer, "<f4").view("<i4")
    with open(path, "wb") as file:
        header_write(file, STATE_MAGIC, STATE_VERSION, B, T, len(s.losses), *settings)
        s.tokens.numpy().astype("<i4").tofile(file)
        s.targets.numpy().astype("<i4").tofile(file)
        for values in (s.logits, torch.tensor(s.loss), *s.gradients, torch.tensor(s.losses),
                       torch.tensor(s.norms)):
            values.numpy().astype("<f4").tofile(file)


def state_read(path, model):
    with open(path, "rb") as file:
        header = header_read(file, path, STATE_MAGIC)
        if header[1] != STATE_VERSION:
            fail(f"{path} has version {header[1]}, not {STATE_VERSION}")
        B, T, steps = (int(value) for value in header[2:5])
        state = State(
            tokens=values_read(file, path, (B, T), "<i4").long(),
            targets=values_read(file, path, (B, T), "<i4").long(),
            logits=values_read(file, path, (B, T, model.config.V)),
            loss=values_read(file, path, (1,)).item(),
            gradients=[values_read(file, path, (len(parameters), *parameters[0].shape))
                       for _, parameters in model.tensors()],
            optimizer=tuple(header[5:11].view("<f4").tolist()),
            losses=values_read(file, path, (steps,)).tolist(),
            norms=values_read(file, path, (steps,)).tolist())
        check_at_end(file, path)
    return state
