"""Pairs of towers as the hub's ONNX repositories have them, tiny: graphs written node by node, and real tokenizers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SIZE, WIDTH, EMBEDDING = 16, 12, 8
WORDS = ("a", "photo", "red", "apple", "two", "green", "pears", "shelf", "milk", "carton", "snow")
"""Words that are one piece in each of the vocabularies."""
START, END = "<|startoftext|>", "<|endoftext|>"
PREPROCESSOR: dict[str, dict[str, Any]] = {
    "clip": {
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_processor_type": "CLIPImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": SIZE},
    },
    "siglip": {
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": SIZE, "width": SIZE},
    },
}


def build_clip_tokenizer() -> Tokenizer:
    """Build CLIP's tokenizer on a small vocabulary: bytes, ends of words, lower case, start and end of a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in WORDS]
    merges, pieces = _join_letters(spelled)
    alphabet = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = _number([*alphabet, *pieces, START, END])  # start and end have the last numbers, as in CLIP
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix="")
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([START, END])
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocabulary[END]), (START, vocabulary[START]), add_prefix_space=False, trim_offsets=False
    )
    return tokenizer


def build_gemma_tokenizer() -> Tokenizer:
    """Build the tokenizer of SigLIP 2 on a small vocabulary: Gemma's, which knows every byte, and lowers nothing."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    merges, pieces = _join_letters([list(word) for word in WORDS])
    merges += [("▁", word) for word in WORDS]
    known = sorted({letter for word in WORDS for letter in word} | {"▁"})
    bytes_of_text = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = _number([*special, *bytes_of_text, *known, *pieces, *(f"▁{word}" for word in WORDS)])
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", vocabulary["<eos>"])]
    )
    return tokenizer


def build_unigram_tokenizer() -> Tokenizer:
    """Build the tokenizer of SigLIP on a small vocabulary: unigrams, lower case, no punctuation, and an end."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz"]
    pieces = [
        *((special, 0.0) for special in ("<pad>", "</s>", "<unk>")),
        *((f"▁{word}", -5.0) for word in WORDS),
        *((letter, -10.0) for letter in letters),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!\"#$%&'()*+,\-.:;=?@\[\\\]^_`{|}~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def _join_letters(words: Sequence[Sequence[str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Join the letters of words from the left; return the pairs that are joined, and what comes of them."""
    merges = [("".join(word[:end]), word[end]) for word in words for end in range(1, len(word))]
    different = list(dict.fromkeys(merges))
    return different, list(dict.fromkeys("".join(merge) for merge in different))


def _number(pieces: Sequence[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


TOKENIZERS = {"clip": build_clip_tokenizer, "siglip": build_unigram_tokenizer, "siglip2": build_gemma_tokenizer}
PADDINGS = {"clip": END, "siglip": "</s>", "siglip2": "<pad>"}


def draw_weights(num_tokens: int) -> dict[str, np.ndarray]:
    """Draw the weights of both towers."""
    random = np.random.default_rng(0)
    shapes = {
        "kernel": (WIDTH, 3, 8, 8),
        "of_pictures": (WIDTH, EMBEDDING),
        "table": (num_tokens, WIDTH),
        "of_texts": (WIDTH, EMBEDDING),
    }
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _assemble(nodes: list[onnx.NodeProto], ends: tuple[Any, list[Any]], constants: dict[str, np.ndarray]) -> bytes:
    given, outputs = ends
    held = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "main_graph", [given], outputs, held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def build_image_tower(weights: dict[str, np.ndarray], output: str) -> bytes:
    """Write the tower of pictures: patches, their mean, a projection."""
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["patches"], strides=[8, 8]),
        helper.make_node("ReduceMean", ["patches"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["mean", "of_pictures"], [output]),
    ]
    given = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["B", 3, "H", "W"])
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["B", EMBEDDING])
    return _assemble(nodes, (given, [result]), {name: weights[name] for name in ("kernel", "of_pictures")})


