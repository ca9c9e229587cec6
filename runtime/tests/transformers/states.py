"""Hidden states of GGUF files by transformers, for main.rs.

    states.py FILE...

Prints one object: versions, and for each file, whose matrices are floats, three states after the last norm for each of
the texts in prompts.json beside it, which are lists of ids: that of the first token, that of the last, and the mean.
Weights and sums are f32 on the CPU.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy
import torch
import transformers

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
NORMS = {
    "qwen3": {"ffn_norm": "post_attention_layernorm"},
    "gemma": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}


class Normed(torch.nn.Module):
    """A matrix with a norm of its own input."""

    def __init__(self, linear, weight, eps):
        super().__init__()
        self.linear, self.weight, self.eps = linear, weight, eps

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.linear(x * self.weight)


def model_of(path):
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    family = "qwen3" if arch == "qwen3" else "gemma"

    def key(name, default=None):
        field = reader.fields.get(f"{arch}.{name}")
        return default if field is None else field.contents()

    tensors = {t.name: torch.from_numpy(numpy.array(t.data)).float() for t in reader.tensors}
    vocab, hidden = tensors["token_embd.weight"].shape
    layers, eps = key("block_count"), key("attention.layer_norm_rms_epsilon")
    sizes = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": key("attention.head_count"),
        "num_key_value_heads": key("attention.head_count_kv"),
        "head_dim": key("attention.key_length"),
        "max_position_embeddings": key("context_length"),
        "rms_norm_eps": eps,
        "attn_implementation": "eager",
    }

    def rope(base):
        return {"rope_type": "default", "rope_theta": base}

    if family == "qwen3":
        config = transformers.Qwen3Config(rope_parameters=rope(key("rope.freq_base")), **sizes)
        model = transformers.Qwen3Model(config)
    else:
        window = key("attention.sliding_window", 0)
        period = key("attention.sliding_window_pattern", 6)
        local = [window > 0 and (layer + 1) % period > 0 for layer in range(layers)]
        config = transformers.Gemma3TextConfig(
            rope_parameters={
                "full_attention": rope(key("rope.freq_base")),
                "sliding_attention": rope(key("rope.freq_base_swa", 10000.0)),
            },
            sliding_window=window or 4096,
            layer_types=["sliding_attention" if own else "full_attention" for own in local],
            query_pre_attn_scalar=sizes["head_dim"],
            use_bidirectional_attention=arch == "gemma-embedding",
            **sizes,
        )
        model = transformers.Gemma3TextModel(config)
    # Gemma's own norms multiply by 1 + w.
    one = 1.0 if family == "gemma" else 0.0
    names = {"token_embd": ("embed_tokens", 0.0), "output_norm": ("norm", one)}
    for layer in range(layers):
        for name, theirs in {**LAYER, **NORMS[family]}.items():
            names[f"blk.{layer}.{name}"] = f"layers.{layer}.{theirs}", one if "norm" in name else 0.0
    state, norms = {}, {}
    for name, values in tensors.items():
        name = name.removesuffix(".weight")
        if name.endswith("_norm_in"):
            norms[names[name.removesuffix("_norm_in")][0]] = values
        else:
            theirs, less = names[name]
            state[f"{theirs}.weight"] = values - less
    model.load_state_dict(state)
    for theirs, weight in norms.items():
        parent, _, child = theirs.rpartition(".")
        parent = model.get_submodule(parent)
        setattr(parent, child, Normed(getattr(parent, child), weight, eps))
    return model.eval()


def states(path):
    model = model_of(path)
    with torch.no_grad():
        for ids in json.loads((path.parent / "prompts.json").read_text()):
            rows = model(torch.tensor([ids])).last_hidden_state[0].double()
            yield [[round(x, 6) for x in row.tolist()] for row in (rows[0], rows[-1], rows.mean(0))]


files = {Path(path).stem: list(states(Path(path))) for path in sys.argv[1:]}
versions = {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
json.dump({"versions": versions, "states": files}, sys.stdout)
