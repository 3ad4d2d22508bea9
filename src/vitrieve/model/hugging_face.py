"""An encoder as a folder that sentence-transformers, transformers and timm open, without vitrieve.

config.json             timm's model with the settings of its pool, as transformers (``timm_wrapper``) and timm read it
model.safetensors       weights of the backbone, by timm's names
preprocessor_config.json  how a picture is prepared
modules.json            the steps for sentence-transformers: the model, the norm and linear layer of head and reduction
                        (``1_LayerNorm``, ``1_Dense``, …), and the normalization (``2_Normalize``)
modeling_vitrieve.py    the pooling, only where timm has it not: GeM and R-MAC; whoever loads it must trust the code

In a repository that holds an encoder of vitrieve, the model's files are in the folder ``MODEL_FOLDER``; the steps and
the code stay above, where the libraries look for them.

timm resizes pictures in transformers, too, as ``data/preprocess.py`` does: pixels are equal bit for bit.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from vitrieve.data.preprocess import Preprocessing
from vitrieve.errors import ConfigError
from vitrieve.model.artifact import ONE_SCALE, WEIGHTS_NAME
from vitrieve.model.conversion import CONFIG_NAME
from vitrieve.model.encoder import ImageEncoder
from vitrieve.model.export import compare_rows, require_equal
from vitrieve.model.pooling import (
    GEM_P,
    GEM_P_MAX,
    GEM_VALUE_MIN,
    NUM_RMAC_SCALES,
    RMAC_NORM_MIN,
    list_rmac_regions,
    pool_gem,
    pool_rmac,
)
from vitrieve.model.preprocessor import PREPROCESSOR_NAME, describe_preprocessing
from vitrieve.model.prompts import count_prompts
from vitrieve.writing import write_bytes_durably, write_text_durably

CODE_NAME = "modeling_vitrieve.py"
MODEL_FOLDER = "transformers"
_MODULES = "sentence_transformers.base.modules"
_LAYER_NORM = "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm"
_NORMALIZE = "sentence_transformers.sentence_transformer.modules.normalize.Normalize"
"""Its place in version 5.4, under which 6.2 finds it, too."""
_POOLINGS_WITH_CODE = ("gem", "rmac")


@dataclass(frozen=True, kw_only=True)
class WrittenModel:
    """What a folder for other libraries holds.

    Attributes:
        cosine: Smallest cosine between the encoder's embeddings and those computed as the folder says.
        needs_code: The pooling is code in the folder, which who loads it must trust.
        has_norm: The features are standardized before the linear layer.
        dense: Folder of the linear layer; None: there is none.
    """

    cosine: float
    needs_code: bool
    has_norm: bool
    dense: str | None


def write_hugging_face(encoder: ImageEncoder, folder: Path, *, model_folder: str = "") -> WrittenModel:
    """Write an encoder for sentence-transformers, transformers and timm; neither of the first two is needed for it.

    Args:
        encoder: Encoder of one scale, without prompts, in evaluation mode.
        folder: Existing folder to write to.
        model_folder: Name of the folder in it for the files of the model; none: they are not apart.

    Returns:
        What was written, compared with the encoder on noise.

    Raises:
        ConfigError: The encoder combines several scales, has prompts, or is pooled in a way that neither timm nor the
            code of this file has.
        ArtifactError: What was written computes something else.
    """
    if encoder.spec.scales != ONE_SCALE or count_prompts(encoder.backbone.state_dict()):
        what = "tokens of prompt tuning" if encoder.spec.scales == ONE_SCALE else "several scales"
        raise ConfigError(f"timm and transformers have no {what}; export this encoder as onnx or torch-export.")
    size = encoder.spec.preprocessing.image_size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, pooled = encoder(pixels), encoder.pool_features(pixels)
        options = _find_options(encoder, pixels, pooled)
        linear = _combine_linear(encoder)
        cosine = compare_rows(expected.numpy(), _finish(pooled, encoder.spec.head_norm, linear).numpy())
    require_equal(
        cosine,
        f"what would be written of {encoder.spec.backbone}",
        advice="Export it as onnx or torch-export.",
        other="the encoder",
    )
    needs_code = options is None
    home = folder / model_folder
    home.mkdir(exist_ok=True)
    _write_json(home / CONFIG_NAME, _describe_model(encoder, options, pooled.shape[1]))
    _write_json(
        home / PREPROCESSOR_NAME,
        {**describe_preprocessing(encoder.spec.preprocessing), "image_processor_type": "TimmWrapperImageProcessor"},
    )
    _write_tensors(home / WEIGHTS_NAME, encoder.backbone.state_dict())
    if needs_code:
        write_text_durably(folder / CODE_NAME, _format_code())
    dense = _write_modules(encoder, folder, model_folder, pooled.shape[1], linear)
    return WrittenModel(cosine=cosine, needs_code=needs_code, has_norm=encoder.spec.head_norm, dense=dense)


def _find_options(encoder: ImageEncoder, pixels: Tensor, pooled: Tensor) -> dict[str, Any] | None:
    """Find the settings with which timm's own model pools as the encoder does; None: the pooling is written as code."""
    import timm

    spec = encoder.spec
    if spec.pooling in _POOLINGS_WITH_CODE:
        return None
    described = timm.get_pretrained_cfg(spec.architecture)
    is_sized = described is not None and described.fixed_input_size
    size: dict[str, Any] = {"img_size": spec.preprocessing.image_size} if is_sized else {}
    name = {"cls": "token", "average": "avg", "max": "max"}.get(spec.pooling)
    # Of a transformer that averages timm moves the last norm behind the pool, unless it is told not to.
    tried: list[dict[str, Any]] = [{}]
    tried += [{"global_pool": name, "fc_norm": False}, {"global_pool": name, "use_fc_norm": False}] if name else []
    tried += [{"global_pool": name}] if name else []
    for options in tried:
        try:
            model = timm.create_model(spec.architecture, pretrained=False, num_classes=0, **size, **options).eval()
            model.load_state_dict(encoder.backbone.state_dict())
            found = cast(Any, model).forward_head(cast(Any, model).forward_features(pixels))
        except Exception:  # each family raises its own for what it has not
            continue
        if found.shape == pooled.shape and torch.allclose(found, pooled, rtol=1e-4, atol=1e-5):
            return {**size, **options}
    raise ConfigError(
        f"timm's {spec.architecture} has no setting that pools by {spec.pooling} as this encoder does; export it as "
        "onnx or torch-export."
    )


