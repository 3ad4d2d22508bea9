"""``MtebEncoder``: an encoder as the benchmark ``mteb`` takes one, whose part for pictures is MIEB.

``mteb`` reads its own data sets and computes its own figures; this class only encodes for it, and needs neither it nor
torch. With version 2.26: ``mteb.evaluate(MtebEncoder("runs/mine"), mteb.get_tasks(tasks=[...]))``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from importlib import import_module
from typing import Any, cast

import numpy as np

from vitrieve import __version__
from vitrieve.errors import ConfigError
from vitrieve.model.hub import is_hub_name, parse_hub_name
from vitrieve.progress import track
from vitrieve.runtime.device import choosing_gpu
from vitrieve.runtime.encoder import Encoder, load_encoder


class MtebEncoder:
    """An encoder with the methods of mteb's ``EncoderProtocol``.

    Args:
        model_name: A run, an encoder's folder, a weights name, or ``hf:OWNER/NAME``, as ``load_encoder`` takes it; or
            an encoder that is loaded already.
        revision: A branch, a tag or a commit of a repository of the hub; None: what the name says.
        device: ``cpu``, ``cuda``, or one of several GPUs by its number, ``cuda:1``; None: on a GPU where torch sees
            one.
        options: Further arguments of ``load_encoder``: ``engine``, ``precision``, ``image_size``, ``num_threads``.

    Raises:
        ConfigError: A revision of something that is no repository of the hub, a device that is none, or not here, or
            any of the others beside an encoder that is loaded already.
        VitrieveError: As ``load_encoder``.
    """

    def __init__(
        self, model_name: str | Encoder, revision: str | None = None, *, device: str | None = None, **options: Any
    ) -> None:
        if isinstance(model_name, Encoder):
            given = [name for name, value in {"revision": revision, "device": device}.items() if value is not None]
            if given or options:
                raise ConfigError(
                    f"{', '.join([*given, *options])}: nothing can be chosen for an encoder that is loaded already; "
                    "choose it in load_encoder, or give the name of the encoder."
                )
            self.encoder = model_name
            return
        name = str(model_name)
        if revision is not None:
            if not is_hub_name(name):
                raise ConfigError(f"{name} has no revisions: only a repository of the hub (hf:OWNER/NAME) has.")
            name = f"{parse_hub_name(name.partition('@')[0])}@{revision}"
        kind, _, number = (device or "auto").partition(":")
        if re.fullmatch("auto|cpu(:0)?|cuda(:[0-9]+)?", device or "auto") is None:
            raise ConfigError(f"device {device!r} is none that vitrieve computes on; give cpu, cuda or cuda:1.")
        with choosing_gpu(int(number)) if kind == "cuda" and number else nullcontext():
            self.encoder = load_encoder(name, device=cast(Any, kind), **options)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Encode what mteb's loader gives: pictures, or texts where the encoder has a text part.

        Args:
            inputs: Batches with pictures under ``image`` or texts under ``text``.
            task_metadata: Not read, and so are ``hf_split``, ``hf_subset`` and ``prompt_type``: queries and gallery are
                encoded alike, without prompts.
            hf_split: Not read.
            hf_subset: Not read.
            prompt_type: Not read.
            kwargs: ``show_progress_bar`` is read; the batch size is the loader's.

        Returns:
            ``(N, E)`` float32, rows of unit length, in order.

        Raises:
            ConfigError: A batch with neither, with pictures and texts of one item, or texts for an encoder of pictures.
            DecodeError: A picture cannot be decoded.
        """
        is_shown = bool(kwargs.get("show_progress_bar", True))
        parts = [self._encode_batch(batch) for batch in track(inputs, "encode", is_shown=is_shown)]
        return np.concatenate([np.empty((0, self.encoder.embedding_dim), np.float32), *parts])

    def _encode_batch(self, batch: Mapping[str, Any]) -> np.ndarray:
        pictures, texts = batch.get("image"), batch.get("text")
        if pictures is not None and texts is not None:
            raise ConfigError(
                "this task has items of a picture with a text, which an encoder of one vector for each does not "
                "combine; choose tasks of pictures (category i2i), or of both apart (t2i, i2t)."
            )
        if pictures is not None:
            return self.encoder.encode(list(pictures))
        if texts is not None:
            return self.encoder.encode_text(list(texts))
        raise ConfigError(f"this task has {', '.join(sorted(batch)) or 'nothing'}; expected pictures or texts.")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Compare embeddings by the cosine, ``(N, M)`` float32 for ``(N, E)`` and ``(M, E)``, or one of them."""
        rows, others = np.atleast_2d(_to_array(embeddings1)), np.atleast_2d(_to_array(embeddings2))
        return np.asarray(rows @ others.T)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Compare embeddings row by row by the cosine, ``(N,)`` float32 for two of ``(N, E)``."""
        return np.asarray((_to_array(embeddings1) * _to_array(embeddings2)).sum(axis=-1))

    @property
    def mteb_model_meta(self) -> Any:
        """Return what mteb notes beside the figures: the name, the commit or the fingerprint, and the width.

        Raises:
            ConfigError: mteb is not installed.
        """
        try:
            meta: Any = import_module("mteb.models.model_meta")
        except ModuleNotFoundError:
            raise ConfigError("mteb is not installed: pip install 'mteb[image]'.") from None
        encoder = self.encoder
        hub = parse_hub_name(encoder.source) if is_hub_name(encoder.source) else None
        return meta.ModelMeta(
            loader=type(self),
            name=hub.repository if hub else f"vitrieve/{encoder.name}",
            revision=hub.revision if hub and hub.revision else encoder.fingerprint,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=encoder.embedding_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=[],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["image"] if encoder.text_part is None else ["image", "text"],
            experiment_kwargs={
                "vitrieve": __version__,
                "image_size": encoder.preprocessing.image_size,
                "engine": encoder.engine,
                "precision": encoder.precision,
            },
        )


def _to_array(embeddings: Any) -> np.ndarray:
    """Take NumPy's arrays and torch's tensors of the CPU."""
    return np.asarray(embeddings, dtype=np.float32)
