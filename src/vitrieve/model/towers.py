"""The text tower of a published pair of towers becomes a text part (``text.py``). No torch, and no tokenizer is run.

A pair, as CLIP and SigLIP are, has a graph of pictures and a graph of texts whose outputs lie in one space, so that no
map is learned. What the published files do not tell is what their authors do: SigLIP and SigLIP 2 read lower-case texts
that are filled up to their full length, and no mask; CLIP reads each text up to its end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from vitrieve.errors import ConfigError, first_line
from vitrieve.model.text import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPES, TextSpec
from vitrieve.quoting import quote_name

if TYPE_CHECKING:
    import onnx

TEXT_TOWER_NAMES = ("onnx/text_model.onnx", "text_model.onnx")
"""Where the graph of texts stands, the first that is there."""
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
MAX_TOKENIZER_BYTES = 100 << 20
"""Most bytes of a tokenizer; that of SigLIP 2, of 256,000 pieces, has 34 MB."""
Family = Literal["clip", "siglip"]
MAX_TOKENS: dict[Family, int] = {"clip": 77, "siglip": 64}
"""Most tokens of a text where ``config.json`` does not tell: transformers leaves out what is as usual."""
LARGEST_MAX_TOKENS = 8_192
"""Most tokens that are believed; with a stranger's number the first text could take all memory."""
_INPUTS = {INPUT_IDS, ATTENTION_MASK, TOKEN_TYPES}


class TextTower(NamedTuple):
    """A text tower that was read.

    Attributes:
        spec: What it is.
        tokenizer: Content of ``tokenizer.json``, which pads and lowers as the graph was trained.
    """

    spec: TextSpec
    tokenizer: bytes


def read_text_tower(
    model: onnx.ModelProto,
    config: Mapping[str, Any],
    tokenizer: bytes,
    tokenizer_config: Mapping[str, Any],
    *,
    name: str,
    image_output: str,
    embedding_dim: int,
) -> TextTower:
    """Read the text tower of an export.

    Args:
        model: Its graph, from ``input_ids`` ``(B, T)`` to ``text_embeds`` or ``pooler_output`` ``(B, E)``.
        config: Configuration of the pair.
        tokenizer: Content of ``tokenizer.json``.
        tokenizer_config: Content of ``tokenizer_config.json``; empty: there is none.
        name: Name of the pair, for people.
        image_output: Output of the image tower that is the embedding of a picture.
        embedding_dim: Length of it.

    Raises:
        ConfigError: The outputs of both towers are not of one space, the graph wants something else, or the tokenizer
            does not fit.
    """
    family = _find_family(config)
    output = _find_output(model, family, image_output)
    inputs = _check_inputs(model)
    of_texts = config.get("text_config")
    of_texts = of_texts if isinstance(of_texts, Mapping) else {}
    max_tokens = of_texts.get("max_position_embeddings", MAX_TOKENS[family])
    if not isinstance(max_tokens, int) or not 2 <= max_tokens <= LARGEST_MAX_TOKENS:
        raise ConfigError(f"config.json has {max_tokens!r} as the most tokens of a text.")
    fixed = inputs[INPUT_IDS][1]
    if fixed > max_tokens:
        raise ConfigError(f"its text graph reads {fixed} tokens, and config.json says {max_tokens} at most.")
    spec = TextSpec(
        name=name,
        max_tokens=fixed or max_tokens,
        pooling="native",
        output=output,
        is_padded=family == "siglip" or fixed > 0,
    )
    read = _read_tokenizer(tokenizer)
    _set_padding(read, tokenizer_config, spec, family)
    if family == "siglip" and tokenizer_config.get("do_lower_case", True):
        _set_lower_case(read)
    _check_run(model, inputs, spec, read, embedding_dim)
    return TextTower(spec, json.dumps(read, ensure_ascii=False).encode())


def _find_family(config: Mapping[str, Any]) -> Family:
    kind = config.get("model_type")
    if kind == "clip":
        return "clip"
    if kind in ("siglip", "siglip2"):
        return "siglip"
    raise ConfigError(
        f"texts of the model type {quote_name(kind)} are not understood; accepted: clip, siglip, siglip2."
    )


def _find_output(model: onnx.ModelProto, family: Family, image_output: str) -> str:
    """Find the output that lies in the space of the pictures: CLIP projects both, SigLIP pools both."""
    names = [one.name for one in model.graph.output]
    pairs = {"image_embeds": "text_embeds"} | ({"pooler_output": "pooler_output"} if family == "siglip" else {})
    wanted = pairs.get(image_output)
    if wanted is None or wanted not in names:
        raise ConfigError(
            f"the embedding of a picture is {quote_name(image_output)}, and of the outputs of its text graph, "
            f"{', '.join(map(quote_name, names))}, none is of the same space; expected "
            f"{' or '.join(f'{image} with {text}' for image, text in pairs.items())}."
        )
    return wanted


