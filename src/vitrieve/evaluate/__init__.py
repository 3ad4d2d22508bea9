"""Measure how well an encoder finds the same thing again, and show it.

In reading order:
    relevance.py    who is right, wrong or left out in a ranking
    metrics.py      pure functions: Recall@K, R-precision, MAP@R from embeddings and labels
    bootstrap.py    95 % intervals over classes
    protocols.py    records of a data set -> queries, gallery, junk
    run.py          embed, measure, write results.json and the report
    analysis.py     what the report shows: classes, histograms, spectra, neighbours
    charts.py       inline SVG
    galleries.py    queries and what they find, as small pictures
    report.py       one self-contained HTML page
"""
