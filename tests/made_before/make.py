"""Make the folders beside this file with the code of commit 9b56add: a run, a stopped run, and an index.

``PYTHONPATH=CHECKOUT_OF_9b56add/src:FOLDER_OF_THIS_FILE python make.py``
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from backbone import NAME  # registers it with timm
from PIL import Image
from safetensors.torch import save_file

import vitrieve
from vitrieve.config import ModelConfig
from vitrieve.model.encoder import build_encoder
from vitrieve.training import loop

HERE = Path(__file__).parent
SETTINGS = {
    "model": {"backbone": NAME, "weights": HERE / "weights.safetensors", "image_size": 32},
    "objective": {"koleo_weight": 0.3, "contrastive_weight": 1.0, "memory_fraction": 0.5},
    "num_steps": 6,
    "checkpoint_every": 2,
    "batch_size": 6,
    "num_threads": 1,
    "holdout": False,
    "report": False,
}


def make_photographs() -> None:
    generator = np.random.default_rng(0)
    for label in range(10):
        folder = HERE / "photographs" / f"class{label}"
        folder.mkdir(parents=True)
        color = generator.integers(0, 200, 3)
        for copy in range(3):
            pixels = (color + generator.integers(0, 56, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{copy}.png")


def main() -> None:
    make_photographs()
    torch.manual_seed(0)
    encoder = build_encoder(ModelConfig(backbone=NAME, image_size=32), is_pretrained=False)
    save_file(encoder.backbone.state_dict(), HERE / "weights.safetensors")
    run = vitrieve.train(HERE / "photographs", "small", HERE / "run", **SETTINGS)

    steps = 0
    train_step = loop.train_step

    def stop_after_five(*given: object, **options: object) -> object:
        nonlocal steps
        steps += 1
        if steps == 6:
            raise KeyboardInterrupt
        return train_step(*given, **options)

    loop.train_step = stop_after_five
    with contextlib.suppress(KeyboardInterrupt):
        vitrieve.train(HERE / "photographs", "small", HERE / "stopped", **SETTINGS)
    vitrieve.sync(HERE / "photographs", HERE / "index", run.encoder, store="exact")
    picture = HERE / "photographs" / "class9" / "2.png"
    with vitrieve.Searcher.open(HERE / "index", run.encoder) as searcher:
        found = searcher.search(picture, k=5)
    answers = {
        "fingerprint": run.encoder.fingerprint,
        "vector": run.encoder.encode(picture).tolist(),
        "metrics": vitrieve.evaluate(HERE / "run", HERE / "photographs").results[0].metrics,
        "found": [[result.image_id, result.score] for result in found],
    }
    (HERE / "answers.json").write_text(json.dumps(answers, indent=1) + "\n")
    for name in ("run/state", "run/tensorboard", "stopped/tensorboard"):  # nobody asks for them
        shutil.rmtree(HERE / name)
    (HERE / "stopped/state/step_0000004.safetensors").unlink()


if __name__ == "__main__":
    main()