def _check_inputs(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Return the inputs of the graph with their shapes, in which 0 is free."""
    constants = {tensor.name for tensor in model.graph.initializer}
    shapes = {
        one.name: tuple(dim.dim_value for dim in one.type.tensor_type.shape.dim)
        for one in model.graph.input
        if one.name not in constants
    }
    is_known = INPUT_IDS in shapes and shapes.keys() <= _INPUTS
    if not is_known or any(len(shape) != 2 or shape[0] for shape in shapes.values()):
        told = ", ".join(f"{quote_name(name)} {shape}" for name, shape in shapes.items())
        raise ConfigError(
            f"its text graph wants {told} (0 is free); expected {INPUT_IDS} for any number of texts, and at most "
            f"{ATTENTION_MASK} and {TOKEN_TYPES} beside it."
        )
    kinds = {one.type.tensor_type.elem_type for one in model.graph.input if one.name in shapes}
    if kinds != {7}:  # int64
        raise ConfigError("the inputs of its text graph are not all int64.")
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


# The tokenizer


def _read_tokenizer(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
        if isinstance(found["model"]["vocab"], (dict, list)) and isinstance(found.get("added_tokens", []), list):
            return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"tokenizer.json is no tokenizer ({type(error).__name__}: {error}).") from None
    raise ConfigError("tokenizer.json is no tokenizer: it has no vocabulary.")


def _list_vocabulary(read: Mapping[str, Any]) -> dict[str, int]:
    """List the pieces of a tokenizer with their numbers; those that were added count first."""
    vocabulary = read["model"]["vocab"]
    try:
        pieces = (
            {str(piece): int(number) for piece, number in vocabulary.items()}
            if isinstance(vocabulary, dict)
            else {str(entry[0]): number for number, entry in enumerate(vocabulary)}
        )
        return pieces | {str(entry["content"]): int(entry["id"]) for entry in read.get("added_tokens", [])}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"the vocabulary of tokenizer.json is damaged ({type(error).__name__}: {error}).") from None


def _set_padding(read: dict[str, Any], tokenizer_config: Mapping[str, Any], spec: TextSpec, family: Family) -> None:
    """Make the tokenizer fill texts up as the model's own does: with its token for that, on its side."""
    vocabulary = _list_vocabulary(read)
    own = read.get("padding")
    own = own if isinstance(own, dict) else {}
    told = tokenizer_config.get("pad_token")
    token = told.get("content") if isinstance(told, Mapping) else told
    token = token if token is not None else own.get("pad_token")
    if token is None and family == "clip":  # CLIP's tokens see only those before them: any will do
        token = next((piece for piece in ("<|endoftext|>", "<pad>", "</s>") if piece in vocabulary), None)
    if not isinstance(token, str) or token not in vocabulary:
        raise ConfigError(
            f"neither {TOKENIZER_CONFIG_NAME} nor tokenizer.json tells the token that texts are filled up with "
            f"({quote_name(token)} is none)."
        )
    side = tokenizer_config.get("padding_side", "right")
    read["padding"] = {
        "strategy": {"Fixed": spec.max_tokens} if spec.is_padded else "BatchLongest",
        "direction": "Left" if side == "left" else "Right",
        "pad_to_multiple_of": None,
        "pad_id": vocabulary[token],
        "pad_type_id": 0,
        "pad_token": token,
    }
    read["truncation"] = None


def _set_lower_case(read: dict[str, Any]) -> None:
    """Lower texts first, unless that is done: SigLIP was trained so, and the files of SigLIP 2 do not tell."""
    own = read.get("normalizer")
    steps = [own] if own else []
    if isinstance(own, dict) and own.get("type") == "Sequence":
        steps = list(own.get("normalizers", []))
    if not any(isinstance(step, dict) and step.get("type") == "Lowercase" for step in steps):
        read["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}


def _check_run(
    model: onnx.ModelProto,
    inputs: Mapping[str, tuple[int, int]],
    spec: TextSpec,
    read: Mapping[str, Any],
    embedding_dim: int,
) -> None:
    """Run the graph on tokens, the last one of the vocabulary among them."""
    last = max(_list_vocabulary(read).values())
    num_tokens = spec.max_tokens if spec.is_padded else 4
    ids = np.minimum(np.arange(2 * num_tokens).reshape(2, num_tokens), last)
    ids[:, -1] = last
    feeds = {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids), TOKEN_TYPES: np.zeros_like(ids)}
    (found,) = run_graph(model, {name: feeds[name] for name in inputs}, [spec.output])
    if found.shape != (2, embedding_dim) or not np.all(np.isfinite(found)):
        raise ConfigError(
            f"its text graph gives numbers of the shape {found.shape} for two texts; expected (2, {embedding_dim}), "
            "all finite, as for two pictures."
        )


def run_graph(model: onnx.ModelProto | Path, inputs: Mapping[str, np.ndarray], outputs: list[str]) -> list[np.ndarray]:
    """Run a published graph once.

    Args:
        model: The graph, or its file.
        inputs: Arrays by the names of its inputs.
        outputs: Names of the outputs that are wanted.

    Raises:
        ConfigError: ONNX Runtime cannot run it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        given = str(model) if isinstance(model, Path) else model.SerializeToString()
        session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        return [np.asarray(array) for array in session.run(outputs, dict(inputs))]
    except Exception as error:  # its exceptions share no public base class
        raise ConfigError(f"ONNX Runtime cannot run its graph ({quote_name(first_line(error))}).") from error
