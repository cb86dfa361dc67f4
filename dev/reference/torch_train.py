"""
How fast PyTorch trains the same model: the yardstick of dev/bench. Random weights, random tokens.

    python3 torch_train.py -model d12 -B 64 -T 1024 -accumulate 4 -device cuda
    python3 torch_train.py -model layers=4,channels=128,heads=4,vocab=257 -B 16 -T 128 -threads 2

On a GPU it uses what PyTorch offers for speed: torch.compile, BF16 autocast over FP32 weights,
flash attention, fused AdamW. On the CPU it computes in FP32, uncompiled; PyTorch before 2.0 has no
fused attention, so there attention is the plain formula. Prints one line per step and ends with

    median tokens/s N
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from gpt2_reference import GPT2, adamw, config_from_string


def train_step(model, optimizer, batches, autocast):
    """One optimizer step over the micro-batches; returns the loss, on the device."""
    mean_loss = 0
    for tokens, targets in batches:
        with autocast:
            _, loss = model(tokens, targets)
        (loss / len(batches)).backward()
        mean_loss = mean_loss + loss.detach() / len(batches)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return mean_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-model", default="d12", help="d12, or layers=4,channels=128,...")
    parser.add_argument("-B", type=int, default=4, help="rows of one micro-batch")
    parser.add_argument("-T", type=int, default=64)
    parser.add_argument("-accumulate", type=int, default=1, help="micro-batches of one step")
    parser.add_argument("-steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("-warmup", type=int, default=3, help="steps before them (compilation)")
    parser.add_argument("-threads", type=int, default=0, help="on the CPU; 0: PyTorch decides")
    parser.add_argument("-device", default="cpu")
    args = parser.parse_args()

    if args.threads > 0:
        torch.set_num_threads(args.threads)
    on_gpu = args.device.startswith("cuda")
    config = config_from_string(args.model, args.T)
    if on_gpu:
        config.V = config.Vp        # a classifier of 50304 columns is faster than one of 50257
    model = GPT2(config, flash=hasattr(F, "scaled_dot_product_attention"))
    model.randomize(1337)
    model.to(args.device)
    optimizer = adamw(model, 6e-4, (0.9, 0.95), 1e-8, 0.1, **({"fused": True} if on_gpu else {}))
    autocast = torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=on_gpu)
    trained = torch.compile(model) if on_gpu else model

    rows = torch.randint(config.V, (args.accumulate, args.B, args.T + 1), device=args.device)
    batches = [(row[:, :-1].contiguous(), row[:, 1:].contiguous()) for row in rows]
    print(f"PyTorch {torch.__version__}, {args.model}, B {args.B}, T {args.T}, "
          f"{args.accumulate} micro-batches, "
          + (torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads"))
    speeds = []
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        loss = train_step(trained, optimizer, batches, autocast).item()     # waits for the device
        seconds = time.perf_counter() - start
        speed = args.accumulate * args.B * args.T / seconds
        print(f"step {step:3d}  loss {loss:.4f}  {1000 * seconds:9.2f} ms  {speed:10.0f} tokens/s")
        if step >= args.warmup:
            speeds.append(speed)
    if on_gpu:
        print(f"peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
    print(f"median tokens/s {statistics.median(speeds):.0f}")


main()
