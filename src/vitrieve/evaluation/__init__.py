"""Measure how well an encoder finds the same thing again, and show it.

In reading order:
    relevance.py    who is right, wrong or left out in a ranking
    metrics.py      pure functions: Recall@K, R-precision, MAP@R from embeddings and labels
    revisited.py    easy, medium, hard: trapezoidal average precision and mP@k
    bootstrap.py    95 % intervals over classes, or over queries
    protocols.py    records of a data set -> queries, gallery, junk; distractors
    data.py         what is measured on: a source under its protocols
    run.py          embed, measure, write results.json and the report
    evaluate.py     all of it in one call, which is public
    table.py        the figures as text
    analysis.py     what the report shows: classes, histograms, spectra, neighbors
    charts.py       inline SVG
    galleries.py    queries and what they find, as small pictures
    report.py       one self-contained HTML page
"""
