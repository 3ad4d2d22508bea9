from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation.measured import evaluate_encoder
from vitrieve.data.records import Dataset
from vitrieve.embed.collection import EmbedSettings, embed_collection, embed_images
from vitrieve.embed.embeddings import load_embeddings
from vitrieve.errors import ArtifactError, ConfigError, DataError
from vitrieve.evaluation.metrics import score_queries
from vitrieve.evaluation.revisited import REVISITED_ROLES, revisited_metrics
from vitrieve.evaluation.run import evaluate, name_encoders, run_comparison
from vitrieve.runtime.encoder import Encoder
from vitrieve.similarity import top_k

from .conftest import GridEngine, MakeEncoder

ONE_THREAD = EmbedSettings(num_threads=1)


def engine_of(encoder: Encoder) -> GridEngine:
    assert isinstance(encoder.runner, GridEngine)
    return encoder.runner


def across(dataset: Dataset) -> Dataset:
    """Another protocol of the same source."""
    return dataclasses.replace(dataset, protocol="across_artists", junk_key="artist", ks=(1, 5))


def test_evaluate_encoder_equals_the_metrics_of_its_embeddings(dataset: Dataset, make_encoder: MakeEncoder) -> None:
    encoder = make_encoder("grid")
    result = evaluate_encoder(encoder, dataset, settings=ONE_THREAD)
    embeddings = embed_images(encoder, dataset.split("test"), num_threads=1)
    labels = [record.label for record in embeddings.records]
    assert result.metrics == score_queries(embeddings.vectors, labels).means((1, 2))
    assert (result.num_queries, result.num_skipped_queries, result.num_gallery) == (16, 0, 16)
    assert (result.encoder, result.embedding_dim, result.image_size) == ("grid", 12, 16)


def test_evaluation_result_has_the_promised_json(dataset: Dataset, make_encoder: MakeEncoder) -> None:
    values = evaluate_encoder(make_encoder("grid"), dataset, settings=ONE_THREAD).to_json()
    metrics = ["recall_at_1", "recall_at_2", "r_precision", "map_at_r"]
    counts = ["num_queries", "num_skipped_queries", "num_gallery", "num_unreadable", "embedding_dim", "image_size"]
    assert list(values) == ["encoder", "dataset", "protocol", *counts, *metrics, "intervals", "whole_cut_offs"]
    assert list(values["intervals"]) == metrics
    for name in metrics:
        low, high = values["intervals"][name]
        assert 0 <= low <= values[name] <= high <= 1
    assert json.loads(json.dumps(values)) == values