def build_text_tower(
    weights: dict[str, np.ndarray], output: str, *, end: int, length: int | str = "T", names: tuple[str, ...] = ()
) -> bytes:
    """Write the tower of texts: of CLIP the sum up to the first end of a text, of SigLIP the last of all places.

    Each place is the sum of what stands before it and of itself, weighted by 1/2 from there backwards: so order counts.
    """
    reverse = np.array(1, dtype=np.int64)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["tokens"], axis=0),
        helper.make_node("CumSum", ["tokens", "axis"], ["sums"]),
        helper.make_node("CumSum", ["sums", "axis"], ["weighted"]),
    ]
    constants: dict[str, np.ndarray] = {"axis": reverse}
    if output == "text_embeds":
        nodes += [
            helper.make_node("Equal", ["input_ids", "end"], ["is_end"]),
            helper.make_node("Cast", ["is_end"], ["numbers"], to=TensorProto.INT32),
            helper.make_node("ArgMax", ["numbers"], ["place"], axis=1, keepdims=1),
            helper.make_node("GatherND", ["weighted", "place"], ["pooled"], batch_dims=1),
        ]
        constants["end"] = np.array(end, dtype=np.int64)
    else:
        nodes.append(helper.make_node("Gather", ["weighted", "last"], ["pooled"], axis=1))
        constants["last"] = np.array(-1, dtype=np.int64)
    nodes += [
        helper.make_node("MatMul", ["pooled", "of_texts"], [output]),
        helper.make_node("Identity", ["weighted"], ["last_hidden_state"]),
    ]
    given = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", length])
    results = [
        helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["B", length, WIDTH]),
        helper.make_tensor_value_info(output, TensorProto.FLOAT, ["B", EMBEDDING]),
    ]
    constants |= {name: weights[name] for name in ("table", "of_texts")}
    return _assemble(nodes, (given, results), constants)


def build_pair(kind: str = "clip", **changes: bytes | dict[str, Any] | None) -> dict[str, bytes]:
    """Build the files of a repository.

    Args:
        kind: ``clip``, ``siglip`` or ``siglip2``.
        changes: Files by name, with ``__`` for a slash and ``_json`` for the ending, that replace them; None: it is
            missing.
    """
    tokenizer = TOKENIZERS[kind]()
    weights = draw_weights(tokenizer.get_vocab_size())
    image_output, text_output = ("image_embeds", "text_embeds") if kind == "clip" else ("pooler_output",) * 2
    family = "clip" if kind == "clip" else "siglip"
    end = tokenizer.token_to_id(END) or 0
    files: dict[str, Any] = {
        "config.json": {"model_type": family, "vision_config": {"model_type": f"{family}_vision_model"}},
        "preprocessor_config.json": PREPROCESSOR[family],
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": {"pad_token": PADDINGS[kind]},
        "onnx/vision_model.onnx": build_image_tower(weights, image_output),
        "onnx/text_model.onnx": build_text_tower(weights, text_output, end=end),
    }
    files |= {
        name.replace("__", "/").replace("_onnx", ".onnx").replace("_json", ".json"): changed
        for name, changed in changes.items()
    }
    return {
        name: json.dumps(content).encode() if isinstance(content, dict) else content
        for name, content in files.items()
        if content is not None
    }


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the files of a repository into a folder, as a clone of it has them."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def encode_text_again(kind: str, tokens: Sequence[str]) -> np.ndarray:
    """Compute the vector of a text from its tokens, start and end included, in plain NumPy; of unit length."""
    tokenizer = TOKENIZERS[kind]()
    weights = draw_weights(tokenizer.get_vocab_size())
    filled = [*tokens, *[PADDINGS[kind]] * (64 - len(tokens))] if kind != "clip" else list(tokens)
    table = weights["table"].astype(np.float64)
    total = np.zeros(WIDTH)
    for place, token in enumerate(filled):
        total += (len(filled) - place) * table[tokenizer.token_to_id(token)]
    vector = total @ weights["of_texts"]
    return vector / np.linalg.norm(vector)
