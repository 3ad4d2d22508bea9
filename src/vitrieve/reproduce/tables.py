"""Tables 2 to 9 of the paper on the paper's data."""

from __future__ import annotations

from dataclasses import replace

from vitrieve.reproduce.methods import (
    CATEGORY,
    CATEGORY_KOLEO,
    CONVNET_NOTE,
    DEIT_B_DISTILLED,
    DEIT_S,
    DEIT_S_DISTILLED,
    R50,
    R50_FLAGS,
    R101,
    RECIPE_KOLEO,
    SETTINGS_NOTE,
    frozen_row,
    grid_rows,
    irt_training,
    trained_row,
)
from vitrieve.reproduce.published import KOLEO_WEIGHTS, MARGINS, TABLE2, TABLE3, TABLE4, TABLE6, TABLE7, TABLE8, TABLE9
from vitrieve.reproduce.rows import Plan, Training


def build_table2() -> Plan:
    """Build the plan of Table 2."""
    rows = []
    for source in CATEGORY:
        proxynca = Training(recipe=f"proxynca_pp_{source}", source=source)
        distilled = irt_training(source, CATEGORY_KOLEO, flags=("--model.backbone", DEIT_S_DISTILLED))
        irt_r = irt_training(source, CATEGORY_KOLEO)
        if source != "cub200":
            xbm = Training(recipe=f"xbm_{source}", source=source)
            rows.append(trained_row("xbm_128", "XBM, R50, 128 d", xbm, TABLE2["xbm_128"]))
        narrow = replace(proxynca, flags=("--model.head-dim", "512"))
        short = trained_row("irt_r_128", "IRT_R, DeiT-S, 128 d", irt_r, TABLE2["irt_r_128"])
        rows += [
            trained_row("proxynca_pp_512", "ProxyNCA++, R50, 512 d", narrow, TABLE2["proxynca_pp_512"]),
            trained_row("proxynca_pp_2048", "ProxyNCA++, R50, 2048 d", proxynca, TABLE2["proxynca_pp_2048"]),
            replace(short, embedding_dim=128),
            trained_row("irt_r_384", "IRT_R, DeiT-S, 384 d", irt_r, TABLE2["irt_r_384"]),
            trained_row("irt_r_distilled_384", "IRT_R, DeiT-S†, 384 d", distilled, TABLE2["irt_r_distilled_384"]),
        ]
    return Plan(
        name="table2",
        title="Category-level retrieval beside other methods",
        claim="IRT_R with DeiT-S is ahead of ResNet-50 methods on all three benchmarks.",
        rows=tuple(rows),
        notes=(
            SETTINGS_NOTE,
            "The figures of XBM and ProxyNCA++ are those of their authors; the recipes' docstrings say what differs.",
        ),
    )


def build_table3() -> Plan:
    """Build the plan of Table 3."""
    rows = []
    for source in (*CATEGORY, "sfm120k"):
        koleo = RECIPE_KOLEO.get(source, CATEGORY_KOLEO)
        rows += [
            frozen_row("irt_o", "IRT_O, as it is", source, DEIT_S, TABLE3["irt_o"]),
            trained_row("irt_l", "IRT_L", irt_training(source, 0), TABLE3["irt_l"]),
            trained_row("irt_r", "IRT_R", irt_training(source, koleo), TABLE3["irt_r"]),
        ]
    return Plan(
        name="table3",
        title="Supervision: off the shelf, fine-tuned, fine-tuned with the entropy regulariser (DeiT-S, 224 px)",
        claim="Fine-tuning gains much everywhere (O to L), the regulariser a little more (L to R).",
        rows=tuple(rows),
        notes=(SETTINGS_NOTE,),
    )


OBJECTIVES = {
    "nsoftmax": ("Normalized softmax", Training(recipe="nsoftmax_sop", source="sop")),
    "snca": ("Scalable NCA", Training(recipe="snca_sop", source="sop")),
    "contrastive": ("Contrastive (IRT_L)", irt_training("sop", 0)),
}


def build_table4() -> Plan:
    """Build the plan of Table 4."""
    rows = []
    for backbone, flags in (("r50", R50_FLAGS), ("deit_s", ())):
        for name, (label, training) in OBJECTIVES.items():
            key = f"{name}-{backbone}"
            changed = replace(training, flags=(*flags, *training.flags))
            title = f"{label}, {'R50' if flags else 'DeiT-S'}"
            rows.append(trained_row(key, title, changed, TABLE4[key], is_alone=True))
    return Plan(
        name="table4",
        title="Objectives, on SOP",
        claim="The contrastive loss with a memory is the best of the three for both backbones, and DeiT-S gains more.",
        rows=tuple(rows),
        notes=(SETTINGS_NOTE, CONVNET_NOTE),
    )


