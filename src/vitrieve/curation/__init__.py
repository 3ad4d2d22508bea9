"""What is wrong with a collection: pictures that are there twice, wrong labels, and pictures that are worth a look.

In reading order:
    material.py     the pictures of a collection, embeddings or an index, and their vectors
    looking.py      what the pixels of one picture tell: size, sharpness, darkness, and whether two are the same
    copies.py       copies of pictures as people make them
    alignment.py    moving the edges of a part to where it is most like what it lies on
    placing.py      laying small copies of many pictures on each other
    registration.py where one picture fits into another
    agreement.py    whether two pictures agree in every region
    comparing.py    comparing the pairs of a collection, in steps that leave fewer and fewer
    links.py        which pictures are copies or show the same scene, and what they need to count as such
    duplicates.py   groups of copies, and which picture of each is the best
    acting.py       moving or linking what is there twice, and undoing it
    labels.py       labels that the other pictures contradict, classes that overlap, outliers
    audit.py        the whole report on a labeled collection
    decisions.py    what a person decided about it, and the corrected table
    pages.py        the reports as a page in one file and as CSV
"""
