"""An example of a package that adds to vitrieve, one file for each kind of addition."""
