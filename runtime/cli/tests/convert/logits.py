"""Logits of Hugging Face folders by transformers, for transformers.rs.

    logits.py FOLDER...

Prints one object: versions, and for each folder the logits after each of its prompts, which are lists of ids in its
prompts.json; of a model without a head the state that 1_Pooling/config.json says. Weights and sums are f32 on the CPU.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

torch._dynamo.config.disable = True


class BitLinear(torch.nn.Module):
    """A matrix of BitNet's embedding models: masters, behind a norm of its own. Activations are not rounded."""

    def __init__(self, linear, norm, eps):
        super().__init__()
        scale = 1.0 / linear.weight.abs().mean().clamp(min=1e-5)
        self.weight = (linear.weight * scale).round().clamp(-1, 1) / scale
        self.norm, self.eps = norm, eps

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return torch.nn.functional.linear(x * self.norm, self.weight)


def logits(folder):
    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0])
    model = model.from_pretrained(folder, dtype=torch.float32).eval()
    # Some of its loaders leave weights in the type of the file.
    torch.nn.Module.float(model)
    for module in model.modules():
        if type(module).__name__ == "BitLinear":
            module.dtype = torch.float32
    for name, norm in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.norm.weight"):
            parent, _, child = name.removesuffix(".norm.weight").rpartition(".")
            parent = model.get_submodule(parent)
            linear = BitLinear(getattr(parent, child), norm.float(), config["rms_norm_eps"])
            setattr(parent, child, linear)
    pooling = folder / "1_Pooling" / "config.json"
    mean = pooling.exists() and json.loads(pooling.read_text()).get("pooling_mode_mean_tokens")
    with torch.no_grad():
        for ids in json.loads((folder / "prompts.json").read_text()):
            output = model(torch.tensor([ids]))
            if hasattr(output, "logits"):
                row = output.logits[0, -1].float()
            else:
                states = output.last_hidden_state[0]
                row = (states.mean(0) if mean else states[-1]).float()
            yield [round(x, 5) for x in row.tolist()]


folders = {Path(folder).name: list(logits(Path(folder))) for folder in sys.argv[1:]}
versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
json.dump({"versions": versions, "logits": folders}, sys.stdout)