def _combine_linear(encoder: ImageEncoder) -> tuple[Tensor, Tensor] | None:
    """Multiply the head's linear layer and the reduction to one, in double precision; None: there is neither."""
    layer, reduction = getattr(encoder.head, "linear", None), encoder.reduction
    if layer is None and reduction is None:
        return None
    if reduction is None:
        return layer.weight.detach(), layer.bias.detach()  # type: ignore[union-attr]
    components, mean = reduction.components.double(), reduction.mean.double()
    if layer is None:
        return components.float(), (-components @ mean).float()
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    return (components @ weight).float(), (components @ (bias - mean)).float()


def _finish(pooled: Tensor, has_norm: bool, linear: tuple[Tensor, Tensor] | None) -> Tensor:
    """Compute what the modules behind the model do."""
    features = F.layer_norm(pooled, pooled.shape[1:]) if has_norm else pooled
    return F.normalize(features if linear is None else F.linear(features, *linear), dim=1)


def _describe_model(encoder: ImageEncoder, options: Mapping[str, Any] | None, width: int) -> dict[str, Any]:
    spec = encoder.spec
    preprocessing = spec.preprocessing
    size = preprocessing.image_size
    pretrained = {
        "architecture": spec.architecture,
        "input_size": [3, size, size],
        "interpolation": preprocessing.interpolation,
        "crop_pct": find_crop_share(preprocessing),
        "crop_mode": "center" if preprocessing.framing == "crop" else "squash",
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": 0,
    }
    described = {
        "architecture": spec.architecture,
        "num_classes": 0,
        "num_features": width,
        "label_names": [],
        "dtype": "float32",
        "pretrained_cfg": pretrained,
    }
    if options is not None:
        return {
            "model_type": "timm_wrapper",
            "architectures": ["TimmWrapperModel"],
            **described,
            "model_args": dict(options),
        }
    layout = encoder.layout
    is_sized = cast(Any, encoder.backbone).pretrained_cfg.get("fixed_input_size", False)
    module = CODE_NAME.removesuffix(".py")
    return {
        "model_type": "vitrieve",
        "architectures": ["VitrieveModel"],
        "auto_map": {"AutoConfig": f"{module}.VitrieveConfig", "AutoModel": f"{module}.VitrieveModel"},
        "image_processor_type": "TimmWrapperImageProcessor",
        **described,
        "model_args": {"img_size": size} if is_sized else {},
        "pooling": spec.pooling,
        "pooling_exponent": encoder.get_exponent(),
        "num_prefix_tokens": layout.num_prefix_tokens,
        "is_channels_last": getattr(encoder.backbone, "output_fmt", "NCHW") == "NHWC",
    }


