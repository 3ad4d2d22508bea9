"""Texts become vectors of the image space, with ONNX Runtime and the package ``tokenizers``; no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrieve.errors import ArtifactError, ConfigError
from vitrieve.model.text import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPES, TextFiles, TextMap, read_text_part
from vitrieve.quoting import quote_name
from vitrieve.similarity import FloatArray, normalize

if TYPE_CHECKING:
    from tokenizers import Encoding

BATCH_SIZE = 32
"""Texts in one forward pass: a longer batch waits for its longest text."""
UNKNOWN_TOKENS = ("[UNK]", "<unk>")
MAX_UNKNOWN_SHARE = 0.5
"""Texts of which a larger share of tokens is unknown say nothing to a text encoder."""


class TextEncoder:
    """Turns texts into vectors.

    Args:
        files: The text encoder.
        text_map: The map into the image space; None: the vectors stay those of the text encoder.
        num_threads: CPU threads; None: one for each core.
        is_cut: Whether a text that is too long is read up to where it becomes so; otherwise it is refused.

    Raises:
        ConfigError: The package ``tokenizers`` is not installed.
        ArtifactError: The graph or the tokenizer cannot be loaded.
    """

    def __init__(
        self,
        files: TextFiles,
        text_map: TextMap | None = None,
        *,
        num_threads: int | None = None,
        is_cut: bool = False,
    ) -> None:
        if find_spec("tokenizers") is None:
            raise ConfigError("searching by words needs the package tokenizers: pip install 'vitrieve[words]'.")
        import onnxruntime
        from tokenizers import Tokenizer

        self.spec = files.spec
        self._map = text_map
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if num_threads is not None:
            options.intra_op_num_threads = num_threads
        try:
            self._session = onnxruntime.InferenceSession(str(files.graph), options, providers=["CPUExecutionProvider"])
            self._tokenizer = Tokenizer.from_file(str(files.tokenizer))
        except Exception as error:  # their exceptions share no public base class
            raise ArtifactError(
                f"the text encoder {files.graph.parent} cannot be loaded ({error}); copy it again."
            ) from None
        self._inputs = {given.name for given in self._session.get_inputs()}
        padding = self._tokenizer.padding or {}
        self._tokenizer.enable_padding(
            direction=padding.get("direction", "right"),
            pad_id=padding.get("pad_id", 0),
            pad_token=padding.get("pad_token", "[PAD]"),
            length=self.spec.max_tokens if self.spec.is_padded else None,
        )
        if is_cut:
            self._tokenizer.enable_truncation(self.spec.max_tokens)
        else:
            self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Turn texts into vectors.

        Args:
            texts: Any number, at least one.

        Returns:
            ``(N, E)`` float32 of unit length, in order; ``(N, D)`` of a text encoder that needs a map and has none.

        Raises:
            ConfigError: A text is too long, or in a script that the text encoder does not know.
        """
        starts = range(0, len(texts), BATCH_SIZE)
        return np.concatenate([self._encode(texts[start : start + BATCH_SIZE]) for start in starts])

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        encodings = self._tokenizer.encode_batch(list(texts))
        for text, encoding in zip(texts, encodings, strict=True):
            self._check(text, encoding)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        seen = np.ones_like(mask) if self.spec.is_padded else mask
        feeds = {INPUT_IDS: ids, ATTENTION_MASK: seen, TOKEN_TYPES: np.zeros_like(ids)}
        wanted = [self.spec.output] if self.spec.output else None
        tokens = self._session.run(wanted, {name: feeds[name] for name in self._inputs})[0]  # (B, T, D)
        if self.spec.pooling == "native":
            pooled = tokens  # (B, D)
        elif self.spec.pooling == "first":
            pooled = tokens[:, 0]
        else:
            weights = mask[:, :, None].astype(np.float32)
            pooled = (tokens * weights).sum(axis=1) / weights.sum(axis=1)
        vectors = normalize(pooled)
        return vectors if self._map is None else normalize(vectors @ self._map.weight.T + self._map.bias)

    def _check(self, text: str, encoding: Encoding) -> None:
        if not text.strip():
            raise ConfigError("the text is empty; say in words what to look for.")
        num_tokens = sum(encoding.attention_mask)
        if num_tokens > self.spec.max_tokens:
            raise ConfigError(
                f"the text of {len(text):,} characters is {num_tokens:,} tokens long; the text encoder "
                f"{self.spec.name} reads at most {self.spec.max_tokens}: say it in fewer words."
            )
        if not self._are_known(encoding):
            raise ConfigError(
                f"the text encoder {self.spec.name} does not know the script of {quote_name(text[:60])}; write it in a "
                "language that it was trained on, or align the encoder with a text encoder for more languages."
            )

    def is_known(self, text: str) -> bool:
        """Say whether a text has enough words, or parts of words, that the text encoder knows."""
        (encoding,) = self._tokenizer.encode_batch([text])
        return self._are_known(encoding)

    def _are_known(self, encoding: Encoding) -> bool:
        tokens = [token for token, is_seen in zip(encoding.tokens, encoding.attention_mask, strict=True) if is_seen]
        num_own = len(tokens) - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        return num_own > 0 and sum(token in UNKNOWN_TOKENS for token in tokens) <= MAX_UNKNOWN_SHARE * num_own


def load_text_encoder(part: Path, *, fingerprint: str, num_threads: int | None = None) -> TextEncoder:
    """Load the text part of an encoder's folder.

    Args:
        part: Its folder.
        fingerprint: Fingerprint of the image encoder.
        num_threads: CPU threads; None: all cores.

    Raises:
        ArtifactError: It is damaged.
        FingerprintError: It belongs to another image encoder.
        ConfigError: The package ``tokenizers`` is not installed.
    """
    files, text_map = read_text_part(part, fingerprint=fingerprint)
    return TextEncoder(files, text_map, num_threads=num_threads)
