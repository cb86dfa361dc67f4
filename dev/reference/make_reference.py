"""
Writes PREFIX_model.bin, a GPT-2 with random weights, and PREFIX_state.bin, what PyTorch computes
from it on one random batch: logits, loss, every gradient, and the losses and gradient norms of a
few AdamW steps. README.md draws the files and holds the command that made the stored ones.

    python3 make_reference.py -model tiny -B 2 -T 32 -o tiny
"""
import argparse
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")     # what makes cuBLAS deterministic
import torch
from gpt2_reference import GPT2, State, adamw, config_from_string, model_write, state_write

BETAS, EPS, WEIGHT_DECAY, LARGEST_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0


def gradient_norm(model):
    """Of all parameters together, summed in double."""
    squares = [p.grad.double().square().sum() for p in model.parameters()]
    return torch.stack(squares).sum().sqrt().item()


def reference(model, tokens, targets, lr, steps):
    logits, loss = model(tokens, targets)
    loss.backward()
    state = State(tokens.cpu(), targets.cpu(), logits.detach().cpu(), loss.item(),
                  [torch.stack([p.grad.cpu() for p in layers]) for _, layers in model.tensors()],
                  (lr, *BETAS, EPS, WEIGHT_DECAY, LARGEST_NORM), [], [])
    optimizer = adamw(model, lr, BETAS, EPS, WEIGHT_DECAY)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        _, loss = model(tokens, targets)
        loss.backward()
        norm = gradient_norm(model)
        if norm > LARGEST_NORM:
            for p in model.parameters():
                p.grad *= LARGEST_NORM / norm
        optimizer.step()
        state.losses.append(loss.item())
        state.norms.append(norm)
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("-model", default="tiny", help="tiny, d12, or layers=2,channels=32,...")
    parser.add_argument("-B", type=int, default=2)
    parser.add_argument("-T", type=int, default=32)
    parser.add_argument("-lr", type=float, default=1e-3)
    parser.add_argument("-steps", type=int, default=10, help="AdamW steps")
    parser.add_argument("-seed", type=int, default=1337)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("-dtype", default="float32", choices=["float32", "float64"],
                        help="of the computation; the files hold float32 either way")
    parser.add_argument("-o", required=True, help="prefix of the two files")
    args = parser.parse_args()

    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("highest")       # no TF32
    model = GPT2(config_from_string(args.model, args.T))
    model.randomize(args.seed)
    model_write(args.o + "_model.bin", model)

    generator = torch.Generator().manual_seed(args.seed + 1)
    rows = torch.randint(model.config.V, (args.B, args.T + 1), generator=generator).to(args.device)
    model.to(args.device, getattr(torch, args.dtype))
    state = reference(model, rows[:, :-1], rows[:, 1:], args.lr, args.steps)
    state_write(args.o + "_state.bin", state)

    print(f"{args.model}, {args.dtype} on {args.device}, PyTorch {torch.__version__}")
    print(f"loss {state.loss:.7f}")
    for step, (loss, norm) in enumerate(zip(state.losses, state.norms)):
        print(f"step {step:2d}  loss {loss:.7f}  gradient norm {norm:.6f}")


main()