def test_evaluate_encoder_without_intervals_draws_nothing_and_finds_the_same_figures(
    dataset: Dataset, make_encoder: MakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_intervals = evaluate_encoder(make_encoder("grid"), dataset, settings=ONE_THREAD)
    assert with_intervals.intervals.keys() == with_intervals.metrics.keys()
    monkeypatch.delattr("vitrieve.evaluation.measure.bootstrap_intervals")
    without = evaluate_encoder(make_encoder("grid"), dataset, settings=ONE_THREAD, has_intervals=False)
    assert (without.metrics, without.intervals) == (with_intervals.metrics, {})


def test_evaluate_encoder_counts_unreadable_images(dataset: Dataset, make_encoder: MakeEncoder) -> None:
    dataset.records[0].path.write_bytes(b"no picture")
    settings = dataclasses.replace(ONE_THREAD, max_bad_fraction=0.1)
    result = evaluate_encoder(make_encoder("grid"), dataset, settings=settings)
    assert (result.num_unreadable, result.num_queries, result.num_gallery) == (1, 15, 15)
    with pytest.raises(DataError, match="1 of 16 images"):
        evaluate_encoder(make_encoder("grid"), dataset, settings=ONE_THREAD)


def test_run_comparison_writes_a_result_for_each_encoder_and_protocol(
    dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoders = [make_encoder("coarse", side=1), make_encoder("fine", side=4)]
    results = run_comparison(encoders, [dataset, across(dataset)], tmp_path / "out", settings=ONE_THREAD)
    assert [(one.encoder, one.protocol) for one in results] == [
        ("coarse", "all"),
        ("coarse", "across_artists"),
        ("fine", "all"),
        ("fine", "across_artists"),
    ]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written == {"results": [result.to_json() for result in results]}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.html", "results.json"]
    assert results[0].metrics == evaluate_encoder(encoders[0], dataset, settings=ONE_THREAD).metrics


def test_run_comparison_embeds_an_image_once_for_all_protocols(
    dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoder = make_encoder("grid")
    run_comparison([encoder], [dataset, across(dataset)], tmp_path, settings=ONE_THREAD, is_report=False)
    assert engine_of(encoder).num_seen == 16
    assert not (tmp_path / "report.html").exists()


def test_run_comparison_goes_on_after_an_interruption(
    dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    expected = run_comparison(
        [make_encoder("a", side=1), make_encoder("b", side=2)], [dataset], tmp_path / "whole", settings=ONE_THREAD
    )
    stopped = [make_encoder("a", side=1), make_encoder("b", side=2, stop_after=0)]
    with pytest.raises(KeyboardInterrupt):
        run_comparison(stopped, [dataset], tmp_path / "out", settings=ONE_THREAD)
    resumed = [make_encoder("a", side=1), make_encoder("b", side=2)]
    assert run_comparison(resumed, [dataset], tmp_path / "out", settings=ONE_THREAD) == expected
    assert [engine_of(encoder).num_seen for encoder in resumed] == [0, 16]
    assert not (tmp_path / "out" / "embeddings").exists()


def test_run_comparison_keeps_the_embeddings_of_the_last_encoder(
    dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoders = [make_encoder("a", side=1), make_encoder("b", side=2)]
    out, kept = tmp_path / "out", tmp_path / "out" / "kept"
    for _ in range(2):  # what an interrupted call has kept is replaced
        run_comparison(encoders, [dataset, across(dataset)], out, settings=ONE_THREAD, is_report=False, kept=kept)
    assert sorted(path.name for path in out.iterdir()) == ["kept", "results.json"]
    found, expected = load_embeddings(kept), embed_images(encoders[1], dataset.split("test"), num_threads=1)
    assert found.fingerprint == encoders[1].fingerprint
    assert [record.image_id for record in found.records] == [record.image_id for record in expected.records]
    np.testing.assert_array_equal(found.vectors, expected.vectors)


def test_run_comparison_embeds_again_when_the_images_are_others(
    dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    fewer = dataclasses.replace(dataset, records=dataset.records[:12])
    with pytest.raises(KeyboardInterrupt):
        run_comparison(
            [make_encoder("a", side=1), make_encoder("b", stop_after=0)], [fewer], tmp_path, settings=ONE_THREAD
        )
    encoder = make_encoder("a", side=1)
    (result,) = run_comparison([encoder], [dataset], tmp_path, settings=ONE_THREAD)
    assert (result.num_queries, engine_of(encoder).num_seen) == (16, 16)


def test_trap_an_evaluation_takes_the_place_of_nothing_that_it_reads(
    dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoder = make_encoder("one")
    evaluate(encoder, dataset, tmp_path / "out", report=False)
    settings = EmbedSettings(num_threads=1, max_bad_fraction=0.5)
    embed_collection(encoder, dataset, tmp_path / "out" / "embeddings", settings=settings)
    with pytest.raises(ArtifactError, match=r"holds .*embeddings, which is read"):
        evaluate(encoder, dataset, tmp_path / "out", overwrite=True, embeddings=tmp_path / "out" / "embeddings")
    assert (tmp_path / "out" / "embeddings" / "vectors.npy").exists()


def test_run_comparison_wants_different_names(dataset: Dataset, make_encoder: MakeEncoder, tmp_path: Path) -> None:
    twins = [make_encoder("same", side=1), make_encoder("same", side=2)]
    with pytest.raises(ConfigError, match="a name of its own"):
        run_comparison(twins, [dataset], tmp_path)
    results = run_comparison(twins, [dataset], tmp_path, names=("before", "after"), settings=ONE_THREAD)
    assert [result.encoder for result in results] == ["before", "after"]
    with pytest.raises(ConfigError, match="0 encoders"):
        run_comparison([], [dataset], tmp_path)
    with pytest.raises(ConfigError, match="no data set"):
        run_comparison(twins[:1], [], tmp_path)


def test_name_encoders_uses_sources_where_names_repeat(make_encoder: MakeEncoder) -> None:
    one, other, third = make_encoder("encoder"), make_encoder("encoder"), make_encoder("frozen")
    one, other = dataclasses.replace(one, source="a/encoder"), dataclasses.replace(other, source="b/encoder")
    assert name_encoders([one, other, third]) == ("a/encoder", "b/encoder", "frozen")


@pytest.mark.data
def test_evaluate_encoder_reproduces_the_published_counts_of_grocery(
    grocery_folder: Path, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    from vitrieve.data.sources import read_source

    datasets = [read_source(f"grocery:{grocery_folder}", protocol=p) for p in ("zero_shot", "phone_to_catalogue")]
    encoder = make_encoder("grid")
    zero_shot, catalogue = run_comparison([encoder], datasets, tmp_path, is_report=False)
    assert (zero_shot.num_queries, zero_shot.num_gallery) == (2640, 2640)
    assert (catalogue.num_queries, catalogue.num_gallery) == (2640, 81)
    assert list(catalogue.metrics) == ["recall_at_1", "recall_at_5", "r_precision", "map_at_r"]
    assert engine_of(encoder).num_seen == 2640 + 81
    shutil.rmtree(tmp_path)


def test_run_comparison_measures_a_ground_truth_under_all_protocols(
    judged: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoder = make_encoder("grid")
    datasets = [dataclasses.replace(judged, protocol=protocol) for protocol in REVISITED_ROLES]
    results = run_comparison([encoder], datasets, tmp_path / "out", settings=ONE_THREAD)
    assert engine_of(encoder).num_seen == 16
    assert [(one.protocol, one.num_queries, one.num_skipped_queries) for one in results] == [
        ("easy", 2, 1),
        ("medium", 2, 1),
        ("hard", 1, 2),
    ]
    assert judged.ground_truth is not None
    embeddings = embed_images(encoder, judged.split("test"), num_threads=1)
    ids = [record.image_id for record in embeddings.records if record.is_gallery]
    is_gallery = np.array([record.is_gallery for record in embeddings.records])
    ranks = top_k(embeddings.vectors[~is_gallery], embeddings.vectors[is_gallery], 13)[1].T
    truths = [
        {part: [ids.index(one) for one in getattr(truth, part)] for part in ("easy", "hard", "junk")}
        for truth in judged.ground_truth.values()
    ]
    for result, expected in zip(results, revisited_metrics(ranks, truths).values(), strict=True):
        assert result.num_gallery == 13
        assert list(result.metrics) == ["mean_average_precision", "mp_at_1", "mp_at_5", "mp_at_10"]
        assert result.metrics["mean_average_precision"] == pytest.approx(expected.mean_average_precision, abs=1e-9)
        assert [result.metrics[f"mp_at_{k}"] for k in (1, 5, 10)] == pytest.approx(
            list(expected.mean_precision_at.values()), abs=1e-9
        )
        for name, (low, high) in result.intervals.items():
            assert 0 <= low <= result.metrics[name] <= high <= 1


def test_run_comparison_counts_an_unreadable_positive_as_not_found(
    judged: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    for number in (5, 6):  # all that the second query could find
        judged.records[number].path.write_bytes(b"no picture")
    settings = dataclasses.replace(ONE_THREAD, max_bad_fraction=0.5)
    (result,) = run_comparison([make_encoder("grid")], [judged], tmp_path / "out", settings=settings)
    assert (result.num_queries, result.num_unreadable, result.num_gallery) == (2, 2, 11)
    assert result.metrics["mean_average_precision"] <= 0.5
    assert "nothing right is found" in (tmp_path / "out" / "report.html").read_text()


def test_trap_revisited_queries_cropped_otherwise_are_embedded_apart(
    judged: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    cropped = tuple(
        dataclasses.replace(one, box=(0.0, 0.0, 9.0, 9.0)) if one.is_query else one for one in judged.records
    )
    datasets = [judged, dataclasses.replace(judged, records=cropped)]
    encoder = make_encoder("grid")
    together = run_comparison([encoder], datasets, tmp_path / "out", settings=ONE_THREAD)
    assert engine_of(encoder).num_seen == 32
    apart = [evaluate_encoder(make_encoder("grid"), dataset, settings=ONE_THREAD) for dataset in datasets]
    assert together == apart


def test_run_comparison_embeds_queries_again_when_they_are_cropped_otherwise(
    judged: Dataset, make_encoder: MakeEncoder, tmp_path: Path
) -> None:
    encoders = [make_encoder("a", side=1), make_encoder("b", stop_after=0)]
    with pytest.raises(KeyboardInterrupt):
        run_comparison(encoders, [judged], tmp_path, settings=ONE_THREAD)
    records = tuple(
        dataclasses.replace(one, box=(0.0, 0.0, 9.0, 9.0)) if one.is_query else one for one in judged.records
    )
    encoder = make_encoder("a", side=1)
    run_comparison([encoder], [dataclasses.replace(judged, records=records)], tmp_path, settings=ONE_THREAD)
    assert engine_of(encoder).num_seen == 16
