"""A task of mteb made of pictures on disk, in a process of its own: mteb loads long, and warns of its libraries.

``python mteb_task.py ENCODER PICTURES SKIP TEXTS``: PICTURES has folders of classes; it prints JSON.
"""

import json
import sys
from pathlib import Path

import mteb
from datasets import Dataset, Features, Image, Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import EncoderProtocol

from vitrieve import MtebEncoder

encoder, pictures, skips, texts = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "skip", sys.argv[4:]


class LocalTask(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="LocalI2IRetrieval",
        description="Pictures of this machine.",
        dataset={"path": "none/none", "revision": "none"},
        type="Any2AnyRetrieval",
        category="t2i" if texts else "i2i",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_1",
        modalities=["text", "image"] if texts else ["image"],
    )
    skip_first_result = skips

    def load_data(self, num_proc=None, **kwargs):
        paths = sorted(path for path in pictures.rglob("*") if path.is_file())
        names = [str(path.relative_to(pictures)) for path in paths]
        features = Features({"id": Value("string"), "image": Image()})
        gallery = Dataset.from_dict({"id": names, "image": [str(path) for path in paths]}, features=features)
        queries = Dataset.from_dict({"id": texts, "text": texts}) if texts else gallery
        relevant = {
            query: {name: 1 for name in names if Path(name).parts[0] == Path(query).parts[0]} for query in queries["id"]
        }
        self.dataset = {
            "default": {"test": {"queries": queries, "corpus": gallery, "relevant_docs": relevant, "top_ranked": None}}
        }
        self.data_loaded = True


model = MtebEncoder(str(encoder), device="cpu", engine="torch", precision="fp32", num_threads=1)
assert isinstance(model, EncoderProtocol)
result = mteb.evaluate(model, LocalTask(), cache=None, show_progress_bar=False)
(scores,) = result.task_results[0].scores["test"]
print(json.dumps({"scores": {k: v for k, v in scores.items() if isinstance(v, float)}, "name": result.model_name}))
