"""Logits of Hugging Face folders by transformers, for transformers.rs.

    logits.py FOLDER...

Prints one object: versions, and for each folder the logits after each of its prompts, which are lists of ids in its
prompts.json. Weights and sums are f32 on the CPU.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

torch._dynamo.config.disable = True


def logits(folder):
    config = json.loads((folder / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0])
    model = model.from_pretrained(folder, dtype=torch.float32).eval()
    # Some of its loaders leave weights in the type of the file.
    torch.nn.Module.float(model)
    for module in model.modules():
        if type(module).__name__ == "BitLinear":
            module.dtype = torch.float32
    with torch.no_grad():
        for ids in json.loads((folder / "prompts.json").read_text()):
            row = model(torch.tensor([ids])).logits[0, -1].float()
            yield [round(x, 5) for x in row.tolist()]


folders = {Path(folder).name: list(logits(Path(folder))) for folder in sys.argv[1:]}
versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
json.dump({"versions": versions, "logits": folders}, sys.stdout)