def build_table5() -> Plan:
    """Build the plan of Table 5."""
    return Plan(
        name="table5",
        title="Margin β and weight of the regulariser λ, on SOP",
        claim="The regulariser helps where the margin is not too small; training collapses where β and λ are both "
        "high, with ResNet-50 sooner than with DeiT-S.",
        rows=tuple(row for backbone in ("r50", "deit_s") for row in grid_rows(backbone, MARGINS, KOLEO_WEIGHTS)),
        notes=(SETTINGS_NOTE, CONVNET_NOTE),
        chart="sweep",
        x_name="λ",
    )


def build_table6() -> Plan:
    """Build the plan of Table 6."""
    rows = []
    for weight in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        name = f"l{weight:g}"
        row = trained_row(name, f"λ {weight:g}", irt_training("sfm120k", weight), TABLE6[name], is_alone=True)
        rows.append(replace(row, series="DeiT-S", x=weight))
    return Plan(
        name="table6",
        title="Weight of the regulariser for particular objects (DeiT-S, 224 px)",
        claim="λ of 3 to 4 is best; 5 is too much.",
        rows=tuple(rows),
        notes=(SETTINGS_NOTE,),
        chart="sweep",
        x_name="λ",
    )


_BACKBONES7 = {
    "r50_gem": ("R50, GeM", R50, "gem"),
    "r50_rmac": ("R50, R-MAC", R50, "rmac"),
    "r101_gem": ("R101, GeM", R101, "gem"),
    "r101_rmac": ("R101, R-MAC", R101, "rmac"),
    "deit_s_distilled": ("DeiT-S†", DEIT_S_DISTILLED, ""),
    "deit_b_distilled": ("DeiT-B†", "", ""),
}


def _flags7(backbone: str, image_size: int) -> tuple[str, ...]:
    _, weights, pooling = _BACKBONES7[backbone]
    flags = ["--model.backbone", weights or DEIT_B_DISTILLED[image_size]]
    flags += ["--model.pooling", pooling] if pooling else []
    return (*flags, *(() if image_size == 224 else ("--image-size", f"{image_size}")))


def build_table7() -> Plan:
    """Build the plan of Table 7."""
    rows = []
    for name, published in TABLE7.items():
        backbone, size, dims = name.split("-")
        training = irt_training("sfm120k", 0, flags=_flags7(backbone, int(size)))
        row = trained_row(name, _BACKBONES7[backbone][0], training, published, is_alone=True)
        group = f"{size} px, {'128 dimensions' if dims == '128' else 'all dimensions'}"
        rows.append(replace(row, group=group, embedding_dim=128 if dims == "128" else None))
    return Plan(
        name="table7",
        title="Backbones, resolution and dimension for particular objects (IRT_L)",
        claim="Transformers are ahead of convnets of the same cost, above all with few dimensions.",
        rows=tuple(rows),
        notes=(SETTINGS_NOTE, "128 dimensions come from a PCA fitted on the training images of SfM-120k."),
    )


def build_table8() -> Plan:
    """Build the plan of Table 8."""
    rows = []
    for name, published in TABLE8.items():
        method, dims = name.split("-")
        koleo = RECIPE_KOLEO["sfm120k"] if method == "irt_r" else 0
        training = irt_training("sfm120k", koleo, flags=_flags7("deit_b_distilled", 384))
        row = trained_row(name, f"{method.upper()}, {dims} d", training, published, is_alone=True)
        rows.append(replace(row, embedding_dim=128 if dims == "128" else None))
    return Plan(
        name="table8",
        title="The largest model for particular objects (DeiT-B† at 384 px)",
        claim="The regulariser gains much at 768 dimensions, next to nothing at 128.",
        rows=tuple(rows),
        notes=(SETTINGS_NOTE,),
    )


def build_table9() -> Plan:
    """Build the plan of Table 9."""
    rows = []
    labels = {"average": "Average", "max": "Max", "gem": "GeM", "cls": "CLS token"}
    for source in (*CATEGORY, "sfm120k"):
        for name, label in labels.items():
            # CLS is the recipe's own pooling: without the flag the training is Table 3's, and is run once.
            flags = () if name == "cls" else ("--model.pooling", name)
            rows.append(trained_row(name, label, irt_training(source, 0, flags=flags), TABLE9[name]))
    return Plan(
        name="table9",
        title="Pooling (IRT_L, DeiT-S)",
        claim="The CLS token is as good as average pooling or better, by far for particular objects.",
        rows=tuple(rows),
        notes=(SETTINGS_NOTE, "GeM takes the odd extension of the power, as tokens of a ViT are signed."),
    )