def find_crop_share(preprocessing: Preprocessing) -> float:
    """Return the share of the side that is cut out, from which timm computes the side before the crop, rounded down."""
    side, resized = preprocessing.image_size, preprocessing.resize_size
    share = side / resized
    return share if math.floor(side / share) == resized else side / (resized + 0.5)


def _write_modules(
    encoder: ImageEncoder, folder: Path, model_folder: str, width: int, linear: tuple[Tensor, Tensor] | None
) -> str | None:
    """Write the steps for sentence-transformers; return the folder of the linear layer."""
    steps = [(model_folder, f"{_MODULES}.transformer.Transformer")]

    def add(kind: str, name: str, config: Mapping[str, Any]) -> Path:
        steps.append((f"{len(steps)}_{name}", kind))
        target = folder / steps[-1][0]
        target.mkdir()
        _write_json(target / CONFIG_NAME, config)
        return target

    if encoder.spec.head_norm:
        target = add(_LAYER_NORM, "LayerNorm", {"dimension": width})
        _write_tensors(target / WEIGHTS_NAME, {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)})
    dense = None
    ends = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
    if linear is not None:
        sizes = {"in_features": linear[0].shape[1], "out_features": linear[0].shape[0], "bias": True}
        config = {**sizes, "activation_function": "torch.nn.modules.linear.Identity", **ends}
        target = add(f"{_MODULES}.dense.Dense", "Dense", config)
        _write_tensors(target / WEIGHTS_NAME, {"linear.weight": linear[0], "linear.bias": linear[1]})
        dense = target.name
    add(_NORMALIZE, "Normalize", ends)
    modules = [{"idx": rank, "name": str(rank), "path": path, "type": kind} for rank, (path, kind) in enumerate(steps)]
    write_text_durably(folder / "modules.json", json.dumps(modules, indent=2) + "\n")
    _write_json(
        folder / model_folder / "sentence_bert_config.json",
        {
            "transformer_task": "feature-extraction",
            "modality_config": {"image": {"method": "forward", "method_output_name": "pooler_output"}},
            "module_output_name": "sentence_embedding",
        },
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine", "prompts": {}},
    )
    return dense


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_text_durably(path, json.dumps(values, indent=2) + "\n")


def _write_tensors(path: Path, states: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in states.items()}
    write_bytes_durably(path, save(tensors, {"format": "pt"}))


def _format_code() -> str:
    """Write the poolings that timm has not as a file for transformers, from the source of ``pooling.py``."""
    functions = [inspect.getsource(function).rstrip() for function in (pool_gem, list_rmac_regions, pool_rmac)]
    constants = {
        "GEM_P": GEM_P,
        "GEM_P_MAX": GEM_P_MAX,
        "GEM_VALUE_MIN": GEM_VALUE_MIN,
        "NUM_RMAC_SCALES": NUM_RMAC_SCALES,
        "RMAC_NORM_MIN": RMAC_NORM_MIN,
    }
    named = "\n".join(f"{name} = {value}" for name, value in constants.items())
    return _CODE.format(constants=named, functions="\n\n\n".join(functions))


_CODE = '''"""A model of timm with a pooling that timm has not, as vitrieve wrote it; it needs timm and transformers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TimmWrapperConfig, TimmWrapperModel
from transformers.models.timm_wrapper.modeling_timm_wrapper import TimmWrapperModelOutput

{constants}


{functions}


class VitrieveConfig(TimmWrapperConfig):
    """The configuration: that of timm's model, and of the pooling."""

    model_type = "vitrieve"


class VitrieveModel(TimmWrapperModel):
    """Prepared pictures to features, ``pooler_output`` ``(B, D)``."""

    config_class = VitrieveConfig

    def forward(self, pixel_values: Tensor, **kwargs) -> TimmWrapperModelOutput:
        """Compute the features."""
        features = self.timm_model.forward_features(pixel_values.to(self.device, self.dtype))
        tokens = features
        if features.ndim == 4:
            tokens = features.flatten(1, 2) if self.config.is_channels_last else features.flatten(2).transpose(1, 2)
        patches = tokens[:, self.config.num_prefix_tokens :].float()
        is_rmac = self.config.pooling == "rmac"
        pooled = pool_rmac(patches) if is_rmac else pool_gem(patches, self.config.pooling_exponent)
        return TimmWrapperModelOutput(last_hidden_state=features, pooler_output=pooled)
'''
