"""Measure how well an encoder finds the same thing again, and show it.

In reading order:
    metrics.py      pure functions: Recall@K, R-precision, MAP@R from embeddings and labels; 95 % intervals
    revisited.py    easy, medium, hard: trapezoidal average precision and mP@k
    protocols.py    a source under its protocols -> queries, gallery, junk; distractors
    measure.py      the figures of one encoder under one protocol, and the same as text
    reranking.py    what re-ranking adds, measured on held-out training classes; one is kept, or none
    analysis.py     what the report shows: classes, histograms, spectra, queries with their neighbors
    charts.py       charts as SVG
    examples.py     some queries with what they find, as one picture
    report.py       one self-contained HTML page
    run.py          all of it in one call, which is public: embed, measure, write results.json and the report
    export.py       an encoder as a graph, or as a small difference, and what that costs
    formats.py      an encoder for other libraries and devices: sentence-transformers, torch.export, Core ML, LiteRT
    leaderboard.py  an encoder as the benchmark mteb (MIEB) takes one
    sharing.py      a repository of the hub: the encoder, its card with the figures, a picture of them
"""
