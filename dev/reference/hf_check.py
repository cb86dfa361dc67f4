"""
Loads a folder of safetensors_export.py with Hugging Face's transformers and compares its logits and
loss with those of a state file. Somebody else's GPT-2 thereby confirms our reference, and our model
files prove readable outside this project.

    python3 hf_check.py FOLDER PREFIX_model.bin PREFIX_state.bin
"""
import sys

import torch
from transformers import GPT2LMHeadModel

from gpt2_reference import fail, model_read, state_read

# FP32 sums in another order: the relative errors measured are below 1e-6.
LARGEST_ERROR = 1e-5


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: python3 hf_check.py FOLDER PREFIX_model.bin PREFIX_state.bin")
    state = state_read(sys.argv[3], model_read(sys.argv[2]))
    model = GPT2LMHeadModel.from_pretrained(sys.argv[1]).eval()
    with torch.no_grad():
        logits = model(state.tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), state.targets.flatten()).item()

    logits_error = ((logits - state.logits).norm() / state.logits.norm()).item()
    loss_error = abs(loss - state.loss) / state.loss
    print(f"logits: relative error {logits_error:.2e}, largest difference "
          f"{(logits - state.logits).abs().max().item():.2e}")
    print(f"loss:   {loss:.7f} here, {state.loss:.7f} in the state file")
    if not (logits_error <= LARGEST_ERROR and loss_error <= LARGEST_ERROR):
        fail(f"transformers disagrees by more than {LARGEST_ERROR:.0e}")
    print("transformers agrees")


main()
