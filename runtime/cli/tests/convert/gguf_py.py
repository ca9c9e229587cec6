"""What gguf-py reads in GGUF files, for main.rs.

    gguf_py.py FILE...

Prints one list, an object for each file: its metadata keys, and for each tensor its name, its dimensions, the number
of its type, and the SHA-256 of its weights as f32 where gguf-py knows how to read them.
"""

import hashlib
import json
import sys
from enum import IntEnum

import gguf
from gguf import gguf_reader, quants

# Types of other projects, and the size of their blocks: the reader refuses numbers that it does not know.
OTHERS = {"I2_S": (36, (128, 32)), "Q2_0": (42, (64, 18))}

own = {kind.name: kind.value for kind in gguf.GGMLQuantizationType}
others = {name: number for name, (number, _) in OTHERS.items() if number not in own.values()}
gguf_reader.GGMLQuantizationType = IntEnum("GGMLQuantizationType", own | others)
for name, number in others.items():
    gguf_reader.GGML_QUANT_SIZES[gguf_reader.GGMLQuantizationType(number)] = OTHERS[name][1]


def weights(tensor):
    try:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        return None
    # Zeros have one sign.
    return hashlib.sha256((values + 0).astype("<f4").tobytes()).hexdigest()


def read(path):
    reader = gguf.GGUFReader(path)
    keys = [name for name in reader.fields if not name.startswith("GGUF.")]
    tensors = [
        [t.name, [int(n) for n in t.shape], int(t.tensor_type), weights(t)] for t in reader.tensors
    ]
    return {"keys": keys, "tensors": tensors}


json.dump([read(path) for path in sys.argv[1:]], sys.stdout)
